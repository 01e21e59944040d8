//! Checkpoint folders: weights that are damaged or do not fit, and what is a pickle or leads elsewhere.

use std::path::Path;

use firebrick::KernelBackend;
use firebrick::LanguageModel;
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::error::Error;
use firebrick::core::sequence::Sequences;
use firebrick::models::load_causal_lm;
use serde_json::{Map, Value, json};

use crate::contract;
use crate::damage::{CONFIG, Stored, copy, edit_tensors, load, refused, says, set};
use crate::support::{Inner, floats};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The error of loading a folder.
#[track_caller]
fn error_of<B: KernelBackend>(folder: &Path, device: &B::Device, what: &str) -> Error {
    refused(load::<B>(folder, device), what)
}

contract! {
    fn a_file_that_is_too_short_or_too_long_is_refused_by_name<B>(device) {
        let folder = copy("qwen2-tiny");
        let path = folder.path().join(WEIGHTS);
        let whole = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for length in [0, 1, 7, 8, 9, header - 1, header, header + 1, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = error_of::<Inner<B>>(folder.path(), &device, &format!("{length} bytes"));
            assert!(matches!(&error, Error::Malformed { path: named, .. } if *named == path), "{length}: {error:?}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        let error = error_of::<Inner<B>>(folder.path(), &device, "a byte more");
        says(&error, &[WEIGHTS, "1 bytes follow the last tensor"]);
        // A header that claims 2⁶³ bytes, or as many as memory might have.
        for claimed in [1u64 << 63, 1 << 36, u64::MAX] {
            std::fs::write(&path, [&claimed.to_le_bytes(), &whole[8..]].concat()).unwrap();
            let error = error_of::<Inner<B>>(folder.path(), &device, "a header bomb");
            says(&error, &[WEIGHTS, "header claims"]);
        }
    }
}

contract! {
    fn missing_surplus_and_misshapen_tensors_are_told_in_one_error<B>(device) {
        let folder = copy("qwen2-tiny");
        edit_tensors(&folder.path().join(WEIGHTS), |tensors| {
            let moved = tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
            tensors.insert("model.layers.1.mlp.up.weight".into(), moved);
            tensors.remove("model.norm.weight").unwrap();
            tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().shape.reverse();
            tensors.insert("model.layers.2.self_attn.q_norm.weight".into(), Stored::floats(&[16], 1.0));
        });
        let error = error_of::<Inner<B>>(folder.path(), &device, "a mismatch");
        let Error::TensorMismatch { path, missing, surplus, misshapen } = error else { panic!("{error:?}") };
        assert_eq!(path, folder.path());
        assert_eq!(missing, ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]);
        assert_eq!(surplus, ["model.layers.1.mlp.up.weight", "model.layers.2.self_attn.q_norm.weight"]);
        let [(name, expected, found)] = &misshapen[..] else { panic!("{misshapen:?}") };
        assert_eq!(name, "model.layers.0.self_attn.k_proj.weight");
        assert_eq!((&**expected, &**found), ("F32 [32, 64]", "F32 [64, 32]"));
    }
}

contract! {
    fn a_config_for_other_weights_is_refused_with_every_tensor_concerned<B>(device) {
        let mismatch = |key: &str, value: Value| {
            let folder = copy("qwen2-tiny");
            set(folder.path(), key, &value);
            match error_of::<Inner<B>>(folder.path(), &device, key) {
                Error::TensorMismatch { missing, surplus, misshapen, .. } => {
                    (missing.len(), surplus.len(), misshapen.len())
                }
                other => panic!("{key}: {other}"),
            }
        };
        // A layer has 12 tensors; the model has 3 layers.
        assert_eq!(mismatch("num_hidden_layers", json!(4)), (12, 0, 0));
        assert_eq!(mismatch("num_hidden_layers", json!(1)), (0, 24, 0));
        assert_eq!(mismatch("vocab_size", json!(513)), (0, 0, 1));
        assert_eq!(mismatch("tie_word_embeddings", json!(false)), (1, 0, 0));
        assert_eq!(mismatch("intermediate_size", json!(161)), (0, 0, 9));
        assert_eq!(mismatch("model_type", json!("llama")), (0, 9, 0));
    }
}

contract! {
    fn an_index_cannot_name_a_file_outside_the_folder<B>(device) {
        let folder = copy("qwen2-tiny");
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::rename(folder.path().join(CONFIG), model.join(CONFIG)).unwrap();
        // A good file, one folder up: only the rule keeps it from being opened.
        let outside = folder.path().join(WEIGHTS);
        let bytes = std::fs::read(&outside).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let absolute = outside.to_str().unwrap();
        let up = ["../model.safetensors", absolute, "a/../../model.safetensors", "..\\model.safetensors"];
        for shard in up.into_iter().chain(["x\0", "CON", "..", ""]) {
            let map: Map<String, Value> = file.names().iter().map(|name| (name.to_string(), json!(shard))).collect();
            std::fs::write(model.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
            let error = error_of::<Inner<B>>(&model, &device, shard);
            assert!(matches!(error, Error::Malformed { .. }), "{shard:?}: {error:?}");
        }
        // The same file inside is one.
        std::fs::rename(&outside, model.join("shard.safetensors")).unwrap();
        let map: Map<String, Value> =
            file.names().iter().map(|name| (name.to_string(), json!("shard.safetensors"))).collect();
        std::fs::write(model.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
        load::<Inner<B>>(&model, &device).unwrap();
    }
}

#[cfg(unix)]
contract! {
    fn a_link_cannot_lead_outside_the_folder<B>(device) {
        let folder = copy("qwen2-tiny");
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        std::fs::rename(folder.path().join(CONFIG), model.join(CONFIG)).unwrap();
        std::os::unix::fs::symlink(folder.path().join(WEIGHTS), model.join(WEIGHTS)).unwrap();
        let error = error_of::<Inner<B>>(&model, &device, "a link");
        says(&error, &["this link leads out of the folder"]);
    }
}

#[cfg(unix)]
contract! {
    fn no_small_file_is_read_through_a_link_or_a_pipe<B>(device) {
        let names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
        for name in names {
            let folder = copy("qwen2-tiny");
            let model = folder.path().join("model");
            std::fs::create_dir(&model).unwrap();
            for file in crate::damage::names_in(folder.path()).iter().filter(|file| file.contains('.')) {
                std::fs::rename(folder.path().join(file), model.join(file)).unwrap();
            }
            std::fs::write(model.join("chat_template.jinja"), "{{ messages }}").unwrap();
            LanguageModel::<Inner<B>>::load(&model, &device).unwrap();
            // What it holds is good; only where it is is not.
            std::fs::rename(model.join(name), folder.path().join(name)).unwrap();
            std::os::unix::fs::symlink(folder.path().join(name), model.join(name)).unwrap();
            let error = refused(LanguageModel::<Inner<B>>::load(&model, &device).map(drop), name);
            says(&error, &[name, "this link leads out of the folder"]);
            std::fs::remove_file(model.join(name)).unwrap();
            // Opening a pipe that nobody writes to waits for ever.
            assert!(std::process::Command::new("mkfifo").arg(model.join(name)).status().unwrap().success());
            let error = refused(LanguageModel::<Inner<B>>::load(&model, &device).map(drop), name);
            says(&error, &[name, "not a regular file"]);
        }
    }
}

contract! {
    fn weights_that_shrink_after_loading_change_nothing_and_while_loading_are_named<B>(device) {
        let folder = copy("qwen2-tiny");
        let path = folder.path().join(WEIGHTS);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let model = load_causal_lm::<Inner<B>>(&checkpoint, DTypePolicy::Auto, &device).unwrap();
        let tokens = Sequences::whole(&[[1u32, 2, 3]], &device);
        let before = floats(model.head(model.hidden(&tokens, None)));
        let shorten = |length| std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        for length in [300_000, 4_096, 0] {
            shorten(length);
            // The model copied what it needs.
            assert_eq!(floats(model.head(model.hidden(&tokens, None))), before);
            // The opened checkpoint did not: each of its tensors is an error that names the file, also those that are still there.
            for name in checkpoint.names() {
                let error = refused(checkpoint.data(name), name);
                assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error:?}");
            }
            let error = refused(load_causal_lm::<Inner<B>>(&checkpoint, DTypePolicy::Auto, &device).map(drop), "a shorter file");
            assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error:?}");
        }
    }
}

contract! {
    fn pickles_are_refused_by_name_and_by_content<B>(device) {
        let pickles: [&[u8]; 3] = [b"PK\x03\x04zip", b"\x80\x02}q\x00.", b"\x80\x04\x95"];
        for name in ["pytorch_model.bin", "model.pt", "weights.ckpt"] {
            let folder = copy("qwen2-tiny");
            std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
            std::fs::write(folder.path().join(name), pickles[0]).unwrap();
            let error = error_of::<Inner<B>>(folder.path(), &device, name);
            assert!(matches!(&error, Error::Pickle { path } if path.ends_with(name)), "{error:?}");
            says(&error, &["can run code", "save_pretrained"]);
        }
        for bytes in pickles {
            let folder = copy("qwen2-tiny");
            std::fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
            let error = error_of::<Inner<B>>(folder.path(), &device, "a renamed pickle");
            assert!(matches!(error, Error::Pickle { .. }), "{error:?}");
        }
    }
}

contract! {
    fn an_unknown_model_type_lists_the_known_ones<B>(device) {
        for kind in [json!("mamba"), json!(null), json!(7)] {
            let folder = copy("qwen2-tiny");
            set(folder.path(), "model_type", &kind);
            let error = error_of::<Inner<B>>(folder.path(), &device, "a model type");
            assert!(matches!(error, Error::UnknownModelType { .. }), "{error:?}");
            says(&error, &["qwen2", "qwen3", "llama"]);
        }
    }
}
