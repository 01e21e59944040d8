//! Folders written for each test, read back.

use super::*;

/// A model folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("firebrick-generation-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, file: &str, text: &str) -> Self {
        std::fs::write(self.0.join(file), text).unwrap();
        self
    }

    fn read(&self) -> Result<GenerationConfig> {
        GenerationConfig::from_folder(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn generation(test: &str, text: &str) -> Result<GenerationConfig> {
    Folder::new(test).with("generation_config.json", text).read()
}

#[test]
fn an_instruct_file_is_read_whole() {
    let config = generation(
        "whole",
        r#"{"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0, "presence_penalty": 1.5,
            "frequency_penalty": 0.5, "max_new_tokens": 2048, "stop_strings": "END", "transformers_version": "4.37.0"}"#,
    )
    .unwrap();
    let sampling = Sampling {
        temperature: 0.7,
        top_k: Some(20),
        top_p: Some(0.8),
        min_p: Some(0.0),
        repetition_penalty: Some(1.05),
        presence_penalty: Some(1.5),
        frequency_penalty: Some(0.5),
        seed: 0,
    };
    assert_eq!(config.sampling(), sampling);
    assert_eq!(config.eos_token_id, [151645, 151643]);
    assert_eq!(config.stop_strings, ["END"]);
    assert_eq!(config.max_tokens(9).unwrap(), Some(2048));
}

#[test]
fn without_do_sample_it_is_greedy_but_penalties_hold() {
    for text in
        [r#"{"temperature": 0.7, "repetition_penalty": 1.1}"#, r#"{"do_sample": false, "repetition_penalty": 1.1}"#]
    {
        let sampling = generation("greedy", text).unwrap().sampling();
        assert_eq!(sampling, Sampling { repetition_penalty: Some(1.1), ..Sampling::greedy() });
    }
}

#[test]
fn sampling_without_details_is_that_of_transformers() {
    let top_k = |text| generation("details", text).unwrap().sampling().top_k;
    assert_eq!(top_k(r#"{"do_sample": true}"#), Some(50));
    assert_eq!(top_k(r#"{"do_sample": true, "top_k": null}"#), Some(50));
    assert_eq!(top_k(r#"{"do_sample": true, "top_k": 0}"#), None);
    assert_eq!(generation("details", r#"{"do_sample": true}"#).unwrap().sampling().temperature, 1.0);
}

#[test]
fn no_file_is_all_defaults_but_no_folder_is_an_error() {
    let folder = Folder::new("none");
    assert_eq!(folder.read().unwrap(), GenerationConfig::default());
    assert!(matches!(GenerationConfig::from_folder(&folder.0.join("absent")), Err(Error::Io { .. })));
}

#[test]
fn end_of_sequence_falls_back_to_the_model_config() {
    let eos = |test, generation: &str, model| {
        Folder::new(test)
            .with("generation_config.json", generation)
            .with("config.json", model)
            .read()
            .unwrap()
            .eos_token_id
    };
    assert_eq!(eos("own", r#"{"eos_token_id": 3}"#, r#"{"eos_token_id": 7}"#), [3]);
    assert_eq!(eos("fallback", "{}", r#"{"eos_token_id": 7}"#), [7]);
    assert_eq!(eos("list", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": [7, 8]}"#), [7, 8]);
    assert!(eos("neither", "{}", "{}").is_empty());
    let only_model = Folder::new("only").with("config.json", r#"{"eos_token_id": 7}"#);
    assert_eq!(only_model.read().unwrap().eos_token_id, [7]);
}

#[test]
fn max_length_counts_the_prompt() {
    let config = generation("length", r#"{"max_length": 20}"#).unwrap();
    assert_eq!(config.max_tokens(5).unwrap(), Some(15));
    for prompt in [20, 30] {
        let refused = config.max_tokens(prompt).unwrap_err();
        assert!(matches!(refused, Error::PromptTooLong { limit: 20, tokens } if tokens == prompt), "{refused:?}");
    }
    assert_eq!(generation("length", "{}").unwrap().max_tokens(5).unwrap(), None);
}

#[test]
fn wrong_values_are_errors_that_name_file_and_key() {
    for (key, value) in [
        ("eos_token_id", "\"</s>\""),
        ("eos_token_id", "-1"),
        ("eos_token_id", "4294967296"),
        ("eos_token_id", "[1, null]"),
        ("do_sample", "1"),
        ("temperature", "\"hot\""),
        ("temperature", "1e300"),
        ("temperature", "-1"),
        ("top_k", "2.5"),
        ("top_k", "-1"),
        ("top_p", "0"),
        ("top_p", "[0.9]"),
        ("min_p", "1.5"),
        ("repetition_penalty", "0"),
        ("presence_penalty", "true"),
        ("frequency_penalty", "1000"),
        ("max_new_tokens", "-5"),
        ("max_length", "\"long\""),
        ("stop_strings", "[\"\"]"),
    ] {
        let error = generation("wrong", &format!("{{\"{key}\": {value}}}")).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Malformed { .. }), "{message}");
        assert!(message.contains("generation_config.json") && message.contains(key), "{message}");
    }
}

#[test]
fn what_is_no_json_object_is_malformed() {
    for text in ["", "{", "[1]", "null", "\u{feff}{}", "{\"top_p\": NaN}", &"[".repeat(100_000)] {
        assert!(matches!(generation("no-object", text), Err(Error::Malformed { .. })), "{text:.20}");
    }
    let bad_model = Folder::new("bad-model").with("config.json", "{\"eos_token_id\": {}}");
    assert!(bad_model.read().unwrap_err().to_string().contains("config.json: `eos_token_id` must be"));
}

#[test]
fn an_enormous_file_is_refused() {
    let folder = Folder::new("enormous");
    let file = std::fs::File::create(folder.0.join("generation_config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(folder.read().unwrap_err().to_string().contains("larger than"));
}

#[test]
fn an_option_not_acted_on_is_refused_unless_it_is_off() {
    for (on, off) in [("\"num_beams\": 4", "\"num_beams\": 1"), ("\"typical_p\": 0.9", "\"typical_p\": 1.0")] {
        let error = generation("unsupported", &format!("{{{on}}}")).unwrap_err();
        assert!(matches!(error, Error::UnsupportedConfig { .. }), "{error}");
        assert!(generation("unsupported", &format!("{{{off}}}")).is_ok());
    }
    let off = r#"{"suppress_tokens": [], "forced_eos_token_id": null, "bad_words_ids": null, "min_length": 0, "sequence_bias": {}}"#;
    assert!(generation("unsupported", off).is_ok());
    assert!(generation("unsupported", r#"{"forced_eos_token_id": 0}"#).is_err(), "0 is a token");
    assert!(
        generation("unsupported", r#"{"suppress_tokens": [1]}"#).unwrap_err().to_string().contains("suppress_tokens")
    );
}
