//! Rows of a stored matrix times a few vectors: what a decode step spends its time on. Reads f32, f16 and bf16 as they lie in memory,
//! accumulates in f32, in registers of any instruction set.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(crate) use crate::targets::cpu::InstructionSet;
use crate::targets::cpu::prefetch;
use crate::targets::cpu::vector::{Baseline, Plus, Vector};

/// Vectors taken at once: a weight row is loaded once for all of them.
pub(crate) const VECTORS: usize = 4;

/// Rows far from each other that are read at the same time: a processor gets more from memory in several long streams than in one, up to a
/// fifth more than by adding up all of it from the beginning to the end.
pub(crate) const STREAMS: usize = 4;

/// A format weights are stored in.
pub(crate) trait Stored: Copy + Send + Sync + bytemuck::Pod + burn::tensor::Element {
    /// The value as f32.
    fn widen(self) -> f32;
    /// The values as f32; `to` is as long as `from`.
    fn widen_into(from: &[Self], to: &mut [f32]);
    /// The values where they are f32 already.
    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }
    /// As many values as fit, from `at` on.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<V: Vector>(at: *const Self) -> V;
}

impl Stored for f32 {
    fn widen(self) -> f32 {
        self
    }
    fn widen_into(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const Self) -> V {
        unsafe { V::load(at) }
    }
}

impl Stored for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn widen_into(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const Self) -> V {
        unsafe { V::load_f16(at) }
    }
}

impl Stored for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn widen_into(from: &[Self], to: &mut [f32]) {
        // The upper half of an f32: a shift, which vectorises everywhere.
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(at: *const Self) -> V {
        unsafe { V::load_bf16(at) }
    }
}

/// Rows of a stored matrix, which may have something else between them.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a, T> {
    values: &'a [T],
    count: usize,
    length: usize,
    pitch: usize,
}

impl<'a, T: Stored> StoredRows<'a, T> {
    /// `count` rows of `length` values, each `pitch` values after the one before.
    ///
    /// # Panics
    /// If they overlap or `values` are too few.
    pub(crate) fn new(values: &'a [T], [count, length, pitch]: [usize; 3]) -> Self {
        assert!(length <= pitch && (count == 0 || (count - 1) * pitch + length <= values.len()));
        Self { values, count, length, pitch }
    }

    /// The rows some at a time, with their numbers: as many as the nearest cache keeps for whoever reads them more than once.
    pub(crate) fn blocks(self) -> impl Iterator<Item = (Range<usize>, Self)> {
        const BLOCK: usize = 64;
        (0..self.count).step_by(BLOCK).map(move |start| {
            let range = start..self.count.min(start + BLOCK);
            let block = Self { values: &self.values[start * self.pitch..], count: range.len(), ..self };
            (range, block)
        })
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Values of a row.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The values of a row.
    pub(crate) fn row(&self, index: usize) -> &'a [T] {
        &self.values[index * self.pitch..][..self.length]
    }

    /// Where a row's values from `at` on are.
    ///
    /// # Safety
    /// The row must be there, and `at` at most its length.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, at: usize) -> *const T {
        debug_assert!(row < self.count && at <= self.length);
        // SAFETY: `new` saw that all rows lie in the values.
        unsafe { self.values.as_ptr().add(row * self.pitch + at) }
    }
}

/// `out[row · stride + m] = vectors[m] · weights[row]` for each row.
///
/// # Panics
/// If there are no or more than [`VECTORS`] vectors, more of them than `stride`, or the lengths do not agree.
pub(crate) fn rows_dot<T: Stored>(
    set: InstructionSet,
    vectors: &[&[f32]],
    weights: StoredRows<T>,
    out: &mut [f32],
    stride: usize,
) {
    assert!(vectors.iter().all(|vector| vector.len() == weights.length));
    assert!(weights.length > 0 && vectors.len() <= stride);
    let needed = weights.count.saturating_sub(1) * stride + vectors.len();
    assert!(weights.count == 0 || needed <= out.len());
    match vectors {
        [a] => rows(set, [a], weights, out, stride),
        [a, b] => rows(set, [a, b], weights, out, stride),
        [a, b, c] => rows(set, [a, b, c], weights, out, stride),
        [a, b, c, d] => rows(set, [a, b, c, d], weights, out, stride),
        _ => panic!("{} vectors at once, {VECTORS} at most", vectors.len()),
    }
}

fn rows<T: Stored, const M: usize>(
    set: InstructionSet,
    vectors: [&[f32]; M],
    weights: StoredRows<T>,
    out: &mut [f32],
    stride: usize,
) {
    match set {
        // SAFETY: `detect` saw the instruction set, and `rows_dot` checked the lengths.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Amx => unsafe { x86::rows_avx512(vectors, weights, out, stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { x86::rows_avx2(vectors, weights, out, stride) },
        // SAFETY: as above.
        InstructionSet::Portable => unsafe { rows_in::<Baseline, T, M>(vectors, weights, out, stride) },
    }
}

/// How far ahead of what is read each stream is asked for.
const AHEAD: usize = 1536;
/// A cache line.
const LINE: usize = 64;

/// # Safety
/// The rows are as long as each vector, one for each `stride` elements of `out`, of which the last are at least `M`.
#[inline(always)]
unsafe fn rows_in<V: Vector, T: Stored, const M: usize>(
    vectors: [&[f32]; M],
    weights: StoredRows<T>,
    out: &mut [f32],
    stride: usize,
) {
    let rows = weights.count;
    // All sums, the vectors' values and the weights must find a register.
    let streams = const { if M * STREAMS + M < V::REGISTERS { STREAMS } else { STREAMS / 2 } };
    let each = rows / streams;
    for row in 0..each {
        // SAFETY: so many streams of so many rows are there.
        unsafe {
            if streams == STREAMS {
                some_rows::<V, T, M, STREAMS>(vectors, weights, (row, each), out, stride);
            } else {
                some_rows::<V, T, M, { STREAMS / 2 }>(vectors, weights, (row, each), out, stride);
            }
        }
    }
    for row in each * streams..rows {
        // SAFETY: as above.
        unsafe { some_rows::<V, T, M, 1>(vectors, weights, (row, 0), out, stride) };
    }
}

/// A row of each of `R` streams, which lie so many rows apart.
///
/// # Safety
/// As above, of rows that are there.
#[inline(always)]
unsafe fn some_rows<V: Vector, T: Stored, const M: usize, const R: usize>(
    vectors: [&[f32]; M],
    weights: StoredRows<T>,
    (first, apart): (usize, usize),
    out: &mut [f32],
    stride: usize,
) {
    let length = vectors[0].len();
    let values = const { LINE / size_of::<T>() };
    // A second chain for each sum, where there are few, hides the latency of the multiply-add.
    let chains = if M == 1 { 2 } else { 1 };
    let mut sums = [[[V::splat(0.0); 2]; M]; R];
    let mut at = 0;
    while at + values <= length {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: so many values are there, of the row and of each vector.
            let line = unsafe { weights.at(first + r * apart, at) };
            prefetch(line.cast::<u8>().wrapping_add(AHEAD));
            for part in 0..values / V::COUNT {
                let weight: V = unsafe { T::load(line.add(part * V::COUNT)) };
                for (vector, sums) in vectors.iter().zip(sums.iter_mut()) {
                    let x = unsafe { V::load(vector.as_ptr().add(at + part * V::COUNT)) };
                    sums[part % chains] = x.mul_add(weight, sums[part % chains]);
                }
            }
        }
        at += values;
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let row = first + r * apart;
        let weights = &weights.row(row)[at..];
        for (m, (vector, sums)) in vectors.iter().zip(sums).enumerate() {
            let rest: f32 = vector[at..].iter().zip(weights).map(|(x, weight)| x * weight.widen()).sum();
            out[row * stride + m] = (sums[0] + sums[1]).joined::<Plus>() + rest;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Stored, StoredRows, rows_in};
    use crate::targets::cpu::vector::{F32x8, F32x16};

    macro_rules! rows {
        ($name:ident, $features:literal, $vector:ty) => {
            /// # Safety
            /// As [`rows_in`], on a processor with these features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<T: Stored, const M: usize>(
                vectors: [&[f32]; M],
                weights: StoredRows<T>,
                out: &mut [f32],
                stride: usize,
            ) {
                unsafe { rows_in::<$vector, T, M>(vectors, weights, out, stride) }
            }
        };
    }
    rows!(rows_avx512, "avx512f", F32x16);
    rows!(rows_avx2, "avx2,fma,f16c", F32x8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Stored>(narrow: impl Fn(f32) -> T) {
        for length in [1, 7, 16, 31, 32, 33, 96, 131] {
            let vectors: Vec<Vec<f32>> =
                (0..VECTORS).map(|m| (0..length).map(|i| ((i * 7 + m * 3) % 13) as f32 - 6.0).collect()).collect();
            // Rows that are shared out among the streams, and some that are left over.
            let rows = 2 * STREAMS + 3;
            let cases = (1..=VECTORS).flat_map(|count| [(count, count, length), (count, count + 3, length + 5)]);
            for (count, stride, pitch) in cases {
                let weights: Vec<T> =
                    (0..(rows - 1) * pitch + length).map(|i| narrow(((i * 5) % 17) as f32 - 8.0)).collect();
                let views: Vec<&[f32]> = vectors[..count].iter().map(Vec::as_slice).collect();
                for set in InstructionSet::available() {
                    let mut out = vec![f32::NAN; (rows - 1) * stride + count];
                    let rows = StoredRows::new(&weights, [rows, length, pitch]);
                    rows_dot(set, &views, rows, &mut out, stride);
                    for (row, out) in weights.chunks(pitch).zip(out.chunks(stride)) {
                        for (vector, &out) in views.iter().zip(out) {
                            // Small integers: every sum is exact, whatever its order.
                            assert_eq!(out, vector.iter().zip(row).map(|(x, w)| x * w.widen()).sum::<f32>());
                        }
                        assert!(out[count..].iter().all(|out| out.is_nan()), "what lies between is not touched");
                    }
                }
            }
        }
    }

    #[test]
    fn every_format_count_and_length_agrees_with_the_sum() {
        check::<f32>(|v| v);
        check::<f16>(f16::from_f32);
        check::<bf16>(bf16::from_f32);
    }
}
