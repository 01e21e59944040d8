//! `firebrick merge`: an adapter folded into its base, tensor by tensor, as a checkpoint that any program loads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use clap::Args;
use firebrick::Error;
use firebrick::core::checkpoint::{TensorSpecification, write_atomic, write_safetensors};
use firebrick::core::lora::Module;
use firebrick::prelude::*;
use serde_json::json;

use super::options::{Everywhere, check_base_is_known, check_is_new, open_checkpoint};
use super::output;
use super::signal::Signals;

/// Fold an adapter into its base and write a plain checkpoint.
#[derive(Args, Clone, Debug)]
pub struct Merge {
    /// Model folder in Hugging Face layout, or a repo id org/name[@revision], downloaded if the Hugging Face cache lacks it
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Adapter folder of PEFT or mlx-lm
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

impl Merge {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let signals = Signals::listen()?;
        everywhere.clone().dispatch(Work { verb: self, everywhere, signals })
    }
}

struct Work {
    verb: Merge,
    everywhere: Everywhere,
    signals: Signals,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere, signals } = self;
        check_is_new(&verb.output, "merge")?;
        let checkpoint = open_checkpoint(&verb.model, &everywhere)?;
        let adapter = Adapter::<B::InnerBackend>::load(&verb.adapter, &device)?;
        let targets = targets(&checkpoint, &adapter, &verb.adapter)?;
        check_base_is_known(&adapter, &verb.adapter, &everywhere)?;
        // Built beside its place and moved there whole.
        let building = sibling(&verb.output)?;
        let place = || verb.output.display().to_string();
        let created: Vec<&Path> = building.ancestors().take_while(|folder| !folder.exists()).collect();
        let written = std::fs::create_dir_all(&building).with_context(place).and_then(|()| {
            write(&checkpoint, &targets, &building, everywhere.dtype.burn(), &device, &signals)?;
            let _ = std::fs::remove_dir(&verb.output);
            std::fs::rename(&building, &verb.output).with_context(place)
        });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&building);
            created.into_iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
        }
        if signals.stop() && written.is_err() {
            return Ok(signals.exit_code());
        }
        written?;
        if everywhere.json {
            output::json_line(&json!({"output": verb.output, "merged_modules": targets.len()}))?;
        } else {
            everywhere.note(format_args!("{} modules merged into {}", targets.len(), verb.output.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The adapter's modules by the tensor they change, once all of them fit.
fn targets<B: KernelBackend>(
    checkpoint: &Checkpoint,
    adapter: &Adapter<B>,
    folder: &Path,
) -> Result<BTreeMap<String, Module<B>>> {
    let mut problems = Vec::new();
    if adapter.base().is_some_and(|base| base != checkpoint.fingerprint()) {
        problems.push("it was made for another base".to_owned());
    }
    let mut targets = BTreeMap::new();
    for (path, module) in adapter.modules() {
        let (name, shape) = (stored_name(checkpoint, path), [module.b.dims()[0], module.a.dims()[1]]);
        match checkpoint.info(&name) {
            None => problems.push(format!("{name} is not in the checkpoint")),
            Some(info) if info.shape != shape => {
                problems.push(format!("{path} is {:?} in the checkpoint, {shape:?} in the adapter", info.shape));
            }
            Some(_) => {
                targets.insert(name, module.clone());
            }
        }
    }
    if problems.is_empty() {
        return Ok(targets);
    }
    Err(Error::AdapterMismatch { adapter: folder.display().to_string(), problems }.into())
}

/// The tensor that a path of an adapter means: under a prefix where a model was saved with a head, as `bert.`.
fn stored_name(checkpoint: &Checkpoint, path: &str) -> String {
    let name = format!("{path}.weight");
    if checkpoint.info(&name).is_some() {
        return name;
    }
    let behind_a_prefix = format!(".{name}");
    let mut names = checkpoint.names().filter(|stored| stored.ends_with(&behind_a_prefix));
    match (names.next(), names.next()) {
        (Some(stored), None) => stored.to_owned(),
        _ => name,
    }
}

fn write<B: KernelBackend>(
    checkpoint: &Checkpoint,
    targets: &BTreeMap<String, Module<B>>,
    folder: &Path,
    dtype: Option<DType>,
    device: &B::Device,
    signals: &Signals,
) -> Result<()> {
    let specification = |name: &str| {
        let info = checkpoint.info(name)?;
        let dtype = dtype.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype);
        Some(TensorSpecification { name: name.to_owned(), dtype, shape: info.shape })
    };
    let tensors: Vec<_> = checkpoint.names().filter_map(specification).collect();
    let path = folder.join("model.safetensors");
    write_safetensors(&path, &tensors, firebrick::core::checkpoint::PYTORCH_FORMAT, |tensor| {
        if signals.stop() {
            return Err(Error::Io { path: path.clone(), source: std::io::ErrorKind::Interrupted.into() });
        }
        let mut data = checkpoint.data(&tensor.name)?;
        // Of the dtypes only f16 has a narrower range than the others.
        let before = (tensor.dtype == DType::F16).then(|| non_finite(&data));
        if let Some(module) = targets.get(&tensor.name) {
            data = merged(module, data, device);
        }
        let data = if data.dtype == tensor.dtype { data } else { data.convert_dtype(tensor.dtype) };
        if before.is_some_and(|before| non_finite(&data) > before) {
            let what = format!("in {:?} tensor {} overflows; choose a wider --dtype", tensor.dtype, tensor.name);
            return Err(Error::malformed(checkpoint.folder(), what));
        }
        Ok(data)
    })?;
    copy_rest(checkpoint, folder, dtype)
}

fn merged<B: KernelBackend>(module: &Module<B>, data: TensorData, device: &B::Device) -> TensorData {
    // From the primitive, which keeps the stored dtype.
    let weight = Tensor::from_primitive(TensorPrimitive::Float(B::float_from_data(data, device)));
    module.merged(weight).into_data()
}

fn non_finite(data: &TensorData) -> usize {
    data.iter::<f32>().filter(|value| !value.is_finite()).count()
}

/// Config, tokenizer and templates, as they are; the config says the new dtype.
fn copy_rest(checkpoint: &Checkpoint, folder: &Path, dtype: Option<DType>) -> Result<()> {
    let source = checkpoint.folder();
    for entry in source.read_dir().with_context(|| source.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = [".json", ".jinja", ".txt", ".model"].iter().any(|end| name.ends_with(end));
        if wanted && path.is_file() && !name.ends_with(".index.json") {
            std::fs::copy(&path, folder.join(&name)).with_context(|| path.display().to_string())?;
        }
    }
    copy_modules(source, folder)?;
    let Some(dtype) = dtype else { return Ok(()) };
    let mut config = checkpoint.config().clone();
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(name);
        }
    }
    Ok(write_atomic(&folder.join("config.json"), serde_json::to_string_pretty(&config)?.as_bytes())?)
}

/// The configs of an encoder's modules, such as `1_Pooling/config.json`, without which it would pool otherwise.
fn copy_modules(source: &Path, folder: &Path) -> Result<()> {
    if !source.join("modules.json").is_file() {
        return Ok(());
    }
    for entry in source.read_dir().with_context(|| source.display().to_string())? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let config = path.join("config.json");
        if path.is_dir() && config.is_file() {
            let to = folder.join(name);
            std::fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
            std::fs::copy(&config, to.join("config.json")).with_context(|| config.display().to_string())?;
        }
    }
    Ok(())
}

fn sibling(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().with_context(|| format!("{}: not a folder name", folder.display()))?;
    let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    Ok(folder.with_file_name(name))
}
