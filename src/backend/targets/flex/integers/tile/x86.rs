//! Tiles of AVX-512 with VNNI, of AVX-VNNI and of AVX2.
#![expect(clippy::needless_range_loop, reason = "a number of a register picks from several arrays of them at once")]

use std::arch::x86_64::*;

use super::{LINE, Lanes, Operands, f16, tile};

/// The float side, and the tile, of a vector width.
macro_rules! lanes {
    ($lanes:ident, $count:literal, $name:ident, $features:literal, ($integers:ty, $floats:ty),
     ([$splat:ident $load:ident $store:ident], [$load_halves:ident $widen:ident $convert:ident],
      [$add:ident $mul:ident $fma:ident]), $products:item) => {
        struct $lanes;

        impl Lanes for $lanes {
            const VECTORS: usize = 2;
            const COUNT: usize = $count;
            type Sums = $integers;
            type Totals = $floats;

            #[inline(always)]
            $products
            #[inline(always)]
            unsafe fn splat(value: f32) -> $floats {
                unsafe { $splat(value) }
            }
            #[inline(always)]
            unsafe fn load(at: *const f32) -> $floats {
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn widened(at: *const f16) -> $floats {
                unsafe { $widen($load_halves(at.cast())) }
            }
            #[inline(always)]
            unsafe fn store(totals: $floats, at: *mut f32) {
                unsafe { $store(at, totals) }
            }
            #[inline(always)]
            unsafe fn sum(a: $floats, b: $floats) -> $floats {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn product(a: $floats, b: $floats) -> $floats {
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn plus_product(totals: $floats, a: $floats, b: $floats) -> $floats {
                unsafe { $fma(a, b, totals) }
            }
            #[inline(always)]
            unsafe fn as_float(sums: $integers) -> $floats {
                unsafe { $convert(sums) }
            }
        }

        /// # Safety
        /// As [`tile`], on a processor with these features.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const R: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
            operands: &Operands,
        ) {
            unsafe { tile::<$lanes, R, { $lanes::VECTORS }, BITS, STEPS, ADDED>(operands) }
        }
    };
}

/// Four products of unsigned and signed bytes added to each sum by one instruction.
macro_rules! four_at_once {
    ($lanes:ident, $count:literal, $name:ident, $features:literal, ($integers:ty, $floats:ty), $floating:tt,
     [$splat:ident $load:ident $dot:ident $and:ident $shift:ident]) => {
        lanes!(
            $lanes,
            $count,
            $name,
            $features,
            ($integers, $floats),
            $floating,
            unsafe fn products<const R: usize, const V: usize, const BITS: usize, const STEPS: usize>(
                lines: (*const u8, usize),
                x: (*const i8, usize),
                corrections: (*const i32, usize),
            ) -> [[$integers; V]; R] {
                unsafe {
                    let mut sums = [[$splat(0); V]; R];
                    for r in 0..R {
                        sums[r] = [$splat(*corrections.0.add(r * corrections.1)); V];
                    }
                    for line in 0..STEPS * BITS / 8 {
                        // Of four bits, the low halves are of the first half of the block, the high ones of the second.
                        let mut halves = [[$splat(0); V]; 2];
                        for v in 0..V {
                            halves[0][v] = $load(lines.0.add(v * lines.1 + line * LINE).cast());
                            if BITS == 4 {
                                halves[1][v] = $and($shift::<4>(halves[0][v]), $splat(0x0f0f_0f0f));
                                halves[0][v] = $and(halves[0][v], $splat(0x0f0f_0f0f));
                            }
                        }
                        for half in 0..8 / BITS {
                            let step = line + half * STEPS / 2;
                            for r in 0..R {
                                let x = $splat(x.0.add(r * x.1 + 4 * step).cast::<i32>().read_unaligned());
                                for v in 0..V {
                                    sums[r][v] = $dot(sums[r][v], halves[half][v], x);
                                }
                            }
                        }
                    }
                    sums
                }
            }
        );
    };
}

four_at_once!(
    Avx512Vnni, 16, tile_avx512, "avx512f,avx512vnni", (__m512i, __m512),
    ([_mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps], [_mm256_loadu_si256 _mm512_cvtph_ps _mm512_cvtepi32_ps],
     [_mm512_add_ps _mm512_mul_ps _mm512_fmadd_ps]),
    [_mm512_set1_epi32 _mm512_loadu_si512 _mm512_dpbusd_epi32 _mm512_and_si512 _mm512_srli_epi32]
);
four_at_once!(
    AvxVnni, 8, tile_avx_vnni, "avx2,fma,f16c,avxvnni", (__m256i, __m256),
    ([_mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps], [_mm_loadu_si128 _mm256_cvtph_ps _mm256_cvtepi32_ps],
     [_mm256_add_ps _mm256_mul_ps _mm256_fmadd_ps]),
    [_mm256_set1_epi32 _mm256_loadu_si256 _mm256_dpbusd_avx_epi32 _mm256_and_si256 _mm256_srli_epi32]
);
lanes!(
    Avx2, 8, tile_avx2, "avx2,fma,f16c", (__m256i, __m256),
    ([_mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps], [_mm_loadu_si128 _mm256_cvtph_ps _mm256_cvtepi32_ps],
     [_mm256_add_ps _mm256_mul_ps _mm256_fmadd_ps]),
    unsafe fn products<const R: usize, const V: usize, const BITS: usize, const STEPS: usize>(
        lines: (*const u8, usize),
        x: (*const i8, usize),
        corrections: (*const i32, usize),
    ) -> [[__m256i; V]; R] {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sums = [[_mm256_setzero_si256(); V]; R];
            for step in 0..STEPS {
                let mut weights = [_mm256_setzero_si256(); V];
                // Of four bits, a line is the low halves of one step and the high ones of another.
                let line = if BITS == 8 { step } else { step % (STEPS / 2) };
                for v in 0..V {
                    weights[v] = _mm256_loadu_si256(lines.0.add(v * lines.1 + line * LINE).cast());
                    if BITS == 8 {
                        weights[v] = _mm256_xor_si256(weights[v], _mm256_set1_epi8(-128));
                    } else {
                        if step >= STEPS / 2 {
                            weights[v] = _mm256_srli_epi32::<4>(weights[v]);
                        }
                        weights[v] = _mm256_and_si256(weights[v], _mm256_set1_epi8(15));
                    }
                }
                for r in 0..R {
                    let x = _mm256_set1_epi32(x.0.add(r * x.1 + 4 * step).cast::<i32>().read_unaligned());
                    for v in 0..V {
                        // Sixteen bits hold two products of eight bits only where both are signed: 2 · 128 · 127. (Unsigned
                        // weights would reach 2 · 255 · 127.) The sign goes to the other factor, since one must be unsigned.
                        if BITS == 8 {
                            let signed = _mm256_sign_epi8(x, weights[v]);
                            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[v]), signed);
                            sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(pairs, ones));
                        } else {
                            // And sixteen products of four bits: 16 · 15 · 127.
                            let pairs = _mm256_maddubs_epi16(weights[v], x);
                            sums[r][v] = _mm256_add_epi16(sums[r][v], pairs);
                        }
                    }
                }
            }
            if BITS == 4 {
                for r in 0..R {
                    let correction = _mm256_set1_epi32(*corrections.0.add(r * corrections.1));
                    for v in 0..V {
                        sums[r][v] = _mm256_add_epi32(_mm256_madd_epi16(sums[r][v], ones), correction);
                    }
                }
            }
            sums
        }
    }
);
