//! The smoke of the fuzzers in `tests/fuzz`: the same bodies on mutations drawn by a fixed seed. That of the command line is in `src/cli`.

#[path = "fuzz/bodies.rs"]
mod bodies;
#[path = "fuzz/mutations.rs"]
mod mutations;
#[path = "fuzz/seeds.rs"]
#[allow(dead_code)] // The command lines.
mod seeds;

use mutations::smoke;

/// Mutations of each.
const EXECUTIONS: usize = 2_000;

/// Every seed is accepted, or all but so many; of the mutations some are and some are not: otherwise the body tests nothing.
fn fuzz(name: &str, seeds: &[Vec<u8>], refused_seeds: usize, body: fn(&[u8]) -> bool) {
    let refused = seeds.iter().enumerate().filter(|(_, seed)| !body(seed)).map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(refused.len(), refused_seeds, "{name}: seeds {refused:?} were refused");
    let accepted = smoke(name, seeds, EXECUTIONS, body);
    assert!(accepted > 0 && accepted < EXECUTIONS, "{name}: {accepted} of {EXECUTIONS}");
}

#[test]
fn checkpoints() {
    // One lacks tensors.
    fuzz("checkpoint", &seeds::checkpoint(), 1, bodies::checkpoint);
}

#[test]
fn gguf_files() {
    // One is blocks and no model.
    fuzz("gguf", &seeds::gguf(), 1, bodies::gguf);
}

#[test]
fn adapters() {
    fuzz("adapter", &seeds::adapter(), 0, bodies::adapter);
}

#[test]
fn configs() {
    fuzz("config", &seeds::config(), 0, bodies::config);
}

#[test]
fn tokenizers() {
    fuzz("tokenizer", &seeds::tokenizer(), 0, bodies::tokenizer);
}

#[test]
fn templates() {
    fuzz("template", &seeds::template(), 0, bodies::template);
}

#[test]
fn datasets() {
    // One has a broken row and stops there.
    fuzz("dataset", &seeds::dataset(), 1, bodies::dataset);
}
