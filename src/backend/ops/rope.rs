//! Rotary position embedding by halves (Su et al. 2021), in the layout of transformers' `rotate_half`: not Burn's interleaved pairs.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, Slice, Tensor, TensorMetadata};

use super::{in_dtype_of, primitive, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// Rotates each head by its position's angles.
///
/// # Shapes
/// `x` `[tokens, heads, dim]`, `cos` and `sin` `[tokens, dim / 2]` → `[tokens, heads, dim]`.
///
/// # Panics
/// If the tables do not fit `x`, or `dim` is odd.
pub fn rope<B: KernelBackend>(x: Tensor<B, 3>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 3> {
    assert_tables_fit("rope", &x, [&cos, &sin]);
    tensor(B::rope(primitive(x), primitive(cos), primitive(sin)))
}

/// `target` with `x` rotated by its positions' angles written from row `start` on. Pass the only handle to `target` and nothing else is
/// copied on backends that can.
///
/// # Shapes
/// `target` `[capacity, heads, dim]`, `x` `[tokens, heads, dim]`, `cos` and `sin` `[tokens, dim / 2]` → `[capacity, heads, dim]`.
///
/// # Panics
/// If the tables do not fit `x`, the rows do not fit `target`, or `dim` is odd.
pub fn rope_into<B: KernelBackend>(
    target: Tensor<B, 3>,
    x: Tensor<B, 3>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    start: usize,
) -> Tensor<B, 3> {
    assert_tables_fit("rope_into", &x, [&cos, &sin]);
    assert_rows_fit("rope_into", &target, &x, start);
    tensor(B::rope_into(primitive(target), primitive(x), primitive(cos), primitive(sin), start))
}

/// `cos` and `sin` `[tokens, dim / 2]` are the tables of `x` `[tokens, heads, dim]`.
pub(super) fn assert_tables_fit<B: Backend>(op: &str, x: &Tensor<B, 3>, [cos, sin]: [&Tensor<B, 2>; 2]) {
    let [tokens, _, dim] = x.dims();
    assert!(dim % 2 == 0, "{op}: heads of {dim} have no halves");
    assert_eq!([tokens, dim / 2], cos.dims(), "{op}: x {:?}, cos {:?}", x.dims(), cos.dims());
    assert_eq!(cos.dims(), sin.dims(), "{op}: cos {:?}, sin {:?}", cos.dims(), sin.dims());
}

/// The rows of `x` are like those of `target`, which has as many from `start` on.
pub(super) fn assert_rows_fit<B: Backend>(op: &str, target: &Tensor<B, 3>, x: &Tensor<B, 3>, start: usize) {
    let ([capacity, to @ ..], [tokens, from @ ..]) = (target.dims(), x.dims());
    let fits = start + tokens <= capacity && to == from;
    assert!(fits, "{op}: {:?} at {start} into {:?}", x.dims(), target.dims());
}

pub(crate) fn reference<B: Backend>(x: FloatTensor<B>, cos: FloatTensor<B>, sin: FloatTensor<B>) -> FloatTensor<B> {
    let shape = x.shape();
    let (tokens, heads, half) = (shape[0], shape[1], shape[2] / 2);
    let table = |t: FloatTensor<B>| in_dtype_of::<B>(B::float_reshape(t, Shape::from(vec![tokens, 1, half])), &x);
    let (cos, sin) = (table(cos), table(sin));
    let part = |from: usize, to: usize| {
        let axes = [Slice::from(0..tokens), Slice::from(0..heads), Slice::from(from..to)];
        B::float_slice(x.clone(), &axes)
    };
    let (first, second) = (part(0, half), part(half, 2 * half));
    let low = B::float_sub(B::float_mul(first.clone(), cos.clone()), B::float_mul(second.clone(), sin.clone()));
    let high = B::float_add(B::float_mul(second, cos), B::float_mul(first, sin));
    B::float_cat(vec![low, high], 2)
}

pub(crate) mod autodiff {
    //! A rotation's gradient is the rotation back; the tables are constants.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Rope;

    impl<B: KernelBackend> Backward<B, 1> for Rope {
        type State = (FloatTensor<B>, FloatTensor<B>);

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let (cos, sin) = ops.state;
            if let [Some(node)] = ops.parents {
                grads.register::<B>(node.id, B::rope(grad, cos, B::float_neg(sin)));
            }
        }
    }

    pub(crate) fn rope<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        cos: Tracked<B>,
        sin: Tracked<B>,
    ) -> Tracked<B> {
        let (cos, sin) = (cos.primitive, sin.primitive);
        match Rope.prepare::<C>([x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos.clone(), sin.clone()), B::rope(x.primitive, cos, sin)),
            OpsKind::UnTracked(prep) => prep.finish(B::rope(x.primitive, cos, sin)),
        }
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! One pass: a token's heads are rotated together, tokens in parallel.
    use crate::targets::cpu::{RowTensor, Rows};

    pub(crate) fn forward<T: RowTensor>(x: T, cos: T, sin: T) -> T::Output {
        let shape = x.shape();
        let (heads, dim) = (shape[1], shape[2]);
        let (cos, sin) = (Rows::new(&cos), Rows::new(&sin));
        Rows::of_width(&x, heads * dim).map(
            #[inline(always)]
            |_, token, _, row, out| {
                let (cos, sin) = (cos.row(token), sin.row(token));
                for (head, out) in row.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                    let (first, second) = head.split_at(dim / 2);
                    turn(
                        #[inline(always)]
                        |i| [first[i], second[i]],
                        [cos, sin],
                        out,
                    );
                }
            },
        )
    }

    /// Writes a head turned, of which `pair` gives the elements that turn together.
    #[inline(always)]
    pub(crate) fn turn(pair: impl Fn(usize) -> [f32; 2], [cos, sin]: [&[f32]; 2], out: &mut [f32]) {
        let half = out.len() / 2;
        let (low, high) = out.split_at_mut(half);
        for i in 0..half {
            let [a, b] = pair(i);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, View, agrees, gradients_agree, on_every_backend, read};

    /// Of `x`, `cos` and `sin`.
    pub(crate) fn oracle(inputs: &[&Array]) -> Array {
        let [x, cos, sin] = inputs else { panic!("three inputs") };
        let (heads, half) = (x.shape[1], x.shape[2] / 2);
        x.map_rows(|row, head| {
            let angle = row / heads * half;
            let rotated = |i: usize, a: f64, b: f64| a * cos.values[angle + i] + b * sin.values[angle + i];
            let low = (0..half).map(|i| rotated(i, head[i], -head[half + i]));
            low.chain((0..half).map(|i| rotated(i, head[half + i], head[i]))).collect()
        })
    }

    fn inputs(shape: [usize; 3]) -> [Array; 3] {
        let angles = Array::random(2, &[shape[0], shape[2] / 2]).map(|v| v * 3.0);
        [Array::random(1, &shape), angles.clone().map(f64::cos), angles.map(f64::sin)]
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [[1, 1, 2], [1, 14, 64], [5, 3, 6], [7, 1, 128], [600, 2, 34]] {
            let [x, cos, sin] = inputs(shape);
            let op =
                |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::rope(t[0].clone(), t[1].clone(), t[2].clone());
            agrees::<B::InnerBackend>(device, &[&x, &cos, &sin], 1e-6, op, &oracle(&[&x, &cos, &sin]));
        }
    }

    fn the_gradient_agrees_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [[1, 1, 2], [5, 3, 6], [600, 2, 34]] {
            let [x, cos, sin] = inputs(shape);
            let op = |t: Vec<FloatTensor<B>>| B::rope(t[0].clone(), t[1].clone(), t[2].clone());
            gradients_agree::<B>(device, &[&x, &cos, &sin], &[0], 1e-5, op, oracle);
        }
    }

    fn rotated_rows_are_written_and_all_others_kept<B: TrainBackend>(device: &B::Device) {
        for (capacity, shape, start) in
            [(1, [1, 1, 2], 0), (8, [3, 2, 6], 5), (8, [8, 1, 34], 0), (300, [1, 2, 64], 299)]
        {
            let [x, cos, sin] = inputs(shape);
            let target = Array::random(3, &[capacity, shape[1], shape[2]]);
            let mut expected = target.clone();
            let (row, turned) = (shape[1] * shape[2], oracle(&[&x, &cos, &sin]));
            expected.values[start * row..(start + shape[0]) * row].copy_from_slice(&turned.values);
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
                B::InnerBackend::rope_into(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), start)
            };
            agrees::<B::InnerBackend>(device, &[&target, &x, &cos, &sin], 1e-6, op, &expected);
        }
    }

    fn the_gradient_goes_through_the_rows_that_were_written<B: TrainBackend>(device: &B::Device) {
        let [x, cos, sin] = inputs([3, 2, 6]);
        let target = Array::random(3, &[8, 2, 6]);
        let op = |t: Vec<FloatTensor<B>>| B::rope_into(t[0].clone(), t[1].clone(), t[2].clone(), t[3].clone(), 4);
        let expected = |inputs: &[&Array]| {
            let mut out = inputs[0].clone();
            out.values[4 * 12..7 * 12].copy_from_slice(&oracle(&inputs[1..]).values);
            out
        };
        gradients_agree::<B>(device, &[&target, &x, &cos, &sin], &[0, 1], 1e-5, op, expected);
    }

    fn another_handle_of_the_target_keeps_what_it_had<B: TrainBackend>(device: &B::Device) {
        let [x, cos, sin] = inputs([2, 1, 4]).map(|array| array.on::<B::InnerBackend>(device, DType::F32, View::Plain));
        let before = Tensor::<B::InnerBackend, 3>::ones([5, 1, 4], device);
        let mut after = before.clone();
        for start in [1, 3] {
            let parts = (tensor(x.clone()), tensor(cos.clone()), tensor(sin.clone()));
            after = rope_into(after, parts.0, parts.1, parts.2, start);
        }
        assert_eq!(read::<B::InnerBackend>(primitive(before)).values, [1.0; 20]);
        let after = read::<B::InnerBackend>(primitive(after)).values;
        assert_eq!(after[..4], [1.0; 4]);
        assert_eq!(after[4..12], after[12..]);
        assert_ne!(after[4..8], [1.0; 4]);
    }

    fn nan_stays_in_its_pair<B: TrainBackend>(device: &B::Device) {
        let [mut x, cos, sin] = inputs([3, 2, 6]);
        x.values[14] = f64::NAN;
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::rope(t[0].clone(), t[1].clone(), t[2].clone());
        agrees::<B::InnerBackend>(device, &[&x, &cos, &sin], 1e-6, op, &oracle(&[&x, &cos, &sin]));
    }

    fn no_tokens_are_rotated_to_no_tokens<B: TrainBackend>(device: &B::Device) {
        let empty = |shape: [usize; 2]| Tensor::<B::InnerBackend, 2>::zeros(shape, device);
        let x = Tensor::<B::InnerBackend, 3>::zeros([0, 2, 4], device);
        assert_eq!(rope(x.clone(), empty([0, 2]), empty([0, 2])).dims(), [0, 2, 4]);
        let target = Tensor::<B::InnerBackend, 3>::ones([3, 2, 4], device);
        let written = rope_into(target, x, empty([0, 2]), empty([0, 2]), 3);
        assert_eq!(read::<B::InnerBackend>(primitive(written)).values, [1.0; 24]);
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        the_gradient_agrees_with_differences,
        rotated_rows_are_written_and_all_others_kept,
        the_gradient_goes_through_the_rows_that_were_written,
        another_handle_of_the_target_keeps_what_it_had,
        nan_stays_in_its_pair,
        no_tokens_are_rotated_to_no_tokens,
    );
}
