//! Appending to a key-value cache: rows written into a larger tensor, in place where nobody else holds it.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Slice, Tensor, TensorMetadata};

use super::{in_dtype_of, primitive, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;

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
    if shape.num_elements() == 0 {
        return target;
    }
    let mut slices: Vec<Slice> = shape.iter().map(|&n| Slice::from(0..n)).collect();
    slices[0] = Slice::from(start..start + shape[0]);
    let rows = in_dtype_of::<B>(rows, &target);
    B::float_slice_assign(target, &slices, rows)
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    //! A copy of the new rows alone; Burn's `slice_assign` copies the whole cache each time.
    use burn::tensor::{DType, TensorMetadata};
    use burn_flex::{Flex, FlexTensor};
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};

    use crate::targets::flex::Rows;

    pub(crate) fn forward(target: FlexTensor, rows: FlexTensor, start: usize) -> FlexTensor {
        match target.dtype() {
            DType::F16 => write::<f16>(target, rows, start, |to, from| to.convert_from_f32_slice(from)),
            DType::BF16 => write::<bf16>(target, rows, start, |to, from| to.convert_from_f32_slice(from)),
            _ => write::<f32>(target, rows, start, <[f32]>::copy_from_slice),
        }
    }

    fn write<T: burn::tensor::Element + bytemuck::Pod>(
        mut target: FlexTensor,
        rows: FlexTensor,
        start: usize,
        copy: impl FnOnce(&mut [T], &[f32]),
    ) -> FlexTensor {
        let width = rows.shape().num_elements() / rows.shape()[0].max(1);
        let contiguous = target.layout().is_contiguous() && target.layout().start_offset() == 0;
        if contiguous && let Some(storage) = target.try_storage_mut::<T>() {
            let rows = Rows::new(&rows);
            let source = rows.all();
            copy(&mut storage[start * width..start * width + source.len()], source);
            return target;
        }
        super::reference::<Flex>(target, rows, start)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::TrainBackend;
    use crate::ops::oracle::{Array, View, agrees, compare, on_every_backend, read};

    fn oracle(target: &Array, rows: &Array, start: usize) -> Array {
        let width: usize = target.shape[1..].iter().product();
        let mut out = target.clone();
        out.values[start * width..start * width + rows.values.len()].copy_from_slice(&rows.values);
        out
    }

    fn rows_are_written_and_all_others_kept<B: TrainBackend>(device: &B::Device) {
        for (capacity, count, start) in [(1, 1, 0), (8, 3, 0), (8, 3, 5), (8, 8, 0), (300, 1, 299)] {
            let (target, rows) = (Array::random(1, &[capacity, 2, 5]), Array::random(2, &[count, 2, 5]));
            let op =
                |t: Vec<FloatTensor<B::InnerBackend>>| B::InnerBackend::write_rows(t[0].clone(), t[1].clone(), start);
            agrees::<B::InnerBackend>(device, &[&target, &rows], 0.0, op, &oracle(&target, &rows, start));
        }
    }

    fn rows_of_any_format_are_written<B: TrainBackend>(device: &B::Device) {
        for dtype in [DType::F32, DType::F16, DType::BF16].into_iter().filter(|&dtype| B::supports_dtype(device, dtype))
        {
            let (target, rows) = (Array::random(1, &[7, 3]).stored(dtype), Array::random(2, &[2, 3]).stored(dtype));
            let [into, from] = [&target, &rows].map(|array| array.on::<B::InnerBackend>(device, dtype, View::Plain));
            let written = read::<B::InnerBackend>(B::InnerBackend::write_rows(into, from, 4));
            assert_eq!(written.values, oracle(&target, &rows, 4).values, "{dtype:?}");
            // Rows of another format take the target's.
            let into = target.on::<B::InnerBackend>(device, dtype, View::Plain);
            let from = Array::random(2, &[2, 3]).on::<B::InnerBackend>(device, DType::F32, View::Plain);
            let written = B::InnerBackend::write_rows(into, from, 4);
            assert_eq!(written.dtype(), dtype);
            compare("another format", &read::<B::InnerBackend>(written), &oracle(&target, &rows, 4), 1e-2);
        }
    }

    fn another_handle_keeps_what_it_had<B: TrainBackend>(device: &B::Device) {
        let before = Tensor::<B::InnerBackend, 2>::ones([4, 3], device);
        let after = write_rows(before.clone(), Tensor::zeros([2, 3], device), 1);
        assert_eq!(read::<B::InnerBackend>(primitive(before)).values, [1.0; 12]);
        let written = read::<B::InnerBackend>(primitive(after.clone())).values;
        assert_eq!(written, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        // Rows of the target itself.
        let moved = write_rows(after.clone(), after.narrow(0, 0, 2), 2);
        let moved = read::<B::InnerBackend>(primitive(moved)).values;
        assert_eq!(moved, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    fn no_rows_change_nothing<B: TrainBackend>(device: &B::Device) {
        let target = Tensor::<B::InnerBackend, 2>::ones([4, 3], device);
        let written = write_rows(target, Tensor::zeros([0, 3], device), 4);
        assert_eq!(read::<B::InnerBackend>(primitive(written)).values, [1.0; 12]);
    }

    on_every_backend!(
        rows_are_written_and_all_others_kept,
        rows_of_any_format_are_written,
        another_handle_keeps_what_it_had,
        no_rows_change_nothing,
    );

    #[test]
    #[cfg(feature = "flex")]
    fn flex_writes_in_place_what_nobody_else_holds() {
        use burn_flex::{Flex, FlexTensor};

        let device = Default::default();
        let address = |tensor: &FlexTensor| tensor.storage::<f32>().as_ptr();
        let rows = primitive(Tensor::<Flex, 3>::ones([2, 2, 3], &device));
        let target = primitive(Tensor::<Flex, 3>::zeros([100, 2, 3], &device));
        let (before, after) = (address(&target), Flex::write_rows(target, rows.clone(), 7));
        assert_eq!(address(&after), before);
        let shared = after.clone();
        assert_ne!(address(&Flex::write_rows(after, rows, 9)), before);
        assert_eq!(address(&shared), before);
    }
}
