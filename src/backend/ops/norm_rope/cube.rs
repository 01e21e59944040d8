//! wgpu and CUDA: a cube for each head, both halves in registers. The same launch writes into a new tensor or into rows of a cache.

use burn::tensor::TensorMetadata;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::ops::rms_norm::cube::inverse_rms_of;
use crate::ops::write_rows::cube::owned;
use crate::targets::cube::rows::{self, Plan, Rows, cube_index, empty_like, load};

/// Whether the kernel takes these tensors, of which `alike` have one dtype, the first being what is turned.
pub(crate) fn takes<T: TensorMetadata>(alike: &[&T], weight: &T) -> bool {
    alike[0].shape().num_elements() > 0 && rows::takes(alike, &[weight])
}

/// As [`norm_rope`](super::norm_rope).
pub(crate) fn forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    epsilon: f64,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
) -> CubeTensor<R> {
    let y = empty_like(&x);
    turn_into(y.clone(), x, weight, epsilon, [cos, sin], 0);
    y
}

/// As [`norm_rope_into`](super::norm_rope_into).
pub(crate) fn forward_into<R: CubeRuntime>(
    target: CubeTensor<R>,
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    epsilon: f64,
    tables: [CubeTensor<R>; 2],
    start: usize,
) -> CubeTensor<R> {
    let target = owned(target);
    turn_into(target.clone(), x, weight, epsilon, tables, start);
    target
}

fn turn_into<R: CubeRuntime>(
    target: CubeTensor<R>,
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    epsilon: f64,
    [cos, sin]: [CubeTensor<R>; 2],
    start: usize,
) {
    let [tokens, heads, dim] = [0, 1, 2].map(|axis| x.shape()[axis]);
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), weight.dtype.into()]);
    let size = x.dtype.size().max(weight.dtype.size());
    // A unit that holds a vector of the lower half holds its partner of the upper one.
    let Some(halves) = Rows::on(client.properties(), &[tokens * heads, dim / 2], size) else { return };
    let argument = |tensor: CubeTensor<R>| into_contiguous(tensor).into_tensor_arg();
    norm_and_turn::launch::<R>(
        &client,
        halves.cubes,
        halves.units,
        halves.width,
        argument(x),
        argument(weight),
        argument(cos),
        argument(sin),
        target.into_tensor_arg(),
        halves.count,
        halves.vectors,
        heads as u32,
        (start * heads) as u32,
        epsilon as f32,
        halves.plan,
        dtypes,
    );
}

/// `vectors` are those of half a head; `first` is the row of heads in `y` that the first one is written to.
#[cube(launch)]
#[allow(clippy::too_many_arguments)] // A kernel is given its tensors one by one.
pub(crate) fn norm_and_turn<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<W, N>>,
    cos: &Tensor<Vector<F, N>>,
    sin: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    heads: u32,
    first: u32,
    epsilon: f32,
    #[comptime] plan: Plan,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let half = vectors as usize;
    let start = row as usize * 2 * half;
    let mut low = Array::<Vector<f32, N>>::new(plan.turns);
    let mut high = Array::<Vector<f32, N>>::new(plan.turns);
    let mut squares = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        low[turn] = load::<F, N>(x, start, at, vectors);
        high[turn] = load::<F, N>(x, start + half, at, vectors);
        squares += low[turn] * low[turn] + high[turn] * high[turn];
    }
    let inverse = inverse_rms_of::<N>(squares, 2 * vectors, epsilon, plan);
    let inverses = Vector::<f32, N>::empty().fill(inverse);
    let angles = (row / heads) as usize * half;
    let to = (first + row) as usize * 2 * half;
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            let at = at as usize;
            let a = low[turn] * inverses * Vector::<f32, N>::cast_from(weight[at]);
            let b = high[turn] * inverses * Vector::<f32, N>::cast_from(weight[half + at]);
            let turn_cos = Vector::<f32, N>::cast_from(cos[angles + at]);
            let turn_sin = Vector::<f32, N>::cast_from(sin[angles + at]);
            y[to + at] = Vector::<F, N>::cast_from(a * turn_cos - b * turn_sin);
            y[to + half + at] = Vector::<F, N>::cast_from(b * turn_cos + a * turn_sin);
        }
    }
}
