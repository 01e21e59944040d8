//! A small Qwen2 with computed weights: its logits in one pass and through the cache, and the gradients of an adapter as the trainer takes
//! them.

use burn::tensor::{DType, Tensor, TensorData};
use firebrick_backend::packed::Format;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::lora::{Adapter, LoraConfig, Targets};
use firebrick_core::model::CausalLm;
use firebrick_core::sequence::{Segments, Sequences};
use firebrick_core::train::data::Example;
use firebrick_core::train::run::{TrainConfig, Trainer};
use firebrick_models::load_causal_lm;
use serde_json::json;

use super::{Parts, part};

const VOCABULARY: u32 = 509;
/// Tokens whose logits are compared.
const TOKENS: usize = 48;
/// Of those, the ones that fill the cache in one pass; the others follow one by one.
const PREFILL: usize = 29;

type Plain<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;

fn load<B: KernelBackend>(device: &B::Device, dtype: DType) -> Result<Box<dyn CausalLm<B>>, String> {
    let config = json!({
        "model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let checkpoint = Checkpoint::synthetic(config, 1);
    let policy = Format::of(dtype).map_or(DTypePolicy::Convert(dtype), |(format, _)| DTypePolicy::Pack(format));
    load_causal_lm(&checkpoint, policy, device).map_err(|error| error.to_string())
}

fn token(index: usize) -> u32 {
    (index as u32).wrapping_mul(2_654_435_761) % VOCABULARY
}

/// The logits of every position, in one pass.
pub(super) fn logits<B: TrainBackend>(device: &B::Device, dtype: DType) -> Result<Parts, String> {
    let model = load::<Plain<B>>(device, dtype)?;
    let ids: Vec<u32> = (0..TOKENS).map(token).collect();
    let logits = model.head(model.hidden(&Sequences::whole(&[ids], device), None));
    Ok(vec![part("the logits", logits)])
}

/// The logits of every position, through a cache: some in one pass, the others one by one.
pub(super) fn cached_logits<B: TrainBackend>(device: &B::Device, dtype: DType) -> Result<Parts, String> {
    let model = load::<Plain<B>>(device, dtype)?;
    let ids: Vec<u32> = (0..TOKENS).map(token).collect();
    let mut cache = model.new_cache(1, TOKENS);
    let (prompt, rest) = ids.split_at(PREFILL);
    let mut logits = Vec::new();
    for chunk in std::iter::once(prompt).chain(rest.chunks(1)) {
        let tokens = Sequences::new(chunk, Segments::continuing([(chunk.len(), cache.len(0))]), device);
        logits.extend(part("", model.head(model.hidden(&tokens, Some(&mut cache)))).1);
    }
    Ok(vec![("the logits".to_owned(), logits)])
}

/// The loss and the gradients of an adapter on every linear. The base is frozen: only `A` and `B` are tracked.
pub(super) fn gradients<B: TrainBackend>(device: &B::Device, dtype: DType, tokens: usize) -> Result<Parts, String> {
    let model = load::<B>(device, dtype)?;
    let lora = LoraConfig { rank: 8, targets: Targets::AllLinear, ..LoraConfig::default() };
    let adapter = Adapter::create(&*model.valid(), &lora, 0).map_err(|error| error.to_string())?;
    // PEFT starts with B at zero, which hides the gradient of A.
    let filled = adapter.modules().iter().map(|(path, module)| {
        let [out, rank] = module.b.dims();
        let value = |index: usize| (token(index) as f32 / VOCABULARY as f32 - 0.5) * 0.05;
        let b = TensorData::new((0..out * rank).map(value).collect::<Vec<f32>>(), [out, rank]);
        (path.clone(), module.a.clone(), Tensor::from_data(b, (device, DType::F32)))
    });
    let adapter = adapter.with_matrices(filled.collect::<Vec<_>>());
    let example = Example {
        tokens: (0..=tokens).map(token).collect(),
        weights: (0..=tokens).map(|index| f32::from(u8::from(index > 0))).collect(),
        line: 1,
    };
    let trainer = Trainer::new(&*model, adapter, TrainConfig::default()).map_err(|error| error.to_string())?;
    let (loss, gradients) = trainer.gradients(&[&example]).map_err(|error| error.to_string())?;
    let mut parts = vec![("the loss".to_owned(), vec![loss])];
    for (path, [d_a, d_b]) in gradients {
        parts.push(part(&format!("the gradient of {path}.lora_A"), d_a));
        parts.push(part(&format!("the gradient of {path}.lora_B"), d_b));
    }
    Ok(parts)
}
