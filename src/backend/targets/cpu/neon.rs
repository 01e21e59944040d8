//! Instructions of ARM whose intrinsics the compiler offers only to functions compiled for more than they need, or not yet.

use std::arch::aarch64::*;
use std::arch::asm;

/// The values of four f16: `fcvtl`, which every processor of the architecture has.
#[inline(always)]
pub(crate) fn widen(halves: uint16x4_t) -> float32x4_t {
    let values;
    // SAFETY: every processor of the architecture has it.
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", lateout(vreg) values, in(vreg) halves, options(pure, nomem, nostack, preserves_flags))
    };
    values
}

/// To each of four sums, four products of signed bytes of `a` and the four bytes of `b` at `LANE`: `sdot` by element.
///
/// # Safety
/// The processor has `dotprod`, which the function that this is inlined into is compiled for.
#[inline(always)]
pub(crate) unsafe fn dot<const LANE: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    unsafe {
        asm!("sdot {:v}.4s, {:v}.16b, {:v}.4b[{}]", inout(vreg) sums, in(vreg) a, in(vreg) b, const LANE,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}
