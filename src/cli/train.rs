//! `firebrick train`: rows in, an adapter folder out. The options are in `train/config.rs`, what is shown on the way in `train/progress.rs`.

mod config;
mod progress;

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use firebrick::core::train::data::SkippedRow;
use firebrick::prelude::*;
use serde_json::json;

use super::options::{Everywhere, load_adapter, load_model};
use super::output;
use super::signal::Signals;
use config::{Settings, TrainOptions};
use progress::Progress;

/// Fine-tune a LoRA adapter on train.jsonl.
#[derive(Args, Clone, Debug)]
pub struct Train {
    /// Model folder in Hugging Face layout
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Folder with train.jsonl, and valid.jsonl if there is one
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Folder for the adapter, metrics.jsonl and loss.svg
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// TOML file with any of the options below, under their names with underscores; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue from this adapter instead of a new one
    #[arg(long, value_name = "FOLDER")]
    init_adapter: Option<PathBuf>,
    /// Show what would be trained, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    options: TrainOptions,
}

impl Train {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let settings = self.options.clone().over_file(self.config.as_deref())?.settle()?;
        let signals = Signals::listen()?;
        everywhere.clone().dispatch(Work { verb: self, settings, everywhere, signals })
    }
}

struct Work {
    verb: Train,
    settings: Settings,
    everywhere: Everywhere,
    signals: Signals,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, settings, everywhere, signals } = self;
        let model = load_model::<B>(&verb.model, &everywhere, &device)?;
        let base = model.valid();
        let mut data = settings.data;
        data.max_tokens = data.max_tokens.min(model.model().facts().context);
        let splits = Splits::load(&verb.data, model.tokenizer(), &data)?;
        for dataset in [Some(&splits.train), splits.valid.as_ref()].into_iter().flatten() {
            report_rows(dataset, &everywhere);
        }
        let mut adapter = match &verb.init_adapter {
            Some(folder) => load_adapter(&base, folder, &everywhere)?,
            None => Adapter::create(base.model(), &settings.lora, settings.train.seed)?,
        };
        adapter.set_base(model.fingerprint(), &verb.model.to_string_lossy());
        let parameters = adapter.parameters();
        let modules = adapter.modules().len();
        let mut trainer = Trainer::new(model.model(), adapter, settings.train.clone())?;
        let total = trainer.total_steps(splits.train.examples().len());
        let plan = json!({
            "steps": total, "train_examples": splits.train.examples().len(),
            "valid_examples": splits.valid.as_ref().map(|valid| valid.examples().len()),
            "weighted_tokens": splits.train.weighted_tokens(), "trainable_parameters": parameters, "modules": modules,
            "backend": BackendName::named(&everywhere.backend)?.to_string(),
        });
        everywhere.note(format_args!(
            "{total} steps on {} examples ({} weighted tokens); {parameters} parameters in {modules} modules",
            splits.train.examples().len(),
            splits.train.weighted_tokens()
        ));
        if verb.dry_run {
            if everywhere.json {
                output::json_line(&plan)?;
            }
            return Ok(ExitCode::SUCCESS);
        }

        std::fs::create_dir_all(&verb.output).with_context(|| verb.output.display().to_string())?;
        let _lock = lock(&verb.output)?;
        let mut progress = Progress::new(&verb.output, total, &everywhere)?;
        let mut failed = None;
        let outcome = trainer.run(&splits.train, splits.valid.as_ref(), &mut |event| {
            failed = progress.record(event).err();
            if failed.is_some() || signals.stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // What was trained is kept, whatever ended the run.
        let saved = trainer.adapter().save(&verb.output, Format::Peft);
        let summary = progress.finish(signals.stop());
        outcome?;
        saved?;
        match failed {
            Some(error) => return Err(error),
            None => summary?,
        }
        everywhere.note(format_args!("adapter saved in {}", verb.output.display()));
        Ok(signals.exit_code())
    }
}

fn report_rows(dataset: &Dataset, everywhere: &Everywhere) {
    let (path, report) = (dataset.path().display(), dataset.report());
    for SkippedRow { line, problem } in report.skipped.iter().take(10) {
        everywhere.note(format_args!("skipped {path}:{line}: {problem}"));
    }
    let counts = [
        (report.skipped.len(), "bad rows skipped"),
        (report.truncated, "over-long rows truncated"),
        (report.dropped, "over-long rows dropped"),
        (report.split, "over-long rows split"),
        (report.unweighted, "rows without a token that counts left out"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        everywhere.note(format_args!("{path}: {count} of {} {what}", report.rows));
    }
}

/// Held for as long as a training run writes into the folder.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("{}: another run is training into this folder", folder.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
    }
}
