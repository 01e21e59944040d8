//! Products of rows with a weight in any form: `x · Wᵀ`, which is what `linear` computes, and `x · W`, which is its gradient.
//!
//! A tile is a strip of some sums of every row times one panel of rows: each weight is broadcast against the panel's values of its column,
//! so that what a strip gives for all rows of the panel fills whole vectors. `x` is laid out in panels once. A weight is laid out in strips
//! where so many rows meet it that this pays, and is else read as it lies in memory. Every sum runs through its terms in order, in parts
//! that depend on nothing but their number: not on threads, nor on the other rows.

mod panels;
mod strips;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use self::panels::Panels;
use self::strips::{Scratch, Strips};
use self::tile::Kernel;
use super::dot::InstructionSet;
use super::matrix::{Into, SharedColumns};
use super::transpose::transpose;
use super::weights::{Weights, shares};
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch;

/// Products below which another thread is not worth waking.
const PARALLEL_PRODUCTS: usize = 1 << 17;
/// Rows, and terms of their sums, that are laid out at a time at most: enough for what they meet to be laid out for once, few enough to
/// weigh little beside what a model keeps.
const ROWS: usize = 1024;
const TERMS: usize = 5120;

/// Over which side of a weight `[outputs, inputs]` a product sums.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Over {
    /// `x · Wᵀ`.
    Inputs,
    /// `x · W`.
    Outputs,
}

/// `out (+)= x · Wᵀ` or `x · W`, all of them contiguous.
///
/// # Panics
/// If a slice does not fit the sizes, or there are no terms.
pub(crate) fn multiply<'a>(
    set: InstructionSet,
    x: &[f32],
    weights: impl Weights<'a>,
    over: Over,
    into: Into,
    out: &mut [f32],
) {
    let (terms, sums) = match over {
        Over::Inputs => (weights.inputs(), weights.outputs()),
        Over::Outputs => (weights.outputs(), weights.inputs()),
    };
    let rows = x.len() / terms;
    assert!(x.len() == rows * terms && out.len() == rows * sums && into.fits(sums));
    let kernel = Kernel::of(set);
    for some in parts(0..rows, ROWS, kernel.width) {
        let out = &mut out[some.start * sums..some.end * sums];
        let x = &x[some.start * terms..some.end * terms];
        for some in parts(0..terms, TERMS, 1) {
            let panels = Panels::pack(x, terms, some.clone(), kernel.width);
            let into = if some.start == 0 { into } else { Into::Add };
            multiply_panels(&kernel, &panels, some, weights, over, into, out);
        }
    }
}

/// Some of the terms of the sums of some rows.
fn multiply_panels<'a>(
    kernel: &Kernel,
    panels: &Panels,
    terms: Range<usize>,
    weights: impl Weights<'a>,
    over: Over,
    into: Into,
    out: &mut [f32],
) {
    let sums = out.len() / panels.rows;
    let packed = over == Over::Outputs || panels.rows >= kernel.packed_from;
    let unit = if over == Over::Outputs { common_multiple(kernel.height, weights.block()) } else { kernel.height };
    let group = kernel.height * kernel.strips;
    let destination = SharedColumns::new(out, sums);
    let compute = |share: Range<usize>| {
        let mut scratch = Scratch::default();
        for group in parts(share, group, unit) {
            for part in parts(terms.clone(), kernel.depth, LINE) {
                let at = part.start - terms.start..part.end - terms.start;
                let into = if at.start == 0 { into.columns(group.clone()) } else { Into::Add };
                let strips = Strips::of(weights, over, group.clone(), part, (kernel.height, packed), &mut scratch);
                // SAFETY: the sums of a share are its own columns of the output, which is borrowed mutably for as long as this runs;
                // their number fits, as the lengths agree.
                unsafe { multiply_strips(kernel, panels, at, &strips, into, &destination, group.start) };
            }
        }
    };
    if panels.rows * terms.len() * sums < PARALLEL_PRODUCTS {
        return compute(0..sums);
    }
    shares(sums, unit, group).par_bridge().for_each(compute);
}

/// Some of the terms of a group's sums for every row: a part of a panel stays in the nearest cache while all strips meet it.
///
/// # Safety
/// No other thread may touch these columns of the destination, and they must lie inside it.
unsafe fn multiply_strips(
    kernel: &Kernel,
    panels: &Panels,
    terms: Range<usize>,
    strips: &Strips,
    into: Into,
    out: &SharedColumns,
    first: usize,
) {
    let columns = strips.sums();
    assert!(columns.next_multiple_of(kernel.height) * kernel.width <= Kernel::SUMS);
    let mut sums = [0.0; Kernel::SUMS];
    let mut turned = [0.0; Kernel::SUMS];
    for (index, (panel, rows)) in panels.parts(terms).enumerate() {
        for row in rows.clone() {
            // SAFETY: the caller's promise. Where the sums go comes near while they are computed.
            let lines = unsafe { out.part_of_row(row, first, columns) }.chunks(LINE);
            lines.for_each(|line| prefetch(line.as_ptr()));
        }
        let half = rows.len() <= kernel.width / 2;
        for (strip, sums) in strips.iter(index == 0).zip(sums.chunks_mut(kernel.height * kernel.width)) {
            kernel.tile(strip, panel, half, sums);
        }
        // All strips at once: the longer the part of a row, the less it costs to begin it.
        transpose(&sums, kernel.width, [columns, rows.len()], &mut turned, columns);
        for (row, sums) in rows.zip(turned.chunks_exact(columns)) {
            // SAFETY: the caller's promise.
            into.write(unsafe { out.part_of_row(row, first, columns) }, sums);
        }
    }
}

/// The least number that is a multiple of this one and of that power of two.
fn common_multiple(number: usize, power: usize) -> usize {
    (number * power) >> number.trailing_zeros().min(power.trailing_zeros())
}

/// A range in as few parts as have this length at most, all but the last of the same length, which is made of whole units.
fn parts(range: Range<usize>, most: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most).max(1);
    let step = range.len().div_ceil(count).next_multiple_of(unit).max(1);
    range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
}

#[cfg(test)]
mod tests;
