//! Attention on the CPU in tiles of query rows: a tile's scores over the keys it sees are all that is ever held, so memory grows with
//! the length and not with its square. The query heads of a group are rows of one tile, so that a key is read once for all of them.

use std::ops::Range;

use burn::tensor::{DType, TensorMetadata};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{AttentionLayout, Span};
use crate::targets::flex::dot::{InstructionSet, Stored, StoredRows, VECTORS, rows_dot};
use crate::targets::flex::matrix::{Into, MatrixMut, MatrixRef, SharedColumns, multiply};
use crate::targets::flex::memory::Lent;
use crate::targets::flex::weighted::rows_sum;
use crate::targets::flex::{Rows, contiguous, lanes, memory, tensor};

/// Rows of a tile: enough for the matrix product to run well, few enough for its scores to stay in the second-level cache.
const TILE_ROWS: usize = 64;
/// Rows up to which a tile is made of dot products: a query of a decode step, all heads of a group.
const FEW_ROWS: usize = 8;
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

    /// Runs `work` on some rows of `dim` values as they are stored, the first at `start` and the others `stride` apart.
    fn on_rows(&self, start: usize, shape: [usize; 3], work: impl OnSide) {
        match self {
            Self::F32(all) => work.run(StoredRows::new(&all.all()[start..], shape)),
            Self::F16(all) => work.run(StoredRows::new(&stored::<f16>(all)[start..], shape)),
            Self::BF16(all) => work.run(StoredRows::new(&stored::<bf16>(all)[start..], shape)),
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

/// What is computed of rows of keys or values in whichever form they are stored.
trait OnSide {
    fn run<T: Stored>(self, rows: StoredRows<T>);
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

/// The three inputs with their sizes.
struct Inputs<'a> {
    q: Rows,
    k: Side,
    v: Side,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    layout: &'a AttentionLayout,
}

/// Some queries of a span, all heads of one group.
struct Tile<'a> {
    span: &'a Span,
    kv_head: usize,
    queries: Range<usize>,
}

impl Inputs<'_> {
    fn new<'a>(q: &FlexTensor, k: &FlexTensor, v: &FlexTensor, layout: &'a AttentionLayout) -> Inputs<'a> {
        layout.check(q.shape()[0], k.shape()[0]);
        let (heads, kv_heads, dim) = (q.shape()[1], k.shape()[1], q.shape()[2]);
        Inputs { q: Rows::new(q), k: Side::new(k), v: Side::new(v), heads, kv_heads, dim, layout }
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The tiles of one key-value head of a span.
    fn tiles<'s>(&self, span: &'s Span, kv_head: usize) -> impl Iterator<Item = Tile<'s>> + use<'s> {
        let step = (TILE_ROWS / self.group()).max(1);
        let starts = (0..span.query_len).step_by(step);
        starts.map(move |at| Tile { span, kv_head, queries: at..span.query_len.min(at + step) })
    }

    /// The keys any query of the tile sees, relative to the span's first.
    fn keys(&self, tile: &Tile) -> Range<usize> {
        let first = self.layout.visible(tile.span, tile.queries.start);
        let last = self.layout.visible(tile.span, tile.queries.end - 1);
        first.start..last.end
    }

    /// Where the tile's head has its first of `keys`, and their number, length and distance.
    fn place(&self, tile: &Tile, keys: &Range<usize>) -> (usize, [usize; 3]) {
        let stride = self.kv_heads * self.dim;
        let start = (tile.span.key_start + keys.start) * stride + tile.kv_head * self.dim;
        (start, [keys.len(), self.dim, stride])
    }

    /// `k` or `v` of the tile's head over `keys`, `[keys, dim]`.
    fn side<'r>(&self, side: &'r Side, tile: &Tile, keys: &Range<usize>, scratch: &'r mut Lent) -> MatrixRef<'r> {
        let (start, shape) = self.place(tile, keys);
        side.rows(start, shape, scratch)
    }

    /// The tile's rows of a tensor shaped like `q`, copied together: `[queries · group, dim]`.
    fn gather(&self, rows: &[f32], tile: &Tile) -> Lent {
        let width = self.group() * self.dim;
        let mut out = memory::scratch(tile.queries.len() * width);
        for (query, out) in tile.queries.clone().zip(out.chunks_exact_mut(width)) {
            let start = (tile.span.query_start + query) * self.heads * self.dim + tile.kv_head * width;
            out.copy_from_slice(&rows[start..start + width]);
        }
        out
    }

    /// The way back from [`gather`](Self::gather), into rows of all heads.
    ///
    /// # Safety
    /// `into` has a row for each query, and nobody else holds the tile's part of them.
    unsafe fn scatter(&self, from: &[f32], tile: &Tile, into: &SharedColumns) {
        let width = self.group() * self.dim;
        for (query, from) in tile.queries.clone().zip(from.chunks_exact(width)) {
            // SAFETY: the caller's promise.
            let part = unsafe { into.part_of_row(tile.span.query_start + query, tile.kv_head * width, width) };
            part.copy_from_slice(from);
        }
    }

    /// Softmax(scale·q·kᵀ) of the tile, `[queries · group, keys]`, zero where a query does not see the key.
    fn probabilities(&self, q: &[f32], tile: &Tile, keys: &Range<usize>) -> Lent {
        let (rows, width) = (tile.queries.len() * self.group(), keys.len());
        let mut scores = memory::scratch(rows * width);
        if rows <= FEW_ROWS {
            let mut by_key = memory::scratch(rows * width);
            let (start, shape) = self.place(tile, keys);
            self.k.on_rows(start, shape, Scores { queries: q, rows, out: &mut by_key });
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                scores.iter_mut().zip(by_key[row..].iter().step_by(rows)).for_each(|(to, from)| *to = *from);
            }
        } else {
            let mut scratch = Lent::default();
            let k = self.side(&self.k, tile, keys, &mut scratch).transposed();
            let q = MatrixRef::new(q, rows, self.dim, self.dim);
            multiply(MatrixMut::new(&mut scores, rows, width, width), Into::Overwrite, q, k, false);
        }
        let scale = self.layout.scale as f32;
        lanes::vectorised(
            #[inline(always)]
            |math| {
                for (query, scores) in tile.queries.clone().zip(scores.chunks_exact_mut(self.group() * width)) {
                    let visible = self.layout.visible(tile.span, query);
                    let visible = visible.start - keys.start..visible.end - keys.start;
                    for row in scores.chunks_exact_mut(width) {
                        row[..visible.start].fill(0.0);
                        row[visible.end..].fill(0.0);
                        math.softmax_in_place(&mut row[visible.clone()], scale);
                    }
                }
            },
        );
        scores
    }

    /// What a tile's queries get of the values by these probabilities, `[queries · group, dim]`, into `product`.
    fn weigh(&self, probabilities: &[f32], tile: &Tile, keys: &Range<usize>, product: &mut [f32]) {
        let rows = tile.queries.len() * self.group();
        if rows <= FEW_ROWS {
            let (start, shape) = self.place(tile, keys);
            return self.v.on_rows(start, shape, Weighted { probabilities, out: product });
        }
        let probabilities = MatrixRef::new(probabilities, rows, keys.len(), keys.len());
        let mut scratch = Lent::default();
        let v = self.side(&self.v, tile, keys, &mut scratch);
        multiply(MatrixMut::new(product, rows, self.dim, self.dim), Into::Overwrite, probabilities, v, false);
    }

    fn is_small(&self) -> bool {
        let scores: usize = self.layout.spans.iter().map(|span| span.query_len * span.key_len).sum();
        scores * self.heads < PARALLEL_SCORES || rayon::current_num_threads() == 1
    }
}

pub(crate) fn forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, layout: &AttentionLayout) -> FlexTensor {
    let inputs = Inputs::new(&q, &k, &v, layout);
    let mut out = memory::stale(q.shape().num_elements());
    let kv_heads = 0..inputs.kv_heads;
    let pairs = layout.spans.iter().flat_map(|span| kv_heads.clone().map(move |kv_head| (span, kv_head)));
    let tiles: Vec<Tile> = pairs.flat_map(|(span, kv_head)| inputs.tiles(span, kv_head)).collect();
    let rows = SharedColumns::new(&mut out, inputs.heads * inputs.dim);
    let compute = |tile: &Tile| {
        let keys = inputs.keys(tile);
        let q = inputs.gather(inputs.q.all(), tile);
        let p = inputs.probabilities(&q, tile, &keys);
        let mut product = q;
        inputs.weigh(&p, tile, &keys, &mut product);
        // SAFETY: the layout was checked: spans lie inside `q` and do not share queries. Each tile has queries or heads of its own.
        unsafe { inputs.scatter(&product, tile, &rows) };
    };
    if inputs.is_small() {
        tiles.iter().for_each(compute);
    } else {
        tiles.par_iter().for_each(compute);
    }
    tensor(out, q.shape())
}

/// Gradients of one key-value head of a span: of its queries tile by tile, of its keys and values `[keys, dim]`.
struct HeadGradients {
    queries: Vec<Lent>,
    keys: Lent,
    values: Lent,
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
    // Each task owns the keys and values of its head, so that no two threads add to the same gradient.
    let kv_heads = 0..inputs.kv_heads;
    let heads: Vec<(&Span, usize)> =
        layout.spans.iter().flat_map(|span| kv_heads.clone().map(move |kv_head| (span, kv_head))).collect();
    let compute = |&(span, kv_head): &(&Span, usize)| head_backward(&inputs, grad.all(), span, kv_head);
    let gradients: Vec<HeadGradients> =
        if inputs.is_small() { heads.iter().map(compute).collect() } else { heads.par_iter().map(compute).collect() };

    let mut d_q = memory::zeros(q.shape().num_elements());
    let mut d_k = memory::zeros(k.shape().num_elements());
    let mut d_v = memory::zeros(v.shape().num_elements());
    let d_q_rows = SharedColumns::new(&mut d_q, inputs.heads * inputs.dim);
    for (&(span, kv_head), gradients) in heads.iter().zip(gradients) {
        for (tile, d_q_tile) in inputs.tiles(span, kv_head).zip(&gradients.queries) {
            // SAFETY: as in the forward pass; one tile at a time.
            unsafe { inputs.scatter(d_q_tile, &tile, &d_q_rows) };
        }
        for (from, into) in [(&gradients.keys, &mut d_k), (&gradients.values, &mut d_v)] {
            for (key, from) in from.chunks_exact(inputs.dim).enumerate() {
                let start = ((span.key_start + key) * inputs.kv_heads + kv_head) * inputs.dim;
                into[start..start + inputs.dim].iter_mut().zip(from).for_each(|(into, from)| *into += from);
            }
        }
    }
    (tensor(d_q, q.shape()), tensor(d_k, k.shape()), tensor(d_v, v.shape()))
}

/// With P the probabilities and G the gradient of the output: dV = Pᵀ·G, dP = G·Vᵀ, dS = scale·P∘(dP − Σ dP∘P), dQ = dS·K, dK = dSᵀ·Q
/// (Dao et al. 2022, appendix B), tile by tile.
fn head_backward(inputs: &Inputs, grad: &[f32], span: &Span, kv_head: usize) -> HeadGradients {
    let dim = inputs.dim;
    let mut queries = Vec::new();
    let [mut d_keys, mut d_values] = [(); 2].map(|()| memory::scratch(span.key_len * dim));
    d_keys.fill(0.0);
    d_values.fill(0.0);
    let mut scores = Lent::default();
    for tile in inputs.tiles(span, kv_head) {
        let keys = inputs.keys(&tile);
        let (rows, width) = (tile.queries.len() * inputs.group(), keys.len());
        let q = inputs.gather(inputs.q.all(), &tile);
        let grad = inputs.gather(grad, &tile);
        let p = inputs.probabilities(&q, &tile, &keys);
        let (q, grad) = (MatrixRef::new(&q, rows, dim, dim), MatrixRef::new(&grad, rows, dim, dim));
        let p_matrix = MatrixRef::new(&p, rows, width, width);
        let part = keys.start * dim..keys.end * dim;
        let into = MatrixMut::new(&mut d_values[part.clone()], width, dim, dim);
        multiply(into, Into::Add, p_matrix.transposed(), grad, false);

        let d_scores = scores.first(rows * width);
        let mut scratch = Lent::default();
        let v = inputs.side(&inputs.v, &tile, &keys, &mut scratch).transposed();
        multiply(MatrixMut::new(d_scores, rows, width, width), Into::Overwrite, grad, v, false);
        let scale = inputs.layout.scale as f32;
        lanes::vectorised(
            #[inline(always)]
            |math| {
                for (d, p) in d_scores.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
                    let dot = math.sum2(d, p);
                    d.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - dot));
                }
            },
        );
        let d_matrix = MatrixRef::new(d_scores, rows, width, width);
        let mut d_q = memory::scratch(rows * dim);
        let k = inputs.side(&inputs.k, &tile, &keys, &mut scratch);
        multiply(MatrixMut::new(&mut d_q, rows, dim, dim), Into::Overwrite, d_matrix, k, false);
        queries.push(d_q);
        let into = MatrixMut::new(&mut d_keys[part], width, dim, dim);
        multiply(into, Into::Add, d_matrix.transposed(), q, false);
    }
    HeadGradients { queries, keys: d_keys, values: d_values }
}
