//! Small files of strangers, read within a bound. Weights are read by `checkpoint.rs`, rows of data by `train/data.rs`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

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
