//! Tiles of a product: a strip of sums for a panel of rows, all of them in registers.

#[cfg(target_arch = "x86_64")]
use super::kernel::Layout;
use super::kernel::{Kernel, Place};
use super::strips::Strip;
#[cfg(target_arch = "x86_64")]
use super::{amx, pieces};
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch;
use crate::targets::cpu::vector::{Baseline, Vector};
use crate::targets::flex::arranged::LANES;
use crate::targets::flex::dot::InstructionSet;
use crate::targets::flex::matrix::{Into, MatrixMut};
use crate::targets::flex::memory::Lent;

/// Columns taken without a branch between them.
const UNROLLED: usize = 4;

/// Terms ahead of which a panel is asked for where each has several lines of the cache, of which the processor foresees too few by itself.
const PANEL_AHEAD: usize = 16;

/// The values of a panel: term by term those of its lanes, `pitch` apart.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) at: *const f32,
    pub(super) pitch: usize,
    /// From an arranged panel's values to those of the next, for tiles that take two.
    pub(super) next: usize,
    /// Terms.
    pub(super) depth: usize,
}

/// Where the sums of a tile go, `pitch` from one row of the tile to the next, and what they are added to, if that is not null: values with a
/// pitch of their own.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) at: *mut f32,
    pub(super) pitch: usize,
    pub(super) start: *const f32,
    pub(super) start_pitch: usize,
}

/// Calls `$tile` for a strip with its number of sums, and that of a panel's parts that count, as constants.
macro_rules! with_shape {
    ($strip:expr, $parts:expr, [$($some:literal)*], $tile:ident $panel:tt, $full:literal, $counts:tt) => {
        match $parts {
            $($some => with_height!($strip, $some, $tile $panel, $full, $counts),)*
            parts => unreachable!("{parts} parts of a panel"),
        }
    };
}
macro_rules! with_height {
    ($strip:expr, $parts:literal, $tile:ident $panel:tt, $full:literal, [$($count:literal)*]) => {
        match $strip {
            Strip::Packed { values, .. } => $tile::<$full, $parts, true>((values.as_ptr(), 0, 0), $panel),
            $(Strip::Apart { values, sums: $count, stride, ahead } => {
                $tile::<$count, $parts, false>((values.as_ptr(), stride, ahead), $panel)
            })*
            Strip::Apart { sums, .. } => unreachable!("{sums} sums in a tile"),
        }
    };
}

impl Kernel {
    /// `sums[s · width + lane] (+)= Σ strip[s, k] · panel[k · width + lane]`, of which lanes from so many on may be left undone. With pieces the
    /// sums lie as their place says.
    pub(super) fn tile(
        &self,
        strip: Strip,
        panel: &[f32],
        lanes: usize,
        add: bool,
        (sums, place): (&mut [f32], Place),
    ) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = place;
        #[cfg(target_arch = "x86_64")]
        if self.layout() == Layout::Pieces {
            let Strip::Packed { values, sums: count } = strip else { unreachable!("pieces are always laid out") };
            assert!(values.len() == panel.len() && panel.len().is_multiple_of(pieces::BLOCK));
            assert!((pieces::SIDE - 1) * place.pitch + pieces::SIDE <= sums.len());
            let (strip, panel) =
                ((values.as_ptr(), count <= pieces::SIDE / 2), (panel.as_ptr(), lanes <= pieces::SIDE / 2));
            let (left, right) = if self.by_row() { (panel, strip) } else { (strip, panel) };
            let to = amx::Sums { at: sums.as_mut_ptr(), pitch: place.pitch };
            // SAFETY: the assertions prove every offset that is reached; `begin` was called.
            unsafe { amx::tile(left.0, right.0, values.len() / pieces::BLOCK, [left.1, right.1], add, to) };
            return;
        }
        let depth = panel.len() / self.width;
        assert!(depth > 0 && panel.len() == depth * self.width && self.height * self.width <= sums.len());
        assert!((1..=self.width).contains(&lanes));
        match strip {
            Strip::Apart { values, sums, stride, .. } => {
                assert!((1..=self.height).contains(&sums) && (sums - 1) * stride + depth <= values.len());
            }
            Strip::Packed { values, .. } => assert_eq!(values.len(), depth * self.height),
        }
        let panel = Panel { at: panel.as_ptr(), pitch: self.width, next: 0, depth };
        let at = sums.as_mut_ptr();
        let start = if add { at.cast_const() } else { std::ptr::null() };
        let sums = Sums { at, pitch: self.width, start, start_pitch: self.width };
        // SAFETY: the assertions prove every offset that the kernels reach; `detect` saw the instruction set.
        unsafe { self.any_tile(strip, lanes, panel, sums) }
    }

    /// As [`tile`](Self::tile), of a panel that may lie in a larger matrix, into part of another: where that is `whole` straight away, and else
    /// by way of `scratch`.
    ///
    /// # Safety
    /// As [`any_tile`](Self::any_tile), where `out` has a column for each lane; it is whole if it has room for all that the tile writes.
    pub(super) unsafe fn tile_into(
        &self,
        strip: Strip,
        panel: Panel,
        (mut out, whole): (MatrixMut, bool),
        into: Into,
        scratch: &mut Lent,
    ) {
        let lanes = out.columns;
        if whole {
            let (at, pitch) = (out.at(0, 0), out.row_stride);
            let (start, start_pitch) = match into {
                Into::Overwrite => (std::ptr::null(), 0),
                Into::Add => (at.cast_const(), pitch),
                Into::Bias(bias) => (bias.as_ptr(), 0),
            };
            // SAFETY: the caller's promise.
            return unsafe { self.any_tile(strip, lanes, panel, Sums { at, pitch, start, start_pitch }) };
        }
        let sums = scratch.first(self.height * self.width);
        let (start, pitch) = (std::ptr::null(), self.width);
        // SAFETY: the caller's promise, and room for a whole tile.
        unsafe { self.any_tile(strip, lanes, panel, Sums { at: sums.as_mut_ptr(), pitch, start, start_pitch: 0 }) };
        for (row, sums) in (0..out.rows).zip(sums.chunks_exact(self.width)) {
            into.write(out.part_of_row(row, 0..lanes), &sums[..lanes]);
        }
    }

    /// As [`tile`](Self::tile), of a panel and to sums that may lie in larger matrices.
    ///
    /// # Safety
    /// The strip has at most `height` sums and as many terms as the panel; the panel has `lanes` of its `width` lanes, filled up to a whole line,
    /// as the rows of `sums`, one for each of the strip's, and what they are added to. The tile is not one of pieces.
    unsafe fn any_tile(&self, strip: Strip, lanes: usize, panel: Panel, sums: Sums) {
        let panel = (panel, sums);
        let halves = lanes.div_ceil(LINE / 2);
        // SAFETY: the caller's promise.
        unsafe {
            match self.set {
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Amx => unreachable!("pieces have tiles of their own"),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 if self.height == 12 => {
                    with_shape!(strip, lanes.div_ceil(LINE), [1 2], tile_avx512 panel, 12, [1 2 3 4 5 6 7 8 9 10 11 12])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 if self.width == 4 * LANES => {
                    with_shape!(strip, lanes.div_ceil(LINE), [1 2 3 4 5 6 7 8 9 10 11 12], tile_avx512 panel, 2, [1 2])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 if self.width == 2 * LANES => {
                    with_shape!(strip, lanes.div_ceil(LINE), [1 2 3 4 5 6], tile_avx512 panel, 4, [1 2 3 4])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 => {
                    with_shape!(strip, lanes.div_ceil(LINE), [1 2 3], tile_avx512 panel, 8, [1 2 3 4 5 6 7 8])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 if self.width == 2 * LANES => {
                    with_shape!(strip, halves, [1 2 3 4 5 6 7 8 9 10 11 12], tile_avx2 panel, 1, [1])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 if self.width == LANES => {
                    with_shape!(strip, halves, [1 2 3 4 5 6], tile_avx2 panel, 2, [1 2])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 => with_shape!(strip, halves, [1 2], tile_avx2 panel, 6, [1 2 3 4 5 6]),
                InstructionSet::Portable if Baseline::REGISTERS == 32 && self.width == LANES => {
                    with_shape!(strip, halves, [1 2 3 4 5 6], tile_portable panel, 2, [1 2])
                }
                InstructionSet::Portable if self.width == LANES => {
                    with_shape!(strip, halves, [1 2 3 4 5 6], tile_portable panel, 1, [1])
                }
                InstructionSet::Portable if Baseline::REGISTERS == 32 => {
                    with_shape!(strip, halves, [1 2], tile_portable panel, 6, [1 2 3 4 5 6])
                }
                InstructionSet::Portable => with_shape!(strip, halves, [1 2], tile_portable panel, 2, [1 2]),
            }
        }
    }
}

/// `H` sums times the first `PARTS` parts of a panel, each of `EACH` vectors.
///
/// # Safety
/// The weights of `H` sums, `depth` for each at `stride` or packed, a panel with so many vectors, and `H` rows of so many sums must be there.
#[inline(always)]
unsafe fn tile<L: Vector, const H: usize, const PARTS: usize, const EACH: usize, const PACKED: bool>(
    (weights, stride, ahead): (*const f32, usize, usize),
    (panel, sums): (Panel, Sums),
) {
    let Panel { at: values, pitch, next, depth } = panel;
    let lanes = PARTS * EACH * L::COUNT;
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[[L::splat(0.0); EACH]; PARTS]; H];
        let mut at = 0;
        while at + UNROLLED <= depth {
            if !PACKED && ahead > 0 && at.is_multiple_of(LINE) {
                (0..H).for_each(|h| prefetch(weights.wrapping_add(ahead + h * stride + at)));
            }
            for at in at..at + UNROLLED {
                if lanes > LINE {
                    let ahead = (at + PANEL_AHEAD) * pitch;
                    (0..lanes)
                        .step_by(LINE)
                        .for_each(|lane| prefetch(values.wrapping_add(ahead + in_panels(lane, next))));
                }
                column::<L, H, PARTS, EACH, PACKED>(&mut totals, weights, stride, (values.add(at * pitch), next), at);
            }
            at += UNROLLED;
        }
        for at in at..depth {
            column::<L, H, PARTS, EACH, PACKED>(&mut totals, weights, stride, (values.add(at * pitch), next), at);
        }
        for (h, totals) in totals.into_iter().enumerate() {
            for (v, mut total) in totals.into_iter().flatten().enumerate() {
                // Sums of parts err less than one that runs through all terms.
                if !sums.start.is_null() {
                    total = L::load(sums.start.add(h * sums.start_pitch + v * L::COUNT)) + total;
                }
                total.store(sums.at.add(h * sums.pitch + v * L::COUNT));
            }
        }
    }
}

/// Where a lane is, of a term of panels so far apart.
#[inline(always)]
fn in_panels(lane: usize, next: usize) -> usize {
    lane / LANES * next + lane % LANES
}

/// Adds the products of the column `at`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn column<L: Vector, const H: usize, const PARTS: usize, const EACH: usize, const PACKED: bool>(
    totals: &mut [[[L; EACH]; PARTS]; H],
    weights: *const f32,
    stride: usize,
    (panel, next): (*const f32, usize),
    at: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = [[L::splat(0.0); EACH]; PARTS];
        for (v, x) in x.as_flattened_mut().iter_mut().enumerate() {
            *x = L::load(panel.add(in_panels(v * L::COUNT, next)));
        }
        for (h, totals) in totals.iter_mut().enumerate() {
            let weight = L::splat(*weights.add(if PACKED { at * H + h } else { h * stride + at }));
            for (total, x) in totals.as_flattened_mut().iter_mut().zip(x.as_flattened()) {
                *total = weight.mul_add(*x, *total);
            }
        }
    }
}

/// The tile of a vector register, and how many lanes a part has.
macro_rules! tiles {
    ($($(#[$only:meta])* $name:ident, $vector:ty, $part:expr;)*) => {
        $(
            /// # Safety
            /// As [`tile`], on a processor with the instructions.
            $(#[$only])*
            unsafe fn $name<const H: usize, const PARTS: usize, const PACKED: bool>(
                weights: (*const f32, usize, usize),
                panel: (Panel, Sums),
            ) {
                unsafe { tile::<$vector, H, PARTS, { $part / <$vector as Vector>::COUNT }, PACKED>(weights, panel) }
            }
        )*
    };
}
tiles! {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    tile_avx512, crate::targets::cpu::vector::F32x16, LINE;
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    tile_avx2, crate::targets::cpu::vector::F32x8, LINE / 2;
    tile_portable, Baseline, LINE / 2;
}
