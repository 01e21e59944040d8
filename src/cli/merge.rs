//! `firebrick merge`: an adapter folded into its base, tensor by tensor, as a checkpoint that any program loads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use clap::Args;
use firebrick::Error;
use firebrick::core::checkpoint::{TensorSpecification, write_safetensors};
use firebrick::core::disk::System;
use firebrick::core::lora::Module;
use firebrick::prelude::*;
use serde_json::{Value, json};

use super::folder::{copy_rest, write_whole};
use super::options::{Everywhere, check_base_is_known, check_is_new, open_checkpoint, warn_of_unsound};
use super::output;
use super::signal::Signals;
use super::wrong_usage;

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
        let everywhere = everywhere.on_the_cpu("merging");
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
        let dtype = match everywhere.dtype.policy() {
            DTypePolicy::Auto => None,
            DTypePolicy::Convert(dtype) => Some(dtype),
            DTypePolicy::Pack(format) => {
                wrong_usage!(
                    "merge writes f32, f16 or bf16, not {}; run `firebrick quantize` on what it wrote",
                    format.name()
                )
            }
        };
        let checkpoint = open_checkpoint(&verb.model, &everywhere)?;
        if checkpoint.holds_packed() {
            let folder = checkpoint.folder().display();
            bail!("{folder}: is packed, and would have to be packed anew; merge into the folder it was made from");
        }
        let adapter = Adapter::<B::InnerBackend>::load(&verb.adapter, &device)?;
        let targets = targets(&checkpoint, &adapter, &verb.adapter)?;
        check_base_is_known(&adapter, &verb.adapter, &everywhere)?;
        let written = write_whole(&verb.output, |folder| {
            let unsound = write(&checkpoint, &targets, folder, dtype, &device, &signals)?;
            warn_of_unsound(&unsound, &checkpoint, &everywhere)?;
            copy_rest(&checkpoint, folder, |config| say_dtype(config, dtype))
        });
        if signals.stop() && written.is_err() {
            return Ok(signals.exit_code());
        }
        written?;
        if everywhere.json {
            output::json_line(&json!({"output": verb.output.to_string_lossy(), "merged_modules": targets.len()}))?;
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
) -> Result<Vec<String>> {
    let mut unsound = Vec::new();
    let specification = |name: &str| {
        let info = checkpoint.info(name)?;
        let dtype = dtype.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype);
        Some(TensorSpecification { name: name.to_owned(), dtype, shape: info.shape })
    };
    let tensors: Vec<_> = checkpoint.names().filter_map(specification).collect();
    let path = folder.join("model.safetensors");
    write_safetensors(&System, &path, &tensors, firebrick::core::checkpoint::PYTORCH_FORMAT, |tensor| {
        if signals.stop() {
            return Err(Error::Io { path: path.clone(), source: std::io::ErrorKind::Interrupted.into() });
        }
        let mut data = checkpoint.data(&tensor.name)?;
        let before = if data.dtype.is_float() { non_finite(&data) } else { 0 };
        if before > 0 {
            unsound.push(tensor.name.clone());
        }
        if let Some(module) = targets.get(&tensor.name) {
            data = merged(module, data, device);
        }
        let data = if data.dtype == tensor.dtype { data } else { data.convert_dtype(tensor.dtype) };
        // Of the dtypes only f16 has a narrower range than the others.
        if tensor.dtype == DType::F16 && non_finite(&data) > before {
            let what = format!("in {:?} tensor {} overflows; choose a wider --dtype", tensor.dtype, tensor.name);
            return Err(Error::malformed(checkpoint.folder(), what));
        }
        Ok(data)
    })?;
    Ok(unsound)
}

fn merged<B: KernelBackend>(module: &Module<B>, data: TensorData, device: &B::Device) -> TensorData {
    // From the primitive, which keeps the stored dtype.
    let weight = Tensor::from_primitive(TensorPrimitive::Float(B::float_from_data(data, device)));
    module.merged(weight).into_data()
}

fn non_finite(data: &TensorData) -> usize {
    data.iter::<f32>().filter(|value| !value.is_finite()).count()
}

/// The config says the new dtype.
fn say_dtype(config: &mut Value, dtype: Option<DType>) {
    let name = match dtype {
        None => return,
        Some(DType::F16) => "float16",
        Some(DType::BF16) => "bfloat16",
        Some(_) => "float32",
    };
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(name);
        }
    }
}
