//! Packed weights on wgpu and CUDA: a buffer of words of 32 bits, and how kernels read it.
//!
//! First the integers in the order of [`Packed`], all of them unsigned; then the scales and, if there are any, the offsets: f16, two to a word,
//! each of the two parts in whole words. A word has four integers of eight bits, or of four bits eight: four of the first half of a block and
//! as many of its second half.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_std::Bytes;
use cubecl::prelude::*;
use cubecl::zspace::Strides;
use cubecl::zspace::metadata::Metadata;
use half::f16;

use crate::packed::{Format, Packed};

/// Integers of a word that follow each other in a row.
pub(crate) const RUN: usize = 4;

/// What is in the buffer; each value compiles a kernel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    format: Format,
    /// Values that share a scale.
    block: u32,
    offsets: bool,
}

impl Plan {
    pub(crate) fn new(format: Format, block: usize, offsets: bool) -> Self {
        Self { format, block: block as u32, offsets }
    }

    /// That of a tensor made by [`tensor`]; nothing of any other. Its length says whether it has offsets.
    pub(crate) fn of<R: CubeRuntime>(weight: &CubeTensor<R>) -> Option<Self> {
        let (format, block) = Format::of(weight.dtype)?;
        let (values, bytes) = (weight.shape().num_elements(), weight.handle.size_in_used() as usize);
        let plans = [false, true].map(|offsets| Self::new(format, block, offsets));
        let plan = plans.into_iter().find(|plan| plan.words(values) * size_of::<u32>() == bytes);
        Some(plan.expect("a packed weight has its scales, and offsets or none"))
    }

    /// Words of so many values.
    fn words(self, values: usize) -> usize {
        let halves = (values / self.block as usize).div_ceil(2);
        values * self.format.bits() / 32 + halves * (1 + usize::from(self.offsets))
    }

    /// Words of the integers of a block.
    pub(crate) fn block_words(self) -> u32 {
        self.block * self.format.bits() as u32 / 32
    }

    /// Runs of integers in a word.
    pub(crate) fn runs(self) -> usize {
        32 / self.format.bits() / RUN
    }

    /// The largest integer, which is a mask of its bits.
    fn most(self) -> u32 {
        (1 << self.format.bits()) - 1
    }
}

/// The words of a matrix.
pub(crate) fn words(packed: &Packed) -> Vec<u32> {
    let Packed { format, integers, scales, offsets, .. } = packed;
    // A byte of eight bits is signed there, unsigned here.
    let flipped = if *format == Format::Q8 { 0x8080_8080 } else { 0 };
    let integers = integers.as_chunks::<4>().0.iter().map(|&four| u32::from_le_bytes(four) ^ flipped);
    let pairs = |halves: &[f16]| -> Vec<u32> {
        let bits = |half: Option<&f16>| u32::from(half.map_or(0, |half| half.to_bits()));
        halves.chunks(2).map(|pair| bits(pair.first()) | bits(pair.get(1)) << 16).collect()
    };
    integers.chain(pairs(scales)).chain(offsets.iter().flat_map(|offsets| pairs(offsets))).collect()
}

/// A packed matrix as a tensor.
pub(crate) fn tensor<R: CubeRuntime>(packed: &Packed, device: &R::Device) -> CubeTensor<R> {
    let client = R::client(device);
    let handle = client.create(Bytes::from_elems(words(packed)));
    let [outputs, inputs] = packed.shape;
    let metadata = Metadata::new(Shape::from(vec![outputs, inputs]), Strides::from(vec![inputs, 1]));
    CubeTensor::new(client, handle, metadata, device.clone(), packed.format.dtype(packed.block))
}

/// The buffer of a packed tensor, word by word.
pub(crate) fn as_words<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let count = weight.handle.size_in_used() as usize / size_of::<u32>();
    let metadata = Metadata::new(Shape::from(vec![count]), Strides::from(vec![1]));
    CubeTensor::new(weight.client, weight.handle, metadata, weight.device, DType::U32)
}

/// This unit's part of each row's products with a row of a packed weight, in its cell of each row's. `x` is in vectors of [`RUN`], `vectors` of
/// them in a row; the weight has `outputs` rows.
#[cube]
pub(crate) fn products_of_unit<W: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<f32, N>>,
    weight: &Tensor<Vector<W, M>>,
    weight_row: u32,
    outputs: u32,
    vectors: u32,
    shared: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[comptime] plan: Plan,
) {
    let words = vectors / comptime!(plan.runs() as u32);
    let mut sums = Array::<f32>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = 0.0;
    }
    let mut values = Array::<f32>::new(comptime!(RUN));
    let mut at = UNIT_POS;
    while at < words {
        #[unroll]
        for run in 0..comptime!(plan.runs()) {
            unpack_run::<W, M>(weight, weight_row * words + at, run, outputs * words, &mut values, plan);
            let vector = vector_of_run(at, run, plan);
            #[unroll]
            for row in 0..rows {
                let from = x[(comptime!(row as u32) * vectors + vector) as usize];
                #[unroll]
                for lane in 0..comptime!(RUN) {
                    sums[row] += from[lane] * values[lane];
                }
            }
        }
        at += CUBE_DIM;
    }
    #[unroll]
    for row in 0..rows {
        shared[row * units + UNIT_POS as usize] = sums[row];
    }
}

/// Which vector of [`RUN`] values of a row a run of its word `at` is. The runs of a word are half a block apart.
#[cube]
pub(crate) fn vector_of_run(at: u32, #[comptime] run: usize, #[comptime] plan: Plan) -> u32 {
    let block_words = comptime!(plan.block_words());
    at / block_words * comptime!(plan.block_words() * plan.runs() as u32)
        + at % block_words
        + comptime!(run as u32 * plan.block_words())
}

/// The values of one run of a word, of a weight with so many words of integers.
#[cube]
pub(crate) fn unpack_run<W: Numeric, M: Size>(
    weight: &Tensor<Vector<W, M>>,
    word: u32,
    #[comptime] run: usize,
    words: u32,
    values: &mut Array<f32>,
    #[comptime] plan: Plan,
) {
    let integers = u32::cast_from(weight[word as usize]);
    let block = word / comptime!(plan.block_words());
    let scale = half_at::<W, M>(weight, words, block);
    let mut added = scale * comptime!(-plan.format.zero());
    if comptime!(plan.offsets) {
        let blocks = words / comptime!(plan.block_words());
        added = half_at::<W, M>(weight, words + blocks.div_ceil(2), block);
    }
    #[unroll]
    for lane in 0..comptime!(RUN) {
        let integer = (integers >> comptime!((8 * lane + 4 * run) as u32)) & comptime!(plan.most());
        values[lane] = f32::cast_from(integer) * scale + added;
    }
}

/// A number in f16, of those that are two to a word from `first` on. Not every device can read the format, or keeps its smallest numbers.
#[cube]
fn half_at<W: Numeric, M: Size>(weight: &Tensor<Vector<W, M>>, first: u32, at: u32) -> f32 {
    let pair = u32::cast_from(weight[(first + at / 2) as usize]);
    let bits = pair >> (16 * (at % 2));
    let magnitude = bits & 0x7fff;
    let mut value = f32::reinterpret((magnitude << 13) + comptime!((127u32 - 15) << 23));
    if magnitude < 0x0400 {
        value = f32::cast_from(magnitude) * comptime!(1.0f32 / 16_777_216.0);
    }
    if magnitude >= 0x7c00 {
        value = f32::reinterpret((magnitude << 13) | 0x7f80_0000);
    }
    if bits & 0x8000 != 0 {
        value = -value;
    }
    value
}
