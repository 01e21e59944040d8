//! LoRA on an encoder for a task it was not made for: a block of code is the query, the explanation it is from the passage. Recall on
//! documents that nothing was trained on, before and after, beside BM25's.
//!
//! `cargo run --release --example finetune_embeddings -- [FOLDER] [STEPS] [OUTPUT]`

mod pairs;

use std::ops::ControlFlow;

use anyhow::Result;
use firebrick::prelude::*;

struct Finetune {
    folder: String,
    steps: usize,
    output: String,
}

impl Job for Finetune {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let model = EmbeddingModel::<B>::load(&self.folder, &device)?;
        let base = model.valid();
        let documents = pairs::documents()?;
        // Texts are cut off where a step takes a second or so.
        let embedder = model.embedder().with_max_tokens(model.embedder().max_tokens().min(96))?;
        let (questions, passages) = pairs::questions(&documents, false, pairs::code);
        let data = Dataset::from_pairs(pairs::pairs(&questions, &passages, &embedder)?);
        let (measured, passages) = pairs::questions(&documents, true, pairs::code);
        println!("{} pairs to learn from, {} questions held out", data.examples().len(), measured.len());

        let adapter = base.new_adapter(&LoraConfig { rank: 16, ..LoraConfig::encoder() }, 0)?;
        let config = TrainConfig { duration: Duration::Steps(self.steps), batch_size: 32, ..TrainConfig::default() };
        let task = Contrastive::new(embedder);
        let mut trainer = Trainer::contrastive(model.model(), task, adapter, config.learning_rate(1e-3))?;
        trainer.run(&data, None, &mut |event| {
            if let Event::Step(step) = event
                && step.step % 10 == 0
            {
                println!("step {}: loss {:.3}, {:.1} s", step.step, step.loss, step.seconds);
            }
            ControlFlow::Continue(())
        })?;
        trainer.adapter().save(self.output.as_ref(), Format::Peft)?;

        let before = pairs::ranks(&base, &measured, &passages)?;
        let after = pairs::ranks(&base.with_adapter(trainer.adapter())?, &measured, &passages)?;
        for (what, ranks) in
            [("BM25", &pairs::bm25_ranks(&measured, &passages)), ("before", &before), ("after", &after)]
        {
            let Retrieval { recall_at_1, recall_at_10, reciprocal_rank } = Retrieval::from_ranks(ranks);
            println!("{what:6} recall@1 {recall_at_1:.3}, recall@10 {recall_at_10:.3}, MRR {reciprocal_rank:.3}");
        }
        let [low, high] = pairs::bootstrap(&before, &after);
        println!("recall@1 gained: 95 % of the resamplings between {low:.3} and {high:.3}");
        println!("adapter saved in {}", self.output);
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/rust-e5-tiny");
    let folder = arguments.next().unwrap_or_else(|| tiny.into());
    let steps = arguments.next().map_or(Ok(80), |text| text.parse())?;
    let output = std::env::temp_dir().join("firebrick-finetune-embeddings").display().to_string();
    let output = arguments.next().unwrap_or(output);
    dispatch(BackendName::named("auto")?, Finetune { folder, steps, output })?
}
