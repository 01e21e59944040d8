//! Tiles of the product: some rows of activations times some weight rows side by side, all sums in registers.
#![expect(clippy::needless_range_loop, reason = "a number of a register picks from several arrays of them at once")]

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::packed::Format;
use crate::targets::cpu::{ByteProducts, prefetch, prefetch_to_write};
use crate::targets::flex::matrix::Into;
use crate::targets::flex::packed::{LANES, LINE};

/// The largest tile of any instruction set.
pub(super) const TILE: usize = 6 * 32;

/// How many bytes after each line another is asked for from memory, if not 0: up to a block, and from that one on.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead {
    pub(super) near: usize,
    pub(super) turn: usize,
    pub(super) far: usize,
}

/// What a tile is made of. Weights lie in panels, as [`PackedRows::panel`](crate::targets::flex::packed::PackedRows::panel) says, and are
/// taken in vectors of as many rows as the instruction set multiplies at once.
#[derive(Clone, Copy)]
pub(super) struct Operands<'o> {
    /// The lines of the first vector's rows, and how many bytes later those of the next vector are.
    pub(super) lines: (*const u8, usize),
    /// Their scales, and how many bytes later those of the next vector are.
    pub(super) scales: (*const f16, usize),
    /// Their offsets with the same distance, where there are such.
    pub(super) offsets: Option<*const f16>,
    /// What is asked for from memory meanwhile.
    pub(super) ahead: Ahead,
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
    /// What sums are added to, for all weight rows of the tile.
    pub(super) into: Into<'o>,
    /// Where those of the first row of activations go, and how many elements later those of the next.
    pub(super) out: (*mut f32, usize),
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
            ($count, (Format::Q8, 64, false)) => $tile::<$count, 8, 16, false> $arguments,
            ($count, (Format::Q8, 16, true)) => $tile::<$count, 8, 4, true> $arguments,
            ($count, (Format::Q8, 32, true)) => $tile::<$count, 8, 8, true> $arguments,
            ($count, (Format::Q8, 64, true)) => $tile::<$count, 8, 16, true> $arguments,
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
            #[cfg(target_arch = "aarch64")]
            ByteProducts::Dot => (3, 16, 4),
            ByteProducts::Portable => (2, 16, 16),
        };
        Self { set, height, width, vector }
    }

    /// Sums over the blocks, for so many rows of activations.
    ///
    /// # Safety
    /// The instruction set is there; the pointers reach `width` weight rows, `height` rows of activations, and the blocks of each; so many
    /// sums of each row may be written, and added to if they are to be; a bias is as long.
    pub(super) unsafe fn tile(self, operands: &Operands, height: usize, (format, block): (Format, usize)) {
        let kind = (format, block, operands.offsets.is_some());
        // SAFETY: the caller's promise.
        unsafe {
            match self.set {
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx512Vnni => {
                    use x86::tile_avx512;
                    with_constants!(tile_avx512(operands), height, kind, [1 2 3 4 5 6])
                }
                #[cfg(target_arch = "x86_64")]
                ByteProducts::AvxVnni => {
                    use x86::tile_avx_vnni;
                    with_constants!(tile_avx_vnni(operands), height, kind, [1 2 3])
                }
                #[cfg(target_arch = "x86_64")]
                ByteProducts::Avx2 => {
                    use x86::tile_avx2;
                    with_constants!(tile_avx2(operands), height, kind, [1 2 3])
                }
                #[cfg(target_arch = "aarch64")]
                ByteProducts::Dot => {
                    use neon::tile_dot;
                    with_constants!(tile_dot(operands), height, kind, [1 2 3])
                }
                ByteProducts::Portable => with_constants!(tile_portable(operands), height, kind, [1 2]),
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
    unsafe fn load(at: *const f32) -> Self::Totals;
    unsafe fn widened(at: *const f16) -> Self::Totals;
    unsafe fn store(totals: Self::Totals, at: *mut f32);
    unsafe fn sum(a: Self::Totals, b: Self::Totals) -> Self::Totals;
    unsafe fn product(a: Self::Totals, b: Self::Totals) -> Self::Totals;
    /// `totals + a · b`.
    unsafe fn plus_product(totals: Self::Totals, a: Self::Totals, b: Self::Totals) -> Self::Totals;
    unsafe fn as_float(sums: Self::Sums) -> Self::Totals;
}

/// `R` rows of activations times `V` vectors of weight rows, in blocks of `4 · STEPS` integers of `BITS`.
///
/// # Safety
/// As [`Kernel::tile`].
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(
    operands: &Operands,
) {
    let Operands { lines, scales, offsets, ahead, x, x_scales, x_sums, x_corrections, x_blocks, blocks, into, out } =
        *operands;
    let bytes_of_block = STEPS * LINE * BITS / 8;
    // SAFETY: the caller's promise.
    unsafe {
        // Where the sums go comes near while they are computed.
        for r in 0..R {
            let columns = (0..V * L::COUNT).step_by(LINE / size_of::<f32>());
            columns.for_each(|column| prefetch_to_write(out.0.wrapping_add(r * out.1 + column)));
        }
        let zero = L::splat(if BITS == 8 { 128.0 } else { 8.0 });
        let mut totals = [[L::splat(0.0); V]; R];
        for at in 0..blocks {
            let block_lines = (lines.0.add(at * bytes_of_block), lines.1);
            let ahead = if at < ahead.turn { ahead.near } else { ahead.far };
            if ahead > 0 {
                for line in (0..bytes_of_block).step_by(LINE) {
                    // Vectors of the same panel lie in the same lines.
                    for v in 0..if lines.1 < LINE { 1 } else { V } {
                        prefetch(block_lines.0.wrapping_add(v * lines.1 + line + ahead));
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
                let at = out.0.add(r * out.1 + v * L::COUNT);
                let sum = match into {
                    Into::Overwrite => totals[r][v],
                    Into::Add => L::sum(L::load(at), totals[r][v]),
                    Into::Bias(bias) => L::sum(L::load(bias.as_ptr().add(v * L::COUNT)), totals[r][v]),
                };
                L::store(sum, at);
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
    unsafe fn load(at: *const f32) -> [f32; 16] {
        unsafe { at.cast::<[f32; 16]>().read() }
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
    unsafe fn sum(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|lane| a[lane] + b[lane])
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
unsafe fn tile_portable<const R: usize, const BITS: usize, const STEPS: usize, const ADDED: bool>(operands: &Operands) {
    unsafe { tile::<Portable, R, { Portable::VECTORS }, BITS, STEPS, ADDED>(operands) }
}
