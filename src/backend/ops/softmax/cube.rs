//! wgpu and CUDA: each row read once and held in registers, where its maximum is taken, then its exponentials and their sum.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::targets::cube::rows::{Plan, Rows, cube_index, empty_like, largest, load, sum};

/// As [`softmax`](super::softmax).
pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>, scale: f64, mask: Option<CubeTensor<R>>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let y = empty_like(&x);
    // Without a mask the kernel is given `x` in its place, and does not read it.
    let has_mask = mask.is_some();
    let mask = mask.map_or_else(|| x.clone(), into_contiguous);
    let Some(rows) = Rows::of(&x, mask.dtype) else { return y };
    let mask_rows = mask.meta.shape()[0].max(1) as u32;
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), mask.dtype.into()]);
    exponentials::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        x.into_tensor_arg(),
        mask.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        rows.count,
        rows.vectors,
        mask_rows,
        scale as f32,
        has_mask,
        rows.plan,
        dtypes,
    );
    y
}

/// The gradient with respect to `x`.
pub(crate) fn backward<R: CubeRuntime>(y: CubeTensor<R>, grad: CubeTensor<R>, scale: f64) -> CubeTensor<R> {
    let (y, grad) = (into_contiguous(y), into_contiguous(grad));
    let gradient = empty_like(&y);
    let Some(rows) = Rows::of(&y, grad.dtype) else { return gradient };
    let (client, dtype) = (y.client.clone(), y.dtype.into());
    exponentials_backward::launch::<R>(
        &client,
        rows.cubes,
        rows.units,
        rows.width,
        y.into_tensor_arg(),
        grad.into_tensor_arg(),
        gradient.clone().into_tensor_arg(),
        rows.count,
        rows.vectors,
        scale as f32,
        rows.plan,
        dtype,
    );
    gradient
}

#[cube(launch)]
pub(crate) fn exponentials<F: Float, M: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    mask: &Tensor<Vector<M, N>>,
    y: &mut Tensor<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    mask_rows: u32,
    scale: f32,
    #[comptime] has_mask: bool,
    #[comptime] plan: Plan,
    #[define(F, M)] _dtypes: [StorageType; 2],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let start = row as usize * vectors as usize;
    let scales = Vector::<f32, N>::empty().fill(scale);
    let mut held = Array::<Vector<f32, N>>::new(plan.turns);
    // Not −∞, which WGSL cannot say: a row of −∞ alone comes to 0/0, NaN as in the reference.
    let most = RuntimeCell::<f32>::new(f32::min_value());
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        let mut scores = load::<F, N>(x, start, at, vectors) * scales;
        if comptime!(has_mask) {
            scores += load::<M, N>(mask, (row % mask_rows) as usize * vectors as usize, at, vectors);
        }
        held[turn] = scores;
        if at < vectors {
            #[unroll]
            for lane in 0..N::value() {
                let next = max(most.read(), scores[lane]);
                most.store(next);
            }
        }
    }
    let shift = Vector::<f32, N>::empty().fill(largest(most.consume(), plan));
    let mut total = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let power = Vector::exp(held[turn] - shift);
        held[turn] = power;
        if turn as u32 * CUBE_DIM + UNIT_POS < vectors {
            total += power;
        }
    }
    let total = Vector::<f32, N>::empty().fill(sum::<N>(total, plan));
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            y[start + at as usize] = Vector::<F, N>::cast_from(held[turn] / total);
        }
    }
}

/// `dx = scale·y·(grad − Σ grad·y)`.
#[cube(launch)]
pub(crate) fn exponentials_backward<F: Float, N: Size>(
    y: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    gradient: &mut Tensor<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let start = row as usize * vectors as usize;
    let mut held = Array::<Vector<f32, N>>::new(plan.turns);
    let mut grads = Array::<Vector<f32, N>>::new(plan.turns);
    let mut products = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        held[turn] = load::<F, N>(y, start, at, vectors);
        grads[turn] = load::<F, N>(grad, start, at, vectors);
        products += held[turn] * grads[turn];
    }
    let dot = Vector::<f32, N>::empty().fill(sum::<N>(products, plan));
    let scales = Vector::<f32, N>::empty().fill(scale);
    #[unroll]
    for turn in 0..plan.turns {
        let at = turn as u32 * CUBE_DIM + UNIT_POS;
        if at < vectors {
            let result = scales * held[turn] * (grads[turn] - dot);
            gradient[start + at as usize] = Vector::<F, N>::cast_from(result);
        }
    }
}
