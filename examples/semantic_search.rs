//! A question in, the five nearest of the bundled explanations of Rust's errors out.
//!
//! `cargo run --release --example semantic_search -- [QUESTION] [FOLDER]`

mod pairs;

use anyhow::Result;
use firebrick::prelude::*;

struct Search {
    question: String,
    folder: String,
}

impl Job for Search {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let model = EmbeddingModel::<B::InnerBackend>::load(&self.folder, &device)?;
        let documents = pairs::documents()?;
        let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
        let begun = std::time::Instant::now();
        let index = model.encode(&texts, Kind::Passage)?;
        println!("{} explanations embedded in {:.1} s", index.len(), begun.elapsed().as_secs_f64());

        let question = model.encode(&[&self.question], Kind::Query)?.remove(0);
        let cosine = |passage: &Embedding| question.cosine(passage);
        let mut found: Vec<_> = documents.iter().zip(index.iter().map(cosine)).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        println!("{}", self.question);
        for (document, cosine) in found.iter().take(5) {
            let (prose, _) = pairs::prose_and_code(&document.text);
            let start: String = prose.concat().chars().take(90).collect();
            println!("{cosine:6.3}  {}  {start}…", document.code);
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let question = arguments.next().unwrap_or_else(|| "two mutable borrows of the same variable at once".into());
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-e5-tiny");
    let folder = arguments.next().unwrap_or_else(|| tiny.into());
    dispatch(BackendName::named("auto")?, Search { question, folder })?
}
