//! What the ops allocate on the CPU, seen by a counting allocator: attention and the head's loss stay linear in the length, and a
//! frozen weight costs no gradient. One test, because everything in the process counts.
#![cfg(feature = "flex")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::attention::{AttentionLayout, Span, attention};
use firebrick_backend::ops::cross_entropy::{Targets, cross_entropy_of_linear};
use firebrick_backend::ops::linear::linear;
use firebrick_backend::ops::write_rows::write_rows;

/// Bytes in use, the most there have been, and the largest single allocation.
static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(used, Ordering::Relaxed);
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` gives, the most bytes it had in use beyond those before it, and its largest allocation. Memory that earlier work left for
/// the next would not be counted: it goes back first.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    Flex::release_memory(&Default::default());
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before, LARGEST.load(Ordering::Relaxed))
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Autodiff<Flex>, D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Default::default())
}

#[test]
fn memory_grows_with_the_length_and_frozen_weights_cost_nothing() {
    // As many tiles are held as there are threads.
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(attention_holds_no_square);
    the_loss_holds_a_chunk();
    frozen_weights_get_no_gradient();
    a_cache_is_not_copied();
}

fn attention_holds_no_square() {
    let (tokens, dim) = (4096, 16);
    let span = Span { query_start: 0, query_len: tokens, key_start: 0, key_len: tokens };
    let layout = AttentionLayout { spans: [span].into(), causal: true, window: None, scale: 0.25 };
    let inputs = || [random([tokens, 2, dim]), random([tokens, 1, dim]), random([tokens, 1, dim])];
    // The gemm crate keeps as much for each thread as its second cache holds, from its first product on: 2 MB on some processors.
    let [q, k, v] = inputs();
    drop(attention(q, k, v, &layout));
    let [q, k, v] = inputs().map(Tensor::require_grad);
    // The scores of one tile of 64 rows; the whole square would be 64 times as much, for each head.
    let tile = 64 * tokens * 4;
    let (loss, peak, largest) = measured(|| attention(q, k, v, &layout).sum());
    assert!(largest <= tile, "forward: {largest} bytes at once, a tile has {tile}");
    assert!(peak <= 8 * tile, "forward: {peak} bytes on two threads");
    let (_, peak, largest) = measured(|| loss.backward());
    assert!(largest <= tile, "backward: {largest} bytes at once, a tile has {tile}");
    assert!(peak <= 12 * tile, "backward: {peak} bytes on two threads");
}

fn the_loss_holds_a_chunk() {
    // Logits of all rows would be 512 MB.
    let (rows, inputs, vocabulary) = (4096, 4, 32_768);
    let (hidden, head) = (random([rows, inputs]).require_grad(), random([vocabulary, inputs]));
    let targets = Targets::new(vec![7; rows], vec![1.0; rows]);
    let (_, peak, largest) = measured(|| cross_entropy_of_linear(hidden, head, &targets).backward());
    assert!(largest <= 64 << 20, "{largest} bytes at once");
    assert!(peak <= 200 << 20, "{peak} bytes");
}

fn frozen_weights_get_no_gradient() {
    // The gradient of the weight would be as large as the weight, that of x 1000 times as small, and the other way round.
    let (few, many) = (4, 4096);
    let bytes = few * many * many * 4 / few;
    let (x, weight) = (random([few, many]), random([many, many]));
    let loss = linear(x.clone().require_grad(), weight.clone(), None).sum();
    let (_, peak, _) = measured(|| loss.backward());
    assert!(peak < bytes / 4, "a frozen weight: {peak} bytes");
    let loss = linear(x, weight.require_grad(), None).sum();
    let (_, _, largest) = measured(|| loss.backward());
    assert!(largest >= bytes, "a trained weight has a gradient of {bytes} bytes, but {largest} were the most at once");
    let (x, weight) = (random([many, many]), random([few, many]));
    let loss = linear(x, weight.require_grad(), None).sum();
    let (_, peak, _) = measured(|| loss.backward());
    assert!(peak < bytes / 4, "an untracked input: {peak} bytes");
}

fn a_cache_is_not_copied() {
    let device = Default::default();
    let cache = Tensor::<Flex, 3>::zeros([4096, 2, 64], &device);
    let rows = Tensor::<Flex, 3>::ones([1, 2, 64], &device);
    let (cache, peak, _) = measured(|| write_rows(cache, rows, 4000));
    assert!(peak < 64 << 10, "{peak} bytes to append one row");
    // Its first rows as keys and values: a view, read where it lies.
    let q = Tensor::<Flex, 3>::ones([1, 2, 64], &device);
    let keys = cache.narrow(0, 0, 4000);
    let span = Span { query_start: 0, query_len: 1, key_start: 0, key_len: 4000 };
    let layout = AttentionLayout { spans: [span].into(), causal: true, window: None, scale: 0.125 };
    let (_, peak, _) = measured(|| attention(q, keys.clone(), keys, &layout));
    assert!(peak < 1 << 20, "{peak} bytes to attend once");
}
