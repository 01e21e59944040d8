//! `firebrick score`: the loss of each row of a data file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use firebrick::core::train::data::{BadRows, OverLong, SkippedRow};
use firebrick::core::train::evaluate::row_losses;
use firebrick::prelude::*;
use serde_json::json;

use super::options::{Everywhere, ModelOptions};
use super::output;

/// The loss of each row of a jsonl file.
#[derive(Args, Clone, Debug)]
pub struct Score {
    #[command(flatten)]
    model: ModelOptions,
    /// Rows of `prompt` and `completion`, `messages`, or `text`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Score completions, or the last assistant turn, alone
    #[arg(long)]
    mask_prompt: bool,
    /// Tokens of a row at most [default: the model's context]
    #[arg(long)]
    max_seq_len: Option<usize>,
    /// What to do with rows that cannot be used: fail or skip
    #[arg(long, default_value_t)]
    bad_rows: BadRows,
    /// What to do with longer rows: truncate, drop or split
    #[arg(long, default_value_t)]
    over_long: OverLong,
}

impl Score {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        everywhere.clone().dispatch(Work { verb: self, everywhere })
    }
}

struct Work {
    verb: Score,
    everywhere: Everywhere,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere } = self;
        let model = verb.model.load::<B::InnerBackend>(&everywhere, &device)?;
        let context = model.model().facts().context;
        let options = DataOptions {
            mask_prompt: verb.mask_prompt,
            max_tokens: verb.max_seq_len.unwrap_or(context).min(context),
            bad_rows: verb.bad_rows,
            over_long: verb.over_long,
        };
        let dataset = Dataset::load(&verb.data, model.tokenizer(), &options)?;
        for SkippedRow { line, problem } in &dataset.report().skipped {
            everywhere.note(format_args!("skipped {}:{line}: {problem}", verb.data.display()));
        }
        let (mut sum, mut tokens, mut rows) = (0.0, 0.0, 0);
        for row in row_losses(model.model(), dataset.examples()) {
            let row = row?;
            (sum, tokens, rows) = (sum + row.loss * row.tokens, tokens + row.tokens, rows + 1);
            if everywhere.json {
                output::json_line(&json!({"row": row.line, "tokens": row.tokens, "loss": row.loss}))?;
            } else {
                output::text(&format!("{}\t{}\t{:.6}\n", row.line, row.tokens, row.loss))?;
            }
        }
        let loss = sum / tokens;
        if everywhere.json {
            output::json_line(&json!({"rows": rows, "tokens": tokens, "loss": loss, "perplexity": loss.exp()}))?;
        } else {
            everywhere.note(format_args!("{rows} rows, {tokens} tokens, loss {loss:.6}, perplexity {:.4}", loss.exp()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
