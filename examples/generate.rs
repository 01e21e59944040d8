//! Text that streams from a model folder.
//!
//! `cargo run --release --example generate -- [FOLDER] [PROMPT]`

use std::io::Write;

use anyhow::Result;
use firebrick::prelude::*;

struct Generate {
    folder: String,
    prompt: String,
}

impl Job for Generate {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        // No gradients here: the backend underneath autodiff.
        let model = LanguageModel::<B::InnerBackend>::load(&self.folder, &device)?;
        let options = GenerateOptions::default().max_tokens(100);
        print!("{}", self.prompt);
        for piece in model.generate(&self.prompt, &options)? {
            print!("{}", piece?.text);
            std::io::stdout().flush()?;
        }
        println!();
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny");
    let folder = arguments.next().unwrap_or_else(|| tiny.into());
    let prompt = arguments.next().unwrap_or_else(|| "# Ownership\n\nIn Rust, ".into());
    dispatch(BackendName::named("auto")?, Generate { folder, prompt })?
}
