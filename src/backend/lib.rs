//! The backend floor: the hot ops as a backend extension, their gradients, and the backends they run on.
//!
//! [`KernelBackend`] is a Burn backend that also runs our ops. Every method has a default, the reference in Burn's own ops,
//! so an op is correct on every backend before it is fast on one. This crate is the only place for `unsafe` and `cfg(feature)`.
#![warn(missing_docs)]
#![recursion_limit = "256"]

// The ops are tested on the backends of the build: with none, all tests would pass.
#[cfg(all(test, not(any(feature = "flex", feature = "candle", feature = "wgpu", feature = "cuda"))))]
compile_error!("no backend to test: name one, such as `--features flex`, or test the whole workspace");

/// The backends of this build, and Burn's autodiff to train on them.
pub mod backends {
    /// burn-candle, on whatever device it is given.
    #[cfg(feature = "candle")]
    pub use crate::targets::candle::Backend as Candle;
    /// burn-cuda.
    #[cfg(feature = "cuda")]
    pub use crate::targets::cuda::Backend as Cuda;
    /// burn-wgpu, for Metal, Vulkan and WebGPU.
    #[cfg(feature = "wgpu")]
    pub use crate::targets::wgpu::Backend as Wgpu;
    /// burn-wgpu op by op, without the fusion of element-wise ones: what the ops run on underneath it.
    #[cfg(feature = "wgpu")]
    pub use crate::targets::wgpu::Unfused as WgpuUnfused;
    pub use burn::backend::Autodiff;
    #[cfg(feature = "flex")]
    pub use burn_flex::Flex;
}
pub mod device;
pub mod launches;
#[cfg(test)]
#[path = "../../tests/metal/tests.rs"]
mod metal;
#[cfg(all(test, feature = "metal-source"))]
#[path = "../../tests/metal/generated.rs"]
mod metal_source;
pub mod ops;
pub mod packed;
pub mod process;
pub mod roof;
pub mod select;
mod targets;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, TensorData};
use ops::attention::AttentionLayout;
use ops::cross_entropy::Targets;
use ops::linears::Map;
use packed::Packed;

/// A Burn backend that also runs our hot ops, on primitives (dynamic rank).
///
/// A target overrides a method only to make it faster; a method without an override is the reference, written in Burn's own ops.
/// Ops with a gradient of their own list it here too, because `Autodiff<B>` calls it on the inner backend, and only for the
/// parents that need it.
pub trait KernelBackend: Backend {
    /// Whether everything also works in f64, in which the CPU says what is right. Some backends claim f64 and have ops without it: candle's
    /// sums, the fusion of burn-fusion.
    fn has_f64() -> bool {
        false
    }

    /// Whether [`linear`](Self::linear) multiplies by weights stored in this dtype as they are. Weights in any other are better converted
    /// when they are loaded.
    fn reads_weights(device: &Self::Device, dtype: DType) -> bool {
        let _ = device;
        dtype == DType::F32 || dtype == DType::F64 && Self::has_f64()
    }

    /// Whether [`write_rows`](Self::write_rows) writes, and [`attention`](Self::attention) reads, keys and values that are stored in this dtype
    /// while everything else is computed in f32.
    fn reads_cache(device: &Self::Device, dtype: DType) -> bool {
        let _ = device;
        dtype == DType::F32
    }

    /// How many pieces of independent work go well side by side: the threads of a CPU, one on a device that is parallel in itself.
    fn workers() -> usize {
        1
    }
    /// Does pieces of work that do not depend on each other, side by side where that pays; the results are in the order of the pieces.
    ///
    /// Worth calling for a single piece too: on the CPU an op that is called from outside its pool of threads hands its work over and
    /// sleeps, while all ops of a piece are called from inside.
    fn concurrently<T: Send, R: Send>(pieces: Vec<T>, work: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
        pieces.into_iter().map(work).collect()
    }

    /// Hands memory that no tensor uses, kept so that the next results need none from the system, back to it: after a task that needed much.
    fn release_memory(device: &Self::Device) {
        Self::memory_cleanup(device);
    }

    /// `x` in memory of its own: every byte is read once and written once, which no op on rows is faster than.
    fn copied(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_mul_scalar(x, 1.0.into())
    }

    /// Root mean square norm over the last axis: `x / sqrt(mean(x²) + ε) · weight` (Zhang & Sennrich 2019).
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        ops::rms_norm::reference::<Self>(x, weight, epsilon)
    }
    /// Gradient of [`rms_norm`](Self::rms_norm) with respect to `x`.
    fn rms_norm_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        ops::rms_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
    }
    /// Gradient of [`rms_norm`](Self::rms_norm) with respect to `weight`, `[hidden]`.
    fn rms_norm_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        ops::rms_norm::reference_backward_weight::<Self>(x, grad, epsilon)
    }

    /// Layer norm over the last axis with an affine map (Ba et al. 2016).
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        ops::layer_norm::reference::<Self>(x, weight, bias, epsilon)
    }
    /// Gradient of [`layer_norm`](Self::layer_norm) with respect to `x`.
    fn layer_norm_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        ops::layer_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
    }
    /// Gradient of [`layer_norm`](Self::layer_norm) with respect to `weight`, `[hidden]`.
    fn layer_norm_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f64) -> FloatTensor<Self> {
        ops::layer_norm::reference_backward_weight::<Self>(x, grad, epsilon)
    }

    /// `x + residual`, and [`rms_norm`](Self::rms_norm) of it. The gradient is that of the norm, added to what reaches the sum.
    fn add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        ops::add_rms_norm::reference::<Self>(x, residual, weight, epsilon)
    }

    /// [`layer_norm`](Self::layer_norm) of `x + residual`. The gradient is that of the norm.
    fn add_layer_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        ops::add_layer_norm::reference::<Self>(x, residual, weight, bias, epsilon)
    }

    /// Softmax over the last axis of `scale · x + mask`; the rows of `mask` `[m, n]` are added to those of `x` in turn.
    fn softmax(x: FloatTensor<Self>, scale: f64, mask: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        ops::softmax::reference::<Self>(x, scale, mask)
    }
    /// Gradient of [`softmax`](Self::softmax) with respect to `x`, from its output `y`.
    fn softmax_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        ops::softmax::reference_backward::<Self>(y, grad, scale)
    }

    /// Rotary position embedding of `x` `[tokens, heads, dim]` by halves, `cos` and `sin` `[tokens, dim / 2]` (Su et al. 2021, in
    /// the layout of transformers' `rotate_half`). Its gradient is the rotation by `-sin`.
    fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        ops::rope::reference::<Self>(x, cos, sin)
    }

    /// [`rope`](Self::rope) of the [`rms_norm`](Self::rms_norm) of each head of `x` `[tokens, heads, dim]`, `weight` `[dim]`, as Qwen3's
    /// attention begins. The gradient is that of the norm, of what is rotated back.
    fn norm_rope(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        ops::norm_rope::reference::<Self>(x, weight, epsilon, cos, sin)
    }

    /// `silu(gate) · up` (Shazeer 2020).
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        ops::swiglu::reference::<Self>(gate, up)
    }
    /// Gradients of [`swiglu`](Self::swiglu) with respect to `gate` and `up`.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        ops::swiglu::reference_backward::<Self>(gate, up, grad)
    }

    /// `x · Φ(x)`, exactly (Hendrycks & Gimpel 2016); of `x + bias` where there is a bias, `[n]`.
    fn gelu(x: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        ops::gelu::reference::<Self>(x, bias)
    }
    /// Gradient of [`gelu`](Self::gelu) with respect to `x`; summed over rows it is that of the bias.
    fn gelu_backward(
        x: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        ops::gelu::reference_backward::<Self>(x, bias, grad)
    }

    /// A packed matrix as a weight: in its blocks where [`reads_weights`](Self::reads_weights) says that they are read, else in f32.
    fn packed(matrix: Packed, device: &Self::Device) -> FloatTensor<Self> {
        Self::float_from_data(TensorData::new(matrix.unpacked(), matrix.shape), device)
    }
    /// The values of a weight as floats, row by row: of a packed one in f32, of any other as they are.
    fn unpacked(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        weight
    }
    /// A frozen weight of [`linear`](Self::linear) as it is multiplied by best: as it is, or its values in another order, which only the ops that
    /// take weights know, and [`unpacked`](Self::unpacked).
    fn arranged(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        weight
    }
    /// The rows `ids` of a table in its stored format, `[tokens, hidden]`, in f32 (f64 if the table is).
    fn embedding(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        ops::embedding::reference::<Self>(weight, ids)
    }

    /// `x · Wᵀ + b`: `x` `[rows, in]`, `weight` `[out, in]` in its stored format, `bias` `[out]`. The result has `x`'s dtype.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        ops::linear::reference::<Self>(x, weight, bias)
    }
    /// [`linear`](Self::linear) of the same `x` by several weights, each with its bias: queries, keys and values, or gate and up. `x` is read,
    /// and the work is begun, once for all.
    fn linears<const N: usize>(x: FloatTensor<Self>, maps: [Map<Self>; N]) -> [FloatTensor<Self>; N] {
        ops::linears::reference::<Self, N>(x, maps)
    }
    /// Gradient of [`linear`](Self::linear) with respect to `x`: `grad · W`, `[rows, in]`.
    fn linear_backward_input(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        ops::linear::reference_backward_input::<Self>(grad, weight)
    }
    /// Gradient of [`linear`](Self::linear) with respect to a dense `weight`: `gradᵀ · x`, `[out, in]`. Never called for a frozen one.
    fn linear_backward_weight(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        ops::linear::reference_backward_weight::<Self>(x, grad)
    }

    /// `x · Wᵀ + b + scale · low · Bᵀ`: [`linear`](Self::linear) with an adapter's part, `low` `[rows, rank]` being the input times its
    /// first matrix and `b` `[out, rank]` the second one. Its gradients are those of `linear`.
    fn lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        low: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        ops::lora_linear::reference::<Self>(x, weight, bias, low, b, scale)
    }

    /// Grouped-query attention over sequences laid end to end: `q` `[rows, heads, dim]`, `k` and `v` `[key rows, kv heads, dim]`.
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: &AttentionLayout,
    ) -> FloatTensor<Self> {
        ops::attention::reference::<Self>(q, k, v, layout)
    }
    /// Gradients of [`attention`](Self::attention) with respect to `q`, `k` and `v`.
    fn attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        layout: &AttentionLayout,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        ops::attention::reference_backward::<Self>(q, k, v, grad, layout)
    }

    /// `target` with `rows` written from row `start` on, in place where nobody else holds `target`: the append of a key-value cache.
    fn write_rows(target: FloatTensor<Self>, rows: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
        ops::write_rows::reference::<Self>(target, rows, start)
    }

    /// `target` with `x` rotated as [`rope`](Self::rope) does written from row `start` on, in place where nobody else holds `target`: the
    /// append of a cache's keys.
    fn rope_into(
        target: FloatTensor<Self>,
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        start: usize,
    ) -> FloatTensor<Self> {
        Self::write_rows(target, Self::rope(x, cos, sin), start)
    }

    /// The same with [`norm_rope`](Self::norm_rope) of `x`.
    fn norm_rope_into(
        target: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        start: usize,
    ) -> FloatTensor<Self> {
        Self::write_rows(target, Self::norm_rope(x, weight, epsilon, cos, sin), start)
    }

    /// Weighted sum over rows of the cross entropy of `hidden · Wᵀ`, `[1]`, without ever holding `[rows, vocabulary]`.
    fn cross_entropy_of_linear(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: &Targets,
    ) -> FloatTensor<Self> {
        ops::cross_entropy::forward::<Self>(hidden, weight, targets)
    }
    /// The weighted sum over rows of the cross entropy of `logits` `[rows, vocabulary]`, `[1]`, and, if asked for, its gradient.
    fn cross_entropy_of_logits(
        logits: FloatTensor<Self>,
        ids: &[u32],
        weights: &[f32],
        gradient: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        ops::cross_entropy::reference_of_logits::<Self>(logits, ids, weights, gradient)
    }
    /// The loss and its gradient with respect to `hidden`, in one pass over the vocabulary.
    fn cross_entropy_of_linear_with_gradient(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: &Targets,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        ops::cross_entropy::forward_with_gradient::<Self>(hidden, weight, targets)
    }
}

/// A backend we can train on: Burn's autodiff over a [`KernelBackend`]. Stated once so that no signature repeats it.
///
/// Generation and validation run on `B::InnerBackend`: under `Autodiff` even untracked ops register in a graph that only
/// `backward` cleans.
pub trait TrainBackend: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}

impl<B> TrainBackend for B where B: KernelBackend + AutodiffBackend<InnerBackend: KernelBackend> {}
