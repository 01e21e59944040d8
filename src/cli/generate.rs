//! `firebrick generate`: a prompt in, streamed text out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use firebrick::backend::packed::dtype_name;
use firebrick::backend::process::peak_rss_bytes;
use firebrick::prelude::*;
use serde_json::{Value, json};

use super::options::{Everywhere, ModelOptions, parse_tokens};
use super::output;
use super::sampling::SamplingOptions;
use super::signal::Signals;
use super::wrong_usage;

/// Continue a prompt, or answer it with --chat.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("input").required(true))]
pub struct Generate {
    #[command(flatten)]
    model: ModelOptions,
    /// The prompt
    #[arg(long, group = "input", value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file that holds the prompt; `-` for stdin
    #[arg(long, group = "input", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// The prompt as token ids, separated by commas
    #[arg(long, group = "input", value_name = "IDS", value_parser = parse_tokens, conflicts_with = "chat")]
    tokens: Option<Tokens>,
    /// Ask the prompt as a user's turn, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// The system prompt, with --chat
    #[arg(long, requires = "chat", value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Report the log-probabilities of this many of the likeliest tokens at each step, with --json
    #[arg(long, default_value_t = 0, value_name = "N")]
    logprobs: usize,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// An alias, so that clap takes one argument as the whole list.
type Tokens = Vec<u32>;

impl Generate {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        if self.logprobs > 0 && !everywhere.json {
            wrong_usage!("--logprobs needs --json: they are data, not text");
        }
        let signals = Signals::listen()?;
        everywhere.clone().dispatch(Work { verb: self, everywhere, signals })
    }

    fn prompt_tokens<B: KernelBackend>(&self, model: &LanguageModel<B>) -> Result<Vec<u32>> {
        if let Some(tokens) = &self.tokens {
            return Ok(tokens.clone());
        }
        let prompt = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(path)) if path.as_os_str() == "-" => {
                std::io::read_to_string(std::io::stdin()).context("reading the prompt from stdin")?
            }
            (None, Some(path)) => {
                std::fs::read_to_string(path).with_context(|| format!("reading the prompt from {}", path.display()))?
            }
            (None, None) => String::new(),
        };
        if !self.chat {
            return Ok(model.encode(&prompt)?);
        }
        let system = self.system.as_ref().map(Message::system);
        let messages: Vec<Message> = system.into_iter().chain([Message::user(prompt)]).collect();
        Ok(model.encode_chat(&messages)?)
    }
}

struct Work {
    verb: Generate,
    everywhere: Everywhere,
    signals: Signals,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere, signals } = self;
        let model = verb.model.load::<B::InnerBackend>(&everywhere, &device)?;
        let prompt = verb.prompt_tokens(&model)?;
        let options = GenerateOptions { logprobs: verb.logprobs, ..verb.sampling.over(&model) };
        let begun = Instant::now();
        let mut first_token = None;
        let (mut tokens, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
        let mut finish = "length";
        for piece in model.generate_from(&prompt, &options, None)? {
            let piece = piece?;
            // The sampler has read the logits: the device is done with this token.
            first_token.get_or_insert_with(|| begun.elapsed());
            tokens.push(piece.token.id);
            text += &piece.text;
            if verb.logprobs > 0 {
                let top = piece.token.top.iter().map(|(id, logprob)| json!({"token": id, "logprob": logprob}));
                let (id, logprob) = (piece.token.id, piece.token.logprob);
                logprobs.push(json!({"token": id, "logprob": logprob, "top": top.collect::<Vec<_>>()}));
            }
            if !everywhere.json {
                output::text(&piece.text)?;
            }
            if let Some(reason) = piece.token.finish {
                finish = reason.name();
            }
            if signals.stop() {
                break;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        // Absent where there was no token, or none but the first, to measure.
        let first = first_token.map(|first| first.as_secs_f64());
        let prefill_rate = first.map(|first| prompt.len() as f64 / first);
        let decode_rate = first.filter(|_| tokens.len() > 1).map(|first| (tokens.len() - 1) as f64 / (seconds - first));
        if everywhere.json {
            let mut result = json!({
                "prompt_tokens": prompt, "tokens": tokens, "text": text, "finish_reason": finish,
                "first_token_ms": first.map(|first| first * 1e3), "prefill_tokens_per_second": prefill_rate,
                "decode_tokens_per_second": decode_rate, "peak_rss_bytes": peak_rss_bytes(),
                "backend": BackendName::named(&everywhere.backend)?.to_string(), "device": format!("{device:?}"),
                "dtype": dtype_name(model.weight_dtype()),
            });
            if verb.logprobs > 0 {
                result["logprobs"] = Value::Array(logprobs);
            }
            output::json_line(&result)?;
        } else {
            output::text("\n")?;
            everywhere.detail(format_args!(
                "{} prompt tokens at {:.1} tokens/s, {} new at {:.1} tokens/s, first after {:.0} ms, {finish}",
                prompt.len(),
                prefill_rate.unwrap_or(f64::NAN),
                tokens.len(),
                decode_rate.unwrap_or(f64::NAN),
                first.unwrap_or(f64::NAN) * 1e3
            ));
        }
        Ok(signals.exit_code())
    }
}
