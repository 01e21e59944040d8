//! SmolLM2-135M-Instruct: a real model answers as in transformers, and learns from a few rows.

use std::ops::ControlFlow;

use firebrick::TrainBackend;
use firebrick::core::train::evaluate::mean_loss;
use firebrick::prelude::*;
use serde_json::Value;

use super::python::{needed, script};
use crate::contract;
use crate::support::{Inner, logits, repository};

const SEEDS: [u64; 3] = [0, 1, 2];

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

contract! {
    #[ignore = "needs Python with transformers, and the SmolLM2 folder"]
    fn smollm2_greedy_answers_equal_transformers<B>(device) {
        let folder = needed("FIREBRICK_SMOLLM2");
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("answers.json");
        script("smollm2_answers.py", [&folder, &file]);
        let answers: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(answers.len(), 5);
        let model = LanguageModel::<Inner<B>>::load(&folder, &device).unwrap();
        assert_eq!(model.model().head_weight().dtype(), DType::F32);
        for answer in &answers {
            let prompt = answer["prompt"].as_str().unwrap();
            let messages = [Message::user(prompt)];
            assert_eq!(model.encode_chat(&messages).unwrap(), ids(&answer["prompt_tokens"]), "{prompt}");
            let pieces = model.chat(&messages, &GenerateOptions::greedy().max_tokens(64)).unwrap();
            let pieces: Vec<_> = pieces.map(|piece| piece.unwrap()).collect();
            let tokens: Vec<u32> = pieces.iter().map(|piece| piece.token.id).collect();
            println!("smallest margin {:.4}, {} tokens: {prompt}", answer["smallest_margin"], tokens.len());
            assert_eq!(tokens, ids(&answer["tokens"]), "{prompt}");
            let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(text, answer["text"].as_str().unwrap(), "{prompt}");
            let finish = pieces.last().unwrap().token.finish.unwrap();
            assert_eq!(finish.name(), answer["finish_reason"].as_str().unwrap(), "{prompt}");
        }
    }
}

/// The validation loss before and after 30 steps on short rows.
fn fine_tune<B: TrainBackend>(model: &LanguageModel<B>, train: &Dataset, valid: &Dataset, seed: u64) -> [f64; 2] {
    let base = model.valid();
    let adapter = Adapter::create(base.model(), &LoraConfig::default(), seed).unwrap();
    let config = TrainConfig { duration: Duration::Steps(30), batch_size: 2, seed, ..TrainConfig::default() };
    let mut trainer = Trainer::new(model.model(), adapter, config.learning_rate(1e-3)).unwrap();
    trainer.run(train, None, &mut |_| ControlFlow::Continue(())).unwrap();
    let tuned = base.with_adapter(trainer.adapter()).unwrap();
    [base, tuned].map(|model| mean_loss(model.model(), valid).unwrap())
}

contract! {
    #[ignore = "needs the SmolLM2 folder"]
    fn smollm2_lora_lowers_validation_loss_for_three_seeds<B>(device) {
        let model = LanguageModel::<B>::load(needed("FIREBRICK_SMOLLM2"), &device).unwrap();
        // Only the answers count: that a fixed system prompt becomes likelier would prove nothing.
        let options = DataOptions { max_tokens: 96, mask_prompt: true, ..DataOptions::default() };
        let data = Splits::load(&repository("examples/tiny"), model.tokenizer(), &options).unwrap();
        // The same rows for every seed.
        let valid = Dataset::from_examples(data.valid.unwrap().examples()[..16].to_vec());
        for seed in SEEDS {
            let [before, after] = fine_tune(&model, &data.train, &valid, seed);
            println!("seed {seed}: validation loss {before:.4} -> {after:.4}");
            assert!(after < 0.95 * before, "seed {seed}: {before} -> {after}");
        }
    }
}

contract! {
    #[ignore = "needs the SmolLM2 folder and the GGUF file it was made from"]
    fn the_gguf_file_is_the_folder_made_from_it<B>(device) {
        let (folder, file) = (needed("FIREBRICK_SMOLLM2"), needed("FIREBRICK_SMOLLM2_GGUF"));
        let values = LanguageModel::<Inner<B>>::load(&folder, &device).unwrap();
        let blocks = LanguageModel::<Inner<B>>::load(&file, &device).unwrap();
        let read = <Inner<B> as firebrick::KernelBackend>::reads_weights(&device, blocks.model().head_weight().dtype());
        assert!(read);
        let messages = [Message::system("You are terse."), Message::user("Why is the sky blue? 12345 naïve\n\ttabs")];
        let tokens = values.encode_chat(&messages).unwrap();
        assert_eq!(blocks.encode_chat(&messages).unwrap(), tokens);
        assert_eq!(blocks.generation_config().eos_token_id, values.generation_config().eos_token_id);
        let [expected, found] = [&values, &blocks].map(|model| logits(model.model(), std::slice::from_ref(&tokens)));
        let largest = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let off = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        println!("largest difference {off:.2e} of the largest logit, weights {:?}", blocks.model().head_weight().dtype());
        // Where the blocks are unpacked to f16, every weight is rounded; where not, activations are, to eight bits.
        let packed = firebrick::backend::packed::Format::of(blocks.model().head_weight().dtype()).is_some();
        assert!(off < if packed { 5e-2 } else { 5e-3 }, "{off}");
        // What the file says, in f32: the same model, token for token.
        let [values, unpacked] = [&folder, &file].map(|from| {
            LanguageModel::<Inner<B>>::load_as(from, DTypePolicy::Convert(DType::F32), &device).unwrap()
        });
        let answer = |model: &LanguageModel<Inner<B>>| -> Vec<u32> {
            let pieces = model.chat(&messages, &GenerateOptions::greedy().max_tokens(32)).unwrap();
            pieces.map(|piece| piece.unwrap().token.id).collect()
        };
        assert_eq!(answer(&unpacked), answer(&values));
    }
}
