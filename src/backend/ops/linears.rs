//! Several linear maps of the same rows: queries, keys and values, or the two sides of a gated MLP.
//!
//! On a GPU they are one launch where there are few rows; on the CPU the rows are laid out, or rounded to bytes, once, and threads wait for each
//! other once. The kernels are those of [`linear`](super::linear).

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::linear::assert_fits;
use super::{primitive, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// `x · Wᵀ + b` for each weight and its bias, in their order.
///
/// # Shapes
/// `x` `[rows, in]`, each weight `[out, in]` of any float dtype with a bias `[out]` or none → `[rows, out]` in `x`'s dtype, `out` being the
/// weight's own.
///
/// # Panics
/// If the shapes do not fit.
pub fn linears<B: KernelBackend, const N: usize>(
    x: Tensor<B, 2>,
    maps: [(Tensor<B, 2>, Option<Tensor<B, 1>>); N],
) -> [Tensor<B, 2>; N] {
    const { assert!(N > 0, "no weights") };
    maps.iter().for_each(|(weight, bias)| assert_fits("linears", &x, weight, bias.as_ref()));
    B::linears(primitive(x), maps.map(|(weight, bias)| (primitive(weight), bias.map(primitive)))).map(tensor)
}

/// A weight and its bias.
pub type Map<B> = (FloatTensor<B>, Option<FloatTensor<B>>);

pub(crate) fn reference<B: KernelBackend, const N: usize>(x: FloatTensor<B>, maps: [Map<B>; N]) -> [FloatTensor<B>; N] {
    maps.map(|(weight, bias)| <B as KernelBackend>::linear(x.clone(), weight, bias))
}

pub(crate) mod autodiff {
    //! Computed together; each has the gradient that it has alone.
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;

    use super::*;
    use crate::ops::linear::autodiff::recorded;
    use crate::targets::autodiff::Tracked;

    pub(crate) fn linears<B: KernelBackend, C: CheckpointStrategy, const N: usize>(
        x: Tracked<B>,
        maps: [Map<Autodiff<B, C>>; N],
    ) -> [Tracked<B>; N] {
        let inner = |tensor: &Tracked<B>| tensor.primitive.clone();
        let outputs = <B as KernelBackend>::linears(
            inner(&x),
            maps.each_ref().map(|(weight, bias)| (inner(weight), bias.as_ref().map(inner))),
        );
        let mut maps = maps.into_iter();
        outputs.map(|output| {
            let (weight, bias) = maps.next().expect("a map for each output");
            recorded::<B, C>(&x, &weight, bias, output)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, View, agrees, compare, gradients_agree, on_every_backend, read};

    /// `x`, and then weights and biases in turn.
    fn op<B: KernelBackend, const N: usize>(which: usize) -> impl Fn(Vec<FloatTensor<B>>) -> FloatTensor<B> {
        move |t| {
            let map = |at: usize| (t[1 + 2 * at].clone(), Some(t[2 + 2 * at].clone()));
            let outputs: [_; N] = B::linears(t[0].clone(), std::array::from_fn(map));
            outputs[which].clone()
        }
    }

    fn oracle(inputs: &[&Array], which: usize) -> Array {
        crate::ops::linear::tests::oracle(&[inputs[0], inputs[1 + 2 * which], inputs[2 + 2 * which]])
    }

    fn arrays(rows: usize, inputs: usize, outputs: &[usize], dtype: DType) -> Vec<Array> {
        let maps = outputs.iter().enumerate().flat_map(|(at, &outputs)| {
            let seed = 2 + 2 * at as u64;
            [Array::random(seed, &[outputs, inputs]).stored(dtype), Array::random(seed + 1, &[outputs])]
        });
        [Array::random(1, &[rows, inputs])].into_iter().chain(maps).collect()
    }

    fn check<B: TrainBackend, const N: usize>(device: &B::Device, rows: usize, inputs: usize, outputs: [usize; N]) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !B::supports_dtype(device, dtype) {
                continue;
            }
            let arrays = arrays(rows, inputs, &outputs, dtype);
            let arrays: Vec<&Array> = arrays.iter().collect();
            let tolerance = 1e-6 * (inputs as f64).sqrt().max(4.0);
            for which in 0..N {
                let op = op::<B::InnerBackend, N>(which);
                agrees::<B::InnerBackend>(device, &arrays, tolerance, op, &oracle(&arrays, which));
            }
        }
    }

    fn each_agrees_with_the_oracle<B: TrainBackend>(device: &B::Device) {
        for rows in [1, 2, 4, 5, 8, 9, 33, 300] {
            check::<B, 1>(device, rows, 3, [5]);
            check::<B, 2>(device, rows, 33, [17, 1]);
            check::<B, 3>(device, rows, 130, [67, 20, 33]);
        }
        // Enough for several threads to share, with ends inside of what they take at a time.
        check::<B, 3>(device, 1, 515, [643, 10, 129]);
        check::<B, 2>(device, 25, 515, [200, 643]);
        check::<B, 4>(device, 3, 130, [64, 1, 300, 7]);
    }

    /// Without biases, with some, and with weights of several formats.
    fn maps_need_not_be_alike<B: TrainBackend>(device: &B::Device) {
        type Inner<B> = <B as burn::tensor::backend::AutodiffBackend>::InnerBackend;
        for rows in [1, 8, 30] {
            let arrays = arrays(rows, 36, &[12, 40, 8], DType::F32);
            let on = |array: &Array, dtype| array.on::<Inner<B>>(device, dtype, View::Plain);
            let narrow = if B::supports_dtype(device, DType::F16) { DType::F16 } else { DType::F32 };
            for (biased, dtypes) in [
                ([false; 3], [DType::F32; 3]),
                ([false, true, false], [DType::F32; 3]),
                ([true, false, true], [DType::F32, narrow, DType::F32]),
            ] {
                let map = |at: usize| {
                    let weight = on(&arrays[1 + 2 * at].clone().stored(dtypes[at]), dtypes[at]);
                    (weight, biased[at].then(|| on(&arrays[2 + 2 * at], DType::F32)))
                };
                let x = on(&arrays[0], DType::F32);
                let outputs: [_; 3] = Inner::<B>::linears(x.clone(), std::array::from_fn(map));
                for (at, output) in outputs.into_iter().enumerate() {
                    let (weight, bias) = map(at);
                    let alone = <Inner<B> as KernelBackend>::linear(x.clone(), weight, bias);
                    compare("as alone", &read::<Inner<B>>(output), &read::<Inner<B>>(alone), 1e-6);
                }
            }
        }
    }

    fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
        for rows in [1, 33] {
            let arrays = arrays(rows, 17, &[7, 3], DType::F32);
            let arrays: Vec<&Array> = arrays.iter().collect();
            for which in 0..2 {
                let oracle = move |inputs: &[&Array]| oracle(inputs, which);
                let asked = [0, 1 + 2 * which, 2 + 2 * which];
                gradients_agree::<B>(device, &arrays, &asked, 5e-5, op::<B, 2>(which), oracle);
            }
        }
    }

    fn empty_axes_give_empty_results_or_the_bias<B: TrainBackend>(device: &B::Device) {
        for (rows, inputs, outputs) in [(0, 3, [5, 2]), (2, 0, [5, 2]), (2, 3, [0, 2]), (40, 3, [4, 0])] {
            let arrays = arrays(rows, inputs, &outputs, DType::F32);
            let arrays: Vec<&Array> = arrays.iter().collect();
            let on = |array: &&Array| array.on::<B::InnerBackend>(device, DType::F32, View::Plain);
            for which in 0..2 {
                let output = op::<B::InnerBackend, 2>(which)(arrays.iter().map(on).collect());
                // The oracle has no rows of a weight without columns.
                let biases = || Array::new(&[rows, outputs[which]], arrays[2 + 2 * which].values.repeat(rows));
                let expected = if inputs == 0 { biases() } else { oracle(&arrays, which) };
                compare("empty", &read::<B::InnerBackend>(output), &expected, 1e-6);
            }
        }
    }

    on_every_backend!(
        each_agrees_with_the_oracle,
        maps_need_not_be_alike,
        gradients_agree_with_differences,
        empty_axes_give_empty_results_or_the_bias,
    );
}
