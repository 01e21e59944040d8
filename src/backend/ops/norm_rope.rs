//! The norm of each head and its rotation in one pass: what Qwen3 does to its queries and keys (`Qwen3Attention` of transformers).

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::rope::{assert_rows_fit, assert_tables_fit};
use super::{primitive, rms_norm, rope, rowwise, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// [`rope`](super::rope::rope) of the [`rms_norm`](super::rms_norm::rms_norm) of each head.
///
/// # Shapes
/// `x` `[tokens, heads, dim]`, `weight` `[dim]`, `cos` and `sin` `[tokens, dim / 2]` → `[tokens, heads, dim]`.
///
/// # Panics
/// If weight or tables do not fit `x`, or `dim` is odd.
pub fn norm_rope<B: KernelBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
    [cos, sin]: [Tensor<B, 2>; 2],
) -> Tensor<B, 3> {
    fits("norm_rope", &x, &weight, [&cos, &sin]);
    tensor(B::norm_rope(primitive(x), primitive(weight), epsilon, primitive(cos), primitive(sin)))
}

/// `target` with [`norm_rope`] of `x` written from row `start` on. Pass the only handle to `target` and nothing else is copied on backends
/// that can.
///
/// # Shapes
/// `target` `[capacity, heads, dim]`, `x` `[tokens, heads, dim]`, `weight` `[dim]`, `cos` and `sin` `[tokens, dim / 2]` →
/// `[capacity, heads, dim]`.
///
/// # Panics
/// If weight or tables do not fit `x`, the rows do not fit `target`, or `dim` is odd.
pub fn norm_rope_into<B: KernelBackend>(
    target: Tensor<B, 3>,
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
    [cos, sin]: [Tensor<B, 2>; 2],
    start: usize,
) -> Tensor<B, 3> {
    fits("norm_rope_into", &x, &weight, [&cos, &sin]);
    assert_rows_fit("norm_rope_into", &target, &x, start);
    let (target, x, weight) = (primitive(target), primitive(x), primitive(weight));
    tensor(B::norm_rope_into(target, x, weight, epsilon, primitive(cos), primitive(sin), start))
}

fn fits<B: KernelBackend>(op: &str, x: &Tensor<B, 3>, weight: &Tensor<B, 1>, tables: [&Tensor<B, 2>; 2]) {
    assert_tables_fit(op, x, tables);
    assert_eq!([x.dims()[2]], weight.dims(), "{op}: x {:?}, weight {:?}", x.dims(), weight.dims());
}

/// [`norm_rope`] in Burn's own ops; narrow inputs are rounded once, at the end.
pub(crate) fn reference<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f64,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let [turned] = rowwise::<B, 4, 1>([x, weight, cos, sin], |[x, weight, cos, sin]| {
        [rope::reference::<B>(rms_norm::reference::<B>(x, weight, epsilon), cos, sin)]
    });
    turned
}

pub(crate) mod autodiff {
    //! The rotation back, then the gradient of the norm, which recomputes its statistics from `x`; the tables are constants.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct NormRope {
        epsilon: f64,
    }

    impl<B: KernelBackend> Backward<B, 2> for NormRope {
        /// `x`, the weight, `cos` and `sin`.
        type State = [FloatTensor<B>; 4];

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let [x_node, weight_node] = ops.parents;
            let [x, weight, cos, sin] = ops.state;
            let grad = B::rope(grads.consume::<B>(&ops.node), cos, B::float_neg(sin));
            if let Some(node) = weight_node {
                let gradient = B::rms_norm_backward_weight(x.clone(), grad.clone(), self.epsilon);
                grads.register::<B>(node.id, gradient);
            }
            if let Some(node) = x_node {
                grads.register::<B>(node.id, B::rms_norm_backward_input(x, weight, grad, self.epsilon));
            }
        }
    }

    pub(crate) fn norm_rope<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        weight: Tracked<B>,
        epsilon: f64,
        cos: Tracked<B>,
        sin: Tracked<B>,
    ) -> Tracked<B> {
        let state = [x.primitive, weight.primitive, cos.primitive, sin.primitive];
        let [x_again, weight_again, cos, sin] = state.clone();
        let turned = B::norm_rope(x_again, weight_again, epsilon, cos, sin);
        match (NormRope { epsilon }).prepare::<C>([x.node, weight.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, turned),
            OpsKind::UnTracked(prep) => prep.finish(turned),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! A token's heads together, tokens in parallel: each head is read for its sum of squares, then out of the first-level cache.
    use crate::ops::rms_norm::cpu::inverse_rms;
    use crate::ops::rope::cpu::turn;
    use crate::targets::cpu::{RowTensor, Rows};

    pub(crate) fn forward<T: RowTensor>(x: T, weight: T, epsilon: f64, cos: T, sin: T) -> T::Output {
        let shape = x.shape();
        let (heads, dim) = (shape[1], shape[2]);
        let (weight, cos, sin) = (Rows::new(&weight), Rows::new(&cos), Rows::new(&sin));
        let (scale_low, scale_high) = weight.all().split_at(dim / 2);
        Rows::of_width(&x, heads * dim).map(
            #[inline(always)]
            |math, token, _, row, out| {
                let (cos, sin) = (cos.row(token), sin.row(token));
                for (head, out) in row.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                    let inverse = inverse_rms(math, head, epsilon as f32);
                    let (first, second) = head.split_at(dim / 2);
                    turn(
                        #[inline(always)]
                        |i| [first[i] * inverse * scale_low[i], second[i] * inverse * scale_high[i]],
                        [cos, sin],
                        out,
                    );
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, agrees, agrees_in_f16, gradients_agree, on_every_backend, read};

    const EPSILON: f64 = 1e-6;

    /// Of `x`, the weight, `cos` and `sin`.
    fn oracle(inputs: &[&Array]) -> Array {
        oracle_with(inputs, EPSILON)
    }

    fn oracle_with(inputs: &[&Array], epsilon: f64) -> Array {
        let [x, weight, cos, sin] = inputs else { panic!("four inputs") };
        rope::tests::oracle(&[&rms_norm::tests::oracle_with(&[x, weight], epsilon), cos, sin])
    }

    fn inputs(shape: [usize; 3]) -> [Array; 4] {
        let angles = Array::random(3, &[shape[0], shape[2] / 2]).map(|v| v * 3.0);
        let weight = Array::random(2, &[shape[2]]);
        [Array::random(1, &shape), weight, angles.clone().map(f64::cos), angles.map(f64::sin)]
    }

    fn op<B: KernelBackend>(t: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        B::norm_rope(t[0].clone(), t[1].clone(), EPSILON, t[2].clone(), t[3].clone())
    }

    fn check<B: TrainBackend>(device: &B::Device, [x, weight, cos, sin]: &[Array; 4]) {
        let inputs = [x, weight, cos, sin];
        agrees::<B::InnerBackend>(device, &inputs, 1e-5, op::<B::InnerBackend>, &oracle(&inputs));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [[1, 1, 2], [1, 14, 64], [5, 3, 6], [7, 1, 128], [600, 2, 34], [2, 3, 2050]] {
            check::<B>(device, &inputs(shape));
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [[5, 3, 6], [7, 1, 128], [3, 2, 34]] {
            // Squares of these overflow f16.
            let [x, weight, cos, sin] = inputs(shape);
            let mut x = x.map(|v| v * 1e4);
            x.values[shape[2]] = f64::NAN;
            agrees_in_f16::<B::InnerBackend>(device, &[&x, &weight, &cos, &sin], op::<B::InnerBackend>, oracle);
        }
    }

    fn the_gradient_agrees_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [[1, 1, 2], [5, 3, 6], [60, 2, 34]] {
            let [x, weight, cos, sin] = inputs(shape);
            gradients_agree::<B>(device, &[&x, &weight, &cos, &sin], &[0, 1], 5e-5, op::<B>, oracle);
        }
    }

    fn written_rows_are_the_same_and_all_others_kept<B: TrainBackend>(device: &B::Device) {
        for (capacity, shape, start) in
            [(1, [1, 1, 2], 0), (8, [3, 2, 6], 5), (8, [8, 1, 34], 0), (300, [1, 2, 64], 299)]
        {
            let [x, weight, cos, sin] = inputs(shape);
            let target = Array::random(9, &[capacity, shape[1], shape[2]]);
            let mut expected = target.clone();
            let (row, turned) = (shape[1] * shape[2], oracle_with(&[&x, &weight, &cos, &sin], 1e-12));
            expected.values[start * row..(start + shape[0]) * row].copy_from_slice(&turned.values);
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
                let [target, x, weight, cos, sin] = <[_; 5]>::try_from(t).expect("five inputs");
                B::InnerBackend::norm_rope_into(target, x, weight, 1e-12, cos, sin, start)
            };
            agrees::<B::InnerBackend>(device, &[&target, &x, &weight, &cos, &sin], 1e-5, op, &expected);
        }
    }

    fn zeros_stay_zero_and_nan_spoils_its_own_head_only<B: TrainBackend>(device: &B::Device) {
        let [mut x, weight, cos, sin] = inputs([3, 2, 34]);
        x.values[34..68].fill(0.0);
        x.values[2 * 34 + 20] = f64::NAN;
        check::<B>(device, &[x, weight, cos, sin]);
    }

    fn no_tokens_stay_no_tokens<B: TrainBackend>(device: &B::Device) {
        let tables = || [0, 1].map(|_| Tensor::<B::InnerBackend, 2>::zeros([0, 2], device));
        let weight = Tensor::<B::InnerBackend, 1>::ones([4], device);
        let x = Tensor::<B::InnerBackend, 3>::zeros([0, 2, 4], device);
        assert_eq!(norm_rope(x.clone(), weight.clone(), EPSILON, tables()).dims(), [0, 2, 4]);
        let target = Tensor::<B::InnerBackend, 3>::ones([3, 2, 4], device);
        let written = norm_rope_into(target, x, weight, EPSILON, tables(), 3);
        assert_eq!(read::<B::InnerBackend>(primitive(written)).values, [1.0; 24]);
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        the_gradient_agrees_with_differences,
        written_rows_are_the_same_and_all_others_kept,
        zeros_stay_zero_and_nan_spoils_its_own_head_only,
        no_tokens_stay_no_tokens,
    );
}
