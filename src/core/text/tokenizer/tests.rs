//! Tokenizers against the references written by transformers.

use serde_json::Value;

use super::*;

pub(in crate::text) fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if name == "rust-tiny" { root.join("examples/tiny/rust-tiny") } else { root.join("tests/goldens").join(name) }
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

const QWEN: [&str; 3] = ["qwen2-tiny", "qwen2-tiny-untied", "qwen3-tiny"];

#[test]
fn ids_and_text_equal_those_of_transformers() {
    for name in QWEN {
        let tokenizer = Tokenizer::from_folder(&folder(name)).unwrap();
        let cases = golden(name)["tokenizer"].as_array().unwrap().clone();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids(&case["ids"]), false).unwrap(), case["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn chats_equal_those_of_transformers() {
    for name in QWEN {
        let tokenizer = Tokenizer::from_folder(&folder(name)).unwrap();
        let case = &golden(name)["chat_template"];
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let options = TemplateOptions { add_generation_prompt: true, ..Default::default() };
        let text = tokenizer.template().unwrap().render(&messages, &options).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        assert_eq!(tokenizer.chat(&messages, &options).unwrap(), ids(&case["ids"]));
    }
}

#[test]
fn long_texts_take_time_in_proportion() {
    let tokenizer = Tokenizer::from_folder(&folder("rust-tiny")).unwrap();
    for text in ["a", " ", "a ", "1", "\n", "é", "🙂", "<|im_end|>", "<|im_en", " \n", "'"] {
        let text = text.repeat(900_000 / text.len());
        let before = std::time::Instant::now();
        let ids = tokenizer.encode(&text, true).unwrap();
        assert!(before.elapsed() < std::time::Duration::from_secs(10), "{:?}: {:?}", &text[..8], before.elapsed());
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn a_run_the_library_would_split_wrongly_is_refused() {
    let tokenizer = Tokenizer::from_folder(&folder("rust-tiny")).unwrap();
    for run in ["a", " ", "🙂"] {
        let error = tokenizer.encode(&run.repeat(1_000_001), true).unwrap_err().to_string();
        assert!(error.contains("without a break"), "{error}");
        let broken = format!("{} .b", run.repeat(400_000)).repeat(3);
        assert_eq!(tokenizer.decode(&tokenizer.encode(&broken, true).unwrap(), false).unwrap(), broken);
    }
}

/// A folder with these files.
fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Words `a`, `b` and the special tokens `<s>` and `</s>`; the post-processor adds `<s>`; truncation and padding are on.
const WORDS: &str = r#"{"version": "1.0", "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    "added_tokens": [
        {"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 9, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
    "decoder": null, "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<s>": 7, "</s>": 9}, "unk_token": "a"}}"#;

#[test]
fn special_tokens_are_read_in_both_forms_and_added_only_when_asked() {
    let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
        "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{% for m in messages %} {{ m.content }} {% endfor %}{{ eos_token }}"}]}"#;
    let folder = folder_with(&[("tokenizer.json", WORDS), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some(7), Some(9)));
    assert_eq!((tokenizer.token_id("b"), tokenizer.token_id("c")), (Some(1), None));
    assert!(tokenizer.is_special(7) && !tokenizer.is_special(0) && !tokenizer.is_special(8));
    assert_eq!(tokenizer.vocabulary_size(), 10);
    // Neither cut to two tokens nor padded to nine.
    assert_eq!(tokenizer.encode("a b a b", true).unwrap(), [7, 0, 1, 0, 1]);
    assert_eq!(tokenizer.encode("a b <s>", false).unwrap(), [0, 1, 7]);
    assert_eq!(tokenizer.encode("", false).unwrap(), [] as [u32; 0]);
    // The template writes the only `<s>`.
    let chat = tokenizer.chat(&[Message::user("a"), Message::user("b")], &TemplateOptions::default()).unwrap();
    assert_eq!(chat, [7, 0, 1, 9]);
    assert_eq!(tokenizer.decode(&[7, 0, 1, 5, 4_000_000_000], true).unwrap(), "a b");
    assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
}

#[test]
fn a_jinja_file_goes_before_the_config_and_no_template_is_an_error_naming_the_folder() {
    let config = r#"{"chat_template": "config"}"#;
    let folder =
        folder_with(&[("tokenizer.json", WORDS), ("tokenizer_config.json", config), ("chat_template.jinja", "a b")]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.chat(&[], &TemplateOptions::default()).unwrap(), [0, 1]);

    let folder = folder_with(&[("tokenizer.json", WORDS)]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert!(tokenizer.template().is_none() && tokenizer.eos_token().is_none());
    let error = tokenizer.chat(&[], &TemplateOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Template(problem) if problem.contains(folder.path().to_str().unwrap())), "{error}");
}

#[test]
fn files_that_are_no_tokenizer_are_errors_naming_the_file() {
    let missing = tempfile::tempdir().unwrap();
    assert!(
        matches!(Tokenizer::from_folder(missing.path()), Err(Error::Io { path, .. }) if path.ends_with("tokenizer.json"))
    );
    let model = |model: &str| format!(r#"{{"version": "1.0", "added_tokens": [], "model": {model}}}"#);
    let part =
        |name: &str, part: &str| WORDS.replacen(&format!(r#""{name}": null"#), &format!(r#""{name}": {part}"#), 1);
    for text in [
        "".into(),
        "{}".into(),
        "[".repeat(100_000),
        "\0\u{1}garbage".into(),
        model("{}"),
        model(r#"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a zzz"]}"#),
        model(r#"{"type": "BPE", "vocab": {"a": -1}, "merges": []}"#),
        model(r#"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}"#),
        model(r#"{"type": "Unigram", "vocab": [], "unk_id": 5}"#),
        part("normalizer", r#"{"type": "Precompiled", "precompiled_charsmap": "AAAA"}"#),
        part("normalizer", r#"{"type": "Replace", "pattern": {"Regex": "("}, "content": ""}"#),
        part("decoder", r#"{"type": "NoSuch"}"#),
    ] {
        let folder = folder_with(&[("tokenizer.json", &text)]);
        let error = Tokenizer::from_folder(folder.path()).expect_err(&text);
        assert!(matches!(&error, Error::Malformed { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    }
    for (name, text) in [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", r#"{"eos_token": 5}"#),
        ("tokenizer_config.json", r#"{"chat_template": 5}"#),
        ("tokenizer_config.json", r#"{"chat_template": [{"name": "default"}]}"#),
        ("chat_template.jinja", &" ".repeat((1 << 20) + 1)),
    ] {
        let folder = folder_with(&[("tokenizer.json", WORDS), (name, text)]);
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Malformed { path, .. } if path.ends_with(name)), "{error}");
    }
    let folder = folder_with(&[("tokenizer.json", WORDS), ("chat_template.jinja", "{% if %}")]);
    assert!(matches!(Tokenizer::from_folder(folder.path()), Err(Error::Template(_))));
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let folder = folder_with(&[("tokenizer.json", "{")]);
    let path = folder.path().join("tokenizer.json");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(FILE_LIMIT + 1).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Malformed { problem, .. } if problem.contains("more than")), "{error}");
}

#[test]
fn a_tokenizer_is_shared_between_threads() {
    let tokenizer = Tokenizer::from_folder(&folder("rust-tiny")).unwrap();
    let ids = tokenizer.encode("fn main() {}", true).unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let tokenizer = tokenizer.clone();
            std::thread::spawn(move || tokenizer.encode("fn main() {}", true).unwrap())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), ids);
    }
}
