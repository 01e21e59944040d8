//! `adapter`, and which base an adapter may be used on.

use std::fs;

use serde_json::json;

use crate::command::{copy, data, golden, inside, json_of, keys, names, run, rust_tiny, set_config, text};

#[test]
fn show_tells_the_facts() {
    let folder = golden("qwen2-tiny/lora_all_rslora");
    let facts = run("adapter show --json --quiet", &[&folder]).json();
    let fields = [
        "adapter",
        "base_model",
        "base_fingerprint",
        "rank",
        "alpha",
        "rslora",
        "dropout",
        "targets",
        "parameters",
        "modules",
    ];
    assert_eq!(keys(&facts), fields);
    assert_eq!((&facts["rank"], &facts["alpha"], &facts["rslora"]), (&json!(8), &json!(16), &json!(true)));
    assert_eq!((&facts["parameters"], facts["modules"].as_array().unwrap().len()), (&json!(26880), 21));
    let scale = facts["modules"][0]["scale"].as_f64().unwrap();
    assert!((scale - 16.0 / 8f64.sqrt()).abs() < 1e-12);
    let human = run("adapter show", &[&folder]).ok();
    assert!(human.err.is_empty() && human.out.contains("model.layers.2.self_attn.v_proj"), "{}", human.out);
    let error = run("adapter show --json", &[&golden("qwen2-tiny")]).error();
    assert!(error.contains("adapter_model.safetensors") && error.contains("adapters.safetensors"), "{error}");
}

#[test]
fn an_adapter_of_peft_survives_mlx_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["lora_qv", "lora_all_rslora"] {
        let source = golden(&format!("qwen2-tiny/{name}"));
        let (mlx, mlx_path) = inside(&folder, &format!("{name}-mlx"));
        let (peft, peft_path) = inside(&folder, &format!("{name}-peft"));
        let facts = run("adapter convert --json --quiet --to mlx", &[&source, &mlx]).json();
        assert_eq!(facts["adapter"], json!(mlx));
        assert_eq!(names(&mlx_path), ["adapter_config.json", "adapters.safetensors"]);
        run("adapter convert --to peft", &[&mlx, &peft]).ok();
        let weights = "adapter_model.safetensors";
        assert!(
            fs::read(peft_path.join(weights)).unwrap() == fs::read(format!("{source}/{weights}")).unwrap(),
            "{name}"
        );
        let config = |folder: &str| json_of(&std::path::Path::new(folder).join("adapter_config.json"));
        assert_eq!(config(&peft), config(&source));
        // Either format is the same adapter to the model.
        let words =
            format!("generate --json --temperature 0 --max-tokens 8 --tokens 5,6,7 --model {}", golden("qwen2-tiny"));
        let tokens = |adapter: &str| run(&words, &["--adapter", adapter]).json()["tokens"].clone();
        assert_eq!(tokens(&mlx), tokens(&source));
        let told = run("adapter convert --to mlx", &[&source, &mlx]).error();
        assert!(told.contains("not empty"), "{told}");
    }
}

#[test]
fn an_adapter_remembers_its_base() {
    let (data, folder) = (data(4, 0), tempfile::tempdir().unwrap());
    fs::remove_file(data.path().join("valid.jsonl")).unwrap();
    let (adapter, _) = inside(&folder, "adapter");
    let model = golden("qwen2-tiny");
    let words = format!("train --quiet --steps 1 --max-seq-len 16 --model {model} --output {adapter}");
    run(&words, &["--data", &text(data.path())]).ok();
    let answer = |model: &str| {
        run("generate --strict --temperature 0 --max-tokens 1 --tokens 5", &["--adapter", &adapter, "--model", model])
    };
    assert_eq!(answer(&model).ok().err, "", "its own base, even with --strict");
    let other = copy(&model);
    set_config(other.path(), "rope_theta", json!(10000.0));
    let error = answer(&text(other.path())).error();
    assert!(error.contains(&adapter) && error.contains("made for the base"), "{error}");
    let merged = text(&folder.path().join("merged"));
    let error = run("merge", &["--model", &text(other.path()), "--adapter", &adapter, "--output", &merged]).error();
    assert!(error.contains(&adapter) && error.contains("another base"), "{error}");
}

#[test]
fn an_unknown_base_is_a_warning_or_with_strict_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (model, adapter) = (golden("qwen2-tiny"), golden("qwen2-tiny/lora_qv"));
    let output = |name: &str| text(&folder.path().join(name));
    for (index, verb) in [
        "generate --max-tokens 1 --tokens 5".to_owned(),
        format!("logits --tokens 5 --output {}", output("l")),
        format!("merge --output {}", output("m")),
    ]
    .iter()
    .enumerate()
    {
        let words = format!("{verb} --model {model} --adapter {adapter}");
        let error = run(&words, &["--strict"]).error();
        assert!(error.contains(&adapter) && error.contains("--strict"), "{error}");
        assert_eq!(names(folder.path()).len(), index.saturating_sub(1), "nothing was written");
        let warned = run(&words, &[]).ok();
        assert!(warned.err.starts_with("warning: adapter ") && warned.err.contains("which base"), "{}", warned.err);
    }
}

#[test]
fn an_adapter_of_another_shape_is_refused_module_by_module() {
    let adapter = golden("qwen2-tiny/lora_qv");
    let words = format!("generate --json --prompt a --model {} --adapter {adapter}", rust_tiny());
    let error = run(&words, &[]).listing();
    assert!(error.starts_with(&format!("error: adapter {adapter} does not fit this model:\n")), "{error}");
    assert!(error.contains("\n  model.layers.0.self_attn.q_proj is [256, 256] in the model, [64, 64] in the adapter"));
    assert!(run(&words, &["--adapter", "/nowhere"]).status == 2, "one adapter at a time");
}
