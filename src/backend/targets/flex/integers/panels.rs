//! Packed weights laid out for the tiles: sixteen rows side by side, four integers of each at a time, all of them unsigned bytes. Some
//! kilobytes, made anew for each call, which costs little beside the products of a few rows and keeps the weights in memory once.

use std::ops::Range;

use crate::packed::Format;
use crate::targets::cpu::ByteProducts;
use crate::targets::flex::packed::PackedRows;
use crate::targets::flex::weights::Weights;

/// Weight rows of a panel.
pub(super) const LANES: usize = 16;
/// Bytes of a line: four integers of each row.
pub(super) const LINE: usize = 4 * LANES;

/// Four integers of each row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A value for each row of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Values([f32; LANES]);

/// Some columns of some panels.
pub(super) struct Panels {
    block: usize,
    /// Blocks of a row that there is room for.
    room: usize,
    lines: Vec<Line>,
    scales: Vec<Values>,
    added: Vec<Values>,
}

impl Panels {
    /// Room for so many panels of some blocks.
    pub(super) fn new(panels: usize, blocks: usize, block: usize) -> Self {
        Self {
            block,
            room: blocks,
            lines: vec![Line([0; LINE]); panels * blocks * block / 4],
            scales: vec![Values([0.0; LANES]); panels * blocks],
            added: vec![Values([0.0; LANES]); panels * blocks],
        }
    }

    /// Lays out these blocks of every row, [`LANES`] rows in each panel; the last one is filled up with its last row. What lies `ahead`
    /// bytes after the integers is asked for from memory.
    pub(super) fn fill(&mut self, set: ByteProducts, rows: PackedRows, blocks: Range<usize>, ahead: usize) {
        assert!(blocks.len() <= self.room && rows.view().block == self.block);
        let lines_of_block = self.block / 4;
        for (panel, first) in (0..rows.outputs()).step_by(LANES).enumerate() {
            let rows = rows.rows(first..rows.outputs().min(first + LANES));
            let at = panel * self.room..panel * self.room + blocks.len();
            let lines = &mut self.lines[at.start * lines_of_block..at.end * lines_of_block];
            let (scales, added) = (&mut self.scales[at.clone()], &mut self.added[at]);
            match set {
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx512Vnni if self.block == 32 => {
                    // SAFETY: the instruction set is there, and the lengths are those of the blocks.
                    unsafe { x86::fill(rows, blocks.clone(), lines, scales, ahead) };
                    if rows.view().offsets.is_some() {
                        fill_scales(rows, blocks.clone(), scales, added);
                    }
                }
                _ => {
                    let _ = ahead;
                    fill_lines(rows, blocks.clone(), lines);
                    fill_scales(rows, blocks.clone(), scales, added);
                }
            }
        }
    }

    /// The first line of the first panel; the next panel is so many bytes after it.
    pub(super) fn lines(&self) -> (*const u8, usize) {
        (self.lines.as_ptr().cast(), self.room * self.block * LANES)
    }

    /// The scales of the first block of the first panel; the next panel is so many values after it.
    pub(super) fn scales(&self) -> (*const f32, usize) {
        (self.scales.as_ptr().cast(), self.room * LANES)
    }

    /// What is added to `scale · signed integer`, as [`scales`](Self::scales).
    pub(super) fn added(&self) -> *const f32 {
        self.added.as_ptr().cast()
    }
}

fn fill_lines(rows: PackedRows, blocks: Range<usize>, lines: &mut [Line]) {
    let view = rows.view();
    let bytes = view.block_bytes();
    for lane in 0..LANES {
        let first = lane.min(rows.outputs() - 1) * rows.blocks();
        let integers = &view.integers[(first + blocks.start) * bytes..(first + blocks.end) * bytes];
        for (lines, integers) in lines.chunks_exact_mut(view.block / 4).zip(integers.chunks_exact(bytes)) {
            let (low, high) = lines.split_at_mut(view.block / 8);
            let fours = integers.as_chunks::<4>().0;
            match view.format {
                Format::Q8 => {
                    for (line, four) in low.iter_mut().chain(high).zip(fours) {
                        line.0[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|integer| integer ^ 0x80));
                    }
                }
                Format::Q4 => {
                    for ((low, high), four) in low.iter_mut().zip(high).zip(fours) {
                        low.0[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|pair| pair & 15));
                        high.0[4 * lane..4 * lane + 4].copy_from_slice(&four.map(|pair| pair >> 4));
                    }
                }
            }
        }
    }
}

fn fill_scales(rows: PackedRows, blocks: Range<usize>, scales: &mut [Values], added: &mut [Values]) {
    for lane in 0..LANES {
        let row = lane.min(rows.outputs() - 1);
        rows.rows(row..row + 1).part(blocks.clone()).strips(|first, strip_scales, strip_added| {
            let to = scales[first..].iter_mut().zip(&mut added[first..]);
            for ((scales, added), (scale, add)) in to.zip(strip_scales.iter().zip(strip_added)) {
                (scales.0[lane], added.0[lane]) = (*scale, *add);
            }
        });
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// As [`fill_lines`], with the scales but not what is added, for blocks of 32.
    ///
    /// # Safety
    /// AVX-512F; eight lines and a place for scales for each of the blocks, which every row has.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn fill(
        rows: PackedRows,
        blocks: Range<usize>,
        lines: &mut [Line],
        scales: &mut [Values],
        ahead: usize,
    ) {
        let view = rows.view();
        let bytes = view.block_bytes();
        assert!(lines.len() == 8 * blocks.len() && scales.len() == blocks.len() && view.block == 32);
        let mut starts = [view.integers.as_ptr(); LANES];
        let mut stored = [view.scales.as_ptr().cast::<u8>(); LANES];
        for lane in 0..LANES {
            let first = lane.min(rows.outputs() - 1) * rows.blocks() + blocks.start;
            // SAFETY: within the rows.
            (starts[lane], stored[lane]) =
                unsafe { (starts[lane].add(first * bytes), stored[lane].add(first * size_of::<u16>())) };
        }
        let (low, sign) = (_mm512_set1_epi8(15), _mm512_set1_epi8(-128));
        for (at, lines) in lines.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            if (at * bytes).is_multiple_of(64) {
                for start in starts {
                    _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at * bytes + ahead).cast());
                }
            }
            // SAFETY: each row has so many blocks, and a line is a whole vector, aligned.
            unsafe {
                match view.format {
                    Format::Q8 => {
                        for (line, four) in lines.iter_mut().zip(transposed8(&starts, at * bytes)) {
                            _mm512_store_si512(line.0.as_mut_ptr().cast(), _mm512_xor_si512(four, sign));
                        }
                    }
                    Format::Q4 => {
                        for (line, pairs) in transposed4(&starts, at * bytes).into_iter().enumerate() {
                            let high = _mm512_srli_epi32::<4>(pairs);
                            let to = [lines[line].0.as_mut_ptr(), lines[line + 4].0.as_mut_ptr()];
                            _mm512_store_si512(to[0].cast(), _mm512_and_si512(pairs, low));
                            _mm512_store_si512(to[1].cast(), _mm512_and_si512(high, low));
                        }
                    }
                }
            }
        }
        for (at, scales) in scales.chunks_mut(16).enumerate() {
            let mut parts = [[0u8; 32]; LANES];
            let (mut pointers, mut offset) = (stored, 32 * at);
            if scales.len() < 16 {
                // What follows the last scales is not theirs, and may not be there.
                for (lane, part) in parts.iter_mut().enumerate() {
                    // SAFETY: so many scales are left of the row.
                    unsafe {
                        std::ptr::copy_nonoverlapping(stored[lane].add(offset), part.as_mut_ptr(), 2 * scales.len());
                    }
                    pointers[lane] = part.as_ptr();
                }
                offset = 0;
            }
            // SAFETY: sixteen scales from each pointer on; a place is a whole vector, aligned.
            unsafe {
                for (two, pairs) in scales.chunks_mut(2).zip(transposed8(&pointers, offset)) {
                    let first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
                    _mm512_store_ps(two[0].0.as_mut_ptr(), first);
                    if let [_, second] = two {
                        let pairs = _mm512_srli_epi32::<16>(pairs);
                        _mm512_store_ps(second.0.as_mut_ptr(), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)));
                    }
                }
            }
        }
    }

    /// Of 32 bytes of each row, vector by vector four of each.
    ///
    /// # Safety
    /// AVX-512F; 32 bytes from each start on, moved by `offset`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn transposed8(starts: &[*const u8; LANES], offset: usize) -> [__m512i; 8] {
        let mut quads = [[_mm512_setzero_si512(); 4]; 2];
        for (quad, vectors) in quads.iter_mut().enumerate() {
            for (row, vector) in vectors.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let [one, other] =
                    unsafe { [0, 4].map(|more| _mm256_loadu_si256(starts[8 * quad + row + more].add(offset).cast())) };
                *vector = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(one), other);
            }
        }
        let [low, high] = quads.map(|quad| transposed_quads(quad));
        let mut out = [_mm512_setzero_si512(); 8];
        for at in 0..4 {
            // The even quarters, and the odd ones.
            out[at] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low[at], high[at]);
            out[at + 4] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low[at], high[at]);
        }
        out
    }

    /// Of 16 bytes of each row, vector by vector four of each.
    ///
    /// # Safety
    /// AVX-512F; 16 bytes from each start on, moved by `offset`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn transposed4(starts: &[*const u8; LANES], offset: usize) -> [__m512i; 4] {
        let mut vectors = [_mm512_setzero_si512(); 4];
        for (row, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let parts = unsafe { [0, 4, 8, 12].map(|more| _mm_loadu_si128(starts[row + more].add(offset).cast())) };
            *vector = _mm512_castsi128_si512(parts[0]);
            *vector = _mm512_inserti32x4::<1>(*vector, parts[1]);
            *vector = _mm512_inserti32x4::<2>(*vector, parts[2]);
            *vector = _mm512_inserti32x4::<3>(*vector, parts[3]);
        }
        transposed_quads(vectors)
    }

    /// In each quarter, four rows of four words become four columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed_quads([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        let [low, high] = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
        let [low2, high2] = [_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d)];
        [
            _mm512_unpacklo_epi64(low, low2),
            _mm512_unpackhi_epi64(low, low2),
            _mm512_unpacklo_epi64(high, high2),
            _mm512_unpackhi_epi64(high, high2),
        ]
    }
}
