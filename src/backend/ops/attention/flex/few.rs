//! A few queries, as in a step of decoding: all heads of a group together in dot products, so that a key is read once for all of them.

use half::{bf16, f16};

use super::{Group, Inputs, Side, stored};
use crate::targets::flex::dot::{InstructionSet, Stored, StoredRows, VECTORS, rows_dot};
use crate::targets::flex::matrix::SharedColumns;
use crate::targets::flex::memory;
use crate::targets::flex::weighted::rows_sum;

/// Queries of all heads of a group up to which this is faster.
pub(super) const ROWS: usize = 8;

/// Attention of a group.
///
/// # Safety
/// `into` has a row for each query, and nobody else holds the group's part of them.
pub(super) unsafe fn forward(inputs: &Inputs, group: &Group, into: &SharedColumns) {
    let (span, queries) = (group.span, 0..group.span.query_len);
    // The queries of a group one after another, all of its heads each.
    let width = inputs.group() * inputs.dim;
    let first = (span.query_start, group.kv_head * width);
    let mut q = memory::scratch(queries.len() * width);
    for (query, to) in q.chunks_exact_mut(width).enumerate() {
        to.copy_from_slice(&inputs.q.all()[(first.0 + query) * inputs.heads * inputs.dim + first.1..][..width]);
    }
    let keys = inputs.seen(span, &queries);
    let (rows, (start, shape)) = (queries.len() * inputs.group(), inputs.place(group, &keys));
    let [mut by_key, mut scores] = [(); 2].map(|()| memory::scratch(rows * keys.len()));
    inputs.k.on_rows(start, shape, Scores { queries: &q, rows, out: &mut by_key });
    for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
        scores.iter_mut().zip(by_key[row..].iter().step_by(rows)).for_each(|(to, from)| *to = *from);
    }
    inputs.softmax(&mut scores, &keys, span, (queries, inputs.group()));
    inputs.v.on_rows(start, shape, Weighted { probabilities: &scores, out: &mut q });
    for (query, from) in q.chunks_exact(width).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { into.part_of_row(first.0 + query, first.1, width) }.copy_from_slice(from);
    }
}

/// What is computed of rows of keys or values in whichever form they are stored.
trait OnSide {
    fn run<T: Stored>(self, rows: StoredRows<T>);
}

impl Side {
    /// Runs `work` on some rows of `dim` values as they are stored, the first at `start` and the others `stride` apart.
    fn on_rows(&self, start: usize, shape: [usize; 3], work: impl OnSide) {
        match self {
            Self::F32(all) => work.run(StoredRows::new(&all.all()[start..], shape)),
            Self::F16(all) => work.run(StoredRows::new(&stored::<f16>(all)[start..], shape)),
            Self::BF16(all) => work.run(StoredRows::new(&stored::<bf16>(all)[start..], shape)),
        }
    }
}

/// `out[key · rows + row] = queries[row] · key`.
struct Scores<'a> {
    queries: &'a [f32],
    rows: usize,
    out: &'a mut [f32],
}

impl OnSide for Scores<'_> {
    fn run<T: Stored>(self, keys: StoredRows<T>) {
        let queries: Vec<&[f32]> = self.queries.chunks_exact(keys.length()).collect();
        for (range, keys) in keys.blocks() {
            let out = &mut self.out[range.start * self.rows..range.end * self.rows];
            for (index, queries) in queries.chunks(VECTORS).enumerate() {
                rows_dot(InstructionSet::detect(), queries, keys, &mut out[index * VECTORS..], self.rows);
            }
        }
    }
}

/// The values, each as much as its probability says.
struct Weighted<'a> {
    probabilities: &'a [f32],
    out: &'a mut [f32],
}

impl OnSide for Weighted<'_> {
    fn run<T: Stored>(self, values: StoredRows<T>) {
        rows_sum(InstructionSet::detect(), self.probabilities, values, self.out);
    }
}
