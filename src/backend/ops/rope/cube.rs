//! wgpu and CUDA: a unit turns one pair of each head. The same launch writes into a new tensor or into rows of a cache.

use burn::tensor::TensorMetadata;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::ops::write_rows::cube::owned;
use crate::targets::cube::rows::takes_elements;

const UNITS: u32 = 64;

/// Whether the kernel takes these tensors, the first being what is turned.
pub(crate) fn takes<T: TensorMetadata>(alike: &[&T]) -> bool {
    alike[0].shape().num_elements() > 0 && takes_elements(alike, &[])
}

/// `x` `[tokens, heads, dim]` turned by `cos` and `sin` `[tokens, dim / 2]`, all in one dtype.
pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>, cos: CubeTensor<R>, sin: CubeTensor<R>) -> CubeTensor<R> {
    let y = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype);
    turn_into(y.clone(), x, cos, sin, 0);
    y
}

/// The same, written into `target` from row `start` on.
pub(crate) fn forward_into<R: CubeRuntime>(
    target: CubeTensor<R>,
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    start: usize,
) -> CubeTensor<R> {
    let target = owned(target);
    turn_into(target.clone(), x, cos, sin, start);
    target
}

fn turn_into<R: CubeRuntime>(
    target: CubeTensor<R>,
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    start: usize,
) {
    let (heads, dim) = (x.shape()[1], x.shape()[2]);
    let pairs = x.shape().num_elements() / 2;
    let (client, dtype) = (x.client.clone(), x.dtype);
    let units = CubeDim::new_1d(UNITS.min(client.properties().hardware.max_units_per_cube));
    let argument = |tensor: CubeTensor<R>| into_contiguous(tensor).into_tensor_arg();
    turn_pairs::launch::<R>(
        &client,
        calculate_cube_count_elemwise(&client, pairs, units),
        units,
        argument(x),
        argument(cos),
        argument(sin),
        target.into_tensor_arg(),
        pairs as u32,
        (dim / 2) as u32,
        heads as u32,
        (start * heads * dim) as u32,
        dtype.into(),
    );
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)] // A kernel is given its tensors one by one.
pub(crate) fn turn_pairs<F: Float>(
    x: &Tensor<F>,
    cos: &Tensor<F>,
    sin: &Tensor<F>,
    y: &mut Tensor<F>,
    pairs: u32,
    half: u32,
    heads: u32,
    start: u32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= pairs as usize {
        terminate!();
    }
    let half = half as usize;
    let head = ABSOLUTE_POS / half;
    let within = ABSOLUTE_POS % half;
    let angle = head / heads as usize * half + within;
    let turn_cos = f32::cast_from(cos[angle]);
    let turn_sin = f32::cast_from(sin[angle]);
    let low = head * 2 * half + within;
    let first = f32::cast_from(x[low]);
    let second = f32::cast_from(x[low + half]);
    let at = start as usize + low;
    y[at] = F::cast_from(first * turn_cos - second * turn_sin);
    y[at + half] = F::cast_from(second * turn_cos + first * turn_sin);
}
