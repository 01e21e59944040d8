//! Memory of results that have been dropped, kept for the next ones. Memory new from the system is cleared by it page by page when it is
//! first touched, which takes longer than most ops that fill it; and allocators hand large blocks back at once.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn_std::{AllocationController, AllocationProperty, Bytes};

use crate::targets::cpu::zeros as new_zeros;

/// Values from which a buffer is kept: smaller ones the allocator keeps itself.
const KEPT: usize = 1 << 12;
/// Idle values, 16 MB, that may come on top of the most there ever were in use: with none, the buffers of one half of a layer push those of
/// the other out.
const SPARE: usize = 4 << 20;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), idle_values: 0, live: 0, peak: 0 });

/// No code panics while it holds the lock, and if it did the counts would still be whole.
fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Idle buffers and live ones never hold more together than the live ones once did alone and half as much again, [`SPARE`] at most: keeping
/// memory hardly raises its peak.
struct Pool {
    /// In the order they were returned.
    idle: Vec<Vec<f32>>,
    idle_values: usize,
    /// Values in tensors, and the most there ever were.
    live: usize,
    peak: usize,
}

impl Pool {
    /// The latest buffer that fits without wasting more than a quarter of it.
    fn take(&mut self, count: usize) -> Option<Vec<f32>> {
        let fits = |buffer: &Vec<f32>| (count..=count + count / 4).contains(&buffer.capacity());
        let buffer = self.idle.remove(self.idle.iter().rposition(fits)?);
        self.idle_values -= buffer.capacity();
        Some(buffer)
    }

    /// Removes what must go before there are `count` more values: the longest unused.
    fn make_room(&mut self, count: usize) -> Vec<Vec<f32>> {
        let peak = self.peak.max(self.live + count);
        let allowed = peak - self.live - count + SPARE.min(peak / 2);
        let mut gone = 0;
        while self.idle_values > allowed {
            self.idle_values -= self.idle[gone].capacity();
            gone += 1;
        }
        self.idle.drain(..gone).collect()
    }

    fn lend(&mut self, count: usize) {
        self.live += count;
        self.peak = self.peak.max(self.live);
    }

    fn give_back(&mut self, buffer: Vec<f32>) {
        self.live -= buffer.capacity();
        self.idle_values += buffer.capacity();
        self.idle.push(buffer);
    }
}

/// So many values, to be overwritten: what the last tensor left there, or zeros.
pub(crate) fn stale(count: usize) -> Vec<f32> {
    let Some(mut values) = reused(count) else {
        return new_zeros(count);
    };
    values.resize(count, 0.0);
    values
}

/// So many zeros.
pub(crate) fn zeros(count: usize) -> Vec<f32> {
    let Some(mut values) = reused(count) else {
        return new_zeros(count);
    };
    values.clear();
    values.resize(count, 0.0);
    values
}

fn reused(count: usize) -> Option<Vec<f32>> {
    if count < KEPT {
        return None;
    }
    let mut pool = pool();
    let found = pool.take(count);
    let gone = if found.is_none() { pool.make_room(count) } else { Vec::new() };
    drop(pool);
    // Unmapping takes time that no other thread should wait for.
    drop(gone);
    found
}

/// Hands all memory that no tensor uses back to the system.
pub(crate) fn release() {
    let mut pool = pool();
    let idle = std::mem::take(&mut pool.idle);
    (pool.idle_values, pool.peak) = (0, pool.live);
    drop(pool);
    drop(idle);
}

/// So many values for as long as an op runs, to be overwritten as those of [`stale`].
pub(crate) fn scratch(count: usize) -> Lent {
    Lent::new(stale(count))
}

/// Keeps a buffer that is no tensor's for the next ones.
pub(crate) fn keep(values: Vec<f32>) {
    drop(Lent::new(values));
}

/// The values as a tensor's bytes, whose memory comes back here when it is dropped.
pub(crate) fn bytes(values: Vec<f32>) -> Bytes {
    if values.capacity() < KEPT {
        return Bytes::from_elems(values);
    }
    let length = size_of_val(&values[..]);
    // SAFETY: so many bytes of the vector are written.
    unsafe { Bytes::from_controller(Box::new(Lent::new(values)), length) }
}

/// A buffer in use; the default one is empty.
#[derive(Default)]
pub(crate) struct Lent(Vec<f32>);

impl Lent {
    fn new(values: Vec<f32>) -> Self {
        if values.capacity() >= KEPT {
            pool().lend(values.capacity());
        }
        Self(values)
    }

    /// So many values, to be overwritten: in this buffer, or in a larger one that takes its place.
    pub(crate) fn first(&mut self, count: usize) -> &mut [f32] {
        if self.0.len() < count {
            // It goes back before the other is looked for.
            drop(std::mem::take(self));
            *self = scratch(count);
        }
        &mut self.0[..count]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Nothing is left after it was detached.
        if self.0.capacity() >= KEPT {
            pool().give_back(std::mem::take(&mut self.0));
        }
    }
}

impl Deref for Lent {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl AllocationController for Lent {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let bytes = self.0.capacity() * size_of::<f32>();
        // SAFETY: the vector's memory, borrowed as long as it is. The caller writes no uninitialised values.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), bytes) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.capacity() * size_of::<f32>()) }
    }

    fn try_detach(&mut self) -> Option<NonNull<u8>> {
        let mut values = std::mem::ManuallyDrop::new(std::mem::take(&mut self.0));
        pool().live -= values.capacity();
        NonNull::new(values.as_mut_ptr().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(pool: &mut Pool, capacity: usize) -> *const f32 {
        let buffer = Vec::with_capacity(capacity);
        let address = Vec::as_ptr(&buffer);
        pool.lend(capacity);
        pool.give_back(buffer);
        address
    }

    fn empty() -> Pool {
        Pool { idle: Vec::new(), idle_values: 0, live: 0, peak: 0 }
    }

    #[test]
    fn the_latest_that_fits_is_taken_and_no_other() {
        let mut pool = empty();
        let [_, second, _] = [1000, 1000, 2000].map(|capacity| returned(&mut pool, capacity));
        assert!(pool.take(1001).is_none(), "2000 would be wasteful");
        let taken = pool.take(900).unwrap();
        assert_eq!(taken.as_ptr(), second);
        assert_eq!((pool.idle.len(), pool.idle_values), (2, 3000));
    }

    #[test]
    fn idle_buffers_hardly_raise_the_peak() {
        let mut pool = empty();
        for _ in 0..4 {
            pool.lend(1000);
        }
        for _ in 0..4 {
            pool.give_back(Vec::with_capacity(1000));
        }
        assert!(pool.make_room(2000).is_empty(), "half as much again may stay");
        assert_eq!(pool.make_room(3500).len(), 2);
        pool.lend(3500);
        assert_eq!((pool.live + pool.idle_values, pool.peak), (5500, 4000));
        assert_eq!(pool.make_room(0).len(), 0);
        pool.lend(100 * SPARE);
        assert_eq!(pool.make_room(100 * SPARE).len(), 0);
        pool.give_back(Vec::with_capacity(2 * SPARE));
        assert_eq!(pool.make_room(2 * SPARE).len(), 3, "however much there was, no more than that");
    }

    #[test]
    fn memory_comes_back_and_is_taken_over() {
        let count = (1 << 20) + 17;
        let first = stale(count);
        let address = first.as_ptr().cast::<u8>();
        let lent = bytes(first);
        assert_eq!((lent.as_ptr(), lent.len()), (address, 4 * count));
        drop(lent);
        // Other tests take buffers too, but none of this size.
        let again = zeros(count);
        assert_eq!((again.as_ptr().cast(), again.len()), (address, count));
        assert!(again.iter().all(|&value| value == 0.0));
        let detached = bytes(again).try_into_vec::<f32>().unwrap();
        assert_eq!((detached.as_ptr().cast(), detached.len()), (address, count));
        assert_eq!(stale(count).len(), count);
        assert_eq!(bytes(vec![1.0; count]), Bytes::from_elems(vec![1.0f32; count]));
    }
}
