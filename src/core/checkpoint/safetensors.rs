//! One safetensors file: opened, its header checked, its tensors copied out one by one. Folders, shards and configs are in
//! `checkpoint.rs`; an adapter is a single such file and is read through [`TensorFile`] directly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use firebrick_backend::map::Map;

use super::elements::{self, Elements};
use super::header::{self, Entry, Header, Limits};
use crate::error::{Error, Result};

/// What a file says about one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype as stored.
    pub dtype: DType,
    /// The shape as stored.
    pub shape: Vec<usize>,
}

/// An opened safetensors file whose header kept all the rules. Its tensors are read when they are asked for.
#[derive(Debug)]
pub struct TensorFile {
    map: Map,
    header: Header,
}

impl TensorFile {
    /// Opens the file at `path` and checks its header; reads no tensor.
    ///
    /// # Errors
    /// [`Error::Pickle`] for a pickle by its name or its first bytes, [`Error::Malformed`] for a header that breaks a rule
    /// or a limit, [`Error::Io`] for what the system refuses.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        refuse_pickle_name(path)?;
        let map = Map::open(path).map_err(Error::io(path))?;
        let malformed = |problem: String| Error::malformed(path, problem);
        let first = map.bytes(0..map.len().min(9)).map_err(Error::io(path))?;
        if is_pickle(first) {
            return Err(Error::Pickle { path: path.to_path_buf() });
        }
        let Some(prefix) = first.first_chunk::<8>() else {
            return Err(malformed(format!("{} bytes are too few for a safetensors file: truncated", map.len())));
        };
        if prefix == b"version " {
            return Err(malformed("this is a Git LFS pointer, not the weights; `git lfs pull` fetches them".into()));
        }
        let length = header::length(*prefix, map.len(), limits).map_err(malformed)?;
        let json = map.bytes(8..8 + length).map_err(Error::io(path))?;
        let header = header::parse(json, map.len(), limits).map_err(malformed)?;
        // Everything of the mapping that was touched; the tensors are read without it.
        map.release(0..8 + length);
        Ok(Self { map, header })
    }

    /// The path given to [`TensorFile::open`].
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The file's own notes, `format` mostly.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Dtype and shape of the tensor `name`, if there is one.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.header.tensors.get(name).map(|entry| TensorInfo { dtype: entry.dtype, shape: entry.shape.clone() })
    }

    /// The tensor `name` in its stored dtype, copied once.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] for a name that is not there or a dtype that is not F64, F32, F16 or BF16; [`Error::Io`] when
    /// the file changed or cannot be read.
    pub fn data(&self, name: &str) -> Result<TensorData> {
        Ok(self.copy(name, None)?.data)
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.header.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.header.tensors.iter()
    }

    /// The tensor `name`, converted when `wanted` says so.
    pub(super) fn copy(&self, name: &str, wanted: Option<DType>) -> Result<Elements> {
        let mismatch = |missing: Vec<String>, misshapen: Vec<_>| Error::TensorMismatch {
            path: self.path().to_path_buf(),
            missing,
            surplus: Vec::new(),
            misshapen,
        };
        let Some(entry) = self.header.tensors.get(name) else {
            return Err(mismatch(vec![name.to_owned()], Vec::new()));
        };
        if !elements::is_float(entry.dtype) {
            let found = header::describe(entry.dtype, &entry.shape);
            return Err(mismatch(Vec::new(), vec![(name.to_owned(), "F64, F32, F16 or BF16".to_owned(), found)]));
        }
        let start = entry.range.start;
        let wanted = wanted.unwrap_or(entry.dtype);
        let fetch = |offset: usize, target: &mut [u8]| self.map.copy_into(start + offset, target);
        let elements = elements::copy(entry.dtype, wanted, &entry.shape, fetch).map_err(Error::io(self.path()))?;
        if elements.overflowed > 0 {
            let problem = format!(
                "tensor `{name}` has {} values too large for {}; load it as {} or as f32",
                elements.overflowed,
                header::dtype_name(wanted).unwrap_or("this dtype"),
                header::dtype_name(entry.dtype).unwrap_or("stored"),
            );
            return Err(Error::malformed(self.path(), problem));
        }
        Ok(elements)
    }
}

/// The endings that PyTorch's pickles go by.
const PICKLE_ENDINGS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// Whether a file of this name is a pickle by convention.
pub(super) fn has_pickle_name(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| PICKLE_ENDINGS.contains(&ending.as_str()))
}

pub(super) fn refuse_pickle_name(path: &Path) -> Result<()> {
    if has_pickle_name(path) { Err(Error::Pickle { path: PathBuf::from(path) }) } else { Ok(()) }
}

/// Whether a file that begins with `first` is PyTorch's zip, or a bare pickle of protocol 2 to 5.
fn is_pickle(first: &[u8]) -> bool {
    match first {
        [b'P', b'K', 3, 4, ..] => true,
        // 80 02 00 00 00 00 00 00 is also the length of a header of 640 bytes; then an object follows.
        [0x80, 2..=5, _, 0, 0, 0, 0, 0, b'{', ..] => false,
        [0x80, 2..=5, ..] => true,
        _ => false,
    }
}
