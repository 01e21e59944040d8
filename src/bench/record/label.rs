//! What a workload is called, and which workloads are the same.

use serde_json::{Map, Value};

/// One text for equal workloads, in whatever order their keys are.
pub fn key(workload: &Map<String, Value>) -> String {
    let mut pairs: Vec<String> = workload.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.sort();
    pairs.join(" ")
}

/// The last part of the path of the workload's model: `qwen2.5-0.5b`. Nothing where it has none.
pub fn model(workload: &Map<String, Value>) -> Option<&str> {
    let path = workload.get("model")?.as_str()?.trim_end_matches(['/', '\\']);
    Some(path.rsplit(['/', '\\']).next().unwrap_or(path))
}

/// The workload in a few words: `softmax [1024, 1024] f32`, `matmul [32, 896] → 4864 f16`, `prefill 512 tokens, qwen2.5-0.5b f32`.
/// Every key is in it, so that two different workloads have different labels.
pub fn label(workload: &Map<String, Value>) -> String {
    let mut words = Words { workload, used: vec!["workload", "dtype", "model"] };
    let name = workload.get("workload").and_then(Value::as_str).unwrap_or("nameless");
    let sizes = match name {
        "softmax" | "layer_norm" | "rms_norm" | "copy" | "add_rms_norm" | "add_layer_norm" | "swiglu" | "gelu" => {
            words.shape(&["rows", "width"])
        }
        "matmul" => words.shape(&["rows", "inputs"]) + &words.after(" → ", "outputs", ""),
        "lora_forward" => words.shape(&["rows", "features"]) + &words.after(" rank ", "rank", ""),
        "attention" => words.shape(&["tokens", "heads", "dim"]) + &words.after(" of ", "kv_heads", " kv heads"),
        "decode_attention" => {
            words.after("", "keys", " keys ")
                + &words.shape(&["heads", "dim"])
                + &words.after(" of ", "kv_heads", " kv heads")
        }
        "embedding" => words.after("", "tokens", " of ") + &words.shape(&["vocabulary", "hidden"]),
        "rope" => words.shape(&["tokens", "heads", "dim"]),
        "mlp" => words.shape(&["tokens", "hidden"]) + &words.after(" → ", "intermediate", ""),
        "head_loss" => {
            words.after("", "tokens", " of ")
                + &words.shape(&["vocabulary", "hidden"])
                + &words.after(", logits ", "logits", "")
        }
        "layer" | "prefill" => words.after("", "tokens", " tokens"),
        "generate" => words.after("", "tokens", " tokens") + &words.after(" after ", "prompt", ""),
        "lora_step" => {
            words.after("", "tokens", " tokens")
                + &words.after(" rank ", "rank", "")
                + &words.after(", ", "counted", " counted")
        }
        "next_token" => words.after("after ", "after", "") + words.either("cached", ", cached", ", no cache"),
        "sampling" => words.after("of ", "vocabulary", ""),
        "memory" | "launches" | "perplexity" => words.after("of ", "of", ""),
        "embed" => words.texts() + &words.after(" of ", "lengths", " tokens"),
        _ => String::new(),
    };
    let mut label = format!("{name} {sizes}").trim_end().to_owned();
    label += words.either("reference", " of Burn's own ops", "");
    for (name, value) in workload.iter().filter(|(name, _)| !words.used.contains(&name.as_str())) {
        label += &format!(", {name} {}", plain(value));
    }
    if let Some(model) = model(workload) {
        label += &format!(", {model}");
    }
    if let Some(dtype) = workload.get("dtype") {
        label += &format!(" {}", plain(dtype));
    }
    label
}

/// Takes keys of a workload into words and remembers which.
struct Words<'a> {
    workload: &'a Map<String, Value>,
    used: Vec<&'static str>,
}

impl Words<'_> {
    fn shape(&mut self, keys: &[&'static str]) -> String {
        self.used.extend(keys);
        let sizes = keys.iter().map(|key| self.workload.get(*key).map_or("?".to_owned(), plain));
        format!("[{}]", sizes.collect::<Vec<_>>().join(", "))
    }

    fn after(&mut self, before: &str, key: &'static str, after: &str) -> String {
        self.used.push(key);
        self.workload.get(key).map_or(String::new(), |value| format!("{before}{}{after}", plain(value)))
    }

    /// One of two texts by a key that is true or false; nothing if it is not there.
    fn either(&mut self, key: &'static str, yes: &'static str, no: &'static str) -> &'static str {
        self.used.push(key);
        match self.workload.get(key).and_then(Value::as_bool) {
            Some(true) => yes,
            Some(false) => no,
            None => "",
        }
    }

    /// Four lists of texts are told by how many texts each has and how many words these have.
    fn texts(&mut self) -> String {
        let Some(Value::Array(lists)) = self.workload.get("texts") else {
            let one = self.workload.get("texts").and_then(Value::as_u64) == Some(1);
            return self.after("", "texts", if one { " text" } else { " texts" });
        };
        self.used.push("texts");
        let count = lists.first().and_then(Value::as_array).map_or(lists.len(), Vec::len);
        let texts = lists.iter().flat_map(|list| list.as_array().map_or(std::slice::from_ref(list), Vec::as_slice));
        let words: Vec<usize> = texts.filter_map(Value::as_str).map(|text| text.split_whitespace().count()).collect();
        let (low, high) = (words.iter().min().copied().unwrap_or(0), words.iter().max().copied().unwrap_or(0));
        let words = if low == high { low.to_string() } else { format!("{low} to {high}") };
        format!("{count} texts of {words} words")
    }
}

/// A text without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether a text is what a pattern says, in which `*` stands for any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}
