//! Matrices inside slices, and their products by the `gemm` crate.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch_to_write;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRef<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
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

    /// Some of its rows.
    pub(crate) fn some_rows(self, rows: Range<usize>) -> Self {
        self.transposed().some_columns(rows).transposed()
    }

    /// Some of its columns.
    pub(crate) fn some_columns(self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        Self { data: &self.data[columns.start * self.column_stride..], columns: columns.len(), ..self }
    }
}

/// A matrix to be written.
pub(crate) struct MatrixMut<'a> {
    start: *mut f32,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    data: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// `rows × columns` inside a slice, each row `stride` elements after the one before.
    ///
    /// # Panics
    /// If the slice is too short.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { start: data.as_mut_ptr(), rows, columns, row_stride: stride, data: PhantomData }
    }

    /// Where an element is.
    pub(super) fn at(&mut self, row: usize, column: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.row_stride + column)
    }

    /// Part of it.
    pub(super) fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let start = self.at(rows.start, columns.start);
        MatrixMut { start, rows: rows.len(), columns: columns.len(), ..*self }
    }

    /// Part of a row.
    pub(super) fn part_of_row(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        // SAFETY: the matrix has these elements, and is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, columns.start), columns.len()) }
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

/// `out = left · right`, on every thread of the pool if `parallel`.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply(mut out: MatrixMut, left: MatrixRef, right: MatrixRef, parallel: bool) {
    assert_eq!((left.rows, left.columns, right.columns), (out.rows, right.rows, out.columns));
    let parallelism =
        if parallel && rayon::current_num_threads() > 1 { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: `check` proved that every element the strides reach lies inside the matrices, the shapes agree, and the output is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            out.at(0, 0),
            1,
            out.row_stride as isize,
            false,
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

    /// Rows of some columns, from these on.
    ///
    /// # Safety
    /// They must lie inside the matrix, and nobody else may hold any of them as long as they are used.
    pub(crate) unsafe fn part<'a>(&self, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) -> MatrixMut<'a> {
        MatrixMut { start: self.at(row, column), rows, columns, row_stride: self.stride, data: PhantomData }
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
pub(crate) mod tests {
    use super::*;
    use crate::targets::flex::packed::tests::values;

    /// A matrix with room between its rows, or the transpose of one.
    fn inside(data: &[f32], [rows, columns]: [usize; 2], turned: bool) -> MatrixRef<'_> {
        let [by, stride] = if turned { [columns, rows] } else { [rows, columns] };
        let matrix = MatrixRef::new(data, by, stride, stride + 3);
        if turned { matrix.transposed() } else { matrix }
    }

    /// Compares a product, which may add to what is there, as it says, with its definition; what lies between the rows must stay.
    pub(crate) fn check_product(
        [rows, terms, columns]: [usize; 3],
        turned: [bool; 2],
        multiply: impl FnOnce(MatrixMut, MatrixRef, MatrixRef) -> bool,
    ) {
        let (a, b) = (values(1, (rows + 3) * (terms + 3)), values(2, (terms + 3) * (columns + 3)));
        let (left, right) = (inside(&a, [rows, terms], turned[0]), inside(&b, [terms, columns], turned[1]));
        let before = values(3, rows * (columns + 3));
        let mut out = before.clone();
        let add = multiply(MatrixMut::new(&mut out, rows, columns, columns + 3), left, right);
        let value =
            |m: MatrixRef, row: usize, column: usize| f64::from(m.data[row * m.row_stride + column * m.column_stride]);
        for (index, (out, before)) in out.into_iter().zip(before).enumerate() {
            let (row, column) = (index / (columns + 3), index % (columns + 3));
            if column >= columns {
                assert_eq!(out, before, "between the rows");
                continue;
            }
            let products = (0..terms).map(|term| value(left, row, term) * value(right, term, column));
            let expected = products.sum::<f64>() + if add { f64::from(before) } else { 0.0 };
            assert!((f64::from(out) - expected).abs() < 1e-4, "{out} is not {expected} in {row}, {column}");
        }
    }

    #[test]
    fn products_of_strided_and_transposed_matrices() {
        for (index, turned) in [[false, false], [true, false], [false, true], [true, true]].into_iter().enumerate() {
            check_product([20, 33, 17], turned, |out, left, right| {
                multiply(out, left, right, index % 2 == 0);
                false
            });
        }
    }

    #[test]
    #[should_panic]
    fn a_slice_that_is_too_short_is_refused() {
        MatrixRef::new(&[0.0; 5], 2, 3, 3);
    }
}
