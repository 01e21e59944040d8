//! The Gaussian error linear unit (Hendrycks & Gimpel 2016) as BERT has it: exact, by the error function, not by tanh.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::{primitive, tensor};
use crate::KernelBackend;

/// `x · Φ(x)`, element by element, with `Φ` the normal distribution function: `(1 + erf(x / √2)) / 2`.
pub fn gelu<B: KernelBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    tensor(<B as KernelBackend>::gelu(primitive(x)))
}

/// `Φ(x)`.
fn distribution<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let erf = B::float_erf(B::float_mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2.into()));
    B::float_mul_scalar(B::float_add_scalar(erf, 1.0.into()), 0.5.into())
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(x.clone(), distribution::<B>(x))
}

/// `gelu'(x) = Φ(x) + x·φ(x)` with the density `φ(x) = exp(−x²/2) / √(2π)`.
pub(crate) fn reference_backward<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    debug_assert_eq!(x.shape(), grad.shape());
    let exponent = B::float_mul_scalar(B::float_mul(x.clone(), x.clone()), (-0.5).into());
    let density = B::float_mul_scalar(B::float_exp(exponent), (std::f64::consts::TAU.sqrt().recip()).into());
    let slope = B::float_add(distribution::<B>(x.clone()), B::float_mul(x, density));
    B::float_mul(grad, slope)
}

pub(crate) mod autodiff {
    //! The gradient keeps the input and computes the rest again.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Gelu;

    impl<B: KernelBackend> Backward<B, 1> for Gelu {
        type State = FloatTensor<B>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [node] = ops.parents;
            if let Some(node) = node {
                grads.register::<B>(node.id, <B as KernelBackend>::gelu_backward(ops.state, grad));
            }
        }
    }

    pub(crate) fn gelu<B: KernelBackend, C: CheckpointStrategy>(x: Tracked<B>) -> Tracked<B> {
        match Gelu.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.primitive.clone(), <B as KernelBackend>::gelu(x.primitive)),
            OpsKind::UnTracked(prep) => prep.finish(<B as KernelBackend>::gelu(x.primitive)),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! One pass with a vectorised error function, rows in parallel.
    use crate::targets::cpu::{RowTensor, Rows, lanes};

    /// Beyond these an f32 of `1 ± erf` is exactly 2 or 0, while the approximation is off by a rounding that a large `x` would multiply.
    const SATURATED: f32 = 5.65;

    /// `Φ(x)`.
    #[inline(always)]
    fn distribution(x: f32) -> f32 {
        let inside = 0.5 + 0.5 * lanes::erf(x * std::f32::consts::FRAC_1_SQRT_2);
        let above = if x > SATURATED { 1.0 } else { inside };
        if x < -SATURATED { 0.0 } else { above }
    }

    pub(crate) fn forward<T: RowTensor>(x: T) -> T::Output {
        Rows::new(&x).map(
            #[inline(always)]
            |_, row, out| {
                for (out, &x) in out.iter_mut().zip(row) {
                    *out = x * distribution(x);
                }
            },
        )
    }

    pub(crate) fn backward<T: RowTensor>(x: T, grad: T) -> T::Output {
        let grads = Rows::new(&grad);
        Rows::new(&x).map(
            #[inline(always)]
            |index, row, out| {
                for ((out, &x), &d) in out.iter_mut().zip(row).zip(grads.row(index)) {
                    let density = lanes::exp(-0.5 * x * x) * 0.398_942_3;
                    // Where the density is zero so is the product, whatever `x` is.
                    *out = d * (distribution(x) + x * density);
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
        let [x] = inputs else { panic!("one input") };
        let gelu = |x: &f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        Array::new(&x.shape, x.values.iter().map(gelu).collect())
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| <B::InnerBackend as KernelBackend>::gelu(t[0].clone());
        agrees::<B::InnerBackend>(device, &[x], 2e-6, op, &oracle(&[x]));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[1, 1536], &[7, 1], &[2, 3, 17], &[33, 1025], &[300, 128]] {
            check::<B>(device, &Array::random(1, shape).map(|v| v * 8.0));
        }
    }

    fn it_saturates_at_any_size<B: TrainBackend>(device: &B::Device) {
        let sizes = [0.0, 1e-30, 1e-3, 5.6, 5.65, 5.66, 6.0, 8.0, 100.0, 1e10, 1e30];
        let values: Vec<f64> = sizes.iter().flat_map(|&x| [x, -x]).map(|x| f64::from(x as f32)).collect();
        check::<B>(device, &Array::new(&[2, 11], values));
    }

    fn nan_spoils_its_own_element_only<B: TrainBackend>(device: &B::Device) {
        let mut x = Array::random(1, &[4, 33]);
        x.values[40] = f64::NAN;
        check::<B>(device, &x);
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let x = Array::random(1, shape).map(|v| v * 6.0);
            gradients_agree::<B>(
                device,
                &[&x],
                &[0],
                1e-5,
                |t: Vec<FloatTensor<B>>| <B as KernelBackend>::gelu(t[0].clone()),
                oracle,
            );
        }
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        it_saturates_at_any_size,
        nan_spoils_its_own_element_only,
        gradients_agree_with_differences,
    );
}
