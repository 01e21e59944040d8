//! `attention` and its gradients against the definition in f64: one sequence, several, cached with gaps, windowed, in groups.

use burn::tensor::DType;

use super::*;
use crate::TrainBackend;
use crate::ops::oracle::{Array, View, agrees, compare, gradients_agree, on_every_backend, read};

/// Sizes, spans and what is seen.
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    key_rows: usize,
    layout: AttentionLayout,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, dim: usize, spans: &[[usize; 4]]) -> Self {
        let span = |&[query_start, query_len, key_start, key_len]: &[usize; 4]| Span {
            query_start,
            query_len,
            key_start,
            key_len,
        };
        let spans: Arc<[Span]> = spans.iter().map(span).collect();
        let key_rows = spans.iter().map(|span| span.key_start + span.key_len).max().unwrap_or(0);
        let layout = AttentionLayout { spans, causal: true, window: None, scale: 1.0 / (dim as f64).sqrt() };
        Self { heads, kv_heads, dim, key_rows, layout }
    }

    fn bidirectional(mut self) -> Self {
        self.layout.causal = false;
        self
    }

    fn window(mut self, window: usize) -> Self {
        self.layout.window = Some(window);
        self
    }

    fn capacity(mut self, rows: usize) -> Self {
        self.key_rows = rows;
        self
    }

    /// Queries, keys and values; NaN in the key rows that belong to no span, which nothing may read.
    fn arrays(&self) -> [Array; 3] {
        let queries = self.layout.spans.iter().map(|span| span.query_len).sum();
        let q = Array::random(1, &[queries, self.heads, self.dim]).map(|v| v * 3.0);
        let [mut k, mut v] = [2, 3].map(|seed| Array::random(seed, &[self.key_rows, self.kv_heads, self.dim]));
        let belongs = |row| self.layout.spans.iter().any(|s| (s.key_start..s.key_start + s.key_len).contains(&row));
        let width = self.kv_heads * self.dim;
        for row in (0..self.key_rows).filter(|&row| !belongs(row)) {
            k.values[row * width..(row + 1) * width].fill(f64::NAN);
            v.values[row * width..(row + 1) * width].fill(f64::NAN);
        }
        [q, k, v]
    }

    fn oracle(&self, inputs: &[&Array]) -> Array {
        let [q, k, v] = inputs else { panic!("three inputs") };
        let Self { heads, kv_heads, dim, layout, .. } = self;
        let row = |x: &Array, row: usize, of: usize, head: usize| -> Vec<f64> {
            let start = (row * of + head) * dim;
            x.values[start..start + dim].to_vec()
        };
        let mut out = Vec::new();
        for span in layout.spans.iter() {
            for query in 0..span.query_len {
                // The position of the query among the keys: the queries are the last of them.
                let position = (span.key_len + query).checked_sub(span.query_len);
                let sees = |key: usize| match (layout.causal, position) {
                    (true, Some(position)) => key <= position && layout.window.is_none_or(|w| key + w > position),
                    _ => true,
                };
                for head in 0..*heads {
                    let kv_head = head / (heads / kv_heads);
                    let q = row(q, span.query_start + query, *heads, head);
                    let keys: Vec<usize> = (0..span.key_len).filter(|&key| sees(key)).collect();
                    let score = |&key: &usize| -> f64 {
                        let k = row(k, span.key_start + key, *kv_heads, kv_head);
                        layout.scale * q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>()
                    };
                    let powers: Vec<f64> = keys.iter().map(score).map(f64::exp).collect();
                    let sum: f64 = powers.iter().sum();
                    let mut mixed = vec![0.0; *dim];
                    for (key, power) in keys.iter().zip(powers) {
                        let v = row(v, span.key_start + key, *kv_heads, kv_head);
                        mixed.iter_mut().zip(v).for_each(|(mixed, v)| *mixed += power / sum * v);
                    }
                    out.extend(mixed);
                }
            }
        }
        Array::new(&q.shape, out)
    }

    fn check<B: TrainBackend>(&self, device: &B::Device) {
        let arrays = self.arrays();
        let inputs = arrays.each_ref();
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            <B::InnerBackend as KernelBackend>::attention(t[0].clone(), t[1].clone(), t[2].clone(), &self.layout)
        };
        agrees::<B::InnerBackend>(device, &inputs, 1e-5, op, &self.oracle(&inputs));
    }

    fn check_gradients<B: TrainBackend>(&self, device: &B::Device) {
        let arrays = self.arrays();
        let inputs = arrays.each_ref();
        let op = |t: Vec<FloatTensor<B>>| {
            <B as KernelBackend>::attention(t[0].clone(), t[1].clone(), t[2].clone(), &self.layout)
        };
        gradients_agree::<B>(device, &inputs, &[0, 1, 2], 2e-5, op, |inputs| self.oracle(inputs));
    }
}

/// Small enough that every gradient can be taken by differences.
fn small() -> Vec<Case> {
    vec![
        Case::new(1, 1, 1, &[[0, 1, 0, 1]]),
        Case::new(2, 2, 3, &[[0, 5, 0, 5]]),
        Case::new(2, 1, 4, &[[0, 5, 0, 5]]),
        Case::new(4, 1, 5, &[[0, 3, 0, 3], [3, 4, 3, 4]]),
        Case::new(4, 2, 2, &[[0, 3, 0, 3], [3, 1, 3, 1], [4, 4, 4, 4]]),
        Case::new(4, 2, 2, &[[0, 3, 0, 3], [3, 4, 3, 4]]).bidirectional(),
        Case::new(4, 2, 2, &[[0, 9, 0, 9]]).window(3),
        Case::new(4, 2, 2, &[[0, 9, 0, 9]]).window(100),
        Case::new(2, 2, 3, &[[0, 6, 0, 6]]).window(1),
        // A cache: more keys than queries, gaps between the slots, rows that are not used yet.
        Case::new(4, 2, 3, &[[0, 1, 0, 7], [1, 3, 10, 5]]).capacity(20),
        Case::new(4, 2, 3, &[[0, 1, 10, 7], [1, 3, 0, 5]]).capacity(20).window(2),
        // Slots in use whose sequence asks nothing this time.
        Case::new(2, 1, 3, &[[0, 0, 0, 4], [0, 2, 4, 3]]),
        // More queries than keys, as a bidirectional reader may have.
        Case::new(2, 1, 3, &[[0, 5, 0, 2]]).bidirectional(),
        // Two sequences that share the keys of their beginning.
        Case::new(2, 1, 3, &[[0, 2, 0, 4], [2, 2, 0, 6]]),
    ]
}

fn every_layout_agrees_with_the_definition<B: TrainBackend>(device: &B::Device) {
    small().iter().for_each(|case| case.check::<B>(device));
}

fn sequences_of_several_tiles_agree_with_the_definition<B: TrainBackend>(device: &B::Device) {
    for case in [
        Case::new(14, 2, 64, &[[0, 1, 0, 301]]),
        Case::new(14, 2, 16, &[[0, 150, 0, 150], [150, 67, 200, 129]]),
        Case::new(4, 4, 8, &[[0, 200, 0, 200]]).window(33),
        Case::new(2, 1, 8, &[[0, 200, 0, 131]]).bidirectional(),
        // More heads in a group than a tile has rows.
        Case::new(130, 1, 4, &[[0, 5, 0, 9]]),
    ] {
        case.check::<B>(device);
    }
}

fn few_queries_over_a_cache_agree_with_the_definition<B: TrainBackend>(device: &B::Device) {
    for keys in [1, 2, 127, 128, 129, 700] {
        Case::new(4, 2, 16, &[[0, 1, 3, keys]]).capacity(keys + 9).check::<B>(device);
    }
    for dim in [1, 2, 3, 96, 127, 128, 130, 256] {
        Case::new(3, 1, dim, &[[0, 1, 0, 200]]).check::<B>(device);
    }
    for case in [
        // Sequences of different lengths, in slots with gaps, out of order.
        Case::new(6, 3, 20, &[[0, 1, 300, 290], [1, 3, 0, 5], [4, 8, 640, 150], [12, 1, 900, 1]]).capacity(1000),
        Case::new(4, 1, 8, &[[0, 1, 0, 300]]).window(33),
        Case::new(4, 1, 8, &[[0, 1, 0, 300], [1, 2, 300, 40]]).window(1),
        Case::new(4, 1, 8, &[[0, 1, 0, 20], [1, 2, 20, 140]]).window(130),
        Case::new(2, 2, 10, &[[0, 1, 0, 150], [1, 5, 150, 3]]).bidirectional(),
        Case::new(2, 2, 10, &[[0, 9, 0, 150]]),
    ] {
        case.check::<B>(device);
    }
}

fn a_narrow_cache_is_read_as_it_is_stored<B: TrainBackend>(device: &B::Device) {
    let reads = |dtype: &DType| <B::InnerBackend as KernelBackend>::reads_cache(device, *dtype);
    for dtype in [DType::F16, DType::BF16].into_iter().filter(reads) {
        for case in [
            Case::new(4, 2, 16, &[[0, 1, 3, 129]]).capacity(140),
            Case::new(6, 3, 20, &[[0, 1, 300, 290], [1, 3, 0, 5], [4, 8, 640, 150]]).capacity(1000),
            Case::new(14, 2, 16, &[[0, 150, 0, 150], [150, 67, 200, 129]]),
            Case::new(4, 1, 8, &[[0, 1, 0, 300]]).window(33),
        ] {
            let [q, k, v] = case.arrays();
            let [k, v] = [k, v].map(|array| array.stored(dtype));
            let precise = q.on::<B::InnerBackend>(device, DType::F32, View::Plain);
            let [keys, values] = [&k, &v].map(|array| array.on::<B::InnerBackend>(device, dtype, View::Plain));
            let output = <B::InnerBackend as KernelBackend>::attention(precise, keys, values, &case.layout);
            assert_eq!(output.dtype(), DType::F32);
            compare("a narrow cache", &read::<B::InnerBackend>(output), &case.oracle(&[&q, &k, &v]), 1e-5);
        }
    }
}

fn no_queries_have_no_answers<B: TrainBackend>(device: &B::Device) {
    let case = Case::new(2, 1, 4, &[[0, 0, 0, 5]]);
    let [q, k, v] = case.arrays().map(|array| array.on::<B::InnerBackend>(device, DType::F32, View::Plain));
    let output = <B::InnerBackend as KernelBackend>::attention(q, k, v, &case.layout);
    assert_eq!(read::<B::InnerBackend>(output).shape, [0, 2, 4]);
}

fn gradients_agree_with_differences<B: TrainBackend>(device: &B::Device) {
    small().iter().for_each(|case| case.check_gradients::<B>(device));
    for case in [
        Case::new(6, 2, 8, &[[0, 70, 0, 70], [70, 30, 80, 40]]),
        Case::new(2, 1, 8, &[[0, 90, 0, 90]]).window(20),
        Case::new(2, 1, 8, &[[0, 90, 0, 70]]).bidirectional(),
    ] {
        case.check_gradients::<B>(device);
    }
}

fn large_scores_do_not_overflow<B: TrainBackend>(device: &B::Device) {
    // Differences of scores of hundreds: the softmax is one key alone, in f64 as well. Of one query and of many.
    for spans in [&[[0, 9, 0, 9]][..], &[[0, 1, 0, 300]]] {
        let mut case = Case::new(2, 1, 4, spans);
        case.layout.scale = 100.0;
        let [q, k, v] = &case.arrays();
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            <B::InnerBackend as KernelBackend>::attention(t[0].clone(), t[1].clone(), t[2].clone(), &case.layout)
        };
        agrees::<B::InnerBackend>(device, &[q, k, v], 1e-3, op, &case.oracle(&[q, k, v]));
    }
}

fn nan_reaches_only_what_attends_to_it<B: TrainBackend>(device: &B::Device) {
    // Many queries; and a few.
    for spans in [[[0, 5, 0, 5], [5, 80, 5, 80]], [[0, 5, 0, 5], [5, 8, 5, 80]]] {
        let case = Case::new(2, 1, 4, &spans);
        let [mut q, mut k, mut v] = case.arrays();
        q.values[2 * 8] = f64::NAN;
        // The last key of the second sequence: only its last query sees it.
        k.values[84 * 4] = f64::NAN;
        // The first value of the first: all its queries see that.
        v.values[0] = f64::NAN;
        let op = |t: Vec<FloatTensor<B::InnerBackend>>| {
            <B::InnerBackend as KernelBackend>::attention(t[0].clone(), t[1].clone(), t[2].clone(), &case.layout)
        };
        let [q, k, v] = [q, k, v].map(|x| (x.on::<B::InnerBackend>(device, DType::F32, View::Plain), x));
        let expected = case.oracle(&[&q.1, &k.1, &v.1]);
        compare("NaN", &read::<B::InnerBackend>(op(vec![q.0, k.0, v.0])), &expected, 1e-5);
    }
}

on_every_backend!(
    every_layout_agrees_with_the_definition,
    sequences_of_several_tiles_agree_with_the_definition,
    few_queries_over_a_cache_agree_with_the_definition,
    a_narrow_cache_is_read_as_it_is_stored,
    no_queries_have_no_answers,
    gradients_agree_with_differences,
    large_scores_do_not_overflow,
    nan_reaches_only_what_attends_to_it,
);

#[test]
fn visible_keys_end_at_the_query_and_start_a_window_before() {
    let mut case = Case::new(1, 1, 1, &[[0, 3, 0, 8]]);
    let seen = |case: &Case| (0..3).map(|q| case.layout.visible(&case.layout.spans[0], q)).collect::<Vec<_>>();
    assert_eq!(seen(&case), [0..6, 0..7, 0..8]);
    case.layout.window = Some(2);
    assert_eq!(seen(&case), [4..6, 5..7, 6..8]);
    (case.layout.window, case.layout.causal) = (None, false);
    assert_eq!(seen(&case), [0..8, 0..8, 0..8]);
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let refuses = |case: Case, queries: usize, keys: usize| {
        std::panic::catch_unwind(|| case.layout.check(queries, keys)).is_err()
    };
    assert!(!refuses(Case::new(1, 1, 1, &[[0, 2, 0, 3]]), 2, 3));
    assert!(refuses(Case::new(1, 1, 1, &[[0, 2, 0, 3]]), 3, 3), "rows of no span");
    assert!(refuses(Case::new(1, 1, 1, &[[1, 2, 0, 3]]), 3, 3), "a gap");
    assert!(refuses(Case::new(1, 1, 1, &[[0, 2, 0, 3]]), 2, 2), "keys past the end");
    assert!(refuses(Case::new(1, 1, 1, &[[0, 4, 0, 3]]), 4, 3), "more causal queries than keys");
    assert!(refuses(Case::new(1, 1, 1, &[[0, 2, 0, 3]]).window(0), 2, 3), "an empty window");
    assert!(refuses(Case::new(1, 1, 1, &[[0, 2, 0, 3]]).window(2).bidirectional(), 2, 3), "a window that is ignored");
}
