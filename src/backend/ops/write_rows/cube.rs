//! wgpu and CUDA: the new rows alone are copied, in one launch.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

const UNITS: u32 = 64;

/// Whether the kernel writes rows of this format into such a target.
pub(crate) fn takes(target: DType, rows: DType, elements: usize) -> bool {
    target == rows && matches!(rows, DType::F32 | DType::F16 | DType::BF16) && elements > 0
}

/// `target` with `rows` written from row `start` on.
pub(crate) fn forward<R: CubeRuntime>(target: CubeTensor<R>, rows: CubeTensor<R>, start: usize) -> CubeTensor<R> {
    let width = rows.shape().num_elements() / rows.shape()[0];
    let target = owned(target);
    place(&target, rows, start * width);
    target
}

/// A tensor without gaps that nobody else sees: this one where it is so, in place, or a copy.
pub(crate) fn owned<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    if !tensor.is_contiguous() {
        return into_contiguous(tensor);
    }
    if tensor.can_mut() {
        return tensor;
    }
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    let copy = empty_device_contiguous_dtype(client, device, tensor.shape(), tensor.dtype);
    place(&copy, tensor, 0);
    copy
}

fn place<R: CubeRuntime>(target: &CubeTensor<R>, values: CubeTensor<R>, start: usize) {
    let (count, dtype) = (values.shape().num_elements(), values.dtype);
    let client = values.client.clone();
    let units = CubeDim::new_1d(UNITS.min(client.properties().hardware.max_units_per_cube));
    place_values::launch::<R>(
        &client,
        calculate_cube_count_elemwise(&client, count, units),
        units,
        into_contiguous(values).into_tensor_arg(),
        target.clone().into_tensor_arg(),
        count as u32,
        start as u32,
        dtype.into(),
    );
}

#[cube(launch)]
pub(crate) fn place_values<E: Float>(
    values: &Tensor<E>,
    target: &mut Tensor<E>,
    count: u32,
    start: u32,
    #[define(E)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    target[start as usize + ABSOLUTE_POS] = values[ABSOLUTE_POS];
}
