//! Packed weights on the CPU: dot products straight from the blocks, with activations in f32, so that a result differs from that of the
//! unpacked weights by rounding alone.

use std::ops::Range;

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use burn_std::Bytes;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::dot::InstructionSet;
use super::lanes;
use super::weights::Weights;
use crate::packed::{Format, Packed, PackedView};

/// Blocks of a row whose scales are widened at a time.
const STRIP: usize = 64;

/// Rows of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    view: PackedView<'a>,
    inputs: usize,
    outputs: usize,
}

/// A packed matrix as a tensor of Flex: one buffer of integers, scales and offsets.
pub(crate) fn tensor(packed: Packed) -> FlexTensor {
    let (shape, dtype) = (Shape::from(packed.shape.to_vec()), packed.format.dtype(packed.block));
    FlexTensor::new(Bytes::from_elems(packed.into_bytes()), Layout::contiguous(shape), dtype)
}

impl<'a> PackedRows<'a> {
    /// The rows of a tensor made by [`tensor`].
    ///
    /// # Panics
    /// If it is a view of another: packed weights are whole.
    pub(crate) fn of(matrix: &'a FlexTensor) -> Self {
        let (format, block) = Format::of(matrix.dtype()).expect("a packed dtype");
        let shape = TensorMetadata::shape(matrix);
        let (outputs, inputs) = (shape[0], shape[1]);
        assert!(matrix.layout().is_contiguous() && matrix.layout().start_offset() == 0, "packed weights are whole");
        let blocks = outputs * inputs / block;
        let (integers, halves) = matrix.bytes().split_at(outputs * inputs * format.bits() / 8);
        let halves: &[f16] = bytemuck::cast_slice(halves);
        let (scales, offsets) = halves.split_at(blocks);
        assert!(offsets.is_empty() || offsets.len() == blocks);
        let offsets = Some(offsets).filter(|offsets| !offsets.is_empty());
        Self { view: PackedView { format, block, integers, scales, offsets }, inputs, outputs }
    }

    fn row(self, index: usize) -> PackedView<'a> {
        self.rows(index..index + 1).view
    }

    /// Blocks of a row.
    fn blocks(self) -> usize {
        self.inputs / self.view.block
    }
}

impl<'a> Weights<'a> for PackedRows<'a> {
    fn inputs(self) -> usize {
        self.inputs
    }

    fn outputs(self) -> usize {
        self.outputs
    }

    fn rows(self, range: Range<usize>) -> Self {
        let blocks = range.start * self.blocks()..range.end * self.blocks();
        Self { view: part(self.view, blocks), inputs: self.inputs, outputs: range.len() }
    }

    fn bytes_of_row(self) -> usize {
        self.inputs * self.view.format.bits() / 8 + self.blocks() * size_of::<f16>()
    }

    fn as_f32(self) -> Option<&'a [f32]> {
        None
    }

    fn widen(self, columns: Range<usize>, to: &mut [f32]) {
        if columns.len() == self.inputs {
            return unpack(self.view, to);
        }
        let block = self.view.block;
        assert!(columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block), "{columns:?}");
        for (row, to) in to.chunks_exact_mut(columns.len()).enumerate() {
            unpack(part(self.row(row), columns.start / block..columns.end / block), to);
        }
    }

    fn dots(self, set: InstructionSet, vectors: &[&[f32]], out: &mut [f32], stride: usize) {
        match vectors {
            [a] => dots(self, set, [a], out, stride),
            [a, b] => dots(self, set, [a, b], out, stride),
            [a, b, c] => dots(self, set, [a, b, c], out, stride),
            [a, b, c, d] => dots(self, set, [a, b, c, d], out, stride),
            _ => panic!("{} vectors at once", vectors.len()),
        }
    }
}

/// These blocks alone.
fn part(view: PackedView, blocks: Range<usize>) -> PackedView {
    let bytes = view.block * view.format.bits() / 8;
    PackedView {
        integers: &view.integers[blocks.start * bytes..blocks.end * bytes],
        scales: &view.scales[blocks.clone()],
        offsets: view.offsets.map(|offsets| &offsets[blocks]),
        ..view
    }
}

fn unpack(view: PackedView, to: &mut [f32]) {
    lanes::vectorised(
        #[inline(always)]
        |_| view.unpack_into(to),
    );
}

fn dots<const M: usize>(
    weights: PackedRows,
    set: InstructionSet,
    vectors: [&[f32]; M],
    out: &mut [f32],
    stride: usize,
) {
    let (block, bytes) = (weights.view.block, weights.view.block * weights.view.format.bits() / 8);
    assert!(vectors.iter().all(|vector| vector.len() == weights.inputs) && M <= stride);
    // What an offset is multiplied by.
    let sums: Vec<[f32; M]> = match weights.view.offsets {
        Some(_) => (0..weights.blocks())
            .map(|at| vectors.map(|vector| vector[at * block..(at + 1) * block].iter().sum()))
            .collect(),
        None => Vec::new(),
    };
    let (mut scales, mut added) = ([0.0f32; STRIP], [0.0f32; STRIP]);
    for (row, out) in out.chunks_mut(stride).take(weights.outputs).enumerate() {
        let view = weights.row(row);
        let mut totals = [0.0f32; M];
        for (strip, stored) in view.scales.chunks(STRIP).enumerate() {
            let (first, count) = (strip * STRIP, stored.len());
            stored.convert_to_f32_slice(&mut scales[..count]);
            let integers = &view.integers[first * bytes..(first + count) * bytes];
            let vectors = vectors.map(|vector| &vector[first * block..(first + count) * block]);
            let products = strip_dots(set, weights.view.format, block, vectors, integers, &scales[..count]);
            totals.iter_mut().zip(products).for_each(|(total, product)| *total += product);
            if !sums.is_empty() {
                view.added(first, &scales[..count], &mut added[..count]);
                for (sums, added) in sums[first..first + count].iter().zip(added) {
                    totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += added * sum);
                }
            }
        }
        out[..M].copy_from_slice(&totals);
    }
}

/// `Σ scale · (signed integers · vector)` over the blocks of a strip.
#[inline(always)]
fn strip_dots<const M: usize>(
    set: InstructionSet,
    format: Format,
    block: usize,
    vectors: [&[f32]; M],
    integers: &[u8],
    scales: &[f32],
) -> [f32; M] {
    // What the kernels below rely on.
    assert!(integers.len() == scales.len() * block * format.bits() / 8);
    assert!(vectors.iter().all(|vector| vector.len() == scales.len() * block));
    match (set, format, block) {
        // SAFETY, of all: `detect` saw the instruction set, and the lengths agree, as asserted above.
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx512, Format::Q8, 32) => unsafe { x86::q8_avx512(vectors, integers, scales) },
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx512, Format::Q4, 32) => unsafe { x86::q4_avx512(vectors, integers, scales) },
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx2, Format::Q8, 32) => unsafe { x86::q8_avx2(vectors, integers, scales) },
        #[cfg(target_arch = "x86_64")]
        (InstructionSet::Avx2, Format::Q4, 32) => unsafe { x86::q4_avx2(vectors, integers, scales) },
        _ => portable(format, block, vectors, integers, scales),
    }
}

fn portable<const M: usize>(
    format: Format,
    block: usize,
    vectors: [&[f32]; M],
    integers: &[u8],
    scales: &[f32],
) -> [f32; M] {
    let bytes = block * format.bits() / 8;
    let half = block / 2;
    vectors.map(|vector| {
        let mut lanes = [0.0f32; 16];
        let blocks = integers.chunks_exact(bytes).zip(vector.chunks_exact(block)).zip(scales);
        for ((integers, x), scale) in blocks {
            match format {
                Format::Q8 => {
                    for (integers, x) in integers.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0) {
                        for lane in 0..16 {
                            lanes[lane] += scale * (f32::from(integers[lane] as i8) * x[lane]);
                        }
                    }
                }
                Format::Q4 => {
                    for (at, pair) in integers.iter().enumerate() {
                        let (low, high) = (f32::from(pair & 15) - 8.0, f32::from(pair >> 4) - 8.0);
                        lanes[at % 16] += scale * (low * x[at] + high * x[half + at]);
                    }
                }
            }
        }
        lanes.iter().sum()
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Blocks of 32 integers of eight bits.
    ///
    /// # Safety
    /// AVX-512F; 32 bytes of integers and 32 values of each vector for every scale.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn q8_avx512<const M: usize>(vectors: [&[f32]; M], integers: &[u8], scales: &[f32]) -> [f32; M] {
        // Two sums for each vector hide the latency of the multiply-add.
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for (at, &scale) in scales.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let block = integers.as_ptr().add(32 * at);
                let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.cast())));
                let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(16).cast())));
                add(&mut sums, vectors, at, low, high, scale);
            }
        }
        total(sums)
    }

    /// Blocks of 32 integers of four bits.
    ///
    /// # Safety
    /// AVX-512F; 16 bytes of integers and 32 values of each vector for every scale.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn q4_avx512<const M: usize>(vectors: [&[f32]; M], integers: &[u8], scales: &[f32]) -> [f32; M] {
        // A permutation looks at the low four bits of an index alone: one instruction from an integer to its value.
        let values = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for (at, &scale) in scales.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(integers.as_ptr().add(16 * at).cast()));
                let low = _mm512_permutexvar_ps(pairs, values);
                let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(pairs), values);
                add(&mut sums, vectors, at, low, high, scale);
            }
        }
        total(sums)
    }

    /// Adds a block, `low` and `high`, times its part of each vector.
    ///
    /// # Safety
    /// AVX-512F; 32 values of each vector from `32 · at` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add<const M: usize>(
        sums: &mut [[__m512; 2]; M],
        vectors: [&[f32]; M],
        at: usize,
        low: __m512,
        high: __m512,
        scale: f32,
    ) {
        let scale = _mm512_set1_ps(scale);
        let (low, high) = (_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
        for (sums, vector) in sums.iter_mut().zip(vectors) {
            // SAFETY: the caller's promise.
            let x = unsafe { vector.as_ptr().add(32 * at) };
            // SAFETY: as above.
            let (x_low, x_high) = unsafe { (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))) };
            sums[0] = _mm512_fmadd_ps(x_low, low, sums[0]);
            sums[1] = _mm512_fmadd_ps(x_high, high, sums[1]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total<const M: usize>(sums: [[__m512; 2]; M]) -> [f32; M] {
        std::array::from_fn(|m| _mm512_reduce_add_ps(_mm512_add_ps(sums[m][0], sums[m][1])))
    }

    /// As [`q8_avx512`].
    ///
    /// # Safety
    /// As there, with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn q8_avx2<const M: usize>(vectors: [&[f32]; M], integers: &[u8], scales: &[f32]) -> [f32; M] {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for (at, &scale) in scales.iter().enumerate() {
            let scale = _mm256_set1_ps(scale);
            for part in 0..4 {
                // SAFETY: the caller's promise.
                let integers = unsafe { _mm_loadl_epi64(integers.as_ptr().add(32 * at + 8 * part).cast()) };
                let weights = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(integers));
                let weights = _mm256_mul_ps(weights, scale);
                for (sums, vector) in sums.iter_mut().zip(vectors) {
                    // SAFETY: the caller's promise.
                    let x = unsafe { _mm256_loadu_ps(vector.as_ptr().add(32 * at + 8 * part)) };
                    sums[part % 2] = _mm256_fmadd_ps(x, weights, sums[part % 2]);
                }
            }
        }
        total_avx2(sums)
    }

    /// As [`q4_avx512`].
    ///
    /// # Safety
    /// As there, with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn q4_avx2<const M: usize>(vectors: [&[f32]; M], integers: &[u8], scales: &[f32]) -> [f32; M] {
        let (mask, eight) = (_mm_set1_epi8(15), _mm_set1_epi8(8));
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for (at, &scale) in scales.iter().enumerate() {
            let scale = _mm256_set1_ps(scale);
            // SAFETY: the caller's promise.
            let pairs = unsafe { _mm_loadu_si128(integers.as_ptr().add(16 * at).cast()) };
            let low = _mm_sub_epi8(_mm_and_si128(pairs, mask), eight);
            let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(pairs), mask), eight);
            let parts = [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)];
            for (part, integers) in parts.into_iter().enumerate() {
                let weights = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(integers)), scale);
                for (sums, vector) in sums.iter_mut().zip(vectors) {
                    // SAFETY: the caller's promise.
                    let x = unsafe { _mm256_loadu_ps(vector.as_ptr().add(32 * at + 8 * part)) };
                    sums[part % 2] = _mm256_fmadd_ps(x, weights, sums[part % 2]);
                }
            }
        }
        total_avx2(sums)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn total_avx2<const M: usize>(sums: [[__m256; 2]; M]) -> [f32; M] {
        std::array::from_fn(|m| {
            let mut lanes = [0.0f32; 8];
            // SAFETY: eight values fit.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[m][0], sums[m][1])) };
            lanes.iter().sum()
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Packed matrices of every kind: blocks of 32 and 16, with and without offsets.
    fn matrices(shape: [usize; 2]) -> Vec<Packed> {
        let mut all = Vec::new();
        for format in [Format::Q8, Format::Q4] {
            let packed = Packed::pack(format, shape, &values(2, shape[0] * shape[1])).unwrap();
            let offsets = (0..packed.scales.len()).map(|i| f16::from_f32((i % 7) as f32 / 50.0 - 0.1)).collect();
            all.push(Packed { offsets: Some(offsets), ..packed.clone() });
            if format == Format::Q8 {
                let scales = packed.scales.iter().flat_map(|&scale| [scale, f16::from_f32(0.5 * scale.to_f32())]);
                all.push(Packed { block: 16, scales: scales.collect(), ..packed.clone() });
            }
            all.push(packed);
        }
        all
    }

    #[test]
    fn every_instruction_set_multiplies_by_the_unpacked_values() {
        for shape in [[5, 32], [3, 96], [2, 64 * 32 + 32], [1, 4864]] {
            for packed in matrices(shape) {
                let ([outputs, inputs], unpacked) = (shape, packed.unpacked());
                let tensor = tensor(packed.clone());
                let rows = PackedRows::of(&tensor);
                let vectors: Vec<Vec<f32>> = (0..4).map(|seed| values(seed, inputs)).collect();
                for (set, count) in
                    InstructionSet::available().into_iter().flat_map(|set| (1..=4).map(move |count| (set, count)))
                {
                    let views: Vec<&[f32]> = vectors[..count].iter().map(Vec::as_slice).collect();
                    let mut out = vec![f32::NAN; outputs * (count + 1)];
                    rows.dots(set, &views, &mut out, count + 1);
                    for (row, out) in unpacked.chunks_exact(inputs).zip(out.chunks_exact(count + 1)) {
                        for (vector, &value) in views.iter().zip(out) {
                            let exact: f64 = vector.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                            let allowed = 1e-6 * inputs as f64;
                            assert!((f64::from(value) - exact).abs() < allowed, "{set:?} {value} {exact}");
                        }
                        assert!(out[count].is_nan());
                    }
                }
            }
        }
    }

    #[test]
    fn parts_are_widened_to_what_the_whole_is() {
        for packed in matrices([6, 160]) {
            let unpacked = packed.unpacked();
            let tensor = tensor(packed);
            let rows = PackedRows::of(&tensor);
            let mut out = vec![0.0; 2 * 160];
            rows.rows(3..5).widen(0..160, &mut out);
            assert_eq!(out, unpacked[3 * 160..5 * 160]);
            let mut out = vec![0.0; 6 * 64];
            rows.widen(32..96, &mut out);
            for (row, out) in out.chunks_exact(64).enumerate() {
                assert_eq!(out, &unpacked[row * 160 + 32..row * 160 + 96]);
            }
        }
    }

    #[test]
    fn a_tensor_says_its_shape_and_its_dtype() {
        let packed = Packed::pack(Format::Q4, [3, 64], &values(1, 192)).unwrap();
        let tensor = tensor(packed);
        assert_eq!((TensorMetadata::shape(&tensor), tensor.dtype()), (Shape::from(vec![3, 64]), Format::Q4.dtype(32)));
        assert_ne!(tensor.dtype(), DType::F32);
    }
}
