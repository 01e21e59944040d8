//! wgpu and CUDA: both rows read once, their sum normed out of registers and never written.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::layer_norm::cube::{centre, write_normed};
use crate::targets::cube::rows::{Plan, Rows, cube_index, empty_like, load};

/// As [`add_layer_norm`](super::add_layer_norm).
pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
    epsilon: f64,
) -> CubeTensor<R> {
    let (x, residual) = (into_contiguous(x), into_contiguous(residual));
    let (weight, bias) = (into_contiguous(weight), into_contiguous(bias));
    let normed = empty_like(&x);
    let Some(rows) = Rows::of(&x, weight.dtype) else { return normed };
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), weight.dtype.into()]);
    add_norm::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        x.into_tensor_arg(),
        residual.into_tensor_arg(),
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

#[cube(launch)]
pub(crate) fn add_norm<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    residual: &Tensor<Vector<F, N>>,
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
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        held[turn] = load::<F, N>(x, start, at, vectors) + load::<F, N>(residual, start, at, vectors);
    }
    let inverse = centre::<N>(&mut held, vectors, epsilon, plan);
    write_normed::<F, W, N>(&held, inverse, weight, bias, normed, start, vectors, plan);
}
