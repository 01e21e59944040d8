//! Running the binary, and the folders the tests run it on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::repository;

/// A finished run.
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// The binary, not started yet.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firebrick"));
    // No test depends on what the machine has cached, or asks a hub that is not its own.
    command.env("HF_HUB_OFFLINE", "1").env("FIREBRICK_CACHE", "/nonexistent");
    command
}

/// Runs with words separated by spaces, then with `more` as they are.
pub fn run(words: &str, more: &[&str]) -> Ran {
    run_on("", words, more)
}

/// As [`run`], with something on stdin.
pub fn run_on(stdin: impl AsRef<[u8]>, words: &str, more: &[&str]) -> Ran {
    let mut child = binary()
        .args(words.split_whitespace())
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_ref());
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().expect("ended by a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}", self.err);
        self
    }

    /// The only line of stdout, as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1);
        lines.remove(0)
    }

    /// Every line of stdout, as JSON.
    #[track_caller]
    pub fn lines(self) -> Vec<Value> {
        let ran = self.ok();
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
    }

    /// The failure's one line; nothing was on stdout.
    #[track_caller]
    pub fn error(self) -> String {
        let error = self.listing();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    /// The failure's lines, which may list tensors.
    #[track_caller]
    pub fn listing(self) -> String {
        assert_eq!(self.status, 1, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        let start = if self.err.starts_with("error: ") { 0 } else { self.err.find("\nerror: ").unwrap() + 1 };
        self.err[start..].to_owned()
    }

    /// What was wrong with the command line.
    #[track_caller]
    pub fn misuse(self) -> String {
        assert_eq!(self.status, 2, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert!(self.err.starts_with("error: "), "{}", self.err);
        self.err
    }
}

/// A golden model's folder.
pub fn golden(name: &str) -> String {
    text(&repository("tests/goldens").join(name))
}

/// The model of the examples.
pub fn rust_tiny() -> String {
    text(&repository("examples/tiny/rust-tiny"))
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A folder with `train.jsonl` and `valid.jsonl`: the first rows of the examples'.
pub fn data(train: usize, valid: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, rows) in [("train.jsonl", train), ("valid.jsonl", valid)] {
        fs::write(folder.path().join(name), rows_of(name, rows)).unwrap();
    }
    folder
}

/// The first rows of an example's file.
pub fn rows_of(name: &str, rows: usize) -> String {
    let all = fs::read_to_string(repository("examples/tiny").join(name)).unwrap();
    all.lines().take(rows).flat_map(|row| [row, "\n"]).collect()
}

/// A copy of a model folder, to be changed.
pub fn copy(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// Changes one key of a folder's `config.json`.
pub fn set_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config = json_of(&path);
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

pub fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The keys of a JSON object, in their order.
pub fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Token ids as the command line takes them.
pub fn ids(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// A folder inside a temporary one that does not exist yet.
pub fn inside(folder: &TempDir, name: &str) -> (String, PathBuf) {
    let path = folder.path().join(name);
    (text(&path), path)
}

/// The lines of a training run's `metrics.jsonl`.
pub fn metrics(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
