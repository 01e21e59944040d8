//! `firebrick chat`: a conversation in the terminal.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};
use firebrick::prelude::*;
use rustyline::error::ReadlineError;

use super::Cli;
use super::options::{Everywhere, ModelOptions};
use super::output;
use super::sampling::SamplingOptions;
use super::signal::Signals;

/// Talk with a model in the terminal.
#[derive(Args, Clone, Debug)]
pub struct Chat {
    #[command(flatten)]
    model: ModelOptions,
    /// The system prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
}

impl Chat {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        if everywhere.json {
            let problem = "chat is for people and has no --json; use `generate --chat --json`";
            Cli::command().error(ErrorKind::ArgumentConflict, problem).exit();
        }
        everywhere.clone().dispatch(Work { verb: self, everywhere })
    }
}

struct Work {
    verb: Chat,
    everywhere: Everywhere,
}

impl Job for Work {
    type Output = Result<ExitCode>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { verb, everywhere } = self;
        let model = verb.model.load::<B::InnerBackend>(&everywhere, &device)?;
        let options = verb.sampling.over(&model);
        let start = || -> Vec<Message> { verb.system.iter().map(Message::system).collect() };
        let (mut messages, mut session) = (start(), None);
        // On a terminal Ctrl-C cuts an answer short; in a script it ends the program, as everywhere.
        let signals = std::io::stdin().is_terminal().then(Signals::listen_to_interrupts).transpose()?;
        everywhere.note("/reset begins anew, /quit or Ctrl-D ends");
        let mut editor = rustyline::DefaultEditor::new()?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
                Err(ReadlineError::Interrupted) => return Ok(ExitCode::from(130)),
                Err(error) => return Err(error).context("reading from stdin"),
            };
            match line.trim() {
                "" => continue,
                "/quit" => return Ok(ExitCode::SUCCESS),
                "/reset" => {
                    (messages, session) = (start(), None);
                    continue;
                }
                text => {
                    editor.add_history_entry(text)?;
                    messages.push(Message::user(text));
                }
            }
            let prompt = model.encode_chat(&messages)?;
            let mut generation = match model.generate_from(&prompt, &options, session.take()) {
                Ok(generation) => generation,
                Err(error) => {
                    // The turn did not happen: the conversation so far is still good.
                    output::to_user(format_args!("error: {error}"));
                    messages.pop();
                    continue;
                }
            };
            let mut answer = String::new();
            for piece in &mut generation {
                let piece = piece?;
                output::text(&piece.text)?;
                answer += &piece.text;
                if signals.as_ref().is_some_and(Signals::take) {
                    break;
                }
            }
            output::text("\n")?;
            session = Some(generation.into_session());
            messages.push(Message::assistant(answer));
        }
    }
}
