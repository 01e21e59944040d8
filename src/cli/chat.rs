//! `firebrick chat`: a conversation in the terminal.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use firebrick::prelude::*;
use rustyline::error::ReadlineError;

use super::options::{Everywhere, ModelOptions};
use super::output;
use super::sampling::SamplingOptions;

/// Talk with a model in the terminal.
#[derive(Args, Clone, Debug)]
pub struct Chat {
    #[command(flatten)]
    model: ModelOptions,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
}

impl Chat {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
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
        everywhere.note("/reset begins anew, /quit or Ctrl-D ends");
        let mut editor = rustyline::DefaultEditor::new()?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
                Err(ReadlineError::Interrupted) => return Ok(ExitCode::from(130)),
                Err(error) => return Err(error.into()),
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
                    everywhere.note(format_args!("error: {error}"));
                    messages.pop();
                    continue;
                }
            };
            let mut answer = String::new();
            for piece in &mut generation {
                let piece = piece?;
                output::text(&piece.text)?;
                answer += &piece.text;
            }
            output::text("\n")?;
            session = Some(generation.into_session());
            messages.push(Message::assistant(answer));
        }
    }
}
