//! Generation and validation beside training do not grow: memory and time of a token stay as they are over 2,000 tokens.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use firebrick::core::sequence::{Segments, Sequences};
use firebrick::core::train::data::Example;
use firebrick::core::train::evaluate::mean_loss;
use firebrick::prelude::*;
use support::{Golden, Inner};

/// Counts what is allocated and not yet freed.
struct Counting;
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests count what the whole process holds, so one runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether memory stays as it is over these windows: a quarter of those a little apart differ by no more than 4 KB for each window between them. What
/// stays behind each time grows between all of them; what comes once (a pool's thread that computes for the first time, late on a busy machine) or
/// comes and goes does not.
fn stays_flat(live: &[usize]) -> bool {
    let apart = (live.len() / 8).max(1);
    let mut grown: Vec<usize> = live.windows(apart + 1).map(|pair| pair[apart].saturating_sub(pair[0])).collect();
    grown.sort_unstable();
    grown[grown.len() / 4] <= 4096 * apart
}

#[test]
fn what_stays_behind_each_time_is_growth_and_what_comes_once_is_not() {
    let windows = |of: fn(usize) -> usize| (0..40).map(of).collect::<Vec<_>>();
    assert!(stays_flat(&windows(|_| 1 << 20)));
    assert!(!stays_flat(&windows(|window| (1 << 20) + 5000 * window)), "a leak");
    assert!(
        !stays_flat(&windows(|window| (1 << 20) + 50_000 * window - 400_000 * (window / 20))),
        "a leak, and memory given back once"
    );
    assert!(
        stays_flat(&windows(|window| (1 << 20) * (1 + usize::from(window > 7) + usize::from(window > 30)))),
        "two threads that come late"
    );
    assert!(stays_flat(&windows(|window| (1 << 20) + 50_000 * (window % 2))), "what comes and goes");
}

/// Tokens decoded; the golden models' positions end at 512, so the sequence wraps around to its beginning, the graph would not.
const TOKENS: usize = 2000;

contract! {
    fn decoding_on_a_training_backends_model_stays_flat<B>(device) {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let plain = model.valid();
        let mut cache = plain.new_cache(1, 128);
        let (mut live, mut seconds) = (Vec::new(), Vec::new());
        let mut begun = Instant::now();
        for token in 0..TOKENS {
            let position = token % 128;
            cache.truncate(0, position);
            let tokens = Sequences::<Inner<B>>::new(&[token as u32 % 512], Segments::continuing([(1, position)]), &device);
            let logits = plain.head(plain.hidden(&tokens, Some(&mut cache)));
            assert_eq!(logits.into_data().num_elements(), 512);
            if token % 125 == 124 {
                live.push(LIVE.load(Ordering::Relaxed));
                seconds.push(begun.elapsed().as_secs_f64());
                begun = Instant::now();
            }
        }
        // 4 KB in a window is 33 bytes for each token.
        assert!(stays_flat(&live), "{live:?}");
        // The last windows are not slower than the first ones; a graph that is walked would be many times.
        let fastest = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
        let (first, last) = seconds.split_at(seconds.len() / 2);
        assert!(fastest(last) < 3.0 * fastest(first), "{seconds:?}");
    }
}

contract! {
    fn validation_between_steps_stays_flat<B>(device) {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let golden = Golden::open("qwen2-tiny");
        let model = golden.load::<B>(&device);
        let tokens: Vec<u32> = (0..64).collect();
        let weights = std::iter::once(0.0).chain(vec![1.0; 63]).collect();
        let dataset = Dataset::from_examples(vec![Example { tokens, weights, line: 1 }; 4]);
        let plain = model.valid();
        let mut live = Vec::new();
        for _ in 0..40 {
            mean_loss(&*plain, &dataset).unwrap();
            live.push(LIVE.load(Ordering::Relaxed));
        }
        assert!(stays_flat(&live), "{live:?}");
    }
}
