//! `merge`: a checkpoint with the adapter folded in, whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use firebrick::backends::Flex;
use firebrick::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::command::{copy, golden, ids, inside, json_of, names, run, rust_tiny, text};
use crate::support::{Golden, assert_golden};

fn merge(model: &str, adapter: &str, output: &str) -> String {
    format!("merge --json --quiet --model {model} --adapter {adapter} --output {output}")
}

/// Every tensor: dtype, shape, bytes.
fn tensors(folder: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.tensors().into_iter().map(tensor).collect()
}

#[test]
fn the_merged_folder_computes_what_peft_merged() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qwen2-tiny", "qwen3-tiny"] {
        let (expected, model) = (Golden::open(name), golden(name));
        for (adapter, modules) in [("lora_qv", 6), ("lora_all_rslora", 21)] {
            let (output, path) = inside(&folder, &format!("{name}-{adapter}"));
            let said = run(&merge(&model, &format!("{model}/{adapter}"), &output), &[]).json();
            assert_eq!(said["output"], json!(output));
            assert!(said["merged_modules"].as_u64().unwrap() >= modules, "{said}");
            let file = text(&folder.path().join("l"));
            let tokens = ids(&expected.rows("single.input_ids")[0]);
            run(&format!("logits --model {output} --tokens {tokens} --output {file}"), &[]).ok();
            let bytes = fs::read(&file).unwrap();
            let logits = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec();
            let logits: Vec<f32> = logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_golden(&logits, &expected.floats(&format!("{adapter}.merged_logits")).0, adapter);
            let (before, after) = (tensors(Path::new(&model)), tensors(&path));
            let shapes = |tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>| {
                tensors
                    .iter()
                    .map(|(name, (dtype, shape, _))| (name.clone(), *dtype, shape.clone()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(shapes(&before), shapes(&after));
            let changed = before.iter().filter(|(name, tensor)| after[*name] != **tensor).count();
            assert_eq!(changed as u64, said["merged_modules"].as_u64().unwrap());
        }
    }
    let answer =
        run("generate --json --max-tokens 2 --prompt a --model", &[&text(&folder.path().join("qwen2-tiny-lora_qv"))]);
    assert_eq!(answer.json()["dtype"], "f32");
}

#[test]
fn a_dtype_converts_every_tensor_and_the_config_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("qwen2-tiny");
    for (dtype, name, stored) in [("bf16", "bfloat16", Dtype::BF16), ("f16", "float16", Dtype::F16)] {
        let (output, path) = inside(&folder, dtype);
        run(&merge(&model, &format!("{model}/lora_qv"), &output), &["--dtype", dtype]).json();
        assert!(tensors(&path).values().all(|(dtype, ..)| *dtype == stored));
        assert_eq!(json_of(&path.join("config.json"))["torch_dtype"], name);
        let words = format!("generate --json --max-tokens 2 --tokens 5 --model {output}");
        assert_eq!(run(&words, &[]).json()["dtype"], dtype);
    }
    let (output, path) = inside(&folder, "kept");
    run(&merge(&model, &format!("{model}/lora_qv"), &output), &[]).json();
    assert_eq!(json_of(&path.join("config.json")), json_of(&Path::new(&model).join("config.json")));
}

#[test]
fn a_sharded_base_merges_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("qwen2-tiny");
    let sharded = copy(&model);
    let all = tensors(sharded.path());
    fs::remove_file(sharded.path().join("model.safetensors")).unwrap();
    let mut index = serde_json::Map::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let mut views = HashMap::new();
        for (name, (dtype, shape, bytes)) in all.iter().skip(shard).step_by(2) {
            index.insert(name.clone(), json!(file));
            views.insert(name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap());
        }
        fs::write(sharded.path().join(file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": index}).to_string();
    fs::write(sharded.path().join("model.safetensors.index.json"), index).unwrap();
    let outputs = [model.clone(), text(sharded.path())].map(|base| {
        let (output, path) = inside(&folder, &base.replace('/', "_"));
        run(&merge(&base, &format!("{model}/lora_qv"), &output), &[]).json();
        path
    });
    assert!(tensors(&outputs[0]) == tensors(&outputs[1]));
    assert!(!names(&outputs[1]).iter().any(|name| name.contains("index") || name.contains("-of-")));
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("qwen2-tiny");
    let adapter = format!("{model}/lora_qv");
    let (output, path) = inside(&folder, "new/merged");
    let error = run(&merge(&rust_tiny(), &adapter, &output), &[]).listing();
    assert!(error.contains("[256, 256] in the checkpoint, [64, 64] in the adapter"), "{error}");
    assert!(names(folder.path()).is_empty());
    // An overflow is found in the middle of the writing.
    let large = copy(&model);
    let file = large.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info("model.norm.weight").unwrap().data_offsets.0;
    bytes[start..start + 4].copy_from_slice(&1e6f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let error = run(&merge(&text(large.path()), &adapter, &output), &["--dtype", "f16"]).error();
    assert!(error.contains("model.norm.weight") && error.contains("--dtype"), "{error}");
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
    fs::create_dir_all(&path).unwrap();
    run(&merge(&model, &adapter, &output), &[]).ok();
    let before = names(&path);
    let error = run(&merge(&model, &adapter, &output), &[]).error();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!((names(&path), names(path.parent().unwrap()).len()), (before, 1));
    let file = text(&path.join("config.json"));
    assert!(run(&merge(&model, &adapter, &file), &[]).error().contains("is a file"));
}

#[test]
fn a_base_that_is_not_finite_is_told_about() {
    let (folder, model) = (tempfile::tempdir().unwrap(), golden("qwen2-tiny"));
    let spoiled = copy(&model);
    let file = spoiled.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info("model.norm.weight").unwrap().data_offsets.0;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    // An adapter that knows its base, of which there is nothing else to warn.
    let base = LanguageModel::<Flex>::load(&model, &Default::default()).unwrap();
    let adapter = folder.path().join("adapter");
    base.new_adapter(&LoraConfig::default(), 0).unwrap().save(&adapter, Format::Peft).unwrap();
    let (output, path) = inside(&folder, "merged");
    let words = merge(&text(spoiled.path()), &text(&adapter), &output).replace("--quiet", "");
    let error = run(&words, &["--strict"]).error();
    assert!(error.contains("model.norm.weight holds values that are not finite"), "{error}");
    assert!(!path.exists());
    let warned = run(&words, &[]).ok();
    assert!(warned.err.contains("model.norm.weight holds values that are not finite"), "{}", warned.err);
}

#[test]
#[cfg(unix)]
fn a_path_that_is_no_text_is_written_to_and_told() {
    use std::os::unix::ffi::OsStrExt;

    let (folder, model) = (tempfile::tempdir().unwrap(), golden("qwen2-tiny"));
    let output = folder.path().join(std::ffi::OsStr::from_bytes(b"bad\xffname"));
    let mut command = crate::command::binary();
    command.args(["merge", "--json", "--model", &model, "--adapter", &format!("{model}/lora_qv"), "--output"]);
    let ran = command.arg(&output).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert!(told["output"].as_str().unwrap().contains("name") && output.join("model.safetensors").is_file());
}
