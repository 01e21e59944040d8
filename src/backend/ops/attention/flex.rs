//! Attention on the CPU in tiles of a head's queries: a tile's scores over the keys it sees are all that is ever held, so memory grows with
//! the length and not with its square. The keys are turned over once for all heads of a group; everything else is read and written where it
//! lies. A few queries are taken all heads together: see `few`.

mod few;

use std::ops::Range;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{AttentionLayout, Span};
use crate::targets::cpu::lanes::LINE;
use crate::targets::flex::dot::Stored;
use crate::targets::flex::matrix::{MatrixMut, MatrixRef, SharedColumns};
use crate::targets::flex::memory::Lent;
use crate::targets::flex::product::small::{Right, multiply};
use crate::targets::flex::{Rows, contiguous, lanes, memory, tensor};

/// Queries of a tile: enough for what a tile reads to be read seldom, few enough for causal ones to see little that is not theirs.
const TILE_ROWS: usize = 32;
/// Scores below which another thread is not worth waking.
const PARALLEL_SCORES: usize = 1 << 10;

/// Keys or values as they are stored.
enum Side {
    F32(Rows),
    F16(FlexTensor),
    BF16(FlexTensor),
}

impl Side {
    fn new(tensor: &FlexTensor) -> Self {
        match tensor.dtype() {
            DType::F16 => Self::F16(contiguous(tensor)),
            DType::BF16 => Self::BF16(contiguous(tensor)),
            _ => Self::F32(Rows::new(tensor)),
        }
    }

    /// Some rows of `dim` values, the first at `start` and the others `stride` apart: where they are, or as f32 in `scratch`.
    fn rows<'r>(&'r self, start: usize, [rows, dim, stride]: [usize; 3], scratch: &'r mut Lent) -> MatrixRef<'r> {
        match self {
            Self::F32(all) => MatrixRef::new(&all.all()[start..], rows, dim, stride),
            Self::F16(all) => widened::<f16>(all, start, [rows, dim, stride], scratch),
            Self::BF16(all) => widened::<bf16>(all, start, [rows, dim, stride], scratch),
        }
    }
}

/// The values of a contiguous tensor.
fn stored<T: Stored>(all: &FlexTensor) -> &[T] {
    &all.storage::<T>()[all.layout().start_offset()..]
}

fn widened<'r, T: Stored>(
    all: &FlexTensor,
    start: usize,
    [rows, dim, stride]: [usize; 3],
    scratch: &'r mut Lent,
) -> MatrixRef<'r> {
    let values = &stored::<T>(all)[start..];
    let out = scratch.first(rows * dim);
    for (row, to) in out.chunks_exact_mut(dim).enumerate() {
        T::widen_into(&values[row * stride..][..dim], to);
    }
    MatrixRef::new(out, rows, dim, dim)
}

/// The three inputs with their sizes.
struct Inputs<'a> {
    q: Rows,
    k: Side,
    v: Side,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    layout: &'a AttentionLayout,
    /// Whether other threads are worth waking.
    parallel: bool,
}

/// The query heads of a span that share keys and values.
struct Group<'a> {
    span: &'a Span,
    kv_head: usize,
}

/// Some queries of one head.
struct Tile {
    head: usize,
    queries: Range<usize>,
}

/// What a tile's queries give each key, `[queries, keys]`, zero where a query does not see it.
struct Probabilities {
    values: Lent,
    /// The keys of the columns: those that are seen, and before and behind them such as fill up lines.
    columns: Range<usize>,
    /// The keys that any of the queries sees.
    seen: Range<usize>,
}

impl Probabilities {
    /// Those of the keys that are seen, of any values like these.
    fn of_seen<'v>(&self, values: &'v [f32]) -> MatrixRef<'v> {
        let pitch = self.columns.len();
        let from = self.seen.start - self.columns.start;
        MatrixRef::new(values, values.len() / pitch, pitch, pitch).some_columns(from..from + self.seen.len())
    }
}

impl Inputs<'_> {
    fn new<'a>(q: &FlexTensor, k: &FlexTensor, v: &FlexTensor, layout: &'a AttentionLayout) -> Inputs<'a> {
        layout.check(q.shape()[0], k.shape()[0]);
        let (heads, kv_heads, dim) = (q.shape()[1], k.shape()[1], q.shape()[2]);
        let scores: usize = layout.spans.iter().map(|span| span.query_len * span.key_len).sum();
        let parallel = scores * heads >= PARALLEL_SCORES && rayon::current_num_threads() > 1;
        Inputs { q: Rows::new(q), k: Side::new(k), v: Side::new(v), heads, kv_heads, dim, layout, parallel }
    }

    /// Query heads of a group.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let asking = self.layout.spans.iter().filter(|span| span.query_len > 0);
        asking.flat_map(|span| (0..self.kv_heads).map(move |kv_head| Group { span, kv_head })).collect()
    }

    fn tiles(&self, group: &Group) -> Vec<Tile> {
        let (count, heads) = (group.span.query_len, group.kv_head * self.group()..(group.kv_head + 1) * self.group());
        let tiles = |head| {
            let starts = (0..count).step_by(TILE_ROWS);
            starts.map(move |start| Tile { head, queries: start..count.min(start + TILE_ROWS) })
        };
        heads.flat_map(tiles).collect()
    }

    /// The keys any of these queries sees, relative to the span's first.
    fn seen(&self, span: &Span, queries: &Range<usize>) -> Range<usize> {
        self.layout.visible(span, queries.start).start..self.layout.visible(span, queries.end - 1).end
    }

    /// Where the group has its first of `keys`, and their number, length and distance.
    fn place(&self, group: &Group, keys: &Range<usize>) -> (usize, [usize; 3]) {
        let stride = self.kv_heads * self.dim;
        let start = (group.span.key_start + keys.start) * stride + group.kv_head * self.dim;
        (start, [keys.len(), self.dim, stride])
    }

    /// The group's `k` or `v`, `[keys, dim]`.
    fn side<'r>(&self, side: &'r Side, group: &Group, scratch: &'r mut Lent) -> MatrixRef<'r> {
        let (start, shape) = self.place(group, &(0..group.span.key_len));
        side.rows(start, shape, scratch)
    }

    /// Row and column where a tile begins in a matrix with a row for each query.
    fn corner(&self, span: &Span, tile: &Tile) -> [usize; 2] {
        [span.query_start + tile.queries.start, tile.head * self.dim]
    }

    /// The tile's rows of a tensor shaped like `q`, `[queries, dim]`.
    fn rows<'r>(&self, all: &'r [f32], span: &Span, tile: &Tile) -> MatrixRef<'r> {
        let ([row, column], stride) = (self.corner(span, tile), self.heads * self.dim);
        MatrixRef::new(&all[row * stride + column..], tile.queries.len(), self.dim, stride)
    }

    /// The way back: a product into the tile's rows of a tensor shaped like `q`.
    ///
    /// # Safety
    /// `into` has a row for each query, and nobody else holds the tile's part of them.
    unsafe fn write(&self, into: &SharedColumns, span: &Span, tile: &Tile, left: MatrixRef, right: &Right) {
        // SAFETY: the caller's promise.
        let out = unsafe { into.part(self.corner(span, tile), [tile.queries.len(), self.dim]) };
        multiply(out, false, left, right, 0);
    }

    /// Softmax(scale·q·kᵀ) of a tile; `keys` are the group's, turned over.
    fn probabilities(&self, q: MatrixRef, keys: &Right, span: &Span, tile: &Tile) -> Probabilities {
        let seen = self.seen(span, &tile.queries);
        let first = keys.begin(seen.start);
        let columns = first..first + (seen.end - first).next_multiple_of(LINE);
        let (rows, pitch) = (tile.queries.len(), columns.len());
        let mut values = memory::scratch(rows * pitch);
        multiply(MatrixMut::new(&mut values, rows, pitch, pitch), false, q, keys, first);
        self.softmax(&mut values, &columns, span, (tile.queries.clone(), 1));
        Probabilities { values, columns, seen }
    }

    /// Turns scores, of these queries so many rows each, into probabilities.
    fn softmax(&self, scores: &mut [f32], keys: &Range<usize>, span: &Span, (queries, each): (Range<usize>, usize)) {
        let scale = self.layout.scale as f32;
        lanes::vectorised(
            #[inline(always)]
            |math| {
                for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(each * keys.len())) {
                    let visible = self.layout.visible(span, query);
                    let visible = visible.start - keys.start..visible.end - keys.start;
                    for row in scores.chunks_exact_mut(keys.len()) {
                        row[..visible.start].fill(0.0);
                        row[visible.end..].fill(0.0);
                        math.softmax_in_place(&mut row[visible.clone()], scale);
                    }
                }
            },
        );
    }

    /// What `work` makes of each, on all threads if that pays.
    fn map<T: Sync, R: Send>(&self, all: &[T], work: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
        let alone = all.len() == 1 || !self.parallel;
        if alone { all.iter().map(work).collect() } else { all.par_iter().map(work).collect() }
    }
}

pub(crate) fn forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: &AttentionLayout) -> FlexTensor {
    let inputs = Inputs::new(&q, &k, &v, layout);
    let mut out = memory::stale(q.shape().num_elements());
    let rows = SharedColumns::new(&mut out, inputs.heads * inputs.dim);
    inputs.map(&inputs.groups(), |group| {
        let span = group.span;
        if span.query_len * inputs.group() <= few::ROWS {
            // SAFETY: the layout was checked: spans lie inside `q` and do not share queries. Each group has queries or heads of its own.
            return unsafe { few::forward(&inputs, group, &rows) };
        }
        let [mut memory, mut wide_keys, mut wide_values] = [(); 3].map(|()| Lent::default());
        let keys = Right::new(inputs.side(&inputs.k, group, &mut wide_keys).transposed(), &mut memory);
        let values = inputs.side(&inputs.v, group, &mut wide_values);
        inputs.map(&inputs.tiles(group), |tile| {
            let p = inputs.probabilities(inputs.rows(inputs.q.all(), span, tile), &keys, span, tile);
            let mut memory = Lent::default();
            let values = Right::new(values.some_rows(p.seen.clone()), &mut memory);
            // SAFETY: as above; each tile has queries or a head of its own.
            unsafe { inputs.write(&rows, span, tile, p.of_seen(&p.values), &values) };
        });
    });
    tensor(out, q.shape())
}

pub(crate) fn backward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    grad: FlexTensor,
    layout: &AttentionLayout,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let inputs = Inputs::new(&q, &k, &v, layout);
    let grad = Rows::new(&grad);
    let mut d_q = memory::zeros(q.shape().num_elements());
    let d_q_rows = SharedColumns::new(&mut d_q, inputs.heads * inputs.dim);
    // Each task owns the keys and values of its group, so that no two threads add to the same gradient.
    let groups = inputs.groups();
    // SAFETY: as in the forward pass.
    let gradients = inputs.map(&groups, |group| unsafe { group_backward(&inputs, grad.all(), group, &d_q_rows) });

    let mut d_k = memory::zeros(k.shape().num_elements());
    let mut d_v = memory::zeros(v.shape().num_elements());
    for (group, gradients) in groups.iter().zip(gradients) {
        // Spans may share keys.
        let (start, [_, dim, stride]) = inputs.place(group, &(0..0));
        for (from, into) in gradients.iter().zip([&mut d_k, &mut d_v]) {
            for (from, into) in from.chunks_exact(dim).zip(into[start..].chunks_mut(stride)) {
                into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
            }
        }
    }
    (tensor(d_q, q.shape()), tensor(d_k, k.shape()), tensor(d_v, v.shape()))
}

/// Gradients of a group's keys and values, `[keys, dim]`; of its queries into `d_q`. With P the probabilities and G the gradient of the output:
/// dV = Pᵀ·G, dP = G·Vᵀ, dS = scale·P∘(dP − Σ dP∘P), dQ = dS·K, dK = dSᵀ·Q (Dao et al. 2022, appendix B), tile by tile.
///
/// # Safety
/// `d_q` has a row for each query, and nobody else holds the group's part of them.
unsafe fn group_backward(inputs: &Inputs, grad: &[f32], group: &Group, d_q: &SharedColumns) -> [Lent; 2] {
    let (span, dim, scale) = (group.span, inputs.dim, inputs.layout.scale as f32);
    let [mut d_keys, mut d_values] = [(); 2].map(|()| memory::scratch(span.key_len * dim));
    d_keys.fill(0.0);
    d_values.fill(0.0);
    let [mut wide_keys, mut wide_values, mut turned_keys, mut turned_values] = [(); 4].map(|()| Lent::default());
    let keys = inputs.side(&inputs.k, group, &mut wide_keys);
    let values = inputs.side(&inputs.v, group, &mut wide_values);
    let keys_turned = Right::new(keys.transposed(), &mut turned_keys);
    let values_turned = Right::new(values.transposed(), &mut turned_values);
    let [mut scores, mut memory] = [(); 2].map(|()| Lent::default());
    for tile in &inputs.tiles(group) {
        let (q, grad) = (inputs.rows(inputs.q.all(), span, tile), inputs.rows(grad, span, tile));
        let p = inputs.probabilities(q, &keys_turned, span, tile);
        let (rows, pitch) = (tile.queries.len(), p.columns.len());
        let seen = |gradient| -> MatrixMut { MatrixMut::new(gradient, p.seen.len(), dim, dim) };
        let part = p.seen.start * dim..p.seen.end * dim;
        let of_values = seen(&mut d_values[part.clone()]);
        multiply(of_values, true, p.of_seen(&p.values).transposed(), &Right::new(grad, &mut memory), 0);

        let scores = scores.first(rows * pitch);
        multiply(MatrixMut::new(scores, rows, pitch, pitch), false, grad, &values_turned, p.columns.start);
        lanes::vectorised(
            #[inline(always)]
            |math| {
                for (d, p) in scores.chunks_exact_mut(pitch).zip(p.values.chunks_exact(pitch)) {
                    let dot = math.sum2(d, p);
                    d.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - dot));
                }
            },
        );
        let scores = p.of_seen(scores);
        let keys = Right::new(keys.some_rows(p.seen.clone()), &mut memory);
        // SAFETY: the caller's promise; each tile has queries or a head of its own.
        unsafe { inputs.write(d_q, span, tile, scores, &keys) };
        multiply(seen(&mut d_keys[part]), true, scores.transposed(), &Right::new(q, &mut memory), 0);
    }
    [d_keys, d_values]
}
