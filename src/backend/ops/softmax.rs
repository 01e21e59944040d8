//! Softmax over the last axis.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{primitive, tensor};
use crate::KernelBackend;

/// Exponentials of each row, shifted by its maximum and divided by their sum.
///
/// # Shapes
/// `x` `[…, n]` → `[…, n]`.
pub fn softmax<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    tensor(<B as KernelBackend>::softmax(primitive(x)))
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let last = x.rank() - 1;
    let shifted = B::float_sub(x.clone(), B::float_max_dim(x, last));
    let exponentials = B::float_exp(shifted);
    B::float_div(exponentials.clone(), B::float_sum_dim(exponentials, last))
}

/// `dx = y·(grad − Σ grad·y)`.
pub(crate) fn reference_backward<B: Backend>(y: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let last = y.rank() - 1;
    let dot = B::float_sum_dim(B::float_mul(grad.clone(), y.clone()), last);
    B::float_mul(y, B::float_sub(grad, dot))
}

pub(crate) mod autodiff {
    //! The gradient, from the output alone.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Softmax;

    impl<B: KernelBackend> Backward<B, 1> for Softmax {
        type State = FloatTensor<B>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            if let [Some(node)] = ops.parents {
                grads.register::<B>(node.id, B::softmax_backward(ops.state, grad));
            }
        }
    }

    pub(crate) fn softmax<B: KernelBackend, C: CheckpointStrategy>(x: Tracked<B>) -> Tracked<B> {
        match Softmax.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = <B as KernelBackend>::softmax(x.primitive);
                prep.finish(y.clone(), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(<B as KernelBackend>::softmax(x.primitive)),
        }
    }
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    //! Maximum, exponentials with their sum, division: three passes over a row that fits the cache, rows in parallel.
    use burn_flex::FlexTensor;

    use crate::targets::flex::{Rows, lanes};

    pub(crate) fn forward(x: FlexTensor) -> FlexTensor {
        Rows::new(&x).map(
            #[inline(always)]
            |_, row, out| {
                out.copy_from_slice(row);
                lanes::softmax_in_place(out);
            },
        )
    }

    pub(crate) fn backward(y: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let grads = Rows::new(&grad);
        Rows::new(&y).map(
            #[inline(always)]
            |index, row, out| {
                let grad = grads.row(index);
                let dot = lanes::sum2(row, grad);
                for ((out, &y), &g) in out.iter_mut().zip(row).zip(grad) {
                    *out = y * (g - dot);
                }
            },
        )
    }
}
