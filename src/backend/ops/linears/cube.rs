//! wgpu and CUDA: a few rows times two or three weights in one launch, each as [`linear`](crate::ops::linear::cube) does it. A cube of units
//! computes one output of every row, of whichever weight it belongs to.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::zspace::Strides;
use cubecl::zspace::metadata::Metadata;

use crate::ops::linear::cube::{Launch, argument, products_of_unit, sum_units, takes as takes_one, with_bias};
use crate::targets::cube::packed::Plan;

/// Weights of a launch.
const MOST: usize = 3;

/// A weight's dtype and shape, and its bias's dtype.
pub(crate) type Format<'f> = (DType, &'f Shape, Option<DType>);

/// Whether these weights are of one format that [`forward`] takes.
pub(crate) fn takes(x: (DType, &Shape), maps: &[Format]) -> bool {
    let one = |(dtype, shape, bias): &Format| *dtype == maps[0].0 && takes_one(x, (*dtype, shape), *bias);
    (2..=MOST).contains(&maps.len()) && maps.iter().all(one)
}

/// Whether one kernel reads all of these weights, which packed ones with offsets and without do not share, and the device lets it have all of
/// these buffers: `x`, the weights and their biases, what is written, and CubeCL's own.
pub(crate) fn fits<R: CubeRuntime>(x: &CubeTensor<R>, maps: &[(CubeTensor<R>, Option<CubeTensor<R>>)]) -> bool {
    let buffers = 3 + maps.iter().map(|(_, bias)| 1 + usize::from(bias.is_some())).sum::<usize>();
    let alike = maps.iter().all(|(weight, _)| Plan::of(weight) == Plan::of(&maps[0].0));
    alike && buffers <= x.client.properties().hardware.max_bindings as usize
}

/// `x · Wᵀ + b` for each weight: `x` `[rows, in]` in f32, each weight `[out, in]`, all in f32, f16, bf16 or one packed format, its bias `[out]`
/// in f32 → `[rows, out]` in f32. The results are parts of one buffer.
pub(crate) fn forward<R: CubeRuntime, const N: usize>(
    x: CubeTensor<R>,
    maps: [(CubeTensor<R>, Option<CubeTensor<R>>); N],
) -> [CubeTensor<R>; N] {
    let x = into_contiguous(x);
    let (rows, inputs, client, device) = (x.shape()[0], x.shape()[1], x.client.clone(), x.device.clone());
    let outputs = maps.each_ref().map(|(weight, _)| weight.shape()[0]);
    // Each result begins where the device lets a buffer begin.
    let alignment = client.properties().memory.alignment as usize / size_of::<f32>();
    let sizes = outputs.map(|outputs| (rows * outputs).next_multiple_of(alignment.max(1)));
    let starts: [usize; N] = std::array::from_fn(|at| sizes[..at].iter().sum());
    let size: usize = sizes.iter().sum();
    let y = empty_device_contiguous_dtype(client.clone(), device.clone(), Shape::from(vec![size]), DType::F32);

    let Launch { width, weight_width, dtype, plan, units, cubes } = Launch::of(&maps[0].0, outputs.iter().sum());
    let mut maps = maps.into_iter().map(|(weight, bias)| (argument(weight), bias.map(argument)));
    let mut next = || maps.next().unzip();
    let [(first, first_bias), (second, second_bias), (third, third_bias)] = [next(), next(), next()];
    let outputs_of = |at: usize| outputs.get(at).map_or(0, |&outputs| outputs as u32);
    let start_of = |at: usize| starts.get(at).map_or(0, |&start| start as u32);
    rows_times_weights::launch::<R>(
        &client,
        cubes,
        CubeDim::new_1d(units),
        width,
        weight_width,
        x.into_tensor_arg(),
        first.expect("two weights at least"),
        second.expect("two weights at least"),
        third.into(),
        first_bias.flatten().into(),
        second_bias.flatten().into(),
        third_bias.flatten().into(),
        y.clone().into_tensor_arg(),
        (inputs / width) as u32,
        outputs_of(0),
        outputs_of(1),
        outputs_of(2),
        start_of(1),
        start_of(2),
        rows,
        units as usize,
        plan,
        dtype.into(),
    );
    std::array::from_fn(|at| {
        let bytes = |elements: usize| (elements * size_of::<f32>()) as u64;
        let end = size - starts[at] - sizes[at];
        let part = y.handle.clone().offset_start(bytes(starts[at])).offset_end(bytes(end));
        let metadata = Metadata::new(Shape::from(vec![rows, outputs[at]]), Strides::from(vec![outputs[at], 1]));
        CubeTensor::new(client.clone(), part, metadata, device.clone(), DType::F32)
    })
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // A kernel is given its tensors one by one.
#[allow(clippy::collapsible_if)] // Whether there is a third weight is decided when the kernel is compiled, the rest when it runs.
pub(crate) fn rows_times_weights<W: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<f32, N>>,
    first: &Tensor<Vector<W, M>>,
    second: &Tensor<Vector<W, M>>,
    third: &ComptimeOption<Tensor<Vector<W, M>>>,
    first_bias: &ComptimeOption<Tensor<f32>>,
    second_bias: &ComptimeOption<Tensor<f32>>,
    third_bias: &ComptimeOption<Tensor<f32>>,
    y: &mut Tensor<f32>,
    vectors: u32,
    first_outputs: u32,
    second_outputs: u32,
    third_outputs: u32,
    second_start: u32,
    third_start: u32,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[comptime] plan: Option<Plan>,
    #[define(W)] _dtype: StorageType,
) {
    let cube = CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X;
    let two = first_outputs + second_outputs;
    if cube >= two + third_outputs {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(rows * units);
    if cube < first_outputs {
        products_of_unit::<W, N, M>(x, first, cube, first_outputs, vectors, &mut shared, rows, units, plan);
    } else if cube < two {
        let output = cube - first_outputs;
        products_of_unit::<W, N, M>(x, second, output, second_outputs, vectors, &mut shared, rows, units, plan);
    }
    #[comptime]
    if let ComptimeOption::Some(third) = third {
        if cube >= two {
            products_of_unit::<W, N, M>(x, third, cube - two, third_outputs, vectors, &mut shared, rows, units, plan);
        }
    }
    sum_units(&mut shared, rows, units);
    if UNIT_POS < rows as u32 {
        let sum = shared[UNIT_POS as usize * units];
        if cube < first_outputs {
            y[(UNIT_POS * first_outputs + cube) as usize] = with_bias(sum, first_bias, cube);
        } else if cube < two {
            let output = cube - first_outputs;
            y[(second_start + UNIT_POS * second_outputs + output) as usize] = with_bias(sum, second_bias, output);
        } else {
            let output = cube - two;
            y[(third_start + UNIT_POS * third_outputs + output) as usize] = with_bias(sum, third_bias, output);
        }
    }
}
