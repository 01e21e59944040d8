//! From `--model` to a folder: downloads with a bar on a terminal. How is the business of the crate firebrick-hub.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use firebrick_hub::{Event, Hub};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};

use super::options::Everywhere;

/// The folder that `--model` names, downloaded where it is a repo id that the Hugging Face cache lacks.
pub fn model_folder(model: &Path, everywhere: &Everywhere) -> Result<PathBuf> {
    let hub = Hub::from_environment();
    let _leaving = LeaveAtOnce::listen()?;
    // indicatif draws on stderr, and only if that is a terminal.
    let is_hidden = everywhere.quiet || !hub.shows_progress();
    let bar = if is_hidden { ProgressBar::hidden() } else { ProgressBar::new(0) };
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")?);
    let mut current = String::new();
    let folder = hub.resolve(&model.to_string_lossy(), &mut |event| match event {
        Event::Begun { repo, commit, host, .. } => {
            everywhere.note(format_args!("downloading {repo} at {} from {host}", commit.get(..8).unwrap_or(commit)));
        }
        Event::Waiting { file } => {
            bar.suspend(|| everywhere.note(format_args!("another process is downloading {file}; waiting for it")));
        }
        Event::Received { file, bytes, total } => {
            bar.set_position(bytes);
            if file != current {
                file.clone_into(&mut current);
                bar.set_length(total);
                bar.set_message(current.clone());
                // What an earlier attempt left is not this one's speed.
                bar.reset_eta();
            }
        }
        _ => {}
    });
    bar.finish_and_clear();
    Ok(folder?)
}

/// Ends the process at the first signal while it exists: a verb that stops after what it is doing would finish the download first, and
/// what has arrived is kept for the next run anyway.
struct LeaveAtOnce([SigId; 2]);

impl LeaveAtOnce {
    fn listen() -> Result<Self> {
        let always = Arc::new(AtomicBool::new(true));
        let leave = |signal: i32| flag::register_conditional_shutdown(signal, 128 + signal, always.clone());
        Ok(Self([leave(SIGINT)?, leave(SIGTERM)?]))
    }
}

impl Drop for LeaveAtOnce {
    fn drop(&mut self) {
        for signal in self.0 {
            low_level::unregister(signal);
        }
    }
}
