//! A matrix turned over, in squares as wide as a register.

use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::vector::Baseline;
#[cfg(target_arch = "x86_64")]
use crate::targets::cpu::vector::F32x8;
use crate::targets::cpu::vector::{Square, Vector};
use crate::targets::flex::dot::InstructionSet;

/// `to[column · pitch + row] = from[row · stride + column]`, for so many rows and columns.
///
/// # Panics
/// If a slice does not hold them.
pub(crate) fn transpose(from: &[f32], stride: usize, [rows, columns]: [usize; 2], to: &mut [f32], pitch: usize) {
    assert!(rows == 0 || columns == 0 || (columns - 1) * pitch + rows <= to.len());
    // SAFETY: so many values can be written.
    unsafe { transpose_to(from, stride, [rows, columns], to.as_mut_ptr(), pitch, None) };
}

/// As [`transpose`], to rows inside a larger matrix, each with `added` to it.
///
/// # Panics
/// If `from` does not hold so many rows and columns, or `added` is not as long as a row of the result.
///
/// # Safety
/// So many values can be written in each row of `to`, and nobody else holds them.
pub(crate) unsafe fn transpose_to(
    from: &[f32],
    stride: usize,
    [rows, columns]: [usize; 2],
    to: *mut f32,
    pitch: usize,
    added: Option<&[f32]>,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * stride + columns <= from.len() && added.is_none_or(|added| added.len() == rows));
    // SAFETY: the caller's promise; `detect` saw the instruction set.
    unsafe {
        match InstructionSet::detect() {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 | InstructionSet::Avx512 | InstructionSet::Amx
                if rows >= F32x8::COUNT && columns >= F32x8::COUNT =>
            {
                in_squares_avx2(from.as_ptr(), stride, [rows, columns], to, pitch, added)
            }
            _ if rows >= Baseline::COUNT && columns >= Baseline::COUNT => {
                in_squares::<Baseline>(from.as_ptr(), stride, [rows, columns], to, pitch, added)
            }
            _ => {
                for row in 0..rows {
                    let added = added.map_or(0.0, |added| added[row]);
                    (0..columns).for_each(|column| *to.add(column * pitch + row) = added + from[row * stride + column]);
                }
            }
        }
    }
}

/// # Safety
/// As [`in_squares`], on a processor with the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn in_squares_avx2(
    from: *const f32,
    stride: usize,
    shape: [usize; 2],
    to: *mut f32,
    pitch: usize,
    added: Option<&[f32]>,
) {
    unsafe { in_squares::<F32x8>(from, stride, shape, to, pitch, added) }
}

/// # Safety
/// So many rows and columns, a square of them at least, can be read and written, and of `added` as many values as there are rows.
#[inline(always)]
unsafe fn in_squares<V: Square>(
    from: *const f32,
    stride: usize,
    [rows, columns]: [usize; 2],
    to: *mut f32,
    pitch: usize,
    added: Option<&[f32]>,
) {
    let side = V::COUNT;
    let beside = columns.div_ceil(side);
    // The last square may repeat what is in the one before.
    let start = |square: usize, length: usize| (square * side).min(length - side);
    // As many squares side by side as a cache line is wide: rows may lie so that the nearest cache holds few of their lines at a time.
    let together = (LINE / side).max(1);
    for first in (0..beside).step_by(together) {
        for row in (0..rows.div_ceil(side)).map(|square| start(square, rows)) {
            // SAFETY: as many values as rows.
            let added = added.map(|added| unsafe { V::load(added.as_ptr().add(row)) });
            for column in (first..beside.min(first + together)).map(|square| start(square, columns)) {
                // SAFETY: a square that begins here ends inside the matrix.
                unsafe {
                    let to = to.add(column * pitch + row);
                    for (at, column) in V::columns(from.add(row * stride + column), stride).into_iter().enumerate() {
                        let column = added.map_or(column, |added| added + column);
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
        for rows in 0..=19 {
            for columns in 0..=37 {
                let (stride, pitch) = (columns + 3, rows + 2);
                let from: Vec<f32> = (0..rows * stride).map(|at| at as f32).collect();
                let mut to = vec![-1.0; columns * pitch];
                transpose(&from, stride, [rows, columns], &mut to, pitch);
                let added: Vec<f32> = (0..rows).map(|row| row as f32 * 0.5).collect();
                let mut moved = to.clone();
                moved.fill(-1.0);
                // SAFETY: as large as the other one.
                unsafe { transpose_to(&from, stride, [rows, columns], moved.as_mut_ptr(), pitch, Some(&added)) };
                for (at, (value, moved)) in to.into_iter().zip(moved).enumerate() {
                    let (column, row) = (at / pitch, at % pitch);
                    let expected = if row < rows { (row * stride + column) as f32 } else { -1.0 };
                    assert_eq!(value, expected, "[{row}, {column}] of [{rows}, {columns}]");
                    assert_eq!(
                        moved,
                        expected + added.get(row).unwrap_or(&0.0),
                        "[{row}, {column}] of [{rows}, {columns}]"
                    );
                }
            }
        }
    }
}
