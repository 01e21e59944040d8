//! `config.json` of this family, with every key that changes the mathematics either honoured or refused by name.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use firebrick_core::checkpoint::Checkpoint;
use firebrick_core::error::{Error, Result};
use serde_json::Value;

/// The sizes and choices of an encoder of this family. Fields spell the config's names where there is one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct E5Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    /// Row of the position table for a sequence's first token: 0, or one more than the padding token's id in (XLM-)RoBERTa, whose
    /// positions count on from there.
    pub first_position: usize,
}

/// Sizes beyond these are a broken file, not a model.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;

/// Keys whose mathematics this family has in one form only, with the values that are that form.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("hidden_act", &["null", "\"gelu\""], "the exact gelu is"),
    ("position_embedding_type", &["null", "\"absolute\""], "absolute positions are"),
    ("is_decoder", &["null", "false"], "encoders are"),
    ("add_cross_attention", &["null", "false"], "encoders without cross-attention are"),
    ("quantization_config", &["null"], "quantized Hugging Face checkpoints are not read; use the f16, bf16 or f32 one"),
    ("embedding_size", &["null"], "embeddings as wide as the hidden states are"),
    ("rotary_emb_base", &["null"], "absolute positions are"),
    ("rope_theta", &["null"], "absolute positions are"),
    ("rope_scaling", &["null"], "absolute positions are"),
    ("rope_parameters", &["null"], "absolute positions are"),
    ("attention_window", &["null"], "attention to the whole sequence is"),
    ("adapter_reduction_factor", &["null"], "adapters inside the checkpoint are not implemented"),
];

impl E5Config {
    /// Reads a checkpoint's config.
    ///
    /// # Errors
    /// If a size is missing or absurd, or a key asks for mathematics this family does not have.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let keys = Keys { config: checkpoint.config(), path: checkpoint.folder().join("config.json") };
        for (key, harmless, reason) in REFUSED {
            if let Some(value) = keys.config.get(*key)
                && !harmless.contains(&value.to_string().as_str())
            {
                return Err(Error::UnsupportedConfig {
                    path: keys.path,
                    key: (*key).to_owned(),
                    value: value.to_string(),
                    reason: (*reason).to_owned(),
                });
            }
        }
        let is_bert = keys.config.get("model_type").and_then(Value::as_str) == Some("bert");
        let hidden_size = keys.size("hidden_size", None, 1..=MAX_SIZE)?;
        let num_attention_heads = keys.size("num_attention_heads", None, 1..=MAX_SIZE)?;
        if hidden_size % num_attention_heads != 0 {
            return Err(
                keys.bad("num_attention_heads", &format!("= {num_attention_heads} does not divide hidden_size"))
            );
        }
        let max_position_embeddings = keys.size("max_position_embeddings", Some(512), 1..=MAX_SIZE)?;
        let first_position = match is_bert {
            true => 0,
            // transformers' `create_position_ids_from_input_ids`.
            false => keys.size("pad_token_id", Some(1), 0..=MAX_SIZE)? + 1,
        };
        if first_position >= max_position_embeddings {
            let problem = format!("= {max_position_embeddings} leaves no position after the padding token's");
            return Err(keys.bad("max_position_embeddings", &problem));
        }
        Ok(Self {
            vocab_size: keys.size("vocab_size", None, 1..=MAX_SIZE)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", None, 1..=MAX_SIZE)?,
            num_hidden_layers: keys.size("num_hidden_layers", None, 1..=MAX_LAYERS)?,
            num_attention_heads,
            max_position_embeddings,
            type_vocab_size: keys.size("type_vocab_size", Some(2), 1..=MAX_SIZE)?,
            layer_norm_eps: keys.epsilon("layer_norm_eps", 1e-12)?,
            first_position,
        })
    }

    /// Tokens of a sequence at most.
    pub fn context(&self) -> usize {
        self.max_position_embeddings - self.first_position
    }
}

/// A JSON object read with bounds, whose errors name the file and the key.
struct Keys<'a> {
    config: &'a Value,
    path: PathBuf,
}

impl Keys<'_> {
    fn size(&self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> Result<usize> {
        match (self.config.get(key).filter(|value| !value.is_null()), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.bad(key, "is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|size| usize::try_from(size).ok())
                .filter(|size| range.contains(size))
                .ok_or_else(|| {
                    let (least, most) = (range.start(), range.end());
                    self.bad(key, &format!("= {value} is not a whole number from {least} to {most}"))
                }),
        }
    }

    fn epsilon(&self, key: &str, default: f64) -> Result<f64> {
        match self.config.get(key).filter(|value| !value.is_null()) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| (0.0..=1.0).contains(number))
                .ok_or_else(|| self.bad(key, &format!("= {value} is not a number from 0 to 1"))),
        }
    }

    fn bad(&self, key: &str, problem: &str) -> Error {
        Error::malformed(self.path.clone(), format!("`{key}` {problem}"))
    }
}
