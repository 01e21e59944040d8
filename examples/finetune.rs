//! LoRA on rows of your own: a folder with `train.jsonl` and `valid.jsonl`, an adapter folder out.
//!
//! `cargo run --release --example finetune -- [MODEL] [DATA] [OUTPUT]`

use std::ops::ControlFlow;

use anyhow::Result;
use firebrick::prelude::*;

struct Finetune {
    model: String,
    data: String,
    output: String,
}

impl Job for Finetune {
    type Output = Result<()>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Result<()> {
        let model = LanguageModel::<B>::load(&self.model, &device)?;
        let options = DataOptions { mask_prompt: true, max_tokens: 256, ..DataOptions::default() };
        let data = Splits::load(self.data.as_ref(), model.tokenizer(), &options)?;

        let lora = LoraConfig { dropout: 0.05, targets: Targets::parse("q_proj,v_proj"), ..LoraConfig::default() };
        let adapter = model.valid().new_adapter(&lora, 0)?;
        let config = TrainConfig { duration: Duration::Steps(50), eval_every: Some(25), ..TrainConfig::default() };
        let mut trainer = Trainer::new(model.model(), adapter, config.learning_rate(1e-3))?;
        trainer.run(&data.train, data.valid.as_ref(), &mut |event| {
            match event {
                Event::Step(step) if step.step % 10 == 0 => println!("step {}: loss {:.3}", step.step, step.loss),
                Event::Evaluated { step, valid_loss, .. } => {
                    println!("after {step} steps: validation loss {valid_loss:.3}")
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        trainer.adapter().save(self.output.as_ref(), Format::Peft)?;
        println!("adapter saved in {}", self.output);
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny");
    let model = arguments.next().unwrap_or_else(|| format!("{tiny}/rust-tiny"));
    let data = arguments.next().unwrap_or_else(|| tiny.into());
    let output = std::env::temp_dir().join("firebrick-finetune").display().to_string();
    let output = arguments.next().unwrap_or(output);
    dispatch(BackendName::named("auto")?, Finetune { model, data, output })?
}
