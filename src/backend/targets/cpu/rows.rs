//! A float tensor seen as rows of its last axis: the shape every norm-like kernel works on.

use std::mem::MaybeUninit;

use burn::tensor::Shape;
use rayon::prelude::*;

use super::lanes;
use crate::process::prefer_large_pages;

/// Below this many elements the work is done before another thread has woken up.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// An f32 tensor in the memory of the CPU.
pub(crate) trait RowTensor: Sync + Sized {
    /// What is made of new values: a tensor, or the values alone.
    type Output;

    /// Its axes.
    fn shape(&self) -> Shape;
    /// The same values with their elements in order: copied only if they are strided.
    fn contiguous(&self) -> Self;
    /// The whole buffer, of which a view may be a part.
    fn buffer(&self) -> &[f32];
    /// Where in the buffer the first element is.
    fn offset(&self) -> usize;
    /// An empty vector with room for so many values of a result.
    fn room(count: usize) -> Vec<f32> {
        new_room(count)
    }
    /// Takes over `data`.
    fn output(data: Vec<f32>, shape: Shape) -> Self::Output;
}

/// A tensor, contiguous, as rows.
pub(crate) struct Rows<T> {
    tensor: T,
    offset: usize,
    width: usize,
    elements: usize,
}

impl<T: RowTensor> Rows<T> {
    /// Views `tensor` as rows of its last axis; copies it only if it is strided.
    pub(crate) fn new(tensor: &T) -> Self {
        let shape = tensor.shape();
        Self::of_width(tensor, shape[shape.num_dims() - 1])
    }

    /// Views `tensor` as rows of so many elements, whatever its axes; copies it only if it is strided.
    pub(crate) fn of_width(tensor: &T, width: usize) -> Self {
        let tensor = tensor.contiguous();
        let (offset, elements) = (tensor.offset(), tensor.shape().num_elements());
        Self { tensor, offset, width, elements }
    }

    /// Every element, in order.
    pub(crate) fn all(&self) -> &[f32] {
        &self.tensor.buffer()[self.offset..self.offset + self.elements]
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        let start = self.offset + index * self.width;
        &self.tensor.buffer()[start..start + self.width]
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.elements.checked_div(self.width).unwrap_or(0)
    }

    /// A tensor of the same shape, each row computed by `kernel(index, row, out)`, in parallel when it pays. At first `out` is the row itself,
    /// which is at hand, and costs less to copy than a whole tensor to clear beforehand.
    ///
    /// The kernel's closure must say `#[inline(always)]`, for the reason given at [`lanes::vectorised`].
    #[inline(always)]
    pub(crate) fn map(&self, kernel: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> T::Output {
        let data = self.all();
        let width = self.width.max(1);
        let mut out = T::room(data.len());
        let run = |first: usize, data: &[f32], out: &mut [MaybeUninit<f32>]| {
            lanes::vectorised(
                #[inline(always)]
                || {
                    for (index, (row, out)) in data.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
                        kernel(first + index, row, out.write_copy_of_slice(row));
                    }
                },
            );
        };
        let spare = &mut out.spare_capacity_mut()[..data.len()];
        if data.len() < PARALLEL_ELEMENTS {
            run(0, data, spare);
        } else {
            let block = self.count().div_ceil(4 * rayon::current_num_threads()).max(1);
            let blocks = data.par_chunks(block * width).zip(spare.par_chunks_mut(block * width));
            blocks.enumerate().for_each(|(index, (data, out))| run(index * block, data, out));
        }
        // SAFETY: `data` is made of whole rows, and each was written.
        unsafe { out.set_len(data.len()) };
        T::output(out, self.tensor.shape())
    }

    /// As [`map`](Self::map), to two tensors: `kernel(index, row, first, second)`.
    #[inline(always)]
    pub(crate) fn map_to_two(
        &self,
        kernel: impl Fn(usize, &[f32], &mut [f32], &mut [f32]) + Sync,
    ) -> (T::Output, T::Output) {
        let data = self.all();
        let width = self.width.max(1);
        let (mut one, mut two) = (T::room(data.len()), T::room(data.len()));
        let run = |first: usize, data: &[f32], one: &mut [MaybeUninit<f32>], two: &mut [MaybeUninit<f32>]| {
            lanes::vectorised(
                #[inline(always)]
                || {
                    let outs = one.chunks_exact_mut(width).zip(two.chunks_exact_mut(width));
                    for (index, (row, (one, two))) in data.chunks_exact(width).zip(outs).enumerate() {
                        kernel(first + index, row, one.write_copy_of_slice(row), two.write_copy_of_slice(row));
                    }
                },
            );
        };
        let spare = [&mut one, &mut two].map(|out: &mut Vec<f32>| &mut out.spare_capacity_mut()[..data.len()]);
        let [spare_one, spare_two] = spare;
        if data.len() < PARALLEL_ELEMENTS {
            run(0, data, spare_one, spare_two);
        } else {
            let block = self.count().div_ceil(4 * rayon::current_num_threads()).max(1);
            let outs = spare_one.par_chunks_mut(block * width).zip(spare_two.par_chunks_mut(block * width));
            let blocks = data.par_chunks(block * width).zip(outs).enumerate();
            blocks.for_each(|(index, (data, (one, two)))| run(index * block, data, one, two));
        }
        // SAFETY: `data` is made of whole rows, and each was written to both.
        unsafe {
            one.set_len(data.len());
            two.set_len(data.len());
        }
        (T::output(one, self.tensor.shape()), T::output(two, self.tensor.shape()))
    }
}

/// `x` in memory of its own.
pub(crate) fn copied<T: RowTensor>(x: &T) -> T::Output {
    Rows::new(x).map(
        #[inline(always)]
        |_, _, _| {},
    )
}

/// An empty vector with room for so many values, in memory new from the allocator.
pub(crate) fn new_room(count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    prefer_large_pages(values.spare_capacity_mut());
    values
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn_flex::FlexTensor;

    use super::*;
    use crate::targets::flex::tensor;

    fn counted(shape: [usize; 2]) -> FlexTensor {
        tensor((0..shape[0] * shape[1]).map(|i| i as f32).collect(), Shape::from(shape))
    }

    #[test]
    fn whole_rows_of_a_larger_buffer_are_not_copied() {
        let whole = counted([5, 4]);
        let view = whole.narrow(0, 1, 3);
        let rows = Rows::new(&view);
        assert_eq!((rows.count(), rows.row(2)), (3, &[12.0, 13.0, 14.0, 15.0][..]));
        assert_eq!(rows.all().as_ptr(), whole.storage::<f32>()[4..].as_ptr());
    }

    #[test]
    fn strided_views_are_read_in_order() {
        let whole = counted([3, 4]);
        assert_eq!(Rows::new(&whole.narrow(1, 1, 2)).all(), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
        assert_eq!(Rows::new(&whole.transpose(0, 1)).row(1), [1.0, 5.0, 9.0]);
    }

    #[test]
    fn every_row_is_mapped_once_with_its_own_index() {
        for [rows, width] in [[1, 1], [7, 3], [1, 1 << 16], [1 << 16, 1], [257, 131], [0, 4], [4, 0]] {
            let x = counted([rows, width]);
            let y = Rows::new(&x).map(|index, row, out| {
                out.iter_mut().zip(row).for_each(|(out, x)| *out = x - (index * width) as f32);
            });
            let expected: Vec<f32> = (0..rows).flat_map(|_| (0..width).map(|i| i as f32)).collect();
            assert_eq!(Rows::new(&y).all(), expected);
            let (same, indices) = Rows::new(&x).map_to_two(|index, row, same, indices| {
                same.copy_from_slice(row);
                indices.fill(index as f32);
            });
            assert_eq!(Rows::new(&same).all(), Rows::new(&x).all());
            let expected: Vec<f32> = (0..rows).flat_map(|row| vec![row as f32; width]).collect();
            assert_eq!(Rows::new(&indices).all(), expected);
        }
    }
}
