//! A matrix turned over, in squares as wide as a register.

use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::vector::{Baseline, Vector};

/// Width of a square.
const SQUARE: usize = Baseline::COUNT;

/// `to[column · pitch + row] = from[row · stride + column]`, for so many rows and columns.
///
/// # Panics
/// If a slice does not hold them.
pub(crate) fn transpose(from: &[f32], stride: usize, [rows, columns]: [usize; 2], to: &mut [f32], pitch: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= from.len() && (columns - 1) * pitch + rows <= to.len());
    if rows < SQUARE || columns < SQUARE {
        for row in 0..rows {
            (0..columns).for_each(|column| to[column * pitch + row] = from[row * stride + column]);
        }
        return;
    }
    let beside = columns.div_ceil(SQUARE);
    // The last square may repeat what is in the one before.
    let start = |square: usize, length: usize| (square * SQUARE).min(length - SQUARE);
    // As many squares side by side as a cache line is wide: rows may lie so that the nearest cache holds few of their lines at a time.
    for first in (0..beside).step_by(LINE / SQUARE) {
        for row in (0..rows.div_ceil(SQUARE)).map(|square| start(square, rows)) {
            for column in (first..beside.min(first + LINE / SQUARE)).map(|square| start(square, columns)) {
                // SAFETY: a square that begins here ends inside the matrix, all of which is inside the slices.
                unsafe {
                    let from = from.as_ptr().add(row * stride + column);
                    let square = std::array::from_fn(|at| Baseline::load(from.add(at * stride)));
                    let to = to.as_mut_ptr().add(column * pitch + row);
                    for (at, column) in Baseline::transposed(square).into_iter().enumerate() {
                        column.store(to.add(at * pitch));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_turned_over_and_nothing_beside_it_is_touched() {
        for rows in 0..=9 {
            for columns in 0..=37 {
                let (stride, pitch) = (columns + 3, rows + 2);
                let from: Vec<f32> = (0..rows * stride).map(|at| at as f32).collect();
                let mut to = vec![-1.0; columns * pitch];
                transpose(&from, stride, [rows, columns], &mut to, pitch);
                for (at, value) in to.into_iter().enumerate() {
                    let (column, row) = (at / pitch, at % pitch);
                    let expected = if row < rows { (row * stride + column) as f32 } else { -1.0 };
                    assert_eq!(value, expected, "[{row}, {column}] of [{rows}, {columns}]");
                }
            }
        }
    }
}
