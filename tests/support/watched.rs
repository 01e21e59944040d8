//! A backend that is Flex and counts: which gradients are asked for, and of what shape; and that lies when it is told to. Models cannot
//! tell it from any other.
//!
//! The lists are the required methods of Burn 0.21's operation traits; what a language model never calls panics.

#![allow(dead_code)] // Each test binary uses a part.

use std::cell::Cell;
use std::sync::Mutex;

use burn::tensor::backend::{Backend, BackendTypes, DTypeUsageSet, ExecutionError};
use burn::tensor::ops::*;
use burn::tensor::quantization::{QuantScheme, QuantizationParametersPrimitive};
use burn::tensor::{
    BoolDType, DType, Distribution, FloatDType, IntDType, Scalar, Shape, Slice, TensorData, TensorMetadata,
};
use burn_flex::{Flex, FlexDevice, FlexQTensor, FlexTensor};
use firebrick::KernelBackend;
use firebrick::backend::ops::attention::AttentionLayout;
use firebrick::backend::ops::cross_entropy::Targets;
use firebrick::backend::ops::linears::Map;
use firebrick::backend::packed::Packed;

/// Flex, watched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watched;

/// Every weight gradient that was computed, `(op, shape of the weight)`.
pub static WEIGHT_GRADIENTS: Mutex<Vec<(&str, Vec<usize>)>> = Mutex::new(Vec::new());

fn note(op: &'static str, shape: Vec<usize>) {
    WEIGHT_GRADIENTS.lock().unwrap().push((op, shape));
}

/// A fault to plant, for the thread that sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    /// The output of this op is a hundredth too large.
    Forward(&'static str),
    /// The gradient of this op is a hundredth too large.
    Backward(&'static str),
    /// Positions from here on are rotated wrongly.
    LatePositions(usize),
    /// A query behind cached keys gets a hundredth too much.
    Cached,
    /// The gradient through a linear is NaN where there are so many rows.
    NanFromRows(usize),
    /// A linear with weights of this dtype is half as large again.
    Weights(DType),
    /// Each call differs in the last bits.
    Unsteady,
    /// The device gives up.
    Panics,
}

thread_local! {
    static LIE: Cell<Option<Lie>> = const { Cell::new(None) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// Plants a fault, or none, in what this thread computes.
pub fn lie(fault: Option<Lie>) {
    LIE.set(fault);
}

fn times(tensor: FlexTensor, factor: f64) -> FlexTensor {
    Flex::float_mul_scalar(tensor, factor.into())
}

fn told(op: &'static str, output: FlexTensor) -> FlexTensor {
    if LIE.get() == Some(Lie::Forward(op)) { times(output, 1.01) } else { output }
}

fn told_back(op: &'static str, gradient: FlexTensor) -> FlexTensor {
    if LIE.get() == Some(Lie::Backward(op)) { times(gradient, 1.01) } else { gradient }
}

impl KernelBackend for Watched {
    fn reads_weights(device: &FlexDevice, dtype: DType) -> bool {
        Flex::reads_weights(device, dtype)
    }
    fn packed(matrix: Packed, device: &FlexDevice) -> FlexTensor {
        Flex::packed(matrix, device)
    }
    fn unpacked(weight: FlexTensor) -> FlexTensor {
        Flex::unpacked(weight)
    }
    fn embedding(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        <Flex as KernelBackend>::embedding(weight, ids)
    }
    fn rms_norm(x: FlexTensor, weight: FlexTensor, epsilon: f64) -> FlexTensor {
        let output = told("rms_norm", Flex::rms_norm(x, weight, epsilon));
        if LIE.get() != Some(Lie::Unsteady) {
            return output;
        }
        CALLS.set(CALLS.get() + 1);
        times(output, 1.0 + 2e-7 * f64::from(CALLS.get() % 7))
    }
    fn rms_norm_backward_input(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, epsilon: f64) -> FlexTensor {
        told_back("rms_norm", Flex::rms_norm_backward_input(x, weight, grad, epsilon))
    }
    fn rms_norm_backward_weight(x: FlexTensor, grad: FlexTensor, epsilon: f64) -> FlexTensor {
        note("rms_norm", vec![x.shape()[x.rank() - 1]]);
        Flex::rms_norm_backward_weight(x, grad, epsilon)
    }
    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, epsilon: f64) -> FlexTensor {
        told("layer_norm", <Flex as KernelBackend>::layer_norm(x, weight, bias, epsilon))
    }
    fn layer_norm_backward_weight(x: FlexTensor, grad: FlexTensor, epsilon: f64) -> FlexTensor {
        note("layer_norm", vec![x.shape()[x.rank() - 1]]);
        Flex::layer_norm_backward_weight(x, grad, epsilon)
    }
    fn add_rms_norm(x: FlexTensor, residual: FlexTensor, weight: FlexTensor, epsilon: f64) -> (FlexTensor, FlexTensor) {
        let (sum, normed) = Flex::add_rms_norm(x, residual, weight, epsilon);
        (sum, told("add_rms_norm", normed))
    }
    fn add_layer_norm(
        x: FlexTensor,
        residual: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        epsilon: f64,
    ) -> FlexTensor {
        told("add_layer_norm", Flex::add_layer_norm(x, residual, weight, bias, epsilon))
    }
    fn softmax(x: FlexTensor, scale: f64, mask: Option<FlexTensor>) -> FlexTensor {
        assert!(LIE.get() != Some(Lie::Panics), "device lost");
        told("softmax", <Flex as KernelBackend>::softmax(x, scale, mask))
    }
    fn rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let late = matches!(LIE.get(), Some(Lie::LatePositions(from)) if x.shape()[0] > from);
        told("rope", Flex::rope(x, if late { times(cos, 1.01) } else { cos }, sin))
    }
    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        told("swiglu", Flex::swiglu(gate, up))
    }
    fn gelu(x: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
        told("gelu", <Flex as KernelBackend>::gelu(x, bias))
    }
    fn linear(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
        let narrow = LIE.get() == Some(Lie::Weights(weight.dtype()));
        let output = told("linear", <Flex as KernelBackend>::linear(x, weight, bias));
        if narrow { times(output, 1.5) } else { output }
    }
    fn linears<const N: usize>(x: FlexTensor, maps: [Map<Self>; N]) -> [FlexTensor; N] {
        let narrow = maps.each_ref().map(|(weight, _)| LIE.get() == Some(Lie::Weights(weight.dtype())));
        let mut narrow = narrow.into_iter();
        Flex::linears(x, maps).map(|output| {
            let output = told("linears", output);
            if narrow.next() == Some(true) { times(output, 1.5) } else { output }
        })
    }
    fn lora_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: Option<FlexTensor>,
        low: FlexTensor,
        b: FlexTensor,
        scale: f64,
    ) -> FlexTensor {
        told("lora_linear", Flex::lora_linear(x, weight, bias, low, b, scale))
    }
    fn linear_backward_input(grad: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let rows = grad.shape()[0];
        let gradient = told_back("linear", Flex::linear_backward_input(grad, weight));
        match LIE.get() {
            Some(Lie::NanFromRows(from)) if rows >= from => times(gradient, f64::NAN),
            _ => gradient,
        }
    }
    fn linear_backward_weight(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        note("linear", vec![grad.shape()[1], x.shape()[1]]);
        Flex::linear_backward_weight(x, grad)
    }
    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: &AttentionLayout) -> FlexTensor {
        let cached = layout.spans.iter().any(|span| span.query_len < span.key_len);
        let output = told("attention", <Flex as KernelBackend>::attention(q, k, v, layout));
        if cached && LIE.get() == Some(Lie::Cached) { times(output, 1.01) } else { output }
    }
    fn write_rows(target: FlexTensor, rows: FlexTensor, start: usize) -> FlexTensor {
        told("write_rows", Flex::write_rows(target, rows, start))
    }
    fn rope_into(target: FlexTensor, x: FlexTensor, cos: FlexTensor, sin: FlexTensor, start: usize) -> FlexTensor {
        told("rope_into", Flex::rope_into(target, x, cos, sin, start))
    }
    fn norm_rope(x: FlexTensor, weight: FlexTensor, epsilon: f64, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        told("norm_rope", Flex::norm_rope(x, weight, epsilon, cos, sin))
    }
    fn norm_rope_into(
        target: FlexTensor,
        x: FlexTensor,
        weight: FlexTensor,
        epsilon: f64,
        cos: FlexTensor,
        sin: FlexTensor,
        start: usize,
    ) -> FlexTensor {
        told("norm_rope_into", Flex::norm_rope_into(target, x, weight, epsilon, cos, sin, start))
    }
    fn cross_entropy_of_linear(hidden: FlexTensor, weight: FlexTensor, targets: &Targets) -> FlexTensor {
        told("cross_entropy_of_linear", Flex::cross_entropy_of_linear(hidden, weight, targets))
    }
}

impl BackendTypes for Watched {
    type Device = FlexDevice;
    type FloatTensorPrimitive = FlexTensor;
    type FloatElem = f32;
    type IntTensorPrimitive = FlexTensor;
    type IntElem = i32;
    type BoolTensorPrimitive = FlexTensor;
    type BoolElem = bool;
    type QuantizedTensorPrimitive = FlexQTensor;
}

impl Backend for Watched {
    fn name(_: &FlexDevice) -> String {
        "watched".into()
    }
    fn seed(device: &FlexDevice, seed: u64) {
        Flex::seed(device, seed);
    }
    fn device_count(id: u16) -> usize {
        Flex::device_count(id)
    }
    fn dtype_usage(device: &FlexDevice, dtype: DType) -> DTypeUsageSet {
        Flex::dtype_usage(device, dtype)
    }
}

impl ActivationOps<Self> for Watched {}
impl TransactionOps<Self> for Watched {}

macro_rules! delegate {
    ($trait:ident $(fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        impl $trait<Self> for Watched {
            $(fn $name($($argument: $type),*) -> $output { <Flex as $trait<Flex>>::$name($($argument),*) })*
        }
    };
}

macro_rules! absent {
    ($trait:ident $(fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        impl $trait<Self> for Watched {
            $(#[allow(clippy::too_many_arguments)]
            fn $name($(_: $type),*) -> $output { panic!(concat!("no language model calls ", stringify!($name))) })*
        }
    };
}

delegate! { FloatTensorOps
    fn float_from_data(data: TensorData, device: &FlexDevice) -> FlexTensor;
    fn float_random(shape: Shape, distribution: Distribution, device: &FlexDevice, dtype: FloatDType) -> FlexTensor;
    fn float_into_data(tensor: FlexTensor) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
    fn float_device(tensor: &FlexTensor) -> FlexDevice;
    fn float_to_device(tensor: FlexTensor, device: &FlexDevice) -> FlexTensor;
    fn float_into_int(tensor: FlexTensor, out_dtype: IntDType) -> FlexTensor;
    fn float_empty(shape: Shape, device: &FlexDevice, dtype: FloatDType) -> FlexTensor;
    fn float_add(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_add_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn float_sub(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_sub_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn float_mul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_mul_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn float_div(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_div_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn float_remainder(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_remainder_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn float_matmul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_cross(lhs: FlexTensor, rhs: FlexTensor, dim: usize) -> FlexTensor;
    fn float_recip(tensor: FlexTensor) -> FlexTensor;
    fn float_swap_dims(tensor: FlexTensor, dim1: usize, dim2: usize) -> FlexTensor;
    fn float_permute(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn float_flip(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn float_reshape(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn float_gather(dim: usize, tensor: FlexTensor, indices: FlexTensor) -> FlexTensor;
    fn float_scatter_add(dim: usize, tensor: FlexTensor, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn float_select(tensor: FlexTensor, dim: usize, indices: FlexTensor) -> FlexTensor;
    fn float_select_add(tensor: FlexTensor, dim: usize, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn float_slice(tensor: FlexTensor, slices: &[Slice]) -> FlexTensor;
    fn float_slice_assign(tensor: FlexTensor, slices: &[Slice], value: FlexTensor) -> FlexTensor;
    fn float_mask_where(tensor: FlexTensor, mask: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn float_mask_fill(tensor: FlexTensor, mask: FlexTensor, value: Scalar) -> FlexTensor;
    fn float_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn float_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn float_greater(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn float_greater_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn float_greater_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn float_greater_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn float_lower(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn float_lower_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn float_lower_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn float_lower_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn float_sum(tensor: FlexTensor) -> FlexTensor;
    fn float_sum_dim(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_mean_dim(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_cumsum(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_cumprod(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_cummin(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_cummax(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn float_cast(tensor: FlexTensor, dtype: FloatDType) -> FlexTensor;
    fn float_exp(tensor: FlexTensor) -> FlexTensor;
    fn float_log(tensor: FlexTensor) -> FlexTensor;
    fn float_log1p(tensor: FlexTensor) -> FlexTensor;
    fn float_powf(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_powf_scalar_impl(tensor: FlexTensor, value: Scalar) -> FlexTensor;
    fn float_sqrt(tensor: FlexTensor) -> FlexTensor;
    fn float_abs(tensor: FlexTensor) -> FlexTensor;
    fn float_cos(tensor: FlexTensor) -> FlexTensor;
    fn float_sin(tensor: FlexTensor) -> FlexTensor;
    fn float_tan(tensor: FlexTensor) -> FlexTensor;
    fn float_cosh(tensor: FlexTensor) -> FlexTensor;
    fn float_sinh(tensor: FlexTensor) -> FlexTensor;
    fn float_tanh(tensor: FlexTensor) -> FlexTensor;
    fn float_acos(tensor: FlexTensor) -> FlexTensor;
    fn float_acosh(tensor: FlexTensor) -> FlexTensor;
    fn float_asin(tensor: FlexTensor) -> FlexTensor;
    fn float_asinh(tensor: FlexTensor) -> FlexTensor;
    fn float_atan(tensor: FlexTensor) -> FlexTensor;
    fn float_atanh(tensor: FlexTensor) -> FlexTensor;
    fn float_atan2(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn float_round(tensor: FlexTensor) -> FlexTensor;
    fn float_floor(tensor: FlexTensor) -> FlexTensor;
    fn float_ceil(tensor: FlexTensor) -> FlexTensor;
    fn float_trunc(tensor: FlexTensor) -> FlexTensor;
    fn float_erf(tensor: FlexTensor) -> FlexTensor;
    fn float_argmax(tensor: FlexTensor, dim: usize, out_dtype: IntDType) -> FlexTensor;
    fn float_argtopk(tensor: FlexTensor, dim: usize, k: usize, out_dtype: IntDType) -> FlexTensor;
    fn float_argmin(tensor: FlexTensor, dim: usize, out_dtype: IntDType) -> FlexTensor;
    fn float_expand(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn float_unfold(tensor: FlexTensor, dim: usize, size: usize, step: usize) -> FlexTensor;
}

delegate! { IntTensorOps
    fn int_empty(shape: Shape, device: &FlexDevice, dtype: IntDType) -> FlexTensor;
    fn int_into_data(tensor: FlexTensor) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
    fn int_from_data(data: TensorData, device: &FlexDevice) -> FlexTensor;
    fn int_device(tensor: &FlexTensor) -> FlexDevice;
    fn int_to_device(tensor: FlexTensor, device: &FlexDevice) -> FlexTensor;
    fn int_reshape(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn int_slice(tensor: FlexTensor, slices: &[Slice]) -> FlexTensor;
    fn int_slice_assign(tensor: FlexTensor, slices: &[Slice], value: FlexTensor) -> FlexTensor;
    fn int_into_float(tensor: FlexTensor, out_dtype: FloatDType) -> FlexTensor;
    fn int_mask_where(tensor: FlexTensor, mask: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn int_mask_fill(tensor: FlexTensor, mask: FlexTensor, value: Scalar) -> FlexTensor;
    fn int_gather(dim: usize, tensor: FlexTensor, indices: FlexTensor) -> FlexTensor;
    fn int_scatter_add(dim: usize, tensor: FlexTensor, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn int_select(tensor: FlexTensor, dim: usize, indices: FlexTensor) -> FlexTensor;
    fn int_select_add(tensor: FlexTensor, dim: usize, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn int_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn int_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn int_greater(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn int_greater_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn int_greater_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn int_greater_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn int_lower(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn int_lower_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn int_lower_equal(lhs: FlexTensor, rhs: FlexTensor, out_dtype: BoolDType) -> FlexTensor;
    fn int_lower_equal_elem(lhs: FlexTensor, rhs: Scalar, out_dtype: BoolDType) -> FlexTensor;
    fn int_add(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_add_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_sub(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_sub_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_mul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_mul_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_div(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_div_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_remainder(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_remainder_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_matmul(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn int_sum(tensor: FlexTensor) -> FlexTensor;
    fn int_sum_dim(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_prod(tensor: FlexTensor) -> FlexTensor;
    fn int_prod_dim(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_mean_dim(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_cumsum(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_cumprod(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_cummin(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_cummax(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_argmax(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_argtopk(tensor: FlexTensor, dim: usize, k: usize) -> FlexTensor;
    fn int_argmin(tensor: FlexTensor, dim: usize) -> FlexTensor;
    fn int_abs(tensor: FlexTensor) -> FlexTensor;
    fn int_swap_dims(tensor: FlexTensor, dim1: usize, dim2: usize) -> FlexTensor;
    fn int_permute(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn int_flip(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn int_random(shape: Shape, distribution: Distribution, device: &FlexDevice, dtype: IntDType) -> FlexTensor;
    fn int_expand(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn bitwise_and(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bitwise_and_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn bitwise_or(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bitwise_or_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn bitwise_xor(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bitwise_xor_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn bitwise_not(tensor: FlexTensor) -> FlexTensor;
    fn bitwise_left_shift(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bitwise_left_shift_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn bitwise_right_shift(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bitwise_right_shift_scalar(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn int_cast(tensor: FlexTensor, dtype: IntDType) -> FlexTensor;
    fn int_unfold(tensor: FlexTensor, dim: usize, size: usize, step: usize) -> FlexTensor;
}

delegate! { BoolTensorOps
    fn bool_empty(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> FlexTensor;
    fn bool_zeros(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> FlexTensor;
    fn bool_ones(shape: Shape, device: &FlexDevice, dtype: BoolDType) -> FlexTensor;
    fn bool_into_data(tensor: FlexTensor) -> impl Future<Output = Result<TensorData, ExecutionError>> + Send;
    fn bool_from_data(data: TensorData, device: &FlexDevice) -> FlexTensor;
    fn bool_into_int(tensor: FlexTensor, out_dtype: IntDType) -> FlexTensor;
    fn bool_into_float(tensor: FlexTensor, out_dtype: FloatDType) -> FlexTensor;
    fn bool_device(tensor: &FlexTensor) -> FlexDevice;
    fn bool_to_device(tensor: FlexTensor, device: &FlexDevice) -> FlexTensor;
    fn bool_reshape(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn bool_slice(tensor: FlexTensor, slices: &[Slice]) -> FlexTensor;
    fn bool_slice_assign(tensor: FlexTensor, slices: &[Slice], value: FlexTensor) -> FlexTensor;
    fn bool_mask_where(tensor: FlexTensor, mask: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn bool_mask_fill(tensor: FlexTensor, mask: FlexTensor, value: Scalar) -> FlexTensor;
    fn bool_gather(dim: usize, tensor: FlexTensor, indices: FlexTensor) -> FlexTensor;
    fn bool_scatter_or(dim: usize, tensor: FlexTensor, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn bool_select(tensor: FlexTensor, dim: usize, indices: FlexTensor) -> FlexTensor;
    fn bool_select_or(tensor: FlexTensor, dim: usize, indices: FlexTensor, value: FlexTensor) -> FlexTensor;
    fn bool_equal(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bool_equal_elem(lhs: FlexTensor, rhs: Scalar) -> FlexTensor;
    fn bool_not(tensor: FlexTensor) -> FlexTensor;
    fn bool_and(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bool_or(lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor;
    fn bool_swap_dims(tensor: FlexTensor, dim1: usize, dim2: usize) -> FlexTensor;
    fn bool_permute(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn bool_flip(tensor: FlexTensor, axes: &[usize]) -> FlexTensor;
    fn bool_expand(tensor: FlexTensor, shape: Shape) -> FlexTensor;
    fn bool_unfold(tensor: FlexTensor, dim: usize, size: usize, step: usize) -> FlexTensor;
}

absent! { ModuleOps
    fn conv2d(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, options: ConvOptions<2>) -> FlexTensor;
    fn deform_conv2d(x: FlexTensor, offset: FlexTensor, weight: FlexTensor, mask: Option<FlexTensor>, bias: Option<FlexTensor>, options: DeformConvOptions<2>) -> FlexTensor;
    fn deform_conv2d_backward(x: FlexTensor, offset: FlexTensor, weight: FlexTensor, mask: Option<FlexTensor>, bias: Option<FlexTensor>, output_grad: FlexTensor, options: DeformConvOptions<2>) -> DeformConv2dBackward<Self>;
    fn conv3d(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, options: ConvOptions<3>) -> FlexTensor;
    fn conv_transpose2d(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, options: ConvTransposeOptions<2>) -> FlexTensor;
    fn conv_transpose3d(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, options: ConvTransposeOptions<3>) -> FlexTensor;
    fn avg_pool2d(x: FlexTensor, kernel_size: [usize; 2], stride: [usize; 2], padding: [usize; 2], count_include_pad: bool, ceil_mode: bool) -> FlexTensor;
    fn avg_pool2d_backward(x: FlexTensor, grad: FlexTensor, kernel_size: [usize; 2], stride: [usize; 2], padding: [usize; 2], count_include_pad: bool, ceil_mode: bool) -> FlexTensor;
    fn adaptive_avg_pool2d(x: FlexTensor, output_size: [usize; 2]) -> FlexTensor;
    fn adaptive_avg_pool2d_backward(x: FlexTensor, grad: FlexTensor) -> FlexTensor;
    fn max_pool2d(x: FlexTensor, kernel_size: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], ceil_mode: bool) -> FlexTensor;
    fn max_pool2d_with_indices(x: FlexTensor, kernel_size: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], ceil_mode: bool) -> MaxPool2dWithIndices<Self>;
    fn max_pool2d_with_indices_backward(x: FlexTensor, kernel_size: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], ceil_mode: bool, output_grad: FlexTensor, indices: FlexTensor) -> MaxPool2dBackward<Self>;
    fn interpolate(x: FlexTensor, output_size: [usize; 2], options: InterpolateOptions) -> FlexTensor;
    fn interpolate_backward(x: FlexTensor, grad: FlexTensor, output_size: [usize; 2], options: InterpolateOptions) -> FlexTensor;
    fn attention(query: FlexTensor, key: FlexTensor, value: FlexTensor, mask: Option<FlexTensor>, attn_bias: Option<FlexTensor>, options: AttentionModuleOptions) -> FlexTensor;
    fn rfft(signal: FlexTensor, dim: usize, n: Option<usize>) -> (FlexTensor, FlexTensor);
    fn irfft(spectrum_re: FlexTensor, spectrum_im: FlexTensor, dim: usize, n: Option<usize>) -> FlexTensor;
}

impl QTensorOps<Self> for Watched {
    fn q_from_data(_: TensorData, _: &FlexDevice) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn quantize(_: FlexTensor, _: &QuantScheme, _: QuantizationParametersPrimitive<Self>) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn dequantize(_: FlexQTensor, _: FloatDType) -> FlexTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_device(_: &FlexQTensor) -> FlexDevice {
        panic!("quantized tensors are not watched")
    }
    fn q_to_device(_: FlexQTensor, _: &FlexDevice) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_reshape(_: FlexQTensor, _: Shape) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_expand(_: FlexQTensor, _: Shape) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_swap_dims(_: FlexQTensor, _: usize, _: usize) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_permute(_: FlexQTensor, _: &[usize]) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_flip(_: FlexQTensor, _: &[usize]) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_select(_: FlexQTensor, _: usize, _: FlexTensor) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    fn q_slice(_: FlexQTensor, _: &[Slice]) -> FlexQTensor {
        panic!("quantized tensors are not watched")
    }
    async fn q_into_data(_: FlexQTensor) -> Result<TensorData, ExecutionError> {
        panic!("quantized tensors are not watched")
    }
}
