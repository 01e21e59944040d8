//! Pieces of work side by side, and the threads that stand by meanwhile.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Pauses of a thread that stands by between two looks: a fraction of a microsecond.
const PAUSES: usize = 8;

/// How long a thread stands by without anything to do, longer than any op takes that runs on one thread.
const PATIENCE: Duration = Duration::from_millis(5);

/// How long a thread that stood by stays awake for the next call: the time from a token to the next, or from a text to the next.
const LINGER: Duration = Duration::from_millis(1);

thread_local! {
    /// Whether this thread works on a piece, or stands by.
    static ENGAGED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread stays awake for the next call.
    static LINGERS: Cell<bool> = const { Cell::new(false) };
}

/// What those that stand by know of the pieces.
struct Call {
    unfinished: AtomicUsize,
    /// Threads that the pieces leave.
    places: AtomicUsize,
}

/// Each piece on a thread of the pool. While there are fewer pieces than threads, the others stand by and poll for parts of their ops: a
/// thread that sleeps between two ops takes longer to wake than most ops take to run. To wake one costs a virtual machine as much, so they
/// stay awake for a moment after the last piece.
///
/// Nobody waits for those that stand by: one of them may have taken up another caller's piece.
pub(super) fn concurrently<T: Send, R: Send>(pieces: Vec<T>, work: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
    let places = rayon::current_num_threads().saturating_sub(pieces.len());
    let call = Arc::new(Call { unfinished: AtomicUsize::new(pieces.len()), places: AtomicUsize::new(places) });
    if places > 0 && !pieces.is_empty() {
        let call = call.clone();
        // To each thread, not to whoever is the first: that may be this one, if it is of the pool.
        rayon::spawn_broadcast(move |_| stand_by(&call));
    }
    let run = |piece: T| {
        let _finished = Finished(&call.unfinished);
        let _engaged = Engaged::new();
        work(piece)
    };
    // A single piece would stay on the thread that calls: if that is outside of the pool, each of its ops would wait for one of the pool to
    // wake up.
    rayon::scope(|_| pieces.into_par_iter().with_max_len(1).map(run).collect())
}

/// Takes up parts of ops until no piece is unfinished, and then for a moment what comes next.
fn stand_by(call: &Call) {
    // A thread that waits for a part of a piece may find this to do meanwhile: it must go back to its piece, which would else never end.
    if ENGAGED.get() || call.unfinished.load(Ordering::Acquire) == 0 {
        return;
    }
    let take = |places: usize| places.checked_sub(1);
    if call.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_err() {
        return;
    }
    {
        let _engaged = Engaged::new();
        // It may be that this very thread has to go back to a part of the piece that it took up without standing by.
        poll(PATIENCE, || call.unfinished.load(Ordering::Acquire) > 0);
    }
    // Where it lingers already, it goes back to that: it is the next call that was stood by for.
    if !LINGERS.replace(true) {
        poll(LINGER, || true);
        LINGERS.set(false);
    }
}

/// Takes up what there is to do, as long as it is `wanted` and there was something not that long ago.
fn poll(patience: Duration, wanted: impl Fn() -> bool) {
    let mut since = Instant::now();
    while wanted() {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            since = Instant::now();
        } else if since.elapsed() > patience {
            return;
        } else {
            // Polling takes from the thread that works, where both are of one core.
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// Marks this thread as engaged, until it is dropped.
struct Engaged(bool);

impl Engaged {
    fn new() -> Self {
        Self(ENGAGED.replace(true))
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        ENGAGED.set(self.0);
    }
}

/// Counts a piece as finished, also when it panics.
struct Finished<'a>(&'a AtomicUsize);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An op in parts that wait for each other.
    fn op(depth: u32) -> u64 {
        if depth == 0 {
            return 1;
        }
        let (one, other) = rayon::join(|| op(depth - 1), || op(depth - 1));
        one + other
    }

    #[test]
    fn a_piece_ends_whoever_stands_by() {
        // More threads than many machines have processors, so that they are interrupted anywhere, and two callers.
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(6).build().unwrap());
        let (done, ends) = mpsc::channel();
        for _ in 0..2 {
            let (pool, done) = (pool.clone(), done.clone());
            std::thread::spawn(move || {
                for _ in 0..500 {
                    let work = |ops: u64| (0..ops).map(|_| op(5)).sum::<u64>();
                    assert_eq!(pool.install(|| concurrently(vec![4], work)), [4 * 32]);
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..2 {
            ends.recv_timeout(Duration::from_secs(120)).expect("a piece that never ends");
        }
    }

    #[test]
    fn a_thread_of_the_pool_calls() {
        std::thread::spawn(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).use_current_thread().build().unwrap();
            for pieces in (1..200).map(|call| call % 5) {
                let work = |ops: u64| (0..ops).map(|_| op(5)).sum::<u64>();
                let expected: Vec<u64> = (0..pieces).map(|ops| ops * 32).collect();
                assert_eq!(pool.install(|| concurrently((0..pieces).collect(), work)), expected);
            }
        })
        .join()
        .unwrap();
    }
}
