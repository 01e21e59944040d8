//! A residual added and the sum normed, as every decoder layer does twice: one op, which writes the sum once and reads it never.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{primitive, rms_norm, rowwise, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// `sum = x + residual`, and [`rms_norm`](rms_norm::rms_norm) of the sum: `(sum, normed)`.
///
/// # Shapes
/// `x` and `residual` `[…, hidden]`, `weight` `[hidden]` → twice `[…, hidden]`.
///
/// # Panics
/// If `residual` has another shape than `x`, or `weight` is not as long as a row.
pub fn add_rms_norm<B: KernelBackend, const D: usize>(
    x: Tensor<B, D>,
    residual: Tensor<B, D>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> (Tensor<B, D>, Tensor<B, D>) {
    assert_eq!(x.dims(), residual.dims(), "add_rms_norm: x {:?}, residual {:?}", x.dims(), residual.dims());
    assert_eq!(x.dims()[D - 1], weight.dims()[0], "add_rms_norm: row {:?}, weight {:?}", x.dims(), weight.dims());
    let (sum, normed) = B::add_rms_norm(primitive(x), primitive(residual), primitive(weight), epsilon);
    (tensor(sum), tensor(normed))
}

/// [`add_rms_norm`] in Burn's own ops: what a kernel is measured against.
pub fn reference<B: Backend>(
    x: FloatTensor<B>,
    residual: FloatTensor<B>,
    weight: FloatTensor<B>,
    epsilon: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    // Of f16 the sum that is normed is not yet rounded.
    let [sum, normed] = rowwise::<B, 3, 2>([x, residual, weight], |[x, residual, weight]| {
        let sum = B::float_add(x, residual);
        [sum.clone(), rms_norm::reference::<B>(sum, weight, epsilon)]
    });
    (sum, normed)
}

pub(crate) mod autodiff {
    //! An op of autodiff has one output. The inner backend computes both at once; the graph sees an addition, whose output the rest of the
    //! model uses too, and a norm of that output. So what reaches the sum is added up there, and handed to both inputs.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Add;

    impl<B: KernelBackend> Backward<B, 2> for Add {
        type State = ();

        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            for node in ops.parents.into_iter().flatten() {
                grads.register::<B>(node.id, grad.clone());
            }
        }
    }

    pub(crate) fn add_rms_norm<B: KernelBackend, C: CheckpointStrategy>(
        x: Tracked<B>,
        residual: Tracked<B>,
        weight: Tracked<B>,
        epsilon: f64,
    ) -> (Tracked<B>, Tracked<B>) {
        let (sum, normed) = B::add_rms_norm(x.primitive, residual.primitive, weight.primitive.clone(), epsilon);
        let sum: Tracked<B> = match Add.prepare::<C>([x.node, residual.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), sum),
            OpsKind::UnTracked(prep) => prep.finish(sum),
        };
        let normed = rms_norm::autodiff::record::<B, C>(sum.clone(), weight, epsilon, normed);
        (sum, normed)
    }
}

#[cfg(feature = "cpu")]
pub(crate) mod cpu {
    //! The sum is written, summed up and normed while its row is in the first-level cache, or held there and written with its norm where both
    //! go past the caches; rows in parallel.
    use crate::ops::rms_norm::cpu::{Scale, inverse_rms};
    use crate::targets::cpu::lanes::{Elementwise, Sum};
    use crate::targets::cpu::vector::Vector;
    use crate::targets::cpu::{HELD, RowTensor, Rows};

    /// A sum as it is, and its norm.
    struct WithNorm(Scale);

    impl Elementwise<2, 2> for WithNorm {
        #[inline(always)]
        fn of<V: Vector>(&self, [sum, w]: [V; 2]) -> [V; 2] {
            let [normed] = self.0.of([sum, w]);
            [sum, normed]
        }
    }

    pub(crate) fn forward<T: RowTensor>(x: T, residual: T, weight: T, epsilon: f64) -> (T::Output, T::Output) {
        let residuals = Rows::new(&residual);
        let weight = Rows::new(&weight);
        let weight = weight.all();
        Rows::new(&x).map_to_two(
            #[inline(always)]
            |math, index, ahead, row, sum, normed| {
                if ahead.holds(row.len()) {
                    let mut held = [0.0; HELD];
                    let (rows, held) = ([row, residuals.row(index)], &mut held[..row.len()]);
                    math.map(&Sum, rows, [&mut *held], ahead.kept().fetch(rows, []));
                    let inverse = inverse_rms(math, held, epsilon as f32);
                    let results = ahead.fetch([], []);
                    return math.map(&WithNorm(Scale { inverse }), [held, weight], [sum, normed], results);
                }
                let fetch = ahead.kept().fetch([row], [sum]);
                math.map(&Sum, [row, residuals.row(index)], [&mut *sum], fetch);
                let inverse = inverse_rms(math, sum, epsilon as f32);
                // The next residual is asked for here, where there is less to wait for.
                let fetch = ahead.fetch([residuals.row(index)], [normed]);
                math.map(&Scale { inverse }, [sum, weight], [normed], fetch);
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{
        Array, ROW_LENGTHS, View, agrees, agrees_in_f16, gradients_agree, on_every_backend, read, stacked,
        stacked_arrays,
    };

    const EPSILON: f64 = 1e-6;

    /// The sum, and under it the norm.
    fn oracle_with(inputs: &[&Array], epsilon: f64) -> Array {
        let [x, residual, weight] = inputs else { panic!("three inputs") };
        let sum = Array::new(&x.shape, x.values.iter().zip(&residual.values).map(|(x, r)| x + r).collect());
        let normed = sum.map_rows(|_, row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            row.iter().zip(&weight.values).map(|(x, w)| x / (mean + epsilon).sqrt() * w).collect()
        });
        stacked_arrays(&sum, &normed)
    }

    fn oracle(inputs: &[&Array]) -> Array {
        oracle_with(inputs, EPSILON)
    }

    fn both<B: KernelBackend>(t: Vec<FloatTensor<B>>, epsilon: f64) -> FloatTensor<B> {
        let (sum, normed) = B::add_rms_norm(t[0].clone(), t[1].clone(), t[2].clone(), epsilon);
        stacked::<B>(sum, normed)
    }

    fn check<B: TrainBackend>(device: &B::Device, x: &Array, residual: &Array, epsilon: f64) {
        let inputs = [x, residual, &Array::random(3, &[x.width()])];
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| both::<B::InnerBackend>(t, epsilon);
        agrees::<B::InnerBackend>(device, &inputs, 1e-5, op, &oracle_with(&inputs, epsilon));
    }

    fn every_shape_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for shape in [&[7, 1][..], &[3, 5], &[2, 3, 17], &[300, 128]] {
            check::<B>(device, &Array::random(1, shape), &Array::random(2, shape), EPSILON);
        }
        for length in ROW_LENGTHS {
            check::<B>(device, &Array::random(1, &[3, length]), &Array::random(2, &[3, length]), 1e-12);
        }
    }

    fn f16_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for length in ROW_LENGTHS {
            // Squares of these overflow f16.
            let inputs = [1, 2].map(|seed| Array::random(seed, &[3, length]).map(|v| v * 1e4));
            let inputs = [&inputs[0], &inputs[1], &Array::random(3, &[length])];
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| both::<B::InnerBackend>(t, EPSILON);
            agrees_in_f16::<B::InnerBackend>(device, &inputs, op, oracle);
        }
    }

    fn zeros_and_no_rows_are_fine<B: TrainBackend>(device: &B::Device) {
        let x = Array::random(1, &[4, 131]);
        check::<B>(device, &x.clone().with_row(2, 0.0), &Array::random(2, &[4, 131]).with_row(2, 0.0), 1e-12);
        check::<B>(device, &x.clone(), &x.map(|v| -v), EPSILON);
        check::<B>(device, &Array::random(1, &[0, 33]), &Array::random(2, &[0, 33]), EPSILON);
    }

    fn nan_spoils_its_own_row_only<B: TrainBackend>(device: &B::Device) {
        for column in [0, 40, 130] {
            let (mut x, mut residual) = (Array::random(1, &[4, 131]), Array::random(2, &[4, 131]));
            x.values[131 + column] = f64::NAN;
            residual.values[2 * 131 + column] = f64::NAN;
            check::<B>(device, &x, &residual, EPSILON);
            let inputs = [&x, &residual, &Array::random(3, &[131])];
            let op = |t: Vec<FloatTensor<B::InnerBackend>>| both::<B::InnerBackend>(t, EPSILON);
            agrees_in_f16::<B::InnerBackend>(device, &inputs, op, oracle);
        }
    }

    /// Results that no cache holds are written past them, of rows that are held beside and of longer ones.
    fn rows_of_a_large_tensor_are_those_of_a_small_one<B: TrainBackend>(device: &B::Device) {
        for width in [1021, 5003] {
            let rows = 7;
            let run = |times: usize| {
                let [x, residual] = [1, 2].map(|seed| {
                    let some = Array::random(seed, &[rows, width]).values;
                    let all = Array::new(&[rows * times, width], some.repeat(times));
                    all.on::<B::InnerBackend>(device, DType::F32, View::Plain)
                });
                let weight = Array::random(3, &[width]).on::<B::InnerBackend>(device, DType::F32, View::Plain);
                let (sum, normed) = B::InnerBackend::add_rms_norm(x, residual, weight, EPSILON);
                [sum, normed].map(|output| read::<B::InnerBackend>(output).values)
            };
            let large = run((32 << 20) / size_of::<f32>() / (rows * width) + 1);
            for (small, large) in run(1).iter().zip(&large) {
                assert!(large.chunks_exact(rows * width).all(|rows| rows == small), "rows of {width}");
            }
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for shape in [&[1, 1][..], &[3, 5], &[2, 3, 17], &[33, 1025]] {
            let weight = Array::random(3, &shape[shape.len() - 1..]);
            let inputs = [&Array::random(1, shape), &Array::random(2, shape), &weight];
            gradients_agree::<B>(device, &inputs, &[0, 1, 2], 5e-5, |t| both::<B>(t, EPSILON), oracle);
        }
    }

    fn gradients_of_either_output_alone_agree<B: TrainBackend>(device: &B::Device) {
        let inputs = [&Array::random(1, &[3, 5]), &Array::random(2, &[3, 5]), &Array::random(3, &[5])];
        let half = |inputs: &[&Array], first: bool| {
            let values = oracle(inputs).values;
            Array::new(&[3, 5], if first { values[..15].to_vec() } else { values[15..].to_vec() })
        };
        let op = |t: Vec<FloatTensor<B>>| B::add_rms_norm(t[0].clone(), t[1].clone(), t[2].clone(), EPSILON);
        gradients_agree::<B>(device, &inputs, &[0, 1], 5e-5, |t| op(t).0, |inputs| half(inputs, true));
        gradients_agree::<B>(device, &inputs, &[0, 1, 2], 5e-5, |t| op(t).1, |inputs| half(inputs, false));
    }

    on_every_backend!(
        every_shape_agrees_with_the_oracle,
        f16_agrees_with_the_oracle,
        zeros_and_no_rows_are_fine,
        nan_spoils_its_own_row_only,
        rows_of_a_large_tensor_are_those_of_a_small_one,
        gradients_agree_with_differences,
        gradients_of_either_output_alone_agree,
    );
}
