//! What a stranger's tokenizer may cost. The library does what the file says: forty replacements of a letter by two of it are a file of
//! some kilobytes and a text of 2⁴⁰ letters, and a word of any length may be looked up from each of its letters to each other.

use serde_json::Value;
use tokenizers::models::ModelWrapper;

/// How many times longer the replacements may make a text, one after the other. Those of published tokenizers make it three times longer.
const GROWTH: f64 = 65_536.0;
/// Bytes that may be put before each text.
const PREFIX: usize = 1 << 10;
/// Letters of the longest word that WordPiece may look up; 100 wherever it was trained.
const WORD: usize = 1_000;

/// Whether the tokenizer stays within bounds, otherwise why not.
pub(super) fn check(tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    if let ModelWrapper::WordPiece(model) = tokenizer.get_model()
        && model.max_input_chars_per_word > WORD
    {
        let given = model.max_input_chars_per_word;
        return Err(format!("`max_input_chars_per_word` = {given} is more than {WORD}"));
    }
    let pieces = tokenizer.get_pre_tokenizer().map(serde_json::to_value);
    if pieces
        .transpose()
        .map_err(|problem| format!("its pre_tokenizer: {problem}"))?
        .is_some_and(|part| is_endless(&part))
    {
        return Err("its pre_tokenizer cuts pieces of length 0".into());
    }
    let normalizer = tokenizer.get_normalizer().map(serde_json::to_value);
    let decoder = tokenizer.get_decoder().map(serde_json::to_value);
    for (name, part) in [("normalizer", normalizer), ("decoder", decoder)] {
        let part = part.transpose().map_err(|problem| format!("its {name}: {problem}"))?.unwrap_or_default();
        let growth = growth(&part).map_err(|problem| format!("its {name} {problem}"))?;
        if growth > GROWTH {
            return Err(format!("its {name} could make a text {growth:.0} times longer; {GROWTH:.0} are allowed"));
        }
    }
    Ok(())
}

/// Whether this part, or one in it, cuts pieces of no length, over which the library panics.
fn is_endless(part: &Value) -> bool {
    part["type"] == "FixedLength" && part["length"] == 0
        || part["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(is_endless))
}

/// How many times longer this part and those in it make a text at most.
fn growth(part: &Value) -> Result<f64, String> {
    let inner = ["normalizers", "decoders"].iter().filter_map(|key| part[key].as_array()).flatten();
    let inner = inner.map(growth).product::<Result<f64, String>>()?;
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let own = match part["type"].as_str() {
        Some("Replace") => match length(&part["pattern"]["String"]) {
            // An expression may match nothing, everywhere.
            0 => length(&part["content"]) as f64 + 1.0,
            pattern => (length(&part["content"]) as f64 / pattern as f64).max(1.0),
        },
        Some("Prepend") if length(&part["prepend"]) > PREFIX => {
            return Err(format!("puts more than {PREFIX} bytes before each text"));
        }
        _ => 1.0,
    };
    Ok(inner * own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A tokenizer of one word with these parts.
    fn checked(part: &str, value: Value) -> Result<(), String> {
        let mut tokenizer = json!({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
        tokenizer[part] = value;
        check(&tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap())
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn replacements_may_grow_a_text_so_much_and_no_more() {
        let doubled = |times: usize| vec![replace(json!({"String": "a"}), "aa"); times];
        let normalizer = |times| checked("normalizer", json!({"type": "Sequence", "normalizers": doubled(times)}));
        let decoder = |times| checked("decoder", json!({"type": "Sequence", "decoders": doubled(times)}));
        normalizer(16).unwrap();
        decoder(16).unwrap();
        assert!(normalizer(17).unwrap_err().contains("its normalizer could make a text 131072 times longer"));
        assert!(decoder(17).unwrap_err().contains("its decoder could make a text 131072 times longer"));
        // Shorter ones never help, and an expression may match nothing.
        let back = [doubled(17), vec![replace(json!({"String": "aaaa"}), "a"); 9]].concat();
        assert!(checked("normalizer", json!({"type": "Sequence", "normalizers": back})).is_err());
        assert!(checked("normalizer", replace(json!({"Regex": "x*"}), &"b".repeat(65_536))).is_err());
        checked("normalizer", replace(json!({"Regex": "x*"}), &"b".repeat(1_000))).unwrap();
    }

    #[test]
    fn prefixes_pieces_and_words_have_bounds() {
        checked("normalizer", json!({"type": "Prepend", "prepend": "▁"})).unwrap();
        assert!(checked("normalizer", json!({"type": "Prepend", "prepend": "b".repeat(2_000)})).is_err());
        checked("pre_tokenizer", json!({"type": "FixedLength", "length": 1})).unwrap();
        let empty = json!({"type": "FixedLength", "length": 0});
        assert!(checked("pre_tokenizer", empty.clone()).is_err());
        assert!(checked("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [empty]})).is_err());
        let words = |longest: u64| json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": longest, "vocab": {"a": 0}});
        checked("model", words(100)).unwrap();
        assert!(checked("model", words(1_001)).unwrap_err().contains("max_input_chars_per_word"));
    }
}
