//! Each op and its gradient on small inputs with awkward sizes: the forward as generation runs it, the gradient as training does.

use std::fmt;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use firebrick_backend::TrainBackend;
use firebrick_backend::ops::add_layer_norm::add_layer_norm;
use firebrick_backend::ops::add_rms_norm::add_rms_norm;
use firebrick_backend::ops::attention::{AttentionLayout, Span, attention};
use firebrick_backend::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use firebrick_backend::ops::gelu::gelu;
use firebrick_backend::ops::layer_norm::layer_norm;
use firebrick_backend::ops::linear::linear;
use firebrick_backend::ops::linears::linears;
use firebrick_backend::ops::lora_linear::lora_linear;
use firebrick_backend::ops::norm_rope::{norm_rope, norm_rope_into};
use firebrick_backend::ops::rms_norm::rms_norm;
use firebrick_backend::ops::rope::{rope, rope_into};
use firebrick_backend::ops::softmax::softmax;
use firebrick_backend::ops::swiglu::swiglu;
use firebrick_backend::ops::write_rows::write_rows;

use super::{Parts, hash, part};

/// The parts of one op: tracked inputs, then frozen ones, each a name, a rank and a shape; then the op, written once and run twice.
macro_rules! op {
    ($B:ident, $at:ident; $($tracked:ident $rank:literal $shape:expr),*; $($frozen:ident $frozen_rank:literal $frozen_shape:expr),*; $op:expr) => {{
        type Plain<B> = <B as AutodiffBackend>::InnerBackend;
        let forward = {
            $(let $tracked: Tensor<Plain<$B>, $rank> = input::<$B, $rank>(stringify!($tracked), $shape, $at).inner();)*
            $(let $frozen: Tensor<Plain<$B>, $frozen_rank> = input::<$B, $frozen_rank>(stringify!($frozen), $frozen_shape, $at).inner();)*
            part("the output", $op)
        };
        #[allow(unused_mut)]
        let mut parts = vec![forward];
        $(let $tracked = input::<$B, $rank>(stringify!($tracked), $shape, $at).require_grad();)*
        $(let $frozen = input::<$B, $frozen_rank>(stringify!($frozen), $frozen_shape, $at);)*
        let inputs: &[&str] = &[$(stringify!($tracked)),*];
        if !inputs.is_empty() {
            let _kept = ($($tracked.clone(),)*);
            let output = { $(let $tracked = $tracked.clone();)* $op };
            let factors = input::<$B, _>("factors", output.dims(), $at);
            let _gradients = (output * factors).sum().backward();
            $(parts.push(match $tracked.grad(&_gradients) {
                Some(gradient) => part(concat!("the gradient of ", stringify!($tracked)), gradient),
                None => (concat!("no gradient of ", stringify!($tracked)).to_owned(), Vec::new()),
            });)*
        }
        parts
    }};
}

/// An op of the backend floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // Their names are the ops'.
pub enum Op {
    RmsNorm,
    LayerNorm,
    AddRmsNorm,
    AddLayerNorm,
    Softmax,
    Rope,
    RopeInto,
    NormRope,
    NormRopeInto,
    Swiglu,
    Gelu,
    Linear,
    Linears,
    LoraLinear,
    Attention,
    CachedAttention,
    WriteRows,
    CrossEntropyOfLinear,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::RmsNorm,
        Self::LayerNorm,
        Self::AddRmsNorm,
        Self::AddLayerNorm,
        Self::Softmax,
        Self::Rope,
        Self::RopeInto,
        Self::NormRope,
        Self::NormRopeInto,
        Self::Swiglu,
        Self::Gelu,
        Self::Linear,
        Self::Linears,
        Self::LoraLinear,
        Self::Attention,
        Self::CachedAttention,
        Self::WriteRows,
        Self::CrossEntropyOfLinear,
    ];

    pub(super) fn tolerance(self) -> f64 {
        match self {
            Self::WriteRows => 0.0,
            Self::Linear
            | Self::Linears
            | Self::LoraLinear
            | Self::Attention
            | Self::CachedAttention
            | Self::CrossEntropyOfLinear => 2e-3,
            _ => 1e-5,
        }
    }

    /// The output and the gradients of the op.
    pub(super) fn measure<B: TrainBackend>(self, device: &B::Device, dtype: DType) -> Parts {
        let at = (device, dtype);
        match self {
            Self::RmsNorm => op!(B, at; x 2 [7, 131], weight 1 [131]; ; rms_norm(x, weight, 1e-6)),
            Self::LayerNorm => {
                op!(B, at; x 2 [7, 131], weight 1 [131], bias 1 [131]; ; layer_norm(x, weight, bias, 1e-6))
            }
            Self::AddRmsNorm => op!(B, at; x 2 [7, 131], residual 2 [7, 131], weight 1 [131]; ; {
                let (sum, normed) = add_rms_norm(x, residual, weight, 1e-6);
                Tensor::cat(vec![sum, normed], 0)
            }),
            Self::AddLayerNorm => {
                op!(B, at; x 2 [7, 131], residual 2 [7, 131], weight 1 [131], bias 1 [131]; ;
                    add_layer_norm(x, residual, weight, bias, 1e-6))
            }
            Self::Softmax => op!(B, at; x 2 [6, 301]; mask 2 [3, 301]; softmax(x, 0.5, Some(mask))),
            Self::Rope => op!(B, at; x 3 [9, 3, 32]; cos 2 [9, 16], sin 2 [9, 16]; rope(x, cos, sin)),
            Self::RopeInto => {
                op!(B, at; target 3 [40, 3, 32], x 3 [9, 3, 32]; cos 2 [9, 16], sin 2 [9, 16]; rope_into(target, x, cos, sin, 17))
            }
            Self::NormRope => {
                op!(B, at; x 3 [9, 3, 32], weight 1 [32]; cos 2 [9, 16], sin 2 [9, 16]; norm_rope(x, weight, 1e-6, [cos, sin]))
            }
            Self::NormRopeInto => {
                op!(B, at; target 3 [40, 3, 32], x 3 [9, 3, 32], weight 1 [32]; cos 2 [9, 16], sin 2 [9, 16];
                    norm_rope_into(target, x, weight, 1e-6, [cos, sin], 17))
            }
            Self::Swiglu => op!(B, at; gate 2 [7, 131], up 2 [7, 131]; ; swiglu(gate, up)),
            Self::Gelu => op!(B, at; x 2 [7, 131], bias 1 [131]; ; gelu(x, Some(bias))),
            Self::Linear => {
                op!(B, at; x 2 [19, 131], weight 2 [67, 131], bias 1 [67]; ; linear(x, weight, Some(bias)))
            }
            Self::Linears => {
                op!(B, at; x 2 [5, 131], weight 2 [67, 131], bias 1 [67], other 2 [13, 131]; ; {
                    Tensor::cat(linears(x, [(weight, Some(bias)), (other, None)]).into(), 1)
                })
            }
            Self::LoraLinear => {
                op!(B, at; x 2 [5, 131], a 2 [4, 131], b 2 [67, 4]; weight 2 [67, 131], bias 1 [67];
                    lora_linear(x, None, weight, Some(bias), [a, b], 2.0))
            }
            Self::Attention => {
                // Two sequences end to end, grouped queries, causal.
                let spans = [span(0, 21, 0, 21), span(21, 40, 21, 40)];
                let layout = AttentionLayout { spans: spans.into(), causal: true, window: None, scale: 0.18 };
                op!(B, at; q 3 [61, 6, 32], k 3 [61, 2, 32], v 3 [61, 2, 32]; ; attention(q, k, v, &layout))
            }
            Self::CachedAttention => {
                // One new token each behind 36 and 12 that are cached.
                let spans = [span(0, 1, 0, 37), span(1, 1, 64, 13)];
                let layout = AttentionLayout { spans: spans.into(), causal: true, window: None, scale: 0.18 };
                op!(B, at; q 3 [2, 6, 32], k 3 [128, 2, 32], v 3 [128, 2, 32]; ; attention(q, k, v, &layout))
            }
            Self::WriteRows => op!(B, at; ; target 2 [40, 24], rows 2 [5, 24]; write_rows(target, rows, 17)),
            Self::CrossEntropyOfLinear => {
                let ids: Vec<u32> = (0..23).map(|row| row * 37 % 509).collect();
                let weights: Vec<f32> = (0..23u8).map(|row| f32::from(row % 3) * 0.5).collect();
                let targets = Targets::new(ids, weights);
                op!(B, at; hidden 2 [23, 64]; weight 2 [509, 64]; cross_entropy_of_linear(hidden, weight, &targets))
            }
        }
    }
}

fn span(query_start: usize, query_len: usize, key_start: usize, key_len: usize) -> Span {
    Span { query_start, query_len, key_start, key_len }
}

/// Uniform in [-1, 1) by the input's name, each value an f32.
fn input<B: TrainBackend, const D: usize>(name: &str, shape: [usize; D], at: (&B::Device, DType)) -> Tensor<B, D> {
    // SplitMix64 (Steele et al. 2014).
    let mut state = hash(name.bytes());
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(values, shape).convert_dtype(at.1), at)
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RmsNorm => "rms_norm",
            Self::LayerNorm => "layer_norm",
            Self::AddRmsNorm => "add_rms_norm",
            Self::AddLayerNorm => "add_layer_norm",
            Self::Softmax => "softmax",
            Self::Rope => "rope",
            Self::RopeInto => "rope_into",
            Self::NormRope => "norm_rope",
            Self::NormRopeInto => "norm_rope_into",
            Self::Swiglu => "swiglu",
            Self::Gelu => "gelu",
            Self::Linear => "linear",
            Self::Linears => "linears",
            Self::LoraLinear => "lora_linear",
            Self::Attention => "attention",
            Self::CachedAttention => "attention over a cache",
            Self::WriteRows => "write_rows",
            Self::CrossEntropyOfLinear => "cross_entropy_of_linear",
        })
    }
}
