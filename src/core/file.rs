//! Small files of strangers, read within a bound. Weights are read by `checkpoint.rs`, rows of data by `train/data.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

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

/// [`read_limited`], with `None` for a file that is not there.
pub(crate) fn read_limited_if_present(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match read_limited(path, limit) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
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

    /// What messages call the file `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if self.inside.is_some() { self.place.clone() } else { self.place.join(name) }
    }

    /// The bytes of the file `name`, which has to be there.
    ///
    /// # Errors
    /// As [`read_limited`], with the system's own words for a file that is not there.
    pub(crate) fn need(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        match &self.inside {
            Some(files) => {
                files.get(name).cloned().ok_or_else(|| Error::malformed(&self.place, format!("it holds no {name}")))
            }
            None => read_limited(&self.place.join(name), limit),
        }
    }

    /// The bytes of the file `name`, if it is there.
    ///
    /// # Errors
    /// As [`read_limited`].
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match &self.inside {
            // As large as the file that it came with, which has a limit of its own.
            Some(files) => Ok(files.get(name).cloned()),
            None => read_limited_if_present(&self.place.join(name), limit),
        }
    }
}
