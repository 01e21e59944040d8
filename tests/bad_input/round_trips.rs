//! What an adapter goes through without changing: load and save, and the way to mlx-lm's format and back.

use std::path::{Path, PathBuf};

use firebrick::core::lora::{Adapter, Format};

use crate::contract;
use crate::damage::{copy, edit_json, load};
use crate::support::{DECODERS, Inner, repository};

/// Every adapter of the golden models.
fn adapters() -> Vec<PathBuf> {
    let names = ["lora_qv", "lora_all_rslora", "lora_train/init", "lora_train/final"];
    let of = |model: &&str| names.map(|name| repository("tests/goldens").join(model).join(name));
    DECODERS.iter().flat_map(of).collect()
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

/// The golden configs stand one space to a level; PEFT writes two, and nothing else differs.
fn as_peft_writes(folder: &Path) -> String {
    let text = String::from_utf8(bytes(folder, "adapter_config.json")).unwrap();
    let indented = |line: &str| " ".repeat(line.len() - line.trim_start().len()) + line;
    text.lines().map(indented).collect::<Vec<_>>().join("\n")
}

contract! {
    fn an_adapter_of_peft_is_saved_byte_for_byte_as_peft_wrote_it<B>(device) {
        for folder in adapters() {
            let saved = tempfile::tempdir().unwrap();
            Adapter::<Inner<B>>::load(&folder, &device).unwrap().save(saved.path(), Format::Peft).unwrap();
            let weights = bytes(saved.path(), "adapter_model.safetensors");
            assert!(weights == bytes(&folder, "adapter_model.safetensors"), "{}: weights", folder.display());
            let config = String::from_utf8(bytes(saved.path(), "adapter_config.json")).unwrap();
            assert_eq!(config, as_peft_writes(&folder), "{}", folder.display());
        }
    }
}

contract! {
    fn an_adapter_comes_back_from_the_format_of_mlx_unchanged<B>(device) {
        for folder in adapters() {
            let [mlx, peft] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let original = Adapter::<Inner<B>>::load(&folder, &device).unwrap();
            original.save(mlx.path(), Format::Mlx).unwrap();
            assert!(!mlx.path().join("adapter_model.safetensors").exists());
            let returned = Adapter::<Inner<B>>::load(mlx.path(), &device).unwrap();
            for (path, module) in original.modules() {
                assert_eq!(returned.modules()[path].scale, module.scale, "{}: {path}", folder.display());
            }
            returned.save(peft.path(), Format::Peft).unwrap();
            let weights = bytes(peft.path(), "adapter_model.safetensors");
            assert!(weights == bytes(&folder, "adapter_model.safetensors"), "{}: weights", folder.display());
            let config = String::from_utf8(bytes(peft.path(), "adapter_config.json")).unwrap();
            assert_eq!(config, as_peft_writes(&folder), "{}", folder.display());
        }
    }
}

contract! {
    fn an_mlx_adapter_without_our_notes_becomes_one_of_peft_that_attaches<B>(device) {
        for name in DECODERS {
            let folder = repository("tests/goldens").join(name);
            let [mlx, peft] = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let original = Adapter::<Inner<B>>::load(&folder.join("lora_all_rslora"), &device).unwrap();
            original.save(mlx.path(), Format::Mlx).unwrap();
            edit_json(&mlx.path().join("adapter_config.json"), |config| drop(config.remove("peft").unwrap()));
            let foreign = Adapter::<Inner<B>>::load(mlx.path(), &device).unwrap();
            foreign.save(peft.path(), Format::Peft).unwrap();
            let back = Adapter::<Inner<B>>::load(peft.path(), &device).unwrap();
            let model = load::<Inner<B>>(copy(name).path(), &device).unwrap();
            back.attach(&*model).unwrap();
            for (path, module) in original.modules() {
                let scale = back.modules()[path].scale;
                assert!((scale - module.scale).abs() < 1e-12 * module.scale, "{name} {path}: {scale}");
            }
        }
    }
}
