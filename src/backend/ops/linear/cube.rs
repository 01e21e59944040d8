//! wgpu and CUDA: a few rows times a weight stored in 16 bits, read once as it is and accumulated in f32. Many rows widen the weight first
//! (the reference), which is then paid once for all of them.
//!
//! A cube of units computes one output of one row: each unit sums every so many vectors of the product, a tree in shared memory sums the
//! units. No plane instruction is used, so that any width and software devices do.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Rows up to which the weight is read as stored, once for each.
pub(crate) const FEW_ROWS: usize = 8;

/// Units of a cube: 896 columns in vectors of four are three and a half turns.
const UNITS: u32 = 64;

/// Cubes along one axis of a launch, by WebGPU's limits; a vocabulary is longer.
const MAX_CUBES: u32 = 65_535;

/// Whether [`forward`] takes this product.
pub(crate) fn takes(x: (DType, &Shape), weight: DType) -> bool {
    let (dtype, shape) = x;
    let rows = shape[0];
    dtype == DType::F32 && matches!(weight, DType::F16 | DType::BF16) && (1..=FEW_ROWS).contains(&rows) && shape[1] > 0
}

/// `x · Wᵀ`: `x` `[rows, in]` in f32, `weight` `[out, in]` in f16 or bf16 → `[rows, out]` in f32.
pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
    let (rows, inputs, outputs) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    let client = x.client.clone();
    let y = empty_device_dtype(client.clone(), x.device.clone(), Shape::from(vec![rows, outputs]), DType::F32);
    let narrow = client.io_optimized_vector_sizes(weight.dtype.size());
    let width = narrow.filter(|&width| inputs.is_multiple_of(width) && width <= 4).max().unwrap_or(1);
    let units = UNITS.min(client.properties().hardware.max_units_per_cube);
    let (columns, layers) = (MAX_CUBES.min(outputs as u32), (outputs as u32).div_ceil(MAX_CUBES));
    let dtype = weight.dtype;
    row_times_weight::launch::<R>(
        &client,
        CubeCount::Static(columns, rows as u32, layers),
        CubeDim::new_1d(units),
        width,
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        (inputs / width) as u32,
        outputs as u32,
        units as usize,
        dtype.into(),
    );
    y
}

#[cube(launch)]
pub(crate) fn row_times_weight<W: Float, N: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<W, N>>,
    y: &mut Tensor<f32>,
    vectors: u32,
    outputs: u32,
    #[comptime] units: usize,
    #[define(W)] _dtype: StorageType,
) {
    let output = CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X;
    if output >= outputs {
        terminate!();
    }
    let row = CUBE_POS_Y;
    let x_start = (row * vectors) as usize;
    let weight_start = output as usize * vectors as usize;
    let mut sums = Vector::<f32, N>::empty().fill(0.0);
    let mut at = UNIT_POS;
    while at < vectors {
        sums += x[x_start + at as usize] * Vector::<f32, N>::cast_from(weight[weight_start + at as usize]);
        at += CUBE_DIM;
    }
    let sum = RuntimeCell::<f32>::new(0.0);
    #[unroll]
    for lane in 0..N::value() {
        let next = sums[lane] + sum.read();
        sum.store(next);
    }
    let mut shared = SharedMemory::<f32>::new(units);
    shared[UNIT_POS as usize] = sum.consume();
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let other = shared[(UNIT_POS + active) as usize];
            shared[UNIT_POS as usize] += other;
        }
        sync_cube();
        active /= 2;
    }
    if UNIT_POS == 0 {
        y[(row * outputs + output) as usize] = shared[0];
    }
}
