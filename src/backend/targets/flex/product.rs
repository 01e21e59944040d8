//! `x · Wᵀ` for some tens to hundreds of rows: a prompt, a few sentences. The weight is read as it lies in memory, once and without
//! being packed, which for so few rows would cost more than the product; `x`, which is small, is laid out for the kernel instead.
//!
//! A tile is some weight rows times one panel of `x`: each weight is broadcast against the panel's values of its column, so that the
//! sums of a weight row for all rows of the panel fill whole vectors, and every sum runs through the columns in order.

use std::ops::Range;

use rayon::prelude::*;

use super::dot::InstructionSet;
use super::matrix::{Into, SharedColumns};
use super::memory::{self, Lent};
use super::weights::{Weights, share};
use crate::targets::cpu::prefetch;
use crate::targets::cpu::vector::{Baseline, Vector};

/// Products below which another thread is not worth waking.
const PARALLEL_PRODUCTS: usize = 1 << 17;
/// Values in a cache line.
const LINE: usize = 16;
/// The largest tiles of one panel, of any instruction set.
const TILES: usize = 12 * 32;

/// `out[row · outputs + o] (+)= Σ x[row · inputs + i] · weights[o, i]`.
///
/// # Panics
/// If a slice does not fit the sizes, or `inputs` is zero.
pub(crate) fn rows_times_weight<'a>(
    set: InstructionSet,
    x: &[f32],
    weights: impl Weights<'a>,
    into: Into,
    out: &mut [f32],
) {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    let rows = x.len() / inputs;
    assert!(x.len() == rows * inputs && out.len() == rows * outputs && into.fits(outputs));
    let kernel = Kernel::of(set);
    let panels = Panels::pack(x, inputs, kernel.width);
    let destination = SharedColumns::new(out, outputs);
    let compute = |block: Range<usize>| {
        let mut widened = Lent::default();
        for first in block.clone().step_by(kernel.height * kernel.groups) {
            let some = weights.rows(first..block.end.min(first + kernel.height * kernel.groups));
            // Weights in place are fetched a group ahead: the rows of a group are too short for the processor to foresee the next.
            let (values, ahead) = match some.as_f32() {
                Some(values) => (values, kernel.height * inputs),
                None => {
                    let values = widened.first(some.outputs() * inputs);
                    some.widen(0..inputs, values);
                    (&*values, 0)
                }
            };
            let into = into.columns(first..first + some.outputs());
            // SAFETY: the weight rows of a call are its own, and so are their columns of the output, which is borrowed mutably for as
            // long as this runs; their number fits, as the lengths agree.
            unsafe { groups(&kernel, &panels, (values, ahead), into, &destination, first) };
        }
    };
    if rows * inputs * outputs < PARALLEL_PRODUCTS {
        return compute(0..outputs);
    }
    let block = share(outputs, kernel.height, 0);
    let blocks = (0..outputs.div_ceil(block)).into_par_iter();
    blocks.for_each(|index| compute(index * block..outputs.min((index + 1) * block)));
}

/// The sums of some groups of weight rows for every row of `x`: a part of a panel stays in the nearest cache while all groups meet it.
///
/// # Safety
/// No other thread may touch these columns of the destination, and they must lie inside it.
unsafe fn groups(
    kernel: &Kernel,
    panels: &Panels,
    (weights, ahead): (&[f32], usize),
    into: Into,
    out: &SharedColumns,
    first: usize,
) {
    let inputs = panels.inputs;
    let mut sums = [0.0; TILES];
    assert!(kernel.groups * kernel.height * kernel.width <= TILES);
    for start in (0..inputs).step_by(kernel.depth) {
        let depth = kernel.depth.min(inputs - start);
        for (index, panel) in panels.data.chunks_exact(inputs * kernel.width).enumerate() {
            let rows = index * kernel.width..panels.rows.min((index + 1) * kernel.width);
            let panel = &panel[start * kernel.width..(start + depth) * kernel.width];
            let ahead = if index == 0 { ahead } else { 0 };
            let half = rows.len() <= kernel.width / 2;
            let tile = kernel.height * kernel.width;
            for (weights, sums) in weights.chunks(kernel.height * inputs).zip(sums.chunks_mut(tile)) {
                let height = weights.len() / inputs;
                kernel.tile((&weights[start..], inputs, ahead), height, panel, half, sums);
            }
            // All groups at once: the longer the part of a row, the less it costs to begin it.
            let into = if start > 0 { Into::Add } else { into };
            let columns = weights.len() / inputs;
            for (lane, row) in rows.enumerate() {
                // SAFETY: the caller's promise.
                let out = unsafe { out.part_of_row(row, first, columns) };
                into.write(out, sums[lane..].iter().step_by(kernel.width));
            }
        }
    }
}

/// The rows of `x` in panels of `width`, column by column; the last panel is filled up with zeros.
struct Panels {
    data: Lent,
    rows: usize,
    inputs: usize,
}

impl Panels {
    fn pack(x: &[f32], inputs: usize, width: usize) -> Self {
        let rows = x.len() / inputs;
        let panel = width * inputs;
        let mut data = memory::scratch(rows.next_multiple_of(width) * inputs);
        if !rows.is_multiple_of(width) {
            let last = data.len() - panel;
            data[last..].fill(0.0);
        }
        let pack = |(panel, rows): (&mut [f32], &[f32])| {
            // In blocks of columns, so that the lines being written stay at hand from row to row.
            for start in (0..inputs).step_by(64) {
                for (lane, row) in rows.chunks_exact(inputs).enumerate() {
                    let row = &row[start..inputs.min(start + 64)];
                    let panel = panel[start * width + lane..].iter_mut().step_by(width);
                    panel.zip(row).for_each(|(to, from)| *to = *from);
                }
            }
        };
        if data.len() < PARALLEL_PRODUCTS {
            data.chunks_exact_mut(panel).zip(x.chunks(panel)).for_each(pack);
        } else {
            data.par_chunks_exact_mut(panel).zip(x.par_chunks(panel)).for_each(pack);
        }
        Self { data, rows, inputs }
    }
}

/// The tile of an instruction set.
struct Kernel {
    set: InstructionSet,
    /// Weight rows.
    height: usize,
    /// Rows of `x`.
    width: usize,
    /// Columns after which sums are parked in the output, so that a panel and the weight rows beside it stay in the nearest caches.
    depth: usize,
    /// Groups of weight rows that meet a part of a panel one after another, before the next part takes its place in the nearest cache.
    groups: usize,
}

/// Calls `$tile` with the number of weight rows, and that of halves of a panel, as constants.
macro_rules! with_height {
    ($height:expr, $half:expr, $tile:ident $arguments:tt, [$($count:literal)*]) => {
        match $height {
            $($count if $half => $tile::<$count, 1> $arguments,
            $count => $tile::<$count, 2> $arguments,)*
            height => unreachable!("{height} weight rows in a tile"),
        }
    };
}

impl Kernel {
    /// As many sums as fit the registers beside the operands.
    fn of(set: InstructionSet) -> Self {
        let (height, width, depth, groups) = match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => (12, 32, 512, 1),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => (6, 16, 512, 4),
            InstructionSet::Portable => (if Baseline::REGISTERS == 32 { 6 } else { 2 }, 16, 512, 1),
        };
        Self { set, height, width, depth, groups }
    }

    /// `sums[h · width + lane] = Σ weights[h · stride + k] · panel[k · width + lane]`, of which the upper half of the lanes may be left
    /// undone if `half`. What lies `ahead` of the weights is asked for from memory.
    fn tile(
        &self,
        (weights, stride, ahead): (&[f32], usize, usize),
        height: usize,
        panel: &[f32],
        half: bool,
        sums: &mut [f32],
    ) {
        let depth = panel.len() / self.width;
        assert!(depth > 0 && (1..=self.height).contains(&height) && (height - 1) * stride + depth <= weights.len());
        assert!(panel.len() == depth * self.width && height * self.width <= sums.len());
        let (weights, panel, sums) = ((weights.as_ptr(), stride, ahead), panel.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the assertions prove every offset that the kernels reach; `detect` saw the instruction set.
        unsafe {
            match self.set {
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512 => {
                    with_height!(height, half, tile_avx512 (weights, panel, depth, sums), [1 2 3 4 5 6 7 8 9 10 11 12])
                }
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx2 => {
                    with_height!(height, half, tile_avx2(weights, panel, depth, sums), [1 2 3 4 5 6])
                }
                InstructionSet::Portable => {
                    with_height!(height, half, tile_portable(weights, panel, depth, sums), [1 2 3 4 5 6])
                }
            }
        }
    }
}

/// `H` weight rows times the first `V` vectors of each column of a panel.
///
/// # Safety
/// `H` rows of `depth` weights at `stride`, `depth` columns of a panel of `width`, and `H` rows of so many sums must be there.
#[inline(always)]
unsafe fn tile<L: Vector, const H: usize, const V: usize>(
    weights: (*const f32, usize, usize),
    (panel, width): (*const f32, usize),
    depth: usize,
    sums: *mut f32,
) {
    let (weights, stride, ahead) = weights;
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = [[L::splat(0.0); V]; H];
        for at in 0..depth {
            if at.is_multiple_of(LINE) {
                (0..H).for_each(|h| prefetch(weights.wrapping_add(ahead + h * stride + at)));
            }
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = L::load(panel.add(at * width + v * L::COUNT));
            }
            for (h, totals) in totals.iter_mut().enumerate() {
                let weight = L::splat(*weights.add(h * stride + at));
                for (total, x) in totals.iter_mut().zip(x) {
                    *total = weight.mul_add(x, *total);
                }
            }
        }
        for (h, totals) in totals.into_iter().enumerate() {
            for (v, total) in totals.into_iter().enumerate() {
                total.store(sums.add(h * width + v * L::COUNT));
            }
        }
    }
}

/// The tile of a vector register: half a panel (`HALVES` = 1) or a whole one (2).
macro_rules! tiles {
    ($($(#[$only:meta])* $name:ident, $vector:ty, $width:literal;)*) => {
        $(
            /// # Safety
            /// As [`tile`], on a processor with the instructions.
            $(#[$only])*
            unsafe fn $name<const H: usize, const HALVES: usize>(
                weights: (*const f32, usize, usize),
                panel: *const f32,
                depth: usize,
                sums: *mut f32,
            ) {
                const HALF: usize = $width / 2 / <$vector as Vector>::COUNT;
                unsafe {
                    if HALVES == 1 {
                        tile::<$vector, H, HALF>(weights, (panel, $width), depth, sums)
                    } else {
                        tile::<$vector, H, { 2 * HALF }>(weights, (panel, $width), depth, sums)
                    }
                }
            }
        )*
    };
}
tiles! {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    tile_avx512, crate::targets::cpu::vector::F32x16, 32;
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    tile_avx2, crate::targets::cpu::vector::F32x8, 16;
    tile_portable, Baseline, 16;
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::targets::flex::dot::Stored;
    use crate::targets::flex::weights::Dense;

    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    fn check<T: Stored>(set: InstructionSet, [rows, inputs, outputs]: [usize; 3], narrow: impl Fn(f32) -> T) {
        let x = values(1, rows * inputs);
        let weights: Vec<T> = values(2, outputs * inputs).into_iter().map(narrow).collect();
        for (into, before) in [(Into::Overwrite, f32::NAN), (Into::Add, 0.5)] {
            let mut out = vec![before; rows * outputs];
            rows_times_weight(set, &x, Dense::new(&weights, inputs), into, &mut out);
            for (at, &value) in out.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let (x, weights) = (&x[row * inputs..][..inputs], &weights[output * inputs..][..inputs]);
                let sum: f64 = x.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(w.widen())).sum();
                let expected = if into == Into::Add { sum + 0.5 } else { sum };
                let allowed = 1e-6 * inputs as f64;
                assert!(
                    (f64::from(value) - expected).abs() < allowed,
                    "{set:?} [{row}, {output}]: {value}, {expected}"
                );
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_products() {
        for set in InstructionSet::available() {
            for rows in [1, 5, 15, 16, 17, 31, 32, 33, 70] {
                for [inputs, outputs] in [[1, 1], [7, 13], [384, 25], [513, 12], [1100, 6]] {
                    check(set, [rows, inputs, outputs], |value| value);
                }
            }
            check(set, [33, 100, 31], f16::from_f32);
            check(set, [40, 300, 500], |value| value);
        }
    }

    #[test]
    fn a_value_that_is_no_number_spoils_its_own_row_only() {
        for set in InstructionSet::available() {
            let (mut x, weights) = (values(1, 20 * 64), values(2, 30 * 64));
            x[7 * 64 + 5] = f32::NAN;
            let mut out = vec![0.0; 20 * 30];
            rows_times_weight(set, &x, Dense::new(&weights, 64), Into::Overwrite, &mut out);
            for (at, value) in out.iter().enumerate() {
                assert_eq!(value.is_nan(), at / 30 == 7, "{set:?} {at}");
            }
        }
    }
}
