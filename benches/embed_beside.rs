//! Our side of `embed_beside.py`, which times peers and us in turns: a request is a JSON list of texts on a line of stdin, the answer the
//! seconds from the texts to their vectors. The model's folder is in `EMBED_MODEL`; without it there is nothing to do.

use std::io::{BufRead, Write};
use std::time::Instant;

use firebrick::prelude::*;

struct Serve(String);

impl Job for Serve {
    type Output = Result<(), Box<dyn std::error::Error>>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let model = EmbeddingModel::<B::InnerBackend>::load(self.0, &device)?;
        for line in std::io::stdin().lock().lines() {
            let texts: Vec<String> = serde_json::from_str(&line?)?;
            let begun = Instant::now();
            let embeddings = model.encode(&texts, Kind::None)?;
            let seconds = begun.elapsed().as_secs_f64();
            let tokens: usize = embeddings.iter().map(|embedding| embedding.tokens).sum();
            let first = &embeddings[0].vector[..4];
            writeln!(
                std::io::stdout(),
                "{}",
                serde_json::json!({"seconds": seconds, "tokens": tokens, "first": first})
            )?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::var("EMBED_MODEL") {
        Ok(folder) => dispatch(BackendName::named("auto")?, Serve(folder))?,
        Err(_) => Ok(()),
    }
}
