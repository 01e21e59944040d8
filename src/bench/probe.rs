//! What no clock tells: peak memory, kernel launches, perplexity. Memory is that of a whole process, so the command starts itself once for each
//! of these.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use burn::tensor::{DType, Tensor};
use firebrick_backend::launches::Launches;
use firebrick_backend::packed::Format;
use firebrick_backend::process::{peak_rss_bytes, rss_bytes};
use firebrick_backend::select::{BackendName, Job, dispatch};
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::cache::KvCache;
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::decode::{Decode, DecodeOptions};
use firebrick_core::nn::turned_into;
use firebrick_core::sequence::Segments;
use firebrick_core::train::data::{DataOptions, Dataset};
use firebrick_core::train::evaluate::mean_loss;
use firebrick_models::LanguageModel;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::expected;
use super::subject::{Models, decoder, runner};
use super::workload::{Kind, Passes, Workload, logits_of, qwen};

/// The example whose model is trained, in a checkout.
const EXAMPLE: &str = "examples/tiny";

/// What a process measures of itself. The model has Qwen2.5-0.5B's shape, its weights f16 but for training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Peak memory after loading.
    Load,
    /// Peak memory of loading and a pass over 512 tokens.
    Forward,
    /// Peak memory of loading and generating 128 tokens behind 512.
    Generate,
    /// Peak memory of loading in f32 and two LoRA steps of 512 tokens, which pass through the model in this way.
    LoraStep(Passes),
    /// Peak memory of the loss of its head over 512 tokens and the gradient, with all logits at once or a chunk at a time.
    HeadLoss {
        /// All of them.
        at_once: bool,
    },
    /// Memory of a cache of 2,048 tokens that is full.
    Cache,
    /// Kernels launched for a token, of as many layers but narrower ones.
    Launches,
    /// What packing in this format costs: perplexity of the example's small trained model on the texts kept back, or in f32 without one.
    Perplexity(Option<Format>),
}

/// What it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Bytes of memory.
    pub bytes: Option<u64>,
    /// Launches for a token.
    pub launches: Option<f64>,
    /// Perplexity of a token.
    #[serde(default)]
    pub perplexity: Option<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Load,
        Self::Forward,
        Self::Generate,
        Self::LoraStep(Passes::One),
        Self::LoraStep(Passes::ByLayer),
        Self::LoraStep(Passes::Rows),
        Self::LoraStep(Passes::Packed),
        Self::HeadLoss { at_once: false },
        Self::HeadLoss { at_once: true },
        Self::Cache,
        Self::Launches,
        Self::Perplexity(None),
        Self::Perplexity(Some(Format::Q8)),
        Self::Perplexity(Some(Format::Q4)),
    ];

    /// Its name, in records and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Forward => "forward",
            Self::Generate => "generate",
            Self::LoraStep(Passes::One) => "lora_step",
            Self::LoraStep(Passes::ByLayer) => "lora_step_by_layer",
            Self::LoraStep(Passes::Rows) => "lora_step_rows",
            Self::LoraStep(Passes::Packed) => "lora_step_packed",
            Self::HeadLoss { at_once: false } => "head_loss",
            Self::HeadLoss { at_once: true } => "head_loss_at_once",
            Self::Cache => "cache",
            Self::Launches => "launches",
            Self::Perplexity(None) => "perplexity",
            Self::Perplexity(Some(Format::Q8)) => "perplexity_q8",
            Self::Perplexity(Some(Format::Q4)) => "perplexity_q4",
        }
    }

    /// Of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|probe| probe.name() == name)
    }

    /// The workload of its record.
    pub fn describe(self) -> Map<String, Value> {
        let (sizes, dtype) = match self {
            Self::Load => (json!({"of": "load"}), "f16"),
            Self::Forward => (json!({"of": "forward", "tokens": 512}), "f16"),
            Self::Generate => (json!({"of": "generate", "prompt": 512, "tokens": 128}), "f16"),
            Self::LoraStep(Passes::One) => (json!({"of": "lora_step", "tokens": 512, "rank": 8}), "f32"),
            Self::LoraStep(passes) => {
                (json!({"of": "lora_step", "tokens": 512, "rank": 8, "passes": passes.name()}), "f32")
            }
            Self::HeadLoss { at_once } => {
                (json!({"of": "head_loss", "tokens": 512, "logits": logits_of(at_once)}), "f32")
            }
            Self::Cache => (json!({"of": "cache", "tokens": 2048}), "f32"),
            Self::Launches => (json!({"of": "token", "layers": qwen::LAYERS}), "f32"),
            Self::Perplexity(format) => (json!({"of": EXAMPLE}), format.map_or("f32", Format::name)),
        };
        let name = match self {
            Self::Launches => "launches",
            Self::Perplexity(_) => "perplexity",
            _ => "memory",
        };
        let mut map = Map::from_iter([("workload".into(), json!(name))]);
        map.extend(sizes.as_object().cloned().unwrap_or_default());
        map.insert("dtype".into(), json!(dtype));
        map
    }

    /// Measures in a process of its own, which is this binary started as `bench --probe NAME`.
    ///
    /// # Errors
    /// What that process said last, or why it could not be started.
    pub fn start(self, backend: BackendName, threads: usize) -> Result<Found, String> {
        let binary = std::env::current_exe().map_err(|problem| problem.to_string())?;
        let mut command = Command::new(binary);
        command.args(["bench", "--probe", self.name(), "--backend", &backend.to_string()]);
        command.args(["--threads", &threads.to_string()]);
        let output = command.output().map_err(|problem| problem.to_string())?;
        let last = |text: &[u8]| String::from_utf8_lossy(text).lines().last().unwrap_or_default().to_owned();
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, last(&output.stderr)));
        }
        serde_json::from_str(&last(&output.stdout)).map_err(|problem| problem.to_string())
    }

    /// Measures in this process, whose memory must not have been used for anything else before.
    ///
    /// # Errors
    /// If the model cannot be made or the system does not say.
    pub fn measure(self, backend: BackendName, models: &Models) -> Result<Found, String> {
        let begun = Instant::now();
        let found = dispatch(backend, Work { probe: self, models }).map_err(|problem| problem.to_string())??;
        Ok(Found { seconds: begun.elapsed().as_secs_f64(), ..found })
    }
}

struct Work<'a> {
    probe: Probe,
    models: &'a Models,
}

impl Job for Work<'_> {
    type Output = Result<Found, String>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        let Self { probe, models } = self;
        match probe {
            Probe::Cache => return cache::<B::InnerBackend>(&device),
            Probe::Launches => return launches::<B::InnerBackend>(&device),
            Probe::Perplexity(format) => return perplexity::<B::InnerBackend>(format, &device),
            Probe::Load => drop(decoder::<B::InnerBackend>(DType::F16, models, &device)?),
            Probe::Forward => calls::<B>(Kind::Prefill { tokens: 512 }, DType::F16, models, &device)?,
            Probe::Generate => {
                calls::<B>(Kind::Generate { prompt: 512, tokens: 128 }, DType::F16, models, &device)?;
            }
            Probe::LoraStep(passes) => {
                let kind = Kind::LoraStep { tokens: 512, rank: 8, half: false, passes };
                calls::<B>(kind, DType::F32, models, &device)?;
            }
            Probe::HeadLoss { at_once } => {
                calls::<B>(Kind::HeadLoss { tokens: 512, at_once }, DType::F32, models, &device)?;
            }
        }
        Ok(Found { bytes: Some(peak_rss_bytes().ok_or("the system does not say")?), ..Found::default() })
    }
}

fn calls<B: TrainBackend>(kind: Kind, dtype: DType, models: &Models, device: &B::Device) -> Result<(), String> {
    runner::<B>(&Workload { kind, dtype }, models, device, false)?.sample(2, 0).map(|_| ())
}

/// Fills a cache and looks what became of the process.
fn cache<B: KernelBackend>(device: &B::Device) -> Result<Found, String> {
    const TOKENS: usize = 2048;
    let [_, kv_heads, dim] = qwen::HEADS;
    let rows = Tensor::<B, 3>::ones([TOKENS, kv_heads, dim], (device, DType::F32));
    let angles = Tensor::<B, 2>::ones([TOKENS, dim / 2], (device, DType::F32));
    let before = rss_bytes().ok_or("the system does not say")?;
    let mut cache = KvCache::<B>::new(qwen::LAYERS, 1, TOKENS, kv_heads, dim, DType::F32, device);
    let segments = Segments::continuing([(TOKENS, 0)]);
    for layer in 0..qwen::LAYERS {
        let turn_into = |keys, rows, angles, start| turned_into(keys, rows, None, angles, start);
        drop(cache.layer(layer).append(rows.clone(), rows.clone(), [&angles, &angles], &segments, turn_into));
    }
    B::sync(device).map_err(|problem| problem.to_string())?;
    let after = rss_bytes().ok_or("the system does not say")?;
    drop(cache);
    Ok(Found { bytes: Some(after.saturating_sub(before)), ..Found::default() })
}

fn launches<B: KernelBackend>(device: &B::Device) -> Result<Found, String> {
    let log = std::env::temp_dir().join(format!("firebrick-launches-{}", std::process::id()));
    let noted = Launches::noted_in(&log);
    let launches = noted.ok_or("only CubeCL's backends launch kernels, and none is built in")?;
    let config = json!({
        "model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": qwen::LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "hidden_act": "silu",
    });
    let checkpoint = Checkpoint::synthetic(config, 1);
    let model = firebrick_models::load_causal_lm::<B>(&checkpoint, DTypePolicy::Auto, device);
    let model = model.map_err(|problem| problem.to_string())?;
    let options = DecodeOptions { max_tokens: 8, ..DecodeOptions::default() };
    let decode = Decode::new(&*model, &expected::ids(9, 512, 0), options);
    let mut decode = decode.map_err(|problem| problem.to_string())?;
    // The first ones are other launches: fusion explores what to run together.
    for token in decode.by_ref().take(6) {
        token.map_err(|problem| problem.to_string())?;
    }
    let kernels = launches.of::<B>(device, || drop(decode.next()));
    std::fs::remove_file(&log).ok();
    Ok(Found { launches: Some(kernels.len() as f64), ..Found::default() })
}

fn perplexity<B: KernelBackend>(format: Option<Format>, device: &B::Device) -> Result<Found, String> {
    let folder = Path::new(EXAMPLE);
    let policy = format.map_or(DTypePolicy::Convert(DType::F32), DTypePolicy::Pack);
    let model =
        LanguageModel::<B>::load_as(folder.join("rust-tiny"), policy, device).map_err(|told| told.to_string())?;
    let options = DataOptions { mask_prompt: true, ..DataOptions::default() };
    let texts = Dataset::load(&folder.join("valid.jsonl"), model.tokenizer(), &options);
    let loss = mean_loss(model.model(), &texts.map_err(|told| told.to_string())?).map_err(|told| told.to_string())?;
    Ok(Found { perplexity: Some(loss.exp()), ..Found::default() })
}
