//! BERT encoders (E5, multilingual-e5-small, MiniLM, BGE, GTE…) and those of (XLM-)RoBERTa (multilingual-e5-base and -large): one
//! implementation, told apart by `config.json`.
//!
//! Source: Devlin et al. 2019; transformers' `modeling_bert.py`, `modeling_xlm_roberta.py`. The pooler and the heads of pre-training are
//! not part of an embedding and are left unread. Dropout is off in training too: an adapter has its own.

mod block;
mod config;

use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy, TensorLoader};
use firebrick_core::error::Result;
use firebrick_core::model::{Adapt, Encoder, EncoderFacts, Footprint};
use firebrick_core::nn::{Embedding, LayerNorm, Linear};
use firebrick_core::sequence::{Segments, Sequences};

pub use block::{Attention, Block};
pub use config::E5Config;

/// The values of `model_type` this family reads.
pub const MODEL_TYPES: &[&str] = &["bert", "roberta", "xlm-roberta"];

/// What the tensors' names begin with where a model with a head was saved.
const PREFIXES: &[&str] = &["", "bert.", "roberta."];

/// Tensors of checkpoints that an embedding does not need.
const UNREAD: &[&str] = &[
    "pooler.dense.weight",
    "pooler.dense.bias",
    "embeddings.position_ids",
    "cls.predictions.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.transform.dense.bias",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.transform.LayerNorm.bias",
    "cls.predictions.transform.LayerNorm.gamma",
    "cls.predictions.transform.LayerNorm.beta",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "lm_head.bias",
    "lm_head.dense.weight",
    "lm_head.dense.bias",
    "lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
];

/// An encoder of this family.
#[derive(Clone, Debug)]
pub struct E5<B: KernelBackend> {
    config: Arc<E5Config>,
    word_embeddings: Embedding<B>,
    /// `[positions, hidden]`, each row with that of token type 0 added: a text that is embedded is always a first one, never the second
    /// of a pair.
    position_embeddings: Tensor<B, 2>,
    norm: LayerNorm<B>,
    layer: Vec<Block<B>>,
}

impl<B: KernelBackend> E5<B> {
    /// Loads a checkpoint's weights in the dtype `policy` says; norms, biases and positions are f32.
    ///
    /// # Errors
    /// If the config is not supported, or tensors are missing, surplus or misshapen.
    pub fn load(checkpoint: &Checkpoint, policy: DTypePolicy, device: &B::Device) -> Result<Self> {
        let config = E5Config::read(checkpoint)?;
        let mut loader = checkpoint.loader::<B>(device, policy);
        let prefix = prefix(&loader);
        let at = |name: &str| format!("{prefix}{name}");
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let weight = loader.table(&at("embeddings.word_embeddings.weight"), [vocabulary, hidden]);
        let positions: Tensor<B, 2> =
            loader.precise(&at("embeddings.position_embeddings.weight"), [config.max_position_embeddings, hidden]);
        let types: Tensor<B, 2> =
            loader.precise(&at("embeddings.token_type_embeddings.weight"), [config.type_vocab_size, hidden]);
        let norm = block::layer_norm(&config, &at("embeddings.LayerNorm"), &mut loader);
        let load = |index| Block::load(&config, &at(&format!("encoder.layer.{index}")), &mut loader);
        let layer = (0..config.num_hidden_layers).map(load).collect();
        UNREAD.iter().for_each(|name| loader.ignore(name));
        loader.finish()?;
        let position_embeddings = positions + types.narrow(0, 0, 1);
        Ok(Self { config: Arc::new(config), word_embeddings: Embedding { weight }, position_embeddings, norm, layer })
    }
}

/// The prefix that the embedding table is found under; without one if it is nowhere, so that the error names it plainly.
fn prefix<B: KernelBackend>(loader: &TensorLoader<'_, B>) -> &'static str {
    let holds = |prefix: &&&str| loader.contains(&format!("{prefix}embeddings.word_embeddings.weight"));
    PREFIXES.iter().find(holds).copied().unwrap_or_default()
}

impl<B: KernelBackend> Encoder<B> for E5<B> {
    fn facts(&self) -> EncoderFacts {
        let config = &self.config;
        EncoderFacts {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            vocabulary: config.vocab_size,
            context: config.context(),
        }
    }

    fn device(&self) -> B::Device {
        self.norm.weight.device()
    }

    fn embed(&self, tokens: &Sequences<B>) -> Tensor<B, 2> {
        let (segments, context) = (&tokens.segments, self.config.context());
        for segment in segments.iter() {
            let len = segment.len;
            assert!((1..=context).contains(&len), "a sequence of {len} tokens for a context of {context}");
        }
        let first = self.config.first_position;
        let positions: Vec<i64> = segments.positions().map(|position| (first + position) as i64).collect();
        let count = positions.len();
        let positions = Tensor::<B, 1, Int>::from_data(TensorData::new(positions, [count]), &self.device());
        let words = self.word_embeddings.forward(tokens.ids.clone());
        self.norm.forward(words + self.position_embeddings.clone().select(0, positions))
    }

    fn layer(&self, index: usize, x: Tensor<B, 2>, segments: &Segments) -> Tensor<B, 2> {
        self.layer[index].forward(x, segments)
    }

    fn footprint(&self, index: usize) -> Footprint {
        self.layer[index].footprint()
    }

    fn token_tables(&self) -> Vec<Tensor<B, 2>> {
        vec![self.word_embeddings.weight.clone(), self.position_embeddings.clone()]
    }

    fn boxed(&self) -> Box<dyn Encoder<B>> {
        Box::new(self.clone())
    }

    fn valid(&self) -> Box<dyn Encoder<B::InnerBackend>>
    where
        B: TrainBackend,
    {
        Box::new(E5::<<B as AutodiffBackend>::InnerBackend> {
            config: self.config.clone(),
            word_embeddings: self.word_embeddings.valid(),
            position_embeddings: self.position_embeddings.clone().inner(),
            norm: self.norm.valid(),
            layer: self.layer.iter().map(Block::valid).collect(),
        })
    }
}

impl<B: KernelBackend> Adapt<B> for E5<B> {
    /// The paths are those of transformers' `BertModel`, which PEFT's adapters name, also where the file has a prefix.
    fn each_linear(&mut self, visit: &mut dyn FnMut(&str, &mut Linear<B>)) {
        for (index, layer) in self.layer.iter_mut().enumerate() {
            layer.each_linear(&format!("encoder.layer.{index}"), visit);
        }
    }
}
