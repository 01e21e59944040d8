//! Which model this is, as a hash of what defines it: the config and the headers of the tensors, never the weights, so that
//! it costs nothing and an adapter can carry it.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Keys of the config that do not change what the model computes: provenance, habits of generation, names of classes. The
/// dtype is in the tensors' headers. Keys beginning with `_` are notes of the writer.
const COSMETIC: [&str; 14] = [
    "architectures",
    "auto_map",
    "bos_token_id",
    "chat_template",
    "dtype",
    "eos_token_id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];

/// SHA-256, in hexadecimal, over `config` in canonical form and the sorted `(name, dtype, shape)` of every tensor.
pub(super) fn fingerprint<'a>(
    config: &Value,
    tensors: impl Iterator<Item = (&'a str, &'static str, &'a [usize])>,
) -> String {
    let mut canonical = String::new();
    write_canonical(config, true, &mut canonical);
    let mut hash = Sha256::new();
    // Lengths first: no two models may run into the same bytes.
    hash.update((canonical.len() as u64).to_le_bytes());
    hash.update(&canonical);
    let mut sorted: Vec<_> = tensors.collect();
    sorted.sort_unstable();
    for (name, dtype, shape) in sorted {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(format!("{dtype} {shape:?}\n"));
    }
    hexadecimal(&hash.finalize())
}

/// Bytes of a hash as text, two digits each.
pub(crate) fn hexadecimal(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON with sorted keys, without absent values (`null` says the same as no key) and with one spelling per number, because
/// Python writes 1000000 and 1000000.0 as it happens to hold it.
fn write_canonical(value: &Value, top: bool, out: &mut String) {
    match value {
        Value::Object(map) => {
            let kept = |key: &str| !(top && (key.starts_with('_') || COSMETIC.contains(&key)));
            let sorted: BTreeMap<_, _> = map.iter().filter(|(key, value)| kept(key) && !value.is_null()).collect();
            out.push('{');
            for (key, value) in sorted {
                *out += &Value::from(key.as_str()).to_string();
                out.push(':');
                write_canonical(value, false, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for value in values {
                write_canonical(value, false, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Number(number) => match number.as_f64() {
            // Beyond 2⁵³ an integer is not the same as its f64 any more, and stays as it is written.
            Some(float) if !number.is_f64() && float.abs() >= 9_007_199_254_740_992.0 => *out += &number.to_string(),
            Some(float) => *out += &format!("{float:e}"),
            None => *out += &number.to_string(),
        },
        other => *out += &other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: Value) -> String {
        fingerprint(&config, [("w", "F32", [2, 3].as_slice())].into_iter())
    }

    #[test]
    fn the_spelling_of_a_config_does_not_matter() {
        let expected = of(json!({"rope_theta": 1_000_000, "layers": 2, "nested": {"a": 1, "b": [0.5, true]}}));
        assert_eq!(expected.len(), 64);
        let same = [
            json!({"layers": 2.0, "rope_theta": 1e6, "nested": {"b": [0.5, true], "a": 1.0}}),
            json!({"layers": 2, "rope_theta": 1_000_000.0, "rope_scaling": null, "nested": {"a": 1, "b": [5e-1, true]}}),
            json!({"layers": 2, "rope_theta": 1e6, "nested": {"a": 1, "b": [0.5, true], "c": null}, "_name_or_path": "x",
                   "torch_dtype": "bfloat16", "transformers_version": "4.2", "use_cache": false, "eos_token_id": [1, 2]}),
        ];
        for config in same {
            assert_eq!(of(config.clone()), expected, "{config}");
        }
    }

    #[test]
    fn whatever_defines_the_model_changes_it() {
        let base = json!({"layers": 2, "act": "silu", "nested": {"dtype": "x"}, "big": 9_007_199_254_740_993u64});
        let expected = of(base.clone());
        let changed = [
            json!({"layers": 3, "act": "silu", "nested": {"dtype": "x"}, "big": 9_007_199_254_740_993u64}),
            json!({"layers": 2, "act": "gelu", "nested": {"dtype": "x"}, "big": 9_007_199_254_740_993u64}),
            json!({"layers": 2, "act": "silu", "nested": {"dtype": "y"}, "big": 9_007_199_254_740_993u64}),
            json!({"layers": 2, "act": "silu", "nested": {"dtype": "x"}, "big": 9_007_199_254_740_992u64}),
            json!({"layers": "2", "act": "silu", "nested": {"dtype": "x"}, "big": 9_007_199_254_740_993u64}),
            json!({"layers": 2, "act": "silu", "nested": {"dtype": "x"}}),
        ];
        for config in changed {
            assert_ne!(of(config.clone()), expected, "{config}");
        }
        let with = |name, dtype, shape: &[usize]| fingerprint(&base, [(name, dtype, shape)].into_iter());
        assert_eq!(with("w", "F32", &[2, 3]), expected);
        for other in
            [with("v", "F32", &[2, 3]), with("w", "F16", &[2, 3]), with("w", "F32", &[3, 2]), with("w", "F32", &[6])]
        {
            assert_ne!(other, expected);
        }
    }

    #[test]
    fn the_order_of_tensors_does_not_matter() {
        let shape = [1usize];
        let (a, b) = (("a", "F32", shape.as_slice()), ("b", "F16", shape.as_slice()));
        assert_eq!(fingerprint(&json!({}), [a, b].into_iter()), fingerprint(&json!({}), [b, a].into_iter()));
    }
}
