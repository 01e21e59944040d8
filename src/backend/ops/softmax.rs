//! Softmax over the last axis, of scores that may be scaled and masked.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, Tensor, TensorMetadata};

use super::{in_dtype_of, primitive, rowwise, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// Softmax of each row of `scale · x + mask`: exponentials, shifted by the row's maximum and divided by their sum.
///
/// A mask is a constant: no gradient flows to it. Its rows are added to the rows of `x` in turn, so that one of `[1, n]` is for every
/// row, and one of `[queries, n]` for each head of `[heads, queries, n]`.
///
/// # Shapes
/// `x` `[…, n]`, `mask` `[m, n]` where `m` divides the number of rows → `[…, n]`.
///
/// # Panics
/// If `mask` does not fit.
pub fn softmax<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    scale: f64,
    mask: Option<Tensor<B, 2>>,
) -> Tensor<B, D> {
    if let Some(mask) = &mask {
        let rows: usize = x.dims()[..D - 1].iter().product();
        let fits = mask.dims()[1] == x.dims()[D - 1] && rows.is_multiple_of(mask.dims()[0]);
        assert!(fits, "softmax: x {:?}, mask {:?}", x.dims(), mask.dims());
    }
    tensor(<B as KernelBackend>::softmax(primitive(x), scale, mask.map(primitive)))
}

/// `scale · x + mask`.
fn scores<B: Backend>(x: FloatTensor<B>, scale: f64, mask: Option<FloatTensor<B>>) -> FloatTensor<B> {
    let x = if scale == 1.0 { x } else { B::float_mul_scalar(x, scale.into()) };
    let shape = x.shape();
    // In a recorded reshape 0 means the axis it stands for.
    let Some(mask) = mask.filter(|_| shape.num_elements() > 0) else { return x };
    let mask = in_dtype_of::<B>(mask, &x);
    let (rows, width) = (mask.shape()[0], mask.shape()[1]);
    let x = B::float_reshape(x, Shape::from(vec![shape.num_elements() / (rows * width), rows, width]));
    let masked = B::float_add(x, B::float_reshape(mask, Shape::from(vec![1, rows, width])));
    B::float_reshape(masked, shape)
}

/// [`softmax`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(x: FloatTensor<B>, scale: f64, mask: Option<FloatTensor<B>>) -> FloatTensor<B> {
    let [y] = rowwise::<B, 1, 1>([x], |[x]| {
        let last = x.rank() - 1;
        let x = scores::<B>(x, scale, mask);
        let shifted = B::float_sub(x.clone(), B::float_max_dim(x, last));
        let exponentials = B::float_exp(shifted);
        [B::float_div(exponentials.clone(), B::float_sum_dim(exponentials, last))]
    });
    y
}

/// `dx = scale·y·(grad − Σ grad·y)`.
pub(crate) fn reference_backward<B: Backend>(y: FloatTensor<B>, grad: FloatTensor<B>, scale: f64) -> FloatTensor<B> {
    let [gradient] = rowwise::<B, 2, 1>([y, grad], |[y, grad]| {
        let last = y.rank() - 1;
        let dot = B::float_sum_dim(B::float_mul(grad.clone(), y.clone()), last);
        let gradient = B::float_mul(y, B::float_sub(grad, dot));
        [if scale == 1.0 { gradient } else { B::float_mul_scalar(gradient, scale.into()) }]
    });
    gradient
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
        type State = (FloatTensor<B>, f64);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (y, scale) = ops.state;
            if let [Some(node)] = ops.parents {
                grads.register::<B>(node.id, B::softmax_backward(y, grad, scale));
            }
        }
    }

    pub(crate) fn softmax<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        scale: f64,
        mask: Option<Tracked<B>>,
    ) -> Tracked<B> {
        let y = <B as KernelBackend>::softmax(x.primitive, scale, mask.map(|mask| mask.primitive));
        match Softmax.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((y.clone(), scale), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! Maximum, exponentials with their sum, division: three passes over a row that fits the cache, rows in parallel.
    use crate::targets::cpu::lanes::Elementwise;
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// The gradient of what was scaled.
    struct Slope {
        scale: f32,
        dot: f32,
    }

    impl Elementwise<2, 1> for Slope {
        #[inline(always)]
        fn of<V: Vector>(&self, [y, g]: [V; 2]) -> [V; 1] {
            [V::splat(self.scale) * y * (g - V::splat(self.dot))]
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, scale: f64, mask: Option<T>) -> T::Output {
        let scale = scale as f32;
        let masks = mask.as_ref().map(Rows::new);
        Rows::new(&x).map(
            #[inline(always)]
            |math, index, ahead, row, out| match &masks {
                None => math.softmax_into(row, scale, ahead, out),
                Some(masks) => {
                    let mask = masks.row(index % masks.count());
                    for ((out, &x), &m) in out.iter_mut().zip(row).zip(mask) {
                        *out = x * scale + m;
                    }
                    math.softmax_in_place(out, 1.0);
                }
            },
        )
    }

    pub(crate) fn backward<T: RowTensor>(y: T, grad: T, scale: f64) -> T::Output {
        let scale = scale as f32;
        let grads = Rows::new(&grad);
        Rows::new(&y).map(
            #[inline(always)]
            |math, index, ahead, row, out| {
                let grad = grads.row(index);
                let dot = math.sum2(row, grad);
                let fetch = ahead.fetch([row, grad], [out]);
                math.map(&Slope { scale, dot }, [row, grad], [out], fetch);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, ROW_LENGTHS, agrees, agrees_in_f16, gradients_agree, on_every_backend};

    /// Two inputs: the second is the mask.
    fn scaled_oracle(inputs: &[&Array], scale: f64) -> Array {
        inputs[0].map_rows(|index, row| {
            let mask = inputs.get(1).map(|mask| mask.rows().nth(index % mask.shape[0]).unwrap());
            let row: Vec<f64> =
                row.iter().enumerate().map(|(at, x)| x * scale + mask.map_or(0.0, |mask| mask[at])).collect();
            // `f64::max` forgets NaN, but the exponential of NaN spoils the sum.
            let shift = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> = row.iter().map(|x| (x - shift).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            exponentials.into_iter().map(|x| x / sum).collect()
        })
    }

    fn oracle(inputs: &[&Array]) -> Array {
        scaled_oracle(inputs, 1.0)
    }

    fn run<B: KernelBackend>(t: &[FloatTensor<B>], scale: f64) -> FloatTensor<B> {
        <B as KernelBackend>::softmax(t[0].clone(), scale, t.get(1).cloned())
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t, 1.0);
        agrees::<B::InnerBackend>(device, &[x], 1e-6, op, &oracle(&[x]));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025], &[300, 128], &[0, 33]] {
            check::<B>(device, &Array::random(1, shape).map(|v| v * 10.0));
        }
        for length in ROW_LENGTHS {
            check::<B>(device, &Array::random(1, &[3, length]).map(|v| v * 10.0));
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t, 1.0);
        for length in ROW_LENGTHS {
            agrees_in_f16::<B::InnerBackend>(device, &[&Array::random(1, &[3, length]).map(|v| v * 1e4)], op, oracle);
        }
        let mut x = Array::random(1, &[3, 131]);
        x.values[140] = f64::NAN;
        agrees_in_f16::<B::InnerBackend>(device, &[&x], op, oracle);
    }

    fn scale_and_mask_come_before<B: TrainBackend>(device: &B::Device) {
        for (shape, rows) in [(&[4, 33][..], 1), (&[2, 3, 17], 3), (&[2, 3, 17], 6), (&[5, 1025], 5)] {
            let x = Array::random(1, shape).map(|v| v * 10.0);
            let mask = Array::random(2, &[rows, x.width()]).map(|v| if v < -0.5 { -1e9 } else { v });
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t, 0.125);
            agrees::<B::InnerBackend>(device, &[&x, &mask], 1e-6, op, &scaled_oracle(&[&x, &mask], 0.125));
            let oracle = |inputs: &[&Array]| scaled_oracle(inputs, 0.125);
            gradients_agree::<B>(device, &[&x, &mask], &[0], 1e-6, |t| run::<B>(&t, 0.125), oracle);
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
            gradients_agree::<B>(device, &[&Array::random(1, shape)], &[0], 1e-6, |t| run::<B>(&t, 1.0), oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        scale_and_mask_come_before,
        huge_and_masked_values_do_not_overflow,
        nan_spoils_its_own_row_only,
        gradients_agree_with_differences,
    );
}
