//! burn-flex: kernels for x86-64 and aarch64, picked at run time. A dtype without a kernel (f64 in the gradient tests) takes the reference.

pub(crate) mod arranged;
pub(crate) mod dot;
pub(crate) mod integers;
mod lines;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod packed;
pub(crate) mod product;
mod standby;
pub(crate) mod transpose;
pub(crate) mod weighted;
pub(crate) mod weights;

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::{Flex, FlexDevice, FlexTensor, Layout};

pub(crate) use super::cpu::lanes;
use super::cpu::{self, RowTensor};

use crate::KernelBackend;
use crate::device::{DeviceKind, Found};
use crate::ops::attention::{self, AttentionLayout};
use crate::ops::{
    add_layer_norm, add_rms_norm, cross_entropy, embedding, gelu, layer_norm, linear, linears, lora_linear, norm_rope,
    rms_norm, rope, softmax, swiglu, write_rows,
};
use crate::packed::{Format, Packed};
use crate::process::{cpu_instructions, cpu_name};
use dot::InstructionSet;

/// The CPU by burn-flex.
pub type Backend = Flex;

/// The one processor.
pub(crate) fn devices() -> Vec<Found<FlexDevice>> {
    let driver = format!("burn-flex 0.21.0, {}", cpu_instructions());
    vec![Found { device: FlexDevice, name: cpu_name(), driver, kind: DeviceKind::Cpu }]
}

/// All of these are f32, so that the kernels apply.
fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// A tensor as rows.
pub(crate) type Rows = cpu::Rows<FlexTensor>;

/// The same values with their elements in order, not necessarily from the start of the buffer: copied only if they are strided.
/// (`FlexTensor::to_contiguous` copies a view of whole rows as well, which for a cache or a stacked weight is most of the work.)
pub(crate) fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    if tensor.layout().is_contiguous() { tensor.clone() } else { tensor.to_contiguous() }
}

/// An f32 tensor that takes over `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    assert_eq!(data.len(), shape.num_elements());
    FlexTensor::new(memory::bytes(data), Layout::contiguous(shape), DType::F32)
}

impl RowTensor for FlexTensor {
    type Output = Self;
    const REUSES_MEMORY: bool = true;

    fn shape(&self) -> Shape {
        TensorMetadata::shape(self)
    }
    fn contiguous(&self) -> Self {
        contiguous(self)
    }
    fn buffer(&self) -> &[f32] {
        self.storage()
    }
    fn offset(&self) -> usize {
        self.layout().start_offset()
    }
    fn stale(count: usize) -> Vec<f32> {
        memory::stale(count)
    }
    fn output(data: Vec<f32>, shape: Shape) -> Self {
        tensor(data, shape)
    }
}

impl KernelBackend for Flex {
    fn has_f64() -> bool {
        true
    }
    fn reads_weights(_: &FlexDevice, dtype: DType) -> bool {
        linear::flex::reads(dtype) || dtype == DType::F64
    }

    fn reads_cache(_: &FlexDevice, dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    fn workers() -> usize {
        rayon::current_num_threads()
    }
    fn concurrently<T: Send, R: Send>(pieces: Vec<T>, work: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
        standby::concurrently(pieces, work)
    }

    fn release_memory(_: &FlexDevice) {
        memory::release();
    }

    fn copied(x: FlexTensor) -> FlexTensor {
        if all_f32([&x]) { cpu::copied(&x) } else { Self::float_mul_scalar(x, 1.0.into()) }
    }

    fn rms_norm(x: FlexTensor, weight: FlexTensor, epsilon: f64) -> FlexTensor {
        if all_f32([&x, &weight]) {
            return rms_norm::cpu::forward(x, weight, epsilon);
        }
        rms_norm::reference::<Self>(x, weight, epsilon)
    }
    fn rms_norm_backward_input(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, epsilon: f64) -> FlexTensor {
        if all_f32([&x, &weight, &grad]) {
            return rms_norm::cpu::backward_input(x, weight, grad, epsilon);
        }
        rms_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, epsilon: f64) -> FlexTensor {
        if all_f32([&x, &weight, &bias]) {
            return layer_norm::cpu::forward(x, weight, bias, epsilon);
        }
        layer_norm::reference::<Self>(x, weight, bias, epsilon)
    }
    fn layer_norm_backward_input(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, epsilon: f64) -> FlexTensor {
        if all_f32([&x, &weight, &grad]) {
            return layer_norm::cpu::backward_input(x, weight, grad, epsilon);
        }
        layer_norm::reference_backward_input::<Self>(x, weight, grad, epsilon)
    }

    fn add_rms_norm(x: FlexTensor, residual: FlexTensor, weight: FlexTensor, epsilon: f64) -> (FlexTensor, FlexTensor) {
        if all_f32([&x, &residual, &weight]) {
            return add_rms_norm::cpu::forward(x, residual, weight, epsilon);
        }
        add_rms_norm::reference::<Self>(x, residual, weight, epsilon)
    }

    fn add_layer_norm(
        x: FlexTensor,
        residual: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        if all_f32([&x, &residual, &weight, &bias]) {
            return add_layer_norm::cpu::forward(x, residual, weight, bias, epsilon);
        }
        add_layer_norm::reference::<Self>(x, residual, weight, bias, epsilon)
    }

    fn softmax(x: FlexTensor, scale: f64, mask: Option<FlexTensor>) -> FlexTensor {
        if all_f32([&x, mask.as_ref().unwrap_or(&x)]) {
            return softmax::cpu::forward(x, scale, mask);
        }
        softmax::reference::<Self>(x, scale, mask)
    }
    fn softmax_backward(y: FlexTensor, grad: FlexTensor, scale: f64) -> FlexTensor {
        if all_f32([&y, &grad]) {
            return softmax::cpu::backward(y, grad, scale);
        }
        softmax::reference_backward::<Self>(y, grad, scale)
    }

    fn rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        if all_f32([&x, &cos, &sin]) {
            return rope::cpu::forward(x, cos, sin);
        }
        rope::reference::<Self>(x, cos, sin)
    }
    fn norm_rope(x: FlexTensor, weight: FlexTensor, epsilon: f64, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        if all_f32([&x, &weight, &cos, &sin]) {
            return norm_rope::cpu::forward(x, weight, epsilon, cos, sin);
        }
        norm_rope::reference::<Self>(x, weight, epsilon, cos, sin)
    }

    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        if all_f32([&gate, &up]) { swiglu::cpu::forward(gate, up) } else { swiglu::reference::<Self>(gate, up) }
    }
    fn swiglu_backward(gate: FlexTensor, up: FlexTensor, grad: FlexTensor) -> (FlexTensor, FlexTensor) {
        if all_f32([&gate, &up, &grad]) {
            return swiglu::cpu::backward(gate, up, grad);
        }
        swiglu::reference_backward::<Self>(gate, up, grad)
    }

    fn gelu(x: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
        if all_f32([&x, bias.as_ref().unwrap_or(&x)]) {
            return gelu::cpu::forward(x, bias);
        }
        gelu::reference::<Self>(x, bias)
    }
    fn gelu_backward(x: FlexTensor, bias: Option<FlexTensor>, grad: FlexTensor) -> FlexTensor {
        if all_f32([&x, bias.as_ref().unwrap_or(&x), &grad]) {
            return gelu::cpu::backward(x, bias, grad);
        }
        gelu::reference_backward::<Self>(x, bias, grad)
    }

    fn packed(matrix: Packed, _: &FlexDevice) -> FlexTensor {
        packed::tensor(matrix)
    }
    fn arranged(weight: FlexTensor) -> FlexTensor {
        let fits = all_f32([&weight]) && product::reads_arranged(InstructionSet::detect());
        if fits { arranged::tensor(&weight) } else { weight }
    }
    fn unpacked(weight: FlexTensor) -> FlexTensor {
        let dtype = weight.dtype();
        let laid_out = Format::of(dtype).is_some() || arranged::is(dtype);
        if laid_out { embedding::flex::unpacked(weight) } else { weight }
    }
    fn embedding(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        if linear::flex::reads(weight.dtype()) {
            return embedding::flex::forward(weight, ids);
        }
        embedding::reference::<Self>(weight, ids)
    }

    fn linear(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
        let reads = |tensor: &FlexTensor| linear::flex::reads(tensor.dtype());
        if all_f32([&x]) && reads(&weight) && bias.as_ref().is_none_or(reads) {
            return linear::flex::forward(x, weight, bias);
        }
        linear::reference::<Self>(x, weight, bias)
    }
    fn linears<const N: usize>(x: FlexTensor, maps: [linears::Map<Self>; N]) -> [FlexTensor; N] {
        let dtype = maps[0].0.dtype();
        let fits = |(weight, bias): &linears::Map<Self>| {
            let same = weight.dtype() == dtype && TensorMetadata::shape(weight).num_elements() > 0;
            same && bias.as_ref().is_none_or(|bias| linear::flex::reads(bias.dtype()))
        };
        if all_f32([&x]) && linear::flex::reads(dtype) && maps.iter().all(fits) {
            return linear::flex::forward_all(x, maps);
        }
        linears::reference::<Self, N>(x, maps)
    }
    fn lora_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Option<FlexTensor>,
        low: FlexTensor,
        b: FlexTensor,
        scale: f64,
    ) -> FlexTensor {
        let reads = |tensor: &FlexTensor| linear::flex::reads(tensor.dtype());
        let formats = all_f32([&x, &low, &b]) && reads(&weight) && bias.as_ref().is_none_or(reads);
        if formats && [&x, &weight, &b].iter().all(|tensor| TensorMetadata::shape(*tensor).num_elements() > 0) {
            return linear::flex::forward_with_update(x, weight, bias, low, b, scale);
        }
        lora_linear::reference::<Self>(x, weight, bias, low, b, scale)
    }
    fn linear_backward_input(grad: FlexTensor, weight: FlexTensor) -> FlexTensor {
        if all_f32([&grad]) && linear::flex::reads(weight.dtype()) {
            return linear::flex::backward_input(grad, weight);
        }
        linear::reference_backward_input::<Self>(grad, weight)
    }
    fn linear_backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        if all_f32([&x, &grad]) {
            return linear::flex::backward_weight(x, grad);
        }
        linear::reference_backward_weight::<Self>(x, grad)
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: &AttentionLayout) -> FlexTensor {
        // Keys and values may come from a cache that is narrower.
        if all_f32([&q]) && [&k, &v].iter().all(|tensor| Self::reads_cache(&FlexDevice, tensor.dtype())) {
            return attention::flex::forward(q, k, v, layout);
        }
        attention::reference::<Self>(q, k, v, layout)
    }
    fn attention_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        grad: FlexTensor,
        layout: &AttentionLayout,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if all_f32([&q, &k, &v, &grad]) {
            return attention::flex::backward(q, k, v, grad, layout);
        }
        attention::reference_backward::<Self>(q, k, v, grad, layout)
    }

    fn cross_entropy_of_logits(
        logits: FlexTensor,
        ids: &[u32],
        weights: &[f32],
        gradient: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        if all_f32([&logits]) {
            return cross_entropy::flex::of_logits(logits, ids, weights, gradient);
        }
        cross_entropy::reference_of_logits::<Self>(logits, ids, weights, gradient)
    }

    fn write_rows(target: FlexTensor, rows: FlexTensor, start: usize) -> FlexTensor {
        if all_f32([&rows]) && Self::reads_cache(&FlexDevice, target.dtype()) {
            return write_rows::flex::forward(target, rows, start);
        }
        write_rows::reference::<Self>(target, rows, start)
    }
}
