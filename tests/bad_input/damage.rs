//! Copies of the golden folders, and ways to damage them.

use std::collections::BTreeMap;
use std::path::Path;

use firebrick::KernelBackend;
use firebrick::core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick::core::error::Error;
use firebrick::core::model::CausalLm;
use firebrick::models::load_causal_lm;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::support::repository;

/// The architecture of a model folder.
pub const CONFIG: &str = "config.json";

/// The files of `tests/goldens/NAME`, without its folders, somewhere they may be damaged.
pub fn copy(name: &str) -> tempfile::TempDir {
    // In memory, where there is a place for that: some tests write a file a hundred thousand times.
    let memory = Path::new("/dev/shm");
    let to = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    for entry in std::fs::read_dir(repository("tests/goldens").join(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

/// Loads a decoder as it is stored.
pub fn load<B: KernelBackend>(folder: &Path, device: &B::Device) -> Result<Box<dyn CausalLm<B>>, Error> {
    load_causal_lm::<B>(&Checkpoint::open(folder)?, DTypePolicy::Auto, device)
}

/// The error of something that must not succeed.
#[track_caller]
pub fn refused<T>(result: Result<T, Error>, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what}: accepted"),
        Err(error) => error,
    }
}

/// The error's message has all of these parts.
#[track_caller]
pub fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// Changes a JSON object in place.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut object: Map<String, Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut object);
    std::fs::write(path, Value::Object(object).to_string()).unwrap();
}

/// Sets a key of a model folder's `config.json`.
pub fn set(folder: &Path, key: &str, value: &Value) {
    edit_json(&folder.join(CONFIG), |config| drop(config.insert(key.into(), value.clone())));
}

/// A tensor of a file, with its bytes.
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    /// f32 values of this shape.
    pub fn floats(shape: &[usize], value: f32) -> Self {
        let count = shape.iter().product();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes: value.to_le_bytes().repeat(count) }
    }
}

/// Changes the tensors of a safetensors file in place. What is written is a valid file.
pub fn edit_tensors(path: &Path, edit: impl FnOnce(&mut BTreeMap<String, Stored>)) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView)| {
        (name, Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() })
    };
    let mut tensors: BTreeMap<String, Stored> = file.tensors().into_iter().map(stored).collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, Stored { dtype, shape, bytes })| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes a file anew. Over an old one ext4 waits for the disk, which a thousand times is a minute.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Names in a folder, sorted.
pub fn names_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}
