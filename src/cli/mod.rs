//! The command line: one file for each verb, a clap struct and its job. What every verb shares is here and in `options.rs`.

mod adapter;
mod bench;
mod chat;
mod data;
mod doctor;
mod download;
mod embed;
mod folder;
mod generate;
mod logits;
mod merge;
mod options;
pub mod output;
pub mod panics;
mod quantize;
mod sampling;
mod score;
pub mod signal;
mod train;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use firebrick::{Error, SelectError};

/// Ends with [`WrongCommandLine`].
macro_rules! wrong_usage {
    ($($message:tt)*) => { return Err($crate::cli::WrongCommandLine(format!($($message)*)).into()) };
}
pub(crate) use wrong_usage;

use options::Everywhere;

/// Fine-tune a Qwen or an E5 with LoRA, then talk to it or search with it.
#[derive(Parser)]
#[command(name = "firebrick", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    everywhere: Everywhere,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Continue a prompt, or answer it with --chat.
    Generate(generate::Generate),
    /// Talk with a model in the terminal.
    Chat(chat::Chat),
    /// Write the logits of every position to a safetensors file.
    Logits(logits::Logits),
    /// The loss of each row of a jsonl file.
    Score(score::Score),
    /// The vector of each line of a file.
    Embed(embed::Embed),
    /// Fine-tune a LoRA adapter on train.jsonl.
    Train(Box<train::Train>),
    /// Fold an adapter into its base and write a plain checkpoint.
    Merge(merge::Merge),
    /// Pack a model's weights in eight or four bits and write a folder that loads directly.
    Quantize(quantize::Quantize),
    /// Show an adapter, or convert it between PEFT and mlx-lm.
    Adapter(adapter::AdapterCommand),
    /// Time every workload on every backend, and beside other libraries.
    Bench(Box<bench::Bench>),
    /// Examine every backend and device: can their results be trusted?
    Doctor(doctor::Doctor),
}

impl Cli {
    /// Runs the command and says with which status to exit.
    pub fn run(self) -> Result<ExitCode> {
        let Self { everywhere, verb } = self;
        everywhere.apply()?;
        match verb {
            Verb::Generate(verb) => verb.run(everywhere),
            Verb::Chat(verb) => verb.run(everywhere),
            Verb::Logits(verb) => verb.run(everywhere),
            Verb::Score(verb) => verb.run(everywhere),
            Verb::Embed(verb) => verb.run(everywhere),
            Verb::Train(verb) => verb.run(everywhere),
            Verb::Merge(verb) => verb.run(everywhere),
            Verb::Quantize(verb) => verb.run(everywhere),
            Verb::Adapter(verb) => verb.run(everywhere),
            Verb::Bench(verb) => verb.run(everywhere),
            Verb::Doctor(verb) => verb.run(everywhere),
        }
    }
}

/// Options that do not go together, in the words of the message.
#[derive(Debug)]
pub struct WrongCommandLine(pub String);

impl std::fmt::Display for WrongCommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongCommandLine {}

/// Such options, a value out of its bounds and a backend that does not exist are the command line's fault.
pub fn is_wrong_command_line(error: &anyhow::Error) -> bool {
    error.is::<WrongCommandLine>()
        || matches!(error.downcast_ref(), Some(Error::OutOfBounds { .. }))
        || matches!(error.downcast_ref(), Some(SelectError::Unknown { .. } | SelectError::NotBuilt { .. }))
}

#[cfg(test)]
mod tests;
