//! Intel's matrix instructions (AMX): eight registers of sixteen lines of 64 bytes, and products of two of them added to a third. The standard
//! library has neither names for the instructions nor a test for them yet, so they are written as the assembler has them.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; Linux, `Documentation/arch/x86/xstate.rst`.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Lines of a register, and bytes of a line.
pub(crate) const LINES: usize = 16;
pub(crate) const LINE_BYTES: usize = 64;

/// Whether the processor has them, with the vector instructions that our kernels use beside them, and the system lets this process use them.
pub(crate) fn available() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        // Leaf 7, EDX: AMX-BF16, AMX-TILE.
        const NEEDED: u32 = 1 << 22 | 1 << 24;
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        vectors && __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED && permitted()
    })
}

/// Asks Linux for the registers, which it saves for those processes alone that do.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: grants a right to this process and touches no memory of it.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The registers of this thread, all of them whole. They are put away when it is dropped: as long as they hold something, the system saves
/// 8 KB more whenever it takes the processor away from the thread.
pub(crate) struct Tiles(());

impl Tiles {
    /// # Safety
    /// [`available`] said so, and the thread holds no other.
    pub(crate) unsafe fn begin() -> Self {
        /// Which kind it is, and bytes of a line and lines of each register.
        #[repr(C, align(64))]
        struct Shapes {
            palette: u8,
            start: u8,
            reserved: [u8; 14],
            bytes: [u16; 16],
            lines: [u8; 16],
        }
        let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], lines: [0; 16] };
        shapes.bytes[..8].fill(LINE_BYTES as u16);
        shapes.lines[..8].fill(LINES as u8);
        // SAFETY: reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: nobody else uses them.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Lines from memory to a register, each `pitch` bytes after the one before.
///
/// # Safety
/// [`Tiles`] were begun; its lines can be read.
#[inline(always)]
pub(crate) unsafe fn load<const T: usize>(at: *const f32, pitch: usize) {
    unsafe {
        asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) at, in(reg) pitch, options(nostack, readonly, preserves_flags))
    };
}

/// A register's lines to memory, each `pitch` bytes after the one before.
///
/// # Safety
/// As [`load`]; its lines can be written.
#[inline(always)]
pub(crate) unsafe fn store<const T: usize>(at: *mut f32, pitch: usize) {
    unsafe {
        asm!("tilestored [{} + {}], tmm{}", in(reg) at, in(reg) pitch, const T, options(nostack, preserves_flags))
    };
}

/// Zeros in a register.
///
/// # Safety
/// [`Tiles`] were begun.
#[inline(always)]
pub(crate) unsafe fn zero<const T: usize>() {
    unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem, preserves_flags)) };
}

/// `to[m, n] += Σ left[m, 2k + i] · right[k, 2n + i]` in f32, of bf16. Numbers below 2⁻¹²⁶ count as zero.
///
/// # Safety
/// [`Tiles`] were begun.
#[inline(always)]
pub(crate) unsafe fn add_products<const TO: usize, const LEFT: usize, const RIGHT: usize>() {
    unsafe {
        asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const TO, const LEFT, const RIGHT, options(nostack, nomem, preserves_flags));
    };
}
