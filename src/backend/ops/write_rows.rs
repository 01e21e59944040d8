//! Appending to a key-value cache: rows written into a larger tensor, in place where nobody else holds it.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Slice, Tensor, TensorMetadata};

use super::{in_dtype_of, primitive, tensor};
use crate::KernelBackend;

/// `target` with `rows` written from row `start` on. Pass the only handle to `target` and nothing is copied on backends that can.
///
/// # Shapes
/// `target` `[capacity, …]`, `rows` `[n, …]` with the same trailing axes → `[capacity, …]`.
///
/// # Panics
/// If the rows do not fit.
pub fn write_rows<B: KernelBackend, const D: usize>(
    target: Tensor<B, D>,
    rows: Tensor<B, D>,
    start: usize,
) -> Tensor<B, D> {
    let (into, from) = (target.dims(), rows.dims());
    assert!(start + from[0] <= into[0] && from[1..] == into[1..], "write_rows: {from:?} at {start} into {into:?}");
    tensor(B::write_rows(primitive(target), primitive(rows), start))
}

pub(crate) fn reference<B: Backend>(target: FloatTensor<B>, rows: FloatTensor<B>, start: usize) -> FloatTensor<B> {
    let shape = rows.shape();
    let mut slices: Vec<Slice> = shape.iter().map(|&n| Slice::from(0..n)).collect();
    slices[0] = Slice::from(start..start + shape[0]);
    let rows = in_dtype_of::<B>(rows, &target);
    B::float_slice_assign(target, &slices, rows)
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    //! A copy of the new rows alone; Burn's `slice_assign` copies the whole cache each time.
    use burn::tensor::TensorMetadata;
    use burn_flex::{Flex, FlexTensor};

    use crate::targets::flex::Rows;

    pub(crate) fn forward(mut target: FlexTensor, rows: FlexTensor, start: usize) -> FlexTensor {
        let width = rows.shape().num_elements() / rows.shape()[0].max(1);
        let contiguous = target.layout().is_contiguous() && target.layout().start_offset() == 0;
        if contiguous && let Some(storage) = target.try_storage_mut::<f32>() {
            let rows = Rows::new(&rows);
            let source = rows.all();
            storage[start * width..start * width + source.len()].copy_from_slice(source);
            return target;
        }
        super::reference::<Flex>(target, rows, start)
    }
}
