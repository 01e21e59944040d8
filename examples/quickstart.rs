//! A tiny language model learns to explain Rust's error codes, in about a minute on two cores; then a tiny encoder finds one.
//!
//! `cargo run --release --example quickstart`

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use firebrick::prelude::*;

const PROMPT: &str = "Explain E0382.";

const QUESTION: &str = "use of a moved value";

const PASSAGES: [&str; 4] = [
    "A variable was used after its contents have been moved elsewhere.",
    "The match is not exhaustive: not every value has an arm.",
    "A function was called with the wrong number of arguments.",
    "An undeclared lifetime was used.",
];

struct Quickstart;

impl Job for Quickstart {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny");
        let model = LanguageModel::<B>::load_as(folder.join("rust-tiny"), DTypePolicy::Convert(DType::F32), &device)?;
        let base = model.valid();
        println!("before: {}\n", answer(&base)?);

        let options = DataOptions { mask_prompt: true, max_tokens: 256, ..DataOptions::default() };
        let data = Splits::load(&folder, model.tokenizer(), &options)?;
        let lora = LoraConfig { rank: 16, alpha: 32.0, targets: Targets::AllLinear, ..LoraConfig::default() };
        let config = TrainConfig { duration: Duration::Steps(300), ..TrainConfig::default() }.learning_rate(2e-3);
        let adapter = base.new_adapter(&lora, 0)?;
        let mut trainer = Trainer::new(model.model(), adapter, config)?;
        let mut losses = Vec::new();
        trainer.run(&data.train, data.valid.as_ref(), &mut |event| {
            match event {
                Event::Step(step) if step.step % 25 == 0 => eprintln!("step {} loss {:.3}", step.step, step.loss),
                Event::Evaluated { valid_loss, .. } => losses.push(valid_loss),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;

        let saved = std::env::temp_dir().join("firebrick-quickstart");
        trainer.adapter().save(&saved, Format::Peft)?;
        let adapter = base.load_adapter(&saved)?;
        let (attached, merged) = (base.with_adapter(&adapter)?, base.merged(&adapter)?);
        println!("after: {}\n", answer(&attached)?);
        println!("adapter saved in {}", saved.display());
        println!("validation loss: {:.3} -> {:.3}", losses[0], losses[losses.len() - 1]);
        println!("merged equals unmerged: {}\n", largest_difference(&attached, &merged)? < 1e-3);

        let encoder = EmbeddingModel::<B::InnerBackend>::load(folder.join("rust-e5-tiny"), &device)?;
        let (cosine, passage) = nearest(&encoder, QUESTION)?;
        println!("nearest to \"{QUESTION}\", at {cosine:.3}: {passage}");
        Ok(())
    }
}

/// The passage with the largest cosine to the question.
fn nearest<B: KernelBackend>(encoder: &EmbeddingModel<B>, question: &str) -> Result<(f32, &'static str)> {
    let question = encoder.encode(&[question], Kind::Query)?.remove(0);
    let passages = encoder.encode(&PASSAGES, Kind::Passage)?;
    let cosines = passages.iter().map(|passage| question.cosine(passage)).zip(PASSAGES);
    Ok(cosines.max_by(|a, b| a.0.total_cmp(&b.0)).expect("there are passages"))
}

fn answer<B: KernelBackend>(model: &LanguageModel<B>) -> Result<String> {
    let options = GenerateOptions { max_tokens: Some(80), ..GenerateOptions::greedy() };
    Ok(model.chat(&[Message::user(PROMPT)], &options)?.into_text()?)
}

/// Between the logits of two models after the prompt.
fn largest_difference<B: KernelBackend>(a: &LanguageModel<B>, b: &LanguageModel<B>) -> Result<f32> {
    let tokens = Sequences::whole(&[a.encode_chat(&[Message::user(PROMPT)])?], &a.model().device());
    let logits = |model: &LanguageModel<B>| model.model().head(model.model().hidden(&tokens, None));
    Ok((logits(a) - logits(b)).abs().max().into_data().iter::<f32>().next().unwrap_or(f32::NAN))
}

fn main() -> Result<()> {
    dispatch(BackendName::named("auto")?, Quickstart)?
}
