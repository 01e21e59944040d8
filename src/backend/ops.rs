//! The hot ops, one file each: the public function on tensors, the reference in Burn's own ops, the gradient, the kernels, tests.
//! What a backend runs is decided in `targets`.

pub mod add_layer_norm;
pub mod add_rms_norm;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod linears;
pub mod lora_linear;
pub mod norm_rope;
pub mod rms_norm;
pub mod rope;
pub mod softmax;
pub mod swiglu;
pub mod write_rows;

#[cfg(test)]
mod determinism;
#[cfg(test)]
mod gradients;
#[cfg(test)]
pub(crate) mod oracle;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor, TensorMetadata, TensorPrimitive};

/// The primitive of a float tensor.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A float tensor from its primitive.
pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// `[hidden]` as `[1, …, 1, hidden]`, in `like`'s dtype, so that it broadcasts over rows.
pub(crate) fn as_row<B: Backend>(vector: FloatTensor<B>, like: &FloatTensor<B>) -> FloatTensor<B> {
    let mut shape = vec![1; like.rank()];
    shape[like.rank() - 1] = vector.shape()[0];
    in_dtype_of::<B>(B::float_reshape(vector, Shape::from(shape)), like)
}

/// `tensor` cast to `like`'s dtype, untouched where it has it already.
pub(crate) fn in_dtype_of<B: Backend>(tensor: FloatTensor<B>, like: &FloatTensor<B>) -> FloatTensor<B> {
    if tensor.dtype() == like.dtype() { tensor } else { B::float_cast(tensor, like.dtype().into()) }
}

/// `op`, whose outputs have the shape of the first input, in f32 where the tensors are f16 or bf16, whose sums of squares overflow and
/// lose digits; the results in the first one's dtype. It is not run on nothing, of which not every backend can take a mean.
pub(crate) fn rowwise<B: Backend, const N: usize, const M: usize>(
    inputs: [FloatTensor<B>; N],
    op: impl FnOnce([FloatTensor<B>; N]) -> [FloatTensor<B>; M],
) -> [FloatTensor<B>; M] {
    let (dtype, shape) = (inputs[0].dtype(), inputs[0].shape());
    if shape.num_elements() == 0 {
        return std::array::from_fn(|_| inputs[0].clone());
    }
    if !is_narrow(dtype) {
        return op(inputs);
    }
    op(inputs.map(wide::<B>)).map(|output| B::float_cast(output, dtype.into()))
}

/// f32 where the tensor is f16 or bf16.
fn wide<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    if is_narrow(tensor.dtype()) { B::float_cast(tensor, DType::F32.into()) } else { tensor }
}

fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Sum over every axis but the last: `[…, hidden]` → `[hidden]`.
pub(crate) fn sum_rows<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    let hidden = shape[shape.num_dims() - 1];
    if shape.num_elements() == 0 {
        return B::float_zeros(Shape::from(vec![hidden]), &B::float_device(&tensor), dtype.into());
    }
    let flat = B::float_reshape(wide::<B>(tensor), Shape::from(vec![shape.num_elements() / hidden, hidden]));
    let sum = B::float_reshape(B::float_sum_dim(flat, 0), Shape::from(vec![hidden]));
    if is_narrow(dtype) { B::float_cast(sum, dtype.into()) } else { sum }
}
