//! Files of strangers: small ones, read within a bound; names and links that lead nowhere else; ranges of large ones. What is in them is
//! the business of `checkpoint.rs`, `text.rs` and `lora.rs`; rows of data are read by `train/data.rs`.

mod names;
mod ranges;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

pub(crate) use names::{confined, resolve};
pub(crate) use ranges::RangeFile;

use crate::error::{Error, Result};

/// The bytes of the file at `path`, refused when there are more than `limit`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is too large.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file which grows or lies about its length is held to the limit too.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        let problem = format!("larger than allowed: more than the {limit} bytes that such a file may have");
        return Err(Error::malformed(path, problem));
    }
    Ok(bytes)
}

/// [`read_limited`] of a path below `folder`, with `None` for a file that is not there.
///
/// # Errors
/// As there, and [`Error::Malformed`] for a link that leads out of the folder and for what is not a file.
pub(crate) fn read_confined(folder: &Path, path: PathBuf, limit: u64) -> Result<Option<Vec<u8>>> {
    confined(folder, path)?.map(|path| read_limited(&path, limit)).transpose()
}

/// [`read_confined`] of the file `name`, which has to be there.
///
/// # Errors
/// As there, with the system's own words for a file that is not there.
pub(crate) fn need(folder: &Path, name: &str, limit: u64) -> Result<Vec<u8>> {
    let path = folder.join(name);
    match read_confined(folder, path.clone(), limit)? {
        Some(bytes) => Ok(bytes),
        None => Err(Error::Io { path, source: ErrorKind::NotFound.into() }),
    }
}

/// The small files of a model, in its folder or inside the one file that it is.
#[derive(Clone, Debug)]
pub struct Files {
    place: PathBuf,
    inside: Option<BTreeMap<&'static str, Vec<u8>>>,
}

impl Files {
    /// Those of a folder.
    pub fn folder(folder: &Path) -> Self {
        Self { place: folder.to_owned(), inside: None }
    }

    /// Those that the file at `place` holds.
    pub(crate) fn inside(place: &Path, files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        Self { place: place.to_owned(), inside: Some(files) }
    }

    /// The folder, or the file.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The files with their names, where one file holds them all.
    pub fn held(&self) -> Option<impl Iterator<Item = (&'static str, &[u8])>> {
        self.inside.as_ref().map(|files| files.iter().map(|(name, bytes)| (*name, &bytes[..])))
    }

    /// What messages call the file `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if self.inside.is_some() { self.place.clone() } else { self.place.join(name) }
    }

    /// The bytes of the file `name`, which has to be there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is too large, no file, or a link that leads out of the folder.
    pub(crate) fn need(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        match &self.inside {
            Some(files) => {
                files.get(name).cloned().ok_or_else(|| Error::malformed(&self.place, format!("it holds no {name}")))
            }
            None => need(&self.place, name, limit),
        }
    }

    /// The bytes of the file `name`, if it is there.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match &self.inside {
            // As large as the file that it came with, which has a limit of its own.
            Some(files) => Ok(files.get(name).cloned()),
            None => read_confined(&self.place, self.place.join(name), limit),
        }
    }
}
