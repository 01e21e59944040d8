//! What the header says of the model, in the words of a Hugging Face folder: `config.json`, and the tensors' names there.
//!
//! Source: llama.cpp's `gguf-py/gguf/constants.py` and `tensor_mapping.py`, and transformers' `modeling_gguf_pytorch_utils.py`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Header, Tensor};

/// Architectures by their names in GGUF, with their `model_type`, which is the same.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// A layer's tensors: GGUF's name, and Hugging Face's.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// Tensors outside the layers.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// A model in the words of a Hugging Face folder.
pub(in crate::checkpoint) struct Named {
    pub config: Value,
    /// By name; and for queries and keys whose rows are in llama.cpp's order, the heads that they belong to.
    pub tensors: BTreeMap<String, (Tensor, Option<usize>)>,
}

/// Translates a header.
///
/// # Errors
/// If the architecture or a tensor is not one that is read, or a size is missing.
pub(in crate::checkpoint) fn named(header: &Header) -> Result<Named, String> {
    let architecture = header.text("general.architecture").ok_or("it does not name its architecture")?;
    if !ARCHITECTURES.contains(&architecture) {
        let known = ARCHITECTURES.join(", ");
        return Err(format!("architecture `{}` is not read from GGUF; {known} are", architecture.escape_debug()));
    }
    let config = config(header, architecture)?;
    // llama.cpp rotates neighbours, Hugging Face halves of a head: the converter of Llama reorders rows to make them the same.
    let heads = |name: &str| match name {
        "attn_q" if architecture == "llama" => config["num_attention_heads"].as_u64(),
        "attn_k" if architecture == "llama" => config["num_key_value_heads"].as_u64(),
        _ => None,
    };
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &header.tensors {
        let translated = translated(name).ok_or_else(|| match name.as_str() {
            "rope_freqs.weight" => {
                "rotary scaling by factors (of Llama 3.1 and later) is not read from GGUF".to_owned()
            }
            other => format!("tensor `{}` is not known in architecture {architecture}", other.escape_debug()),
        })?;
        let heads = name.split('.').nth(2).and_then(heads).and_then(|heads| usize::try_from(heads).ok());
        let rows = tensor.shape[0];
        if heads
            .is_some_and(|heads| heads == 0 || !heads.checked_mul(2).is_some_and(|halves| rows.is_multiple_of(halves)))
        {
            return Err(format!("tensor `{}` has {rows} rows, which are not whole heads", name.escape_debug()));
        }
        tensors.insert(translated, (tensor.clone(), heads));
    }
    Ok(Named { config, tensors })
}

fn translated(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let found = |table: &[(&str, &'static str)], name: &str| {
        table.iter().find(|(known, _)| *known == name).map(|(_, translated)| *translated)
    };
    match parts[..] {
        ["blk", layer, kind, side @ ("weight" | "bias")] => {
            let layer: usize = layer.parse().ok()?;
            Some(format!("model.layers.{layer}.{}.{side}", found(&LAYER, kind)?))
        }
        [kind, side @ ("weight" | "bias")] => Some(format!("{}.{side}", found(&OUTSIDE, kind)?)),
        _ => None,
    }
}

fn config(header: &Header, architecture: &str) -> Result<Value, String> {
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| {
        let found = header.integer(&key(name)).and_then(|size| u64::try_from(size).ok());
        found.ok_or_else(|| format!("its key {} is missing or no size", key(name)))
    };
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?.max(1));
    let embeddings = header.tensors.get("token_embd.weight").ok_or("it has no tensor token_embd.weight")?;
    let epsilon = header.float(&key("attention.layer_norm_rms_epsilon"));
    let mut config = Map::new();
    let mut say = |name: &str, value: Value| config.insert(name.to_owned(), value);
    say("model_type", json!(architecture));
    say("hidden_act", json!("silu"));
    say("hidden_size", json!(hidden));
    say("intermediate_size", json!(size("feed_forward_length")?));
    say("num_hidden_layers", json!(size("block_count")?));
    say("num_attention_heads", json!(heads));
    say("num_key_value_heads", json!(size("attention.head_count_kv").unwrap_or(heads)));
    say("head_dim", json!(size("attention.key_length").unwrap_or(hidden / heads)));
    say("max_position_embeddings", json!(size("context_length")?));
    say("rms_norm_eps", json!(epsilon.ok_or_else(|| format!("its key {} is missing", key("…rms_epsilon")))?));
    say("rope_theta", json!(header.float(&key("rope.freq_base")).unwrap_or(10_000.0)));
    say("rope_scaling", scaling(header, architecture)?);
    say("tie_word_embeddings", json!(!header.tensors.contains_key("output.weight")));
    say("vocab_size", json!(embeddings.shape[0]));
    for (name, token) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = header.integer(&format!("tokenizer.ggml.{token}_token_id")) {
            say(name, json!(id));
        }
    }
    // The sizes come from the file, the habits of the architecture do not.
    if architecture == "llama" {
        say("attention_bias", json!(false));
        say("mlp_bias", json!(false));
    }
    Ok(Value::Object(config))
}

fn scaling(header: &Header, architecture: &str) -> Result<Value, String> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    match header.text(&key("type")) {
        None | Some("none") => Ok(Value::Null),
        Some(kind @ ("linear" | "yarn")) => {
            let factor = header.float(&key("factor")).ok_or_else(|| format!("its key {} is missing", key("factor")))?;
            let mut scaling = json!({"rope_type": kind, "factor": factor});
            if kind == "yarn"
                && let Some(length) = header.integer(&key("original_context_length"))
            {
                scaling["original_max_position_embeddings"] = json!(length);
            }
            Ok(scaling)
        }
        Some(other) => Err(format!("rotary scaling `{}` is not read from GGUF", other.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_folder() {
        let cases = [
            ("blk.3.attn_q.bias", Some("model.layers.3.self_attn.q_proj.bias")),
            ("blk.0.ffn_down.weight", Some("model.layers.0.mlp.down_proj.weight")),
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.x.attn_q.weight", None),
            ("blk.0.ffn_gate_exps.weight", None),
        ];
        for (name, expected) in cases {
            assert_eq!(translated(name).as_deref(), expected, "{name}");
        }
    }
}
