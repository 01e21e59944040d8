//! `generate`: what goes in, how it is sampled, what comes out.

use std::fs;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::command::{copy, golden, ids, keys, run, run_on, rust_tiny, set_config, text};
use crate::support::Golden;

const QWEN: &str = "qwen2-tiny";

/// One JSON answer of the example's model.
#[track_caller]
fn answer(words: &str) -> Value {
    run(&format!("generate --json --quiet --model {} {words}", rust_tiny()), &["--prompt", "A trait is"]).json()
}

#[track_caller]
fn tokens(words: &str) -> Vec<u32> {
    serde_json::from_value(answer(words)["tokens"].clone()).unwrap()
}

/// Token ids of the golden prompt.
fn prompt() -> String {
    ids(&Golden::open(QWEN).rows("single.input_ids")[0])
}

#[test]
fn greedy_tokens_equal_transformers_with_and_without_an_adapter() {
    let expected = Golden::open(QWEN);
    let (model, prompt) = (golden(QWEN), prompt());
    let greedy = |more: &str| {
        let words = format!("generate --json --model {model} --tokens {prompt} --temperature 0 --max-tokens 32 {more}");
        run(&words, &[]).json()["tokens"].clone()
    };
    let golden_tokens = |name: &str| json!(expected.rows(&format!("{name}.greedy32"))[0]);
    assert_eq!(greedy(""), golden_tokens("single"));
    assert_eq!(greedy("--threads 1"), golden_tokens("single"));
    assert_eq!(greedy("--threads 2"), golden_tokens("single"));
    for adapter in ["lora_qv", "lora_all_rslora"] {
        assert_eq!(greedy(&format!("--adapter {model}/{adapter}")), golden_tokens(adapter));
    }
}

#[test]
fn the_json_object_has_the_fields_of_the_contract() {
    let answer = answer("--max-tokens 3 --temperature 0");
    let fields = [
        "prompt_tokens",
        "tokens",
        "text",
        "finish_reason",
        "first_token_ms",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_rss_bytes",
        "backend",
        "device",
        "dtype",
    ];
    assert_eq!(keys(&answer), fields);
    assert_eq!((answer["finish_reason"].as_str(), answer["backend"].as_str()), (Some("length"), Some("flex")));
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 3);
    for field in ["first_token_ms", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_rss_bytes"] {
        assert!(answer[field].as_f64().unwrap() > 0.0, "{field}");
    }
}

#[test]
fn the_dtype_asked_for_is_the_dtype_reported() {
    assert_eq!(answer("--max-tokens 1")["dtype"], "bf16");
    for dtype in ["f32", "f16", "bf16"] {
        assert_eq!(answer(&format!("--max-tokens 1 --dtype {dtype}"))["dtype"], dtype);
    }
}

#[test]
fn a_seed_repeats_and_another_one_differs() {
    let sampled = |seed: u32| tokens(&format!("--max-tokens 24 --temperature 1 --seed {seed}"));
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    let unseeded = || tokens("--max-tokens 24 --temperature 2 --top-k 0 --top-p 1");
    assert_ne!(unseeded(), unseeded(), "without a seed each run is its own");
}

#[test]
fn each_sampling_option_changes_the_answer() {
    let sampled = "--max-tokens 32 --seed 5 --temperature 1.2 --top-k 0 --top-p 1 --repetition-penalty 1";
    let plain = tokens(sampled);
    for (option, value) in [("--temperature", "0.5"), ("--top-k", "2"), ("--top-p", "0.2"), ("--min-p", "0.5")] {
        let words =
            if option == "--min-p" { format!("{sampled} --min-p {value}") } else { replace(sampled, option, value) };
        assert_ne!(tokens(&words), plain, "{option}");
    }
    let greedy = "--max-tokens 48 --temperature 0 --repetition-penalty 1";
    let plain = tokens(greedy);
    assert_ne!(tokens(&replace(greedy, "--repetition-penalty", "1.5")), plain, "--repetition-penalty");
    for option in ["--presence-penalty", "--frequency-penalty"] {
        assert_ne!(tokens(&format!("{greedy} {option} 2")), plain, "{option}");
    }
    assert_eq!(tokens("--max-tokens 8 --seed 9 --temperature 3 --top-k 1"), tokens("--max-tokens 8 --temperature 0"));
}

/// The words with another value for an option among them.
fn replace(words: &str, option: &str, value: &str) -> String {
    let mut words: Vec<&str> = words.split(' ').collect();
    let at = words.iter().position(|word| *word == option).unwrap();
    words[at + 1] = value;
    words.join(" ")
}

#[test]
fn the_defaults_are_those_of_generation_config() {
    let said = "--temperature 0.7 --top-p 0.9 --top-k 40 --repetition-penalty 1.1";
    assert_eq!(tokens("--max-tokens 16 --seed 3"), tokens(&format!("--max-tokens 16 --seed 3 {said}")));
}

#[test]
fn a_value_out_of_bounds_is_status_2_and_names_the_bounds() {
    for (option, value) in [
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("top-p", "0"),
        ("top-p", "1.5"),
        ("min-p", "-0.1"),
        ("repetition-penalty", "0"),
        ("presence-penalty", "1e9"),
        ("frequency-penalty", "inf"),
    ] {
        let words = format!("generate --model {} --prompt a --{option} {value}", golden(QWEN));
        let error = run(&words, &[]).misuse();
        assert!(error.contains(&option.replace('-', "_")) && error.contains("out of bounds"), "{error}");
    }
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_part_of_it() {
    let whole = answer("--max-tokens 40 --temperature 0")["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(12).take(5).collect();
    let words = format!("generate --json --model {} --max-tokens 40 --temperature 0", rust_tiny());
    let stopped = run(&words, &["--prompt", "A trait is", "--stop", "never said", "--stop", &stop]).json();
    let text = stopped["text"].as_str().unwrap();
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(whole.starts_with(text) && !text.contains(&stop), "{text:?} of {whole:?} at {stop:?}");
    assert!(!text.is_empty());
    run(&words, &["--prompt", "a", "--stop", ""]).misuse();
}

#[test]
fn no_new_tokens_are_an_empty_answer() {
    let answer = answer("--max-tokens 0");
    assert_eq!(
        (&answer["tokens"], &answer["text"], &answer["finish_reason"]),
        (&json!([]), &json!(""), &json!("length"))
    );
    assert_eq!((&answer["first_token_ms"], &answer["decode_tokens_per_second"]), (&Value::Null, &Value::Null));
    assert!(!answer["prompt_tokens"].as_array().unwrap().is_empty());
}

#[test]
fn a_prompt_comes_from_a_file_or_stdin_as_well() {
    let prompt = "fn größe() -> 東京\n";
    let words = format!("generate --json --temperature 0 --max-tokens 8 --model {}", golden(QWEN));
    let expected = run(&words, &["--prompt", prompt]).json();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt");
    fs::write(&file, prompt).unwrap();
    for answer in [
        run(&words, &["--prompt-file", file.to_str().unwrap()]).json(),
        run_on(prompt, &words, &["--prompt-file", "-"]).json(),
    ] {
        assert_eq!((&answer["prompt_tokens"], &answer["tokens"]), (&expected["prompt_tokens"], &expected["tokens"]));
    }
    let error = run_on(b"\xff\xfe", &words, &["--prompt-file", "-"]).error();
    assert!(error.contains("stdin") && error.contains("UTF-8"), "{error}");
    let error = run(&words, &["--prompt-file", "/nowhere/prompt"]).error();
    assert!(error.contains("/nowhere/prompt"), "{error}");
    assert_eq!(run(&words, &["--prompt", "- a point"]).ok().status, 0, "a prompt may begin with a dash");
}

#[test]
fn the_chat_template_wraps_prompt_and_system() {
    let words = format!("generate --json --temperature 0 --max-tokens 1 --model {}", golden(QWEN));
    let ids = |more: &[&str]| run(&words, more).json()["prompt_tokens"].as_array().unwrap().clone();
    let plain = ids(&["--prompt", "hi"]);
    let chat = ids(&["--prompt", "hi", "--chat"]);
    let system = ids(&["--prompt", "hi", "--chat", "--system", "Be short."]);
    assert!(chat.len() > plain.len() && system != chat);
    let contains = |long: &[Value], short: &[Value]| long.windows(short.len()).any(|part| part == short);
    assert!(contains(&system, &ids(&["--prompt", "Be short."])) && contains(&system, &plain));
}

#[test]
fn logprobs_are_those_of_a_distribution_in_descending_order() {
    let answer = answer("--max-tokens 4 --temperature 0 --logprobs 5 --repetition-penalty 1");
    let steps = answer["logprobs"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
    for (step, token) in steps.iter().zip(answer["tokens"].as_array().unwrap()) {
        let top: Vec<f64> =
            step["top"].as_array().unwrap().iter().map(|entry| entry["logprob"].as_f64().unwrap()).collect();
        assert_eq!((&step["token"], step["top"].as_array().unwrap().len()), (token, 5));
        assert_eq!((&step["top"][0]["token"], &step["top"][0]["logprob"]), (token, &step["logprob"]));
        assert!(top.is_sorted_by(|a, b| a >= b) && top.iter().map(|logprob| logprob.exp()).sum::<f64>() <= 1.0 + 1e-6);
    }
}

#[test]
fn what_is_streamed_is_what_the_json_says() {
    for seed in 0..4 {
        let words = format!("generate --model {} --temperature 1.5 --seed {seed} --max-tokens 40", golden(QWEN));
        let streamed = run(&words, &["--prompt", "naïve 東京 🙂"]).ok().out;
        let json = run(&words, &["--prompt", "naïve 東京 🙂", "--json"]).json();
        assert_eq!(streamed, format!("{}\n", json["text"].as_str().unwrap()), "seed {seed}");
    }
}

#[test]
fn prompts_end_with_the_context() {
    let words = format!("generate --json --temperature 0 --max-tokens 4 --model {} --tokens", golden(QWEN));
    let full = run(&words, &[&ids(&[5; 512])]).json();
    assert_eq!((full["tokens"].as_array().unwrap().len(), &full["finish_reason"]), (1, &json!("length")));
    let error = run(&words, &[&ids(&[5; 513])]).error();
    assert!(error.contains("513") && error.contains("512"), "{error}");
    let error = run(&words, &["1,512"]).error();
    assert!(error.contains("512"), "{error}");
    for more in ["", ","] {
        assert!(run(&words, &[more]).error().contains("empty"));
    }
    let words = format!("generate --model {}", golden(QWEN));
    assert!(run(&words, &["--prompt", ""]).error().contains("empty"));
}

#[test]
fn a_folder_that_is_no_model_is_named() {
    let error = run("generate --prompt a --model /nowhere", &[]).error();
    assert!(error.contains("/nowhere") && error.contains("no such folder"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = run("generate --prompt a --model", &[&text(empty.path())]).error();
    assert!(error.contains("config.json"), "{error}");
    let error = run("generate --prompt a --model", &[&golden("bert-tiny")]).error();
    assert!(error.contains("`bert`") && error.contains("embeds texts"), "{error}");
    let strange = copy(&golden("bert-tiny"));
    set_config(strange.path(), "model_type", json!("mamba"));
    let error = run("generate --prompt a --model", &[&text(strange.path())]).error();
    assert!(error.contains("`mamba`") && error.contains("qwen3"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_listed_at_once() {
    let folder = copy(&golden(QWEN));
    set_config(folder.path(), "num_hidden_layers", json!(2));
    set_config(folder.path(), "vocab_size", json!(500));
    let error = run("generate --prompt a --model", &[&text(folder.path())]).listing();
    assert!(error.contains("surplus    model.layers.2.mlp.down_proj.weight"), "{error}");
    assert!(error.contains("misshapen  model.embed_tokens.weight"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_a_warning_or_with_strict_an_error() {
    let folder = copy(&golden("qwen2-tiny-untied"));
    let model = text(folder.path());
    // The row of a token that the prompt does not have: the answer stays finite.
    plant_nan(&model, "model.embed_tokens.weight", 300);
    let words = format!("generate --temperature 0 --max-tokens 2 --tokens 5,6 --model {model}");
    let warned = run(&words, &[]).ok();
    assert!(warned.err.starts_with("warning: ") && warned.err.contains("model.embed_tokens.weight"), "{}", warned.err);
    assert_eq!(run(&words, &["--quiet"]).ok().err, "");
    let error = run(&words, &["--strict"]).error();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("--strict"), "{error}");
    plant_nan(&model, "model.layers.1.self_attn.o_proj.weight", 7);
    let error = run(&words, &[]).listing();
    assert!(error.contains("not finite"), "{error}");
}

/// Overwrites the first value of an f32 tensor's row.
fn plant_nan(model: &str, name: &str, row: usize) {
    let path = format!("{model}/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let info = metadata.info(name).unwrap();
    assert_eq!(info.dtype, Dtype::F32);
    let start = 8 + header + info.data_offsets.0 + 4 * row * info.shape[1];
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(path, bytes).unwrap();
}
