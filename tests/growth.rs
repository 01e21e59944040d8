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

/// Whether memory stays as it is from window to window, but for what a thread of the pool needs when it first computes: the products' scratch,
/// as large as a cache. What stays behind each time grows in every window.
fn stays_flat(live: &[usize]) -> bool {
    let grown = live[1..].windows(2).filter(|pair| pair[1] > pair[0] + 4096).count();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    grown <= threads && grown < live.len() / 2
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
            if token % 256 == 255 {
                live.push(LIVE.load(Ordering::Relaxed));
                seconds.push(begun.elapsed().as_secs_f64());
                begun = Instant::now();
            }
        }
        // 4 KB in a window is 16 bytes for each token.
        assert!(stays_flat(&live), "{live:?}");
        // The last windows are not slower than the first ones; a graph that is walked would be many times.
        let (first, last) = (seconds[0].min(seconds[1]), seconds[seconds.len() - 2].min(seconds[seconds.len() - 1]));
        assert!(last < 3.0 * first, "{seconds:?}");
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
