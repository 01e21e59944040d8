//! `firebrick quantize`: a model's matrices packed in eight or four bits, as a folder that loads directly, here and in mlx-lm.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use burn::tensor::TensorData;
use clap::{Args, ValueEnum};
use firebrick::Error;
use firebrick::backend::packed::{Format, Packed};
use firebrick::core::checkpoint::{TensorSpecification, packed, write_safetensors};
use firebrick::core::disk::System;
use firebrick::models::{Role, family, load_causal_lm, load_encoder};
use firebrick::prelude::*;
use serde_json::{Value, json};

use super::folder::{copy_rest, write_whole};
use super::options::{Dtype, Everywhere, check_is_new, open_checkpoint};
use super::output;
use super::signal::Signals;
use super::wrong_usage;

/// Pack a model's weights in eight or four bits and write a folder that loads directly.
#[derive(Args, Clone, Debug)]
pub struct Quantize {
    /// Model folder in Hugging Face layout, or a repo id org/name[@revision], downloaded if the Hugging Face cache lacks it
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Bits of a weight; a table of tokens has eight in any case
    #[arg(long, value_name = "FORMAT")]
    to: Width,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Width {
    Q8,
    Q4,
}

impl Width {
    fn format(self) -> Format {
        match self {
            Self::Q8 => Format::Q8,
            Self::Q4 => Format::Q4,
        }
    }
}

impl Quantize {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let signals = Signals::listen()?;
        if everywhere.dtype != Dtype::Auto {
            wrong_usage!("--dtype does not go with quantize: --to says what the weights become");
        }
        let everywhere = everywhere.on_the_cpu("packing");
        everywhere.clone().dispatch(Work { verb: self, everywhere, signals })
    }
}

struct Work {
    verb: Quantize,
    everywhere: Everywhere,
    signals: Signals,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere, signals } = self;
        check_is_new(&verb.output, "quantize")?;
        let checkpoint = open_checkpoint(&verb.model, &everywhere)?;
        if checkpoint.holds_packed() {
            bail!("{}: is packed already; quantize the folder it was made from", checkpoint.folder().display());
        }
        // Which tensors are matrices that a layer multiplies by, the model itself knows.
        let policy = DTypePolicy::Pack(verb.to.format());
        match family(&checkpoint).map(|family| family.role) {
            Some(Role::Encoder) => drop(load_encoder::<B::InnerBackend>(&checkpoint, policy, &device)?),
            _ => drop(load_causal_lm::<B::InnerBackend>(&checkpoint, policy, &device)?),
        }
        let formats = checkpoint.packings();
        let mut kinds = BTreeMap::new();
        let written = write_whole(&verb.output, |folder| {
            kinds = write(&checkpoint, &formats, folder, &signals)?;
            copy_rest(&checkpoint, folder, |config| describe(config, &checkpoint, &formats, verb.to.format()))
        });
        if signals.stop() && written.is_err() {
            return Ok(signals.exit_code());
        }
        written?;
        let after = Checkpoint::open(&verb.output)?.total_bytes();
        report(&verb.output, verb.to.format(), checkpoint.total_bytes(), after, &kinds, &everywhere)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What packing did to the matrices of one kind.
#[derive(Default)]
struct Kind {
    tensors: usize,
    bits: usize,
    largest_error: f32,
    largest_weight: f32,
}

/// Tensors that differ in the number of their layer alone are of one kind: `model.layers.*.mlp.up_proj.weight`.
fn kind(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

fn write(
    checkpoint: &Checkpoint,
    formats: &BTreeMap<String, Format>,
    folder: &Path,
    signals: &Signals,
) -> Result<BTreeMap<String, Kind>> {
    let mut tensors = Vec::new();
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        match (formats.get(name), &info.shape[..]) {
            (Some(&format), &[out, inputs]) => {
                tensors.extend(packed::specifications(name, format, [out, inputs]).into_iter().flatten());
            }
            _ => tensors.push(TensorSpecification { name: name.into(), dtype: info.dtype, shape: info.shape }),
        }
    }
    let path = folder.join("model.safetensors");
    // A matrix is packed when its integers are asked for, which come first; its scales wait here.
    let (scales, kinds) = (RefCell::new(BTreeMap::<String, TensorData>::new()), RefCell::new(BTreeMap::new()));
    write_safetensors(&System, &path, &tensors, &[("format", "mlx")], |tensor| {
        if signals.stop() {
            return Err(Error::Io { path: path.clone(), source: std::io::ErrorKind::Interrupted.into() });
        }
        if let Some(data) = scales.borrow_mut().remove(&tensor.name) {
            return Ok(data);
        }
        let data = checkpoint.data(&tensor.name)?;
        let Some(&format) = formats.get(&tensor.name) else { return Ok(data) };
        let shape = [data.shape[0], data.shape[1]];
        let values = data.convert::<f32>().into_vec::<f32>().unwrap_or_default();
        let matrix = Packed::pack(format, shape, &values)
            .map_err(|problem| Error::malformed(checkpoint.folder(), format!("tensor `{}`: {problem}", tensor.name)))?;
        note(kinds.borrow_mut().entry(kind(&tensor.name)).or_default(), &matrix, &values);
        let [words, rest @ ..] = packed::to_mlx(&matrix);
        let names = packed::names_of(&tensor.name).into_iter().flatten().skip(1);
        scales.borrow_mut().extend(names.zip(rest));
        Ok(words)
    })?;
    Ok(kinds.into_inner())
}

fn note(kind: &mut Kind, matrix: &Packed, values: &[f32]) {
    kind.tensors += 1;
    kind.bits = matrix.format.bits();
    for (value, unpacked) in values.iter().zip(matrix.unpacked()) {
        kind.largest_error = kind.largest_error.max((value - unpacked).abs());
        kind.largest_weight = kind.largest_weight.max(value.abs());
    }
}

/// What mlx-lm reads in the config, and whose adapters fit.
fn describe(config: &mut Value, checkpoint: &Checkpoint, formats: &BTreeMap<String, Format>, usual: Format) {
    let of = |format: Format, group: Option<usize>| json!({"group_size": group, "bits": format.bits()});
    // The longest groups: a row of zero values is made of any.
    let mut quantization = of(usual, usual.block(0));
    let usual = quantization.clone();
    for (name, &format) in formats {
        let inputs = checkpoint.info(name).and_then(|info| info.shape.get(1).copied());
        let this = of(format, inputs.and_then(|inputs| format.block(inputs)));
        if this != usual {
            quantization[name.trim_end_matches(".weight")] = this;
        }
    }
    config["quantization"] = quantization;
    config["_firebrick_base"] = json!(checkpoint.fingerprint());
}

fn report(
    output: &Path,
    format: Format,
    before: u64,
    after: u64,
    kinds: &BTreeMap<String, Kind>,
    everywhere: &Everywhere,
) -> Result<()> {
    if everywhere.json {
        let kinds = kinds.iter().map(|(name, kind)| {
            json!({"kind": name, "tensors": kind.tensors, "bits": kind.bits, "largest_error": kind.largest_error,
                "largest_weight": kind.largest_weight})
        });
        let kinds: Vec<Value> = kinds.collect();
        return output::json_line(&json!({
            "output": output.to_string_lossy(), "format": format.name(), "bytes_before": before, "bytes_after": after, "kinds": kinds
        }));
    }
    everywhere
        .note(format_args!("{:<50} {:>7} {:>5} {:>14} {:>14}", "kind", "tensors", "bits", "largest error", "weight"));
    for (name, kind) in kinds {
        let Kind { tensors, bits, largest_error, largest_weight } = kind;
        everywhere
            .note(format_args!("{name:<50} {tensors:>7} {bits:>5} {largest_error:>14.2e} {largest_weight:>14.2e}"));
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    everywhere.note(format_args!(
        "{}: {:.1} MB, before {:.1} MB",
        output.display(),
        megabytes(after),
        megabytes(before)
    ));
    Ok(())
}
