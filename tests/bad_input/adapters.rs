//! Adapters: targets that do not exist, other bases, what PEFT can say and we cannot do, damaged files, saves that fail.

use std::path::{Path, PathBuf};

use firebrick::KernelBackend;
use firebrick::core::error::Error;
use firebrick::core::lora::{Adapter, Format, LoraConfig, Targets};
use firebrick::models::LanguageModel;
use serde_json::json;

use crate::contract;
use crate::damage::{Stored, copy, edit_json, edit_tensors, load, names_in, refused, replace, says};
use crate::support::{Inner, repository};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn golden(model: &str, adapter: &str) -> PathBuf {
    repository("tests/goldens").join(model).join(adapter)
}

/// The error of loading an adapter folder.
#[track_caller]
fn error_of<B: KernelBackend>(folder: &Path, device: &B::Device, what: &str) -> Error {
    refused(Adapter::<B>::load(folder, device), what)
}

contract! {
    fn targets_that_match_nothing_list_what_there_is<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny").path(), &device).unwrap();
        for targets in ["qproj", "q_proj,w_proj", "lm_head", "embed_tokens", r".*\.q_proj\.lora", "", "("] {
            let config = LoraConfig { targets: Targets::parse(targets), ..LoraConfig::default() };
            let error = refused(Adapter::create(&*model, &config, 0), targets);
            assert!(matches!(error, Error::NoSuchTarget { .. }), "{targets}: {error:?}");
            says(&error, &["down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"]);
        }
    }
}

contract! {
    fn absurd_adapter_values_are_refused_with_their_bounds<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny").path(), &device).unwrap();
        let default = LoraConfig::default;
        for (named, config) in [
            ("rank", LoraConfig { rank: 0, ..default() }),
            ("rank", LoraConfig { rank: usize::MAX, ..default() }),
            ("alpha", LoraConfig { alpha: 0.0, ..default() }),
            ("alpha", LoraConfig { alpha: f64::NAN, ..default() }),
            ("alpha", LoraConfig { alpha: f64::INFINITY, ..default() }),
            ("dropout", LoraConfig { dropout: 1.0, ..default() }),
            ("dropout", LoraConfig { dropout: -0.1, ..default() }),
            ("dropout", LoraConfig { dropout: f64::NAN, ..default() }),
        ] {
            let error = refused(Adapter::create(&*model, &config, 0), named);
            assert!(matches!(error, Error::OutOfBounds { name, .. } if name == named), "{error:?}");
        }
    }
}

contract! {
    fn an_adapter_of_another_base_is_refused_with_every_module_that_does_not_fit<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny-untied").path(), &device).unwrap();
        let adapter = Adapter::<Inner<B>>::load(&golden("qwen2-tiny", "lora_qv"), &device).unwrap();
        let results = [refused(adapter.attach(&*model), "attached"), refused(adapter.merge(&*model), "merged")];
        for error in results {
            let Error::AdapterMismatch { problems, .. } = error else { panic!("{error:?}") };
            // Two layers of another width, and a third that is not there.
            assert_eq!(problems.len(), 6, "{problems:?}");
            assert_eq!(problems[0], "model.layers.0.self_attn.q_proj is [48, 48] in the model, [64, 64] in the adapter");
            assert_eq!(problems[4], "model.layers.2.self_attn.q_proj is not a linear of the model");
        }
    }
}

contract! {
    fn an_adapter_that_knows_its_base_is_refused_by_another_of_the_same_shape<B>(device) {
        let folder = copy("qwen2-tiny");
        let model = LanguageModel::<Inner<B>>::load(folder.path(), &device).unwrap();
        let adapter = model.new_adapter(&LoraConfig::default(), 0).unwrap();
        let saved = tempfile::tempdir().unwrap();
        for format in [Format::Peft, Format::Mlx] {
            let at = saved.path().join(format!("{format:?}"));
            adapter.save(&at, format).unwrap();
            model.load_adapter(&at).unwrap();
        }
        // The same shapes, other positions.
        edit_json(&folder.path().join("config.json"), |config| { config.insert("rope_theta".into(), json!(5e5)); });
        let other = LanguageModel::<Inner<B>>::load(folder.path(), &device).unwrap();
        for format in ["Peft", "Mlx"] {
            let error = refused(other.load_adapter(saved.path().join(format)), format);
            says(&error, &["was made for the base", &model.fingerprint()[..12], &other.fingerprint()[..12]]);
        }
        for error in [refused(other.with_adapter(&adapter), "attached"), refused(other.merged(&adapter), "merged")] {
            assert!(matches!(error, Error::AdapterMismatch { .. }), "{error:?}");
        }
    }
}

/// A damaged copy of an adapter that loads.
fn adapter() -> tempfile::TempDir {
    copy("qwen2-tiny-untied/lora_qv")
}

contract! {
    fn what_peft_can_say_and_we_cannot_do_is_refused_by_name<B>(device) {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("bias", json!("lora_only")),
            ("modules_to_save", json!(["lm_head"])),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("layer_replication", json!([[0, 2], [1, 2]])),
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("loftq")),
            ("peft_type", json!("IA3")),
            ("peft_type", json!(null)),
            ("exclude_modules", json!(["q_proj"])),
            ("layers_pattern", json!("h")),
            ("loftq_config", json!({"loftq_bits": 4})),
            ("megatron_config", json!({"tp": 2})),
            ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
            ("trainable_token_indices", json!([1, 2])),
            ("use_qalora", json!(true)),
            ("corda_config", json!({"a": 1})),
            ("alora_invocation_tokens", json!([5])),
            ("a_key_of_next_year", json!(3)),
            ("r", json!(0)),
            ("r", json!(8.5)),
            ("r", json!("8")),
            ("lora_alpha", json!(-1)),
            ("lora_dropout", json!(1)),
            ("rank_pattern", json!({"(a{1000}){1000}": 4})),
            ("use_rslora", json!("yes")),
            ("use_rslora", json!(1)),
            ("target_modules", json!(null)),
            ("target_modules", json!([1])),
            ("rank_pattern", json!([4])),
            ("rank_pattern", json!({"q_proj": 0})),
            ("rank_pattern", json!({"(": 4})),
            ("alpha_pattern", json!({"q_proj": "x"})),
            ("layers_to_transform", json!("all")),
            ("layers_to_transform", json!([-1])),
        ] {
            let folder = adapter();
            edit_json(&folder.path().join(CONFIG), |config| { config.insert(key.into(), value.clone()); });
            let error = error_of::<Inner<B>>(folder.path(), &device, &format!("{key} = {value}"));
            assert!(matches!(error, Error::Adapter { .. }), "{key} = {value}: {error:?}");
            says(&error, &[folder.path().to_str().unwrap(), &format!("`{key}`")]);
        }
    }
}

contract! {
    fn a_config_that_is_none_is_refused<B>(device) {
        let folder = adapter();
        let path = folder.path().join(CONFIG);
        for text in ["", "{", "[]", "null", "{\"r\": 8,}"] {
            std::fs::write(&path, text).unwrap();
            says(&error_of::<Inner<B>>(folder.path(), &device, text), &[CONFIG, "not a JSON object"]);
        }
        std::fs::write(&path, format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20))).unwrap();
        says(&error_of::<Inner<B>>(folder.path(), &device, "a megabyte"), &[CONFIG, "more than"]);
        std::fs::write(&path, "[".repeat(500_000)).unwrap();
        error_of::<Inner<B>>(folder.path(), &device, "nesting");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(error_of::<Inner<B>>(folder.path(), &device, "no config"), Error::Io { path: named, .. } if named == path));
        std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
        says(&error_of::<Inner<B>>(folder.path(), &device, "nothing"), &[WEIGHTS, "adapters.safetensors"]);
    }
}

contract! {
    fn an_adapter_that_is_a_pickle_is_refused_as_one<B>(device) {
        let folder = adapter();
        std::fs::write(folder.path().join(WEIGHTS), b"\x80\x02}q\x00.").unwrap();
        let error = error_of::<Inner<B>>(folder.path(), &device, "renamed");
        assert!(matches!(error, Error::Pickle { .. }), "{error:?}");
        std::fs::rename(folder.path().join(WEIGHTS), folder.path().join("adapter_model.bin")).unwrap();
        let error = error_of::<Inner<B>>(folder.path(), &device, "an old file of PEFT");
        assert!(matches!(&error, Error::Pickle { path } if path.ends_with("adapter_model.bin")), "{error:?}");
    }
}

contract! {
    fn an_adapter_cut_at_any_byte_is_refused<B>(device) {
        let folder = copy("qwen2-tiny/lora_qv");
        let path = folder.path().join(WEIGHTS);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            replace(&path, &whole[..length]);
            let error = error_of::<Inner<B>>(folder.path(), &device, &format!("{length} bytes"));
            assert!(matches!(&error, Error::Malformed { path: named, .. } if *named == path), "{length}: {error:?}");
        }
        println!("{} truncations of an adapter of {} bytes, each an error", whole.len(), whole.len());
    }
}

contract! {
    fn a_flipped_bit_gives_an_error_or_an_adapter_and_never_a_panic<B>(device) {
        let folder = copy("qwen2-tiny/lora_qv");
        let path = folder.path().join(WEIGHTS);
        let whole = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut refused = [0usize; 2];
        // Every bit of the header, then bits drawn anywhere.
        const FLIPS: usize = 100_000;
        let mut drawn = 1u64;
        for flip in 0..FLIPS {
            drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bit = if flip < header * 8 { flip } else { (drawn >> 33) as usize % (whole.len() * 8) };
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            replace(&path, bytes);
            let is_number = usize::from(bit >= header * 8);
            refused[is_number] += usize::from(Adapter::<Inner<B>>::load(folder.path(), &device).is_err());
        }
        println!("{FLIPS} flips: {} of the header and {} of the numbers were refused, the others gave an adapter", refused[0], refused[1]);
        // A letter of a note may change, and a number: one bit makes none of these infinite.
        assert!(refused[0] > header * 8 / 2, "{refused:?}");
    }
}

#[cfg(unix)]
contract! {
    fn a_file_of_an_adapter_cannot_be_a_link_out_of_its_folder<B>(device) {
        for name in [WEIGHTS, CONFIG] {
            let folder = adapter();
            let inside = folder.path().join("inside");
            std::fs::create_dir(&inside).unwrap();
            for file in [WEIGHTS, CONFIG] {
                std::fs::rename(folder.path().join(file), inside.join(file)).unwrap();
            }
            Adapter::<Inner<B>>::load(&inside, &device).unwrap();
            std::fs::rename(inside.join(name), folder.path().join(name)).unwrap();
            std::os::unix::fs::symlink(folder.path().join(name), inside.join(name)).unwrap();
            says(&error_of::<Inner<B>>(&inside, &device, name), &[name, "this link leads out of the folder"]);
        }
    }
}

contract! {
    fn matrices_that_do_not_fit_each_other_are_refused_by_module<B>(device) {
        let a = format!("{PREFIX}.lora_A.weight");
        let b = format!("{PREFIX}.lora_B.weight");
        let check = |edit: &dyn Fn(&mut std::collections::BTreeMap<String, Stored>), parts: &[&str]| {
            let folder = adapter();
            edit_tensors(&folder.path().join(WEIGHTS), edit);
            says(&error_of::<Inner<B>>(folder.path(), &device, parts[0]), parts);
        };
        check(&|tensors| drop(tensors.remove(&a)), &["model.layers.0.self_attn.q_proj has only one of lora_A and lora_B"]);
        check(&|tensors| drop(tensors.remove(&b)), &["has only one of lora_A and lora_B"]);
        check(&|tensors| tensors.get_mut(&a).unwrap().shape.reverse(), &["has rank 8 in the config", "[48, 8]"]);
        check(&|tensors| drop(tensors.insert(a.clone(), Stored::floats(&[2, 48], 0.1))), &["has rank 8 in the config", "[2, 48]"]);
        check(&|tensors| drop(tensors.insert(a.clone(), Stored::floats(&[384], 0.1))), &["lora_A.weight", "not a matrix of floats"]);
        check(&|tensors| tensors.get_mut(&a).unwrap().dtype = safetensors::Dtype::I32, &["lora_A.weight", "found I32"]);
        for value in [f32::NAN, f32::INFINITY] {
            check(&|tensors| drop(tensors.insert(b.clone(), Stored::floats(&[48, 8], value))), &["lora_B.weight", "not finite"]);
        }
        for name in ["lora_magnitude_vector", "lora_embedding_A", "lora_A.bias", "lora_A.default.weight", "weight"] {
            let name = format!("{PREFIX}.{name}");
            check(&|tensors| drop(tensors.insert(name.clone(), Stored::floats(&[4], 0.1))), &[&name, "not supported"]);
        }
        check(&|tensors| drop(tensors.insert("x.lora_A.weight".into(), Stored::floats(&[8, 48], 0.1))), &["x.lora_A.weight"]);
        check(&|tensors| tensors.clear(), &["holds no matrices"]);
    }
}

contract! {
    fn a_module_that_the_config_targets_and_the_file_lacks_is_an_error<B>(device) {
        let model = load::<Inner<B>>(copy("qwen2-tiny-untied").path(), &device).unwrap();
        let folder = adapter();
        edit_tensors(&folder.path().join(WEIGHTS), |tensors| tensors.retain(|name, _| !name.starts_with(PREFIX)));
        let adapter = Adapter::<Inner<B>>::load(folder.path(), &device).unwrap();
        let error = refused(adapter.attach(&*model), "half an adapter");
        says(&error, &["model.layers.0.self_attn.q_proj is targeted by the adapter's config but not in its file"]);
    }
}

contract! {
    fn an_mlx_adapter_that_we_cannot_do_is_refused_by_name<B>(device) {
        let saved = tempfile::tempdir().unwrap();
        let original = Adapter::<Inner<B>>::load(&golden("qwen2-tiny-untied", "lora_qv"), &device).unwrap();
        original.save(saved.path(), Format::Mlx).unwrap();
        let config = std::fs::read(saved.path().join(CONFIG)).unwrap();
        for (key, value) in [
            ("fine_tune_type", json!("dora")),
            ("fine_tune_type", json!("full")),
            ("lora_parameters", json!({"rank": 8, "scale": 2.0, "dropout": 1.5})),
            ("lora_parameters", json!(null)),
            ("lora_parameters", json!({"rank": 8, "alpha": 16})),
        ] {
            std::fs::write(saved.path().join(CONFIG), &config).unwrap();
            edit_json(&saved.path().join(CONFIG), |config| { config.insert(key.into(), value.clone()); });
            let error = error_of::<Inner<B>>(saved.path(), &device, key);
            assert!(matches!(error, Error::Adapter { .. }), "{key} = {value}: {error:?}");
            says(&error, &[key]);
        }
        std::fs::write(saved.path().join(CONFIG), &config).unwrap();
        let weights = saved.path().join("adapters.safetensors");
        edit_tensors(&weights, |tensors| drop(tensors.insert("model.layers.0.self_attn.q_proj.m".into(), Stored::floats(&[48], 1.0))));
        says(&error_of::<Inner<B>>(saved.path(), &device, "DoRA"), &["q_proj.m", "not supported"]);
        let half = "model.layers.1.self_attn.v_proj.lora_b";
        edit_tensors(&weights, |tensors| tensors.retain(|name, _| !name.ends_with(".m") && name != half));
        says(&error_of::<Inner<B>>(saved.path(), &device, "half a pair"), &[half, "missing"]);
    }
}

contract! {
    fn a_save_that_fails_leaves_nothing_behind<B>(device) {
        let adapter = Adapter::<Inner<B>>::load(&golden("qwen2-tiny-untied", "lora_qv"), &device).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // A file where the folder should be, and where its parent should be.
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "mine").unwrap();
        for path in [blocked.clone(), blocked.join("below")] {
            assert!(matches!(refused(adapter.save(&path, Format::Peft), "a file in the way"), Error::Io { .. }));
        }
        assert_eq!(std::fs::read(&blocked).unwrap(), b"mine");
        // A folder where a file should be: what was there stays, and no temporary file does.
        for (format, weights) in [(Format::Peft, WEIGHTS), (Format::Mlx, "adapters.safetensors")] {
            let target = folder.path().join(format!("{format:?}"));
            std::fs::create_dir_all(target.join(weights).join("inside")).unwrap();
            assert!(matches!(refused(adapter.save(&target, format), "a folder in the way"), Error::Io { .. }));
            assert_eq!(names_in(&target), [weights]);
        }
        // What mlx-lm's format cannot say is known before anything is written.
        let mixed = copy("qwen2-tiny-untied/lora_qv");
        edit_json(&mixed.path().join(CONFIG), |config| { config.insert("alpha_pattern".into(), json!({"q_proj": 4})); });
        let mixed = Adapter::<Inner<B>>::load(mixed.path(), &device).unwrap();
        let target = folder.path().join("new");
        says(&refused(mixed.save(&target, Format::Mlx), "two scales"), &["modules differ in rank or scale", "save it for PEFT"]);
        assert!(!target.exists());
    }
}

contract! {
    fn a_save_that_fails_leaves_the_adapter_that_was_there<B>(device) {
        let folder = copy("qwen2-tiny-untied/lora_qv");
        let read = || [WEIGHTS, CONFIG].map(|name| std::fs::read(folder.path().join(name)).unwrap());
        let before = read();
        let model = load::<Inner<B>>(copy("qwen2-tiny-untied").path(), &device).unwrap();
        let adapter = Adapter::create(&*model, &LoraConfig::default(), 0).unwrap();
        let rank = LoraConfig { rank: 2, ..LoraConfig::default() };
        let other = Adapter::create(&*model, &rank, 0).unwrap();
        // A NaN matrix would be written and then refused by every reader.
        let broken = other.modules().iter().map(|(path, module)| (path.clone(), module.a.clone() * f32::NAN, module.b.clone()));
        let broken = other.with_matrices(broken.collect::<Vec<_>>());
        let error = refused(broken.save(folder.path(), Format::Peft), "NaN");
        assert!(matches!(&error, Error::NotFinite { .. }), "{error:?}");
        assert_eq!(read(), before);
        adapter.save(folder.path(), Format::Peft).unwrap();
        assert_ne!(read(), before);
        assert_eq!(names_in(folder.path()), [CONFIG, WEIGHTS]);
    }
}
