//! Templates against the references written by transformers.

use super::*;

#[test]
fn qwen3_chats_equal_those_of_transformers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/qwen3_chat_template.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let template = ChatTemplate::new(golden["template"].as_str().unwrap(), None, None, None).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let mut extra = case.as_object().unwrap().clone();
        let messages: Vec<Message> = serde_json::from_value(extra.remove("messages").unwrap()).unwrap();
        let expected = extra.remove("text").unwrap();
        let add_generation_prompt = extra.remove("add_generation_prompt").unwrap() == true;
        let tools = extra.remove("tools").map(|tools| serde_json::from_value(tools).unwrap());
        let options = TemplateOptions { add_generation_prompt, tools, extra };
        assert_eq!(template.render(&messages, &options).unwrap(), expected.as_str().unwrap());
    }
}
