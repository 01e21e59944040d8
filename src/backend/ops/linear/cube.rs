//! wgpu and CUDA: a few rows times a weight in the format it is stored in, packed ones too, read once for all rows and accumulated in f32; the
//! bias and an adapter's part are added in the same launch. Many rows are a matrix product (the reference).
//!
//! A cube of units computes one output of every row: each unit sums every so many vectors of the products, a tree in shared memory sums
//! the units. No plane instruction is used, so that any width and software devices do.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::packed::Format;
use crate::targets::cube::packed::{self, Plan, RUN};

/// Rows up to which the weight is read as stored, once for all of them.
pub(crate) const FEW_ROWS: usize = 8;

/// Units of a cube: 896 columns in vectors of four are three and a half turns.
const UNITS: u32 = 64;

/// Cubes along one axis of a launch, by WebGPU's limits; a vocabulary is longer.
const MAX_CUBES: u32 = 65_535;

/// What the kernels are launched with: elements of a vector of `x` and of the weights, units of a cube, and a cube for each output.
pub(crate) struct Launch {
    pub(crate) width: usize,
    pub(crate) weight_width: usize,
    /// What the weights are in, and how they are packed if they are.
    pub(crate) dtype: DType,
    pub(crate) plan: Option<Plan>,
    pub(crate) units: u32,
    pub(crate) cubes: CubeCount,
}

impl Launch {
    /// For weights like this one that have so many rows in all.
    pub(crate) fn of<R: CubeRuntime>(weight: &CubeTensor<R>, outputs: usize) -> Self {
        let (client, inputs, outputs) = (&weight.client, weight.shape()[1], outputs as u32);
        let plan = Plan::of(weight);
        let dtype = if plan.is_some() { DType::U32 } else { weight.dtype };
        let widths = client.io_optimized_vector_sizes(dtype.size());
        let width = widths.filter(|&width| inputs.is_multiple_of(width) && width <= 4).max().unwrap_or(1);
        let [width, weight_width] = if plan.is_some() { [RUN, 1] } else { [width; 2] };
        Self {
            width,
            weight_width,
            dtype,
            plan,
            units: UNITS.min(client.properties().hardware.max_units_per_cube),
            cubes: CubeCount::Static(MAX_CUBES.min(outputs), 1, outputs.div_ceil(MAX_CUBES)),
        }
    }
}

/// Whether [`forward`] takes this product.
pub(crate) fn takes(x: (DType, &Shape), weight: (DType, &Shape), bias: Option<DType>) -> bool {
    let formats = x.0 == DType::F32
        && (matches!(weight.0, DType::F32 | DType::F16 | DType::BF16) || Format::of(weight.0).is_some())
        && bias.is_none_or(|bias| bias == DType::F32);
    formats && (1..=FEW_ROWS).contains(&x.1[0]) && x.1[1] > 0 && weight.1[0] > 0
}

/// Whether [`forward`] adds this adapter's part, `low` and `b` as in [`Update`].
pub(crate) fn adds(low: (DType, &Shape), b: DType) -> bool {
    low.0 == DType::F32 && b == DType::F32 && low.1[1] > 0
}

/// `scale · low · Bᵀ`: what an adapter adds, `low` `[rows, rank]` and `b` `[out, rank]` in f32.
pub(crate) struct Update<R: CubeRuntime> {
    pub(crate) low: CubeTensor<R>,
    pub(crate) b: CubeTensor<R>,
    pub(crate) scale: f32,
}

/// A weight as the kernels are given it: in one piece, packed ones word by word.
pub(crate) fn argument<R: CubeRuntime>(weight: CubeTensor<R>) -> TensorArg<R> {
    let weight = if Format::of(weight.dtype).is_some() { packed::as_words(weight) } else { into_contiguous(weight) };
    weight.into_tensor_arg()
}

/// `x · Wᵀ + bias + update`: `x` `[rows, in]` in f32, `weight` `[out, in]` in f32, f16, bf16 or packed, `bias` `[out]` in f32 →
/// `[rows, out]` in f32.
pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    update: Option<Update<R>>,
) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let (rows, inputs, outputs) = (x.shape()[0], x.shape()[1], weight.shape()[0]);
    let client = x.client.clone();
    let shape = Shape::from(vec![rows, outputs]);
    // Rows without the padding that CUDA gives to tensors of its own making.
    let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, DType::F32);
    let Launch { width, weight_width, dtype, plan, units, cubes } = Launch::of(&weight, outputs);
    let (rank, scale) = update.as_ref().map_or((0, 0.0), |update| (update.low.shape()[1] as u32, update.scale));
    let (low, b) = update.map(|update| (argument(update.low), argument(update.b))).unzip();
    rows_times_weight::launch::<R>(
        &client,
        cubes,
        CubeDim::new_1d(units),
        width,
        weight_width,
        x.into_tensor_arg(),
        argument(weight),
        bias.map(argument).into(),
        low.into(),
        b.into(),
        y.clone().into_tensor_arg(),
        (inputs / width) as u32,
        outputs as u32,
        rank,
        scale,
        rows,
        units as usize,
        plan,
        dtype.into(),
    );
    y
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // A kernel is given its tensors one by one.
pub(crate) fn rows_times_weight<W: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<W, M>>,
    bias: &ComptimeOption<Tensor<f32>>,
    low: &ComptimeOption<Tensor<f32>>,
    b: &ComptimeOption<Tensor<f32>>,
    y: &mut Tensor<f32>,
    vectors: u32,
    outputs: u32,
    rank: u32,
    scale: f32,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[comptime] plan: Option<Plan>,
    #[define(W)] _dtype: StorageType,
) {
    let output = CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X;
    if output >= outputs {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(rows * units);
    products_of_unit::<W, N, M>(x, weight, output, outputs, vectors, &mut shared, rows, units, plan);
    #[comptime]
    if let ComptimeOption::Some(low) = low {
        #[comptime]
        if let ComptimeOption::Some(b) = b {
            let b_start = output as usize * rank as usize;
            #[unroll]
            for row in 0..rows {
                let sum = RuntimeCell::<f32>::new(0.0);
                let mut at = UNIT_POS;
                while at < rank {
                    let next = sum.read() + low[row * rank as usize + at as usize] * b[b_start + at as usize];
                    sum.store(next);
                    at += CUBE_DIM;
                }
                shared[row * units + UNIT_POS as usize] += sum.consume() * scale;
            }
        }
    }
    sum_units(&mut shared, rows, units);
    if UNIT_POS < rows as u32 {
        y[(UNIT_POS * outputs + output) as usize] = with_bias(shared[UNIT_POS as usize * units], bias, output);
    }
}

/// This unit's part of each row's products with a row of the weight, which has `outputs` of them, in its cell of each row's.
#[cube]
#[allow(clippy::too_many_arguments)] // As the kernels'.
pub(crate) fn products_of_unit<W: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<W, M>>,
    weight_row: u32,
    outputs: u32,
    vectors: u32,
    shared: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[comptime] plan: Option<Plan>,
) {
    if comptime!(plan.is_some()) {
        let plan = comptime!(plan.expect("a packed weight"));
        packed::products_of_unit::<W, N, M>(x, weight, weight_row, outputs, vectors, shared, rows, units, plan);
    } else {
        dense_products_of_unit::<W, N, M>(x, weight, weight_row, vectors, shared, rows, units);
    }
}

/// The same of a weight that is stored value by value, in vectors like those of `x`.
#[cube]
fn dense_products_of_unit<W: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<W, M>>,
    weight_row: u32,
    vectors: u32,
    shared: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] units: usize,
) {
    let weight_start = weight_row as usize * vectors as usize;
    let mut sums = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = Vector::<f32, N>::empty().fill(0.0);
    }
    let mut at = UNIT_POS;
    while at < vectors {
        let weights = Vector::<f32, N>::cast_from(weight[weight_start + at as usize]);
        #[unroll]
        for row in 0..rows {
            sums[row] += x[row * vectors as usize + at as usize] * weights;
        }
        at += CUBE_DIM;
    }
    #[unroll]
    for row in 0..rows {
        let lanes = sums[row];
        let sum = RuntimeCell::<f32>::new(0.0);
        #[unroll]
        for lane in 0..N::value() {
            let next = lanes[lane] + sum.read();
            sum.store(next);
        }
        shared[row * units + UNIT_POS as usize] = sum.consume();
    }
}

/// The sum over the units of each row's cells, in the first of them.
#[cube]
pub(crate) fn sum_units(shared: &mut SharedMemory<f32>, #[comptime] rows: usize, #[comptime] units: usize) {
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            #[unroll]
            for row in 0..rows {
                let other = shared[row * units + (UNIT_POS + active) as usize];
                shared[row * units + UNIT_POS as usize] += other;
            }
        }
        sync_cube();
        active /= 2;
    }
}

/// A sum, and the bias of its output if there is one.
#[cube]
pub(crate) fn with_bias(sum: f32, bias: &ComptimeOption<Tensor<f32>>, output: u32) -> f32 {
    let total = RuntimeCell::<f32>::new(sum);
    #[comptime]
    if let ComptimeOption::Some(bias) = bias {
        let next = total.read() + bias[output as usize];
        total.store(next);
    }
    total.consume()
}
