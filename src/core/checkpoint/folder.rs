//! The files of a checkpoint folder: which names may be opened, what a link may point to, how much is read, and what
//! `model.safetensors.index.json` says. The tensors inside the files are in `safetensors.rs`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::header::UniqueMap;
use super::safetensors::{has_pickle_name, refuse_pickle_name};
use crate::error::{Error, Result};
use crate::file::read_limited;

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

/// The file `name` of `folder`, if it is there, as a path that leads nowhere else.
///
/// # Errors
/// [`Error::Malformed`] when `name` is not a plain file name, when a link leads out of the folder (for a snapshot in a Hugging
/// Face cache: out of its `models--…` folder and the `blobs` that repos share, because there files are links to blobs), or when
/// it is not a file.
pub(super) fn resolve(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    if let Err(problem) = plain_file_name(name) {
        return Err(Error::malformed(folder, format!("`{}` {problem}", name.escape_debug())));
    }
    let path = folder.join(name);
    let real = match path.canonicalize() {
        Ok(real) => real,
        // A link to nothing is there, and broken; only what is not there at all is `None`.
        Err(error) if error.kind() == ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
        Err(error) => return Err(Error::Io { path, source: error }),
    };
    let home = folder.canonicalize().map_err(Error::io(folder))?;
    let repository = repository(&home);
    // Since huggingface_hub 2 a blob may be a link itself, to where all repos of the cache keep what is equal.
    let shared = repository.parent().filter(|_| repository != home).map(|cache| cache.join("blobs"));
    if !real.starts_with(repository) && !shared.is_some_and(|shared| real.starts_with(shared)) {
        return Err(Error::malformed(&path, format!("this link leads out of the folder, to {}", real.display())));
    }
    if !real.metadata().map_err(Error::io(&path))?.is_file() {
        return Err(Error::malformed(&path, "not a regular file"));
    }
    Ok(Some(path))
}

/// The folder that links may not leave: `models--org--name` for `models--org--name/snapshots/revision`, else `home` itself.
fn repository(home: &Path) -> &Path {
    let is_named =
        |folder: &Path, test: fn(&str) -> bool| folder.file_name().and_then(|name| name.to_str()).is_some_and(test);
    for snapshots in home.ancestors().skip(1) {
        if let Some(repository) = snapshots.parent()
            && is_named(snapshots, |name| name == "snapshots")
            && is_named(repository, |name| name.starts_with("models--"))
        {
            return repository;
        }
    }
    home
}

/// Whether `name` is a file's name and nothing more, on every system: the same folder has to mean the same everywhere.
fn plain_file_name(name: &str) -> std::result::Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Err("is not a file name");
    }
    if name.len() > 255 {
        return Err("is too long for a file name");
    }
    if name.contains(['/', '\\']) {
        return Err("is a path, not a plain file name");
    }
    if name.contains(|c: char| c.is_control() || "<>:\"|?*".contains(c)) {
        return Err("has characters that file names cannot have");
    }
    if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err("begins or ends with a character that some systems drop");
    }
    // Windows opens the device whatever ending follows: `NUL.safetensors` is NUL.
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_uppercase();
    let numbered = |prefix| {
        let rest: Option<&str> = stem.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            matches!(rest, "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³")
        })
    };
    if ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&stem.as_str()) || numbered("COM") || numbered("LPT")
    {
        return Err("is a device on Windows");
    }
    Ok(())
}

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

    /// Names that no weight_map may have.
    const HOSTILE: [&str; 42] = [
        "",
        ".",
        "..",
        "../model.safetensors",
        "../../etc/passwd",
        "/etc/passwd",
        "//host/share",
        "a/b.safetensors",
        "./model.safetensors",
        "a/../../b",
        "..\\model.safetensors",
        "C:\\weights",
        "C:weights",
        "\\\\host\\share",
        "a\\b",
        "model.safetensors\0",
        "\0",
        "a\0b",
        "a\nb",
        "a\tb",
        "\u{7f}",
        "CON",
        "con.safetensors",
        "NUL",
        "nul.txt",
        "PRN",
        "AUX.safetensors",
        "COM1",
        "com9.safetensors",
        "LPT1",
        "lpt3.bin",
        "COM¹",
        "CONIN$",
        "NUL .txt",
        "model.safetensors.",
        "model.safetensors ",
        " model.safetensors",
        "model?.safetensors",
        "a*b",
        "a|b",
        "<a>",
        "file:stream",
    ];

    #[test]
    fn hostile_names_are_refused_and_plain_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in HOSTILE {
            let error = resolve(folder.path(), name).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{name:?}: {error}");
        }
        assert!(plain_file_name(&"a".repeat(256)).is_err());
        for name in
            ["model.safetensors", "model-00001-of-00002.safetensors", "…weights", "CONFIG.json", "COM10", "a b", ".x"]
        {
            assert!(resolve(folder.path(), name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn links_may_not_leave_the_folder_except_inside_a_hub_repository() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in
            ["plain", "cache/models--org--name/blobs", "cache/models--org--name/snapshots/abc", "models--x/plain"]
        {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("secret"), "x").unwrap();
        std::fs::write(at("cache/models--org--name/blobs/123"), "x").unwrap();
        std::fs::write(at("plain/inside"), "x").unwrap();
        std::fs::create_dir_all(at("cache/blobs/45")).unwrap();
        std::fs::write(at("cache/blobs/45/456"), "x").unwrap();
        std::fs::write(at("models--x/beside"), "x").unwrap();

        let snapshot = at("cache/models--org--name/snapshots/abc");
        symlink("../../blobs/123", snapshot.join("blob")).unwrap();
        symlink("../../blobs/45/456", at("cache/models--org--name/blobs/456")).unwrap();
        symlink("../../blobs/456", snapshot.join("shared")).unwrap();
        symlink("../../../../secret", snapshot.join("out")).unwrap();
        symlink("../secret", at("plain/out")).unwrap();
        symlink("inside", at("plain/link")).unwrap();
        symlink("nowhere", at("plain/broken")).unwrap();
        symlink(".", at("plain/itself")).unwrap();
        symlink("../beside", at("models--x/plain/out")).unwrap();
        symlink("abc", at("cache/models--org--name/snapshots/main")).unwrap();

        assert!(resolve(&snapshot, "blob").unwrap().is_some());
        assert!(resolve(&snapshot, "shared").unwrap().is_some());
        assert!(resolve(&at("cache/models--org--name/snapshots/main"), "blob").unwrap().is_some());
        assert!(resolve(&at("plain"), "link").unwrap().is_some());
        for (folder, name) in [(snapshot, "out"), (at("plain"), "out"), (at("models--x/plain"), "out")] {
            let error = resolve(&folder, name).unwrap_err().to_string();
            assert!(error.contains("leads out of the folder"), "{error}");
        }
        assert!(matches!(resolve(&at("plain"), "broken"), Err(Error::Io { .. })));
        assert!(resolve(&at("plain"), "itself").unwrap_err().to_string().contains("not a regular file"));
    }

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
