//! The CPU, whoever owns the memory: rows of a tensor and vectorised arithmetic on them. The ops' `cpu` modules are written over these.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod functions;
mod instructions;
pub(crate) mod lanes;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod rows;
pub(crate) mod vector;

pub(crate) use instructions::{ByteProducts, InstructionSet};
pub(crate) use rows::{Ahead, HELD, RowTensor, Rows, copied, copy_past_caches, zeros};

/// Asks for a cache line, wherever it is.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no other processor is asked for anything"))]
pub(crate) fn prefetch<T>(at: *const T) {
    // SAFETY: a hint, which reads nothing and cannot fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}

/// As [`prefetch`], to be overwritten: the line comes to be this processor's alone.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no other processor is asked for anything"))]
pub(crate) fn prefetch_to_write<T>(at: *const T) {
    // SAFETY: a hint, which changes nothing and cannot fault; a processor that does not know it does nothing. (What the intrinsic becomes
    // depends on the features that a function is compiled for.)
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at.addr(), options(nomem, nostack, preserves_flags));
    }
}

/// As [`prefetch`], as far as the second cache: for what is needed after the nearest one has held something else.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no other processor is asked for anything"))]
pub(crate) fn prefetch_far<T>(at: *const T) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
}
