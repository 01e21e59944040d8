//! Options of every verb, and loading a model as they say.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use firebrick::Error;
use firebrick::backend::packed::Format;
use firebrick::backend::process::start_threads_with_this_one;
use firebrick::backend::select::devices;
use firebrick::gate;
use firebrick::prelude::*;

use super::download::model_folder;
use super::output;

/// Options that every verb takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Everywhere {
    /// Backend to run on; `auto` picks the fastest device present
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    pub backend: String,
    /// Dtype of the weights in memory; `auto` keeps the file's
    #[arg(long, global = true, default_value = "auto")]
    pub dtype: Dtype,
    /// Turn warnings about weights and adapters into errors
    #[arg(long, global = true)]
    pub strict: bool,
    /// Threads of the CPU kernels [default: all cores]
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub threads: Option<u16>,
    /// Write JSON to stdout, and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing on stderr but errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Say more on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// A dtype of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    Auto,
    F32,
    Bf16,
    F16,
    /// Packed in eight bits; on the CPU activations are rounded to as many
    Q8,
    /// Packed in four bits; on the CPU activations are rounded to eight
    Q4,
}

impl Dtype {
    /// What to ask of the checkpoint.
    pub fn policy(self) -> DTypePolicy {
        match self {
            Self::Auto => DTypePolicy::Auto,
            Self::F32 => DTypePolicy::Convert(DType::F32),
            Self::Bf16 => DTypePolicy::Convert(DType::BF16),
            Self::F16 => DTypePolicy::Convert(DType::F16),
            Self::Q8 => DTypePolicy::Pack(Format::Q8),
            Self::Q4 => DTypePolicy::Pack(Format::Q4),
        }
    }
}

impl Everywhere {
    /// Makes process-wide settings.
    pub fn apply(&self) -> Result<()> {
        start_threads_with_this_one(self.threads.map(usize::from))
            .map_err(anyhow::Error::msg)
            .context("starting the threads of the CPU kernels (--threads)")
    }

    /// Runs a job on the backend the user named.
    pub fn dispatch<T>(&self, job: impl Job<Output = Result<T>>) -> Result<T> {
        let backend = BackendName::named(&self.backend)?;
        self.check_device(backend)?;
        dispatch(backend, job)?
    }

    /// Says when `doctor` found something wrong with the device, or never looked at a GPU.
    fn check_device(&self, backend: BackendName) -> Result<()> {
        let Some(device) = devices(backend).into_iter().next() else { return Ok(()) };
        match gate::remembered(&device) {
            Some(report) if !report.passed() => {
                let failed = report.failed().collect::<Vec<_>>().join(", ");
                self.warn(format_args!("{device} failed {failed}; see `firebrick doctor --backend {backend}`"))
            }
            None if device.kind.is_gpu() => {
                self.note(format_args!(
                    "{device} was never examined; `firebrick doctor --backend {backend}` takes a minute"
                ));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A line for the user, unless they asked for silence.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            output::to_user(text);
        }
    }

    /// For work of the host, in f32 on weights of any dtype, whichever backend the model will run on.
    pub fn on_the_cpu(self, work: &str) -> Self {
        if !["auto", "flex"].contains(&self.backend.as_str()) {
            self.note(format_args!("{work} is done on the CPU, by flex and not by {}", self.backend));
        }
        Self { backend: "flex".into(), ..self }
    }

    /// Whether long work shows a bar: not where the user, or the variable that Hugging Face's libraries heed, asks for none.
    pub fn shows_bars(&self) -> bool {
        !self.quiet && firebrick_hub::Hub::from_environment().shows_progress()
    }

    /// A line for the user who asked for more.
    pub fn detail(&self, text: impl std::fmt::Display) {
        if self.verbose {
            self.note(text);
        }
    }

    /// A warning, or with --strict an error.
    pub fn warn(&self, text: impl std::fmt::Display) -> Result<()> {
        if self.strict {
            bail!("{text} (--strict)");
        }
        self.note(format_args!("warning: {text}"));
        Ok(())
    }
}

/// Which model, and which adapter on it.
#[derive(Args, Clone, Debug)]
pub struct ModelOptions {
    /// Model folder in Hugging Face layout, or a repo id org/name[@revision], downloaded if the Hugging Face cache lacks it
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Adapter folder of PEFT or mlx-lm
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
}

impl ModelOptions {
    /// Loads the encoder, with its adapter attached.
    pub fn load_encoder<B: KernelBackend>(
        &self,
        everywhere: &Everywhere,
        device: &B::Device,
    ) -> Result<EmbeddingModel<B>> {
        let model = load_encoder::<B>(&self.model, everywhere, device)?;
        match &self.adapter {
            None => Ok(model),
            Some(folder) => Ok(model.with_adapter(&load_encoder_adapter(&model, folder, everywhere)?)?),
        }
    }

    /// Loads the decoder, with its adapter attached.
    pub fn load<B: KernelBackend>(&self, everywhere: &Everywhere, device: &B::Device) -> Result<LanguageModel<B>> {
        let model = load_model::<B>(&self.model, everywhere, device)?;
        match &self.adapter {
            None => Ok(model),
            Some(folder) => Ok(model.with_adapter(&load_adapter(&model, folder, everywhere)?)?),
        }
    }
}

/// Opens the checkpoint of `--model`.
pub fn open_checkpoint(model: &Path, everywhere: &Everywhere) -> Result<Checkpoint> {
    Ok(Checkpoint::open(&model_folder(model, everywhere)?)?)
}

/// Loads the model of `--model`, saying what is odd about it.
pub fn load_model<B: KernelBackend>(
    model: &Path,
    everywhere: &Everywhere,
    device: &B::Device,
) -> Result<LanguageModel<B>> {
    load_by::<B, _>(model, everywhere, device, LanguageModel::from_checkpoint)
}

/// Loads the encoder of `--model`, saying what is odd about it.
pub fn load_encoder<B: KernelBackend>(
    model: &Path,
    everywhere: &Everywhere,
    device: &B::Device,
) -> Result<EmbeddingModel<B>> {
    load_by::<B, _>(model, everywhere, device, EmbeddingModel::from_checkpoint)
}

fn load_by<B: KernelBackend, M>(
    model: &Path,
    everywhere: &Everywhere,
    device: &B::Device,
    load: impl FnOnce(&Checkpoint, DTypePolicy, &B::Device) -> firebrick::Result<M>,
) -> Result<M> {
    let folder = model_folder(model, everywhere)?;
    let begun = std::time::Instant::now();
    let checkpoint = Checkpoint::open(&folder)?;
    let folder = checkpoint.folder();
    let model = load(&checkpoint, everywhere.dtype.policy(), device)?;
    warn_of_unsound(&checkpoint.warnings(), &checkpoint, everywhere)?;
    for (from, to, count) in checkpoint.conversions() {
        everywhere.note(format_args!("{count} matrices were converted from {from} to {to} for {}", B::name(device)));
    }
    everywhere.detail(format_args!(
        "loaded {} ({} MB) in {:.2} s on {}",
        folder.display(),
        checkpoint.total_bytes() / 1_000_000,
        begun.elapsed().as_secs_f64(),
        B::name(device)
    ));
    Ok(model)
}

/// Warns of tensors with values that are not finite, or ends with --strict.
pub fn warn_of_unsound(tensors: &[String], checkpoint: &Checkpoint, everywhere: &Everywhere) -> Result<()> {
    let [first, others @ ..] = tensors else { return Ok(()) };
    let which = match others.len() {
        0 => format!("{first} holds"),
        1 => format!("{first} and 1 more tensor hold"),
        count => format!("{first} and {count} more tensors hold"),
    };
    everywhere.warn(format_args!("{}: {which} values that are not finite", checkpoint.folder().display()))
}

/// Loads an adapter that fits the model, saying when its base is unknown.
pub fn load_adapter<B: KernelBackend>(
    model: &LanguageModel<B>,
    folder: &Path,
    everywhere: &Everywhere,
) -> Result<Adapter<B>> {
    // Attached once here, so that an adapter that does not fit is named by its folder.
    let fitting = model.load_adapter(folder).and_then(|adapter| model.with_adapter(&adapter).map(|_| adapter));
    named(fitting, folder, everywhere)
}

/// Loads an adapter that fits the encoder, saying when its base is unknown.
pub fn load_encoder_adapter<B: KernelBackend>(
    model: &EmbeddingModel<B>,
    folder: &Path,
    everywhere: &Everywhere,
) -> Result<Adapter<B>> {
    let fitting = model.load_adapter(folder).and_then(|adapter| model.with_adapter(&adapter).map(|_| adapter));
    named(fitting, folder, everywhere)
}

fn named<B: KernelBackend>(
    fitting: firebrick::Result<Adapter<B>>,
    folder: &Path,
    everywhere: &Everywhere,
) -> Result<Adapter<B>> {
    let adapter = fitting.map_err(|error| match error {
        Error::AdapterMismatch { problems, .. } => {
            Error::AdapterMismatch { adapter: folder.display().to_string(), problems }
        }
        error => error,
    })?;
    check_base_is_known(&adapter, folder, everywhere)?;
    Ok(adapter)
}

/// Says when an adapter does not know its base.
pub fn check_base_is_known<B: KernelBackend>(
    adapter: &Adapter<B>,
    folder: &Path,
    everywhere: &Everywhere,
) -> Result<()> {
    match adapter.base() {
        Some(_) => Ok(()),
        None => everywhere.warn(format_args!(
            "adapter {} does not say which base it was made for; only names and shapes were checked",
            folder.display()
        )),
    }
}

/// Refuses a folder that has something in it.
pub fn check_is_new(folder: &Path, verb: &str) -> Result<()> {
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: is not empty; {verb} writes a new folder", folder.display());
    }
    if folder.exists() && !folder.is_dir() {
        bail!("{}: is a file; {verb} writes a new folder", folder.display());
    }
    Ok(())
}

/// Token ids separated by commas.
pub fn parse_tokens(text: &str) -> std::result::Result<Vec<u32>, String> {
    let id = |id: &str| id.trim().parse().map_err(|_| format!("`{id}` is not a token id"));
    text.split(',').filter(|id| !id.trim().is_empty()).map(id).collect()
}
