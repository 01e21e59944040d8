//! `firebrick train`: rows in, an adapter folder out. The options are in `train/config.rs`, what is shown on the way in `train/progress.rs`.

mod config;
mod memory;
mod progress;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use firebrick::backend::process::return_freed_memory;
use firebrick::core::train::checkpoint::{Checkpoints, Saved};
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
    /// Folder for the adapter, metrics.jsonl, loss.svg and the checkpoints step-N
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// TOML file with any of the options below, under their names with underscores; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue from this adapter instead of a new one
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["rank", "alpha", "dropout", "target", "rslora"])]
    init_adapter: Option<PathBuf>,
    /// Continue the run that was interrupted in --output from its newest whole checkpoint; begin where there is none
    #[arg(long)]
    resume: bool,
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
        // What is estimated beforehand is what there is then.
        return_freed_memory();
        everywhere.clone().dispatch(Work { verb: self, options, everywhere })
    }
}

struct Work {
    verb: Train,
    options: TrainOptions,
    everywhere: Everywhere,
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
        let mut data = settings.data.clone();
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
        self.train(trainer, splits, &settings, data.max_tokens, weighted_tokens)
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
        self.train(trainer, splits, &settings, max_tokens, None)
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
        settings: &Settings,
        max_tokens: usize,
        weighted_tokens: Option<usize>,
    ) -> Result<ExitCode> {
        let Self { verb, everywhere, .. } = self;
        for dataset in [Some(&splits.train), splits.valid.as_ref()].into_iter().flatten() {
            report_rows(dataset, max_tokens, &everywhere);
        }
        let backend = BackendName::named(&everywhere.backend)?;
        let (mut trainer, memory) = memory::fitted(trainer, &splits, settings.auto_batch, backend)?;
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
        if verb.dry_run {
            match everywhere.json {
                true => output::json_line(&plan)?,
                false => output::text(&format!("{plan}\n{}\n", plan.memory))?,
            }
            plan.memory.check()?;
            return Ok(ExitCode::SUCCESS);
        }
        everywhere.note(&plan);
        plan.memory.check()?;

        let mut checkpoints =
            Checkpoints::open(&verb.output)?.every(settings.checkpoint_every).keep_last(settings.keep_last);
        let from = verb.place_to_begin(&mut checkpoints, plan.steps, &everywhere)?;
        trainer.keep(checkpoints, from.as_ref(), &splits.train)?;
        let mut progress = Progress::new(&verb.output, plan.steps, from.as_ref().map(Saved::state), &everywhere)?;
        // Before, there is nothing to save: a signal ends the process as it does any other.
        let signals = Signals::listen()?;
        let mut failed = None;
        let outcome = trainer.run(&splits.train, splits.valid.as_ref(), &mut |event| {
            if let Event::Unfinished { seconds_left } = event {
                let give_up = signals.stop() && seconds_left > PATIENCE_SECONDS;
                return if give_up { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            }
            failed = failed.take().or(progress.record(event).err());
            if failed.is_some() || signals.stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.clear();
        let failed = outcome.map_err(anyhow::Error::from).err().or(failed);
        // What was trained is kept, whatever ended the run; a run that failed before its first step has trained nothing.
        if failed.is_none() || progress.has_trained() {
            trainer.adapter().save(&verb.output, Format::Peft)?;
            everywhere.note(format_args!("adapter of {} saved in {}", steps(progress.steps()), verb.output.display()));
        }
        match failed {
            Some(error) => Err(error),
            None => progress.finish(signals.stop()).map(|()| signals.exit_code()),
        }
    }
}

/// What is unfinished when a signal comes is finished if that takes no longer: ten seconds are to be enough for it and for saving.
const PATIENCE_SECONDS: f64 = 5.0;

impl Train {
    /// The checkpoint to continue from, if that is wanted and there is one.
    ///
    /// # Errors
    /// If it is not wanted but would be lost.
    fn place_to_begin(
        &self,
        checkpoints: &mut Checkpoints,
        total: usize,
        everywhere: &Everywhere,
    ) -> Result<Option<Saved>> {
        let found = checkpoints.newest()?;
        let folder = self.output.display();
        for (_, problem) in &found.damaged {
            everywhere.note(format_args!("warning: a damaged checkpoint is passed over: {problem}"));
        }
        match found.saved {
            Some(saved) if self.resume => {
                let (step, before) = (saved.state().cursor.step, saved.state().total);
                everywhere
                    .note(format_args!("continuing after step {step} of {total} from {}", saved.folder().display()));
                if before != total {
                    let text = "the learning rates from here on are those of the new length";
                    everywhere.note(format_args!("the run was to take {} before; {text}", steps(before)));
                }
                Ok(Some(saved))
            }
            None if self.resume => {
                everywhere.note(format_args!("no checkpoint in {folder}: beginning with step 1"));
                Ok(None)
            }
            Some(saved) if saved.state().cursor.step < saved.state().total => {
                let (step, total) = (saved.state().cursor.step, saved.state().total);
                bail!(
                    "{folder} holds a run interrupted after step {step} of {total}; continue it with --resume, or take another --output"
                )
            }
            Some(_) => checkpoints.clear().map(|()| None).map_err(anyhow::Error::from),
            None => Ok(None),
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
