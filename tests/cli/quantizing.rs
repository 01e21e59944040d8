//! `quantize`, `--dtype q8|q4`, and what may be done with a packed model.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::command::{data, golden, ids, inside, json_of, keys, run, rust_tiny, text};
use crate::support::Golden;

fn quantize(model: &str, to: &str, output: &str) -> Value {
    run(&format!("quantize --json --model {model} --to {to} --output {output}"), &[]).json()
}

/// The logits of a model for some tokens.
fn logits(model: &str, tokens: &str, more: &[&str]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let file = text(&folder.path().join("logits"));
    let words = format!("logits --quiet --backend flex --model {model} --tokens {tokens} --output {file}");
    run(&words, more).ok();
    let bytes = fs::read(&file).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec();
    data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// The largest difference, as a part of the largest value.
fn difference(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let largest = other.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn a_packed_folder_computes_what_its_values_do() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2-tiny", "qwen3-tiny"] {
        let (expected, model) = (Golden::open(name), golden(name));
        let tokens = ids(&expected.rows("single.input_ids")[0]);
        let plain = logits(&model, &tokens, &[]);
        for (to, off) in [("q8", 0.1), ("q4", 1.0)] {
            let (output, _) = inside(&folder, &format!("{name}-{to}"));
            let said = quantize(&model, to, &output);
            assert_eq!(keys(&said), ["output", "format", "bytes_before", "bytes_after", "kinds"]);
            assert!(said["bytes_after"].as_u64() < said["bytes_before"].as_u64());
            let packed = logits(&output, &tokens, &[]);
            // Loaded as floats, the same weights meet activations that are not rounded to eight bits.
            let values = logits(&output, &tokens, &["--dtype", "f32"]);
            let rounding = difference(&packed, &values);
            assert!(0.0 < rounding && rounding < 0.05, "{name} {to}: {rounding}");
            let changed = difference(&packed, &plain);
            assert!(0.0 < changed && changed < off, "{name} {to}: {changed}");
            let answer = run(&format!("generate --json --model {output} --tokens 1 --max-tokens 2"), &[]).json();
            assert_eq!(answer["dtype"], to);
            // Packed when it is loaded, it is the same model.
            assert_eq!(logits(&model, &tokens, &["--dtype", to]), packed, "{name} {to}");
        }
    }
}

#[test]
fn the_folder_is_laid_out_as_mlx_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = inside(&folder, "q4");
    let said = quantize(&golden("qwen2-tiny"), "q4", &output);
    let config = json_of(&path.join("config.json"));
    assert_eq!(
        config["quantization"],
        json!({"group_size": 32, "bits": 4, "model.embed_tokens": {"group_size": 64, "bits": 8}})
    );
    // Rows that are not made of the longest groups say so.
    let (eight, its_path) = inside(&folder, "q8");
    quantize(&golden("qwen2-tiny"), "q8", &eight);
    let quantization = &json_of(&its_path.join("config.json"))["quantization"];
    assert_eq!((&quantization["group_size"], &quantization["bits"]), (&json!(64), &json!(8)));
    let other = keys(quantization).into_iter().filter(|key| key.starts_with("model.")).collect::<Vec<_>>();
    assert_eq!(other, [0, 1, 2].map(|layer| format!("model.layers.{layer}.mlp.down_proj")));
    assert_eq!(quantization[&other[0]], json!({"group_size": 32, "bits": 8}));
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| tensors.tensor(name).map(|view| (view.dtype(), view.shape().to_vec())).unwrap();
    let up = "model.layers.0.mlp.up_proj";
    assert_eq!(of(&format!("{up}.weight")), (Dtype::U32, vec![160, 64 * 4 / 32]));
    assert_eq!(of(&format!("{up}.scales")), (Dtype::F16, vec![160, 2]));
    assert_eq!(of(&format!("{up}.biases")), (Dtype::F16, vec![160, 2]));
    assert_eq!(of("model.embed_tokens.weight"), (Dtype::U32, vec![512, 64 * 8 / 32]));
    assert_eq!(of("model.norm.weight"), (Dtype::F32, vec![64]));
    let kinds = said["kinds"].as_array().unwrap();
    let up = kinds.iter().find(|kind| kind["kind"] == "model.layers.*.mlp.up_proj.weight").unwrap();
    assert_eq!((&up["tensors"], &up["bits"]), (&json!(3), &json!(4)));
    assert!(up["largest_error"].as_f64().unwrap() < up["largest_weight"].as_f64().unwrap() / 7.0);
    assert!(path.join("tokenizer.json").is_file());
}

#[test]
fn an_adapter_trains_on_a_packed_base_and_fits_the_one_it_was_made_from() {
    let (rows, folder) = (data(48, 8), tempfile::tempdir().unwrap());
    let (base, _) = inside(&folder, "base");
    quantize(&rust_tiny(), "q8", &base);
    let (output, path) = inside(&folder, "adapter");
    let words = format!(
        "train --quiet --model {base} --data {} --output {output} --steps 24 --max-seq-len 64 --learning-rate 2e-3 --eval-every 24",
        rows.path().display()
    );
    run(&words, &[]).ok();
    let metrics = fs::read_to_string(path.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["valid_loss"].as_f64())
        .collect();
    assert!(losses[1] < losses[0] - 0.1, "{losses:?}");
    for model in [base.as_str(), &rust_tiny()] {
        let words = format!("generate --json --strict --max-tokens 4 --prompt fn --temperature 0 --model {model}");
        assert_eq!(run(&words, &["--adapter", &output]).json()["tokens"].as_array().unwrap().len(), 4);
    }
    // And what was made for the base fits its packed form.
    let answer = run(
        &format!("score --json --quiet --model {base} --adapter {output} --data"),
        &[&text(&rows.path().join("valid.jsonl"))],
    );
    assert!(answer.lines().last().unwrap()["loss"].as_f64().unwrap() < losses[0]);
}

#[test]
fn an_encoder_is_packed_too() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = inside(&folder, "bert");
    quantize(&golden("bert-tiny"), "q8", &output);
    assert!(path.join("tokenizer.json").is_file());
    let vector = |model: &str, more: &[&str]| -> Vec<f64> {
        let line = crate::command::run_on("query: a text", &format!("embed --model {model}"), more).json();
        line["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (plain, packed) = (vector(&golden("bert-tiny"), &[]), vector(&output, &[]));
    let cosine: f64 = plain.iter().zip(&packed).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.999 && plain != packed, "{cosine}");
    assert_eq!(vector(&golden("bert-tiny"), &["--dtype", "q8", "--backend", "flex"]), packed);
}

#[test]
fn what_makes_no_sense_is_refused_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (packed, _) = inside(&folder, "packed");
    let model = golden("qwen2-tiny");
    quantize(&model, "q8", &packed);
    let (output, path) = inside(&folder, "out");
    let refused = |words: String, why: &str| {
        let error = run(&words, &[]).error();
        assert!(error.contains(why), "{error}");
        assert!(!path.exists());
    };
    refused(format!("quantize --model {packed} --to q4 --output {output}"), "packed already");
    refused(format!("quantize --model {model} --to q4 --output {packed}"), "not empty");
    refused(format!("merge --model {packed} --adapter {model}/lora_qv --output {output}"), "is packed");
    let misuse = run(&format!("quantize --model {model} --to q5 --output {output}"), &[]).misuse();
    assert!(misuse.contains("q8") && misuse.contains("q4"), "{misuse}");
    let misuse = run(&format!("quantize --model {model} --to q4 --dtype f16 --output {output}"), &[]).misuse();
    assert!(misuse.contains("--to"), "{misuse}");
    let misuse =
        run(&format!("merge --dtype q8 --model {model} --adapter {model}/lora_qv --output {output}"), &[]).misuse();
    assert!(misuse.contains("firebrick quantize"), "{misuse}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn damaged_blocks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (output, path) = inside(&folder, "q8");
    quantize(&golden("qwen2-tiny"), "q8", &output);
    // The config no longer says how wide a row is.
    crate::command::set_config(&path, "intermediate_size", json!(192));
    let error = run(&format!("generate --model {output} --tokens 1 --max-tokens 1"), &[]).listing();
    assert!(error.contains("model.layers.0.mlp"), "{error}");
}
