//! wgpu and CUDA: each row read once and held in registers, where its mean is taken, then its variance about the mean.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::targets::cube::rows::{Plan, Rows, cube_index, empty_like, load, sum};

/// As [`layer_norm`](super::layer_norm).
pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
    epsilon: f64,
) -> CubeTensor<R> {
    let (x, weight, bias) = (into_contiguous(x), into_contiguous(weight), into_contiguous(bias));
    let normed = empty_like(&x);
    let Some(rows) = Rows::of(&x, weight.dtype) else { return normed };
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), weight.dtype.into()]);
    norm::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        bias.into_tensor_arg(),
        normed.clone().into_tensor_arg(),
        rows.count,
        rows.vectors,
        epsilon as f32,
        rows.plan,
        dtypes,
    );
    normed
}

/// The gradient with respect to `x`.
pub(crate) fn backward_input<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
    epsilon: f64,
) -> CubeTensor<R> {
    let (x, weight, grad) = (into_contiguous(x), into_contiguous(weight), into_contiguous(grad));
    let gradient = empty_like(&x);
    let Some(rows) = Rows::of(&x, weight.dtype) else { return gradient };
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), weight.dtype.into()]);
    norm_backward::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        grad.into_tensor_arg(),
        gradient.clone().into_tensor_arg(),
        rows.count,
        rows.vectors,
        epsilon as f32,
        rows.plan,
        dtypes,
    );
    gradient
}

/// Takes the mean from the row that the units hold; the inverse of its standard deviation. What lies behind its end is no longer zero then.
#[cube]
pub(crate) fn centre<N: Size>(
    held: &mut Array<Vector<f32, N>>,
    vectors: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let length = f32::cast_from(vectors * N::value() as u32);
    let mut values = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        values += held[turn];
    }
    let mean = Vector::<f32, N>::empty().fill(sum::<N>(values, plan) / length);
    let mut squares = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let centred = held[turn] - mean;
        held[turn] = centred;
        if turn as u32 * CUBE_DIM + UNIT_POS < vectors {
            squares += centred * centred;
        }
    }
    1.0 / f32::sqrt(sum::<N>(squares, plan) / length + epsilon)
}

/// Writes the centred row that the units hold, times `inverse` and the weight, plus the bias.
#[cube]
pub(crate) fn write_normed<F: Float, W: Float, N: Size>(
    held: &Array<Vector<f32, N>>,
    inverse: f32,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    normed: &mut Tensor<Vector<F, N>>,
    start: usize,
    vectors: u32,
    #[comptime] plan: Plan,
) {
    let inverses = Vector::<f32, N>::empty().fill(inverse);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            let scaled = held[turn] * inverses * Vector::<f32, N>::cast_from(weight[at as usize]);
            let shifted = scaled + Vector::<f32, N>::cast_from(bias[at as usize]);
            normed[start + at as usize] = Vector::<F, N>::cast_from(shifted);
        }
    }
}

#[cube(launch)]
pub(crate) fn norm<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<Vector<W, N>>,
    normed: &mut Tensor<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let start = row as usize * vectors as usize;
    let mut held = Array::<Vector<f32, N>>::new(plan.turns);
    #[unroll]
    for turn in 0..plan.turns {
        held[turn] = load::<F, N>(x, start, turn as u32 * CUBE_DIM + UNIT_POS, vectors);
    }
    let inverse = centre::<N>(&mut held, vectors, epsilon, plan);
    write_normed::<F, W, N>(&held, inverse, weight, bias, normed, start, vectors, plan);
}

/// With `h = weight·grad` and `c` the centred row: `dx = (h − mean(h) − c·mean(h·c)/σ²) / σ`.
#[cube(launch)]
pub(crate) fn norm_backward<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
    grad: &Tensor<Vector<F, N>>,
    gradient: &mut Tensor<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let start = row as usize * vectors as usize;
    let mut held = Array::<Vector<f32, N>>::new(plan.turns);
    let mut scaled = Array::<Vector<f32, N>>::new(plan.turns);
    let mut all = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        held[turn] = load::<F, N>(x, start, at, vectors);
        scaled[turn] = load::<F, N>(grad, start, at, vectors) * load::<W, N>(weight, 0, at, vectors);
        all += scaled[turn];
    }
    let inverse = centre::<N>(&mut held, vectors, epsilon, plan);
    // Behind the row's end `scaled` is zero.
    let mut products = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        products += held[turn] * scaled[turn];
    }
    let length = f32::cast_from(vectors * N::value() as u32);
    let mean = sum::<N>(all, plan) / length;
    let along = sum::<N>(products, plan) / length * inverse * inverse;
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            let rest = scaled[turn]
                - Vector::<f32, N>::empty().fill(mean)
                - held[turn] * Vector::<f32, N>::empty().fill(along);
            let result = rest * Vector::<f32, N>::empty().fill(inverse);
            gradient[start + at as usize] = Vector::<F, N>::cast_from(result);
        }
    }
}
