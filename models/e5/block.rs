//! One encoder layer: attention and feed-forward, each added to its input and then normed.

use burn::tensor::Tensor;
use firebrick_backend::ops::attention::{AttentionLayout, attention};
use firebrick_backend::ops::gelu::gelu;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::TensorLoader;
use firebrick_core::model::Footprint;
use firebrick_core::nn::{LayerNorm, Linear};
use firebrick_core::sequence::Segments;

use super::E5Config;

/// An encoder layer. Fields spell the checkpoint's names, but for `attention.self`, a word Rust keeps for itself.
#[derive(Clone, Debug)]
pub struct Block<B: KernelBackend> {
    attention: Attention<B>,
    intermediate: Linear<B>,
    output: Linear<B>,
    output_norm: LayerNorm<B>,
}

/// Attention of every token to the whole of its sequence.
#[derive(Clone, Debug)]
pub struct Attention<B: KernelBackend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Linear<B>,
    output_norm: LayerNorm<B>,
    heads: usize,
}

/// A layer norm of the checkpoint, under its path. The oldest checkpoints call its weight `gamma` and its bias `beta`.
pub(super) fn layer_norm<B: KernelBackend>(
    config: &E5Config,
    path: &str,
    loader: &mut TensorLoader<'_, B>,
) -> LayerNorm<B> {
    let old = loader.contains(&format!("{path}.gamma"));
    let [weight, bias] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
    LayerNorm {
        weight: loader.precise(&format!("{path}.{weight}"), [config.hidden_size]),
        bias: loader.precise(&format!("{path}.{bias}"), [config.hidden_size]),
        epsilon: config.layer_norm_eps,
    }
}

impl<B: KernelBackend> Block<B> {
    /// `path` is that of the layer in the file, `encoder.layer.0`.
    pub(super) fn load(config: &E5Config, path: &str, loader: &mut TensorLoader<'_, B>) -> Self {
        let mut linear = |name: &str, [out, inputs]: [usize; 2]| {
            let weight = loader.matrix(&format!("{path}.{name}.weight"), [out, inputs]);
            Linear::new(weight, Some(loader.precise(&format!("{path}.{name}.bias"), [out])))
        };
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let query = linear("attention.self.query", [hidden, hidden]);
        let key = linear("attention.self.key", [hidden, hidden]);
        let value = linear("attention.self.value", [hidden, hidden]);
        let attended = linear("attention.output.dense", [hidden, hidden]);
        let intermediate = linear("intermediate.dense", [wide, hidden]);
        let output = linear("output.dense", [hidden, wide]);
        let attention = Attention {
            query,
            key,
            value,
            output: attended,
            output_norm: layer_norm(config, &format!("{path}.attention.output.LayerNorm"), loader),
            heads: config.num_attention_heads,
        };
        let output_norm = layer_norm(config, &format!("{path}.output.LayerNorm"), loader);
        Self { attention, intermediate, output, output_norm }
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(&self, x: Tensor<B, 2>, segments: &Segments) -> Tensor<B, 2> {
        let x = self.attention.forward(x, segments);
        let wide = gelu(self.intermediate.forward_without_bias(x.clone()), self.intermediate.bias.clone());
        self.output_norm.forward_sum(self.output.forward(wide), x)
    }

    /// Where the gradients of its ops find what they need.
    pub(super) fn footprint(&self) -> Footprint {
        let Attention { query, key, value, output, .. } = &self.attention;
        let [wide, hidden] = self.intermediate.shape();
        let all = [query, key, value, output, &self.intermediate, &self.output];
        let input_of = |linear: &Linear<B>, width| if linear.keeps_input() { width } else { 0 };
        let kept = [
            // Attention keeps its three inputs, each of the two norms the two parts of its sum, `gelu` its input. What the other linears'
            // adapters see is among these.
            3 * hidden,
            4 * hidden,
            wide,
            input_of(output, hidden),
            input_of(&self.output, wide),
            all.iter().map(|linear| linear.kept_by_adapter()).sum(),
        ];
        Footprint {
            kept: kept.iter().sum(),
            forward: hidden + wide.max(2 * hidden),
            // The gradient of the stream; around `gelu` those of its result and its input, or around a norm its sum and its gradient.
            backward: 2 * hidden + (2 * wide).max(7 * hidden - wide.min(7 * hidden)),
            inference: 2 * hidden + (2 * wide).max(5 * hidden),
        }
    }

    pub(super) fn valid(&self) -> Block<B::InnerBackend>
    where
        B: TrainBackend,
    {
        Block {
            attention: Attention {
                query: self.attention.query.valid(),
                key: self.attention.key.valid(),
                value: self.attention.value.valid(),
                output: self.attention.output.valid(),
                output_norm: self.attention.output_norm.valid(),
                heads: self.attention.heads,
            },
            intermediate: self.intermediate.valid(),
            output: self.output.valid(),
            output_norm: self.output_norm.valid(),
        }
    }

    pub(super) fn each_linear(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear<B>)) {
        let Attention { query, key, value, output, .. } = &mut self.attention;
        for (name, linear) in [
            ("attention.self.query", query),
            ("attention.self.key", key),
            ("attention.self.value", value),
            ("attention.output.dense", output),
            ("intermediate.dense", &mut self.intermediate),
            ("output.dense", &mut self.output),
        ] {
            visit(&format!("{path}.{name}"), linear);
        }
    }
}

impl<B: KernelBackend> Attention<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, added to the input and normed.
    pub fn forward(&self, x: Tensor<B, 2>, segments: &Segments) -> Tensor<B, 2> {
        let [tokens, hidden] = x.dims();
        let dim = hidden / self.heads;
        let [q, k, v] = Linear::forward_all([&self.query, &self.key, &self.value], x.clone())
            .map(|projected| projected.reshape([tokens, self.heads, dim]));
        let scale = (dim as f64).sqrt().recip();
        let layout = AttentionLayout { spans: segments.spans(), causal: false, window: None, scale };
        let attended = attention(q, k, v, &layout);
        self.output_norm.forward_sum(self.output.forward(attended.reshape([tokens, hidden])), x)
    }
}
