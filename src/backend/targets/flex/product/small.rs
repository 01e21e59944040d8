//! Products of matrices that lie in larger ones, on one thread: those of attention, too small for anything to be laid out that can be read
//! where it is.

use std::ops::Range;

use super::kernel::Kernel;
use super::strips::Strip;
use super::tile::Panel;
use super::{aligned, parts};
use crate::targets::cpu::lanes::LINE;
use crate::targets::flex::dot::InstructionSet;
use crate::targets::flex::matrix::{Into, MatrixMut, MatrixRef};
use crate::targets::flex::memory::Lent;
use crate::targets::flex::transpose::transpose;

/// Terms that are taken at a time: so many of a panel stay in the nearest cache while all rows meet them.
const DEPTH: usize = 256;

/// The right side: of each term the columns side by side in whole lines, where they are or copied.
pub(crate) struct Right<'a> {
    kernel: Kernel,
    values: &'a [f32],
    terms: usize,
    /// Of whole lines; those that were added are zeros.
    columns: usize,
    /// From the values of a panel to those of the next.
    step: usize,
    /// From a term's values to those of the next.
    pitch: usize,
}

impl<'a> Right<'a> {
    /// `matrix` where it lies if its rows are whole lines of columns that lie side by side, and else copied into `memory`.
    pub(crate) fn new(matrix: MatrixRef<'a>, memory: &'a mut Lent) -> Self {
        let MatrixRef { data, rows: terms, columns, row_stride, column_stride } = matrix;
        let kernel = Kernel::of_small(InstructionSet::detect(), columns);
        let width = kernel.width;
        if column_stride == 1 && columns.is_multiple_of(LINE) {
            return Self { kernel, values: data, terms, columns, step: width, pitch: row_stride };
        }
        let step = width * terms;
        let values = aligned(memory, columns.div_ceil(width) * step);
        for (panel, lanes) in parts(0..columns, width, width).enumerate() {
            let panel = &mut values[panel * step..][..step];
            let from = &data[lanes.start * column_stride..];
            if lanes.len() < width {
                panel.fill(0.0);
            }
            if column_stride == 1 {
                for (term, to) in panel.chunks_exact_mut(width).enumerate() {
                    to[..lanes.len()].copy_from_slice(&from[term * row_stride..][..lanes.len()]);
                }
            } else {
                assert_eq!(row_stride, 1, "a matrix, or the transpose of one");
                transpose(from, column_stride, [lanes.len(), terms], panel, width);
            }
        }
        Self { kernel, values, terms, columns: columns.next_multiple_of(LINE), step, pitch: width }
    }

    /// The columns that a product must begin at to have this one.
    pub(crate) fn begin(&self, column: usize) -> usize {
        column / self.kernel.width * self.kernel.width
    }

    /// The terms of some columns.
    fn panel(&self, terms: &Range<usize>, columns: &Range<usize>) -> Panel {
        let (width, depth) = (self.kernel.width, terms.len());
        assert!(columns.start.is_multiple_of(width) && columns.len() <= width && columns.end <= self.columns);
        let values = &self.values[columns.start / width * self.step + terms.start * self.pitch..];
        assert!((depth - 1) * self.pitch + columns.len() <= values.len());
        Panel { at: values.as_ptr(), pitch: self.pitch, next: 0, depth }
    }
}

/// `out (+)= left · right`, of which the columns of `right` from `first` on, as many as `out` has.
///
/// # Panics
/// If the shapes do not fit, or [`begin`](Right::begin) says that there is no beginning there.
pub(crate) fn multiply(mut out: MatrixMut, add: bool, left: MatrixRef, right: &Right, first: usize) {
    assert_eq!((left.rows, left.columns), (out.rows, right.terms));
    let (kernel, lanes) = (&right.kernel, first..first + out.columns.next_multiple_of(LINE));
    let (mut strips, mut sums) = (Lent::default(), Lent::default());
    if out.rows * out.columns == 0 {
        return;
    }
    for terms in parts(0..right.terms, DEPTH, 1) {
        let add = add || terms.start > 0;
        let left = Left::new(left.some_columns(terms.clone()), kernel.height, &mut strips);
        for columns in parts(lanes.clone(), kernel.width, kernel.width) {
            let panel = right.panel(&terms, &columns);
            for rows in left.rows(kernel.height) {
                let strip = left.strip(&rows, kernel.height);
                let to = columns.start - first..out.columns.min(columns.end - first);
                // What is laid out has all the sums of a tile.
                let apart = matches!(strip, Strip::Apart { .. });
                let whole = to.len() == columns.len() && (apart || rows.len() == kernel.height);
                let into = if add { Into::Add } else { Into::Overwrite };
                // SAFETY: the strip has these rows, the panel these lanes, and `whole` says whether the output has room for all.
                unsafe { kernel.tile_into(strip, panel, (out.part(rows, to), whole), into, &mut sums) };
            }
        }
    }
}

/// The left side of some terms: row by row where it lies, or in strips that are filled up with zeros.
enum Left<'a> {
    Apart(MatrixRef<'a>),
    Packed { strips: &'a [f32], rows: usize, depth: usize },
}

impl<'a> Left<'a> {
    fn new(matrix: MatrixRef<'a>, height: usize, memory: &'a mut Lent) -> Self {
        let MatrixRef { data, rows, columns: depth, row_stride, column_stride } = matrix;
        if column_stride == 1 {
            return Self::Apart(matrix);
        }
        assert_eq!(row_stride, 1, "a matrix, or the transpose of one");
        let strips = aligned(memory, rows.next_multiple_of(height) * depth);
        for (strip, rows) in strips.chunks_exact_mut(height * depth).zip(parts(0..rows, height, height)) {
            for (term, to) in strip.chunks_exact_mut(height).enumerate() {
                let (to, rest) = to.split_at_mut(rows.len());
                to.copy_from_slice(&data[term * column_stride..][rows.clone()]);
                rest.fill(0.0);
            }
        }
        Self::Packed { strips, rows, depth }
    }

    /// The rows of each strip.
    fn rows(&self, height: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        match self {
            Self::Apart(matrix) => parts(0..matrix.rows, height, 1),
            Self::Packed { rows, .. } => parts(0..*rows, height, height),
        }
    }

    fn strip(&self, rows: &Range<usize>, height: usize) -> Strip<'a> {
        match *self {
            Self::Apart(MatrixRef { data, row_stride: stride, columns: depth, .. }) => {
                let values = &data[rows.start * stride..];
                assert!((1..=height).contains(&rows.len()) && (rows.len() - 1) * stride + depth <= values.len());
                Strip::Apart { values, sums: rows.len(), stride, ahead: 0 }
            }
            Self::Packed { strips, depth, .. } => {
                Strip::Packed { values: &strips[rows.start * depth..][..height * depth], sums: rows.len() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::flex::matrix::tests::check_product;

    #[test]
    fn matrices_inside_larger_ones_give_their_products() {
        let mut memory = Lent::default();
        for (rows, terms, columns) in [(1, 1, 1), (5, 7, 16), (32, 32, 32), (13, 33, 50), (30, 300, 64), (17, 64, 97)] {
            for turned in [[false, false], [true, false], [false, true], [true, true]] {
                for add in [false, true] {
                    check_product([rows, terms, columns], turned, |out, left, right| {
                        multiply(out, add, left, &Right::new(right, &mut memory), 0);
                        add
                    });
                }
            }
        }
    }
}
