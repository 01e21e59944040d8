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

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! Maximum, exponentials with their sum, division: three passes over a row that fits the cache, rows in parallel.
    use crate::targets::cpu::{RowTensor, Rows, lanes};

    pub(crate) fn forward<T: RowTensor>(x: T) -> T::Output {
        Rows::new(&x).map(
            #[inline(always)]
            |_, row, out| {
                out.copy_from_slice(row);
                lanes::softmax_in_place(out);
            },
        )
    }

    pub(crate) fn backward<T: RowTensor>(y: T, grad: T) -> T::Output {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, agrees, gradients_agree, on_every_backend};

    fn oracle(inputs: &[&Array]) -> Array {
        inputs[0].map_rows(|_, row| {
            // `f64::max` forgets NaN, but the exponential of NaN spoils the sum.
            let shift = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> = row.iter().map(|x| (x - shift).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            exponentials.into_iter().map(|x| x / sum).collect()
        })
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| <B::InnerBackend as KernelBackend>::softmax(t[0].clone());
        agrees::<B::InnerBackend>(device, &[x], 1e-6, op, &oracle(&[x]));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[1, 896], &[7, 1], &[3, 5], &[2, 3, 17], &[33, 1025], &[300, 128]] {
            check::<B>(device, &Array::random(1, shape).map(|v| v * 10.0));
        }
    }

    fn huge_and_masked_values_do_not_overflow<B: TrainBackend>(device: &B::Device) {
        let mut x = Array::random(1, &[4, 131]).with_row(0, 0.0).with_row(1, -3e38).with_row(2, 3e38);
        x.values[3 * 131] = 3e38;
        x.values[131 + 7] = 3e38;
        check::<B>(device, &x);
        x.values[2 * 131..2 * 131 + 100].fill(f64::NEG_INFINITY);
        check::<B>(device, &x);
        check::<B>(device, &x.with_row(1, f64::NEG_INFINITY));
    }

    fn nan_spoils_its_own_row_only<B: TrainBackend>(device: &B::Device) {
        for column in [0, 40, 127, 128, 130] {
            let mut x = Array::random(1, &[4, 131]);
            x.values[131 + column] = f64::NAN;
            check::<B>(device, &x);
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let op = |t: Vec<FloatTensor<B>>| <B as KernelBackend>::softmax(t[0].clone());
            gradients_agree::<B>(device, &[&Array::random(1, shape)], &[0], 1e-6, op, oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        huge_and_masked_values_do_not_overflow,
        nan_spoils_its_own_row_only,
        gradients_agree_with_differences,
    );
}
