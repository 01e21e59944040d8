//! A conversation whose past is computed once: each turn continues from the session of the one before.
//!
//! `cargo run --release --example chat -- [FOLDER]`

use std::io::{BufRead, Write};

use anyhow::Result;
use firebrick::prelude::*;

struct Chat {
    folder: String,
}

impl Job for Chat {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let model = LanguageModel::<B::InnerBackend>::load(&self.folder, &device)?;
        let options = GenerateOptions::default().max_tokens(200);
        let (mut messages, mut session) = (Vec::new(), None);
        for line in std::io::stdin().lock().lines() {
            messages.push(Message::user(line?));
            let prompt = model.encode_chat(&messages)?;
            let mut generation = model.generate_from(&prompt, &options, session.take())?;
            let mut answer = String::new();
            for piece in &mut generation {
                let piece = piece?;
                print!("{}", piece.text);
                std::io::stdout().flush()?;
                answer += &piece.text;
            }
            println!();
            session = Some(generation.into_session());
            messages.push(Message::assistant(answer));
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny");
    let folder = std::env::args().nth(1).unwrap_or_else(|| tiny.into());
    dispatch(BackendName::named("auto")?, Chat { folder })?
}
