//! The manifest of a checkpoint: size and SHA-256 of each of its files, so that damage is noticed before anything is read from them.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{hexadecimal, write_atomic};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::file::read_limited;

const NAME: &str = "manifest.json";
const LIMIT: u64 = 1 << 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    /// Fingerprint of the base model: SHA-256 of its config and of the headers of its tensors.
    base: Option<String>,
    files: BTreeMap<String, FileFacts>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFacts {
    bytes: u64,
    sha256: String,
}

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// [`Error::Io`] or [`Error::Malformed`] for the first file that is missing, has another size or another SHA-256, or a manifest that is not one.
pub(super) fn verify(folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    let manifest: Manifest = serde_json::from_slice(&read_limited(&path, LIMIT)?)
        .map_err(|problem| Error::malformed(&path, format!("not a manifest of a checkpoint: {problem}")))?;
    if manifest.version != super::state::VERSION {
        let problem = format!("a checkpoint of version {}; this reads {}", manifest.version, super::state::VERSION);
        return Err(Error::malformed(&path, problem));
    }
    for name in super::state::FILES {
        if !manifest.files.contains_key(*name) {
            return Err(Error::malformed(&path, format!("it does not list {name}")));
        }
    }
    for (name, expected) in &manifest.files {
        // A plain name: a manifest does not lead out of its folder.
        if Path::new(name).file_name().is_none_or(|last| last != name.as_str()) {
            return Err(Error::malformed(&path, format!("`{name}` is not the name of a file")));
        }
        let path = folder.join(name);
        let found = facts(&path, expected.bytes)?;
        if found != *expected {
            let problem = if found.bytes == expected.bytes {
                "its SHA-256 is not that of its manifest".to_owned()
            } else {
                format!("{} bytes, where its manifest says {}", found.bytes, expected.bytes)
            };
            return Err(Error::malformed(&path, problem));
        }
    }
    Ok(())
}

/// Size and hash of a file, read to at most one byte more than it should have.
fn facts(path: &Path, expected: u64) -> Result<FileFacts> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut counted = Counted::default();
    let mut file = file.take(expected.saturating_add(1));
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk).map_err(Error::io(path))? {
            0 => return Ok(counted.facts()),
            read => counted.add(&chunk[..read]),
        }
    }
}

#[derive(Clone, Default)]
struct Counted {
    bytes: u64,
    hash: Sha256,
}

impl Counted {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    fn facts(self) -> FileFacts {
        FileFacts { bytes: self.bytes, sha256: hexadecimal(&self.hash.finalize()) }
    }
}

/// The files being written, each with what was asked to be written to it: what a disk made of that does not count.
type Files = Arc<Mutex<BTreeMap<PathBuf, Counted>>>;

/// A disk that notes what is written to each file.
pub(super) struct Hashing<'d> {
    disk: &'d dyn Disk,
    files: Files,
}

impl<'d> Hashing<'d> {
    pub(super) fn new(disk: &'d dyn Disk) -> Self {
        Self { disk, files: Files::default() }
    }

    /// Writes the manifest of the files in `folder` so far.
    pub(super) fn write_manifest(&self, folder: &Path, base: Option<&str>) -> Result<()> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let name = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
        let files = files.into_iter().map(|(path, counted)| (name(&path), counted.facts())).collect();
        let manifest = Manifest { version: super::state::VERSION, base: base.map(str::to_owned), files };
        let path = folder.join(NAME);
        let text = serde_json::to_string_pretty(&manifest).map_err(|p| Error::malformed(&path, p.to_string()))?;
        write_atomic(self.disk, &path, text.as_bytes())
    }
}

impl Disk for Hashing<'_> {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.create(path)?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.into(), Counted::default());
        Ok(Box::new(HashingFile { file, path: path.into(), files: self.files.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = files.remove(from) {
            files.insert(to.into(), counted);
        }
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        self.disk.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_folder(path)
    }
}

struct HashingFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    files: Files,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(counted) = self.files.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.path) {
            counted.add(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DiskFile for HashingFile {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}
