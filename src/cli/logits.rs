//! `firebrick logits`: the logits of every position, for comparing with other implementations.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use burn::tensor::TensorData;
use clap::Args;
use firebrick::Error;
use firebrick::core::checkpoint::{TensorSpecification, write_safetensors};
use firebrick::core::disk::System;
use firebrick::prelude::*;
use serde_json::json;

use super::options::{Everywhere, ModelOptions, parse_tokens};
use super::output::{self, Destination};
use super::wrong_usage;

/// Write the logits of every position to a safetensors file.
#[derive(Args, Clone, Debug)]
pub struct Logits {
    #[command(flatten)]
    model: ModelOptions,
    /// A sequence of token ids, separated by commas; may be given more than once
    #[arg(long, required = true, value_name = "IDS", value_parser = parse_tokens)]
    tokens: Vec<Tokens>,
    /// The file to write: `logits` `[batch, seq, vocab]` in f32, rows padded on the right, and `lengths`
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// An alias, so that clap takes one argument as a whole list.
type Tokens = Vec<u32>;

impl Logits {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        // Before the work, and under the name the user gave rather than that of a file in the making.
        let folder = self.output.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!("--output {}: there is no folder {}", self.output.display(), folder.display());
        }
        let output = match Destination::of(&self.output)? {
            Destination::File(path) => path,
            Destination::Stream => bail!("--output {}: is no file; logits writes one", self.output.display()),
        };
        let verb = Self { output, ..self };
        everywhere.clone().dispatch(Work { verb, everywhere })
    }
}

struct Work {
    verb: Logits,
    everywhere: Everywhere,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere } = self;
        let model = verb.model.load::<B::InnerBackend>(&everywhere, &device)?;
        let facts = model.model().facts();
        for ids in &verb.tokens {
            if ids.is_empty() {
                wrong_usage!("a sequence of --tokens is empty");
            }
            if ids.len() > facts.context {
                bail!("a sequence of {} tokens is longer than the model's context of {}", ids.len(), facts.context);
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= facts.vocabulary) {
                bail!("token id {id} is outside the model's vocabulary of {}", facts.vocabulary);
            }
        }
        let longest = verb.tokens.iter().map(Vec::len).max().unwrap_or(0);
        let shape = [verb.tokens.len(), longest, facts.vocabulary];
        let mut logits = vec![0.0f32; shape.iter().product()];
        for (ids, row) in verb.tokens.iter().zip(logits.chunks_mut(longest * facts.vocabulary)) {
            let tokens = Sequences::whole(&[ids], &device);
            let hidden = model.model().hidden(&tokens, None);
            let values = model.model().head(hidden).into_data().convert_dtype(DType::F32);
            row.iter_mut().zip(values.iter::<f32>()).for_each(|(into, value)| *into = value);
            if row[..ids.len() * facts.vocabulary].iter().any(|logit| !logit.is_finite()) {
                return Err(Error::NotFinite { what: "the logits", place: None }.into());
            }
        }
        let lengths: Vec<i64> = verb.tokens.iter().map(|ids| ids.len() as i64).collect();
        let mut logits = Some(TensorData::new(logits, shape));
        let mut lengths = Some(TensorData::new(lengths, [verb.tokens.len()]));
        let tensor =
            |name: &str, dtype, shape: &[usize]| TensorSpecification { name: name.into(), dtype, shape: shape.into() };
        let tensors = [tensor("logits", DType::F32, &shape), tensor("lengths", DType::I64, &shape[..1])];
        write_safetensors(&System, &verb.output, &tensors, &[], |tensor| {
            let data = if tensor.name == "logits" { logits.take() } else { lengths.take() };
            Ok(data.unwrap_or_else(|| unreachable!("each tensor is asked for once")))
        })?;
        if everywhere.json {
            output::json_line(&json!({"shape": shape, "output": verb.output.to_string_lossy()}))?;
        } else {
            everywhere.note(format_args!("logits {shape:?} written to {}", verb.output.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
