//! Rows of activations as blocks of signed bytes, rounded once for a product with packed weights.

use rayon::prelude::*;

use crate::targets::cpu::ByteProducts;
use crate::targets::flex::lanes;
use crate::targets::flex::memory::{self, Lent};

/// Values below which another thread is not worth waking.
const PARALLEL_VALUES: usize = 1 << 16;
/// Adding it rounds to the nearest integer, whose low bits are then those of the sum: no conversion that SSE2 lacks.
const ROUND: f32 = 12_582_912.0;
/// All bits of an f32 but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Rows in blocks of as many values as those of the weights: `scale · n`, `n` from −127 to 127, so that the largest magnitude of a block is
/// exact. The same on every processor. Where a value is not finite the scale is not either, so that its row's products are not.
pub(super) struct Activations {
    /// Everything below, one after another: integers, and then for each block of each row what the accessors give.
    memory: Lent,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) block: usize,
}

impl Activations {
    /// Rounds rows of `inputs` values for weights in such blocks with this zero.
    pub(super) fn round(set: ByteProducts, x: &[f32], inputs: usize, block: usize, zero: f32) -> Self {
        match block {
            16 => Self::of::<16>(set, x, inputs, zero as i32),
            32 => Self::of::<32>(set, x, inputs, zero as i32),
            64 => Self::of::<64>(set, x, inputs, zero as i32),
            _ => unreachable!("weights in blocks of {block}"),
        }
    }

    fn of<const BLOCK: usize>(set: ByteProducts, x: &[f32], inputs: usize, zero: i32) -> Self {
        assert!(inputs.is_multiple_of(BLOCK) && x.len().is_multiple_of(inputs));
        let (rows, blocks) = (x.len() / inputs, x.len() / BLOCK);
        let mut memory = memory::scratch(x.len() / 4 + 3 * blocks);
        let (integers, rest) = memory.split_at_mut(x.len() / 4);
        let (scales, rest) = rest.split_at_mut(blocks);
        let (sums, corrections) = rest.split_at_mut(blocks);
        let (integers, corrections) = (bytemuck::cast_slice_mut(integers), bytemuck::cast_slice_mut(corrections));
        let per_row = inputs / BLOCK;
        let row = |((((x, integers), scales), sums), corrections): OfRow| {
            match set {
                // SAFETY: the instruction set is there.
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx512Vnni => unsafe {
                    x86::round_row_avx512::<BLOCK>(x, zero, integers, scales, sums, corrections);
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                ByteProducts::AvxVnni | ByteProducts::Avx2 => unsafe {
                    x86::round_row_avx2::<BLOCK>(x, zero, integers, scales, sums, corrections);
                },
                _ => lanes::vectorised(
                    #[inline(always)]
                    |_| {
                        let round = round_block::<BLOCK>;
                        round_row(round, x, zero, &mut *integers, &mut *scales, &mut *sums, &mut *corrections);
                    },
                ),
            }
        };
        if x.len() < PARALLEL_VALUES {
            let to = integers.chunks_exact_mut(inputs).zip(scales.chunks_exact_mut(per_row));
            let to = x.chunks_exact(inputs).zip(to).map(|(x, (integers, scales))| ((x, integers), scales));
            to.zip(sums.chunks_exact_mut(per_row)).zip(corrections.chunks_exact_mut(per_row)).for_each(row);
        } else {
            let to = x.par_chunks_exact(inputs).zip(integers.par_chunks_exact_mut(inputs));
            let to = to.zip(scales.par_chunks_exact_mut(per_row)).zip(sums.par_chunks_exact_mut(per_row));
            to.zip(corrections.par_chunks_exact_mut(per_row)).for_each(row);
        }
        Self { memory, rows, inputs, block: BLOCK }
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.inputs / self.block
    }

    /// The integers, row by row.
    pub(super) fn integers(&self) -> &[i8] {
        bytemuck::cast_slice(&self.memory[..self.rows * self.inputs / 4])
    }

    /// The scale of each block.
    pub(super) fn scales(&self) -> &[f32] {
        self.per_block(0)
    }

    /// The sum of the values of each block.
    pub(super) fn sums(&self) -> &[f32] {
        self.per_block(1)
    }

    /// What is to be added to a block's product with unsigned integers to make it that with signed ones: `−zero · Σ n`.
    pub(super) fn corrections(&self) -> &[i32] {
        bytemuck::cast_slice(self.per_block(2))
    }

    fn per_block(&self, which: usize) -> &[f32] {
        let (start, count) = (self.rows * self.inputs / 4, self.rows * self.blocks());
        &self.memory[start + which * count..][..count]
    }
}

/// A row, and where its integers, scales, sums and corrections go.
type OfRow<'a> = ((((&'a [f32], &'a mut [i8]), &'a mut [f32]), &'a mut [f32]), &'a mut [i32]);

/// Rounds each block of a row by `round`, which gives the largest magnitude and the sum of the integers.
#[inline(always)]
fn round_row<const BLOCK: usize>(
    round: impl Fn(&[f32; BLOCK], &mut [i8; BLOCK]) -> (f32, i32),
    x: &[f32],
    zero: i32,
    integers: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
    corrections: &mut [i32],
) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(integers.as_chunks_mut::<BLOCK>().0);
    for ((x, integers), ((scale, total), correction)) in blocks.zip(scales.iter_mut().zip(sums).zip(corrections)) {
        let (largest, sum) = round(x, integers);
        *scale = largest / 127.0;
        *total = *scale * sum as f32;
        *correction = (-zero).wrapping_mul(sum);
    }
}

/// What a value is multiplied by. Without a normal scale a block is zeros: too small for one, or spoiled by its scale.
#[inline(always)]
fn inverse(largest: f32) -> f32 {
    if (largest / 127.0).is_normal() { 127.0 / largest } else { 0.0 }
}

#[inline(always)]
fn round_block<const BLOCK: usize>(x: &[f32; BLOCK], integers: &mut [i8; BLOCK]) -> (f32, i32) {
    // The bits of magnitudes are in the order of the magnitudes, infinity and NaN the largest.
    let largest = x.iter().fold(0i32, |most, value| most.max((value.to_bits() & MAGNITUDE) as i32));
    let largest = f32::from_bits(largest as u32);
    let inverse = inverse(largest);
    let shifted = x.map(|value| (value * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32);
    *integers = shifted.map(|integer| integer as i8);
    // What is no number has no integer, and no sum either.
    (largest, shifted.iter().fold(0, |sum: i32, integer| sum.wrapping_add(*integer)))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{MAGNITUDE, ROUND, inverse};

    /// As [`round_row`](super::round_row) with [`round_block`](super::round_block), to the same bits: the compiler takes that block by block
    /// for too short to be worth vectors.
    macro_rules! round_row {
        ($name:ident, $block:ident, $features:literal) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name<const BLOCK: usize>(
                x: &[f32],
                zero: i32,
                integers: &mut [i8],
                scales: &mut [f32],
                sums: &mut [f32],
                corrections: &mut [i32],
            ) {
                super::round_row(
                    #[inline(always)]
                    |x: &[f32; BLOCK], integers: &mut [i8; BLOCK]| $block(x, integers),
                    x,
                    zero,
                    integers,
                    scales,
                    sums,
                    corrections,
                );
            }
        };
    }
    round_row!(round_row_avx512, round_block_avx512, "avx512f");
    round_row!(round_row_avx2, round_block_avx2, "avx2");

    #[inline]
    #[target_feature(enable = "avx2")]
    fn round_block_avx2<const BLOCK: usize>(x: &[f32; BLOCK], integers: &mut [i8; BLOCK]) -> (f32, i32) {
        let (x, to) = (x.as_chunks::<8>().0, integers.as_chunks_mut::<16>().0);
        let magnitude = _mm256_set1_epi32(MAGNITUDE as i32);
        let mut most = _mm256_setzero_si256();
        for x in x {
            // SAFETY: eight values.
            let bits = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
            most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
        }
        let largest = f32::from_bits(lanes(most).into_iter().fold(0, i32::max) as u32);
        let (inverse, round) = (_mm256_set1_ps(inverse(largest)), _mm256_set1_ps(ROUND));
        let mut sum = _mm256_setzero_si256();
        for (x, to) in x.as_chunks::<2>().0.iter().zip(to) {
            let [low, high] = x.each_ref().map(|x| {
                // SAFETY: eight values.
                let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
                let shifted = _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(x, inverse), round));
                _mm256_sub_epi32(shifted, _mm256_castps_si256(round))
            });
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(low, high));
            // The lowest byte of each; packing leaves the halves of either register apart.
            let byte = _mm256_set1_epi32(255);
            let words = _mm256_packus_epi32(_mm256_and_si256(low, byte), _mm256_and_si256(high, byte));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), order);
            // SAFETY: sixteen bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(bytes)) };
        }
        (largest, lanes(sum).into_iter().fold(0, i32::wrapping_add))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn lanes(register: __m256i) -> [i32; 8] {
        let mut lanes = [0; 8];
        // SAFETY: eight values.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), register) };
        lanes
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn round_block_avx512<const BLOCK: usize>(x: &[f32; BLOCK], integers: &mut [i8; BLOCK]) -> (f32, i32) {
        let (x, to) = (x.as_chunks::<16>().0, integers.as_chunks_mut::<16>().0);
        let magnitude = _mm512_set1_epi32(MAGNITUDE as i32);
        let mut most = _mm512_setzero_si512();
        for x in x {
            // SAFETY: sixteen values.
            let bits = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(most) as u32);
        let (inverse, round) = (_mm512_set1_ps(inverse(largest)), _mm512_set1_ps(ROUND));
        let mut sum = _mm512_setzero_si512();
        for (x, to) in x.iter().zip(to) {
            // SAFETY, of both: sixteen values.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
            let shifted = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(x, inverse), round));
            let rounded = _mm512_sub_epi32(shifted, _mm512_castps_si512(round));
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(rounded)) };
            sum = _mm512_add_epi32(sum, rounded);
        }
        (largest, _mm512_reduce_add_epi32(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Format;

    #[test]
    fn values_are_rounded_to_the_nearest_of_their_block() {
        for &block in Format::Q8.blocks() {
            for rows in [1, 3, 2100] {
                let x: Vec<f32> = (0..rows * 64).map(|i| ((i * 7919) % 2003) as f32 / 91.0 - 11.0).collect();
                let all = ByteProducts::available().into_iter();
                let mut all = all.map(|set| Activations::round(set, &x, 64, block, 128.0));
                let rounded = all.next().unwrap();
                for other in all {
                    let bits = |one: &Activations| one.memory.iter().map(|word| word.to_bits()).collect::<Vec<_>>();
                    assert!(bits(&rounded) == bits(&other), "the same on every processor");
                }
                assert_eq!((rounded.rows, rounded.blocks()), (rows, 64 / block));
                for (at, x) in x.chunks_exact(block).enumerate() {
                    let integers = &rounded.integers()[at * block..(at + 1) * block];
                    let scale = rounded.scales()[at];
                    for (x, integer) in x.iter().zip(integers) {
                        assert!((x - scale * f32::from(*integer)).abs() <= 0.501 * scale);
                    }
                    let sum: i32 = integers.iter().map(|&integer| i32::from(integer)).sum();
                    assert!(integers.iter().any(|integer| integer.unsigned_abs() == 127));
                    assert_eq!((rounded.corrections()[at], rounded.sums()[at]), (-128 * sum, scale * sum as f32));
                }
            }
        }
    }

    #[test]
    fn what_has_no_scale_is_zero_or_no_number() {
        let scale_of = |value: f32| {
            let mut x = vec![0.0; 32];
            x[9] = value;
            let all = ByteProducts::available().into_iter().map(|set| {
                let rounded = Activations::round(set, &x, 32, 32, 8.0);
                (rounded.scales()[0], rounded.integers().iter().any(|&integer| integer != 0))
            });
            let all: Vec<_> = all.collect();
            assert!(all.iter().all(|one| one.1 == all[0].1 && one.0.to_bits() == all[0].0.to_bits()));
            all[0]
        };
        assert_eq!(scale_of(0.0), (0.0, false));
        assert!(!scale_of(1e-40).1 && scale_of(1e-30).1);
        assert!(scale_of(f32::NAN).0.is_nan());
        for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(scale_of(infinite).0, f32::INFINITY);
        }
    }
}
