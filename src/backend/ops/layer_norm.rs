//! Layer norm with an affine map (Ba et al. 2016), variance without Bessel's correction, as `torch.nn.LayerNorm`.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{as_row, primitive, rowwise, sum_rows, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// Centres each row, divides it by its standard deviation, scales and shifts it.
///
/// # Shapes
/// `x` `[…, hidden]`, `weight` and `bias` `[hidden]` → `[…, hidden]`.
///
/// # Panics
/// If `weight` or `bias` is not as long as a row.
pub fn layer_norm<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, D> {
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "layer_norm: row {:?}, weight {:?}", x.dims(), weight.dims());
    assert_eq!(weight.dims(), bias.dims(), "layer_norm: weight {:?}, bias {:?}", weight.dims(), bias.dims());
    tensor(<B as KernelBackend>::layer_norm(primitive(x), primitive(weight), primitive(bias), epsilon))
}

/// The centred row over its standard deviation, and `1 / standard deviation`.
fn normed<B: Backend>(x: FloatTensor<B>, epsilon: f64) -> (FloatTensor<B>, FloatTensor<B>) {
    let last = x.rank() - 1;
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, last));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), last);
    let inverse = B::float_recip(B::float_sqrt(B::float_add_scalar(variance, epsilon.into())));
    (B::float_mul(centred, inverse.clone()), inverse)
}

/// [`layer_norm`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let [normed] = rowwise::<B, 3, 1>([x, weight, bias], |[x, weight, bias]| {
        let (weight, bias) = (as_row::<B>(weight, &x), as_row::<B>(bias, &x));
        [B::float_add(B::float_mul(normed::<B>(x, epsilon).0, weight), bias)]
    });
    normed
}

/// With `h = weight·grad`: `dx = (h − mean(h) − x̂·mean(h·x̂)) / σ`.
pub(crate) fn reference_backward_input<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let [gradient] = rowwise::<B, 3, 1>([x, weight, grad], |[x, weight, grad]| {
        let last = x.rank() - 1;
        let weight = as_row::<B>(weight, &x);
        let (normed, inverse) = normed::<B>(x, epsilon);
        let scaled = B::float_mul(grad, weight);
        let along = B::float_mean_dim(B::float_mul(scaled.clone(), normed.clone()), last);
        let mean = B::float_mean_dim(scaled.clone(), last);
        [B::float_mul(B::float_sub(B::float_sub(scaled, mean), B::float_mul(normed, along)), inverse)]
    });
    gradient
}

pub(crate) fn reference_backward_weight<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let [products] = rowwise::<B, 2, 1>([grad, x], |[grad, x]| [B::float_mul(grad, normed::<B>(x, epsilon).0)]);
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
    struct LayerNorm;

    impl<B: KernelBackend> Backward<B, 3> for LayerNorm {
        type State = (FloatTensor<B>, FloatTensor<B>, f64);

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, weight_node, bias_node] = ops.parents;
            let (x, weight, epsilon) = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            if let Some(node) = bias_node {
                grads.register::<B>(node.id, sum_rows::<B>(grad.clone()));
            }
            if let Some(node) = weight_node {
                let gradient = B::layer_norm_backward_weight(x.clone(), grad.clone(), epsilon);
                grads.register::<B>(node.id, gradient);
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, B::layer_norm_backward_input(x, weight, grad, epsilon));
            }
        }
    }

    pub(crate) fn layer_norm<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        bias: Tracked<B>,
        epsilon: f64,
    ) -> Tracked<B> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (x.primitive.clone(), weight.primitive.clone(), epsilon);
                prep.finish(
                    state,
                    <B as KernelBackend>::layer_norm(x.primitive, weight.primitive, bias.primitive, epsilon),
                )
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(<B as KernelBackend>::layer_norm(x.primitive, weight.primitive, bias.primitive, epsilon))
            }
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! Two passes over a row that fits the first-level cache, rows in parallel.
    use crate::targets::cpu::lanes::{Elementwise, Math};
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// `(x − μ) · r · w + b`.
    pub(crate) struct Affine {
        pub(crate) mean: f32,
        pub(crate) inverse: f32,
    }

    impl Elementwise<3, 1> for Affine {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, w, b]: [V; 3]) -> [V; 1] {
            [((x - V::splat(self.mean)) * V::splat(self.inverse)).mul_add(w, b)]
        }
    }

    /// The gradient of `x`.
    struct Slope {
        mean: f32,
        inverse: f32,
        mean_h: f32,
        along: f32,
    }

    impl Elementwise<3, 1> for Slope {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, g, w]: [V; 3]) -> [V; 1] {
            let beyond = (x - V::splat(self.mean)) * V::splat(self.along);
            [V::splat(self.inverse) * (g * w - V::splat(self.mean_h) - beyond)]
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, weight: T, bias: T, epsilon: f64) -> T::Output {
        let rows = Rows::new(&x);
        let (weight, bias) = (Rows::new(&weight), Rows::new(&bias));
        let (weight, bias) = (weight.all(), bias.all());
        rows.map(
            #[inline(always)]
            |math, _, ahead, row, out| {
                let (mean, inverse) = statistics(math, [row], epsilon as f32);
                let fetch = ahead.fetch([row], [out]);
                math.map(&Affine { mean, inverse }, [row, weight, bias], [out], fetch);
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
                let (mean, inverse) = statistics(math, [row], epsilon as f32);
                let length = row.len() as f32;
                let mean_h = math.sum2(grad, weight) / length;
                let along = math.sum3_about(row, mean, grad, weight) / length * inverse * inverse;
                let fetch = ahead.fetch([row, grad], [out]);
                math.map(&Slope { mean, inverse, mean_h, along }, [row, grad, weight], [out], fetch);
            },
        )
    }

    /// Mean and inverse standard deviation of the sum of rows.
    #[inline(always)]
    pub(crate) fn statistics<const N: usize>(math: Math, rows: [&[f32]; N], epsilon: f32) -> (f32, f32) {
        let (mean, variance) = math.mean_and_variance(rows);
        (mean, 1.0 / (variance + epsilon).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{
        Array, ROW_LENGTHS, View, agrees, agrees_in_f16, compare, gradients_agree, on_every_backend, read,
    };
    use burn::tensor::DType;

    const EPSILON: f64 = 1e-5;

    fn oracle(inputs: &[&Array]) -> Array {
        let [x, weight, bias] = inputs else { panic!("three inputs") };
        x.map_rows(|_, row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let normed = row.iter().map(|x| (x - mean) / (variance + EPSILON).sqrt());
            normed.zip(&weight.values).zip(&bias.values).map(|((x, w), b)| x * w + b).collect()
        })
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array, tolerance: f64) {
        let inputs = [x, &Array::random(2, &[x.width()]), &Array::random(3, &[x.width()])];
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            B::InnerBackend::layer_norm(t[0].clone(), t[1].clone(), t[2].clone(), EPSILON)
        };
        agrees::<B::InnerBackend>(device, &inputs, tolerance, op, &oracle(&inputs));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[1, 384], &[3, 5], &[2, 3, 17], &[33, 1025], &[300, 128], &[0, 33]] {
            check::<B>(device, &Array::random(1, shape), 1e-5);
        }
        for length in ROW_LENGTHS {
            check::<B>(device, &Array::random(1, &[3, length]), 2e-5);
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            let mut x = Array::random(1, &[3, length]).map(|v| v * 1e4);
            x.values[length] = f64::NAN;
            let inputs = [&x, &Array::random(2, &[length]), &Array::random(3, &[length])];
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
                <B::InnerBackend as KernelBackend>::layer_norm(t[0].clone(), t[1].clone(), t[2].clone(), EPSILON)
            };
            agrees_in_f16::<B::InnerBackend>(device, &inputs, op, oracle);
        }
    }

    fn the_gradient_of_each_length_is_that_of_the_reference<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            let arrays = [(1, vec![3, length]), (2, vec![length]), (3, vec![3, length])];
            let inputs = arrays.map(|(seed, shape)| Array::random(seed, &shape));
            let run = |op: fn(_, _, _, f64) -> FloatTensor<B::InnerBackend>| {
                let [x, weight, grad] =
                    inputs.each_ref().map(|input| input.on::<B::InnerBackend>(device, DType::F32, View::Rows));
                read::<B::InnerBackend>(op(x, weight, grad, 1e-3))
            };
            let expected = run(reference_backward_input::<B::InnerBackend>);
            compare(&format!("{length}"), &run(B::InnerBackend::layer_norm_backward_input), &expected, 1e-4);
        }
    }

    fn constant_large_and_far_rows_agree<B: TrainBackend>(device: &B::Device) {
        let x = Array::random(1, &[4, 131]);
        check::<B>(device, &x.clone().with_row(2, 0.0).with_row(3, 0.75), 1e-5);
        check::<B>(device, &x.clone().map(|v| v * 1e15), 1e-5);
        // A mean a thousand deviations away costs three digits of f32, and no more.
        check::<B>(device, &x.map(|v| v + 1000.0), 1e-3);
    }

    fn nan_spoils_its_own_row_only<B: TrainBackend>(device: &B::Device) {
        for column in [0, 40, 130] {
            let mut x = Array::random(1, &[4, 131]);
            x.values[131 + column] = f64::NAN;
            check::<B>(device, &x, 1e-5);
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        let far = |v: f64| v + 100.0;
        for (x, tolerance) in [
            (Array::random(1, &[1, 3]), 5e-5),
            (Array::random(1, &[3, 5]), 5e-5),
            (Array::random(1, &[2, 3, 17]), 5e-5),
            (Array::random(1, &[33, 1025]), 5e-5),
            (Array::random(1, &[5, 131]).map(far), 1e-3),
        ] {
            let inputs = [&x, &Array::random(2, &[x.width()]), &Array::random(3, &[x.width()])];
            let op = |t: Vec<FloatTensor<B>>| {
                <B as KernelBackend>::layer_norm(t[0].clone(), t[1].clone(), t[2].clone(), EPSILON)
            };
            gradients_agree::<B>(device, &inputs, &[0, 1, 2], tolerance, op, oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        the_gradient_of_each_length_is_that_of_the_reference,
        constant_large_and_far_rows_agree,
        nan_spoils_its_own_row_only,
        gradients_agree_with_differences,
    );
}
