//! A Hugging Face folder: its config, and its weights as one set of named tensors, whether one file or many hold them.
//! What the config means is known in `models/`; tokenizers are read in `text.rs`, adapters in `lora.rs`.
//!
//! Opening reads the config and the headers and checks all of it; a tensor's bytes are touched when it is asked for, copied
//! once into the buffer it will live in, and never referenced in the file again. See `file/ranges.rs` for what a file that changes leads to.

mod elements;
mod fingerprint;
mod folder;
mod gguf;
mod header;
mod loader;
pub mod packed;
mod safetensors;
mod synthetic;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn::tensor::TensorData;
use firebrick_backend::KernelBackend;
use firebrick_backend::packed::Format;
use serde_json::Value;

pub(crate) use self::fingerprint::hexadecimal;
use self::gguf::BlockType;
pub use self::header::Limits;
pub use self::loader::{DTypePolicy, TensorLoader};
pub use self::safetensors::{TensorFile, TensorInfo};
pub use self::write::{PYTORCH_FORMAT, TensorSpecification, write_atomic, write_safetensors};
use crate::error::{Error, Result};
use crate::file::{Files, RangeFile, resolve};

/// An opened checkpoint folder. Cheap to keep: it holds the headers and the open files, no weights.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it is, and what is there besides config and weights.
    small_files: Files,
    config: Value,
    files: Vec<TensorFile>,
    /// Tensor name → position in `files`.
    places: BTreeMap<String, usize>,
    /// Names of tensors that were loaded and hold values that are not finite.
    non_finite: Mutex<Vec<String>>,
    /// How many matrices were loaded in another dtype than they are stored in, by both.
    conversions: Mutex<BTreeMap<(String, String), usize>>,
    /// The matrices that a loader packed, with their formats.
    packings: Mutex<BTreeMap<String, Format>>,
    /// How matrices in blocks of ggml are stored.
    blocks: BTreeMap<String, BlockType>,
    /// The seed of weights that are computed; there are no files then.
    synthetic: Option<u64>,
}

impl Checkpoint {
    /// Opens `folder`: reads `config.json` and the headers of `model.safetensors`, or of the shards that
    /// `model.safetensors.index.json` names; or a `.gguf` file, which holds as much. Reads no tensor.
    ///
    /// # Errors
    /// [`Error::Io`] for what is not there or cannot be read, [`Error::Pickle`] when the only weights are pickles or a file is one
    /// under another name, [`Error::Malformed`] for everything a file or a link should not be.
    pub fn open(folder: &Path) -> Result<Self> {
        let metadata = folder.metadata().map_err(Error::io(folder))?;
        if !metadata.is_dir() {
            if folder.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
                return Self::open_gguf(folder);
            }
            safetensors::refuse_pickle_name(folder)?;
            let problem =
                "this is a file; a checkpoint is the folder with config.json and the weights in it, or a .gguf file";
            return Err(Error::Io {
                path: folder.into(),
                source: std::io::Error::new(ErrorKind::NotADirectory, problem),
            });
        }
        let config = match folder::read_config(folder) {
            // Without a config, a folder with nothing but pickles is better described by those.
            Err(Error::Io { path, source }) if source.kind() == ErrorKind::NotFound => {
                return Err(match folder::find_weights(folder) {
                    Err(pickle @ Error::Pickle { .. }) => pickle,
                    _ => Error::Io { path, source },
                });
            }
            config => config?,
        };
        let weights = folder::find_weights(folder)?;
        let (mut files, mut tensors): (Vec<TensorFile>, usize) = (Vec::with_capacity(weights.files.len()), 0);
        for path in &weights.files {
            let file = TensorFile::open(path, &Limits::MODEL)?;
            tensors += file.names().count();
            if tensors > Limits::MODEL.tensors {
                let problem = format!("its files list more than {} tensors together", Limits::MODEL.tensors);
                return Err(Error::malformed(folder, problem));
            }
            files.push(file);
        }
        let places = match weights.index {
            None => files
                .iter()
                .enumerate()
                .flat_map(|(at, file)| file.names().map(move |name| (name.into(), at)))
                .collect(),
            Some(index) => {
                agree(&index, &files).map_err(|problem| Error::malformed(folder.join(folder::INDEX), problem))?;
                index
            }
        };
        Ok(Self { files, places, ..Self::without_tensors(Files::folder(folder), config) })
    }

    fn without_tensors(small_files: Files, config: Value) -> Self {
        Self {
            small_files,
            config,
            files: Vec::new(),
            places: BTreeMap::new(),
            non_finite: Mutex::default(),
            conversions: Mutex::default(),
            packings: Mutex::default(),
            blocks: BTreeMap::new(),
            synthetic: None,
        }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = RangeFile::open(path).map_err(Error::io(path))?;
        let malformed = |problem: String| Error::malformed(path, problem);
        let mut length = gguf::FIRST_BYTES;
        let header = loop {
            // Where the header ends is known once it was read.
            length = length.min(file.len());
            let start = file.copy(0..length).map_err(Error::io(path))?;
            match gguf::parse(&start, file.len()).map_err(malformed)? {
                Some(header) => break header,
                None => length = length.saturating_mul(4),
            }
        };
        let gguf::Named { config, tensors } = gguf::named(&header).map_err(malformed)?;
        let inside = Files::inside(path, gguf::files(&header).map_err(malformed)?);
        let (mut entries, mut blocks) = (BTreeMap::new(), BTreeMap::new());
        for (name, (tensor, interleaved)) in tensors {
            let gguf::Tensor { shape, stored, range } = tensor;
            if Format::of(stored.dtype()).is_some() {
                blocks.insert(name.clone(), stored);
            }
            entries.insert(name, header::Entry { dtype: stored.dtype(), shape, range, interleaved });
        }
        let places = entries.keys().map(|name| (name.clone(), 0)).collect();
        let files = vec![TensorFile::of(file, entries)];
        Ok(Self { files, places, blocks, ..Self::without_tensors(inside, config) })
    }

    /// A checkpoint with no files: whatever tensor is asked for is computed from its name, its shape and `seed`, the same on every
    /// machine and in every dtype, and is f32 unless another dtype is asked for. Real shapes without the weights: for benchmarks,
    /// and for checking a device.
    pub fn synthetic(config: Value, seed: u64) -> Self {
        Self { synthetic: Some(seed), ..Self::without_tensors(Files::folder(Path::new("synthetic")), config) }
    }

    /// The folder, or the file, given to [`Checkpoint::open`].
    pub fn folder(&self) -> &Path {
        self.small_files.place()
    }

    /// Its small files: tokenizer, chat template, generation config.
    pub fn files(&self) -> &Files {
        &self.small_files
    }

    /// `config.json`, always an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The path of another file of the folder, such as `tokenizer.json`, if it is there.
    ///
    /// # Errors
    /// As for shards: [`Error::Malformed`] when `name` is not a plain file name or a link leads out of the folder.
    pub fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        resolve(self.folder(), name)
    }

    /// Tensors that a loader finished with and that hold infinite values or NaN, by name.
    pub fn warnings(&self) -> Vec<String> {
        // A poisoned lock still holds the names.
        self.non_finite.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Matrices that a loader finished with and that are in memory in another dtype than in the file: from, to, and how many.
    pub fn conversions(&self) -> Vec<(String, String, usize)> {
        let conversions = self.conversions.lock().unwrap_or_else(PoisonError::into_inner);
        conversions.iter().map(|((from, to), count)| (from.clone(), to.clone(), *count)).collect()
    }

    /// Matrices that a loader finished with and packed, by name.
    pub fn packings(&self) -> BTreeMap<String, Format> {
        self.packings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Dtype and shape of the tensor `name`, if there is one.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.files[*self.places.get(name)?].info(name)
    }

    /// The tensor `name` in its stored dtype, copied once.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] for a name that is not there or a dtype that is not F64, F32, F16 or BF16; [`Error::Io`] when
    /// the file changed or cannot be read.
    pub fn data(&self, name: &str) -> Result<TensorData> {
        Ok(self.file_of(name)?.copy(name, None)?.data)
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(TensorFile::total_bytes).sum()
    }

    /// SHA-256, in hexadecimal, over what in `config.json` defines the model and the names, dtypes and shapes of the tensors.
    /// Reads no weights; two fine-tunes of one base have the same fingerprint, and so has what `quantize` made of it.
    pub fn fingerprint(&self) -> String {
        if let Some(base) = self.config.get("_firebrick_base").and_then(Value::as_str) {
            return base.to_owned();
        }
        let entries = self.files.iter().flat_map(TensorFile::entries);
        let described = entries.map(|(name, entry)| {
            (name.as_str(), header::dtype_name(entry.dtype).unwrap_or_default(), entry.shape.as_slice())
        });
        fingerprint::fingerprint(&self.config, described)
    }

    /// Starts loading tensors of this checkpoint onto `device`; see [`TensorLoader`].
    ///
    /// # Panics
    /// If `policy` converts to something other than F64, F32, F16 or BF16.
    pub fn loader<B: KernelBackend>(&self, device: &B::Device, policy: DTypePolicy) -> TensorLoader<'_, B> {
        TensorLoader::new(self, device, policy)
    }

    /// The file that has this tensor.
    fn file_of(&self, name: &str) -> Result<&TensorFile> {
        match self.places.get(name) {
            Some(&at) => Ok(&self.files[at]),
            None => Err(Error::TensorMismatch {
                path: self.folder().into(),
                missing: vec![name.to_owned()],
                surplus: Vec::new(),
                misshapen: Vec::new(),
            }),
        }
    }
}

/// Whether every tensor is in exactly the shard that the index names, and the index names every tensor.
fn agree(index: &BTreeMap<String, usize>, files: &[TensorFile]) -> std::result::Result<(), String> {
    let shard = |at: usize| files[at].path().file_name().unwrap_or_default().to_string_lossy();
    for (name, &at) in index {
        if files[at].info(name).is_none() {
            return Err(format!("tensor `{name}` is not in {}, where the index says", shard(at)));
        }
    }
    for (at, file) in files.iter().enumerate() {
        for name in file.names() {
            match index.get(name) {
                Some(&other) if other == at => {}
                Some(&other) => return Err(format!("tensor `{name}` is in {} and in {}", shard(other), shard(at))),
                None => return Err(format!("tensor `{name}` of {} is not in the index", shard(at))),
            }
        }
    }
    Ok(())
}
