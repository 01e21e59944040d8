//! `config.json` of this family, in the older form and in that of transformers 5, with every key that changes the mathematics either
//! honoured or refused by name.

use std::path::PathBuf;

use firebrick_core::checkpoint::Checkpoint;
use firebrick_core::error::{Error, Result};
use firebrick_core::nn::{RopeScaling, RotaryConfig};
use serde_json::Value;

/// The sizes and choices of a decoder of this family. Fields spell the config's names where there is one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct QwenConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// A bias on the output projection.
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// Norms on each head of queries and keys.
    pub qk_norm: bool,
    /// Angles of the rotary embedding.
    pub rotary: RotaryConfig,
    /// Each layer's sliding window.
    pub windows: Vec<Option<usize>>,
}

/// Sizes beyond these are a broken file, not a model.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;

/// Keys of related architectures whose mathematics this family does not have, with the values that change nothing.
const REFUSED: &[(&str, &[&str], &str)] = &[
    (
        "quantization_config",
        &["null"],
        "of quantized checkpoints those of mlx-lm are read; use the f16, bf16 or f32 one",
    ),
    ("num_experts", &["null", "0"], "mixtures of experts are not implemented"),
    ("num_local_experts", &["null", "0"], "mixtures of experts are not implemented"),
    ("partial_rotary_factor", &["null", "1", "1.0"], "rotary embedding of a part of each head is not implemented"),
    ("attn_logit_softcapping", &["null"], "soft-capped scores are not implemented"),
    ("final_logit_softcapping", &["null"], "soft-capped logits are not implemented"),
    ("logit_scale", &["null", "1", "1.0"], "scaled logits are not implemented"),
    ("logits_scaling", &["null", "1", "1.0"], "scaled logits are not implemented"),
    ("embedding_multiplier", &["null", "1", "1.0"], "scaled embeddings are not implemented"),
    ("residual_multiplier", &["null", "1", "1.0"], "scaled residuals are not implemented"),
    ("attention_multiplier", &["null"], "another attention scale than 1/sqrt(head_dim) is not implemented"),
    ("no_rope_layers", &["null", "[]"], "layers without rotary embedding are not implemented"),
    ("attention_chunk_size", &["null"], "chunked attention is not implemented"),
    ("clip_qkv", &["null"], "clipped projections are not implemented"),
    ("original_max_position_embeddings", &["null"], "it is read inside rope_parameters or rope_scaling only"),
];

/// What each type of rotary scaling may say besides its type and base.
const ROTARY_KEYS: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("linear", &["factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    ("yarn", &["factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"]),
];

impl QwenConfig {
    /// Tokens that fit: of a context that yarn extends, all that it extends it to, since `max_position_embeddings` is often left at what it was.
    pub fn context(&self) -> usize {
        match self.rotary.scaling {
            Some(RopeScaling::Yarn { factor, original_positions, .. }) => {
                self.max_position_embeddings.max((factor * original_positions) as usize)
            }
            _ => self.max_position_embeddings,
        }
    }

    /// Reads a checkpoint's config.
    ///
    /// # Errors
    /// If a size is missing or absurd, or a key asks for mathematics this family does not have.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let keys = Keys { config: checkpoint.config(), path: checkpoint.folder().join("config.json") };
        for (key, harmless, reason) in REFUSED {
            // mlx-lm says the same under two keys, and the tensors say it too.
            let said = keys.config.get(*key).filter(|value| Some(*value) != keys.config.get("quantization"));
            if let Some(value) = said
                && !harmless.contains(&value.to_string().as_str())
            {
                return Err(keys.unsupported(key, value, reason));
            }
        }
        if let Some(act) =
            keys.config.get("hidden_act").filter(|act| !act.is_null() && *act != "silu" && *act != "swish")
        {
            return Err(keys.unsupported("hidden_act", act, "silu is"));
        }
        let model_type = keys.config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let (is_qwen2, is_qwen3) = (model_type == "qwen2", model_type == "qwen3");
        let attention_bias = keys.flag("attention_bias", false)?;
        let hidden_size = keys.size("hidden_size", None, MAX_SIZE)?;
        let num_attention_heads = keys.size("num_attention_heads", None, MAX_SIZE)?;
        let num_hidden_layers = keys.size("num_hidden_layers", None, MAX_LAYERS)?;
        // Qwen3's default is fixed, the others' follows from the hidden size (transformers' configuration classes).
        let default_head_dim = if is_qwen3 { 128 } else { hidden_size / num_attention_heads };
        if default_head_dim == 0 && keys.config.get("head_dim").is_none_or(Value::is_null) {
            return Err(keys.bad("num_attention_heads", &format!("= {num_attention_heads} is above hidden_size")));
        }
        let head_dim = keys.size("head_dim", Some(default_head_dim), MAX_SIZE)?;
        let num_key_value_heads = keys.size("num_key_value_heads", Some(num_attention_heads), MAX_SIZE)?;
        let default_context = if is_qwen2 || is_qwen3 { 32_768 } else { 2_048 };
        let max_position_embeddings = keys.size("max_position_embeddings", Some(default_context), MAX_SIZE)?;
        if head_dim % 2 != 0 {
            return Err(keys.bad("head_dim", "is odd; rotary embedding turns pairs"));
        }
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(keys.bad("num_key_value_heads", "does not divide num_attention_heads"));
        }
        Ok(Self {
            vocab_size: keys.size("vocab_size", None, MAX_SIZE)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", None, MAX_SIZE)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps", Some(1e-6), 0.0..=1.0)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: is_qwen2 || attention_bias,
            o_bias: !is_qwen2 && attention_bias,
            mlp_bias: keys.flag("mlp_bias", false)?,
            qk_norm: is_qwen3,
            rotary: rotary(&keys, head_dim, max_position_embeddings)?,
            windows: if is_qwen2 || is_qwen3 {
                windows(&keys, num_hidden_layers)?
            } else {
                vec![None; num_hidden_layers]
            },
        })
    }
}

/// The window of each layer: `use_sliding_window` switches it on, `layer_types` says where, and without that `max_window_layers` does.
fn windows(keys: &Keys, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match keys.config.get("sliding_window") {
        Some(Value::Number(_)) if keys.flag("use_sliding_window", false)? => {
            Some(keys.size("sliding_window", None, usize::MAX >> 1)?)
        }
        // The default of transformers' configuration classes; null is no window.
        None if keys.flag("use_sliding_window", false)? => Some(4096),
        _ => None,
    };
    let Some(types) = keys.config.get("layer_types").and_then(Value::as_array) else {
        let first = keys.size_or_zero("max_window_layers", 28)?;
        return Ok((0..layers).map(|index| window.filter(|_| index >= first)).collect());
    };
    if types.len() != layers {
        return Err(keys.bad("layer_types", "does not have an entry for each layer"));
    }
    let of = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => {
            Err(keys.bad("layer_types", "asks for sliding attention, but no window is switched on"))
        }
        _ => Err(keys.unsupported("layer_types", kind, "full_attention and sliding_attention are")),
    };
    types.iter().map(of).collect()
}

fn rotary(keys: &Keys, dim: usize, positions: usize) -> Result<RotaryConfig> {
    // transformers 5 keeps everything in `rope_parameters`; before, the base stood alone and the rest in `rope_scaling`.
    let given = |key: &&str| keys.config.get(key).is_some_and(|value| !value.is_null());
    let both: Vec<&str> = ["rope_parameters", "rope_scaling"].into_iter().filter(given).collect();
    let Some(&name) = both.first() else {
        return Ok(RotaryConfig { dim, theta: keys.number("rope_theta", Some(10_000.0), 1.0..=1e12)?, scaling: None });
    };
    if both.iter().any(|other| keys.config[other] != keys.config[name]) {
        return Err(keys.bad("rope_scaling", "and `rope_parameters` differ; remove one"));
    }
    let inner = Keys { config: &keys.config[name], path: keys.path.clone() };
    let Some(object) = inner.config.as_object() else {
        return Err(keys.bad(name, "is not an object"));
    };
    let theta = match inner.config.get("rope_theta") {
        Some(_) => inner.number("rope_theta", None, 1.0..=1e12)?,
        None => keys.number("rope_theta", Some(10_000.0), 1.0..=1e12)?,
    };
    // An object that says nothing of a type scales nothing.
    let value = object.get("rope_type").or_else(|| object.get("type")).filter(|kind| !kind.is_null());
    let kind = value.map_or(Some("default"), Value::as_str);
    let Some((kind, known)) = ROTARY_KEYS.iter().find(|(known, _)| Some(*known) == kind) else {
        return Err(keys.unsupported(name, inner.config, "default, linear, llama3 and yarn are"));
    };
    let is_known = |key: &str| ["rope_theta", "rope_type", "type"].contains(&key) || known.contains(&key);
    for (key, value) in object.iter().filter(|(key, value)| !is_known(key) && !value.is_null()) {
        if value.is_object() {
            return Err(keys.unsupported(name, inner.config, "one rotation for all layers is"));
        }
        if key != "partial_rotary_factor" || value.as_f64() != Some(1.0) {
            return Err(keys.unsupported(key, value, &format!("rotary type {kind} does not read it here")));
        }
    }
    let factor = || inner.number("factor", None, 1e-6..=1e6);
    let original = || inner.number("original_max_position_embeddings", Some(positions as f64), 1.0..=1e9);
    let scaling = match *kind {
        "linear" => Some(RopeScaling::Linear { factor: factor()? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_frequency_factor: inner.number("low_freq_factor", None, 1e-6..=1e6)?,
            high_frequency_factor: inner.number("high_freq_factor", None, 1e-6..=1e6)?,
            original_positions: original()?,
        }),
        "yarn" => Some(RopeScaling::Yarn {
            factor: factor()?,
            beta_fast: inner.number("beta_fast", Some(32.0), 1e-6..=1e6)?,
            beta_slow: inner.number("beta_slow", Some(1.0), 1e-6..=1e6)?,
            original_positions: original()?,
            attention_factor: match object.get("attention_factor") {
                None | Some(Value::Null) => None,
                Some(_) => Some(inner.number("attention_factor", None, 1e-6..=1e6)?),
            },
            truncate: inner.flag("truncate", true)?,
        }),
        _ => None,
    };
    Ok(RotaryConfig { dim, theta, scaling })
}

/// A JSON object read with bounds, whose errors name the file and the key.
struct Keys<'a> {
    config: &'a Value,
    path: PathBuf,
}

impl Keys<'_> {
    fn size(&self, key: &str, default: Option<usize>, max: usize) -> Result<usize> {
        match (self.config.get(key).filter(|value| !value.is_null()), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.bad(key, "is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|size| usize::try_from(size).ok())
                .filter(|size| (1..=max).contains(size))
                .ok_or_else(|| self.bad(key, &format!("= {value} is not a whole number from 1 to {max}"))),
        }
    }

    fn size_or_zero(&self, key: &str, default: usize) -> Result<usize> {
        if self.config.get(key).and_then(Value::as_u64) == Some(0) {
            return Ok(0);
        }
        self.size(key, Some(default), MAX_SIZE)
    }

    fn number(&self, key: &str, default: Option<f64>, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
        match (self.config.get(key).filter(|value| !value.is_null()), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.bad(key, "is missing")),
            (Some(value), _) => value.as_f64().filter(|number| range.contains(number)).ok_or_else(|| {
                self.bad(key, &format!("= {value} is not a number from {} to {}", range.start(), range.end()))
            }),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.bad(key, &format!("= {value} is not true or false"))),
        }
    }

    fn bad(&self, key: &str, problem: &str) -> Error {
        Error::malformed(self.path.clone(), format!("`{key}` {problem}"))
    }

    fn unsupported(&self, key: &str, value: &Value, reason: &str) -> Error {
        Error::UnsupportedConfig {
            path: self.path.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            reason: reason.to_owned(),
        }
    }
}
