//! Autodiff: each op with a gradient of its own; the forward and the backward run on the inner backend.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorMetadata};

use crate::KernelBackend;
use crate::ops::attention::AttentionLayout;
use crate::ops::cross_entropy::Targets;
use crate::ops::{
    add_layer_norm, add_rms_norm, attention, cross_entropy, embedding, gelu, layer_norm, linear, linears, lora_linear,
    norm_rope, rms_norm, rope, softmax, swiglu,
};
use crate::packed::Packed;

/// The autodiff primitive over an inner backend.
pub(crate) type Tracked<B> = FloatTensor<Autodiff<B>>;

/// Whether a gradient will be asked of this tensor. A state that only an untracked parent needs is not kept.
pub(crate) fn is_tracked<B: KernelBackend>(tensor: &Tracked<B>) -> bool {
    !tensor.node.requirement.is_none()
}

/// A parent that may be absent: then an untracked empty leaf, of which no gradient will be asked.
pub(crate) fn parent<B: KernelBackend>(tensor: Option<Tracked<B>>, like: &FloatTensor<B>) -> Tracked<B> {
    tensor.unwrap_or_else(|| {
        let none = B::float_empty(Shape::from(vec![0]), &B::float_device(like), like.dtype().into());
        <Autodiff<B> as AutodiffBackend>::from_inner(none)
    })
}

// `write_rows`, `rope_into` and `norm_rope_into` have no line: a cache is not trained through, and the references differentiate.
impl<B: KernelBackend, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn has_f64() -> bool {
        B::has_f64()
    }
    fn reads_weights(device: &B::Device, dtype: DType) -> bool {
        B::reads_weights(device, dtype)
    }
    fn reads_cache(device: &B::Device, dtype: DType) -> bool {
        B::reads_cache(device, dtype)
    }
    fn release_memory(device: &B::Device) {
        B::release_memory(device);
    }
    // `workers` and `concurrently` have no line: the graph is shared, and a thread that waits inside it must not take up other work.

    fn rms_norm(x: Tracked<B>, weight: Tracked<B>, epsilon: f64) -> Tracked<B> {
        rms_norm::autodiff::rms_norm::<B, C>(x, weight, epsilon)
    }
    fn layer_norm(x: Tracked<B>, weight: Tracked<B>, bias: Tracked<B>, epsilon: f64) -> Tracked<B> {
        layer_norm::autodiff::layer_norm::<B, C>(x, weight, bias, epsilon)
    }
    fn add_rms_norm(x: Tracked<B>, residual: Tracked<B>, weight: Tracked<B>, epsilon: f64) -> (Tracked<B>, Tracked<B>) {
        add_rms_norm::autodiff::add_rms_norm::<B, C>(x, residual, weight, epsilon)
    }
    fn add_layer_norm(
        x: Tracked<B>,
        residual: Tracked<B>,
        weight: Tracked<B>,
        bias: Tracked<B>,
        epsilon: f64,
    ) -> Tracked<B> {
        add_layer_norm::autodiff::add_layer_norm::<B, C>(x, residual, weight, bias, epsilon)
    }
    fn softmax(x: Tracked<B>, scale: f64, mask: Option<Tracked<B>>) -> Tracked<B> {
        softmax::autodiff::softmax::<B, C>(x, scale, mask)
    }
    fn rope(x: Tracked<B>, cos: Tracked<B>, sin: Tracked<B>) -> Tracked<B> {
        rope::autodiff::rope::<B, C>(x, cos, sin)
    }
    fn norm_rope(x: Tracked<B>, weight: Tracked<B>, epsilon: f64, cos: Tracked<B>, sin: Tracked<B>) -> Tracked<B> {
        norm_rope::autodiff::norm_rope::<B, C>(x, weight, epsilon, cos, sin)
    }
    fn swiglu(gate: Tracked<B>, up: Tracked<B>) -> Tracked<B> {
        swiglu::autodiff::swiglu::<B, C>(gate, up)
    }
    fn gelu(x: Tracked<B>, bias: Option<Tracked<B>>) -> Tracked<B> {
        gelu::autodiff::gelu::<B, C>(x, bias)
    }
    fn packed(matrix: Packed, device: &B::Device) -> Tracked<B> {
        <Self as AutodiffBackend>::from_inner(B::packed(matrix, device))
    }
    fn unpacked(weight: Tracked<B>) -> Tracked<B> {
        // What is tracked is neither packed nor arranged.
        if is_tracked::<B>(&weight) {
            weight
        } else {
            <Self as AutodiffBackend>::from_inner(B::unpacked(weight.primitive))
        }
    }
    fn arranged(weight: Tracked<B>) -> Tracked<B> {
        // What is trained stays as it is.
        if is_tracked::<B>(&weight) {
            weight
        } else {
            <Self as AutodiffBackend>::from_inner(B::arranged(weight.primitive))
        }
    }
    fn embedding(weight: Tracked<B>, ids: IntTensor<B>) -> Tracked<B> {
        embedding::autodiff::embedding::<B, C>(weight, ids)
    }
    fn linear(x: Tracked<B>, weight: Tracked<B>, bias: Option<Tracked<B>>) -> Tracked<B> {
        linear::autodiff::linear::<B, C>(x, weight, bias)
    }
    fn linears<const N: usize>(x: Tracked<B>, maps: [linears::Map<Self>; N]) -> [Tracked<B>; N] {
        linears::autodiff::linears::<B, C, N>(x, maps)
    }
    fn lora_linear(
        x: Tracked<B>,
        weight: Tracked<B>,
        bias: Option<Tracked<B>>,
        low: Tracked<B>,
        b: Tracked<B>,
        scale: f64,
    ) -> Tracked<B> {
        lora_linear::autodiff::lora_linear::<B, C>(x, weight, bias, low, b, scale)
    }
    fn attention(q: Tracked<B>, k: Tracked<B>, v: Tracked<B>, layout: &AttentionLayout) -> Tracked<B> {
        attention::autodiff::attention::<B, C>(q, k, v, layout)
    }
    fn cross_entropy_of_linear(hidden: Tracked<B>, weight: Tracked<B>, targets: &Targets) -> Tracked<B> {
        cross_entropy::autodiff::cross_entropy_of_linear::<B, C>(hidden, weight, targets)
    }
}
