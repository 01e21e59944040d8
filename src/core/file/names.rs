//! Names that a stranger gives to files, and links that a stranger made: what is opened is in the folder, and is a file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file `name` of `folder`, if it is there, as a path that leads nowhere else.
///
/// # Errors
/// [`Error::Malformed`] when `name` is not a plain file name, when a link leads out of the folder (for a snapshot in a Hugging
/// Face cache: out of its `models--…` folder and the `blobs` that repos share, because there files are links to blobs), or when
/// it is not a file.
pub(crate) fn resolve(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    match plain_file_name(name) {
        Ok(()) => confined(folder, folder.join(name)),
        Err(problem) => Err(Error::malformed(folder, format!("`{}` {problem}", name.escape_debug()))),
    }
}

/// [`resolve`] of a path below `folder` that no stranger chose.
///
/// # Errors
/// As there, for links and what is not a file.
pub(crate) fn confined(folder: &Path, path: PathBuf) -> Result<Option<PathBuf>> {
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
}
