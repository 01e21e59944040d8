//! Operands of AMX's products of bf16: every f32 as the sum of three bf16 that is exactly it. The products of the leading pieces, six of nine, are
//! all that an f32 would keep of the product.
//!
//! What is laid out are blocks of [`SIDE`] rows or columns by [`SIDE`] terms. A block holds the first pieces of all its values, then the second,
//! then the third, each in two registers of sixteen lines. Of the left operand a line is a row, of the right one two terms of sixteen columns.
//!
//! A sum with an infinite value becomes NaN, as does one with a value within 2⁻⁹ of the largest that there is; pieces below 2⁻¹²⁶ count as zero.
//!
//! Source: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019.

use std::arch::x86_64::*;

use crate::targets::cpu::amx::LINES;
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch;

/// Rows, columns and terms of a block.
pub(super) const SIDE: usize = 2 * LINES;
/// Pieces of a value.
pub(super) const PIECES: usize = 3;
/// Values of f32 that a register takes the room of, the registers of one piece, and a block.
pub(super) const REGISTER: usize = LINES * LINES;
pub(super) const PIECE: usize = 2 * REGISTER;
pub(super) const BLOCK: usize = PIECES * PIECE;

/// Values of f32 in whose room the pieces of so many terms of a row fit.
pub(super) fn room(terms: usize) -> usize {
    terms.div_ceil(SIDE) * BLOCK / SIDE
}

/// A matrix inside a slice: rows `stride` values apart, of which so many values count.
#[derive(Clone, Copy)]
pub(super) struct Values<'v> {
    pub(super) values: &'v [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Values<'_> {
    fn check(&self, to: &[f32], blocks: usize) {
        let Self { values, stride, rows, columns } = *self;
        assert!(rows > 0 && columns > 0 && (rows - 1) * stride + columns <= values.len());
        assert!(to.len() == blocks * BLOCK);
    }

    /// Two registers of a row's values from a column on, zeros where they lie beyond the end.
    ///
    /// # Safety
    /// The matrix was [checked](Self::check).
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn two(&self, row: usize, column: usize) -> [__m512; 2] {
        if row >= self.rows {
            return [_mm512_setzero_ps(); 2];
        }
        let left = self.columns - column.min(self.columns);
        // SAFETY: only what is in the row is read.
        unsafe {
            let at = self.values.as_ptr().wrapping_add(row * self.stride + column);
            if left >= SIDE {
                return [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(LINES))];
            }
            let masks = [left.min(LINES), left.saturating_sub(LINES)].map(|count| ((1u32 << count) - 1) as u16);
            [_mm512_maskz_loadu_ps(masks[0], at), _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LINES))]
        }
    }
}

/// Which sixteen bits of two registers go where: all upper ones one after another, or in turns.
const IN_ORDER: [i16; 32] = order(false);
const IN_TURNS: [i16; 32] = order(true);

const fn order(turns: bool) -> [i16; 32] {
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = if turns { (at / 2 * 2 + 1 + at % 2 * 32) as i16 } else { (2 * at + 1) as i16 };
        at += 1;
    }
    order
}

/// The three pieces of two registers, in a register each. The first is rounded, so that the second is as often of the other sign as not; what
/// the second leaves has eight bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pieces(values: [__m512; 2], order: __m512i) -> [__m512i; PIECES] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let half = _mm512_set1_epi32(0x8000);
    let rounded = values.map(|value| _mm512_add_epi32(_mm512_castps_si512(value), half));
    let rest = |value, piece| _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_and_si512(piece, upper)));
    let second = [rest(values[0], rounded[0]), rest(values[1], rounded[1])];
    let third = second.map(|value| rest(value, _mm512_castps_si512(value)));
    let bits = |pair: [__m512; 2]| pair.map(|value| _mm512_castps_si512(value));
    [rounded, bits(second), bits(third)].map(|[first, second]| _mm512_permutex2var_epi16(first, order, second))
}

/// A line of each piece, in the half of the block that it belongs to.
///
/// # Safety
/// The block can be written, and the line is one of [`SIDE`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(lines: [__m512i; PIECES], block: *mut f32, line: usize) {
    for (piece, values) in lines.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(block.add(piece * PIECE + line * LINES).cast(), values) };
    }
}

/// Up to [`SIDE`] rows as blocks of the left operand, one for each [`SIDE`] of their values.
///
/// # Panics
/// If `to` is not as long as they are.
pub(super) fn left(from: Values, to: &mut [f32]) {
    from.check(to, from.columns.div_ceil(SIDE));
    assert!(from.rows <= SIDE);
    // SAFETY: pieces are only made where AMX was found, which implies these instructions; the lengths were checked.
    unsafe { left_avx512(from, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn left_avx512(from: Values, to: &mut [f32]) {
    /// Rows that are taken together: few enough for the processor to foresee what is read of each, and enough for the next ones to arrive
    /// meanwhile.
    const TOGETHER: usize = 8;
    // SAFETY: as many values as a register holds.
    let order = unsafe { _mm512_loadu_si512(IN_ORDER.as_ptr().cast()) };
    for first in (0..SIDE).step_by(TOGETHER) {
        for (block, to) in to.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            for row in first..first + TOGETHER {
                let next = from.values.as_ptr().wrapping_add((row + TOGETHER) * from.stride + block * SIDE);
                prefetch(next);
                prefetch(next.wrapping_add(LINE));
                // SAFETY: it was checked; a line of a block.
                unsafe { store(pieces(from.two(row, block * SIDE), order), to.as_mut_ptr(), row) };
            }
        }
    }
}

/// Up to [`SIDE`] columns as blocks of the right operand, one for each [`SIDE`] rows: terms.
///
/// # Panics
/// If `to` is not as long as they are.
pub(super) fn right(from: Values, to: &mut [f32]) {
    from.check(to, from.rows.div_ceil(SIDE));
    assert!(from.columns <= SIDE);
    // SAFETY: as for `left`.
    unsafe { right_avx512(from, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn right_avx512(from: Values, to: &mut [f32]) {
    // SAFETY: as many values as a register holds.
    let order = unsafe { _mm512_loadu_si512(IN_TURNS.as_ptr().cast()) };
    for (block, to) in to.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        for pair in 0..LINES {
            let row = block * SIDE + 2 * pair;
            // SAFETY: it was checked; lines of a block.
            unsafe {
                let [even, odd] = [from.two(row, 0), from.two(row + 1, 0)];
                for half in 0..2 {
                    store(pieces([even[half], odd[half]], order), to.as_mut_ptr(), half * LINES + pair);
                }
            }
        }
    }
}

/// Up to [`SIDE`] rows, which are the columns of the right operand: one block for each [`SIDE`] of their values.
///
/// # Panics
/// If `to` is not as long as they are.
pub(super) fn right_transposed(from: Values, to: &mut [f32]) {
    left(from, to);
    for register in to.as_chunks_mut::<REGISTER>().0 {
        // SAFETY: as for `left`.
        unsafe { turn_over(register) };
    }
}

/// Sixteen lines of sixteen pairs of pieces, turned over in place.
#[target_feature(enable = "avx512f")]
fn turn_over(register: &mut [f32; REGISTER]) {
    /// Lines `distance` apart exchange what lies across, in units of so many values.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exchange(lines: &mut [__m512i; LINES], distance: usize, [first, second]: [__m512i; 2]) {
        for pair in 0..LINES / 2 {
            let low = pair / distance * 2 * distance + pair % distance;
            let (a, b) = (lines[low], lines[low + distance]);
            lines[low] = _mm512_permutex2var_epi32(a, first, b);
            lines[low + distance] = _mm512_permutex2var_epi32(a, second, b);
        }
    }
    // SAFETY: as many values as registers hold.
    unsafe {
        let mut lines: [__m512i; LINES] =
            std::array::from_fn(|line| _mm512_loadu_si512(register.as_ptr().add(line * LINES).cast()));
        for (distance, orders) in EXCHANGES {
            exchange(&mut lines, distance, orders.map(|order| _mm512_loadu_si512(order.as_ptr().cast())));
        }
        for (line, values) in lines.into_iter().enumerate() {
            _mm512_storeu_si512(register.as_mut_ptr().add(line * LINES).cast(), values);
        }
    }
}

/// For each distance what the first line and the second of a pair become; 16 and more are of the second.
const EXCHANGES: [(usize, [[i32; LINES]; 2]); 4] = [exchange(8), exchange(4), exchange(2), exchange(1)];

const fn exchange(distance: usize) -> (usize, [[i32; LINES]; 2]) {
    let mut orders = [[0; LINES]; 2];
    let mut at = 0;
    while at < LINES {
        let own = at & distance == 0;
        orders[0][at] = if own { at } else { at - distance + LINES } as i32;
        orders[1][at] = if own { at + distance } else { at + LINES } as i32;
        at += 1;
    }
    (distance, orders)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// The value of a piece: of its `line`, and of the sixteen bits at `at` there.
    fn piece(to: &[f32], block: usize, piece: usize, line: usize, at: usize) -> f32 {
        let values: &[bf16] = bytemuck::cast_slice(to);
        values[2 * (block * BLOCK + piece * PIECE + line * LINES) + at].to_f32()
    }

    fn whole(to: &[f32], block: usize, line: usize, at: usize) -> f32 {
        let [first, second, third] = [0, 1, 2].map(|number| piece(to, block, number, line, at));
        assert!(second.abs() <= first.abs() / 128.0 && third.abs() <= second.abs() / 64.0, "{first} {second} {third}");
        first + (second + third)
    }

    #[test]
    fn the_sum_of_the_pieces_is_the_value() {
        // AMX implies what lays them out, which more processors have.
        if !is_x86_feature_detected!("avx512bw") {
            return;
        }
        let value = |at: usize| {
            f32::from_bits(0x3f00_0000 + (at as u32).wrapping_mul(0x0012_3457) % 0x0080_0000)
                * if at.is_multiple_of(3) { -1.0 } else { 1.0 }
        };
        for [rows, columns] in [[32, 64], [1, 1], [7, 33], [31, 50], [32, 17]] {
            let stride = columns + 3;
            let values: Vec<f32> = (0..rows * stride).map(value).collect();
            let expected =
                |row, column| if row < rows && column < columns { values[row * stride + column] } else { 0.0 };
            let from = Values { values: &values, stride, rows, columns };
            let blocks = columns.div_ceil(SIDE);
            let mut to = vec![f32::NAN; blocks * BLOCK];
            left(from, &mut to);
            for (row, column) in (0..SIDE).flat_map(|row| (0..blocks * SIDE).map(move |column| (row, column))) {
                assert_eq!(whole(&to, column / SIDE, row, column % SIDE), expected(row, column), "[{row}, {column}]");
            }
            right_transposed(from, &mut to);
            for (row, column) in (0..SIDE).flat_map(|row| (0..blocks * SIDE).map(move |column| (row, column))) {
                let line = row / LINES * LINES + column % SIDE / 2;
                assert_eq!(
                    whole(&to, column / SIDE, line, row % LINES * 2 + column % 2),
                    expected(row, column),
                    "[{row}, {column}]"
                );
            }
            if columns <= SIDE {
                let mut to = vec![f32::NAN; BLOCK];
                right(from, &mut to);
                for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
                    let line = column / LINES * LINES + row / 2;
                    assert_eq!(
                        whole(&to, 0, line, column % LINES * 2 + row % 2),
                        expected(row, column),
                        "[{row}, {column}]"
                    );
                }
            }
        }
    }
}
