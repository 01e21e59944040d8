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

#[test]
fn programs_that_do_not_end_are_ended() {
    let bombs = [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 100000000 }}",
        "{% include '/etc/hostname' %}",
        "{% for i in range(100000) %}{{ messages | tojson }}{{ messages | tojson }}{% endfor %}",
        "{{ 'a\nb' | indent(1000000000000) }}",
        "{{ 'a\nb' | indent(width=1000000000000) }}",
        "{{ [1] | batch(1000000000000) | list }}",
        "{{ [1] | slice(1000000000000) | list }}",
        "{{ [1] | slice(100000000000000000000) | list }}",
    ];
    for bomb in bombs {
        let begun = std::time::Instant::now();
        let rendered = ChatTemplate::new(bomb, None, None, None)
            .and_then(|template| template.render(&[Message::user("hi")], &TemplateOptions::default()));
        assert!(matches!(rendered, Err(crate::error::Error::Template(_))), "{bomb}");
        assert!(begun.elapsed().as_secs() < 5, "{bomb}: {:?}", begun.elapsed());
    }
}
