//! Root mean square norm (Zhang & Sennrich 2019), as `LlamaRMSNorm` and `Qwen2RMSNorm` of transformers compute it.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{as_row, primitive, rowwise, sum_rows, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// Divides each row by its root mean square and scales it.
///
/// # Shapes
/// `x` `[…, hidden]`, `weight` `[hidden]` → `[…, hidden]`.
///
/// # Panics
/// If `weight` is not as long as a row.
pub fn rms_norm<B: KernelBackend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 1>, epsilon: f64) -> Tensor<B, D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "rms_norm: row {:?}, weight {:?}", x.dims(), weight.dims());
    tensor(B::rms_norm(primitive(x), primitive(weight), epsilon))
}

/// `1 / sqrt(mean(x²) + ε)`, `[…, 1]`.
fn inverse_rms<B: Backend>(x: &FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), x.rank() - 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean, epsilon.into())))
}

/// [`rms_norm`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, epsilon: f64) -> FloatTensor<B> {
    let [normed] = rowwise::<B, 2, 1>([x, weight], |[x, weight]| {
        let weight = as_row::<B>(weight, &x);
        let inverse = inverse_rms::<B>(&x, epsilon);
        [B::float_mul(B::float_mul(x, inverse), weight)]
    });
    normed
}

/// With `x̂ = x·r` and `h = weight·grad`: `dx = r·(h − x̂·mean(h·x̂))`.
pub(crate) fn reference_backward_input<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let [gradient] = rowwise::<B, 3, 1>([x, weight, grad], |[x, weight, grad]| {
        let last = x.rank() - 1;
        let inverse = inverse_rms::<B>(&x, epsilon);
        let weight = as_row::<B>(weight, &x);
        let normed = B::float_mul(x, inverse.clone());
        let scaled = B::float_mul(grad, weight);
        let mean = B::float_mean_dim(B::float_mul(scaled.clone(), normed.clone()), last);
        [B::float_mul(B::float_sub(scaled, B::float_mul(normed, mean)), inverse)]
    });
    gradient
}

pub(crate) fn reference_backward_weight<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let [products] = rowwise::<B, 2, 1>([grad, x], |[grad, x]| {
        let inverse = inverse_rms::<B>(&x, epsilon);
        [B::float_mul(grad, B::float_mul(x, inverse))]
    });
    sum_rows::<B>(products)
}

pub(crate) mod autodiff {
    //! The gradient: recomputes the row statistics from `x`, keeps nothing else.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct RmsNorm;

    impl<B: KernelBackend> Backward<B, 2> for RmsNorm {
        type State = (FloatTensor<B>, FloatTensor<B>, f64);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, weight_node] = ops.parents;
            let (x, weight, epsilon) = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            if let Some(node) = weight_node {
                let gradient = B::rms_norm_backward_weight(x.clone(), grad.clone(), epsilon);
                grads.register::<B>(node.id, gradient);
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, B::rms_norm_backward_input(x, weight, grad, epsilon));
            }
        }
    }

    pub(crate) fn rms_norm<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        epsilon: f64,
    ) -> Tracked<B> {
        let normed = B::rms_norm(x.primitive.clone(), weight.primitive.clone(), epsilon);
        record::<B, C>(x, weight, epsilon, normed)
    }

    /// The step from `x` to `normed`, which has been computed already.
    pub(crate) fn record<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        epsilon: f64,
        normed: FloatTensor<B>,
    ) -> Tracked<B> {
        match RmsNorm.prepare::<C>([x.node, weight.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x.primitive, weight.primitive, epsilon), normed),
            OpsKind::UnTracked(prep) => prep.finish(normed),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! Two passes over a row that fits the first-level cache, rows in parallel.
    use crate::targets::cpu::lanes::{Elementwise, Math};
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// `x · r · w`.
    pub(crate) struct Scale {
        pub(crate) inverse: f32,
    }

    impl Elementwise<2, 1> for Scale {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, w]: [V; 2]) -> [V; 1] {
            [x * V::splat(self.inverse) * w]
        }
    }

    /// The gradient of `x`.
    struct Slope {
        inverse: f32,
        dot: f32,
    }

    impl Elementwise<3, 1> for Slope {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, g, w]: [V; 3]) -> [V; 1] {
            [V::splat(self.inverse) * (g * w - x * V::splat(self.dot))]
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, weight: T, epsilon: f64) -> T::Output {
        let rows = Rows::new(&x);
        let weight = Rows::new(&weight);
        let weight = weight.all();
        rows.map(
            #[inline(always)]
            |math, _, ahead, row, out| {
                let inverse = inverse_rms(math, row, epsilon as f32);
                let fetch = ahead.fetch([row], [out]);
                math.map(&Scale { inverse }, [row, weight], [out], fetch);
            },
        )
    }

    pub(crate) fn backward_input<T: RowTensor>(x: T, weight: T, grad: T, epsilon: f64) -> T::Output {
        let rows = Rows::new(&x);
        let grads = Rows::new(&grad);
        let weight = Rows::new(&weight);
        let weight = weight.all();
        rows.map(
            #[inline(always)]
            |math, index, ahead, row, out| {
                let grad = grads.row(index);
                let inverse = inverse_rms(math, row, epsilon as f32);
                let dot = math.sum3(row, grad, weight) * inverse * inverse / row.len() as f32;
                let fetch = ahead.fetch([row, grad], [out]);
                math.map(&Slope { inverse, dot }, [row, grad, weight], [out], fetch);
            },
        )
    }

    /// `1 / sqrt(mean(x²) + ε)`.
    #[inline(always)]
    pub(crate) fn inverse_rms(math: Math, row: &[f32], epsilon: f32) -> f32 {
        1.0 / (math.sum2(row, row) / row.len() as f32 + epsilon).sqrt()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{
        Array, ROW_LENGTHS, View, agrees, agrees_in_f16, compare, gradients_agree, on_every_backend, read,
    };
    use burn::tensor::DType;

    const EPSILON: f64 = 1e-6;

    fn oracle(inputs: &[&Array]) -> Array {
        oracle_with(inputs, EPSILON)
    }

    pub(crate) fn oracle_with(inputs: &[&Array], epsilon: f64) -> Array {
        let [x, weight] = inputs else { panic!("two inputs") };
        x.map_rows(|_, row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            row.iter().zip(&weight.values).map(|(x, w)| x / (mean + epsilon).sqrt() * w).collect()
        })
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array) {
        let inputs = [x, &Array::random(2, &[x.width()])];
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::rms_norm(t[0].clone(), t[1].clone(), EPSILON);
        agrees::<B::InnerBackend>(device, &inputs, 1e-5, op, &oracle(&inputs));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025], &[300, 128], &[0, 33]] {
            check::<B>(device, &Array::random(1, shape));
        }
        for length in ROW_LENGTHS {
            let inputs = [&Array::random(1, &[3, length]), &Array::random(2, &[length])];
            let op =
                |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::rms_norm(t[0].clone(), t[1].clone(), 1e-12);
            agrees::<B::InnerBackend>(device, &inputs, 1e-5, op, &oracle_with(&inputs, 1e-12));
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            // Squares of these overflow f16.
            let mut x = Array::random(1, &[3, length]).map(|v| v * 1e4);
            x.values[length] = f64::NAN;
            let op =
                |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::rms_norm(t[0].clone(), t[1].clone(), EPSILON);
            agrees_in_f16::<B::InnerBackend>(device, &[&x, &Array::random(2, &[length])], op, oracle);
        }
    }

    fn the_gradient_of_each_length_is_that_of_the_reference<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            let arrays = [(1, vec![3, length]), (2, vec![length]), (3, vec![3, length])];
            let inputs = arrays.map(|(seed, shape)| Array::random(seed, &shape));
            let run = |op: fn(_, _, _, f64) -> FloatTensor<B::InnerBackend>| {
                let [x, weight, grad] =
                    inputs.each_ref().map(|input| input.on::<B::InnerBackend>(device, DType::F32, View::Rows));
                read::<B::InnerBackend>(op(x, weight, grad, EPSILON))
            };
            let expected = run(reference_backward_input::<B::InnerBackend>);
            compare(&format!("{length}"), &run(B::InnerBackend::rms_norm_backward_input), &expected, 1e-5);
        }
    }

    fn zeros_stay_zero_and_large_values_do_not_overflow<B: TrainBackend>(device: &B::Device) {
        let x = Array::random(1, &[4, 131]);
        check::<B>(device, &x.clone().with_row(2, 0.0));
        check::<B>(device, &x.clone().map(|v| v * 1e15));
        check::<B>(device, &x.map(|v| v * 1e-4));
    }

    fn nan_spoils_its_own_row_only<B: TrainBackend>(device: &B::Device) {
        for column in [0, 40, 130] {
            let mut x = Array::random(1, &[4, 131]);
            x.values[131 + column] = f64::NAN;
            check::<B>(device, &x);
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let inputs = [&Array::random(1, shape), &Array::random(2, &shape[shape.len() - 1..])];
            let op = |t: Vec<FloatTensor<B>>| B::rms_norm(t[0].clone(), t[1].clone(), EPSILON);
            gradients_agree::<B>(device, &inputs, &[0, 1], 5e-5, op, oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        the_gradient_of_each_length_is_that_of_the_reference,
        zeros_stay_zero_and_large_values_do_not_overflow,
        nan_spoils_its_own_row_only,
        gradients_agree_with_differences,
    );
}
