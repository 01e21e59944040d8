//! Products without AMX in which the weights of a term lie side by side and fill vectors as they are, so that `x` is what is broadcast, as it
//! lies, and the sums of a row come out side by side where they belong. In `x · Wᵀ` of an arranged weight its panels are read in place. In
//! `x · W` the lines of a weight's part, which lie far apart, are copied together.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{FEW_ROWS, Kernel};
use super::strips::{Ahead, Strip};
use super::tile::Panel;
use super::{Over, PARALLEL_PRODUCTS, aligned, common_multiple, parts};
use crate::targets::flex::arranged::LANES;
use crate::targets::flex::matrix::{Into, Product, SharedColumns};
use crate::targets::flex::memory::Lent;
use crate::targets::flex::weights::{Weights, shares};

/// Terms whose weights are laid out together for all sums of a group, so that what lies side by side is read while it is near, and where it
/// is looked up is known.
const TOGETHER: usize = 16;

/// Some of the terms of the sums of rows of so many; in `x · Wᵀ` the weights are arranged.
pub(super) fn multiply_terms<'a, W: Weights<'a>>(
    kernel: &Kernel,
    (x, stride): (&[f32], usize),
    terms: Range<usize>,
    over: Over,
    products: Vec<Product<'_, W>>,
) {
    let rows = x.len() / stride;
    let block = products.iter().map(|product| product.weights.block()).max().unwrap_or(1);
    let unit = if over == Over::Inputs { LANES } else { common_multiple(kernel.width, block) };
    let sums: Vec<usize> = products.iter().map(|product| over.sums(product.weights)).collect();
    let size = rows * terms.len() * sums.iter().sum::<usize>();
    let passes = products.into_iter().zip(&sums).map(|(Product { weights, into, out }, &sums)| Pass {
        kernel,
        over,
        unit,
        x,
        stride,
        weights,
        terms: terms.clone(),
        into,
        out: SharedColumns::new(out, sums),
    });
    let passes: Vec<Pass<W>> = passes.collect();
    let compute = |(pass, sums): (usize, Range<usize>), scratch: &mut Scratch| {
        let mut groups = parts(sums, kernel.group, unit).peekable();
        while let Some(group) = groups.next() {
            // SAFETY: the sums of a share are its own columns of the output, which is borrowed mutably for as long as this runs; their
            // number fits, as the lengths agree.
            unsafe { passes[pass].group(group, groups.peek(), scratch) };
        }
    };
    if size < PARALLEL_PRODUCTS {
        let mut scratch = Scratch::default();
        return sums.iter().enumerate().for_each(|(pass, &sums)| compute((pass, 0..sums), &mut scratch));
    }
    let shares = shares(&sums, unit, kernel.share).par_bridge();
    shares.for_each_init(Scratch::default, |scratch, share| share.into_iter().for_each(|part| compute(part, scratch)));
}

/// Memory of a thread: a part of the weight, and the sums of a tile that reaches beyond the last of a row.
#[derive(Default)]
struct Scratch {
    weights: Lent,
    sums: Lent,
}

/// One product.
struct Pass<'p, W> {
    kernel: &'p Kernel,
    over: Over,
    /// Sums whose weights are laid out together: so many whole panels as are whole blocks of the weight.
    unit: usize,
    x: &'p [f32],
    stride: usize,
    /// A row for each term, or arranged ones for each sum.
    weights: W,
    terms: Range<usize>,
    into: Into<'p>,
    out: SharedColumns,
}

impl<'a, W: Weights<'a>> Pass<'_, W> {
    /// These sums of every row. What the `next` ones are made from is asked for meanwhile.
    ///
    /// # Safety
    /// No other thread may touch these columns of the output, and they must lie inside it.
    unsafe fn group(&self, group: Range<usize>, next: Option<&Range<usize>>, scratch: &mut Scratch) {
        let (kernel, rows) = (self.kernel, self.x.len() / self.stride);
        let into = self.into.columns(group.clone());
        let terms: Vec<Range<usize>> = parts(self.terms.clone(), kernel.depth, kernel.unit).collect();
        for (index, part) in terms.iter().enumerate() {
            let of_group = terms.get(index + 1).map(|part| (part, &group));
            let next = of_group.or(next.map(|next| (&terms[0], next)));
            // Few rows ask for a weight as they read it.
            let next = next.filter(|_| self.over == Over::Outputs || rows > FEW_ROWS);
            let mut ahead =
                Ahead::of(next.map(|(part, sums)| self.over.matrix(self.weights, sums.clone(), part.clone())));
            let panels = self.panels(part, &group, &mut scratch.weights);
            let share = ahead.len().div_ceil(rows.div_ceil(kernel.height) * panels.len());
            let into = if index == 0 { into } else { Into::Add };
            for some in parts(0..rows, kernel.height, 1) {
                let strip = Strip::Apart {
                    values: &self.x[some.start * self.stride + part.start..],
                    sums: some.len(),
                    stride: self.stride,
                    ahead: 0,
                };
                for (panel, columns) in &panels {
                    ahead.fetch(share);
                    let into = into.columns(columns.start - group.start..columns.end - group.start);
                    // SAFETY: `x` has these rows, and the panel these terms and lanes, or room for a whole vector; the rest is the caller's
                    // promise.
                    unsafe { self.tile(strip, *panel, (some.clone(), columns.clone()), into, &mut scratch.sums) };
                }
            }
        }
    }

    /// The panels of some sums, each with those that are its lanes: part of the terms, laid out in `memory`, where the last vector may reach
    /// beyond what is somebody's.
    fn panels(&self, part: &Range<usize>, group: &Range<usize>, memory: &mut Lent) -> Vec<(Panel, Range<usize>)> {
        let (width, depth) = (self.kernel.width, part.len());
        if let (Over::Inputs, Some(arranged)) = (self.over, self.weights.arranged()) {
            let panel = |lanes: Range<usize>| {
                let at = arranged.from(lanes.start, part.start).as_ptr();
                (Panel { at, pitch: LANES, next: arranged.panel(), depth }, lanes)
            };
            return parts(group.clone(), width, width).map(panel).collect();
        }
        let units = || parts(group.clone(), self.unit, self.unit);
        let place = |sums: &Range<usize>| depth * (sums.start - group.start);
        let values = aligned(memory, depth * group.len() + width);
        for terms in parts(part.clone(), TOGETHER, 1) {
            let weights = self.weights.rows(terms.clone());
            for sums in units() {
                let to = place(&sums) + (terms.start - part.start) * sums.len();
                weights.widen(sums.clone(), &mut values[to..][..terms.len() * sums.len()]);
            }
        }
        let mut panels = Vec::new();
        for sums in units() {
            for lanes in parts(sums.clone(), width, width) {
                let at = values[place(&sums) + lanes.start - sums.start..].as_ptr();
                panels.push((Panel { at, pitch: sums.len(), next: 0, depth }, lanes));
            }
        }
        panels
    }

    /// Some sums of some rows.
    ///
    /// # Safety
    /// As [`group`](Self::group) for these columns; the panel has them as its lanes, and the strip the rows.
    unsafe fn tile(
        &self,
        strip: Strip,
        panel: Panel,
        (rows, columns): (Range<usize>, Range<usize>),
        into: Into,
        scratch: &mut Lent,
    ) {
        let whole = columns.len() == self.kernel.width;
        if whole && into != Into::Add {
            // Where the sums go comes near while they are computed.
            self.out.fetch(rows.clone(), &columns);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let out = self.out.part([rows.start, columns.start], [rows.len(), columns.len()]);
            self.kernel.tile_into(strip, panel, (out, whole), into, scratch);
        }
    }
}
