//! wgpu and CUDA: each element read once.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::targets::cube::rows::{Elements, cube_index, empty_like};

/// As [`swiglu`](super::swiglu).
pub(crate) fn forward<R: CubeRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
    let (gate, up) = (into_contiguous(gate), into_contiguous(up));
    let y = empty_like(&gate);
    let Some(elements) = Elements::of(&gate, up.dtype) else { return y };
    let (client, dtype) = (gate.client.clone(), gate.dtype.into());
    gated::launch::<R>(
        &client,
        elements.cubes,
        elements.units,
        elements.width,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        elements.vectors,
        dtype,
    );
    y
}

/// The gradients with respect to `gate` and `up`.
pub(crate) fn backward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (gate, up, grad) = (into_contiguous(gate), into_contiguous(up), into_contiguous(grad));
    let (d_gate, d_up) = (empty_like(&gate), empty_like(&gate));
    let Some(elements) = Elements::of(&gate, up.dtype) else { return (d_gate, d_up) };
    let (client, dtype) = (gate.client.clone(), gate.dtype.into());
    gated_backward::launch::<R>(
        &client,
        elements.cubes,
        elements.units,
        elements.width,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        grad.into_tensor_arg(),
        d_gate.clone().into_tensor_arg(),
        d_up.clone().into_tensor_arg(),
        elements.vectors,
        dtype,
    );
    (d_gate, d_up)
}

#[cube(launch)]
pub(crate) fn gated<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = cube_index() * CUBE_DIM + UNIT_POS;
    if at >= vectors {
        terminate!();
    }
    let ones = Vector::<f32, N>::empty().fill(1.0);
    let zeros = Vector::<f32, N>::empty().fill(0.0);
    let g = Vector::<f32, N>::cast_from(gate[at as usize]);
    // In this order: `g · u` may overflow where the result does not.
    let silu = g / (ones + Vector::exp(zeros - g));
    y[at as usize] = Vector::<F, N>::cast_from(silu * Vector::<f32, N>::cast_from(up[at as usize]));
}

#[cube(launch)]
pub(crate) fn gated_backward<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    up: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    d_gate: &mut Tensor<Vector<F, N>>,
    d_up: &mut Tensor<Vector<F, N>>,
    vectors: u32,
    #[define(F)] _dtype: StorageType,
) {
    let at = cube_index() * CUBE_DIM + UNIT_POS;
    if at >= vectors {
        terminate!();
    }
    let ones = Vector::<f32, N>::empty().fill(1.0);
    let zeros = Vector::<f32, N>::empty().fill(0.0);
    let g = Vector::<f32, N>::cast_from(gate[at as usize]);
    let u = Vector::<f32, N>::cast_from(up[at as usize]);
    let d = Vector::<f32, N>::cast_from(grad[at as usize]);
    let s = ones / (ones + Vector::exp(zeros - g));
    let slope = s * (ones + g * (ones - s));
    d_gate[at as usize] = Vector::<F, N>::cast_from(d * u * slope);
    d_up[at as usize] = Vector::<F, N>::cast_from(d * (g * s));
}
