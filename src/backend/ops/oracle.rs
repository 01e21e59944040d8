//! What the tests of the ops share: seeded arrays on the host, the same arrays on a backend in several dtypes and layouts, and the
//! comparison of an op and of its gradient with an oracle in f64. The oracles themselves stand beside the ops.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Slice, Tensor, TensorData, TensorMetadata};
use half::{bf16, f16};

use super::tensor;
use crate::{KernelBackend, TrainBackend};

/// Makes a test of each generic check, for each backend that was built and has hardware or a software device in CI: a later
/// backend is one line here.
macro_rules! on_every_backend {
    ($($check:ident),* $(,)?) => {
        crate::ops::oracle::on_backend!("flex", flex, Flex; $($check),*);
        crate::ops::oracle::on_backend!("candle", candle, Candle; $($check),*);
        crate::ops::oracle::on_backend!("wgpu", wgpu, Wgpu; $($check),*);
        crate::ops::oracle::on_backend!("cuda", cuda, Cuda; $($check),*);
    };
}
macro_rules! on_backend {
    ($feature:literal, $name:ident, $backend:ident; $($check:ident),*) => {
        #[cfg(feature = $feature)]
        mod $name {
            $(#[test]
            fn $check() {
                super::$check::<burn::backend::Autodiff<crate::backends::$backend>>(&Default::default());
            })*
        }
    };
}
pub(crate) use on_backend;
pub(crate) use on_every_backend;

/// Lengths of rows that kernels stumble over: shorter than a plane, one beside a power of two, no vector of four, and long.
pub(crate) const ROW_LENGTHS: [usize; 8] = [1, 2, 31, 33, 896, 1025, 4096, 16384];

/// An array on the host.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
    /// The format it has on the backend whatever the others have: that of a weight.
    stored: Option<DType>,
}

impl Array {
    pub(crate) fn new(shape: &[usize], values: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { shape: shape.to_vec(), values, stored: None }
    }

    /// Uniform in [-1, 1), each an f32.
    pub(crate) fn random(seed: u64, shape: &[usize]) -> Self {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = || {
            // SplitMix64 (Steele et al. 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        Self::new(shape, (0..shape.iter().product()).map(|_| next()).collect())
    }

    /// Each value put through `change`, and rounded to f32.
    pub(crate) fn map(mut self, change: impl Fn(f64) -> f64) -> Self {
        self.values.iter_mut().for_each(|v| *v = f64::from(change(*v) as f32));
        self
    }

    /// With every value of one row replaced.
    pub(crate) fn with_row(mut self, row: usize, value: f64) -> Self {
        let width = self.width();
        self.values[row * width..(row + 1) * width].fill(value);
        self
    }

    /// Rounded to a format, which it keeps on the backend.
    pub(crate) fn stored(mut self, dtype: DType) -> Self {
        for v in &mut self.values {
            *v = match dtype {
                DType::F16 => f16::from_f64(*v).to_f64(),
                DType::BF16 => bf16::from_f64(*v).to_f64(),
                _ => *v,
            };
        }
        self.stored = matches!(dtype, DType::F16 | DType::BF16).then_some(dtype);
        self
    }

    pub(crate) fn width(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width().max(1))
    }

    /// The same shape, each row computed from its index and values.
    pub(crate) fn map_rows(&self, row: impl Fn(usize, &[f64]) -> Vec<f64>) -> Self {
        Self::new(&self.shape, self.rows().enumerate().flat_map(|(index, values)| row(index, values)).collect())
    }

    /// On the backend, laid out as `view` says, in `dtype` or the format it is stored in.
    pub(crate) fn on<B: KernelBackend>(&self, device: &B::Device, dtype: DType, view: View) -> FloatTensor<B> {
        let dtype = self.stored.unwrap_or(dtype);
        let make = |shape: Vec<usize>, values: Vec<f64>| {
            B::float_from_data(TensorData::new(values, shape).convert_dtype(dtype), device)
        };
        let slice = |padded: FloatTensor<B>, axis: usize, start: usize| {
            let mut slices: Vec<Slice> = self.shape.iter().map(|&n| Slice::from(0..n)).collect();
            slices[axis] = Slice::from(start..start + self.shape[axis]);
            B::float_slice(padded, &slices)
        };
        let (rank, mut shape) = (self.shape.len(), self.shape.clone());
        match view {
            View::Plain => make(shape, self.values.clone()),
            View::Rows => {
                let row: usize = self.shape[1..].iter().product();
                shape[0] += 3;
                let (before, after) = (vec![f64::NAN; 2 * row], vec![f64::NAN; row]);
                slice(make(shape, [before, self.values.clone(), after].concat()), 0, 2)
            }
            View::Columns => {
                shape[rank - 1] += 4;
                let pad = |row: &[f64]| [&[f64::NAN], row, &[f64::NAN; 3]].concat();
                slice(make(shape, self.rows().flat_map(pad).collect()), rank - 1, 1)
            }
            View::Swapped if rank < 2 => make(shape, self.values.clone()),
            View::Swapped => {
                let (first, second) = (shape[0], shape[1]);
                let rest = self.values.len() / (first * second).max(1);
                let from = |i: usize| (i / rest % first * second + i / rest / first) * rest + i % rest;
                shape.swap(0, 1);
                B::float_swap_dims(make(shape, (0..self.values.len()).map(|i| self.values[from(i)]).collect()), 0, 1)
            }
        }
    }
}

/// How an input lies in memory. What is not part of a view is NaN, so that reading it shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View {
    Plain,
    /// Some rows of a larger tensor.
    Rows,
    /// Some columns of a larger tensor.
    Columns,
    /// The first two axes swapped.
    Swapped,
}

/// The dtypes to test on this backend: f32 runs the kernels, f64 the reference.
pub(crate) fn dtypes<B: KernelBackend>() -> Vec<DType> {
    if B::has_f64() { vec![DType::F32, DType::F64] } else { vec![DType::F32] }
}

/// The values of a tensor, back on the host.
pub(crate) fn read<B: KernelBackend>(primitive: FloatTensor<B>) -> Array {
    let shape = primitive.shape().to_vec();
    let count = shape.iter().product::<usize>();
    if count == 0 {
        // In a recorded reshape 0 means the axis it stands for.
        return Array::new(&shape, Vec::new());
    }
    let flat: Tensor<B, 1> = tensor(B::float_reshape(primitive, [count].into()));
    Array::new(&shape, flat.into_data().convert_dtype(DType::F64).to_vec().unwrap())
}

/// Every value within `tolerance`, absolute below one and relative above; NaN and infinity at the same places.
///
/// # Panics
/// With what was expected, if not.
#[track_caller]
pub(crate) fn compare(what: &str, actual: &Array, expected: &Array, tolerance: f64) {
    assert_eq!(actual.shape, expected.shape, "{what}: shape");
    for (at, (&actual, &expected)) in actual.values.iter().zip(&expected.values).enumerate() {
        let same = actual == expected || (actual.is_nan() && expected.is_nan());
        let close = (actual - expected).abs() <= tolerance * expected.abs().max(1.0);
        assert!(same || close, "{what}, element {at}: {actual} instead of {expected}");
    }
}

/// Checks an op in each dtype and layout; `tolerance` is that of f32.
#[track_caller]
pub(crate) fn agrees<B: KernelBackend>(
    device: &B::Device,
    inputs: &[&Array],
    tolerance: f64,
    op: impl Fn(Vec<FloatTensor<B>>) -> FloatTensor<B>,
    expected: &Array,
) {
    for dtype in dtypes::<B>() {
        for view in [View::Plain, View::Rows, View::Columns, View::Swapped] {
            let output = op(inputs.iter().map(|input| input.on::<B>(device, dtype, view)).collect());
            assert_eq!(output.dtype(), dtype);
            let shapes: Vec<_> = inputs.iter().map(|input| &input.shape).collect();
            let tolerance = if dtype == DType::F64 { 1e-11 } else { tolerance };
            compare(&format!("{dtype:?} {view:?} {shapes:?}"), &read::<B>(output), expected, tolerance);
        }
    }
}

/// Checks an op on f16, where the device has it, in two layouts: within 1e-3 of the oracle's answer for the rounded inputs.
#[track_caller]
pub(crate) fn agrees_in_f16<B: KernelBackend>(
    device: &B::Device,
    inputs: &[&Array],
    op: impl Fn(Vec<FloatTensor<B>>) -> FloatTensor<B>,
    oracle: impl Fn(&[&Array]) -> Array,
) {
    if !B::supports_dtype(device, DType::F16) {
        return;
    }
    let rounded: Vec<Array> = inputs.iter().map(|&input| input.clone().stored(DType::F16)).collect();
    let expected = oracle(&rounded.iter().collect::<Vec<_>>());
    for view in [View::Plain, View::Columns] {
        let output = op(rounded.iter().map(|input| input.on::<B>(device, DType::F16, view)).collect());
        assert_eq!(output.dtype(), DType::F16);
        let shapes: Vec<_> = inputs.iter().map(|input| &input.shape).collect();
        compare(&format!("f16 {view:?} {shapes:?}"), &read::<B>(output), &expected, 1e-3);
    }
}

/// Two outputs of one op as one, the second under the first.
pub(crate) fn stacked<B: KernelBackend>(first: FloatTensor<B>, second: FloatTensor<B>) -> FloatTensor<B> {
    if first.shape().num_elements() == 0 { first } else { B::float_cat(vec![first, second], 0) }
}

/// [`stacked`], of arrays.
pub(crate) fn stacked_arrays(first: &Array, second: &Array) -> Array {
    let mut shape = first.shape.clone();
    shape[0] *= 2;
    Array::new(&shape, [&first.values[..], &second.values].concat())
}

/// Elements of each input whose derivative is taken: enough of them to meet each row and column of the small shapes.
const SAMPLES: usize = 40;

/// Checks the gradients with respect to the inputs numbered in `tracked`, for each non-empty choice of them to be tracked, against
/// central differences of the oracle; and that the others get none. `tolerance` is that of f32.
#[track_caller]
pub(crate) fn gradients_agree<B: TrainBackend>(
    device: &B::Device,
    inputs: &[&Array],
    tracked: &[usize],
    tolerance: f64,
    op: impl Fn(Vec<FloatTensor<B>>) -> FloatTensor<B>,
    oracle: impl Fn(&[&Array]) -> Array,
) {
    const STEP: f64 = 1e-5;
    let factors = Array::random(99, &oracle(inputs).shape);
    let loss = |inputs: &[&Array]| -> f64 {
        oracle(inputs).values.iter().zip(&factors.values).map(|(y, factor)| y * factor).sum()
    };
    let derivative = |input: usize, at: usize| {
        let [above, below] = [STEP, -STEP].map(|step| {
            let mut moved = inputs[input].clone();
            moved.values[at] += step;
            let mut inputs = inputs.to_vec();
            inputs[input] = &moved;
            loss(&inputs)
        });
        (above - below) / (2.0 * STEP)
    };
    let samples: Vec<Vec<(usize, f64)>> = (0..inputs.len())
        .map(|input| {
            let step = inputs[input].values.len().div_ceil(SAMPLES) | 1;
            let places = (0..inputs[input].values.len()).step_by(step).filter(|_| tracked.contains(&input));
            places.map(|at| (at, derivative(input, at))).collect()
        })
        .collect();
    for dtype in dtypes::<B>() {
        for choice in 1..1usize << tracked.len() {
            let chosen: Vec<usize> = (0..tracked.len()).filter(|i| choice >> i & 1 == 1).map(|i| tracked[i]).collect();
            let tensors = inputs.iter().map(|input| input.on::<B>(device, dtype, View::Plain));
            let tensors: Vec<_> =
                tensors.enumerate().map(|(i, t)| B::float_set_require_grad(t, chosen.contains(&i))).collect();
            let output = op(tensors.clone());
            let factors = factors.on::<B>(device, dtype, View::Plain);
            let grads = B::backward(B::float_sum(B::float_mul(output, factors)));
            for (input, tensor) in tensors.iter().enumerate() {
                let gradient = B::grad(tensor, &grads).map(read::<B::InnerBackend>);
                let what = format!("{dtype:?} {:?} input {input} of {chosen:?}", inputs[input].shape);
                assert_eq!(gradient.is_some(), chosen.contains(&input), "{what}: whether there is a gradient");
                let Some(gradient) = gradient else { continue };
                assert_eq!(gradient.shape, inputs[input].shape, "{what}: shape");
                let picked: Vec<f64> = samples[input].iter().map(|&(at, _)| gradient.values[at]).collect();
                let expected: Vec<f64> = samples[input].iter().map(|&(_, expected)| expected).collect();
                let tolerance = if dtype == DType::F64 { 1e-6 } else { tolerance };
                let shape = [picked.len()];
                compare(&what, &Array::new(&shape, picked), &Array::new(&shape, expected), tolerance);
            }
        }
    }
}
