//! Tiles of the product: some rows of activations times some weight rows side by side, all sums in registers.
#![expect(clippy::needless_range_loop, reason = "a number of a register picks from several arrays of them at once")]

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::packed::Format;
use crate::targets::cpu::ByteProducts;
use crate::targets::flex::packed::{LANES, LINE};

/// The largest tile of any instruction set.
pub(super) const TILE: usize = 6 * 32;

/// What a tile is made of. Weights lie in panels, as [`PackedRows::panel`](crate::targets::flex::packed::PackedRows::panel) says, and are
/// taken in vectors of as many rows as the instruction set multiplies at once.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// The lines of the first vector's rows, and how many bytes later those of the next vector are.
    pub(super) lines: (*const u8, usize),
    /// Their scales, and how many bytes later those of the next vector are.
    pub(super) scales: (*const f16, usize),
    /// Their offsets with the same distance, where there are such.
    pub(super) offsets: Option<*const f16>,
    /// How many bytes after each line another is asked for from memory, if not 0.
    pub(super) ahead: usize,
    /// The integers of the first row of activations, and how many bytes later those of the next are.
    pub(super) x: (*const i8, usize),
    /// Of the same rows' blocks: scales, sums and corrections.
    pub(super) x_scales: *const f32,
    pub(super) x_sums: *const f32,
    pub(super) x_corrections: *const i32,
    /// How many blocks later those of the next row are.
    pub(super) x_blocks: usize,
    /// Blocks to sum over.
    pub(super) blocks: usize,
}

/// The tile of an instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    set: ByteProducts,
    /// Rows of activations.
    pub(super) height: usize,
    /// Weight rows.
    pub(super) width: usize,
    /// Weight rows of a vector.
    pub(super) vector: usize,
}

/// Calls `$tile` with the number of rows, and what kind the blocks are, as constants.
macro_rules! with_constants {
    ($tile:ident $arguments:tt, $height:expr, $kind:expr, [$($count:literal)*]) => {
        match ($height, $kind) {
            $(($count, (Format::Q8, 16, false)) => $tile::<$count, 8, 4, false> $arguments,
            ($count, (Format::Q8, 32, false)) => $tile::<$count, 8, 8, false> $arguments,
            ($count, (Format::Q8, 16, true)) => $tile::<$count, 8, 4, true> $arguments,
            ($count, (Format::Q8, 32, true)) => $tile::<$count, 8, 8, true> $arguments,
            ($count, (Format::Q4, 16, false)) => $tile::<$count, 4, 4, false> $arguments,
            ($count, (Format::Q4, 32, false)) => $tile::<$count, 4, 8, false> $arguments,
            ($count, (Format::Q4, 16, true)) => $tile::<$count, 4, 4, true> $arguments,
            ($count, (Format::Q4, 32, true)) => $tile::<$count, 4, 8, true> $arguments,)*
            (height, kind) => unreachable!("{height} rows of {kind:?} in a tile"),
        }
    };
}

impl Kernel {
    /// As many sums as fit the registers beside the operands.
    pub(super) fn of(set: ByteProducts) -> Self {
        let (height, width, vector) = match set {
            #[cfg(target_arch = "x86_64")]
            ByteProducts::Avx512Vnni => (6, 32, 16),
            #[cfg(target_arch = "x86_64")]
            ByteProducts::AvxVnni | ByteProducts::Avx2 => (3, 16, 8),
            ByteProducts::Portable => (2, 16, 16),
        };
        Self { set, height, width, vector }
    }

    /// `sums[row · width + o] = Σ` over the blocks, for so many rows of activations.
    ///
    /// # Safety
    /// The instruction set is there; the pointers reach `width` weight rows, `height` rows of activations, and the blocks of each.
    pub(super) unsafe fn tile(
        self,
        operands: &Operands,
        height: usize,
        (format, block): (Format, usize),
        sums: &mut [f32; TILE],
    ) {
        let (kind, sums) = ((format, block, operands.offsets.is_some()), sums.as_mut_ptr());
        // SAFETY: the caller's promise; no tile is larger than `TILE`.
        unsafe {
            match self.set {
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx512Vnni => {
                    use x86::tile_avx512;
                    with_constants!(tile_avx512(operands, sums), height, kind, [1 2 3 4 5 6])
                }
                #[cfg(target_arch = "x86_64")]
                ByteProducts::AvxVnni => {
                    use x86::tile_avx_vnni;
                    with_constants!(tile_avx_vnni(operands, sums), height, kind, [1 2 3])
                }
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx2 => {
                    use x86::tile_avx2;
                    with_constants!(tile_avx2(operands, sums), height, kind, [1 2 3])
                }
                ByteProducts::Portable => with_constants!(tile_portable(operands, sums), height, kind, [1 2]),
            }
        }
    }
}

/// The sums of a block for some weight rows: a vector register, or what the compiler makes of an array.
trait Lanes {
    /// Vectors of a tile.
    const VECTORS: usize;
    /// Weight rows of a vector.
    const COUNT: usize;
    type Sums: Copy;
    type Totals: Copy;

    /// Adds the products of a block to `corrections`: of each row of `x` with each vector of weights.
    ///
    /// # Safety
    /// For all: as [`Kernel::tile`].
    unsafe fn products<const R: usize, const V: usize, const BITS: usize, const STEPS: usize>(
        lines: (*const u8, usize),
        x: (*const i8, usize),
        corrections: (*const i32, usize),
    ) -> [[Self::Sums; V]; R];
    unsafe fn splat(value: f32) -> Self::Totals;
    unsafe fn widened(at: *const f16) -> Self::Totals;
    unsafe fn store(totals: Self::Totals, at: *mut f32);
    unsafe fn product(a: Self::Totals, b: Self::Totals) -> Self::Totals;
    /// `totals + a · b`.
    unsafe fn plus_product(totals: Self::Totals, a: Self::Totals, b: Self::Totals) -> Self::Totals;
    unsafe fn as_float(sums: Self::Sums) -> Self::Totals;
    /// Asks for a cache line, wherever it is.
    fn prefetch(_at: *const u8) {}
}

/// `R` rows of activations times `V` vectors of weight rows, in blocks of `4 · STEPS` integers of `BITS`.
///
/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
    operands: &Operands,
    sums: *mut f32,
) {
    let Operands { lines, scales, offsets, ahead, x, x_scales, x_sums, x_corrections, x_blocks, blocks } = *operands;
    let bytes_of_block = STEPS * LINE * BITS / 8;
    // SAFETY: the caller's promise.
    unsafe {
        let zero = L::splat(if BITS == 8 { 128.0 } else { 8.0 });
        let mut totals = [[L::splat(0.0); V]; R];
        for at in 0..blocks {
            let block_lines = (lines.0.add(at * bytes_of_block), lines.1);
            if ahead > 0 {
                for line in (0..bytes_of_block).step_by(LINE) {
                    // Vectors of the same panel lie in the same lines.
                    for v in 0..if lines.1 < LINE { 1 } else { V } {
                        L::prefetch(block_lines.0.wrapping_add(v * lines.1 + line + ahead));
                    }
                }
            }
            let corrections = (x_corrections.add(at), x_blocks);
            let products = L::products::<R, V, BITS, STEPS>(block_lines, (x.0.add(at * 4 * STEPS), x.1), corrections);
            for v in 0..V {
                let scale = L::widened(scales.0.add(at * LANES).byte_add(v * scales.1));
                for r in 0..R {
                    let scale = L::product(scale, L::splat(*x_scales.add(r * x_blocks + at)));
                    totals[r][v] = L::plus_product(totals[r][v], L::as_float(products[r][v]), scale);
                }
                if let (true, Some(offsets)) = (ADDED, offsets) {
                    // The products are of signed integers, offsets go with unsigned ones.
                    let offset = L::widened(offsets.add(at * LANES).byte_add(v * scales.1));
                    let added = L::plus_product(offset, zero, scale);
                    for r in 0..R {
                        let sum = L::splat(*x_sums.add(r * x_blocks + at));
                        totals[r][v] = L::plus_product(totals[r][v], added, sum);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                L::store(totals[r][v], sums.add((r * V + v) * L::COUNT));
            }
        }
    }
}

/// Arrays.
struct Portable;

impl Lanes for Portable {
    const VECTORS: usize = 1;
    const COUNT: usize = 16;
    type Sums = [i32; 16];
    type Totals = [f32; 16];

    #[inline(always)]
    unsafe fn products<const R: usize, const V: usize, const BITS: usize, const STEPS: usize>(
        lines: (*const u8, usize),
        x: (*const i8, usize),
        corrections: (*const i32, usize),
    ) -> [[[i32; 16]; V]; R] {
        let mut sums = [[[0i32; 16]; V]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = [[unsafe { *corrections.0.add(r * corrections.1) }; 16]; V];
            for step in 0..STEPS {
                let x: [i8; 4] = unsafe { x.0.add(r * x.1 + 4 * step).cast::<[i8; 4]>().read() };
                // Of four bits, a line is the low halves of one step and the high ones of another.
                let (line, shift) = if BITS == 8 { (step, 0) } else { (step % (STEPS / 2), step / (STEPS / 2) * 4) };
                let mask = if BITS == 8 { 255 } else { 15 };
                for (v, sums) in sums.iter_mut().enumerate() {
                    let line = unsafe { &*lines.0.add(v * lines.1 + line * LINE).cast::<[[u8; 4]; 16]>() };
                    for (sum, four) in sums.iter_mut().zip(line) {
                        for at in 0..4 {
                            *sum += i32::from(i16::from(four[at] >> shift & mask) * i16::from(x[at]));
                        }
                    }
                }
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 16] {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn widened(at: *const f16) -> [f32; 16] {
        let mut values = [0.0; 16];
        unsafe { &*at.cast::<[f16; 16]>() }.convert_to_f32_slice(&mut values);
        values
    }
    #[inline(always)]
    unsafe fn store(totals: [f32; 16], at: *mut f32) {
        unsafe { at.cast::<[f32; 16]>().write(totals) }
    }
    #[inline(always)]
    unsafe fn product(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn plus_product(totals: [f32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|lane| totals[lane] + a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn as_float(sums: [i32; 16]) -> [f32; 16] {
        sums.map(|sum| sum as f32)
    }
}

/// # Safety
/// As [`tile`].
unsafe fn tile_portable<const R: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
    operands: &Operands,
    sums: *mut f32,
) {
    unsafe { tile::<Portable, R, { Portable::VECTORS }, BITS, STEPS, ADDED>(operands, sums) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LINE, Lanes, Operands, f16, tile};

    /// The float side, and the tile, of a vector width.
    macro_rules! lanes {
        ($lanes:ident, $count:literal, $name:ident, $features:literal, ($integers:ty, $floats:ty),
         [$splat:ident $load:ident $widen:ident $store:ident $mul:ident $fma:ident $convert:ident], $products:item) => {
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
                unsafe fn widened(at: *const f16) -> $floats {
                    unsafe { $widen($load(at.cast())) }
                }
                #[inline(always)]
                unsafe fn store(totals: $floats, at: *mut f32) {
                    unsafe { $store(at, totals) }
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
                #[inline(always)]
                fn prefetch(at: *const u8) {
                    // SAFETY: a hint, which reads nothing and cannot fault.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
                }
            }

            /// # Safety
            /// As [`tile`], on a processor with these features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const R: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
                operands: &Operands,
                sums: *mut f32,
            ) {
                unsafe { tile::<$lanes, R, { $lanes::VECTORS }, BITS, STEPS, ADDED>(operands, sums) }
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
        [_mm512_set1_ps _mm256_loadu_si256 _mm512_cvtph_ps _mm512_storeu_ps _mm512_mul_ps _mm512_fmadd_ps _mm512_cvtepi32_ps],
        [_mm512_set1_epi32 _mm512_loadu_si512 _mm512_dpbusd_epi32 _mm512_and_si512 _mm512_srli_epi32]
    );
    four_at_once!(
        AvxVnni, 8, tile_avx_vnni, "avx2,fma,f16c,avxvnni", (__m256i, __m256),
        [_mm256_set1_ps _mm_loadu_si128 _mm256_cvtph_ps _mm256_storeu_ps _mm256_mul_ps _mm256_fmadd_ps _mm256_cvtepi32_ps],
        [_mm256_set1_epi32 _mm256_loadu_si256 _mm256_dpbusd_avx_epi32 _mm256_and_si256 _mm256_srli_epi32]
    );
    lanes!(
        Avx2, 8, tile_avx2, "avx2,fma,f16c", (__m256i, __m256),
        [_mm256_set1_ps _mm_loadu_si128 _mm256_cvtph_ps _mm256_storeu_ps _mm256_mul_ps _mm256_fmadd_ps _mm256_cvtepi32_ps],
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
}
