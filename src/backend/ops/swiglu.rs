//! The gated activation of Qwen's and Llama's MLP (Shazeer 2020): `silu(gate) · up`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{primitive, rowwise, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// `gate · sigmoid(gate) · up`, element by element.
///
/// # Panics
/// If the shapes differ.
pub fn swiglu<B: KernelBackend, const D: usize>(gate: Tensor<B, D>, up: Tensor<B, D>) -> Tensor<B, D> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: gate {:?}, up {:?}", gate.dims(), up.dims());
    tensor(B::swiglu(primitive(gate), primitive(up)))
}

fn sigmoid<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_recip(B::float_add_scalar(B::float_exp(B::float_neg(x)), 1.0.into()))
}

/// [`swiglu`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let [product] =
        rowwise::<B, 2, 1>([gate, up], |[gate, up]| [B::float_mul(B::float_mul(gate.clone(), sigmoid::<B>(gate)), up)]);
    product
}

/// `silu'(g) = s·(1 + g·(1 − s))` with `s = sigmoid(g)`.
pub(crate) fn reference_backward<B: Backend>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [d_gate, d_up] = rowwise::<B, 3, 2>([gate, up, grad], |[gate, up, grad]| {
        let s = sigmoid::<B>(gate.clone());
        let silu = B::float_mul(gate.clone(), s.clone());
        let rest = B::float_add_scalar(B::float_neg(s.clone()), 1.0.into());
        let slope = B::float_mul(s, B::float_add_scalar(B::float_mul(gate, rest), 1.0.into()));
        [B::float_mul(B::float_mul(grad.clone(), up), slope), B::float_mul(grad, silu)]
    });
    (d_gate, d_up)
}

pub(crate) mod autodiff {
    //! The gradient recomputes the sigmoid.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Swiglu;

    impl<B: KernelBackend> Backward<B, 2> for Swiglu {
        type State = (FloatTensor<B>, FloatTensor<B>);

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (gate, up) = ops.state;
            let (d_gate, d_up) = B::swiglu_backward(gate, up, grad);
            for (node, gradient) in ops.parents.into_iter().zip([d_gate, d_up]) {
                if let Some(node) = node {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
    }

    pub(crate) fn swiglu<B: KernelBackend, C: CheckpointStrategy>(gate: Tracked<B>, up: Tracked<B>) -> Tracked<B> {
        match Swiglu.prepare::<C>([gate.node.clone(), up.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (gate.primitive.clone(), up.primitive.clone());
                prep.finish(state, B::swiglu(gate.primitive, up.primitive))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::swiglu(gate.primitive, up.primitive)),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! One pass with a vectorised exponential, rows in parallel.
    use crate::targets::cpu::functions::exp;
    use crate::targets::cpu::lanes::Elementwise;
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{RowTensor, Rows};

    /// `silu(gate) · up`.
    struct Swiglu;

    impl Elementwise<2, 1> for Swiglu {
        #[inline(always)]
        fn of<V: Vector>(&self, [gate, up]: [V; 2]) -> [V; 1] {
            let one = V::splat(1.0);
            // In this order: `gate · up` may overflow where the result does not.
            [gate / (one + exp(V::splat(0.0) - gate)) * up]
        }
    }

    /// The gradients of `gate` and `up`.
    struct Slopes;

    impl Elementwise<3, 2> for Slopes {
        #[inline(always)]
        fn of<V: Vector>(&self, [gate, up, d]: [V; 3]) -> [V; 2] {
            let one = V::splat(1.0);
            let s = one / (one + exp(V::splat(0.0) - gate));
            [d * up * (s * gate.mul_add(one - s, one)), d * (gate * s)]
        }
    }

    pub(crate) fn forward<T: RowTensor>(gate: T, up: T) -> T::Output {
        let ups = Rows::new(&up);
        Rows::new(&gate).map(
            #[inline(always)]
            |math, index, ahead, gate, out| {
                let rows = [gate, ups.row(index)];
                let fetch = ahead.fetch(rows, [out]);
                math.map(&Swiglu, rows, [out], fetch);
            },
        )
    }

    pub(crate) fn backward<T: RowTensor>(gate: T, up: T, grad: T) -> (T::Output, T::Output) {
        let (ups, grads) = (Rows::new(&up), Rows::new(&grad));
        Rows::new(&gate).map_to_two(
            #[inline(always)]
            |math, index, ahead, gate, d_gate, d_up| {
                let rows = [gate, ups.row(index), grads.row(index)];
                let fetch = ahead.fetch(rows, [d_gate, d_up]);
                math.map(&Slopes, rows, [d_gate, d_up], fetch);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, ROW_LENGTHS, agrees, agrees_in_f16, gradients_agree, on_every_backend};

    fn oracle(inputs: &[&Array]) -> Array {
        let [gate, up] = inputs else { panic!("two inputs") };
        let values = gate.values.iter().zip(&up.values).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
        Array::new(&gate.shape, values.collect())
    }

    fn check<B: TrainBackend>(device: &B::Device, gate: &Array, up: &Array) {
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::swiglu(t[0].clone(), t[1].clone());
        agrees::<B::InnerBackend>(device, &[gate, up], 1e-6, op, &oracle(&[gate, up]));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025], &[300, 128], &[0, 33]] {
            check::<B>(device, &Array::random(1, shape).map(|v| v * 20.0), &Array::random(2, shape));
        }
        for length in ROW_LENGTHS {
            let shape = [3, length];
            check::<B>(device, &Array::random(1, &shape).map(|v| v * 20.0), &Array::random(2, &shape));
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for (length, size) in ROW_LENGTHS.into_iter().zip([8.0, 1e4].into_iter().cycle()) {
            let mut gate = Array::random(1, &[3, length]).map(|v| v * size);
            gate.values[length] = f64::NAN;
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::swiglu(t[0].clone(), t[1].clone());
            agrees_in_f16::<B::InnerBackend>(device, &[&gate, &Array::random(2, &[3, length])], op, oracle);
        }
    }

    fn a_gate_of_any_size_opens_or_closes<B: TrainBackend>(device: &B::Device) {
        let gates = [0.0, 1e-30, 80.0, 87.0, 88.0, 88.5, 89.0, 100.0, 1e30, 3e38];
        let gates: Vec<f64> = gates.iter().flat_map(|&g| [g, -g]).map(|g| f64::from(g as f32)).collect();
        let gate = Array::new(&[2, 10], gates);
        check::<B>(device, &gate, &Array::random(2, &[2, 10]));
        // A closed gate lets nothing through, however large.
        check::<B>(device, &gate.clone().map(|g| -g.abs()), &Array::random(2, &[2, 10]).map(|v| v * 1e7));
    }

    fn nan_spoils_its_own_element_only<B: TrainBackend>(device: &B::Device) {
        let (mut gate, mut up) = (Array::random(1, &[4, 33]), Array::random(2, &[4, 33]));
        gate.values[40] = f64::NAN;
        up.values[50] = f64::NAN;
        check::<B>(device, &gate, &up);
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let inputs = [&Array::random(1, shape).map(|v| v * 5.0), &Array::random(2, shape)];
            let op = |t: Vec<FloatTensor<B>>| B::swiglu(t[0].clone(), t[1].clone());
            gradients_agree::<B>(device, &inputs, &[0, 1], 1e-5, op, oracle);
        }
    }

    fn both_roles_of_one_tensor_add_their_gradients<B: TrainBackend>(device: &B::Device) {
        let op = |t: Vec<FloatTensor<B>>| B::swiglu(t[0].clone(), t[0].clone());
        let oracle = |inputs: &[&Array]| oracle(&[inputs[0], inputs[0]]);
        gradients_agree::<B>(device, &[&Array::random(1, &[3, 5])], &[0], 1e-5, op, oracle);
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        a_gate_of_any_size_opens_or_closes,
        nan_spoils_its_own_element_only,
        gradients_agree_with_differences,
        both_roles_of_one_tensor_add_their_gradients,
    );
}
