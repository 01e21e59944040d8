//! Matrix products on slices with strides: the safe face of the `gemm` crate.

use std::ops::Range;

use gemm::Parallelism;

use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch_to_write;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRef<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// `rows × columns`, each row `stride` elements after the one before.
    ///
    /// # Panics
    /// If the slice is too short.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// A matrix to be written, inside a slice.
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows × columns`, each row `stride` elements after the one before.
    ///
    /// # Panics
    /// If the slice is too short.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data, rows, columns, row_stride: stride }
    }
}

impl MatrixMut<'_> {
    /// Writes a bias, and says whether the product is to be added to what is there then.
    fn begin(&mut self, into: Into) -> bool {
        assert!(into.fits(self.columns));
        if let Some(bias) = into.bias() {
            let rows = self.data.chunks_mut(self.row_stride.max(1)).take(self.rows);
            rows.for_each(|row| row[..bias.len()].copy_from_slice(bias));
        }
        !matches!(into, Into::Overwrite)
    }
}

/// Rows must not overlap, and the last one must end inside the slice.
fn check(length: usize, rows: usize, columns: usize, stride: usize) {
    let last = rows.saturating_sub(1) * stride;
    let empty = rows == 0 || columns == 0;
    assert!(empty || rows == 1 || columns <= stride, "rows of {columns} overlap at stride {stride}");
    assert!(empty || last + columns <= length, "{rows} × {columns} at stride {stride} do not fit {length} elements");
}

/// What a product is added to.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into<'b> {
    /// Nothing: the destination is overwritten.
    Overwrite,
    /// What the destination holds.
    Add,
    /// In every row these values, one for each column: the destination is overwritten.
    Bias(&'b [f32]),
}

impl Into<'_> {
    /// Whether a destination of so many columns can be meant.
    pub(crate) fn fits(self, columns: usize) -> bool {
        self.bias().is_none_or(|bias| bias.len() == columns)
    }

    /// The values that every row begins with.
    pub(crate) fn bias(&self) -> Option<&[f32]> {
        if let Self::Bias(bias) = self { Some(bias) } else { None }
    }

    /// The same for these columns alone.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[columns]),
            other => other,
        }
    }

    /// Puts sums into a part of a row that has these columns.
    #[inline(always)]
    pub(crate) fn write<'s>(self, out: &mut [f32], sums: impl IntoIterator<Item = &'s f32>) {
        let out = out.iter_mut().zip(sums);
        match self {
            Self::Overwrite => out.for_each(|(out, sum)| *out = *sum),
            Self::Add => out.for_each(|(out, sum)| *out += sum),
            Self::Bias(bias) => out.zip(bias).for_each(|((out, sum), bias)| *out = bias + sum),
        }
    }
}

/// One of several products of the same rows: with which weight, and where it goes, row after row.
pub(crate) struct Product<'p, W> {
    pub(crate) weights: W,
    pub(crate) into: Into<'p>,
    pub(crate) out: &'p mut [f32],
}

/// `destination (+)= left · right`, on every thread of the pool if `parallel`.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply(mut destination: MatrixMut, into: Into, left: MatrixRef, right: MatrixRef, parallel: bool) {
    assert_eq!(left.columns, right.rows);
    assert_eq!((destination.rows, destination.columns), (left.rows, right.columns));
    let add = destination.begin(into);
    let parallelism =
        if parallel && rayon::current_num_threads() > 1 { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: `check` proved that every element the strides reach lies inside the slices, the shapes agree, and the
    // destination is borrowed mutably, so it overlaps neither operand.
    unsafe { raw(destination.data.as_mut_ptr(), destination.row_stride, add, left, right, parallelism) };
}

/// # Safety
/// `destination` must be writable for `left.rows × right.columns` at `stride`, overlap neither operand, and the shapes must fit.
unsafe fn raw(
    destination: *mut f32,
    stride: usize,
    add: bool,
    left: MatrixRef,
    right: MatrixRef,
    parallelism: Parallelism,
) {
    // SAFETY: the caller's promise; `MatrixRef` and `MatrixMut` check their own extents.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            destination,
            1,
            stride as isize,
            add,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A matrix of which several threads write columns of their own.
pub(crate) struct SharedColumns {
    start: *mut f32,
    stride: usize,
}
// SAFETY: each thread writes only columns of its own.
unsafe impl Send for SharedColumns {}
// SAFETY: as above.
unsafe impl Sync for SharedColumns {}

impl SharedColumns {
    /// Over a matrix whose rows are `stride` elements apart. The caller keeps `data` borrowed while this is used.
    pub(crate) fn new(data: &mut [f32], stride: usize) -> Self {
        Self { start: data.as_mut_ptr(), stride }
    }

    /// Where an element is.
    pub(crate) fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + column)
    }

    /// How many elements a row is after the one before.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Asks for the lines of these columns of some rows, which will be written soon.
    #[inline(always)]
    pub(crate) fn fetch(&self, rows: Range<usize>, columns: &Range<usize>) {
        for row in rows {
            columns.clone().step_by(LINE).for_each(|column| prefetch_to_write(self.at(row, column)));
        }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// The range must lie inside the matrix, and nobody else may hold any of it.
    #[allow(clippy::mut_from_ref)] // Disjoint columns, as the caller promises.
    pub(crate) unsafe fn part_of_row(&self, row: usize, first: usize, count: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + first), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices() {
        // Two rows of two inside a buffer with stride three.
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let left = MatrixRef::new(&a, 2, 2, 3);
        let mut out = [0.0; 4];
        multiply(MatrixMut::new(&mut out, 2, 2, 2), Into::Overwrite, left, left.transposed(), false);
        assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
        multiply(MatrixMut::new(&mut out, 2, 2, 2), Into::Add, left, left, true);
        assert_eq!(out, [12.0, 21.0, 26.0, 47.0]);
    }

    #[test]
    #[should_panic]
    fn a_slice_that_is_too_short_is_refused() {
        MatrixRef::new(&[0.0; 5], 2, 3, 3);
    }
}
