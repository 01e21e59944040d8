//! Memory of a weight that is laid out when it is loaded: whole lines of the cache, which the widest vectors read without crossing one.

use std::mem::MaybeUninit;

use burn_std::{AllocationController, AllocationProperty, Bytes};

use crate::process::prefer_large_pages;

/// Bytes of a line.
pub(crate) const LINE: usize = 64;

/// A line of a processor's cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CacheLine(pub(crate) [u8; LINE]);

// SAFETY: bytes alone.
unsafe impl bytemuck::Zeroable for CacheLine {}
// SAFETY: as above, without padding, as the size says.
unsafe impl bytemuck::Pod for CacheLine {}

/// So many lines of zeros, filled by `fill`, as a tensor's bytes.
pub(crate) fn bytes(lines: usize, fill: impl FnOnce(&mut [CacheLine])) -> Bytes {
    let mut memory = Vec::with_capacity(lines);
    prefer_large_pages(memory.spare_capacity_mut());
    memory.resize(lines, CacheLine([0; LINE]));
    fill(&mut memory);
    // SAFETY: so many bytes of the buffer are written.
    unsafe { Bytes::from_controller(Box::new(Buffer(memory)), lines * LINE) }
}

struct Buffer(Vec<CacheLine>);

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<CacheLine>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the vector's memory, borrowed as long as it is. The caller writes no uninitialised values.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}
