//! The house keeps its floors: what may import what, where `unsafe` and `cfg(feature)` may be, and how long a file may grow.

use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // The fuzzers, a package of their own, are built in a folder of theirs.
                folders.extend(Some(path).filter(|path| !path.ends_with("target")));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(ROOT).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no source under {folder}");
    found
}

/// Core's modules, lowest first; those in one row do not import each other either, except where a later column says so.
const FLOORS: [&[&str]; 10] = [
    &["error"],
    &["file", "disk"],
    &["random"],
    &["sequence"],
    &["cache"],
    &["nn"],
    &["model"],
    &["checkpoint", "text", "sample"],
    &["lora", "generation", "decode", "embed"],
    &["generate", "train"],
];

#[test]
fn core_imports_only_downwards() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut seen = 0;
    for (path, text) in sources("src/core") {
        let inside = path.strip_prefix("src/core").unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        if first == "lib" {
            continue;
        }
        let here = floor(&first).unwrap_or_else(|| panic!("{first} has no floor: add it to FLOORS"));
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for part in code.split("crate::").skip(1) {
                let module: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(there) = floor(&module) else { continue };
                seen += 1;
                let allowed = there < here || module == first;
                assert!(allowed, "{}:{}: {first} imports {module}, which is not below it", path.display(), number + 1);
            }
        }
    }
    assert!(seen > 50, "only {seen} imports were found: the test no longer reads them");
}

#[test]
fn unsafe_and_features_stay_in_the_backend_floor() {
    for folder in ["src/core", "src/cli", "models"] {
        for (path, text) in sources(folder) {
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let unsafe_code = code.contains("unsafe ") && !code.contains("unsafe_code");
                assert!(!unsafe_code, "{}:{}: unsafe above the backend floor", path.display(), number + 1);
                assert!(!code.contains("cfg(feature"), "{}:{}: cfg(feature)", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn files_stay_short_and_say_what_lives_in_them() {
    for folder in ["src", "models", "tests", "benches", "examples"] {
        for (path, text) in sources(folder) {
            assert!(text.lines().count() <= 600, "{}: split it", path.display());
            assert!(text.starts_with("//!"), "{}: open with `//!`", path.display());
        }
    }
}

#[test]
fn the_tree_has_a_line_for_each_file() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("src/README.md")).unwrap();
    let listed = |name: &str| readme.lines().filter(|line| line.contains(&format!("─ {name} "))).count();
    let mut files = std::collections::BTreeMap::new();
    for folder in ["src", "models", "benches", "examples"] {
        for (path, _) in sources(folder) {
            // Tests of a module are part of it.
            let is_test =
                path.components().any(|part| ["tests", "tests.rs"].contains(&&*part.as_os_str().to_string_lossy()));
            if !is_test {
                *files.entry(path.file_name().unwrap().to_string_lossy().into_owned()).or_insert(0) += 1;
            }
        }
    }
    for (name, count) in files {
        assert!(listed(&name) >= count, "the tree of src/README.md has {} of {count} lines for {name}", listed(&name));
    }
}
