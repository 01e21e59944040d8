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
