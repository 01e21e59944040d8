//! wgpu and CUDA: each row read once, its squares summed up over the cube, normed out of registers.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::targets::cube::rows::{Plan, Rows, cube_index, empty_like, load, sum};

/// As [`rms_norm`](super::rms_norm).
pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>, epsilon: f64) -> CubeTensor<R> {
    let (x, weight) = (into_contiguous(x), into_contiguous(weight));
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

/// `1 / sqrt(mean(x²) + ε)` of the row that the units hold.
#[cube]
pub(crate) fn inverse_rms<N: Size>(
    held: &Array<Vector<f32, N>>,
    vectors: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let mut squares = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        squares += held[turn] * held[turn];
    }
    inverse_rms_of::<N>(squares, vectors, epsilon, plan)
}

/// The same from each unit's squares of a row of so many vectors.
#[cube]
pub(crate) fn inverse_rms_of<N: Size>(
    squares: Vector<f32, N>,
    vectors: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let length = f32::cast_from(vectors * N::value() as u32);
    1.0 / f32::sqrt(sum::<N>(squares, plan) / length + epsilon)
}

/// Writes the row that the units hold, times `inverse` and the weight.
#[cube]
pub(crate) fn write_normed<F: Float, W: Float, N: Size>(
    held: &Array<Vector<f32, N>>,
    inverse: f32,
    weight: &Tensor<Vector<W, N>>,
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
            normed[start + at as usize] = Vector::<F, N>::cast_from(scaled);
        }
    }
}

#[cube(launch)]
pub(crate) fn norm<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
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
    let inverse = inverse_rms::<N>(&held, vectors, epsilon, plan);
    write_normed::<F, W, N>(&held, inverse, weight, normed, start, vectors, plan);
}

/// With `h = weight·grad`: `dx = r·(h − x·r²·mean(h·x))`, `r` the inverse root mean square.
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
    let mut products = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        held[turn] = load::<F, N>(x, start, at, vectors);
        scaled[turn] = load::<F, N>(grad, start, at, vectors) * load::<W, N>(weight, 0, at, vectors);
        products += held[turn] * scaled[turn];
    }
    let inverse = inverse_rms::<N>(&held, vectors, epsilon, plan);
    let length = f32::cast_from(vectors * N::value() as u32);
    let along = sum::<N>(products, plan) * inverse * inverse / length;
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            let rest = scaled[turn] - held[turn] * Vector::<f32, N>::empty().fill(along);
            let result = rest * Vector::<f32, N>::empty().fill(inverse);
            gradient[start + at as usize] = Vector::<F, N>::cast_from(result);
        }
    }
}
