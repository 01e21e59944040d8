//! A residual added and the sum layer-normed, as BERT does after attention and after its feed-forward. The sum itself nobody needs again.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{layer_norm, primitive, rowwise, sum_rows, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// [`layer_norm`](layer_norm::layer_norm) of `x + residual`.
///
/// # Shapes
/// `x` and `residual` `[…, hidden]`, `weight` and `bias` `[hidden]` → `[…, hidden]`.
///
/// # Panics
/// If `residual` has another shape than `x`, or `weight` or `bias` is not as long as a row.
pub fn add_layer_norm<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    residual: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    assert_eq!(x.dims(), residual.dims(), "add_layer_norm: x {:?}, residual {:?}", x.dims(), residual.dims());
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "add_layer_norm: row {:?}, weight {:?}", x.dims(), weight.dims());
    assert_eq!(weight.dims(), bias.dims(), "add_layer_norm: weight {:?}, bias {:?}", weight.dims(), bias.dims());
    tensor(B::add_layer_norm(primitive(x), primitive(residual), primitive(weight), primitive(bias), epsilon))
}

/// [`add_layer_norm`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(
    x: FloatTensor<B>,
    residual: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    // Of f16 the sum is not rounded.
    let [normed] = rowwise::<B, 4, 1>([x, residual, weight, bias], |[x, residual, weight, bias]| {
        [layer_norm::reference::<B>(B::float_add(x, residual), weight, bias, epsilon)]
    });
    normed
}

pub(crate) mod autodiff {
    //! The gradient computes the sum again, and is the same for both of its parts.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct AddLayerNorm;

    impl<B: KernelBackend> Backward<B, 4> for AddLayerNorm {
        type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, f64);

        fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, residual_node, weight_node, bias_node] = ops.parents;
            let (x, residual, weight, epsilon) = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            if let Some(node) = bias_node {
                grads.register::<B>(node.id, sum_rows::<B>(grad.clone()));
            }
            if weight_node.is_none() && x_node.is_none() && residual_node.is_none() {
                return;
            }
            let sum = B::float_add(x, residual);
            if let Some(node) = weight_node {
                let gradient = B::layer_norm_backward_weight(sum.clone(), grad.clone(), epsilon);
                grads.register::<B>(node.id, gradient);
            }
            if x_node.is_none() && residual_node.is_none() {
                return;
            }
            let gradient = B::layer_norm_backward_input(sum, weight, grad, epsilon);
            for node in [x_node, residual_node].into_iter().flatten() {
                grads.register::<B>(node.id, gradient.clone());
            }
        }
    }

    pub(crate) fn add_layer_norm<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        residual: Tracked<B>,
        weight: Tracked<B>,
        bias: Tracked<B>,
        epsilon: f64,
    ) -> Tracked<B> {
        let run = |x, residual, weight| B::add_layer_norm(x, residual, weight, bias.primitive, epsilon);
        match AddLayerNorm.prepare::<C>([x.node, residual.node, weight.node, bias.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, residual, weight) = (x.primitive, residual.primitive, weight.primitive);
                let normed = run(x.clone(), residual.clone(), weight.clone());
                prep.finish((x, residual, weight, epsilon), normed)
            }
            OpsKind::UnTracked(prep) => prep.finish(run(x.primitive, residual.primitive, weight.primitive)),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! The sum is never written: it is taken anew in each of the three passes over two rows that fit the nearest caches; rows in parallel.
    use crate::ops::layer_norm::cpu::{Affine, statistics};
    use crate::targets::cpu::lanes::Elementwise;
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// The norm of `x + r`.
    struct OfSum(Affine);

    impl Elementwise<4, 1> for OfSum {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, r, w, b]: [V; 4]) -> [V; 1] {
            self.0.of([x + r, w, b])
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, residual: T, weight: T, bias: T, epsilon: f64) -> T::Output {
        let residuals = Rows::new(&residual);
        let (weight, bias) = (Rows::new(&weight), Rows::new(&bias));
        let (weight, bias) = (weight.all(), bias.all());
        Rows::new(&x).map(
            #[inline(always)]
            |math, index, ahead, row, out| {
                let rows = [row, residuals.row(index)];
                let (mean, inverse) = statistics(math, rows, epsilon as f32);
                let fetch = ahead.fetch(rows, [out]);
                math.map(&OfSum(Affine { mean, inverse }), [rows[0], rows[1], weight, bias], [out], fetch);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, ROW_LENGTHS, agrees, agrees_in_f16, gradients_agree, on_every_backend};

    const EPSILON: f64 = 1e-5;

    fn oracle_with(inputs: &[&Array], epsilon: f64) -> Array {
        let [x, residual, weight, bias] = inputs else { panic!("four inputs") };
        let sum = Array::new(&x.shape, x.values.iter().zip(&residual.values).map(|(x, r)| x + r).collect());
        sum.map_rows(|_, row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let normed = row.iter().map(|x| (x - mean) / (variance + epsilon).sqrt());
            normed.zip(&weight.values).zip(&bias.values).map(|((x, w), b)| x * w + b).collect()
        })
    }

    fn oracle(inputs: &[&Array]) -> Array {
        oracle_with(inputs, EPSILON)
    }

    fn run<B: KernelBackend>(t: Vec<FloatTensor<B>>, epsilon: f64) -> FloatTensor<B> {
        B::add_layer_norm(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), epsilon)
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array, residual: &Array, epsilon: f64) {
        let inputs = [x, residual, &Array::random(3, &[x.width()]), &Array::random(4, &[x.width()])];
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(t, epsilon);
        agrees::<B::InnerBackend>(device, &inputs, 2e-5, op, &oracle_with(&inputs, epsilon));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[3, 5], &[2, 3, 17], &[300, 128]] {
            check::<B>(device, &Array::random(1, shape), &Array::random(2, shape), EPSILON);
        }
        for length in ROW_LENGTHS {
            // A row of one is its own mean, and two values may be as near to each other as they like.
            let epsilon = if length > 2 { 1e-12 } else { EPSILON };
            check::<B>(device, &Array::random(1, &[3, length]), &Array::random(2, &[3, length]), epsilon);
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            let inputs = [1, 2].map(|seed| Array::random(seed, &[3, length]).map(|v| v * 1e4));
            let inputs = [&inputs[0], &inputs[1], &Array::random(3, &[length]), &Array::random(4, &[length])];
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(t, EPSILON);
            agrees_in_f16::<B::InnerBackend>(device, &inputs, op, oracle);
        }
    }

    fn zeros_far_rows_and_no_rows_are_fine<B: TrainBackend>(device: &B::Device) {
        let (x, residual) = (Array::random(1, &[4, 131]), Array::random(2, &[4, 131]));
        check::<B>(device, &x.clone().with_row(2, 0.0), &residual.clone().with_row(2, 0.0), 1e-12);
        check::<B>(device, &x.clone().map(|v| v * 1e15), &residual.clone().map(|v| v * 1e15), EPSILON);
        check::<B>(device, &Array::random(1, &[0, 33]), &Array::random(2, &[0, 33]), EPSILON);
    }

    fn nan_spoils_its_own_row_only<B: TrainBackend>(device: &B::Device) {
        for column in [0, 40, 130] {
            let (mut x, mut residual) = (Array::random(1, &[4, 131]), Array::random(2, &[4, 131]));
            x.values[131 + column] = f64::NAN;
            residual.values[2 * 131 + column] = f64::NAN;
            check::<B>(device, &x, &residual, EPSILON);
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 3][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let [weight, bias] = [3, 4].map(|seed| Array::random(seed, &shape[shape.len() - 1..]));
            let inputs = [&Array::random(1, shape), &Array::random(2, shape), &weight, &bias];
            gradients_agree::<B>(device, &inputs, &[0, 1, 2, 3], 5e-5, |t| run::<B>(t, EPSILON), oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        zeros_far_rows_and_no_rows_are_fine,
        nan_spoils_its_own_row_only,
        gradients_agree_with_differences,
    );
}
