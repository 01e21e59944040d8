//! Files as a whole: against mlx-lm, bad files, limits. What `lines.rs`, `options.rs` and `order.rs` do alone is tested there.

mod bad_files;
mod limits;

use super::*;
use serde_json::Value;
use std::fs;
use tempfile::TempDir;

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(&Path::new(GOLDENS).join("qwen2-tiny")).unwrap()
}

/// The tiny tokenizer with its configuration changed.
fn changed_tokenizer(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let original = Path::new(GOLDENS).join("qwen2-tiny");
    let mut config = serde_json::from_slice(&fs::read(original.join("tokenizer_config.json")).unwrap()).unwrap();
    change(&mut config);
    let folder = TempDir::new().unwrap();
    fs::copy(original.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn without_template() -> Tokenizer {
    changed_tokenizer(|config| drop(config.as_object_mut().unwrap().remove("chat_template")))
}

fn load(content: impl AsRef<[u8]>, options: &DataOptions) -> Result<Dataset> {
    load_with(&tokenizer(), content, options)
}

fn load_with(tokenizer: &Tokenizer, content: impl AsRef<[u8]>, options: &DataOptions) -> Result<Dataset> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, content).unwrap();
    Dataset::load(&path, tokenizer, options)
}

fn masked() -> DataOptions {
    DataOptions { mask_prompt: true, ..DataOptions::default() }
}

fn skipping() -> DataOptions {
    DataOptions { bad_rows: BadRows::Skip, ..DataOptions::default() }
}

/// The text of the tokens that carry weight.
fn weighted_text(tokenizer: &Tokenizer, example: &Example) -> String {
    let weighted = example.tokens.iter().zip(&example.weights).filter(|(_, weight)| **weight > 0.0);
    tokenizer.decode(&weighted.map(|(token, _)| *token).collect::<Vec<_>>(), false).unwrap()
}

#[test]
fn tokens_and_weights_equal_mlx_lm() {
    let golden: Value = serde_json::from_slice(&fs::read(format!("{GOLDENS}/mlx_dataset.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let tokenizer = match &case["template"] {
            Value::Null => tokenizer(),
            template => changed_tokenizer(|config| config["chat_template"] = template.clone()),
        };
        let options = DataOptions {
            mask_prompt: case["mask_prompt"].as_bool().unwrap(),
            max_tokens: case["max_tokens"].as_u64().unwrap() as usize,
            ..DataOptions::default()
        };
        let rows: Vec<String> = case["rows"].as_array().unwrap().iter().map(Value::to_string).collect();
        let dataset = load_with(&tokenizer, rows.join("\n"), &options).unwrap();

        let mut ours = dataset.examples().iter();
        let mut unweighted = 0;
        for (index, theirs) in case["examples"].as_array().unwrap().iter().enumerate() {
            let tokens: Vec<u32> = serde_json::from_value(theirs["tokens"].clone()).unwrap();
            let weights: Vec<f32> = serde_json::from_value(theirs["weights"].clone()).unwrap();
            if weights.iter().all(|&weight| weight == 0.0) {
                unweighted += 1;
            } else {
                assert_eq!(ours.next(), Some(&Example { tokens, weights, line: index + 1 }), "{name}, row {index}");
            }
        }
        assert_eq!(ours.next(), None, "{name}");
        assert_eq!((dataset.report().rows, dataset.report().unweighted), (rows.len(), unweighted), "{name}");
    }
}

#[test]
fn without_a_template_a_completion_follows_its_prompt_and_ends() {
    let tokenizer = without_template();
    let row = r#"{"prompt": "Explain E0382. ", "completion": "It moved."}"#;
    let whole = load_with(&tokenizer, row, &DataOptions::default()).unwrap();
    let example = &whole.examples()[0];
    assert_eq!(tokenizer.decode(&example.tokens, false).unwrap(), "Explain E0382. It moved.<|im_end|>");
    assert_eq!(whole.weighted_tokens(), example.tokens.len() - 1);

    let completion = load_with(&tokenizer, row, &masked()).unwrap();
    assert_eq!(completion.examples()[0].tokens, example.tokens);
    // The space and the next word are one token: it is the completion's, because the prompt alone ends in another.
    assert_eq!(weighted_text(&tokenizer, &completion.examples()[0]), " It moved.<|im_end|>");
}

#[test]
fn a_prompt_that_is_no_prefix_is_masked_as_far_as_both_agree() {
    // Earlier turns lose their thoughts, as in Qwen3's template, so the prompt alone says `[last]` where the whole does not.
    let tokenizer = changed_tokenizer(|config| {
        config["chat_template"] = Value::from(
            "{% for message in messages %}{% if loop.last %}[last]{% endif %}{{ message.content }}<|im_end|>{% endfor %}",
        );
    });
    let row = r#"{"messages": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"},
        {"role": "assistant", "content": "three"}]}"#;
    let dataset = load_with(&tokenizer, row.replace('\n', " "), &masked()).unwrap();
    assert_eq!(weighted_text(&tokenizer, &dataset.examples()[0]), "two<|im_end|>[last]three<|im_end|>");
}

#[test]
fn a_call_of_a_tool_needs_no_content() {
    let tokenizer = changed_tokenizer(|config| {
        config["chat_template"] = Value::from(
            "{% for message in messages %}{{ message.content or message.tool_calls | tojson }}<|im_end|>{% endfor %}",
        );
    });
    let row = r#"{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": null, "tool_calls": [1]}]}"#;
    let dataset = load_with(&tokenizer, row, &masked()).unwrap();
    assert_eq!(weighted_text(&tokenizer, &dataset.examples()[0]), "[1]<|im_end|>");
}

#[test]
fn a_folder_gives_its_splits() {
    let folder = TempDir::new().unwrap();
    let write =
        |name: &str, text: &str| fs::write(folder.path().join(name), format!("{{\"text\": \"{text}\"}}")).unwrap();
    let load = || Splits::load(folder.path(), &tokenizer(), &DataOptions::default());

    write("valid.jsonl", "to validate");
    let message = load().unwrap_err().to_string();
    assert_eq!(message, format!("{}: there is no train.jsonl in this folder", folder.path().display()));

    write("train.jsonl", "to train");
    let splits = load().unwrap();
    assert_eq!(splits.train.path(), folder.path().join("train.jsonl"));
    assert_eq!(splits.valid.unwrap().path(), folder.path().join("valid.jsonl"));
    assert_eq!(splits.test, None);

    write("test.jsonl", "to test");
    let text = |dataset: &Dataset| tokenizer().decode(&dataset.examples()[0].tokens, true).unwrap();
    assert_eq!(text(&load().unwrap().test.unwrap()), "to test");

    fs::write(folder.path().join("valid.jsonl"), "").unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.ends_with("valid.jsonl: no row to use: 0 rows"), "{message}");
}
