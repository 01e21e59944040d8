//! libFuzzer on the command line's parser: the words of a line, one after each line end. Nothing is run.
#![no_main]
#![recursion_limit = "256"]

#[path = "../../../src/cli/mod.rs"]
#[allow(dead_code)]
mod cli;

use clap::Parser;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let words = data.split(|byte| *byte == b'\n').map(std::os::unix::ffi::OsStrExt::from_bytes);
    let words: Vec<&std::ffi::OsStr> = words.collect();
    // A refusal writes its message, which reads the arguments again.
    if let Err(error) = cli::Cli::try_parse_from([std::ffi::OsStr::new("firebrick")].into_iter().chain(words)) {
        drop(error.to_string());
    }
});
