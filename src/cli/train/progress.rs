//! What a training run shows and keeps: a bar on a terminal, metrics.jsonl, a loss curve.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use firebrick::backend::process::peak_rss_bytes;
use firebrick::core::checkpoint::write_atomic;
use firebrick::core::disk::System;
use firebrick::core::train::chart::loss_curve_svg;
use firebrick::core::train::checkpoint::State;
use firebrick::core::train::task::Retrieval;
use firebrick::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::options::Everywhere;
use crate::cli::output;

/// The records of a run.
pub struct Progress {
    folder: PathBuf,
    metrics: BufWriter<File>,
    bar: ProgressBar,
    json: bool,
    everywhere: Everywhere,
    total: usize,
    losses: Vec<(usize, f64)>,
    valid_losses: Vec<(usize, f64)>,
    /// Steps taken, those passed over included.
    steps: usize,
    tokens: usize,
    begun: Instant,
}

impl Progress {
    /// Of a run of so many steps, which continues from a state if one is given: the lines up to it stay, later ones will be written again.
    pub fn new(folder: &Path, steps: usize, from: Option<&State>, everywhere: &Everywhere) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let place = || path.display().to_string();
        let kept = from.map_or(Ok(Vec::new()), |state| earlier(&path, state)).with_context(place)?;
        let text: String = kept.iter().map(|(text, _)| format!("{text}\n")).collect();
        write_atomic(&System, &path, text.as_bytes())?;
        let metrics = BufWriter::new(File::options().append(true).open(&path).with_context(place)?);
        // indicatif draws on stderr, and only if that is a terminal.
        let bar = if everywhere.shows_bars() { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta} left")?);
        let mut progress = Self {
            folder: folder.into(),
            metrics,
            bar,
            json: everywhere.json,
            everywhere: everywhere.clone(),
            total: steps,
            losses: Vec::new(),
            valid_losses: Vec::new(),
            steps: from.map_or(0, |state| state.cursor.step),
            tokens: 0,
            begun: Instant::now(),
        };
        for (_, line) in kept {
            let step = line["step"].as_u64().unwrap_or(0) as usize;
            progress.losses.extend(line["loss"].as_f64().map(|loss| (step, loss)));
            progress.valid_losses.extend(line["valid_loss"].as_f64().map(|loss| (step, loss)));
            progress.tokens += line["tokens"].as_u64().unwrap_or(0) as usize;
        }
        Ok(progress)
    }

    /// Keeps and shows what happened.
    pub fn record(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Step(step) => {
                let rate = step.tokens as f64 / step.seconds;
                self.losses.push((step.step, step.loss));
                self.steps = step.step;
                self.tokens += step.tokens;
                self.bar.set_position(step.step as u64);
                self.bar.set_message(format!("loss {:.3}  {rate:.0} tokens/s", step.loss));
                // Without a terminal a tenth of the way is worth a line.
                if step.step % self.total.div_ceil(10).max(1) == 0 {
                    self.aside(format!(
                        "step {} of {}: loss {:.4}, {rate:.0} tokens/s",
                        step.step, self.total, step.loss
                    ));
                }
                self.line(json!({
                    "step": step.step, "loss": step.loss, "learning_rate": step.learning_rate,
                    "grad_norm": step.grad_norm, "tokens": step.tokens, "tokens_per_second": rate,
                    "peak_rss_bytes": peak_rss_bytes(),
                }))
            }
            Event::Skipped { step, problem, tokens } => {
                self.steps = step;
                self.tokens += tokens;
                self.bar.set_position(step as u64);
                let text = format!("warning: step {step} is passed over: {problem}");
                self.bar.suspend(|| self.everywhere.note(text));
                self.line(json!({"step": step, "skipped": problem, "tokens": tokens}))
            }
            // A checkpoint never knows of more steps than the metrics on disk.
            Event::Saving { .. } => Ok(self.metrics.get_ref().sync_data()?),
            Event::Evaluated { step, valid_loss, retrieval } => {
                self.valid_losses.push((step, valid_loss));
                let mut text = format!("step {step}: validation loss {valid_loss:.4}");
                let mut line = json!({"step": step, "valid_loss": valid_loss});
                if let Some(Retrieval { recall_at_1, recall_at_10, reciprocal_rank }) = retrieval {
                    text +=
                        &format!(", recall@1 {recall_at_1:.3}, recall@10 {recall_at_10:.3}, MRR {reciprocal_rank:.3}");
                    line["recall_at_1"] = recall_at_1.into();
                    line["recall_at_10"] = recall_at_10.into();
                    line["mrr"] = reciprocal_rank.into();
                }
                self.bar.println(&text);
                self.aside(text);
                self.line(line)
            }
            _ => Ok(()),
        }
    }

    /// The last line, and the loss curve.
    pub fn finish(mut self, interrupted: bool) -> Result<()> {
        let last = |losses: &[(usize, f64)]| losses.last().map(|(_, loss)| *loss);
        self.line(json!({
            "done": true, "interrupted": interrupted, "steps": self.steps, "loss": last(&self.losses),
            "valid_loss": last(&self.valid_losses), "tokens": self.tokens,
            "seconds": self.begun.elapsed().as_secs_f64(), "peak_rss_bytes": peak_rss_bytes(),
        }))?;
        let Some((_, loss)) = self.losses.last() else { return Ok(()) };
        let valid = last(&self.valid_losses).map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
        let seconds = self.begun.elapsed().as_secs_f64();
        self.everywhere.note(format_args!("loss {loss:.4}{valid} after {seconds:.1} s"));
        let chart = loss_curve_svg(&self.losses, &self.valid_losses);
        Ok(write_atomic(&System, &self.folder.join("loss.svg"), chart.as_bytes())?)
    }

    /// Takes the bar off the terminal, so that words can follow.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether any step changed the adapter.
    pub fn has_trained(&self) -> bool {
        !self.losses.is_empty()
    }

    /// Steps taken, those passed over included.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// For who reads the log of a run that has no terminal for the bar.
    fn aside(&self, text: String) {
        if self.bar.is_hidden() {
            self.everywhere.note(text);
        }
    }

    fn line(&mut self, value: Value) -> Result<()> {
        serde_json::to_writer(&mut self.metrics, &value)?;
        self.metrics.write_all(b"\n")?;
        // Each line is there for whoever watches the file.
        self.metrics.flush()?;
        if !self.json {
            return Ok(());
        }
        match output::json_line(&value) {
            // Nobody reads along any more; the training goes on.
            Err(error) if output::is_broken_pipe(&error) => self.json = false,
            written => written?,
        }
        Ok(())
    }
}

/// The lines of an earlier part of the run, up to the state it continues from. A line that its end cut short is none.
fn earlier(path: &Path, state: &State) -> std::io::Result<Vec<(String, Value)>> {
    let text = match std::fs::read(path) {
        Err(problem) if problem.kind() == ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    let lines = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect::<Vec<_>>();
    let parsed = lines.into_iter().filter_map(|line| Some((serde_json::from_str::<Value>(&line).ok()?, line)));
    let belongs = |line: &Value| {
        // A validation that comes after the state was saved will be made again.
        let is_due_again = |step: u64| step == state.cursor.step as u64 && state.valid_loss.is_none();
        line["step"].as_u64().is_some_and(|step| {
            step <= state.cursor.step as u64 && !(line.get("valid_loss").is_some() && is_due_again(step))
        })
    };
    Ok(parsed.filter(|(value, _)| belongs(value)).map(|(value, line)| (line, value)).collect())
}
