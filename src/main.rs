//! The `firebrick` command: parse, dispatch, run, print the chain of causes.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    match command.run() {
        Ok(code) => code,
        Err(error) if cli::output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", cli::output::with_causes(&error));
            // A value out of its bounds is the command line's fault.
            let wrong = matches!(error.downcast_ref(), Some(firebrick::Error::OutOfBounds { .. }));
            ExitCode::from(if wrong { 2 } else { 1 })
        }
    }
}
