//! Texts of so many tokens, and a tokenizer for them where no model folder brings one.

use firebrick_core::text::Tokenizer;
use serde_json::{Map, Value, json};

/// Words that every WordPiece vocabulary for English has whole.
const WORDS: [&str; 12] =
    ["list", "sort", "city", "river", "model", "search", "large", "small", "read", "write", "open", "close"];

/// Distinct texts of these lengths in tokens, those of the special tokens included; another `seed` gives others.
///
/// # Errors
/// If the tokenizer fails.
pub fn texts(tokenizer: &Tokenizer, lengths: impl Iterator<Item = usize>, seed: usize) -> Result<Vec<String>, String> {
    let text = |(row, length): (usize, usize)| {
        let mut text = WORDS[(row * 5 + seed) % WORDS.len()].to_owned();
        for at in 0.. {
            let longer = format!("{text} {}", WORDS[(row * 7 + at * 5 + at * at + seed) % WORDS.len()]);
            if tokenizer.encode(&longer, true).map_err(|problem| problem.to_string())?.len() > length {
                break;
            }
            text = longer;
        }
        Ok(text)
    };
    lengths.enumerate().map(text).collect()
}

/// A tokenizer of WordPiece that knows little more than [`WORDS`].
pub(super) fn tokenizer() -> Result<Tokenizer, String> {
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let vocabulary: Map<String, Value> =
        specials.iter().chain(&WORDS).enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |name: &str, id: usize| json!({"SpecialToken": {"id": name, "type_id": id}});
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(id, name)| {
            json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]", 0), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]", 0)],
            "pair": [],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    });
    let folder = std::env::temp_dir().join(format!("firebrick-bench-{}", std::process::id()));
    let write = || {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("tokenizer.json"), text.to_string())
    };
    write().map_err(|problem| format!("{}: {problem}", folder.display()))?;
    let tokenizer = Tokenizer::from_folder(&folder).map_err(|problem| problem.to_string());
    // What is left in a folder for temporary files harms nobody.
    std::fs::remove_dir_all(&folder).ok();
    tokenizer
}

#[cfg(test)]
mod tests {
    #[test]
    fn texts_are_distinct_and_as_long_as_asked() {
        let tokenizer = super::tokenizer().unwrap();
        let lengths = [32, 32, 4, 256];
        let texts = super::texts(&tokenizer, lengths.into_iter(), 0).unwrap();
        assert_ne!(texts[0], texts[1]);
        for (text, length) in texts.iter().zip(lengths) {
            assert_eq!(tokenizer.encode(text, true).unwrap().len(), length, "{text}");
        }
        assert_ne!(texts, super::texts(&tokenizer, lengths.into_iter(), 1).unwrap());
    }
}
