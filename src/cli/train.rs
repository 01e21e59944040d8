//! `firebrick train`: rows in, an adapter folder out. The options are in `train/config.rs`, what is shown on the way in `train/progress.rs`.

mod config;
mod memory;
mod progress;

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use firebrick::core::train::contrastive::Contrastive;
use firebrick::core::train::task::Task;
use firebrick::models::{Role, family};
use firebrick::prelude::*;
use serde::Serialize;

use super::data::report_rows;
use super::download::model_folder;
use super::options::{Everywhere, load_adapter, load_encoder, load_encoder_adapter, load_model};
use super::output;
use super::signal::Signals;
use config::{Settings, TrainOptions};
use memory::Memory;
use progress::Progress;

/// Fine-tune a LoRA adapter on train.jsonl: a decoder to answer, an encoder to find.
#[derive(Args, Clone, Debug)]
pub struct Train {
    /// Model folder in Hugging Face layout, or a repo id org/name[@revision], downloaded if the Hugging Face cache lacks it
    #[arg(long, value_name = "MODEL")]
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
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["rank", "alpha", "dropout", "target", "rslora"])]
    init_adapter: Option<PathBuf>,
    /// Show what would be trained, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    options: TrainOptions,
}

impl Train {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let options = self.options.clone().over_file(self.config.as_deref())?;
        if self.init_adapter.is_some() {
            options.check_init_adapter()?;
        }
        options.check()?;
        let signals = Signals::listen()?;
        everywhere.clone().dispatch(Work { verb: self, options, everywhere, signals })
    }
}

struct Work {
    verb: Train,
    options: TrainOptions,
    everywhere: Everywhere,
    signals: Signals,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let folder = model_folder(&self.verb.model, &self.everywhere)?;
        let role = family(&Checkpoint::open(&folder)?).map_or(Role::CausalLm, |family| family.role);
        self.options.check_role(role)?;
        let settings = self.options.clone().settle(role)?;
        match role {
            Role::CausalLm => self.decoder::<B>(&folder, settings, &device),
            Role::Encoder => self.encoder::<B>(&folder, settings, &device),
        }
    }
}

impl Work {
    fn decoder<B: TrainBackend>(self, folder: &Path, mut settings: Settings, device: &B::Device) -> Result<ExitCode> {
        let model = load_model::<B>(folder, &self.everywhere, device)?;
        let base = model.valid();
        let mut data = settings.data;
        data.max_tokens = data.max_tokens.min(model.model().facts().context);
        settings.train.pack = settings.train.pack.map(|tokens| tokens.min(data.max_tokens));
        let splits = Splits::load(&self.verb.data, model.tokenizer(), &data)?;
        let mut adapter = match &self.verb.init_adapter {
            Some(folder) => load_adapter(&base, folder, &self.everywhere)?,
            None => Adapter::create(base.model(), &settings.lora, settings.train.seed)?,
        };
        self.name_base(&mut adapter, folder, model.fingerprint());
        let weighted_tokens = Some(splits.train.weighted_tokens());
        let trainer = Trainer::new(model.model(), adapter, settings.train.clone())?;
        self.train(trainer, splits, settings.auto_batch, data.max_tokens, weighted_tokens)
    }

    fn encoder<B: TrainBackend>(self, folder: &Path, settings: Settings, device: &B::Device) -> Result<ExitCode> {
        let model = load_encoder::<B>(folder, &self.everywhere, device)?;
        let base = model.valid();
        let max_tokens = settings.data.max_tokens.min(model.embedder().max_tokens());
        let embedder = model.embedder().with_max_tokens(max_tokens)?;
        let splits = Splits::load_pairs(&self.verb.data, &embedder, settings.data.bad_rows)?;
        let mut adapter = match &self.verb.init_adapter {
            Some(folder) => load_encoder_adapter(&base, folder, &self.everywhere)?,
            None => Adapter::create(base.model(), &settings.lora, settings.train.seed)?,
        };
        self.name_base(&mut adapter, folder, model.fingerprint());
        let Settings { temperature, symmetric, .. } = settings;
        let task = Contrastive { embedder, temperature, symmetric };
        let trainer = Trainer::contrastive(model.model(), task, adapter, settings.train.clone())?;
        self.train(trainer, splits, settings.auto_batch, max_tokens, None)
    }

    fn name_base<B: KernelBackend>(&self, adapter: &mut Adapter<B>, folder: &Path, fingerprint: &str) {
        match firebrick_hub::origin(folder) {
            // Named as PEFT does, with the commit that the revision stood for.
            Some((repo, commit)) => adapter.set_base(fingerprint, &repo, Some(&commit)),
            None => adapter.set_base(fingerprint, &self.verb.model.to_string_lossy(), None),
        }
    }

    /// What is the same whatever is learned.
    fn train<B: TrainBackend, T: Task<B>>(
        self,
        trainer: Trainer<B, T>,
        splits: Splits<T::Example>,
        auto_batch: bool,
        max_tokens: usize,
        weighted_tokens: Option<usize>,
    ) -> Result<ExitCode> {
        let Self { verb, everywhere, signals, .. } = self;
        for dataset in [Some(&splits.train), splits.valid.as_ref()].into_iter().flatten() {
            report_rows(dataset, max_tokens, &everywhere);
        }
        let backend = BackendName::named(&everywhere.backend)?;
        let (mut trainer, memory) = memory::fitted(trainer, &splits, auto_batch, backend)?;
        let plan = Plan {
            steps: trainer.total_steps(splits.train.examples()),
            train_examples: splits.train.examples().len(),
            valid_examples: splits.valid.as_ref().map(|valid| valid.examples().len()),
            weighted_tokens,
            trainable_parameters: trainer.adapter().parameters(),
            modules: trainer.adapter().modules().len(),
            backend: backend.to_string(),
            memory,
        };
        plan.check(&verb.data, trainer.config(), &everywhere)?;
        everywhere.note(&plan);
        if verb.dry_run {
            everywhere.note(&plan.memory);
            if everywhere.json {
                output::json_line(&plan)?;
            }
            return Ok(ExitCode::SUCCESS);
        }

        std::fs::create_dir_all(&verb.output).with_context(|| format!("--output {}", verb.output.display()))?;
        let _lock = lock(&verb.output)?;
        let mut progress = Progress::new(&verb.output, plan.steps, &everywhere)?;
        let mut failed = None;
        let outcome = trainer.run(&splits.train, splits.valid.as_ref(), &mut |event| {
            failed = progress.record(event).err();
            if failed.is_some() || signals.stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.clear();
        let failed = outcome.map_err(anyhow::Error::from).err().or(failed);
        // What was trained is kept, whatever ended the run; a run that failed before its first step has trained nothing.
        if failed.is_none() || progress.steps() > 0 {
            trainer.adapter().save(&verb.output, Format::Peft)?;
            everywhere.note(format_args!("adapter of {} saved in {}", steps(progress.steps()), verb.output.display()));
        }
        match failed {
            Some(error) => Err(error),
            None => progress.finish(signals.stop()).map(|()| signals.exit_code()),
        }
    }
}

/// What a run is about to do.
#[derive(Serialize)]
struct Plan {
    steps: usize,
    train_examples: usize,
    valid_examples: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weighted_tokens: Option<usize>,
    trainable_parameters: usize,
    modules: usize,
    backend: String,
    memory: Memory,
}

impl Plan {
    /// What would fail later, or do nothing.
    fn check(&self, data: &Path, train: &TrainConfig, everywhere: &Everywhere) -> Result<()> {
        let (rows, batch) = (self.train_examples, train.batch_size);
        if rows < batch && train.pack.is_none() {
            let file = data.join("train.jsonl");
            bail!("{}: {rows} rows are fewer than a batch of {batch}; lower --batch-size", file.display());
        }
        if train.eval_every.is_some() && self.valid_examples.is_none() {
            let folder = data.display();
            everywhere.note(format_args!("warning: {folder} has no valid.jsonl: --eval-every evaluates nothing"));
        }
        let warmup = train.learning_rate.warmup_steps;
        if warmup >= self.steps {
            let total = steps(self.steps);
            everywhere.note(format_args!("warning: a warmup of {} takes all of {total}", steps(warmup)));
        }
        Ok(())
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { train_examples, weighted_tokens, trainable_parameters, modules, .. } = self;
        write!(
            f,
            "{} on {train_examples} examples{}; {trainable_parameters} parameters in {modules} modules",
            steps(self.steps),
            weighted_tokens.map_or(String::new(), |tokens| format!(" ({tokens} tokens that count)"))
        )
    }
}

fn steps(count: usize) -> String {
    format!("{count} step{}", if count == 1 { "" } else { "s" })
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
