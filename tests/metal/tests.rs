//! The tool that executes Metal shaders on the CPU, and what it is used for: every hand-written shader, in every dtype and in rows of many
//! lengths, against f64; and the proof that it notices when one is wrong.
//!
//! It proves numerics, barriers, bounds, bindings and the launch that a Mac gets from the same Rust; not speed, and not Apple's compiler.

mod cases;
mod machine;
mod mutations;
pub(crate) mod reference;
mod translate;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cases::{Case, DTYPES, cases, wrong};
#[cfg(feature = "metal-source")]
pub(crate) use cases::{Dtype, tables};
pub(crate) use machine::{Buffer, Run, Workbench};

use crate::targets::shader;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Every file under `folder` whose name ends like that.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(REPOSITORY).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

/// Runs all cases of an op on this text of its shader; says what went wrong first.
fn check(workbench: &Workbench, op: &str, source: &str) -> Result<BTreeSet<String>, String> {
    let program = workbench.compile(source)?;
    let mut functions = BTreeSet::new();
    for dtype in DTYPES {
        let cases: Vec<Case> = cases(op, dtype);
        assert!(!cases.is_empty(), "{op} has no case in {dtype:?}");
        let runs: Vec<Run> = cases.iter().map(|case| case.run(dtype)).collect();
        for ((case, run), outcome) in cases.iter().zip(&runs).zip(program.run(&runs)) {
            let outputs = outcome.map_err(|fault| format!("{}, {}: {fault}", run.function, case.what))?;
            if let Some(difference) = wrong(case, dtype, &outputs) {
                return Err(format!("{}, {}: {difference}", run.function, case.what));
            }
            functions.insert(run.function.clone());
        }
    }
    let missing: Vec<_> = program.functions.iter().filter(|function| !functions.contains(*function)).collect();
    assert!(missing.is_empty(), "no case runs {missing:?}");
    Ok(functions)
}

#[test]
fn every_shader_file_is_in_the_registry() {
    let ops: BTreeSet<String> = shader::SOURCES.iter().map(|(op, _)| (*op).to_owned()).collect();
    let files = files("src/backend/ops", ".metal");
    let names = files.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), ops);
    assert_eq!(files.len(), shader::SOURCES.len());
    let mutated: BTreeSet<String> = mutations::MUTATIONS.iter().map(|mutation| mutation.op.to_owned()).collect();
    assert_eq!(mutated, ops, "every op has a mutation that must be caught");
}

#[test]
#[ignore = "needs clang-19"]
fn every_shader_agrees_with_the_oracle() {
    let workbench = Workbench::new();
    for (op, _) in shader::SOURCES {
        let functions = check(&workbench, op, &shader::source(op)).unwrap_or_else(|wrong| panic!("{wrong}"));
        println!("{op}: {functions:?}");
    }
}

#[test]
#[ignore = "needs clang-19"]
fn every_mutation_is_caught() {
    let workbench = Workbench::new();
    let mut unnoticed = Vec::new();
    for mutation in mutations::MUTATIONS {
        let source = mutation.apply(&shader::source(mutation.op));
        match check(&workbench, mutation.op, &source) {
            Err(wrong) if wrong.contains(mutation.caught_by) => {
                println!("{}: `{}` for `{}`: {wrong}", mutation.op, mutation.to, mutation.from);
            }
            otherwise => unnoticed.push(format!("{mutation:?}: {otherwise:?}")),
        }
    }
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}

#[test]
#[ignore = "needs clang-19"]
fn the_machine_notices_what_it_claims_to() {
    let workbench = Workbench::new();
    let probe = |body: &str| {
        let source = format!(
            "#include <metal_stdlib>\nusing namespace metal;\nkernel void probe(device const float* x [[buffer(0)]], \
             device float* y [[buffer(1)]], uint at [[thread_position_in_threadgroup]], uint row [[threadgroup_position_in_grid]]) {{\n\
             threadgroup float cells[64];\n{body}\n}}\n"
        );
        let buffers = vec![Buffer::input(vec![0; 256]), Buffer::output(512)];
        let run = Run { function: "probe".to_owned(), grid: [2, 1, 1], threadgroup: [64, 1, 1], buffers };
        workbench.compile(&source).unwrap().run(&[run]).remove(0).err().unwrap_or_default()
    };
    const WAIT: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";
    let exchange = |wait: &str| format!("cells[at] = x[at];\n{wait}\ny[row * 64 + at] = cells[at / 2];");
    assert_eq!(probe(&exchange(WAIT)), "");
    for (body, fault) in [
        (exchange(""), "race: a threadgroup cell"),
        // This barrier is for the memory of the device.
        (exchange("threadgroup_barrier(mem_flags::mem_device);"), "race: a threadgroup cell"),
        (exchange(&format!("{WAIT}\nif (at < 40) {{ {WAIT} }}")), "a barrier that not every thread"),
        ("y[row * 64 + at] = cells[at];".to_owned(), "never written"),
        ("cells[at + 1] = x[at];".to_owned(), "behind a threadgroup array"),
        ("y[at] = x[at];".to_owned(), "race: two threads write an element of a buffer"),
        (
            "y[row * 64 + at] = x[at];\nif (at == 0) { y[row * 64] = y[row * 64 + 1]; }".to_owned(),
            "race: an element of a buffer",
        ),
        ("y[row * 64 + at] = x[at + 1];".to_owned(), "load outside every buffer"),
        ("y[row * 64 + at + 1] = x[at];".to_owned(), "store outside every buffer"),
        ("device float* z = (device float*)x;\nz[at] = 1.0f;".to_owned(), "read-only"),
        ("if (at % 2 == 0) { y[row * 64 + at] = simd_sum(x[at]); }".to_owned(), "a simdgroup operation"),
    ] {
        let found = probe(&body);
        assert!(found.contains(fault), "{body}\n{found:?} instead of {fault:?}");
    }
    let source = "#include <metal_stdlib>\nkernel void probe(device float* y [[buffer(0)]]) { threadgroup float* z = y; z[0] = 1.0f; }\n";
    let refused = workbench.compile(source).err().unwrap_or_default();
    assert!(refused.contains("with an lvalue of type 'device float *'"), "{refused:?}");
}
