//! The block types of ggml, as packed matrices. Integers are kept as they are; a scale that is a product in the file becomes that product,
//! rounded to f16.
//!
//! Source: ggml's `ggml-quants.c`, the functions `dequantize_row_*`.

use burn::tensor::DType;
use firebrick_backend::packed::{Format, Packed};
use half::f16;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // ggml's names.
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q6_K,
}

impl BlockType {
    /// The names of all that are read.
    pub(super) const NAMES: [&str; 10] = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"];

    /// The type of this number.
    pub(super) fn of(kind: u32) -> Option<Self> {
        Some(match kind {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Values and bytes of a block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q6_K => (256, 210),
        }
    }

    /// The dtype in memory: a float's own, or that of the packed matrix it becomes.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => Format::Q4.dtype(32),
            Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => Format::Q8.dtype(32),
            Self::Q6_K => Format::Q8.dtype(16),
        }
    }

    /// Blocks of a matrix as a packed one.
    ///
    /// # Errors
    /// If a scale is not finite.
    ///
    /// # Panics
    /// Of a type that has no blocks.
    pub(crate) fn packed(self, bytes: &[u8], shape: [usize; 2]) -> Result<Packed, String> {
        let Some((format, block)) = Format::of(self.dtype()) else { panic!("{self:?} is not packed") };
        let count = shape[0] * shape[1];
        let mut out = Builder {
            integers: Vec::with_capacity(count * format.bits() / 8),
            scales: Vec::with_capacity(count / block),
            offsets: Vec::new(),
        };
        for bytes in bytes.chunks_exact(self.block().1) {
            match self {
                Self::Q4_0 => out.block(half(bytes), None, &bytes[2..]),
                Self::Q4_1 => out.block(half(bytes), Some(half(&bytes[2..])), &bytes[4..]),
                Self::Q5_0 => out.five_bits(half(bytes), None, &bytes[2..]),
                Self::Q5_1 => out.five_bits(half(bytes), Some(half(&bytes[2..])), &bytes[4..]),
                Self::Q8_0 => out.block(half(bytes), None, &bytes[2..]),
                Self::Q4_K => out.q4_k(bytes),
                Self::Q6_K => out.q6_k(bytes),
                Self::F32 | Self::F16 | Self::BF16 => {}
            }
        }
        if out.scales.iter().chain(&out.offsets).any(|scale| !scale.is_finite()) {
            return Err("has a scale that is not finite, or not in f16".into());
        }
        let offsets = Some(out.offsets).filter(|offsets| !offsets.is_empty());
        Ok(Packed { format, block, shape, integers: out.integers, scales: out.scales, offsets })
    }
}

fn half(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

struct Builder {
    integers: Vec<u8>,
    scales: Vec<f16>,
    offsets: Vec<f16>,
}

impl Builder {
    /// A block whose integers are in our order already.
    fn block(&mut self, scale: f16, offset: Option<f16>, integers: &[u8]) {
        self.integers.extend_from_slice(integers);
        self.scales.push(scale);
        self.offsets.extend(offset);
    }

    /// Sixteen bytes with the low four bits, of the first half of the block in their low halves, behind four with the fifth of each.
    fn five_bits(&mut self, scale: f16, offset: Option<f16>, bytes: &[u8]) {
        let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let low = |i: usize| if i < 16 { bytes[4 + i] & 15 } else { bytes[4 + i - 16] >> 4 };
        for i in 0..32 {
            let integer = low(i) | ((fifth >> i & 1) as u8) << 4;
            // Centred at 16; with an offset they count from zero, which is −128 here.
            self.integers.push(integer.wrapping_sub(if offset.is_some() { 128 } else { 16 }));
        }
        self.scales.push(scale);
        self.offsets.extend(offset);
    }

    /// Eight blocks of 32 with scales and minima of six bits.
    fn q4_k(&mut self, bytes: &[u8]) {
        let (d, least) = (half(bytes).to_f32(), half(&bytes[2..]).to_f32());
        let (six, integers) = (&bytes[4..16], &bytes[16..]);
        for block in 0..8 {
            let (scale, minimum) = if block < 4 {
                (six[block] & 63, six[block + 4] & 63)
            } else {
                let (low, high) = (six[block + 4], |at: usize| six[at] >> 6 << 4);
                (low & 15 | high(block - 4), low >> 4 | high(block))
            };
            // Two blocks share 32 bytes: the first in the low halves, the second in the high ones.
            let pair = &integers[block / 2 * 32..][..32];
            let integer = |i: usize| if block % 2 == 0 { pair[i] & 15 } else { pair[i] >> 4 };
            self.integers.extend((0..16).map(|i| integer(i) | integer(i + 16) << 4));
            self.scales.push(f16::from_f32(d * f32::from(scale)));
            self.offsets.push(f16::from_f32(-least * f32::from(minimum)));
        }
    }

    /// Sixteen blocks of 16 integers of six bits.
    fn q6_k(&mut self, bytes: &[u8]) {
        let (low, high, scales, d) = (&bytes[..128], &bytes[128..192], &bytes[192..208], half(&bytes[208..]).to_f32());
        for half in 0..2 {
            let (low, high) = (&low[half * 64..][..64], &high[half * 32..][..32]);
            for quarter in 0..4 {
                for l in 0..32 {
                    let four = low[l + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 15;
                    let two = high[l] >> (2 * quarter) & 3;
                    self.integers.push((four | two << 4).wrapping_sub(32));
                }
            }
        }
        self.scales.extend(scales.iter().map(|&scale| f16::from_f32(d * f32::from(scale as i8))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// Every block type with its values, by llama.cpp's package `gguf`: see `tests/python/gguf_blocks.py`.
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/goldens/blocks.gguf");

    #[test]
    fn blocks_have_the_values_that_llama_cpp_gives_them() {
        let header = parse(GOLDEN, GOLDEN.len()).unwrap().unwrap();
        let mut seen = 0;
        for (name, tensor) in header.tensors.iter().filter(|(name, _)| !name.ends_with(".values")) {
            if Format::of(tensor.stored.dtype()).is_none() {
                continue;
            }
            let shape = [tensor.shape[0], tensor.shape[1]];
            let packed = tensor.stored.packed(&GOLDEN[tensor.range.clone()], shape).unwrap();
            let expected = &GOLDEN[header.tensors[&format!("{name}.values")].range.clone()];
            let expected: Vec<f32> =
                expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let largest = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            // A product of two scales is rounded to f16.
            let allowed = largest * if name.ends_with("_K") { 1e-3 } else { 1e-6 };
            for (value, expected) in packed.unpacked().iter().zip(&expected) {
                assert!((value - expected).abs() <= allowed, "{name}: {value} {expected}");
            }
            seen += 1;
        }
        assert_eq!(seen, 7);
    }

    #[test]
    fn a_scale_that_is_no_number_is_refused() {
        let mut block = vec![0u8; 34];
        block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
        assert!(BlockType::Q8_0.packed(&block, [1, 32]).is_err());
    }
}
