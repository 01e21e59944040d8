//! The right-hand side of a product as the tiles take it.

use std::ops::Range;

use super::kernel::Layout;
#[cfg(target_arch = "x86_64")]
use super::pieces::{self, Values};
use super::{Over, aligned};
use crate::targets::cpu::lanes::LINE;
use crate::targets::cpu::prefetch_far;
use crate::targets::flex::arranged::LANES;
use crate::targets::flex::memory::Lent;
use crate::targets::flex::transpose::transpose;
use crate::targets::flex::weights::Weights;

/// Rows of a weight whose lines the nearest cache holds until the strips have been filled with all of them.
const BLOCK: usize = 32;
#[cfg(target_arch = "x86_64")]
const _: () = assert!(BLOCK.is_multiple_of(pieces::SIDE), "pieces are laid out in whole blocks");

/// Memory for strips that are not taken as they lie.
#[derive(Default)]
pub(super) struct Scratch {
    widened: Lent,
    packed: Lent,
}

/// Some columns of some rows of a weight.
pub(super) struct Matrix<W> {
    pub(super) weights: W,
    pub(super) columns: Range<usize>,
}

/// The lines that the next strips are made from, to be asked for a few at a time.
#[derive(Default)]
pub(super) struct Ahead<'w> {
    /// From the first value on that was not asked for.
    values: &'w [f32],
    stride: usize,
    columns: usize,
    /// Columns of the first of these rows that were asked for.
    done: usize,
}

impl<'w> Ahead<'w> {
    /// Those of a matrix that is read as it lies.
    pub(super) fn of(matrix: Option<Matrix<impl Weights<'w>>>) -> Self {
        let Some(Matrix { weights, columns }) = matrix else { return Self::default() };
        let (values, stride, columns) = match (weights.arranged(), weights.as_f32()) {
            // Of a panel's rows they lie together.
            (Some(arranged), _) => {
                let (panels, columns_of) = (weights.outputs().div_ceil(LANES), LANES * columns.len());
                let values = arranged.from(0, columns.start);
                let most = panels.saturating_sub(1) * arranged.panel() + columns_of;
                (&values[..most.min(values.len())], arranged.panel(), columns_of)
            }
            (None, Some(values)) => (&values[columns.start..], weights.inputs(), columns.len()),
            (None, None) => return Self::default(),
        };
        Self { values, stride, columns, done: 0 }
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        if self.values.is_empty() { 0 } else { self.values.len().div_ceil(self.stride) * self.columns.div_ceil(LINE) }
    }

    /// Asks for so many of them.
    #[inline(always)]
    pub(super) fn fetch(&mut self, count: usize) {
        for _ in 0..count {
            prefetch_far(self.values.as_ptr().wrapping_add(self.done));
            self.done += LINE;
            if self.done >= self.columns {
                self.done = 0;
                self.values = self.values.get(self.stride..).unwrap_or_default();
            }
        }
    }
}

/// The weights of some sums, as many sums to a strip as a tile has at most.
pub(super) struct Strips<'w> {
    values: &'w [f32],
    sums: usize,
    height: usize,
    form: Form,
}

#[derive(Clone, Copy)]
enum Form {
    /// The weights of a sum one after another, those of the next sum `stride` values further on. `fetched` says
    /// whether the next strip is worth asking the memory for: not where it was just widened.
    Apart { stride: usize, fetched: bool },
    /// Laid out, in as much room for each sum. The last strip is filled up with zeros.
    Packed { room: usize },
}

/// What a tile multiplies a panel by.
#[derive(Clone, Copy)]
pub(super) enum Strip<'w> {
    /// So many sums' weights, each one after another and `stride` after those before; what lies `ahead` of them is fetched, if not 0.
    Apart { values: &'w [f32], sums: usize, stride: usize, ahead: usize },
    /// Laid out, of as many sums as a tile has at most; how many there are.
    Packed {
        values: &'w [f32],
        #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AMX leaves sums out"))]
        sums: usize,
    },
}

impl<'w> Strips<'w> {
    /// Those of a matrix.
    pub(super) fn of<'a: 'w>(
        Matrix { weights: rows, columns }: Matrix<impl Weights<'a>>,
        over: Over,
        (height, layout, packed): (usize, Layout, bool),
        scratch: &'w mut Scratch,
    ) -> Self {
        let (count, depth) = match over {
            Over::Inputs => (rows.outputs(), columns.len()),
            Over::Outputs => (columns.len(), rows.outputs()),
        };
        let (values, stride, fetched) = match rows.as_f32() {
            // The rows of a strip are too short for the processor to foresee the next.
            Some(values) => (&values[columns.start..], rows.inputs(), true),
            None => {
                let stride = columns.len();
                let values = scratch.widened.first(rows.outputs() * stride);
                rows.widen(columns, values);
                (&*values, stride, false)
            }
        };
        if !packed {
            assert!(over == Over::Inputs, "the weights of a sum lie one after another");
            return Self { values, sums: count, height, form: Form::Apart { stride, fetched } };
        }
        let room = layout.room(depth);
        let strips = aligned(&mut scratch.packed, count.next_multiple_of(height) * room);
        // The terms of a weight's columns are in as many lines of the cache, each of which holds those of more strips than one.
        let block = if over == Over::Inputs { depth } else { BLOCK };
        for start in (0..depth).step_by(block) {
            let terms = start..depth.min(start + block);
            for (index, strip) in strips.chunks_exact_mut(height * room).enumerate() {
                let first = index * height;
                let some = height.min(count - first);
                let to = &mut strip[height * layout.room(terms.start)..height * layout.room(terms.end)];
                let values = match over {
                    Over::Inputs => &values[first * stride..],
                    Over::Outputs => &values[terms.start * stride + first..],
                };
                if layout == Layout::Terms && some < height {
                    to.fill(0.0);
                }
                match (layout, over) {
                    (Layout::Terms, Over::Inputs) => transpose(values, stride, [some, depth], to, height),
                    (Layout::Terms, Over::Outputs) => unreachable!("`across` lays out no strips"),
                    #[cfg(target_arch = "x86_64")]
                    (Layout::Pieces, Over::Inputs) => {
                        pieces::left(Values { values, stride, rows: some, columns: depth }, to);
                    }
                    #[cfg(target_arch = "x86_64")]
                    (Layout::Pieces, Over::Outputs) => {
                        pieces::right(Values { values, stride, rows: terms.len(), columns: some }, to);
                    }
                }
            }
        }
        Self { values: strips, sums: count, height, form: Form::Packed { room } }
    }

    /// The strips one by one; those that lie in memory ask for the next one if it is for the first time.
    pub(super) fn iter(&self, first_time: bool) -> impl Iterator<Item = Strip<'w>> {
        let Self { values, sums, height, form } = *self;
        (0..sums.div_ceil(height)).map(move |index| match form {
            Form::Apart { stride, fetched } => Strip::Apart {
                values: &values[index * height * stride..],
                sums: height.min(sums - index * height),
                stride,
                ahead: if fetched && first_time { height * stride } else { 0 },
            },
            Form::Packed { room } => Strip::Packed {
                values: &values[index * height * room..][..height * room],
                sums: height.min(sums - index * height),
            },
        })
    }
}
