//! Grouped-query attention over sequences laid end to end. Padding exists only inside other people's implementations: a [`Span`] says
//! which rows ask and which rows answer, so that batching, chunked prefill, a cache and packing are all the same op.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Shape, Slice, Tensor, TensorData, TensorMetadata};

use super::{primitive, softmax, tensor};
use crate::KernelBackend;

#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub(crate) mod flex;

/// The rows of one sequence: which of `q` ask, and which of `k` and `v` answer. The queries are the last positions of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row in `q`.
    pub query_start: usize,
    /// Rows in `q`.
    pub query_len: usize,
    /// First row in `k` and `v`: position 0 of the sequence.
    pub key_start: usize,
    /// Rows in `k` and `v`.
    pub key_len: usize,
}

/// What attends to what.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionLayout {
    /// The sequences; their rows of `q` cover it without overlap.
    pub spans: Arc<[Span]>,
    /// Whether a position sees only itself and the ones before it.
    pub causal: bool,
    /// How many positions back a causal query sees, itself included; `None` for all (Mistral's and Qwen's sliding window).
    pub window: Option<usize>,
    /// The factor on the scores, usually `1 / sqrt(dim)`.
    pub scale: f64,
}

impl AttentionLayout {
    /// The keys, relative to the span's first, that its query number `query` sees.
    pub fn visible(&self, span: &Span, query: usize) -> std::ops::Range<usize> {
        if !self.causal {
            return 0..span.key_len;
        }
        let end = span.key_len - span.query_len + query + 1;
        end - self.window.map_or(end, |window| window.min(end))..end
    }

    fn check(&self, queries: usize, keys: usize) {
        let mut next = 0;
        for span in self.spans.iter() {
            assert!(span.query_start == next, "attention: the spans leave a gap before query row {}", span.query_start);
            assert!(span.key_start + span.key_len <= keys, "attention: {span:?} reaches past {keys} key rows");
            assert!(!self.causal || span.query_len <= span.key_len, "attention: {span:?} has more queries than keys");
            assert!(span.key_len > 0, "attention: {span:?} has no key");
            next += span.query_len;
        }
        assert!(next == queries, "attention: the spans cover {next} of {queries} query rows");
        assert!(self.window != Some(0), "attention: a window of 0 sees nothing");
        assert!(self.causal || self.window.is_none(), "attention: a window looks back, which only a causal query does");
    }
}

/// Softmax(`scale`·q·kᵀ)·v for each head, each query head with the key-value head of its group.
///
/// # Shapes
/// `q` `[rows, heads, dim]`, `k` and `v` `[key rows, kv heads, dim]` with `heads` a multiple of `kv heads` → `[rows, heads, dim]`.
///
/// # Panics
/// If the shapes or the spans do not fit.
pub fn attention<B: KernelBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    layout: &AttentionLayout,
) -> Tensor<B, 3> {
    let ([rows, heads, dim], [keys, kv_heads, key_dim]) = (q.dims(), k.dims());
    assert!(k.dims() == v.dims() && dim == key_dim, "attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    assert!(heads % kv_heads == 0, "attention: {heads} heads over {kv_heads} key-value heads");
    layout.check(rows, keys);
    tensor(<B as KernelBackend>::attention(primitive(q), primitive(k), primitive(v), layout))
}

/// One span as matrices by key-value head: queries `[kv heads, group · queries, dim]`, keys and values `[kv heads, keys, dim]`.
struct Heads<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    probabilities: FloatTensor<B>,
}

/// `[queries, heads, dim]` → `[kv heads, group · queries, dim]`.
fn by_group<B: Backend>(q: FloatTensor<B>, kv_heads: usize) -> FloatTensor<B> {
    let shape = q.shape();
    let (queries, heads, dim) = (shape[0], shape[1], shape[2]);
    let q = B::float_permute(q, &[1, 0, 2]);
    B::float_reshape(q, Shape::from(vec![kv_heads, heads / kv_heads * queries, dim]))
}

/// The way back from [`by_group`].
fn by_row<B: Backend>(q: FloatTensor<B>, queries: usize, heads: usize) -> FloatTensor<B> {
    let dim = q.shape()[2];
    B::float_permute(B::float_reshape(q, Shape::from(vec![heads, queries, dim])), &[1, 0, 2])
}

fn rows<B: Backend>(tensor: &FloatTensor<B>, start: usize, len: usize) -> FloatTensor<B> {
    let shape = tensor.shape();
    B::float_slice(
        tensor.clone(),
        &[Slice::from(start..start + len), Slice::from(0..shape[1]), Slice::from(0..shape[2])],
    )
}

fn heads_of<B: Backend>(
    q: &FloatTensor<B>,
    k: &FloatTensor<B>,
    v: &FloatTensor<B>,
    layout: &AttentionLayout,
    span: &Span,
) -> Heads<B> {
    let (heads, kv_heads) = (q.shape()[1], k.shape()[1]);
    let q = by_group::<B>(rows::<B>(q, span.query_start, span.query_len), kv_heads);
    let k = B::float_permute(rows::<B>(k, span.key_start, span.key_len), &[1, 0, 2]);
    let v = B::float_permute(rows::<B>(v, span.key_start, span.key_len), &[1, 0, 2]);
    let scores = B::float_matmul(q.clone(), B::float_transpose(k.clone()));
    let scores = B::float_mul_scalar(scores, layout.scale.into());
    let scores = masked::<B>(scores, layout, span, heads / kv_heads);
    let probabilities = softmax::reference::<B>(scores, 1.0, None);
    Heads { q, k, v, probabilities }
}

/// Scores `[kv heads, group · queries, keys]` with −∞ where a query does not see a key. The mask is made on the device, from where each
/// query's keys begin and end: as a matrix it would be as large as the scores and travel for every layer.
fn masked<B: Backend>(scores: FloatTensor<B>, layout: &AttentionLayout, span: &Span, group: usize) -> FloatTensor<B> {
    let visible = || (0..span.query_len).map(|query| layout.visible(span, query));
    let device = B::float_device(&scores);
    let bounds = |bound: fn(std::ops::Range<usize>) -> usize| {
        let bounds: Vec<i32> = visible().map(|keys| bound(keys) as i32).collect();
        Tensor::<B, 2, Int>::from_data(TensorData::new(bounds.repeat(group), [group * span.query_len, 1]), &device)
    };
    let keys = TensorData::new((0..span.key_len as i32).collect(), [1, span.key_len]);
    let keys = Tensor::<B, 2, Int>::from_data(keys, &device);
    let after = visible().any(|keys| keys.end < span.key_len);
    let after = after.then(|| keys.clone().greater_equal(bounds(|keys| keys.end)));
    let before = visible().any(|keys| keys.start > 0);
    let before = before.then(|| keys.lower(bounds(|keys| keys.start)));
    let hidden = match (before, after) {
        (Some(before), Some(after)) => before.bool_or(after),
        (Some(hidden), None) | (None, Some(hidden)) => hidden,
        (None, None) => return scores,
    };
    let shape: [usize; 3] = scores.shape().dims();
    let hidden = hidden.unsqueeze::<3>().expand(shape);
    B::float_mask_fill(scores, hidden.into_primitive(), f32::NEG_INFINITY.into())
}

/// Scores of one tile: 64 MB in f32.
const TILE_SCORES: usize = 16 << 20;

/// The spans cut along their queries, so that the scores of one tile stay within bounds. A tile is a span itself: its queries are the last
/// positions of the keys that it sees.
fn tiles(layout: &AttentionLayout, heads: usize) -> Vec<Span> {
    let mut tiles = Vec::new();
    for span in layout.spans.iter() {
        let queries = (TILE_SCORES / (heads * span.key_len).max(1)).max(16);
        for start in (0..span.query_len).step_by(queries) {
            let query_len = queries.min(span.query_len - start);
            let unseen = if layout.causal { span.query_len - start - query_len } else { 0 };
            tiles.push(Span {
                query_start: span.query_start + start,
                query_len,
                key_start: span.key_start,
                key_len: span.key_len - unseen,
            });
        }
    }
    tiles
}

pub(crate) fn reference<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    layout: &AttentionLayout,
) -> FloatTensor<B> {
    let heads = q.shape()[1];
    let outputs = tiles(layout, heads).into_iter().map(|span| {
        let Heads { v, probabilities, .. } = heads_of::<B>(&q, &k, &v, layout, &span);
        by_row::<B>(B::float_matmul(probabilities, v), span.query_len, heads)
    });
    let outputs: Vec<_> = outputs.collect();
    if outputs.is_empty() { q } else { B::float_cat(outputs, 0) }
}

pub(crate) fn reference_backward<B: Backend>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    grad: FloatTensor<B>,
    layout: &AttentionLayout,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let heads = q.shape()[1];
    let kv_heads = k.shape()[1];
    let zeros = || B::float_zeros(k.shape(), &B::float_device(&k), k.dtype().into());
    let (mut d_k, mut d_v) = (zeros(), zeros());
    let mut d_q = Vec::new();
    for span in &tiles(layout, heads) {
        let grad = by_group::<B>(rows::<B>(&grad, span.query_start, span.query_len), kv_heads);
        let Heads { q, k, v, probabilities } = heads_of::<B>(&q, &k, &v, layout, span);
        let d_probabilities = B::float_matmul(grad.clone(), B::float_transpose(v));
        let d_scores = softmax::reference_backward::<B>(probabilities.clone(), d_probabilities, 1.0);
        let d_scores = B::float_mul_scalar(d_scores, layout.scale.into());
        d_q.push(by_row::<B>(B::float_matmul(d_scores.clone(), k), span.query_len, heads));
        let write = |into: FloatTensor<B>, part: FloatTensor<B>| {
            let part = B::float_permute(part, &[1, 0, 2]);
            let old = rows::<B>(&into, span.key_start, span.key_len);
            super::write_rows::reference::<B>(into, B::float_add(old, part), span.key_start)
        };
        d_k = write(d_k, B::float_matmul(B::float_transpose(d_scores), q));
        d_v = write(d_v, B::float_matmul(B::float_transpose(probabilities), grad));
    }
    let d_q = if d_q.is_empty() { q } else { B::float_cat(d_q, 0) };
    (d_q, d_k, d_v)
}

pub(crate) mod autodiff {
    //! The gradient keeps `q`, `k` and `v` and recomputes the probabilities.
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

    use super::*;
    use crate::targets::autodiff::Tracked;

    #[derive(Debug)]
    struct Attention;

    impl<B: KernelBackend> Backward<B, 3> for Attention {
        type State = ([FloatTensor<B>; 3], AttentionLayout);

        fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let ([q, k, v], layout) = ops.state;
            let (d_q, d_k, d_v) = B::attention_backward(q, k, v, grad, &layout);
            for (node, gradient) in ops.parents.into_iter().zip([d_q, d_k, d_v]) {
                if let Some(node) = node {
                    grads.register::<B>(node.id, gradient);
                }
            }
        }
    }

    pub(crate) fn attention<B: KernelBackend, C: CheckpointStrategy>(
        q: Tracked<B>,
        k: Tracked<B>,
        v: Tracked<B>,
        layout: &AttentionLayout,
    ) -> Tracked<B> {
        let nodes = [q.node.clone(), k.node.clone(), v.node.clone()];
        let (q, k, v) = (q.primitive, k.primitive, v.primitive);
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = ([q.clone(), k.clone(), v.clone()], layout.clone());
                prep.finish(state, <B as KernelBackend>::attention(q, k, v, layout))
            }
            OpsKind::UnTracked(prep) => prep.finish(<B as KernelBackend>::attention(q, k, v, layout)),
        }
    }
}

#[cfg(test)]
mod tests;
