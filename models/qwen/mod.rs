//! Qwen2, Qwen2.5 (-Coder), Qwen3 dense and Llama-type decoders (SmolLM2, Llama 3.2): one implementation, told apart by `config.json`.
//!
//! Source: transformers' `modeling_qwen2.py`, `modeling_qwen3.py`, `modeling_llama.py`. Fields spell the checkpoint's names.

mod block;
mod config;

use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::cache::LayerCache;
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::error::Result;
use firebrick_core::model::{Adapt, CausalLm, DecoderFacts, Footprint, Positions};
use firebrick_core::nn::{Embedding, Linear, RmsNorm, Rotary, Stream};
use firebrick_core::sequence::{Segments, Sequences};

pub use block::{Attention, Block, Mlp};
pub use config::QwenConfig;

/// The values of `model_type` this family reads.
pub const MODEL_TYPES: &[&str] = &["qwen2", "qwen3", "llama"];

/// A decoder of this family.
#[derive(Clone, Debug)]
pub struct Qwen<B: KernelBackend> {
    config: Arc<QwenConfig>,
    rotary: Arc<Rotary>,
    embed_tokens: Embedding<B>,
    layers: Vec<Block<B>>,
    norm: RmsNorm<B>,
    /// `None` where the head is the embedding table.
    lm_head: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Qwen<B> {
    /// Loads a checkpoint's weights in the dtype `policy` says; norms and biases are f32.
    ///
    /// # Errors
    /// If the config is not supported, or tensors are missing, surplus or misshapen.
    pub fn load(checkpoint: &Checkpoint, policy: DTypePolicy, device: &B::Device) -> Result<Self> {
        let config = QwenConfig::read(checkpoint)?;
        let mut loader = checkpoint.loader::<B>(device, policy);
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embed_tokens = Embedding { weight: loader.table("model.embed_tokens.weight", [vocabulary, hidden]) };
        let layers = (0..config.num_hidden_layers).map(|index| Block::load(&config, index, &mut loader)).collect();
        let norm = RmsNorm { weight: loader.precise("model.norm.weight", [hidden]), epsilon: config.rms_norm_eps };
        let lm_head = (!config.tie_word_embeddings).then(|| loader.table("lm_head.weight", [vocabulary, hidden]));
        // Older files repeat what is tied or computed.
        loader.ignore("lm_head.weight");
        loader.ignore("rotary_emb.inv_freq");
        loader.finish()?;
        let rotary = Arc::new(Rotary::new(&config.rotary));
        Ok(Self { config: Arc::new(config), rotary, embed_tokens, layers, norm, lm_head })
    }
}

impl<B: KernelBackend> CausalLm<B> for Qwen<B> {
    fn facts(&self) -> DecoderFacts {
        let config = &self.config;
        DecoderFacts {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            vocabulary: config.vocab_size,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            context: config.context(),
        }
    }

    fn device(&self) -> B::Device {
        self.norm.weight.device()
    }

    fn compute_dtype(&self) -> DType {
        if self.embed_tokens.weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }

    fn embed(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        self.embed_tokens.forward(tokens.ids.clone())
    }

    fn positions(&self, segments: &Segments) -> Positions<B> {
        let (cos, sin) = self.rotary.tables::<B>(segments.positions(), self.compute_dtype(), &self.device());
        Positions { segments: segments.clone(), cos, sin }
    }

    fn layer(
        &self,
        index: usize,
        stream: Stream<B>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Stream<B> {
        self.layers[index].forward(stream, positions, cache, index + 1 == self.layers.len())
    }

    fn footprint(&self, index: usize) -> Footprint {
        self.layers[index].footprint()
    }

    fn norm(&self, stream: Stream<B>) -> Tensor<B, 2> {
        self.norm.forward_sum(stream).1
    }

    fn token_tables(&self) -> Vec<Tensor<B, 2>> {
        std::iter::once(&self.embed_tokens.weight).chain(&self.lm_head).cloned().collect()
    }

    fn head_weight(&self) -> Tensor<B, 2> {
        self.lm_head.clone().unwrap_or_else(|| self.embed_tokens.weight.clone())
    }

    fn boxed(&self) -> Box<dyn CausalLm<B>> {
        Box::new(self.clone())
    }

    fn valid(&self) -> Box<dyn CausalLm<B::InnerBackend>>
    where
        B: TrainBackend,
    {
        Box::new(Qwen::<<B as AutodiffBackend>::InnerBackend> {
            config: self.config.clone(),
            rotary: self.rotary.clone(),
            embed_tokens: self.embed_tokens.valid(),
            layers: self.layers.iter().map(Block::valid).collect(),
            norm: self.norm.valid(),
            lm_head: self.lm_head.clone().map(Tensor::inner),
        })
    }
}

impl<B: KernelBackend> Adapt<B> for Qwen<B> {
    fn each_linear(&mut self, visit: &mut dyn FnMut(&str, &mut Linear<B>)) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.each_linear(&format!("model.layers.{index}"), visit);
        }
    }
}
