//! Weights as blocks of small integers, each block with a scale: how they lie in memory, and how they are made and read on the host.
//! Kernels that multiply by them are in `targets`.
//!
//! A packed matrix is a float tensor whose dtype says [`Format::dtype`]: it passes through models, adapters and autodiff as any other
//! frozen weight. Only the ops that take weights know what is inside: [`linear`](crate::ops::linear) and its relatives, and
//! [`embedding`](crate::ops::embedding).

use burn::tensor::DType;
use burn::tensor::quantization::{BlockSize, QuantLevel, QuantMode, QuantParam, QuantScheme, QuantStore, QuantValue};
use half::f16;

/// Values that share a scale at least in what is packed here: rows of which it is no divisor are left as they are.
pub const BLOCK: usize = 32;

/// How wide the integers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Eight bits: `scale · n`, `n` from −128 to 127.
    Q8,
    /// Four bits: `scale · (n − 8)`, `n` from 0 to 15.
    Q4,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Bits of an integer.
    pub fn bits(self) -> usize {
        match self {
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// How many values a block may have, the fewest first.
    pub fn blocks(self) -> &'static [usize] {
        match self {
            Self::Q8 => &[16, BLOCK, 64],
            Self::Q4 => &[16, BLOCK],
        }
    }

    /// How many values share a scale where rows of so many are packed here; nothing if they are not packed.
    ///
    /// The longest blocks that fit. On the CPU each block's sum is scaled in f32: with VNNI three instructions beside the eight of its products
    /// with 32 of eight bits, beside sixteen with 64. A scale stands for 255 values there, so that the largest of more costs the others little.
    pub fn block(self, inputs: usize) -> Option<usize> {
        self.blocks().iter().rev().copied().find(|block| *block >= BLOCK && inputs.is_multiple_of(*block))
    }

    /// What is subtracted from the unsigned integer to make it signed.
    pub fn zero(self) -> f32 {
        match self {
            Self::Q8 => 128.0,
            Self::Q4 => 8.0,
        }
    }

    /// What is added to `scale · signed integer` in a block with this offset, which goes with unsigned ones.
    #[inline(always)]
    pub(crate) fn added(self, scale: f32, offset: Option<f16>) -> f32 {
        offset.map_or(0.0, |offset| offset.to_f32() + self.zero() * scale)
    }

    /// The dtype of a tensor in blocks of so many values.
    pub fn dtype(self, block: usize) -> DType {
        DType::QFloat(QuantScheme {
            value: match self {
                Self::Q8 => QuantValue::Q8F,
                Self::Q4 => QuantValue::Q4F,
            },
            param: QuantParam::F16,
            store: QuantStore::Native,
            level: QuantLevel::Block(BlockSize::new([block as u8])),
            mode: QuantMode::Symmetric,
        })
    }

    /// The format and the length of a block that this dtype says.
    pub fn of(dtype: DType) -> Option<(Self, usize)> {
        let known = [Self::Q8, Self::Q4].into_iter();
        let mut known = known.flat_map(|format| format.blocks().iter().map(move |block| (format, *block)));
        known.find(|(format, block)| format.dtype(*block) == dtype)
    }
}

/// The dtype that says that a matrix is in f32 and in an order of the backend's own: see [`linear::arranged`](crate::ops::linear::arranged).
pub(crate) const ARRANGED: DType = DType::QFloat(QuantScheme {
    value: QuantValue::Q8F,
    param: QuantParam::F32,
    store: QuantStore::PackedU32(0),
    level: QuantLevel::Tensor,
    mode: QuantMode::Symmetric,
});

/// The dtype of a weight's values where they are stored one by one, in whichever order: f32 for a matrix that is arranged.
pub fn value_dtype(dtype: DType) -> DType {
    if dtype == ARRANGED { DType::F32 } else { dtype }
}

/// The name of a weight's dtype, on the command line and in messages: `f32`, `bf16`, `q8`.
pub fn dtype_name(dtype: DType) -> &'static str {
    Format::of(dtype).map_or(value_dtype(dtype).name(), |(format, _)| format.name())
}

/// A packed matrix in the memory of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// The width of the integers.
    pub format: Format,
    /// Values that share a scale: one of [`Format::blocks`].
    pub block: usize,
    /// `[out, in]`; `in` is a multiple of `block`.
    pub shape: [usize; 2],
    /// Row by row, block by block. Of eight bits: the integers, signed. Of four: `block / 2` bytes, the first half of the block in their low
    /// halves, the second half in their high ones (the order of GGUF's `Q4_0`).
    pub integers: Vec<u8>,
    /// A scale for each block.
    pub scales: Vec<f16>,
    /// What is added in each block where it is not centred: then a value is `scale · n + offset` with `n` unsigned, from 0 on.
    pub offsets: Option<Vec<f16>>,
}

/// Why a matrix cannot be packed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct CannotPack(String);

impl Packed {
    /// Packs rows of f32 in blocks as long as [`Format::block`] says: each value becomes the nearest multiple of its block's scale.
    ///
    /// Of eight bits the scale is the largest magnitude over 127; of four, the value of the largest magnitude over −8 (both as in GGUF).
    ///
    /// # Errors
    /// If a row is not made of whole blocks, or a value is not finite or too large for a scale in f16.
    pub fn pack(format: Format, shape: [usize; 2], values: &[f32]) -> Result<Self, CannotPack> {
        let [rows, inputs] = shape;
        let Some(block) = format.block(inputs).filter(|_| values.len() == rows * inputs) else {
            return Err(CannotPack(format!("rows of {inputs} values are not made of blocks of {BLOCK}")));
        };
        let mut integers = vec![0; values.len() * format.bits() / 8];
        let mut scales = vec![f16::ZERO; values.len() / block];
        let pack = match block {
            BLOCK => pack_blocks::<BLOCK>,
            64 => pack_blocks::<64>,
            _ => unreachable!("blocks of {block}"),
        };
        #[cfg(feature = "cpu")]
        {
            use rayon::prelude::*;
            // Blocks that a thread packs at a time.
            const PART: usize = 1024;
            let into = integers.par_chunks_mut(PART * block * format.bits() / 8).zip(scales.par_chunks_mut(PART));
            let parts = values.par_chunks(PART * block).zip(into);
            parts.try_for_each(|(values, (integers, scales))| pack(format, values, integers, scales))?;
        }
        #[cfg(not(feature = "cpu"))]
        pack(format, values, &mut integers, &mut scales)?;
        Ok(Self { format, block, shape, integers, scales, offsets: None })
    }

    /// The values, row by row.
    pub fn unpacked(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape[0] * self.shape[1]];
        let bytes = self.block * self.format.bits() / 8;
        let blocks = self.integers.chunks_exact(bytes).zip(out.chunks_exact_mut(self.block));
        for (at, (integers, out)) in blocks.enumerate() {
            let scale = self.scales[at].to_f32();
            let added = self.format.added(scale, self.offsets.as_ref().map(|offsets| offsets[at]));
            unpack_block(self.format, integers, scale, added, out);
        }
        out
    }
}

/// Packs whole blocks of `COUNT` values.
fn pack_blocks<const COUNT: usize>(
    format: Format,
    values: &[f32],
    integers: &mut [u8],
    scales: &mut [f16],
) -> Result<(), CannotPack> {
    // To the nearest integer, ties to the even one, without a function that every processor calls by itself.
    const ROUND: f32 = 12_582_912.0;
    let nearest = |value: f32, least: f32, most: f32| ((value + ROUND) - ROUND).clamp(least, most);
    let blocks = values.chunks_exact(COUNT).zip(integers.chunks_exact_mut(COUNT * format.bits() / 8));
    for ((block, out), scale) in blocks.zip(scales) {
        let extreme = block.iter().copied().fold(0.0f32, |most, v| if v.abs() > most.abs() { v } else { most });
        let exact = match format {
            Format::Q8 => extreme.abs() / 127.0,
            Format::Q4 => extreme / -8.0,
        };
        *scale = f16::from_f32(exact);
        if let Some(value) = block.iter().find(|value| !value.is_finite()) {
            return Err(CannotPack(format!("a value is {value}")));
        }
        if !scale.is_finite() {
            return Err(CannotPack(format!("a block reaches {extreme}, whose scale f16 cannot hold")));
        }
        // A block too small for any scale is zeros.
        let inverse = if *scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        match format {
            Format::Q8 => {
                for (out, v) in out.iter_mut().zip(block) {
                    *out = (nearest(v * inverse, -127.0, 127.0) as i32 as i8) as u8;
                }
            }
            Format::Q4 => {
                let (low, high) = block.split_at(COUNT / 2);
                let number = |v: &f32| (nearest(v * inverse, -8.0, 7.0) + 8.0) as i32 as u8;
                for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                    *out = number(low) | number(high) << 4;
                }
            }
        }
    }
    Ok(())
}

/// `added` goes to `scale · signed integer`.
fn unpack_block(format: Format, block: &[u8], scale: f32, added: f32, out: &mut [f32]) {
    match format {
        Format::Q8 => {
            for (out, &n) in out.iter_mut().zip(block) {
                *out = f32::from(n as i8) * scale + added;
            }
        }
        Format::Q4 => {
            let (low, high) = out.split_at_mut(block.len());
            for ((low, high), &pair) in low.iter_mut().zip(high).zip(block) {
                *low = (f32::from(pair & 15) - 8.0) * scale + added;
                *high = (f32::from(pair >> 4) - 8.0) * scale + added;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn a_dtype_says_its_format() {
        for format in [Format::Q8, Format::Q4] {
            for &block in format.blocks() {
                assert_eq!(Format::of(format.dtype(block)), Some((format, block)));
            }
        }
        assert_eq!(Format::of(DType::F16), None);
        assert_eq!([DType::BF16, Format::Q4.dtype(32)].map(dtype_name), ["bf16", "q4"]);
    }

    #[test]
    fn a_value_is_off_by_half_a_scale_at_most() {
        for (format, inputs, block) in [(Format::Q8, 96, 32), (Format::Q8, 128, 64), (Format::Q4, 128, 32)] {
            let values = values(4 * inputs);
            let packed = Packed::pack(format, [4, inputs], &values).unwrap();
            assert_eq!((packed.block, packed.scales.len()), (block, 4 * inputs / block));
            let unpacked = packed.unpacked();
            for (at, (value, unpacked)) in values.iter().zip(&unpacked).enumerate() {
                let scale = packed.scales[at / block].to_f32().abs();
                // The largest of the other sign is cut off at 7 of 8.
                let allowed = scale * if format == Format::Q4 { 1.01 } else { 0.51 };
                assert!((value - unpacked).abs() <= allowed, "{format:?} {at}: {value} {unpacked}");
            }
            // What is packed already stays as it is.
            assert_eq!(Packed::pack(format, [4, inputs], &unpacked).unwrap().unpacked(), unpacked);
        }
    }

    #[test]
    fn an_offset_counts_from_zero() {
        let mut packed = Packed::pack(Format::Q4, [1, 32], &values(32)).unwrap();
        let plain = packed.unpacked();
        packed.offsets = Some(packed.scales.iter().map(|scale| f16::from_f32(-8.0 * scale.to_f32() + 1.0)).collect());
        for (value, plain) in packed.unpacked().iter().zip(plain) {
            assert!((value - plain - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        assert!(Packed::pack(Format::Q8, [1, 33], &values(33)).is_err());
        assert!(Packed::pack(Format::Q8, [1, 16], &values(16)).is_err());
        assert!(Packed::pack(Format::Q8, [1, 32], &[f32::NAN; 32]).is_err());
        assert!(Packed::pack(Format::Q4, [1, 32], &[1e9; 32]).is_err());
        let zeros = Packed::pack(Format::Q8, [2, 32], &[0.0; 64]).unwrap();
        assert_eq!(zeros.unpacked(), [0.0; 64]);
    }
}
