//! The tokenizer in the metadata as the files of a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`.
//!
//! Source: transformers' `convert_slow_tokenizer.py` and llama.cpp's `llama-vocab.cpp` for what each `tokenizer.ggml.pre` splits by.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Header;

/// Kinds of token that are kept whole: control ones, which are never shown, and those a user defined.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Words of Qwen2: contractions, letters, single digits, signs, line ends, spaces.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Llama 3: as those, with up to three digits together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The files, by name.
///
/// # Errors
/// If the tokenizer is not a byte-level BPE or splits words in a way that is not known here.
pub(in crate::checkpoint) fn files(header: &Header) -> Result<BTreeMap<&'static str, Vec<u8>>, String> {
    let config = tokenizer_config(header);
    let ids = ["bos", "eos", "padding"].into_iter().zip(["bos_token_id", "eos_token_id", "pad_token_id"]);
    let ids: serde_json::Map<String, Value> =
        ids.filter_map(|(kind, name)| Some((name.to_owned(), json!(header.integer(&id_key(kind))?)))).collect();
    let files = [
        ("tokenizer.json", tokenizer(header)?),
        ("tokenizer_config.json", config),
        ("generation_config.json", Value::Object(ids)),
    ];
    Ok(files.into_iter().map(|(name, value)| (name, value.to_string().into_bytes())).collect())
}

fn id_key(kind: &str) -> String {
    format!("tokenizer.ggml.{kind}_token_id")
}

/// The text of the token of this kind.
fn token<'h>(header: &'h Header, kind: &str) -> Option<&'h str> {
    let id = usize::try_from(header.integer(&id_key(kind))?).ok()?;
    Some(header.texts("tokenizer.ggml.tokens")?.get(id)?.as_str())
}

fn tokenizer_config(header: &Header) -> Value {
    let mut config = json!({});
    for (kind, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")] {
        if let Some(token) = token(header, kind) {
            config[name] = json!(token);
        }
    }
    if let Some(template) = header.text("tokenizer.chat_template") {
        config["chat_template"] = json!(template);
    }
    config
}

fn tokenizer(header: &Header) -> Result<Value, String> {
    match header.text("tokenizer.ggml.model") {
        Some("gpt2") => {}
        None => return Err("it has no tokenizer".into()),
        Some(other) => {
            return Err(format!("a tokenizer of kind `{}` is not read from GGUF; gpt2 is", other.escape_debug()));
        }
    }
    let tokens = header.texts("tokenizer.ggml.tokens").ok_or("its tokenizer has no tokens")?;
    let merges = header.texts("tokenizer.ggml.merges").ok_or("its tokenizer has no merges")?;
    let kinds = header.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let added: Vec<Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let bytes =
        |words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false)]})
    };
    // Files from before there was the key say by their architecture alone how words are split.
    let usual = match header.text("general.architecture") {
        Some("qwen2" | "qwen3") => "qwen2",
        _ => "gpt-2",
    };
    let pre = header.text("tokenizer.ggml.pre").unwrap_or(usual);
    let (normalizer, words) = match pre {
        "qwen2" => (json!({"type": "NFC"}), split(QWEN2)),
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA3)),
        "gpt-2" => (Value::Null, bytes(true)),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Value::Null, json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}))
        }
        other => {
            let known = "qwen2, llama-bpe, smollm and gpt-2 are";
            return Err(format!("the words of tokenizer `{}` are not known here; {known}", other.escape_debug()));
        }
    };
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let merges: Vec<Value> =
        merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(left, right)| json!([left, right])).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": words, "post_processor": before_everything(header, pre), "decoder": bytes(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.starts_with("llama"), "vocab": vocabulary, "merges": merges,
        },
    }))
}

/// The token that begins every text, where the model was trained with one.
fn before_everything(header: &Header, pre: &str) -> Value {
    let wanted = header.boolean("tokenizer.ggml.add_bos_token").unwrap_or(pre.starts_with("llama"));
    let (Some(bos), Some(id)) = (token(header, "bos"), header.integer(&id_key("bos"))) else { return Value::Null };
    if !wanted {
        return Value::Null;
    }
    let (first, text) =
        (json!({"SpecialToken": {"id": bos, "type_id": 0}}), |id: &str| json!({"Sequence": {"id": id, "type_id": 0}}));
    json!({
        "type": "TemplateProcessing", "single": [first, text("A")], "pair": [first, text("A"), text("B")],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    })
}
