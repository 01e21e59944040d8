//! The parser alone: whatever the words are, there is an answer.

#[path = "../../tests/fuzz/mutations.rs"]
mod mutations;
#[path = "../../tests/fuzz/seeds.rs"]
#[allow(dead_code)] // The files.
mod seeds;

use clap::{CommandFactory, Parser};

use super::Cli;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// The smoke of `tests/fuzz/targets/arguments.rs`; those of the files are in `tests/fuzz.rs`.
#[test]
fn no_words_make_the_parser_panic() {
    let parse = |bytes: &[u8]| {
        let line = String::from_utf8_lossy(bytes);
        // A refusal writes its message, which reads the words again.
        Cli::try_parse_from(["firebrick"].into_iter().chain(line.split('\n')))
            .map_err(|refused| refused.to_string())
            .is_ok()
    };
    let seeds = seeds::arguments();
    let refused: Vec<_> = seeds.iter().filter(|seed| !parse(seed)).map(|seed| String::from_utf8_lossy(seed)).collect();
    assert_eq!(refused, ["bench\nreport\n--help"], "the seeds");
    const EXECUTIONS: usize = 2_000;
    let accepted = mutations::smoke("arguments", &seeds, EXECUTIONS, parse);
    assert!(accepted > 0 && accepted < EXECUTIONS, "{accepted} of {EXECUTIONS}");
}
