//! The real tokenizer of Qwen2.5 and Qwen3, from a package.

use firebrick::core::text::Tokenizer;

use crate::python::needed;
use crate::support::repository;

#[test]
#[ignore = "needs the Qwen tokenizer, from a package"]
fn qwen_token_ids_equal_transformers() {
    let tokenizer = Tokenizer::from_folder(&needed("FIREBRICK_QWEN_TOKENIZER")).unwrap();
    let golden = std::fs::read(repository("tests/goldens/qwen2.5_tokenizer_cases.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap(), ids, "{}", case["text"]);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
    }
}
