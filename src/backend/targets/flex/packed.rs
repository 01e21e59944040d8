//! Packed weights on the CPU: dot products straight from the blocks, with activations in f32, so that a result differs from that of the
//! unpacked weights by rounding alone.

use std::ops::Range;

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use burn_std::Bytes;
use half::f16;

use super::dot::InstructionSet;
use super::lanes;
use super::weights::Weights;
use crate::packed::{Format, Packed, PackedView};

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
    let bytes = view.block_bytes();
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
    let needed = weights.outputs.saturating_sub(1) * stride + M;
    assert!(vectors.iter().all(|vector| vector.len() == weights.inputs) && M <= stride && needed <= out.len());
    #[cfg(target_arch = "x86_64")]
    if (set, weights.view.block) == (InstructionSet::Avx512, 32) {
        // SAFETY: `detect` saw the instruction set; vectors are as long as rows, and there is room for every row's sums, as asserted.
        match weights.view.format {
            Format::Q8 => unsafe { x86::rows_avx512::<8, M>(weights, vectors, out, stride) },
            Format::Q4 => unsafe { x86::rows_avx512::<4, M>(weights, vectors, out, stride) },
        }
        return add_offsets(weights, vectors, out, stride);
    }
    let bytes = weights.view.block_bytes();
    for (row, out) in out.chunks_mut(stride).take(weights.outputs).enumerate() {
        let view = weights.row(row);
        let mut totals = [0.0f32; M];
        view.strips(|first, scales, _| {
            let end = first + scales.len();
            let integers = &view.integers[first * bytes..end * bytes];
            let vectors = vectors.map(|vector| &vector[first * view.block..end * view.block]);
            let products = strip_dots(set, view.format, view.block, vectors, integers, scales);
            totals.iter_mut().zip(products).for_each(|(total, product)| *total += product);
        });
        out[..M].copy_from_slice(&totals);
    }
    add_offsets(weights, vectors, out, stride);
}

/// What the offsets of blocks add to the sums: each times the sum of its part of a vector.
fn add_offsets<const M: usize>(weights: PackedRows, vectors: [&[f32]; M], out: &mut [f32], stride: usize) {
    if weights.view.offsets.is_none() {
        return;
    }
    let block = weights.view.block;
    let part = |at: usize| vectors.map(|vector| vector[at * block..(at + 1) * block].iter().sum());
    let sums: Vec<[f32; M]> = (0..weights.blocks()).map(part).collect();
    for (row, out) in out.chunks_mut(stride).take(weights.outputs).enumerate() {
        weights.row(row).strips(|first, _, added| {
            for (sums, added) in sums[first..].iter().zip(added) {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += added * sum);
            }
        });
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

    use super::PackedRows;

    /// The sums of every row, without its offsets, of blocks of 32.
    ///
    /// # Safety
    /// AVX-512F; each vector as long as a row, and `M` elements of `out` at each `stride` for every row.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn rows_avx512<const BITS: usize, const M: usize>(
        weights: PackedRows,
        vectors: [&[f32]; M],
        out: &mut [f32],
        stride: usize,
    ) {
        let values = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
        let (blocks, mut scales) = (weights.blocks(), [0.0f32; 16]);
        let (mut integers, mut stored) = (weights.view.integers.as_ptr(), weights.view.scales.as_ptr());
        for out in out.chunks_mut(stride).take(weights.outputs) {
            // Two sums for each vector hide the latency of the multiply-add.
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            for first in (0..blocks).step_by(16) {
                let count = (blocks - first).min(16);
                // SAFETY: a row has so many blocks left, with 32 integers and 32 values of each vector for each.
                unsafe {
                    let mut part = [0u16; 16];
                    let part = if count == 16 {
                        stored.cast()
                    } else {
                        std::ptr::copy_nonoverlapping(stored.cast(), part.as_mut_ptr(), count);
                        part.as_ptr()
                    };
                    _mm512_storeu_ps(scales.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(part.cast())));
                    stored = stored.add(count);
                    let bytes = 32 * BITS / 8;
                    for (at, pair) in scales[..count].chunks(2).enumerate() {
                        let block = block::<BITS>(integers, values);
                        add::<M, 0>(&mut sums, vectors, first + 2 * at, block, pair[0]);
                        if let [_, scale] = pair {
                            let block = self::block::<BITS>(integers.add(bytes), values);
                            add::<M, 1>(&mut sums, vectors, first + 2 * at + 1, block, *scale);
                        }
                        integers = integers.add(bytes * pair.len());
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                *out = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
            }
        }
    }

    /// A block of integers as floats: its first and its second half. `values` are those of integers of four bits.
    ///
    /// # Safety
    /// AVX-512F; 32 integers from `integers` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn block<const BITS: usize>(integers: *const u8, values: __m512) -> [__m512; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            // Without closures, which would not be inlined into what has fewer instructions.
            if BITS == 8 {
                let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(integers.cast()));
                let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(integers.add(16).cast()));
                return [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)];
            }
            // A permutation looks at the low four bits of an index alone: one instruction from an integer to its value.
            let pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(integers.cast()));
            let high = _mm512_srli_epi32::<4>(pairs);
            [_mm512_permutexvar_ps(pairs, values), _mm512_permutexvar_ps(high, values)]
        }
    }

    /// Adds a block times its part of each vector. `TO` is 0 and 1 in turns.
    ///
    /// # Safety
    /// AVX-512F; 32 values of each vector from `32 · at` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add<const M: usize, const TO: usize>(
        sums: &mut [[__m512; 2]; M],
        vectors: [&[f32]; M],
        at: usize,
        [low, high]: [__m512; 2],
        scale: f32,
    ) {
        let scale = _mm512_set1_ps(scale);
        // SAFETY, of both: the caller's promise.
        let part = |m: usize| unsafe {
            let x = vectors[m].as_ptr().add(32 * at);
            (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)))
        };
        if M == 1 {
            let (x_low, x_high) = part(0);
            let product = _mm512_fmadd_ps(x_high, high, _mm512_mul_ps(x_low, low));
            sums[0][TO] = _mm512_fmadd_ps(product, scale, sums[0][TO]);
            return;
        }
        // For several vectors the weights are scaled once.
        let (low, high) = (_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
        for (m, sums) in sums.iter_mut().enumerate() {
            let (x_low, x_high) = part(m);
            sums[0] = _mm512_fmadd_ps(x_low, low, sums[0]);
            sums[1] = _mm512_fmadd_ps(x_high, high, sums[1]);
        }
    }

    /// Blocks of 32 integers of eight bits.
    ///
    /// # Safety
    /// AVX2 and FMA; 32 bytes of integers and 32 values of each vector for every scale.
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

    /// Blocks of 32 integers of four bits.
    ///
    /// # Safety
    /// AVX2 and FMA; 16 bytes of integers and 32 values of each vector for every scale.
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
