//! `firebrick embed`: texts in, vectors out, a window of rows at a time: memory does not grow with the input.

mod rows;
mod vectors;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use firebrick::backend::process::peak_rss_bytes;
use firebrick::core::embed::{DEFAULT_BATCH_TOKENS, TextTokens};
use firebrick::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::data::one_of;
use super::options::{Everywhere, ModelOptions};
use super::output;
use super::signal::leave_after;
use super::wrong_usage;
use rows::Rows;
use vectors::{Format, Vectors};

/// Batches that are read ahead, so that texts of like length find each other.
const WINDOW_BATCHES: usize = 8;
/// Rows that are read ahead at most, however short they are.
const WINDOW_ROWS: usize = 1 << 14;

/// The vector of each line of a file.
#[derive(Args, Clone, Debug)]
pub struct Embed {
    #[command(flatten)]
    model: ModelOptions,
    /// What the texts are: models with prefixes for them, such as E5, get them added; `none` leaves texts as they are
    #[arg(long, default_value_t, value_name = "KIND", value_parser = one_of::<Kind>(&["query", "passage", "none"]))]
    kind: Kind,
    /// A text on each line, or rows with `text` where the name ends in .jsonl [default: stdin, lines]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The file to write [default: stdout]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the output [default: by the name of --output, else jsonl]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Features kept of each vector, from the first [default: all]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Tokens that pass through the model at a time
    #[arg(long, default_value_t = DEFAULT_BATCH_TOKENS, value_name = "N")]
    batch_tokens: usize,
}

impl Embed {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let format =
            self.format.unwrap_or_else(|| match self.output.as_ref().and_then(|path| path.extension()?.to_str()) {
                Some("npy") => Format::Npy,
                Some("parquet") => Format::Parquet,
                _ => Format::Jsonl,
            });
        if format != Format::Jsonl && self.output.is_none() {
            let format = format.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            wrong_usage!("--format {format} needs --output: it is a file, not lines");
        }
        // Before the model is loaded.
        let rows = Rows::open(self.input.as_deref())?;
        everywhere.clone().dispatch(Work { verb: self, format, rows, everywhere })
    }
}

struct Work {
    verb: Embed,
    format: Format,
    rows: Rows,
    everywhere: Everywhere,
}

/// What became of the rows.
#[derive(Default)]
struct Counts {
    rows: usize,
    failed: usize,
    truncated: usize,
    tokens: usize,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, format, mut rows, everywhere } = self;
        let model = verb.model.load_encoder::<B::InnerBackend>(&everywhere, &device)?;
        let embedder = model.embedder();
        let options = EmbedOptions { kind: verb.kind, dimensions: verb.dimensions, batch_tokens: verb.batch_tokens };
        embedder.check(&options)?;
        match embedder.prefix(verb.kind) {
            "" => {}
            prefix => everywhere.detail(format_args!("each text is embedded behind {prefix:?}")),
        }
        let width = verb.dimensions.unwrap_or(embedder.dimensions());
        let mut out = Vectors::create(verb.output.as_deref(), format, width)?;
        if let Some(unfinished) = out.unfinished().map(Path::to_owned) {
            leave_after(move || drop(std::fs::remove_file(&unfinished)))?;
        }
        let bar = bar(&rows, &everywhere)?;
        let (begun, mut counts) = (Instant::now(), Counts::default());
        loop {
            let (window, done) = window(&mut rows, embedder, &options, &mut counts, &everywhere, &bar)?;
            let texts: Vec<TextTokens> = window.iter().filter_map(|(_, text)| text.clone()).collect();
            let mut embeddings = embedder.encode(model.model(), &texts, &options)?.into_iter();
            let written: Vec<_> =
                window.into_iter().map(|(index, text)| (index, text.and_then(|_| embeddings.next()))).collect();
            out.write(&written)?;
            bar.set_position(rows.bytes_read());
            if done {
                break;
            }
        }
        bar.finish_and_clear();
        out.finish()?;
        let Counts { rows: all, failed, truncated, tokens } = counts;
        let seconds = begun.elapsed().as_secs_f64();
        if failed > 0 {
            everywhere.note(format_args!("{failed} of {all} rows were left out"));
        }
        if truncated > 0 {
            let max = embedder.max_tokens();
            everywhere
                .note(format_args!("{truncated} of {all} rows are longer than {max} tokens and were cut off there"));
        }
        if let Some(path) = verb.output {
            if everywhere.json {
                let summary = json!({
                    "rows": all, "failed": failed, "truncated": truncated, "tokens": tokens, "seconds": seconds,
                    "dimensions": width, "output": path.to_string_lossy(), "peak_rss_bytes": peak_rss_bytes(),
                });
                output::json_line(&summary)?;
            }
            let embedded = all - failed;
            everywhere.note(format_args!("{embedded} of {all} rows written to {} in {seconds:.1} s", path.display()));
        }
        if failed > 0 && failed == all {
            bail!("{}: none of its {all} rows could be embedded", rows.path().display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The next rows and their tokens, and whether they are the last. A row that has none is told about here.
#[allow(clippy::type_complexity)]
fn window(
    rows: &mut Rows,
    embedder: &Embedder,
    options: &EmbedOptions,
    counts: &mut Counts,
    everywhere: &Everywhere,
    bar: &ProgressBar,
) -> Result<(Vec<(usize, Option<TextTokens>)>, bool)> {
    let (mut window, mut tokens) = (Vec::new(), 0);
    let most = options.batch_tokens.saturating_mul(WINDOW_BATCHES);
    while window.len() < WINDOW_ROWS && tokens < most {
        let Some(row) = rows.next_row()? else { return Ok((window, true)) };
        counts.rows += 1;
        let text =
            row.text.and_then(|text| embedder.tokenize(&text, options.kind).map_err(|problem| problem.to_string()));
        match text {
            Ok(text) => {
                tokens += text.ids.len();
                counts.tokens += text.ids.len();
                counts.truncated += usize::from(text.truncated);
                window.push((row.index, Some(text)));
            }
            Err(problem) => {
                counts.failed += 1;
                let place = format!("{}:{}", rows.path().display(), row.line);
                bar.suspend(|| everywhere.warn(format_args!("{place}: row {} left out: {problem}", row.index)))?;
                window.push((row.index, None));
            }
        }
    }
    Ok((window, false))
}

/// A bar over the input's bytes, on a terminal. Where the results go to the same terminal there is none.
fn bar(rows: &Rows, everywhere: &Everywhere) -> Result<ProgressBar> {
    let Some(total) = rows.total.filter(|_| everywhere.shows_bars()) else { return Ok(ProgressBar::hidden()) };
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}  {eta} left")?;
    // indicatif draws on stderr, and only if that is a terminal.
    Ok(ProgressBar::new(total).with_style(style))
}
