//! Builds the machine and the shaders with clang, and talks to it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::translate::translate;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/metal");

/// A folder with the machine in it.
pub(crate) struct Workbench {
    folder: TempDir,
    files: AtomicUsize,
}

/// A shader that was compiled.
pub(crate) struct Program<'w> {
    machine: PathBuf,
    shader: PathBuf,
    pub(crate) functions: Vec<String>,
    _folder: &'w Workbench,
}

/// What is bound to one index.
#[derive(Clone)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    writable: bool,
}

impl Buffer {
    /// Only read.
    pub(crate) fn input(bytes: Vec<u8>) -> Self {
        Self { bytes, writable: false }
    }

    /// Written; so many bytes that are NaN in any dtype until then.
    pub(crate) fn output(bytes: usize) -> Self {
        Self { bytes: vec![0xff; bytes], writable: true }
    }
}

/// One launch.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) function: String,
    pub(crate) grid: [u32; 3],
    pub(crate) threadgroup: [u32; 3],
    pub(crate) buffers: Vec<Buffer>,
}

/// Attributes are Metal's, and generated code names more than it uses.
const LENIENT: [&str; 4] =
    ["-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-unused", "-Wno-duplicate-decl-specifier"];

fn clang() -> Command {
    let mut clang = Command::new("clang++-19");
    clang.args(["-std=c++17", "-O1", "-Wall", "-Werror", "-I", HERE]);
    clang
}

fn compiled(mut command: Command) -> Result<(), String> {
    let output = command.output().expect("clang++-19 is installed");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

impl Workbench {
    /// Builds the machine.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = clang();
        command
            .args(["-O2", "-rdynamic", "-o"])
            .arg(folder.path().join("machine"))
            .arg(Path::new(HERE).join("machine.cpp"));
        compiled(command).unwrap_or_else(|error| panic!("{error}"));
        Self { folder, files: AtomicUsize::new(0) }
    }

    /// Builds a shader from its Metal source, after checking that no pointer in it leaves its address space.
    ///
    /// # Errors
    /// With what clang says.
    pub(crate) fn compile(&self, source: &str) -> Result<Program<'_>, String> {
        let text = self.file(".cpp");
        std::fs::write(&text, translate(source).spaces).expect("a file in a temporary folder");
        let mut command = clang();
        command.args(LENIENT).arg("-fsyntax-only").arg(&text);
        compiled(command)?;
        self.compile_generated(source)
    }

    /// Builds a shader without that check: generated ones copy structs out of device memory, which Metal allows and clang does not.
    ///
    /// # Errors
    /// With what clang says.
    pub(crate) fn compile_generated(&self, source: &str) -> Result<Program<'_>, String> {
        let translation = translate(source);
        let (text, shader) = (self.file(".cpp"), self.file(".so"));
        std::fs::write(&text, translation.program).expect("a file in a temporary folder");
        let mut command = clang();
        command.args(LENIENT).args(["-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-vectorize"]);
        // Some level has to be named, `func` calls nothing by itself.
        command.args(["-fno-slp-vectorize", "-fno-unroll-loops", "-fsanitize-coverage=func,trace-loads,trace-stores"]);
        command.arg("-o").arg(&shader).arg(&text);
        compiled(command)?;
        Ok(Program {
            machine: self.folder.path().join("machine"),
            shader,
            functions: translation.functions,
            _folder: self,
        })
    }

    /// A name that no other file has.
    fn file(&self, ending: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{number}{ending}"))
    }
}

impl Program<'_> {
    /// The outputs of each launch, or what went wrong in it.
    ///
    /// # Panics
    /// If the machine itself fails.
    pub(crate) fn run(&self, runs: &[Run]) -> Vec<Result<Vec<Vec<u8>>, String>> {
        let mut request = Vec::new();
        let number = |request: &mut Vec<u8>, value: usize| {
            request.extend(u32::try_from(value).expect("32 bits are enough").to_le_bytes());
        };
        for run in runs {
            number(&mut request, run.function.len());
            request.extend(run.function.as_bytes());
            run.grid.iter().chain(&run.threadgroup).for_each(|&size| request.extend(size.to_le_bytes()));
            number(&mut request, run.buffers.len());
            for buffer in &run.buffers {
                number(&mut request, usize::from(buffer.writable));
                request.extend((buffer.bytes.len() as u64).to_le_bytes());
                request.extend(&buffer.bytes);
            }
        }
        let mut machine = Command::new(&self.machine);
        machine.arg(&self.shader).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut machine = machine.spawn().expect("the machine starts");
        let mut stdin = machine.stdin.take().expect("it reads");
        let writer = std::thread::spawn(move || stdin.write_all(&request));
        let output = machine.wait_with_output().expect("the machine ends");
        assert!(output.status.success(), "the machine: {}", output.status);
        writer.join().expect("a thread that only writes").expect("the machine reads everything");
        let mut answer = output.stdout.as_slice();
        let mut take = |bytes: usize| {
            let (taken, rest) = answer.split_at(bytes);
            answer = rest;
            taken.to_vec()
        };
        runs.iter()
            .map(|run| {
                let length = u32::from_le_bytes(take(4).try_into().expect("four bytes"));
                let fault = String::from_utf8(take(length as usize)).expect("text");
                let outputs =
                    run.buffers.iter().filter(|buffer| buffer.writable).map(|buffer| take(buffer.bytes.len()));
                let outputs = outputs.collect();
                if fault.is_empty() { Ok(outputs) } else { Err(fault) }
            })
            .collect()
    }
}
