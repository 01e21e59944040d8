//! `firebrick score`: the loss of each row of a data file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use firebrick::Error;
use firebrick::core::train::data::{BadRows, OverLong};
use firebrick::core::train::evaluate::{RowLoss, row_losses};
use firebrick::prelude::*;
use serde_json::json;

use super::data::{bad_rows, over_long, report_rows};
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
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
    /// What to do with rows that cannot be used
    #[arg(long, default_value_t, value_name = "POLICY", value_parser = bad_rows())]
    bad_rows: BadRows,
    /// What to do with longer rows
    #[arg(long, default_value_t, value_name = "POLICY", value_parser = over_long())]
    over_long: OverLong,
}

impl Score {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        check_max_seq_len(self.max_seq_len)?;
        everywhere.clone().dispatch(Work { verb: self, everywhere })
    }
}

/// Under the option's own name: core knows it as `max_tokens`.
pub fn check_max_seq_len(max_seq_len: Option<usize>) -> Result<()> {
    match max_seq_len {
        Some(value @ ..2) => {
            Err(Error::OutOfBounds { name: "max_seq_len", value: value.to_string(), bounds: "at least 2".into() }
                .into())
        }
        _ => Ok(()),
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
        report_rows(&dataset, options.max_tokens, &everywhere);
        let (mut sum, mut tokens, mut rows) = (0.0, 0.0, 0);
        let mut show = |row: RowLoss| {
            (sum, tokens, rows) = (sum + row.loss * row.tokens, tokens + row.tokens, rows + 1);
            match everywhere.json {
                // Each token of a row counts once or not at all: the number is whole.
                true => output::json_line(&json!({"row": row.line, "tokens": row.tokens as u64, "loss": row.loss})),
                false => output::text(&format!("{}\t{}\t{:.6}\n", row.line, row.tokens, row.loss)),
            }
        };
        // The parts of a split row follow one another and are told as one.
        let mut row: Option<RowLoss> = None;
        for part in row_losses(model.model(), dataset.examples()) {
            let part = part?;
            row = Some(match row.take() {
                Some(row) if row.line == part.line => {
                    let tokens = row.tokens + part.tokens;
                    RowLoss { tokens, loss: (row.loss * row.tokens + part.loss * part.tokens) / tokens, ..row }
                }
                complete => {
                    complete.map(&mut show).transpose()?;
                    part
                }
            });
        }
        row.map(&mut show).transpose()?;
        let loss = sum / tokens;
        if everywhere.json {
            let tokens = tokens as u64;
            output::json_line(&json!({"rows": rows, "tokens": tokens, "loss": loss, "perplexity": loss.exp()}))?;
        } else {
            everywhere.note(format_args!("{rows} rows, {tokens} tokens, loss {loss:.6}, perplexity {:.4}", loss.exp()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
