//! Products of rows with a weight in any form: `x · Wᵀ`, which is what `linear` computes, and `x · W`, which is its gradient.
//!
//! A tile is a strip of some sums of every row times one panel of rows: each weight is broadcast against the panel's values of its column,
//! so that what a strip gives for all rows of the panel fills whole vectors. `x` is laid out in panels once. A weight is laid out in strips
//! where so many rows meet it that this pays, and is else read as it lies in memory. Of a weight that is arranged, and in `x · W`, it is the
//! other way round, and nothing is turned over: see `across`. Every sum runs through its terms in order, in parts that depend on nothing but
//! their number: not on threads, nor on the other rows. With AMX that holds of many rows and of few, each for themselves: an f32 is three bf16
//! there, whose products are summed in another order.

mod across;
#[cfg(target_arch = "x86_64")]
mod amx;
mod kernel;
mod panels;
#[cfg(target_arch = "x86_64")]
mod pieces;
pub(crate) mod small;
mod strips;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use self::kernel::{Kernel, Layout};
use self::panels::Panels;
use self::strips::{Ahead, Matrix, Strips};
use super::dot::InstructionSet;
use super::matrix::{Into, Product, SharedColumns};
use super::memory::Lent;
use super::transpose::{transpose, transpose_to};
use super::weights::{Share, Weights, shares};

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

impl Over {
    /// Terms of a sum.
    fn terms<'a>(self, weights: impl Weights<'a>) -> usize {
        if self == Self::Inputs { weights.inputs() } else { weights.outputs() }
    }

    /// Sums of a row.
    fn sums<'a>(self, weights: impl Weights<'a>) -> usize {
        if self == Self::Inputs { weights.outputs() } else { weights.inputs() }
    }

    /// The weights of some sums in some of their terms.
    fn matrix<'a, W: Weights<'a>>(self, weights: W, sums: Range<usize>, terms: Range<usize>) -> Matrix<W> {
        let (rows, columns) = if self == Self::Inputs { (sums, terms) } else { (terms, sums) };
        Matrix { weights: weights.rows(rows), columns }
    }
}

/// Whether a weight that is arranged is read in place whatever the number of rows. AMX takes pieces, which would be half as much again.
pub(crate) fn reads_arranged(set: InstructionSet) -> bool {
    Kernel::of(set, Over::Inputs, usize::MAX, true).layout() == Layout::Terms
}

/// `out (+)= x · Wᵀ` or `x · W` of each product, all of them contiguous.
///
/// # Panics
/// If a slice does not fit the sizes, or there are no terms.
pub(crate) fn multiply<'a, W: Weights<'a>>(
    set: InstructionSet,
    x: &[f32],
    over: Over,
    mut products: Vec<Product<'_, W>>,
) {
    let terms = over.terms(products[0].weights);
    let rows = x.len() / terms;
    assert!(x.len() == rows * terms);
    for Product { weights, into, out } in &products {
        let sums = over.sums(*weights);
        assert!(over.terms(*weights) == terms && out.len() == rows * sums && into.fits(sums));
    }
    let arranged = products[0].weights.arranged().is_some();
    let kernel = Kernel::of(set, over, rows, arranged);
    // Then the weights of a term lie side by side, or are copied so.
    let across = kernel.layout() == Layout::Terms && (over == Over::Outputs || arranged);
    for some in parts(0..rows, ROWS, kernel.width) {
        let x = &x[some.start * terms..some.end * terms];
        for part in parts(0..terms, TERMS, 1) {
            let products = products.iter_mut().map(|Product { weights, into, out }| {
                let sums = over.sums(*weights);
                let into = if part.start == 0 { *into } else { Into::Add };
                Product { weights: *weights, into, out: &mut out[some.start * sums..some.end * sums] }
            });
            let products = products.collect();
            if across {
                across::multiply_terms(&kernel, (x, terms), part, over, products);
            } else {
                multiply_terms(&kernel, (x, terms), part, over, products);
            }
        }
    }
}

/// Some of the terms of the sums of rows of so many.
fn multiply_terms<'a, W: Weights<'a>>(
    kernel: &Kernel,
    (x, stride): (&[f32], usize),
    terms: Range<usize>,
    over: Over,
    products: Vec<Product<'_, W>>,
) {
    let rows = x.len() / stride;
    let block = products.iter().map(|product| product.weights.block()).max().unwrap_or(1);
    let unit = if over == Over::Outputs { common_multiple(kernel.height, block) } else { kernel.height };
    let sums: Vec<usize> = products.iter().map(|product| over.sums(product.weights)).collect();
    let passes = products.into_iter().zip(&sums).map(|(Product { weights, into, out }, &sums)| Pass {
        kernel,
        weights,
        over,
        packed: over == Over::Outputs || rows >= kernel.packed_from,
        parts: parts(0..terms.len(), kernel.depth, kernel.unit).collect(),
        first_term: terms.start,
        into,
        out: SharedColumns::new(out, sums),
    });
    let passes: Vec<Pass<W>> = passes.collect();
    let compute = |panels: &Panels, share: Share, scratch: &mut Scratch| {
        let _ready = kernel.begin();
        for (pass, sums) in share {
            let mut groups = parts(sums, kernel.group, unit).peekable();
            while let Some(group) = groups.next() {
                // SAFETY: the sums of a share are its own columns of the output, which is borrowed mutably for as long as this runs; their
                // number fits, as the lengths agree.
                unsafe { passes[pass].group(panels, group, groups.peek(), scratch) };
            }
        }
    };
    let pack = || Panels::pack(kernel, x, stride, terms.clone());
    if rows * terms.len() * sums.iter().sum::<usize>() < PARALLEL_PRODUCTS {
        let all = sums.iter().enumerate().map(|(pass, &sums)| (pass, 0..sums)).collect();
        return compute(&pack(), all, &mut Scratch::default());
    }
    let shares = shares(&sums, unit, kernel.share).par_bridge();
    if Panels::together(rows, terms.len()) {
        let panels = pack();
        shares.for_each_init(Scratch::default, |scratch, share| compute(&panels, share, scratch));
    } else {
        // By each thread for itself: that takes no longer than waiting for one of them, and what is laid out stays with its core.
        shares.for_each_init(
            || (None, Scratch::default()),
            |(panels, scratch), share| compute(panels.get_or_insert_with(pack), share, scratch),
        );
    }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    strips: strips::Scratch,
    /// Sums as the tiles leave them, and row by row.
    sums: Lent,
    turned: Lent,
}

/// What the groups of sums of a product have in common.
struct Pass<'p, W> {
    kernel: &'p Kernel,
    weights: W,
    over: Over,
    /// Whether the weight is laid out in strips.
    packed: bool,
    /// The terms that are laid out, in parts that the nearest caches hold, and which of the weight's the first of them is.
    parts: Vec<Range<usize>>,
    first_term: usize,
    into: Into<'p>,
    out: SharedColumns,
}

impl<'a, W: Weights<'a>> Pass<'_, W> {
    /// A group's sums for every row: a part of a panel stays in the nearest cache while all strips meet it. Of the `next` group, what its
    /// strips are made from is asked for meanwhile.
    ///
    /// # Safety
    /// No other thread may touch these columns of the output, and they must lie inside it.
    unsafe fn group(&self, panels: &Panels, group: Range<usize>, next: Option<&Range<usize>>, scratch: &mut Scratch) {
        let (kernel, count) = (self.kernel, group.len());
        let place = kernel.place(count);
        let strip_count = count.div_ceil(kernel.height);
        let size = strip_count * kernel.height * kernel.width;
        // Sums of a single part are written as soon as they are there.
        let kept = if self.parts.len() == 1 { 1 } else { panels.count() };
        let all = aligned(&mut scratch.sums, kept * size);
        let into = self.into.columns(group.clone());
        for (index, part) in self.parts.iter().enumerate() {
            let (first, last) = (index == 0, index + 1 == self.parts.len());
            let next =
                if last { next.map(|next| (next, &self.parts[0])) } else { Some((&group, &self.parts[index + 1])) };
            let mut ahead = Ahead::of(next.filter(|_| self.packed).map(|(sums, part)| self.matrix(sums, part)));
            let share = ahead.len().div_ceil(panels.count() * strip_count);
            let matrix = self.matrix(&group, part);
            let strips =
                Strips::of(matrix, self.over, (kernel.height, kernel.layout(), self.packed), &mut scratch.strips);
            for (index, (panel, rows)) in panels.parts(part.clone()).enumerate() {
                let sums = &mut all[index % kept * size..][..size];
                let each = rows.len().div_ceil(strip_count);
                for (number, strip) in strips.iter(index == 0).enumerate() {
                    ahead.fetch(share);
                    if last {
                        // Where the sums go comes near while they are computed: some of it with each strip, since what waits for a line of its
                        // own holds up the rest.
                        let from = rows.start + number * each;
                        self.out.fetch(from..rows.end.min(from + each), &group);
                    }
                    kernel.tile(strip, panel, rows.len(), !first, (&mut sums[number * place.step..], place));
                }
                if !last {
                    continue;
                }
                // What is added to is in rows, and so must be what is added.
                let (by_row, pitch) = match into {
                    _ if kernel.by_row() => (&*sums, place.pitch),
                    Into::Add => {
                        let turned = scratch.turned.first(count * kernel.width);
                        transpose(sums, place.pitch, [count, rows.len()], turned, count);
                        (&*turned, count)
                    }
                    Into::Overwrite | Into::Bias(_) => {
                        let (to, pitch) = (self.out.at(rows.start, group.start), self.out.stride());
                        // All strips at once: the longer the part of a row, the less it costs to begin it.
                        // SAFETY: the caller's promise.
                        unsafe { transpose_to(sums, place.pitch, [count, rows.len()], to, pitch, into.bias()) };
                        continue;
                    }
                };
                for (row, sums) in rows.zip(by_row.chunks_exact(pitch)) {
                    // SAFETY: the caller's promise.
                    into.write(unsafe { self.out.part_of_row(row, group.start, count) }, &sums[..count]);
                }
            }
        }
    }

    /// The weights of some sums in a part of their terms.
    fn matrix(&self, sums: &Range<usize>, part: &Range<usize>) -> Matrix<W> {
        let terms = self.first_term + part.start..self.first_term + part.end;
        self.over.matrix(self.weights, sums.clone(), terms)
    }
}

/// Bytes to which operands and sums are aligned: a line of the cache, which no load should cross.
const ALIGNED: usize = 64;

/// So many values of a buffer, aligned.
fn aligned(memory: &mut Lent, count: usize) -> &mut [f32] {
    let all = memory.first(count + ALIGNED / size_of::<f32>());
    let start = aligned_start(all);
    &mut all[start..start + count]
}

/// The first place in a buffer that is aligned.
fn aligned_start(memory: &[f32]) -> usize {
    memory.as_ptr().align_offset(ALIGNED)
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
