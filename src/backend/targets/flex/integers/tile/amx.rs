//! Tiles of AMX: sixteen rows of activations times a panel of weight rows, block by block in one instruction. What a block gives is scaled in
//! AVX-512, in the same order as by the other tiles, so that a row's sums are the same to the last bit.

use std::arch::x86_64::*;

use super::{LANES, LINE, Operands};
use crate::targets::cpu::amx::{LINE_BYTES, LINES, Shape, Tiles, add_products_of_bytes, load, store, zero};

/// Rows of activations of a tile.
pub(in super::super) const ROWS: usize = LINES;

/// The registers for blocks of so many integers: two of sums, two each of activations and of weights.
///
/// # Safety
/// As [`Tiles::begin`].
pub(super) unsafe fn begin(block: usize) -> Tiles {
    let [rows, weights] = [Shape { lines: LINES, bytes: block }, Shape { lines: block / 4, bytes: LINE_BYTES }];
    let sums = Shape::WHOLE;
    // SAFETY: the caller's promise.
    unsafe { Tiles::begin([sums, sums, rows, rows, weights, weights, sums, sums]) }
}

/// The products of a block.
#[repr(C, align(64))]
struct Products([i32; LINES * LANES]);

/// Weights of four bits, a byte each.
#[repr(C, align(64))]
struct Bytes([u8; 8 * LINE]);

/// Sums of [`ROWS`] rows and sixteen weight rows; `sums[row · pitch + o]`.
///
/// # Safety
/// As [`Kernel::tile`](super::Kernel::tile), with registers for these blocks.
#[target_feature(enable = "avx512f,f16c")]
pub(super) unsafe fn tile_amx<const BITS: usize, const STEPS: usize, const ADDED: bool>(
    operands: &Operands,
    (sums, pitch): (*mut f32, usize),
) {
    let mut products = [const { Products([0; LINES * LANES]) }; 2];
    let [first, second] = products.each_mut().map(|products| products.0.as_mut_ptr());
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [_mm512_setzero_ps(); ROWS];
        let mut at = 0;
        while at + 2 <= operands.blocks {
            multiply::<0, 2, 4, BITS, STEPS>(operands, at, first);
            multiply::<1, 3, 5, BITS, STEPS>(operands, at + 1, second);
            scale::<ADDED, BITS>(operands, at, first, &mut totals);
            scale::<ADDED, BITS>(operands, at + 1, second, &mut totals);
            at += 2;
        }
        if at < operands.blocks {
            multiply::<0, 2, 4, BITS, STEPS>(operands, at, first);
            scale::<ADDED, BITS>(operands, at, first, &mut totals);
        }
        for (row, total) in totals.into_iter().enumerate() {
            _mm512_storeu_ps(sums.add(row * pitch), total);
        }
    }
}

/// The products of one block, in memory.
///
/// # Safety
/// As [`tile_amx`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const SUMS: usize, const X: usize, const WEIGHTS: usize, const BITS: usize, const STEPS: usize>(
    operands: &Operands,
    at: usize,
    products: *mut i32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        zero::<SUMS>();
        load::<X, i8>(operands.x.0.add(at * 4 * STEPS), operands.x.1);
        let lines = operands.lines.0.add(at * STEPS * LINE * BITS / 8);
        if BITS == 8 {
            load::<WEIGHTS, u8>(lines, LINE);
        } else {
            let mut bytes = Bytes([0; 8 * LINE]);
            let (low, to) = (_mm512_set1_epi32(0x0f0f_0f0f), bytes.0.as_mut_ptr());
            for line in 0..STEPS / 2 {
                let both = _mm512_loadu_si512(lines.add(line * LINE).cast());
                _mm512_store_si512(to.add(line * LINE).cast(), _mm512_and_si512(both, low));
                let high = _mm512_and_si512(_mm512_srli_epi32::<4>(both), low);
                _mm512_store_si512(to.add((line + STEPS / 2) * LINE).cast(), high);
            }
            load::<WEIGHTS, u8>(to, LINE);
        }
        add_products_of_bytes::<SUMS, X, WEIGHTS>();
        store::<SUMS, i32>(products, LINE_BYTES);
    }
}

/// Adds the products of a block to the totals, with the scales of both sides.
///
/// # Safety
/// As [`tile_amx`].
#[inline]
#[target_feature(enable = "avx512f,f16c")]
unsafe fn scale<const ADDED: bool, const BITS: usize>(
    operands: &Operands,
    at: usize,
    products: *const i32,
    totals: &mut [__m512; ROWS],
) {
    let Operands { scales, offsets, x_scales, x_sums, x_corrections, x_blocks, .. } = *operands;
    // SAFETY: the caller's promise.
    unsafe {
        let weights = _mm512_cvtph_ps(_mm256_loadu_si256(scales.0.add(at * LANES).cast()));
        for (row, total) in totals.iter_mut().enumerate() {
            let of_row = row * x_blocks + at;
            let correction = _mm512_set1_epi32(*x_corrections.add(of_row));
            let sum = _mm512_add_epi32(_mm512_load_si512(products.add(row * LANES).cast()), correction);
            let scale = _mm512_mul_ps(weights, _mm512_set1_ps(*x_scales.add(of_row)));
            *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, *total);
        }
        if let (true, Some(offsets)) = (ADDED, offsets) {
            let offset = _mm512_cvtph_ps(_mm256_loadu_si256(offsets.add(at * LANES).cast()));
            let zero = _mm512_set1_ps(if BITS == 8 { 128.0 } else { 8.0 });
            let added = _mm512_fmadd_ps(zero, weights, offset);
            for (row, total) in totals.iter_mut().enumerate() {
                *total = _mm512_fmadd_ps(added, _mm512_set1_ps(*x_sums.add(row * x_blocks + at)), *total);
            }
        }
    }
}
