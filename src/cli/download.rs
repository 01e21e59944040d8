//! From `--model` to a folder: downloads with a bar on a terminal. How is the business of the crate firebrick-hub.

use std::path::{Path, PathBuf};

use anyhow::Result;
use firebrick_hub::{Event, Hub};
use indicatif::{ProgressBar, ProgressStyle};

use super::options::Everywhere;
use super::signal::LeaveAtOnce;

/// The folder that `--model` names, downloaded where it is a repo id that the Hugging Face cache lacks.
pub fn model_folder(model: &Path, everywhere: &Everywhere) -> Result<PathBuf> {
    let hub = Hub::from_environment();
    // A verb that stops after what it is doing would finish the download first, and what has arrived is kept for the next run anyway.
    let _leaving = LeaveAtOnce::begin()?;
    // indicatif draws on stderr, and only if that is a terminal.
    let bar = if everywhere.shows_bars() { ProgressBar::new(0) } else { ProgressBar::hidden() };
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
