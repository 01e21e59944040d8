//! Texts to vectors, and how near each passage is to a query.
//!
//! `cargo run --release --example embed -- [FOLDER] [QUERY] [PASSAGE]...`

use anyhow::Result;
use firebrick::prelude::*;

struct Embed {
    folder: String,
    query: String,
    passages: Vec<String>,
}

impl Job for Embed {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let model = EmbeddingModel::<B::InnerBackend>::load(&self.folder, &device)?;
        let query = model.encode(&[&self.query], Kind::Query)?.remove(0);
        println!("{} ({} tokens, {} features)", self.query, query.tokens, query.vector.len());
        for (text, passage) in self.passages.iter().zip(model.encode(&self.passages, Kind::Passage)?) {
            println!("{:6.3}  {text}", query.cosine(&passage));
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-e5-tiny");
    let folder = arguments.next().unwrap_or_else(|| tiny.into());
    let query = arguments.next().unwrap_or_else(|| "a value was used after it was moved".into());
    let mut passages: Vec<String> = arguments.collect();
    if passages.is_empty() {
        passages = [
            "A variable was used after its contents have been moved elsewhere.",
            "The match does not cover all possible values of the type.",
            "An attribute was given an argument that it does not know.",
        ]
        .map(str::to_owned)
        .to_vec();
    }
    dispatch(BackendName::named("auto")?, Embed { folder, query, passages })?
}
