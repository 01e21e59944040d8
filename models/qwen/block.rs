//! One decoder layer: attention and MLP, each behind a norm, each added to its input.

use burn::tensor::Tensor;
use firebrick_backend::ops::attention::{AttentionLayout, attention};
use firebrick_backend::ops::swiglu::swiglu;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::cache::LayerCache;
use firebrick_core::checkpoint::TensorLoader;
use firebrick_core::model::{Footprint, Positions};
use firebrick_core::nn::{Linear, RmsNorm, Stream, turned, turned_into};

use super::QwenConfig;

/// A decoder layer.
#[derive(Clone, Debug)]
pub struct Block<B: KernelBackend> {
    input_layernorm: RmsNorm<B>,
    self_attn: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: Mlp<B>,
}

/// Grouped-query attention with rotary positions.
#[derive(Clone, Debug)]
pub struct Attention<B: KernelBackend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    /// Qwen3 norms each head of the queries.
    q_norm: Option<RmsNorm<B>>,
    /// Qwen3 norms each head of the keys.
    k_norm: Option<RmsNorm<B>>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

/// The gated MLP.
#[derive(Clone, Debug)]
pub struct Mlp<B: KernelBackend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: KernelBackend> Block<B> {
    pub(super) fn load(config: &QwenConfig, index: usize, loader: &mut TensorLoader<'_, B>) -> Self {
        let at = |name: &str| format!("model.layers.{index}.{name}");
        let hidden = config.hidden_size;
        let norm = |loader: &mut TensorLoader<'_, B>, name: &str, width| RmsNorm {
            weight: loader.precise(&at(name), [width]),
            epsilon: config.rms_norm_eps,
        };
        let linear = |loader: &mut TensorLoader<'_, B>, name: &str, [out, inputs]: [usize; 2], bias: bool| {
            let weight = loader.matrix(&at(&format!("{name}.weight")), [out, inputs]);
            Linear::new(weight, bias.then(|| loader.precise(&at(&format!("{name}.bias")), [out])))
        };
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let (bias, mlp) = (config.qkv_bias, config.intermediate_size);
        Self {
            input_layernorm: norm(loader, "input_layernorm.weight", hidden),
            self_attn: Attention {
                q_proj: linear(loader, "self_attn.q_proj", [queries, hidden], bias),
                k_proj: linear(loader, "self_attn.k_proj", [keys, hidden], bias),
                v_proj: linear(loader, "self_attn.v_proj", [keys, hidden], bias),
                o_proj: linear(loader, "self_attn.o_proj", [hidden, queries], config.o_bias),
                q_norm: config.qk_norm.then(|| norm(loader, "self_attn.q_norm.weight", config.head_dim)),
                k_norm: config.qk_norm.then(|| norm(loader, "self_attn.k_norm.weight", config.head_dim)),
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.windows[index],
            },
            post_attention_layernorm: norm(loader, "post_attention_layernorm.weight", hidden),
            mlp: Mlp {
                gate_proj: linear(loader, "mlp.gate_proj", [mlp, hidden], config.mlp_bias),
                up_proj: linear(loader, "mlp.up_proj", [mlp, hidden], config.mlp_bias),
                down_proj: linear(loader, "mlp.down_proj", [hidden, mlp], config.mlp_bias),
            },
        }
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`, the last addition not done yet. The `last` layer of a model goes on with the wanted rows alone
    /// when all have attended.
    pub fn forward(
        &self,
        stream: Stream<B>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
        last: bool,
    ) -> Stream<B> {
        let (x, normed) = self.input_layernorm.forward_sum(stream);
        let attended = self.self_attn.forward(normed, positions, cache);
        let [x, attended] = if last { positions.segments.wanted_of([x, attended]) } else { [x, attended] };
        let update = Some(self.self_attn.o_proj.forward(attended));
        let (x, normed) = self.post_attention_layernorm.forward_sum(Stream { x, update });
        Stream { x, update: Some(self.mlp.forward(normed)) }
    }

    /// Where the gradients of its ops find what they need.
    pub(super) fn footprint(&self) -> Footprint {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj } = &self.mlp;
        let ([queries, hidden], [keys, _], [wide, _]) = (q_proj.shape(), k_proj.shape(), gate_proj.shape());
        let all = [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj];
        let input_of = |linears: &[&Linear<B>], width| if linears.iter().any(|l| l.keeps_input()) { width } else { 0 };
        let kept = [
            // The sums that the two norms take the statistics of.
            2 * hidden,
            if self.self_attn.q_norm.is_some() { queries + keys } else { 0 },
            // Attention keeps its three inputs, `swiglu` its two.
            queries + 2 * keys,
            2 * wide,
            input_of(&[q_proj, k_proj, v_proj], hidden),
            input_of(&[o_proj], queries),
            input_of(&[gate_proj, up_proj], hidden),
            input_of(&[down_proj], wide),
            all.iter().map(|linear| linear.kept_by_adapter()).sum(),
        ];
        Footprint {
            kept: kept.iter().sum(),
            // Beside the stream: what `swiglu` makes, or attention with the products of its tiles.
            forward: 2 * hidden + wide.max(2 * queries),
            // The gradient of the stream, and around `swiglu` that of its result and of both inputs; or around attention those of the
            // result, and twice those of its inputs, when what `swiglu` kept is gone.
            backward: 2 * hidden + (3 * wide).max((3 * queries + 4 * keys).saturating_sub(2 * wide)),
            inference: 2 * hidden + (3 * wide).max(3 * queries + 2 * keys),
        }
    }

    pub(super) fn valid(&self) -> Block<B::InnerBackend>
    where
        B: TrainBackend,
    {
        let Attention { heads, kv_heads, head_dim, window, .. } = self.self_attn;
        Block {
            input_layernorm: self.input_layernorm.valid(),
            self_attn: Attention {
                q_proj: self.self_attn.q_proj.valid(),
                k_proj: self.self_attn.k_proj.valid(),
                v_proj: self.self_attn.v_proj.valid(),
                o_proj: self.self_attn.o_proj.valid(),
                q_norm: self.self_attn.q_norm.as_ref().map(RmsNorm::valid),
                k_norm: self.self_attn.k_norm.as_ref().map(RmsNorm::valid),
                heads,
                kv_heads,
                head_dim,
                window,
            },
            post_attention_layernorm: self.post_attention_layernorm.valid(),
            mlp: Mlp {
                gate_proj: self.mlp.gate_proj.valid(),
                up_proj: self.mlp.up_proj.valid(),
                down_proj: self.mlp.down_proj.valid(),
            },
        }
    }

    pub(super) fn each_linear(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear<B>)) {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &mut self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj } = &mut self.mlp;
        for (name, linear) in [
            ("self_attn.q_proj", q_proj),
            ("self_attn.k_proj", k_proj),
            ("self_attn.v_proj", v_proj),
            ("self_attn.o_proj", o_proj),
            ("mlp.gate_proj", gate_proj),
            ("mlp.up_proj", up_proj),
            ("mlp.down_proj", down_proj),
        ] {
            visit(&format!("{path}.{name}"), linear);
        }
    }
}

impl<B: KernelBackend> Attention<B> {
    /// `[tokens, hidden]` → `[tokens, heads · dim]`, before `o_proj`; with a cache the keys are all the sequence's so far.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let [tokens, _] = x.dims();
        let heads = |x: Tensor<B, 2>, heads: usize| x.reshape([tokens, heads, self.head_dim]);
        let angles = || [positions.cos.clone(), positions.sin.clone()];
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let q = turned(heads(q, self.heads), self.q_norm.as_ref(), angles());
        let (k, v) = (heads(k, self.kv_heads), heads(v, self.kv_heads));
        let norm = self.k_norm.as_ref();
        let (k, v, spans) = match cache {
            None => (turned(k, norm, angles()), v, positions.segments.spans()),
            Some(cache) => {
                let (angles, segments) = ([&positions.cos, &positions.sin], &positions.segments);
                let turn_into = |keys, k, angles, start| turned_into(keys, k, norm, angles, start);
                let (k, v, capacity) = cache.append(k, v, angles, segments, turn_into);
                (k, v, positions.segments.cached_spans(capacity))
            }
        };
        let scale = (self.head_dim as f64).sqrt().recip();
        let layout = AttentionLayout { spans, causal: true, window: self.window, scale };
        attention(q, k, v, &layout).reshape([tokens, self.heads * self.head_dim])
    }
}

impl<B: KernelBackend> Mlp<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(swiglu(gate, up))
    }
}
