//! Keys and values of the tokens a decoder has seen.

use burn::tensor::{DType, Tensor};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::write_rows::write_rows;

use crate::sequence::{Segment, Segments};

/// Rows a cache grows by at least, so that a long chat does not copy at each token.
const GROWTH: usize = 256;

/// The cache of a whole model: a [`LayerCache`] for each layer, and how far each sequence has come.
#[derive(Debug)]
pub struct KvCache<B: KernelBackend> {
    layers: Vec<LayerCache<B>>,
    lengths: Vec<usize>,
}

/// Keys and values of one layer, every slot's rows together.
#[derive(Debug)]
pub struct LayerCache<B: KernelBackend> {
    // `None` only while the rows are being written: the op must hold the only handle to write in place.
    keys: Option<Tensor<B, 3>>,
    values: Option<Tensor<B, 3>>,
    slots: usize,
    capacity: usize,
}

impl<B: KernelBackend> KvCache<B> {
    /// Room for `capacity` tokens in each of `slots` sequences; it grows when that is not enough. Keys and values are stored in
    /// `dtype`.
    pub fn new(
        layers: usize,
        slots: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let layer = || {
            let zeros = || Some(Tensor::zeros([slots * capacity, kv_heads, head_dim], (device, dtype)));
            LayerCache { keys: zeros(), values: zeros(), slots, capacity }
        };
        Self { layers: (0..layers).map(|_| layer()).collect(), lengths: vec![0; slots] }
    }

    /// Tokens held for a sequence.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|&length| length == 0)
    }

    /// Sequences there is room for.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Forgets the tokens of a sequence from `length` on.
    pub fn truncate(&mut self, slot: usize, length: usize) {
        self.lengths[slot] = self.lengths[slot].min(length);
    }

    /// One layer's cache.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache<B> {
        &mut self.layers[index]
    }

    /// Notes that every layer now holds these segments.
    pub fn advance(&mut self, segments: &Segments) {
        for segment in segments.iter() {
            self.lengths[segment.slot] = segment.position + segment.len;
        }
    }
}

impl<B: KernelBackend> LayerCache<B> {
    /// Appends the segments' rows, the keys turned by their positions' angles on the way, and gives back all keys and values,
    /// `[slots · capacity, kv heads, dim]`, with the capacity. `cos` and `sin` are `[rows, dim / 2]`; `turn_into` writes some rows, turned by
    /// their angles, into the keys from a row on.
    ///
    /// # Panics
    /// If a segment's slot does not exist.
    pub fn append(
        &mut self,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        [cos, sin]: [&Tensor<B, 2>; 2],
        segments: &Segments,
        turn_into: impl Fn(Tensor<B, 3>, Tensor<B, 3>, [Tensor<B, 2>; 2], usize) -> Tensor<B, 3>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>, usize) {
        if segments.context() > self.capacity {
            self.grow(segments.context());
        }
        let mut keys = self.keys.take().expect("the cache is whole between appends");
        let mut values = self.values.take().expect("the cache is whole between appends");
        for segment in segments.iter() {
            assert!(segment.slot < self.slots, "cache slot {} of {}", segment.slot, self.slots);
            let start = segment.slot * self.capacity + segment.position;
            let angles = [rows(cos, segment), rows(sin, segment)];
            keys = turn_into(keys, rows(&k, segment), angles, start);
            values = write_rows(values, rows(&v, segment), start);
        }
        self.keys = Some(keys.clone());
        self.values = Some(values.clone());
        (keys, values, self.capacity)
    }

    fn grow(&mut self, needed: usize) {
        let capacity = needed.max(self.capacity + (self.capacity / 2).max(GROWTH));
        for held in [&mut self.keys, &mut self.values] {
            let old = held.take().expect("the cache is whole between appends");
            let [_, kv_heads, dim] = old.dims();
            let mut new = Tensor::zeros([self.slots * capacity, kv_heads, dim], (&old.device(), old.dtype()));
            if self.capacity > 0 {
                for slot in 0..self.slots {
                    let rows = old.clone().narrow(0, slot * self.capacity, self.capacity);
                    new = write_rows(new, rows, slot * capacity);
                }
            }
            *held = Some(new);
        }
        self.capacity = capacity;
    }
}

/// The segment's rows; all of them without a copy.
fn rows<B: KernelBackend, const D: usize>(tensor: &Tensor<B, D>, segment: &Segment) -> Tensor<B, D> {
    if segment.len == tensor.dims()[0] {
        return tensor.clone();
    }
    tensor.clone().narrow(0, segment.start, segment.len)
}
