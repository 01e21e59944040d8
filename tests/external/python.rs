//! Running the scripts of `tests/python` with the interpreter that `FIREBRICK_PYTHON` names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;

use crate::support::repository;

/// The path in an environment variable that `.ci/run` exports.
pub fn needed(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{variable} is not set: run .ci/run, or set it as that does"));
    assert!(path.exists(), "{variable} = {} is not there", path.display());
    path
}

/// Runs the interpreter to its end; what it prints is shown where it fails.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Vec<u8> {
    let mut command = Command::new(needed("FIREBRICK_PYTHON"));
    let output = command.args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{error}", output.status);
    output.stdout
}

/// Runs a script of `tests/python`.
pub fn script<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) {
    let path = repository("tests/python").join(name);
    let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
    run([path.into_os_string()].into_iter().chain(arguments));
}

/// The `logits` that a script wrote for one row of ids, `[1, seq, vocab]`.
pub fn logits(file: &Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("logits").unwrap();
    assert_eq!((view.dtype(), view.shape()[0]), (safetensors::Dtype::F32, 1));
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
