//! The `firebrick` command: parse, dispatch, run, print the chain of causes.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command = cli::Cli::parse();
    cli::signal::outlive_file_limits();
    match cli::panics::guarded(|| command.run()) {
        Ok(code) => code,
        Err(error) if cli::output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            cli::output::to_user(format_args!("error: {}", cli::output::with_causes(&error)));
            ExitCode::from(if cli::is_wrong_command_line(&error) { 2 } else { 1 })
        }
    }
}
