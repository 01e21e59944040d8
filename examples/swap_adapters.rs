//! One base in memory, several adapters by name: a handle with another adapter costs no weights.
//!
//! `cargo run --release --example swap_adapters -- [MODEL] [ADAPTER]...`

use anyhow::Result;
use firebrick::prelude::*;

const PROMPT: &str = "Explain E0382.";

struct Swap {
    model: String,
    adapters: Vec<String>,
}

impl Job for Swap {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let base = LanguageModel::<B::InnerBackend>::load(&self.model, &device)?;
        let mut adapters = Adapters::new();
        for folder in &self.adapters {
            adapters.insert(folder, base.load_adapter(folder)?);
        }
        // A new adapter changes nothing until it is trained: the same answer as the base's.
        adapters.insert("new", base.new_adapter(&LoraConfig::default(), 0)?);

        println!("base: {}", answer(&base)?);
        for name in adapters.names().map(str::to_owned).collect::<Vec<_>>() {
            if let Some(adapter) = adapters.get(&name) {
                println!("{name}: {}", answer(&base.with_adapter(adapter)?)?);
            }
        }
        println!("base: {}", answer(&base)?);
        Ok(())
    }
}

fn answer<B: KernelBackend>(model: &LanguageModel<B>) -> Result<String> {
    let options = GenerateOptions::greedy().max_tokens(40);
    Ok(model.chat(&[Message::user(PROMPT)], &options)?.into_text()?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-tiny");
    let model = arguments.next().unwrap_or_else(|| tiny.into());
    dispatch(BackendName::named("auto")?, Swap { model, adapters: arguments.collect() })?
}
