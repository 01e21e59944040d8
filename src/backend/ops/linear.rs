//! The linear map of every model: weights `[out, in]` in the format they are stored in, f32 accumulation.
//!
//! Kernels read a weight as it is stored; the reference widens it as a whole. The gradient of a frozen one is never computed.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, Tensor, TensorMetadata};

use super::{as_row, in_dtype_of, primitive, sum_rows, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;

/// `x · Wᵀ + b`.
///
/// # Shapes
/// `x` `[rows, in]`, `weight` `[out, in]` of any float dtype, `bias` `[out]` → `[rows, out]` in `x`'s dtype.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear<B: KernelBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    assert_fits("linear", &x, &weight, bias.as_ref());
    tensor(<B as KernelBackend>::linear(primitive(x), primitive(weight), bias.map(primitive)))
}

/// A frozen weight as the backend multiplies by it best, for [`linear`] and its relatives: as it is, or with its values in another order, in
/// which only these ops and [`unpacked`](super::embedding::unpacked) can read it.
///
/// # Shapes
/// `[out, in]` → `[out, in]`.
pub fn arranged<B: KernelBackend>(weight: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::arranged(primitive(weight)))
}

/// A weight and a bias for rows like these.
pub(crate) fn assert_fits<B: Backend>(op: &str, x: &Tensor<B, 2>, weight: &Tensor<B, 2>, bias: Option<&Tensor<B, 1>>) {
    assert_eq!(x.dims()[1], weight.dims()[1], "{op}: x {:?}, weight {:?}", x.dims(), weight.dims());
    if let Some(bias) = bias {
        assert_eq!(bias.dims()[0], weight.dims()[0], "{op}: bias {:?}, weight {:?}", bias.dims(), weight.dims());
    }
}

pub(crate) fn reference<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let (rows, outputs) = (x.shape()[0], weight.shape()[0]);
    if rows == 0 || outputs == 0 {
        return B::float_zeros(Shape::from(vec![rows, outputs]), &B::float_device(&x), x.dtype().into());
    }
    let weight = in_dtype_of::<B>(weight, &x);
    with_bias::<B>(B::float_matmul(x, B::float_transpose(weight)), bias)
}

/// The product with the bias added to each row.
pub(crate) fn with_bias<B: Backend>(product: FloatTensor<B>, bias: Option<FloatTensor<B>>) -> FloatTensor<B> {
    match bias {
        Some(bias) => {
            let bias = as_row::<B>(bias, &product);
            B::float_add(product, bias)
        }
        None => product,
    }
}

pub(crate) fn reference_backward_input<B: Backend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = in_dtype_of::<B>(weight, &grad);
    B::float_matmul(grad, weight)
}

pub(crate) fn reference_backward_weight<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(B::float_transpose(grad), x)
}

pub(crate) mod autodiff {
    //! The gradient keeps `x` only for a trained weight and the weight (a shared handle) only for a tracked `x`.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::{Tracked, is_tracked, parent};

    #[derive(Debug)]
    struct Linear;

    impl<B: KernelBackend> Backward<B, 3> for Linear {
        type State = (Option<FloatTensor<B>>, Option<FloatTensor<B>>);

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, weight_node, bias_node] = ops.parents;
            let (x, weight) = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            if let Some(node) = bias_node {
                grads.register::<B>(node.id, sum_rows::<B>(grad.clone()));
            }
            if let (Some(node), Some(x)) = (weight_node, x) {
                grads.register::<B>(node.id, B::linear_backward_weight(x, grad.clone()));
            }
            if let (Some(node), Some(weight)) = (x_node, weight) {
                grads.register::<B>(node.id, B::linear_backward_input(grad, weight));
            }
        }
    }

    pub(crate) fn linear<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        bias: Option<Tracked<B>>,
    ) -> Tracked<B> {
        let inner = |tensor: &Tracked<B>| tensor.primitive.clone();
        let output = <B as KernelBackend>::linear(inner(&x), inner(&weight), bias.as_ref().map(inner));
        recorded::<B, C>(&x, &weight, bias, output)
    }

    /// What the op made of these, with its gradient.
    pub(crate) fn recorded<B: KernelBackend, C: CheckpointStrategy>(
        x: &Tracked<B>,
        weight: &Tracked<B>,
        bias: Option<Tracked<B>>,
        output: FloatTensor<B>,
    ) -> Tracked<B> {
        let kept_x = is_tracked::<B>(weight).then(|| x.primitive.clone());
        let kept_weight = is_tracked::<B>(x).then(|| weight.primitive.clone());
        let bias_node = parent::<B>(bias, &x.primitive).node;
        match Linear.prepare::<C>([x.node.clone(), weight.node.clone(), bias_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((kept_x, kept_weight), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
