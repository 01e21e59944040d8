//! The files of a checkpoint folder: how much is read of each, and what `model.safetensors.index.json` says. Which names may be opened
//! is in `file/names.rs`, the tensors inside the files in `safetensors.rs`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::header::UniqueMap;
use super::safetensors::{has_pickle_name, refuse_pickle_name};
use crate::error::{Error, Result};
use crate::file::{read_limited, resolve};

/// The file with the architecture.
pub(super) const CONFIG: &str = "config.json";
/// The weights, when they are one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// The list of shards, when they are several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Bytes that `config.json` may have.
const MAX_CONFIG_BYTES: u64 = 1_000_000;
/// Bytes that the index may have: a hundred for each of 100,000 tensors, and room.
const MAX_INDEX_BYTES: u64 = 16_000_000;
/// Files that a checkpoint may be split into.
const MAX_SHARDS: usize = 1_000;

/// The whole text file at `path`, refused when it has more than `limit` bytes.
fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_limited(path, limit)?).map_err(|_| Error::malformed(path, "not UTF-8"))
}

/// `config.json`, which has to be an object.
pub(super) fn read_config(folder: &Path) -> Result<serde_json::Value> {
    let path = folder.join(CONFIG);
    if resolve(folder, CONFIG)?.is_none() {
        let looked_for =
            format!("no {CONFIG} here; a checkpoint folder has {CONFIG} and {SINGLE} (or {INDEX} with its shards)");
        return Err(Error::Io { path, source: std::io::Error::new(ErrorKind::NotFound, looked_for) });
    }
    let text = read_text(&path, MAX_CONFIG_BYTES)?;
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| Error::malformed(&path, format!("not JSON: {error}")))?;
    if !config.is_object() {
        return Err(Error::malformed(&path, "not a JSON object"));
    }
    Ok(config)
}

/// Where the weights lie.
pub(super) struct Weights {
    /// The files, each once, sorted.
    pub files: Vec<PathBuf>,
    /// Tensor name → position in `files`; absent when there is no index.
    pub index: Option<BTreeMap<String, usize>>,
}

/// Finds the weights of `folder`: one file before shards, as transformers does.
pub(super) fn find_weights(folder: &Path) -> Result<Weights> {
    if let Some(path) = resolve(folder, SINGLE)? {
        return Ok(Weights { files: vec![path], index: None });
    }
    if let Some(path) = resolve(folder, INDEX)? {
        return read_index(folder, &path);
    }
    if let Some(path) = first_pickle(folder)? {
        return Err(Error::Pickle { path });
    }
    Err(Error::malformed(folder, format!("no weights here: neither {SINGLE} nor {INDEX}")))
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap,
}

fn read_index(folder: &Path, path: &Path) -> Result<Weights> {
    let text = read_text(path, MAX_INDEX_BYTES)?;
    let RawIndex { weight_map: UniqueMap(weight_map) } = serde_json::from_str(&text)
        .map_err(|error| Error::malformed(path, format!("not an index of shards: {error}")))?;
    let mut places: BTreeMap<&str, usize> = weight_map.values().map(|name| (name.as_str(), 0)).collect();
    if places.is_empty() {
        return Err(Error::malformed(path, "the weight_map is empty"));
    }
    if places.len() > MAX_SHARDS {
        return Err(Error::malformed(path, format!("{} shards; {MAX_SHARDS} are allowed", places.len())));
    }
    let mut files = Vec::with_capacity(places.len());
    let mut absent = Vec::new();
    for (name, place) in &mut places {
        match resolve(folder, name)? {
            Some(file) => {
                refuse_pickle_name(&file)?;
                *place = files.len();
                files.push(file);
            }
            None => absent.push(*name),
        }
    }
    if !absent.is_empty() {
        let problem = format!("the weight_map names files that are not here: {}", absent.join(", "));
        return Err(Error::malformed(path, problem));
    }
    let index = weight_map.iter().map(|(tensor, file)| (tensor.clone(), places[file.as_str()])).collect();
    Ok(Weights { files, index: Some(index) })
}

/// The first file of `folder`, by name, that is a pickle by convention.
fn first_pickle(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found: Option<PathBuf> = None;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if has_pickle_name(&path) && found.as_ref().is_none_or(|first| path < *first) {
            found = Some(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_its_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(read_text(&path, 4).unwrap_err().to_string().contains("more than the 4 bytes"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_text(&path, 5).unwrap_err().to_string().contains("not UTF-8"));
    }
}
