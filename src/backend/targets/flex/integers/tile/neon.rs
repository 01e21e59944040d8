//! Tiles of ARM's dot products: four products of signed bytes for each of four sums, by one instruction.
#![expect(clippy::needless_range_loop, reason = "a number of a register picks from several arrays of them at once")]

use std::arch::aarch64::*;

use super::{LINE, Lanes, Operands, f16, tile};
use crate::targets::cpu::neon::{dot, widen};

struct Dot;

impl Lanes for Dot {
    const VECTORS: usize = 4;
    const COUNT: usize = 4;
    type Sums = int32x4_t;
    type Totals = float32x4_t;

    #[inline(always)]
    unsafe fn products<const R: usize, const V: usize, const BITS: usize, const STEPS: usize>(
        lines: (*const u8, usize),
        x: (*const i8, usize),
        corrections: (*const i32, usize),
    ) -> [[int32x4_t; V]; R] {
        unsafe {
            let mut sums = [[vdupq_n_s32(0); V]; R];
            if BITS == 4 {
                for r in 0..R {
                    sums[r] = [vdupq_n_s32(*corrections.0.add(r * corrections.1)); V];
                }
            }
            for four in 0..STEPS / 4 {
                let mut integers = [vdupq_n_s8(0); R];
                for r in 0..R {
                    integers[r] = vld1q_s8(x.0.add(r * x.1 + 16 * four));
                }
                for lane in 0..4 {
                    let step = 4 * four + lane;
                    // Of four bits, a line is the low halves of one step and the high ones of another.
                    let line = if BITS == 8 { step } else { step % (STEPS / 2) };
                    for v in 0..V {
                        let mut weights = vld1q_u8(lines.0.add(v * lines.1 + line * LINE));
                        if BITS == 8 {
                            weights = veorq_u8(weights, vdupq_n_u8(0x80));
                        } else if step < STEPS / 2 {
                            weights = vandq_u8(weights, vdupq_n_u8(15));
                        } else {
                            weights = vshrq_n_u8::<4>(weights);
                        }
                        let weights = vreinterpretq_s8_u8(weights);
                        for r in 0..R {
                            // A constant as soon as the loop is unrolled.
                            sums[r][v] = match lane {
                                0 => dot::<0>(sums[r][v], weights, integers[r]),
                                1 => dot::<1>(sums[r][v], weights, integers[r]),
                                2 => dot::<2>(sums[r][v], weights, integers[r]),
                                _ => dot::<3>(sums[r][v], weights, integers[r]),
                            };
                        }
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn widened(at: *const f16) -> float32x4_t {
        unsafe { widen(vld1_u16(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(at) }
    }
    #[inline(always)]
    unsafe fn store(totals: float32x4_t, at: *mut f32) {
        unsafe { vst1q_f32(at, totals) }
    }
    #[inline(always)]
    unsafe fn sum(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn product(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn plus_product(totals: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(totals, a, b) }
    }
    #[inline(always)]
    unsafe fn as_float(sums: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(sums) }
    }
}

/// # Safety
/// As [`tile`], on a processor with dot products.
#[target_feature(enable = "dotprod")]
pub(super) unsafe fn tile_dot<const R: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
    operands: &Operands,
) {
    unsafe { tile::<Dot, R, { Dot::VECTORS }, BITS, STEPS, ADDED>(operands) }
}
