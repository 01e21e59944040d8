//! Sampling options: what the command line says goes before what `generation_config.json` says.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use firebrick::prelude::*;

/// Dtypes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheDtype {
    F32,
    F16,
    Bf16,
}

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingOptions {
    /// New tokens at most [default: the model's own, or 128]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Randomness; 0 takes the likeliest token each time
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    temperature: Option<f32>,
    /// Choose among this many of the likeliest tokens; 0 for all. This, --top-p and --min-p mean that tokens are drawn
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this fraction of the likeliest
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    min_p: Option<f32>,
    /// Divide the logits of tokens seen in prompt and answer by this
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Subtract this from the logits of tokens seen in the answer
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    presence_penalty: Option<f32>,
    /// Subtract this for each time a token was seen in the answer
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    frequency_penalty: Option<f32>,
    /// Seed of the random choice [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What keys and values of the context are stored in: f16 and bf16 take half the memory
    #[arg(long, value_enum, value_name = "DTYPE", default_value = "f32")]
    cache_dtype: CacheDtype,
    /// Text that ends the answer; may be given more than once
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
}

impl SamplingOptions {
    /// The model's defaults with this command line's changes.
    pub fn over<B: KernelBackend>(&self, model: &LanguageModel<B>) -> GenerateOptions {
        let mut sampling = model.generation_config().sampling();
        // Who asks for a way of drawing wants tokens to be drawn, also where the model's own way is the likeliest one.
        let draws = self.top_k.is_some_and(|top_k| top_k > 1) || self.top_p.is_some() || self.min_p.is_some();
        if draws && sampling.temperature == 0.0 {
            sampling.temperature = model.generation_config().temperature.unwrap_or(1.0);
        }
        if let Some(temperature) = self.temperature {
            sampling.temperature = temperature;
        }
        if let Some(top_k) = self.top_k {
            // 0 switches the filter off, as it does in generation_config.json.
            sampling.top_k = (top_k > 0).then_some(top_k);
        }
        sampling.top_p = self.top_p.or(sampling.top_p);
        sampling.min_p = self.min_p.or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.or(sampling.repetition_penalty);
        sampling.presence_penalty = self.presence_penalty.or(sampling.presence_penalty);
        sampling.frequency_penalty = self.frequency_penalty.or(sampling.frequency_penalty);
        // Without a seed each run differs, as a user expects of sampling.
        sampling.seed = self.seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |now| now.as_nanos() as u64)
        });
        GenerateOptions {
            sampling: Some(sampling),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            cache_dtype: match self.cache_dtype {
                CacheDtype::F32 => None,
                CacheDtype::F16 => Some(DType::F16),
                CacheDtype::Bf16 => Some(DType::BF16),
            },
            ..GenerateOptions::default()
        }
    }
}
