//! The Gaussian error linear unit (Hendrycks & Gimpel 2016) as BERT has it: exact, by the error function, not by tanh.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{as_row, primitive, rowwise, sum_rows, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// `x · Φ(x)`, element by element, with `Φ` the normal distribution function: `(1 + erf(x / √2)) / 2`; of `x + bias` where there is one.
///
/// # Shapes
/// `x` `[…, n]`, `bias` `[n]` → `[…, n]`.
///
/// # Panics
/// If `bias` is not as long as a row.
pub fn gelu<B: KernelBackend, const D: usize>(x: Tensor<B, D>, bias: Option<Tensor<B, 1>>) -> Tensor<B, D> {
    if let Some(bias) = &bias {
        assert_eq!(x.dims()[D - 1], bias.dims()[0], "gelu: row {:?}, bias {:?}", x.dims(), bias.dims());
    }
    tensor(<B as KernelBackend>::gelu(primitive(x), bias.map(primitive)))
}

/// `Φ(x)`.
fn distribution<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2.into()));
    B::float_mul_scalar(B::float_add_scalar(erf, 1.0.into()), 0.5.into())
}

/// `x + bias`, in `x`'s dtype.
fn biased<B: Backend>(x: FloatTensor<B>, bias: Option<FloatTensor<B>>) -> FloatTensor<B> {
    match bias {
        Some(bias) => {
            let bias = as_row::<B>(bias, &x);
            B::float_add(x, bias)
        }
        None => x,
    }
}

/// [`gelu`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(x: FloatTensor<B>, bias: Option<FloatTensor<B>>) -> FloatTensor<B> {
    let [y] = rowwise::<B, 1, 1>([x], |[x]| {
        let x = biased::<B>(x, bias);
        [B::float_mul(x.clone(), distribution::<B>(x))]
    });
    y
}

/// `gelu'(x) = Φ(x) + x·φ(x)` with the density `φ(x) = exp(−x²/2) / √(2π)`.
pub(crate) fn reference_backward<B: Backend>(
    x: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    debug_assert_eq!(x.shape(), grad.shape());
    let [gradient] = rowwise::<B, 2, 1>([x, grad], |[x, grad]| {
        let x = biased::<B>(x, bias);
        let exponent = B::float_mul_scalar(B::float_mul(x.clone(), x.clone()), (-0.5).into());
        let density = B::float_mul_scalar(B::float_exp(exponent), (std::f64::consts::TAU.sqrt().recip()).into());
        let slope = B::float_add(distribution::<B>(x.clone()), B::float_mul(x, density));
        [B::float_mul(grad, slope)]
    });
    gradient
}

pub(crate) mod autodiff {
    //! The gradient keeps the input and computes the rest again.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::{Tracked, parent};

    #[derive(Debug)]
    struct Gelu;

    impl<B: KernelBackend> Backward<B, 2> for Gelu {
        type State = (FloatTensor<B>, Option<FloatTensor<B>>);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, bias_node] = ops.parents;
            let (x, bias) = ops.state;
            let grad = grads.consume::<B>(&ops.node);
            let gradient = <B as KernelBackend>::gelu_backward(x, bias, grad);
            if let Some(node) = bias_node {
                grads.register::<B>(node.id, sum_rows::<B>(gradient.clone()));
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }

    pub(crate) fn gelu<B: KernelBackend, C: CheckpointStrategy>(x: Tracked<B>, bias: Option<Tracked<B>>) -> Tracked<B> {
        let bias_node = parent::<B>(bias.clone(), &x.primitive).node;
        let bias = bias.map(|bias| bias.primitive);
        match Gelu.prepare::<C>([x.node, bias_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = <B as KernelBackend>::gelu(x.primitive.clone(), bias.clone());
                prep.finish((x.primitive, bias), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(<B as KernelBackend>::gelu(x.primitive, bias)),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! One pass with a vectorised normal distribution function, rows in parallel.
    use crate::targets::cpu::functions::{exp, normal_distribution};
    use crate::targets::cpu::lanes::Elementwise;
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// `gelu(x)`.
    struct Gelu;

    impl Elementwise<1, 1> for Gelu {
        #[inline(always)]
        fn of<V: Vector>(&self, [x]: [V; 1]) -> [V; 1] {
            [x * normal_distribution(x)]
        }
    }

    /// `gelu(x + b)`.
    struct OfSum;

    impl Elementwise<2, 1> for OfSum {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, b]: [V; 2]) -> [V; 1] {
            Gelu.of([x + b])
        }
    }

    /// `d · gelu'(x)`.
    struct Slope;

    impl Elementwise<2, 1> for Slope {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, d]: [V; 2]) -> [V; 1] {
            let density = exp(x * x * V::splat(-0.5)) * V::splat(0.398_942_3);
            // Where the density is zero so is the product with a finite `x`.
            [d * x.mul_add(density, normal_distribution(x))]
        }
    }

    /// `d · gelu'(x + b)`.
    struct SlopeOfSum;

    impl Elementwise<3, 1> for SlopeOfSum {
        #[inline(always)]
        fn of<V: Vector>(&self, [x, b, d]: [V; 3]) -> [V; 1] {
            Slope.of([x + b, d])
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, bias: Option<T>) -> T::Output {
        let Some(bias) = bias else {
            return Rows::new(&x).map(
                #[inline(always)]
                |math, _, ahead, row, out| {
                    let fetch = ahead.fetch([row], [out]);
                    math.map(&Gelu, [row], [out], fetch);
                },
            );
        };
        let bias = Rows::new(&bias);
        let bias = bias.all();
        Rows::new(&x).map(
            #[inline(always)]
            |math, _, ahead, row, out| {
                let fetch = ahead.fetch([row], [out]);
                math.map(&OfSum, [row, bias], [out], fetch);
            },
        )
    }

    pub(crate) fn backward<T: RowTensor>(x: T, bias: Option<T>, grad: T) -> T::Output {
        let rows = Rows::new(&x);
        let grads = Rows::new(&grad);
        let Some(bias) = bias else {
            return rows.map(
                #[inline(always)]
                |math, index, ahead, row, out| {
                    let fetch = ahead.fetch([row], [out]);
                    math.map(&Slope, [row, grads.row(index)], [out], fetch);
                },
            );
        };
        let bias = Rows::new(&bias);
        let bias = bias.all();
        rows.map(
            #[inline(always)]
            |math, index, ahead, row, out| {
                let fetch = ahead.fetch([row], [out]);
                math.map(&SlopeOfSum, [row, bias, grads.row(index)], [out], fetch);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, ROW_LENGTHS, agrees, agrees_in_f16, gradients_agree, on_every_backend};

    /// erf by a series without cancellation: `2/√π · e^(−x²) · Σ 2ⁿ·x^(2n+1) / (2n+1)!!` (Abramowitz & Stegun 7.1.6).
    fn erf(x: f64) -> f64 {
        if x.abs() > 6.0 || x.is_nan() {
            return if x.is_nan() { x } else { x.signum() };
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    fn oracle(inputs: &[&Array]) -> Array {
        let gelu = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        inputs[0].map_rows(|_, row| {
            let bias = |at: usize| inputs.get(1).map_or(0.0, |bias| bias.values[at]);
            row.iter().enumerate().map(|(at, x)| gelu(x + bias(at))).collect()
        })
    }

    fn run<B: KernelBackend>(t: &[FloatTensor<B>]) -> FloatTensor<B> {
        <B as KernelBackend>::gelu(t[0].clone(), t.get(1).cloned())
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t);
        agrees::<B::InnerBackend>(device, &[x], 2e-6, op, &oracle(&[x]));
        let inputs = [x, &Array::random(2, &[x.width()])];
        agrees::<B::InnerBackend>(device, &inputs, 2e-6, op, &oracle(&inputs));
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for (length, size) in ROW_LENGTHS.into_iter().zip([8.0, 1e4].into_iter().cycle()) {
            let mut x = Array::random(1, &[3, length]).map(|v| v * size);
            x.values[length] = f64::NAN;
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| run::<B::InnerBackend>(&t);
            agrees_in_f16::<B::InnerBackend>(device, &[&x], op, oracle);
            agrees_in_f16::<B::InnerBackend>(device, &[&x, &Array::random(2, &[length])], op, oracle);
        }
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1536][..], &[7, 1], &[2, 3, 17], &[33, 1025], &[300, 128], &[0, 33]] {
            check::<B>(device, &Array::random(1, shape).map(|v| v * 8.0));
        }
        for length in ROW_LENGTHS {
            check::<B>(device, &Array::random(1, &[3, length]).map(|v| v * 8.0));
        }
    }

    fn it_saturates_at_any_size<B: TrainBackend>(device: &B::Device) {
        let sizes = [0.0, 1e-30, 1e-3, 5.3, 5.39, 5.4, 5.41, 5.65, 5.75, 6.0, 8.0, 100.0, 1e10, 1e30];
        let values: Vec<f64> = sizes.iter().flat_map(|&x| [x, -x]).map(|x| f64::from(x as f32)).collect();
        check::<B>(device, &Array::new(&[2, values.len() / 2], values));
    }

    fn nan_spoils_its_own_element_only<B: TrainBackend>(device: &B::Device) {
        let mut x = Array::random(1, &[4, 33]);
        x.values[40] = f64::NAN;
        check::<B>(device, &x);
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let inputs = [&Array::random(1, shape).map(|v| v * 6.0), &Array::random(2, &shape[shape.len() - 1..])];
            gradients_agree::<B>(device, &inputs[..1], &[0], 1e-5, |t| run::<B>(&t), oracle);
            gradients_agree::<B>(device, &inputs, &[0, 1], 5e-5, |t| run::<B>(&t), oracle);
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        it_saturates_at_any_size,
        nan_spoils_its_own_element_only,
        gradients_agree_with_differences,
    );
}
