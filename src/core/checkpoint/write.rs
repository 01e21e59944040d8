//! Files written so that they are there whole or not at all: safetensors, streamed one tensor at a time, and small files. What
//! an adapter or a merged model consists of is decided by `lora.rs` and `train/`.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, TensorData};
use serde_json::{Value, json};

use super::header::{self, Limits};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};

/// Files of processes that were killed before a name counts as taken.
const LEFT_BEHIND: u64 = 1 << 20;

/// The metadata that transformers and PEFT expect in a file of PyTorch's layout.
pub const PYTORCH_FORMAT: &[(&str, &str)] = &[("format", "pt")];

/// A tensor announced to [`write_safetensors`] before its values are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpecification {
    /// Its name in the file.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Writes a safetensors file at `path`, replacing what was there only when all of it is on disk. `data` is called once for
/// each tensor, in the order of the file, so that one tensor at a time is in memory.
///
/// The same tensors give the same bytes: wider dtypes come first, so that every tensor is aligned for its elements, equal ones
/// by name, and the data begins at a multiple of eight.
///
/// # Errors
/// [`Error::Io`] for what the system refuses, [`Error::Malformed`] for tensors that cannot be written (two of one name, a dtype
/// the format does not have, data that is not as announced), and whatever `data` fails with. `path` is then as it was.
pub fn write_safetensors(
    disk: &dyn Disk,
    path: &Path,
    tensors: &[TensorSpecification],
    metadata: &[(&str, &str)],
    mut data: impl FnMut(&TensorSpecification) -> Result<TensorData>,
) -> Result<()> {
    let mut sorted: Vec<&TensorSpecification> = tensors.iter().collect();
    sorted.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then_with(|| a.name.cmp(&b.name)));
    let header = header(&sorted, metadata).map_err(|problem| Error::malformed(path, problem))?;
    atomically(disk, path, |file, temporary| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(temporary));
        write(&(header.len() as u64).to_le_bytes())?;
        write(header.as_bytes())?;
        for tensor in &sorted {
            let data = data(tensor)?;
            if data.dtype != tensor.dtype || *data.shape != *tensor.shape {
                let (announced, given) =
                    (header::describe(tensor.dtype, &tensor.shape), header::describe(data.dtype, &data.shape));
                let problem = format!("tensor `{}` was announced as {announced} but is {given}", tensor.name);
                return Err(Error::malformed(path, problem));
            }
            // The buffer may be longer than the tensor in it, as those of padding devices are.
            let bytes = data.num_elements() * data.dtype.size();
            let Some(bytes) = data.as_bytes().get(..bytes) else {
                return Err(Error::malformed(path, format!("the data of tensor `{}` is too short", tensor.name)));
            };
            write(bytes)?;
        }
        Ok(())
    })
}

/// Writes `bytes` at `path`, replacing what was there only when all of them are on disk.
///
/// # Errors
/// [`Error::Io`]; `path` is then as it was.
pub fn write_atomic(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    atomically(disk, path, |file, temporary| file.write_all(bytes).map_err(Error::io(temporary)))
}

/// The header's text, padded so that the data behind it and the eight bytes of its length is aligned to eight.
fn header(sorted: &[&TensorSpecification], metadata: &[(&str, &str)]) -> std::result::Result<String, String> {
    if sorted.len() > Limits::MODEL.tensors {
        return Err(format!("{} tensors are more than the {} of one file", sorted.len(), Limits::MODEL.tensors));
    }
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        let unique: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        entries.insert("__metadata__".into(), json!(unique));
    }
    let mut begin = 0usize;
    for tensor in sorted {
        let name = &tensor.name;
        let dtype = header::dtype_name(tensor.dtype)
            .ok_or_else(|| format!("tensor `{name}` has dtype {:?}, which safetensors does not have", tensor.dtype))?;
        let bytes = tensor.shape.iter().try_fold(tensor.dtype.size(), |product, &extent| product.checked_mul(extent));
        let end = bytes.and_then(|bytes| begin.checked_add(bytes));
        let end = end.ok_or_else(|| format!("tensor `{name}` of shape {:?} is too large", tensor.shape))?;
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end] });
        if name == "__metadata__" || entries.insert(name.clone(), entry).is_some() {
            return Err(format!("two entries are called `{name}`"));
        }
        begin = end;
    }
    let mut text = Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    if text.len() > Limits::MODEL.header_bytes {
        return Err(format!("its header of {} bytes is over the limit of {}", text.len(), Limits::MODEL.header_bytes));
    }
    Ok(text)
}

/// Removes the temporary file unless it was renamed.
struct Temporary<'d> {
    disk: &'d dyn Disk,
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // What made the writing fail is being reported already; a second error has nowhere to go.
            drop(self.disk.remove_file(&self.path));
        }
    }
}

/// Lets `fill` write to a new file beside `path` and renames it over `path` once it is on disk.
fn atomically(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<Box<dyn DiskFile>>, &Path) -> Result<()>,
) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let problem = std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is not the path of a file");
        return Err(Error::Io { path: path.into(), source: problem });
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // In the same folder, hence on the same file system; unique among processes and threads; no name that a loader looks for. One that was killed
    // may have had this number before, and left its file.
    let (temporary, file) = loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".{}.{}-{count}.tmp", name.to_string_lossy(), std::process::id()));
        match disk.create(&temporary) {
            Err(problem) if problem.kind() == ErrorKind::AlreadyExists && count < LEFT_BEHIND => {}
            created => break (temporary.clone(), created.map_err(Error::io(&temporary))?),
        }
    };
    let mut temporary = Temporary { disk, path: temporary, renamed: false };

    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer, &temporary.path)?;
    writer.flush().map_err(Error::io(&temporary.path))?;
    writer.get_mut().sync().map_err(Error::io(&temporary.path))?;
    // Windows does not rename an open file.
    drop(writer);
    disk.rename(&temporary.path, path).map_err(Error::io(path))?;
    temporary.renamed = true;
    // Brings the new name to disk.
    disk.sync_folder(folder).map_err(Error::io(folder))
}

#[cfg(test)]
mod tests {
    use super::super::TensorFile;
    use super::*;
    use crate::disk::System;
    use half::f16;

    fn specification(name: &str, data: &TensorData) -> TensorSpecification {
        TensorSpecification { name: name.into(), dtype: data.dtype, shape: data.shape.to_vec() }
    }

    fn tensors() -> Vec<(&'static str, TensorData)> {
        vec![
            ("z", TensorData::new(vec![1f32, -2.5, 3.0], [3])),
            ("b.half", TensorData::new(vec![f16::ONE; 5], [5, 1])),
            ("a", TensorData::new(vec![0.5f32; 6], [2, 3])),
            ("double", TensorData::new(vec![std::f64::consts::PI], [1])),
            ("scalar", TensorData::new(vec![7f32], [0usize; 0])),
            ("empty", TensorData::new(Vec::<f32>::new(), [0, 4])),
            ("ids", TensorData::new(vec![5u8, 6, 7], [3])),
        ]
    }

    fn write(path: &Path, tensors: &[(&str, TensorData)]) -> Result<()> {
        let specifications: Vec<_> = tensors.iter().map(|(name, data)| specification(name, data)).collect();
        write_safetensors(&System, path, &specifications, PYTORCH_FORMAT, |wanted| {
            Ok(tensors.iter().find(|(name, _)| *name == wanted.name).unwrap().1.clone())
        })
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read_back_by_us_and_by_the_reference() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = tensors();
        write(&path, &tensors).unwrap();
        let ours = TensorFile::open(&path, &Limits::ADAPTER).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(ours.metadata().get("format").unwrap(), "pt");
        assert_eq!(ours.names().count(), tensors.len());
        for (name, data) in &tensors {
            assert_eq!(reference.tensor(name).unwrap().data(), data.as_bytes(), "{name}");
            assert_eq!(reference.tensor(name).unwrap().shape(), &data.shape[..], "{name}");
            if *name != "ids" {
                assert_eq!(&ours.data(name).unwrap(), data, "{name}");
            }
        }
    }

    #[test]
    fn the_bytes_depend_on_nothing_but_the_tensors_and_are_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let (path, again) = (folder.path().join("x"), folder.path().join("y"));
        let mut tensors = tensors();
        write(&path, &tensors).unwrap();
        tensors.reverse();
        write(&again, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes, std::fs::read(&again).unwrap());
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        let header = header::parse(&bytes[8..8 + length], bytes.len(), &Limits::MODEL).unwrap();
        for (name, entry) in header.tensors {
            assert_eq!(entry.range.start % entry.dtype.size(), 0, "{name}");
        }
        let text = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
        let places: Vec<_> = ["__metadata__", "double", "\"a\"", "empty", "scalar", "\"z\"", "b.half", "ids"]
            .map(|name| text.find(name))
            .into();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, "old").unwrap();
        let tensor = TensorData::new(vec![0f32; 4], [4]);
        let two = [specification("a", &tensor), specification("b", &tensor)];
        let failing = [
            write_safetensors(&System, &path, &two, &[], |wanted| match wanted.name.as_str() {
                "a" => Ok(tensor.clone()),
                _ => Err(Error::EmptyPrompt),
            }),
            write_safetensors(&System, &path, &two, &[], |_| Ok(TensorData::new(vec![0f32; 4], [2, 2]))),
            write_safetensors(&System, &path, &two, &[], |_| Ok(TensorData::new(vec![0f64; 4], [4]))),
            write_safetensors(&System, &path, &[two[0].clone(), two[0].clone()], &[], |_| Ok(tensor.clone())),
            write_safetensors(&System, &path, &[specification("__metadata__", &tensor)], &[], |_| Ok(tensor.clone())),
        ];
        for result in failing {
            assert!(result.is_err());
            assert_eq!(std::fs::read(&path).unwrap(), b"old");
            assert_eq!(names_in(folder.path()), ["x.safetensors"]);
        }
    }

    #[test]
    fn a_small_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_config.json");
        write_atomic(&System, &path, b"{}").unwrap();
        write_atomic(&System, &path, b"[]").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"[]");
        assert_eq!(names_in(folder.path()), ["adapter_config.json"]);
        assert!(write_atomic(&System, folder.path(), b"x").is_err());
        assert!(write_atomic(&System, Path::new("/"), b"x").is_err());
        assert!(write_atomic(&System, &folder.path().join("absent").join("x"), b"x").is_err());
        assert_eq!(names_in(folder.path()), ["adapter_config.json"]);
    }
}
