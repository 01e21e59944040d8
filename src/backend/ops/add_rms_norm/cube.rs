//! wgpu and CUDA: both rows read once, their sum written and normed out of registers.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::rms_norm::cube::{inverse_rms, write_normed};
use crate::targets::cube::rows::{Plan, Rows, cube_index, empty_like, load};

/// As [`add_rms_norm`](super::add_rms_norm). In a narrow dtype the sum that is normed is not yet rounded.
pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: CubeTensor<R>,
    weight: CubeTensor<R>,
    epsilon: f64,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (x, residual, weight) = (into_contiguous(x), into_contiguous(residual), into_contiguous(weight));
    let (sum, normed) = (empty_like(&x), empty_like(&x));
    let Some(rows) = Rows::of(&x, weight.dtype) else { return (sum, normed) };
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), weight.dtype.into()]);
    add_norm::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        x.into_tensor_arg(),
        residual.into_tensor_arg(),
        weight.into_tensor_arg(),
        sum.clone().into_tensor_arg(),
        normed.clone().into_tensor_arg(),
        rows.count,
        rows.vectors,
        epsilon as f32,
        rows.plan,
        dtypes,
    );
    (sum, normed)
}

#[cube(launch)]
pub(crate) fn add_norm<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    residual: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
    sum: &mut Tensor<Vector<F, N>>,
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
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        held[turn] = load::<F, N>(x, start, at, vectors) + load::<F, N>(residual, start, at, vectors);
        if at < vectors {
            sum[start + at as usize] = Vector::<F, N>::cast_from(held[turn]);
        }
    }
    let inverse = inverse_rms::<N>(&held, vectors, epsilon, plan);
    write_normed::<F, W, N>(&held, inverse, weight, normed, start, vectors, plan);
}
