//! Whole models: their answers are read back inside the timed region.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use firebrick_backend::packed::Format;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::decode::{Decode, DecodeOptions};
use firebrick_core::embed::{EmbedConfig, EmbedOptions, Embedder, Kind as TextKind};
use firebrick_core::lora::{Adapter, LoraConfig};
use firebrick_core::model::CausalLm;
use firebrick_core::nn::Stream;
use firebrick_core::sample::{History, Sampler, Sampling};
use firebrick_core::sequence::{Segments, Sequences};
use firebrick_core::train::data::Example;
use firebrick_core::train::evaluate::row_losses;
use firebrick_core::train::run::{TrainConfig, Trainer};
use firebrick_models::{load_causal_lm, load_encoder};
use serde_json::{Value, json};

use super::super::expected::{self, INPUTS};
use super::super::measure::Subject;
use super::super::workload::{Passes, Workload, dtype_name, e5, lengths, qwen};
use super::Models;
use super::op::Op;
use super::texts::{texts, tokenizer};

/// Ids stay below this, where every tokenizer has tokens.
const IDS: usize = 4000;
/// Values of an answer that are compared.
const COMPARED: usize = 8;

type Parts = BTreeMap<String, f64>;
type Run = Box<dyn FnMut(usize) -> Result<(Vec<f64>, Parts), String> + Send>;

/// Work that gives its answer on the host.
pub(super) struct Answering {
    run: Run,
    last: Result<(Vec<f64>, Parts), String>,
}

impl Answering {
    fn new(run: impl FnMut(usize) -> Result<(Vec<f64>, Parts), String> + Send + 'static) -> Self {
        Self { run: Box::new(run), last: Ok(Default::default()) }
    }

    fn of(mut run: impl FnMut(usize) -> Result<Vec<f64>, String> + Send + 'static) -> Self {
        Self::new(move |input| Ok((run(input)?, Parts::new())))
    }
}

impl Subject for Answering {
    fn call(&mut self, inputs: Range<usize>) {
        for input in inputs {
            self.last = (self.run)(input);
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.last.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn read(&mut self) -> Vec<f64> {
        self.last.as_ref().map_or_else(|_| Vec::new(), |(values, _)| values.clone())
    }

    fn parts(&self) -> Parts {
        self.last.as_ref().map_or_else(|_| Parts::new(), |(_, parts)| parts.clone())
    }
}

fn told(problem: impl std::fmt::Display) -> String {
    problem.to_string()
}

fn qwen_config(layers: usize, vocabulary: usize) -> Value {
    let [heads, kv_heads, _] = qwen::HEADS;
    json!({
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": qwen::HIDDEN,
        "intermediate_size": qwen::INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true, "hidden_act": "silu",
    })
}

fn checkpoint(folder: Option<&Path>, config: impl FnOnce() -> Value) -> Result<Checkpoint, String> {
    match folder {
        Some(folder) => Checkpoint::open(folder).map_err(told),
        None => Ok(Checkpoint::synthetic(config(), 1)),
    }
}

/// A decoder of Qwen2.5-0.5B's shape.
pub(in super::super) fn decoder<B: KernelBackend>(
    dtype: DType,
    models: &Models,
    device: &B::Device,
) -> Result<Box<dyn CausalLm<B>>, String> {
    let config = || qwen_config(qwen::LAYERS, qwen::VOCABULARY);
    let Some((format, _)) = Format::of(dtype) else {
        let checkpoint = checkpoint(models.qwen.as_deref(), config)?;
        return load_causal_lm::<B>(&checkpoint, DTypePolicy::Convert(dtype), device).map_err(told);
    };
    // The file that llama.cpp has, so that both multiply by the same integers.
    let (checkpoint, policy) = match &models.qwen {
        Some(folder) => {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let file = folder.with_file_name(format!("{name}-{}.gguf", dtype_name(dtype)));
            (Checkpoint::open(&file).map_err(told)?, DTypePolicy::Auto)
        }
        None => (Checkpoint::synthetic(config(), 1), DTypePolicy::Pack(format)),
    };
    load_causal_lm::<B>(&checkpoint, policy, device).map_err(told)
}

/// Logits after the last of these tokens.
fn last_logits<B: KernelBackend>(model: &dyn CausalLm<B>, ids: &[u32]) -> Vec<f32> {
    let work = |ids: &[u32]| {
        let tokens = Sequences::new(ids, Segments::whole([ids.len()]).wanting_last(), &model.device());
        model.head(model.hidden(&tokens, None)).into_data().iter::<f32>().collect()
    };
    B::concurrently(vec![ids], work).pop().unwrap_or_default()
}

fn first(logits: &[f32]) -> Vec<f64> {
    logits.iter().take(COMPARED).map(|&value| f64::from(value)).collect()
}

/// One layer with random weights, and the norm that follows.
pub(super) fn layer<B: KernelBackend>(workload: &Workload, device: &B::Device, eager: bool) -> Result<Op<B>, String> {
    let tokens = workload.cost().tokens;
    let checkpoint = Checkpoint::synthetic(qwen_config(1, 16), 1);
    let model = load_causal_lm::<B>(&checkpoint, DTypePolicy::Convert(workload.dtype), device).map_err(told)?;
    let positions = model.positions(&Segments::whole([tokens]));
    let x = |input| {
        let values = expected::values(tokens * qwen::HIDDEN, expected::seed(input));
        Tensor::<B, 2>::from_data(TensorData::new(values, [tokens, qwen::HIDDEN]), (device, DType::F32))
    };
    let x: Vec<_> = (0..INPUTS).map(x).collect();
    let call = move |input: usize| {
        let stream = Stream::of(x[input % INPUTS].clone());
        let TensorPrimitive::Float(normed) = model.norm(model.layer(0, stream, &positions, None)).into_primitive()
        else {
            unreachable!("a norm is not quantized")
        };
        normed
    };
    Ok(Op::new(device, eager, Box::new(call)))
}

/// Logits after a prompt.
pub(super) fn prefill<B: KernelBackend>(
    workload: &Workload,
    tokens: usize,
    models: &Models,
    device: &B::Device,
) -> Result<Answering, String> {
    let model = decoder::<B>(workload.dtype, models, device)?;
    Ok(Answering::of(move |input| Ok(first(&last_logits(&*model, &expected::ids(tokens, IDS, input))))))
}

/// A greedy continuation.
pub(super) fn generate<B: KernelBackend>(
    workload: &Workload,
    prompt: usize,
    tokens: usize,
    models: &Models,
    device: &B::Device,
) -> Result<Answering, String> {
    let model = decoder::<B>(workload.dtype, models, device)?;
    Ok(Answering::new(move |input| {
        let options = DecodeOptions { max_tokens: tokens, ..DecodeOptions::default() };
        let (mut ids, mut parts, begun) = (Vec::new(), Parts::new(), Instant::now());
        for token in Decode::new(&*model, &expected::ids(prompt, IDS, input), options).map_err(told)? {
            ids.push(f64::from(token.map_err(told)?.id));
            if ids.len() == 1 {
                parts.insert("first_token".into(), begun.elapsed().as_secs_f64());
            }
        }
        let rest = begun.elapsed().as_secs_f64() - parts["first_token"];
        parts.insert("per_token".into(), rest / (tokens - 1).max(1) as f64);
        ids.truncate(COMPARED);
        Ok((ids, parts))
    }))
}

/// One more token behind a text that is in the cache.
pub(super) fn next_token<B: KernelBackend>(
    workload: &Workload,
    after: usize,
    models: &Models,
    device: &B::Device,
) -> Result<Answering, String> {
    let model = decoder::<B>(workload.dtype, models, device)?;
    let mut caches = Vec::new();
    for input in 0..INPUTS {
        let mut cache = model.new_cache(1, after + 1);
        model.hidden(&Sequences::whole(&[&expected::ids(after, IDS, input)], device), Some(&mut cache));
        caches.push(cache);
    }
    let device = device.clone();
    Ok(Answering::of(move |input| {
        let cache = &mut caches[input % INPUTS];
        cache.truncate(0, after);
        let ids = expected::ids(after + 1, IDS, input);
        let logits = B::concurrently(vec![cache], |cache| {
            let next = Sequences::new(&ids[after..], Segments::continuing([(1, after)]), &device);
            model.head(model.hidden(&next, Some(cache))).into_data().iter::<f32>().collect::<Vec<f32>>()
        });
        Ok(first(&logits[0]))
    }))
}

/// The choice of a token, on the host whatever the backend.
pub(super) fn sampling() -> Result<Answering, String> {
    // Far enough apart that nucleus sampling has something to cut.
    let logits = |input| -> Vec<f32> {
        expected::values(qwen::VOCABULARY, expected::seed(input)).into_iter().map(|value| value * 10.0).collect()
    };
    let logits: Vec<_> = (0..INPUTS).map(logits).collect();
    Ok(Answering::of(move |input| {
        let sampling =
            Sampling { temperature: 0.7, top_k: Some(50), top_p: Some(0.9), seed: input as u64, ..Sampling::greedy() };
        let mut sampler = Sampler::new(&sampling).map_err(told)?;
        let choice = sampler.next(&logits[input % INPUTS], History { prompt: &[], generated: &[] }).map_err(told)?;
        Ok(vec![f64::from(choice.id)])
    }))
}

/// Computes a loss without gradients.
fn mean_loss<B: KernelBackend>(model: &dyn CausalLm<B>, examples: &[Example]) -> Result<(), String> {
    row_losses(model, examples).try_for_each(|loss| loss.map(|_| ()).map_err(told))
}

/// A step of LoRA on one sequence.
pub(super) fn lora_step<B: TrainBackend>(
    workload: &Workload,
    [tokens, rank]: [usize; 2],
    half: bool,
    passes: Passes,
    models: &Models,
    device: &B::Device,
) -> Result<Answering, String> {
    let model = decoder::<B>(workload.dtype, models, device)?;
    let valid = model.valid();
    let config = LoraConfig { rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() };
    let adapter = Adapter::create(&*valid, &config, 0).map_err(told)?;
    let settings = TrainConfig {
        batch_size: 1,
        gradient_checkpointing: passes == Passes::ByLayer,
        pack: (passes == Passes::Packed).then_some(tokens),
        max_grad_norm: None,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(&*model, adapter, settings).map_err(told)?;
    let counts = move |at: usize| if at > 0 && !(half && at % 2 == 1) { 1.0 } else { 0.0 };
    let length = tokens / passes.rows();
    let examples = move |input| -> Vec<Example> {
        let ids = expected::ids(tokens, IDS, input);
        let row = |ids: &[u32]| Example { tokens: ids.to_vec(), weights: (0..length).map(counts).collect(), line: 1 };
        ids.chunks_exact(length).map(row).collect()
    };
    let mut parts = Parts::new();
    Ok(Answering::new(move |input| {
        let examples = examples(input);
        let rows: Vec<&Example> = examples.iter().collect();
        if parts.is_empty() {
            // Once, beside the timed calls: each ends where its value is on the host.
            let seconds = |work: &mut dyn FnMut() -> Result<(), String>| {
                let begun = Instant::now();
                work().map(|()| begun.elapsed().as_secs_f64())
            };
            let both = &mut || trainer.gradients(&rows).map(|_| ()).map_err(told);
            seconds(both)?;
            let attached = trainer.adapter().attach(&*valid).map_err(told)?;
            let forward = seconds(&mut || mean_loss(&*attached, &examples))?;
            let gradients = seconds(both)?;
            let step = seconds(&mut || trainer.step(&rows, 0.0).map(|_| ()).map_err(told))?;
            parts.insert("forward".into(), forward);
            parts.insert("backward".into(), (gradients - forward).max(0.0));
            parts.insert("optimizer".into(), (step - gradients).max(0.0));
        }
        let step = trainer.step(&rows, 1e-4).map_err(told)?;
        Ok((vec![step.loss], parts.clone()))
    }))
}

/// Texts to vectors.
pub(super) fn embed<B: KernelBackend>(
    workload: &Workload,
    count: usize,
    mixed: bool,
    models: &Models,
    device: &B::Device,
) -> Result<Answering, String> {
    let config = || {
        let [hidden, intermediate] = e5::WIDTHS;
        json!({
            "model_type": "bert", "vocab_size": 30522, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": e5::LAYERS, "num_attention_heads": e5::HEADS, "max_position_embeddings": 512,
            "type_vocab_size": 2,
        })
    };
    let checkpoint = checkpoint(models.e5.as_deref(), config)?;
    let policy = match Format::of(workload.dtype) {
        Some((format, _)) => DTypePolicy::Pack(format),
        None => DTypePolicy::Convert(workload.dtype),
    };
    let model = load_encoder::<B>(&checkpoint, policy, device).map_err(told)?;
    let embedder = match &models.e5 {
        Some(_) => Embedder::read(&checkpoint, model.facts()),
        None => Embedder::new(tokenizer()?, EmbedConfig::default(), model.facts()),
    };
    let embedder = embedder.map_err(told)?;
    let all = (0..INPUTS).map(|input| texts(embedder.tokenizer(), lengths(count, mixed), input));
    let all: Vec<Vec<String>> = all.collect::<Result<_, _>>()?;
    let options = EmbedOptions::of(TextKind::None);
    Ok(Answering::of(move |input| {
        let embeddings = embedder.embed(&*model, &all[input % INPUTS], &options).map_err(told)?;
        Ok(first(&embeddings[0].vector))
    }))
}
