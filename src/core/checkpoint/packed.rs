//! Packed matrices in files: blocks of ggml, see `gguf.rs`, and in safetensors as mlx-lm writes them: `X.weight` of unsigned integers in words of 32 bits, and for each group of a
//! row `X.scales` and `X.biases`, a weight being `scale · integer + bias`. Which matrices those are the tensors themselves say; the config's
//! `quantization` is for mlx-lm.

use burn::tensor::{DType, TensorData};
use firebrick_backend::packed::{BLOCK, Format, Packed};
use half::f16;

use super::Checkpoint;
use super::write::TensorSpecification;
use crate::error::{Error, Result};

/// The names of the three tensors of a matrix.
pub fn names_of(weight: &str) -> Option<[String; 3]> {
    let path = weight.strip_suffix(".weight")?;
    Some([weight.to_owned(), format!("{path}.scales"), format!("{path}.biases")])
}

impl Checkpoint {
    /// Whether the matrix of this name, which ends with `.weight`, is packed.
    pub fn is_packed(&self, name: &str) -> bool {
        if self.blocks.contains_key(name) {
            return true;
        }
        let words = self.info(name).is_some_and(|info| info.dtype == DType::U32);
        words && names_of(name).is_some_and(|[_, scales, _]| self.info(&scales).is_some())
    }

    /// Whether any matrix is packed.
    pub fn holds_packed(&self) -> bool {
        self.names().any(|name| self.is_packed(name))
    }

    /// The packed matrix of this name and shape.
    ///
    /// # Errors
    /// If its tensors do not fit together or the shape, are of integers with another width than four or eight bits, or cannot be read.
    pub fn packed(&self, name: &str, [out, inputs]: [usize; 2]) -> Result<Packed> {
        let wrong = |problem: String| Error::malformed(self.folder(), format!("tensor `{name}` {problem}"));
        if let Some(stored) = self.blocks.get(name) {
            let found = self.info(name).map(|info| info.shape).unwrap_or_default();
            if found != [out, inputs] {
                return Err(wrong(format!("is {found:?}, not [{out}, {inputs}]")));
            }
            let bytes = self.file_of(name)?.bytes(name)?;
            return stored.packed(&bytes, [out, inputs]).map_err(wrong);
        }
        let [weight, scales, biases] = names_of(name).ok_or_else(|| wrong("is not the weight of anything".into()))?;
        let shape_of = |name: &str| self.info(name).map(|info| info.shape).unwrap_or_default();
        let (words, groups) = (shape_of(&weight), shape_of(&scales));
        let bits = match words[..] {
            [rows, words] if rows == out && inputs > 0 => words * 32 / inputs,
            _ => 0,
        };
        let format = [Format::Q8, Format::Q4].into_iter().find(|format| format.bits() == bits);
        let Some(format) = format.filter(|format| words[1] * 32 == inputs * format.bits()) else {
            return Err(wrong(format!(
                "is packed as U32 {words:?}, which is not [{out}, {inputs}] in four or eight bits"
            )));
        };
        let group = match groups[..] {
            [rows, groups] if rows == out && groups > 0 && inputs.is_multiple_of(groups) => inputs / groups,
            _ => 0,
        };
        let block = format.block(group).filter(|_| group > 0 && shape_of(&biases) == groups);
        let Some(block) = block else {
            let biases = shape_of(&biases);
            return Err(wrong(format!(
                "has scales {groups:?} and biases {biases:?}; groups are of 32, 64 or 128 values"
            )));
        };
        let words = self.file_of(&weight)?.bytes(&weight)?;
        let halves = |name: &str| -> Result<Vec<f32>> {
            Ok(self.file_of(name)?.copy(name, Some(DType::F32))?.data.into_vec::<f32>().unwrap_or_default())
        };
        let (scales, biases) = (halves(&scales)?, halves(&biases)?);
        from_mlx((format, block), [out, inputs], words, group, &scales, &biases).map_err(wrong)
    }
}

/// A group becomes one block or several with the same scale.
fn from_mlx(
    (format, block): (Format, usize),
    shape: [usize; 2],
    mut words: Vec<u8>,
    group: usize,
    scales: &[f32],
    biases: &[f32],
) -> std::result::Result<Packed, String> {
    let in_f16 = |values: &[f32]| -> std::result::Result<Vec<f16>, String> {
        let narrow = |&value: &f32| {
            let half = f16::from_f32(value);
            if half.is_finite() {
                Ok(half)
            } else {
                Err(format!("has a scale or bias of {value}, which f16 cannot hold"))
            }
        };
        let repeated = values.iter().flat_map(|value| std::iter::repeat_n(value, group / block));
        repeated.map(narrow).collect()
    };
    let centred = scales.iter().zip(biases).all(|(scale, bias)| *bias == -format.zero() * scale);
    match format {
        // Signed instead of unsigned: the highest bit is the other one.
        Format::Q8 => words.iter_mut().for_each(|byte| *byte ^= 0x80),
        Format::Q4 => words.chunks_exact_mut(block / 2).for_each(neighbours_to_halves),
    }
    let offsets = if centred { None } else { Some(in_f16(biases)?) };
    Ok(Packed { format, block, shape, integers: words, scales: in_f16(scales)?, offsets })
}

/// Puts the integers of four bits of one block of [`BLOCK`] into another order: `place` says in which byte the `i`th is now and whether in its
/// high half, and `number` which ones shall be in the low and the high half of a byte.
fn reorder(block: &mut [u8], place: impl Fn(usize) -> (usize, bool), number: impl Fn(usize) -> [usize; 2]) {
    let old: [u8; BLOCK / 2] = std::array::from_fn(|at| block[at]);
    let integer = |i: usize| {
        let (byte, high) = place(i);
        if high { old[byte] >> 4 } else { old[byte] & 15 }
    };
    for (at, pair) in block.iter_mut().enumerate() {
        let [low, high] = number(at).map(integer);
        *pair = low | high << 4;
    }
}

/// Neighbours share a byte, as in mlx.
fn neighbours_to_halves(block: &mut [u8]) {
    reorder(block, |i| (i / 2, i % 2 == 1), |at| [at, at + BLOCK / 2]);
}

/// The first and the second half of a block share its bytes, as in [`Packed`].
fn halves_to_neighbours(block: &mut [u8]) {
    reorder(block, |i| (i % (BLOCK / 2), i >= BLOCK / 2), |at| [2 * at, 2 * at + 1]);
}

/// The three tensors of a packed matrix in mlx-lm's layout, in the order of [`names_of`].
///
/// # Panics
/// If it has offsets: what is written here was packed here.
pub fn to_mlx(packed: &Packed) -> [TensorData; 3] {
    assert!(packed.offsets.is_none(), "only what `Packed::pack` made is written");
    let [out, inputs] = packed.shape;
    let groups = [out, inputs / packed.block];
    let mut bytes = packed.integers.clone();
    match packed.format {
        Format::Q8 => bytes.iter_mut().for_each(|byte| *byte ^= 0x80),
        Format::Q4 => bytes.chunks_exact_mut(BLOCK / 2).for_each(halves_to_neighbours),
    }
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let biases: Vec<f16> =
        packed.scales.iter().map(|scale| f16::from_f32(-packed.format.zero() * scale.to_f32())).collect();
    [
        TensorData::new(words, [out, inputs * packed.format.bits() / 32]),
        TensorData::new(packed.scales.clone(), groups),
        TensorData::new(biases, groups),
    ]
}

/// What [`to_mlx`] will give, for the header of a file; nothing for what is not packed.
pub fn specifications(weight: &str, format: Format, [out, inputs]: [usize; 2]) -> Option<[TensorSpecification; 3]> {
    let [words, scales, biases] = names_of(weight)?;
    let groups = vec![out, inputs / format.block(inputs)?];
    Some([
        TensorSpecification { name: words, dtype: DType::U32, shape: vec![out, inputs * format.bits() / 32] },
        TensorSpecification { name: scales, dtype: DType::F16, shape: groups.clone() },
        TensorSpecification { name: biases, dtype: DType::F16, shape: groups },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(format: Format) -> Packed {
        let values: Vec<f32> = (0..3 * 128).map(|i| (i as f32 * 0.73).sin()).collect();
        Packed::pack(format, [3, 128], &values).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        for format in [Format::Q8, Format::Q4] {
            let packed = packed(format);
            let [words, scales, biases] = to_mlx(&packed);
            let specified = specifications("x.weight", format, [3, 128]).unwrap().map(|tensor| tensor.shape);
            assert_eq!([&words, &scales, &biases].map(|data| data.shape.to_vec()), specified);
            let [scales, biases] = [scales, biases].map(|data| data.convert::<f32>().to_vec::<f32>().unwrap());
            let (kind, words) = ((format, packed.block), words.as_bytes().to_vec());
            let again = from_mlx(kind, [3, 128], words, packed.block, &scales, &biases).unwrap();
            assert_eq!(again, packed);
        }
    }

    #[test]
    fn a_weight_is_scale_times_integer_plus_bias() {
        // mlx: the lowest bits of a word are its first value.
        let words: Vec<u32> = (0..8).map(|word| if word == 0 { 0x7654_3210 } else { 0xffff_ffff }).collect();
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let packed = from_mlx((Format::Q4, 32), [1, 64], bytes, 64, &[0.5], &[1.0]).unwrap();
        let values = packed.unpacked();
        assert_eq!(values[..8], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]);
        assert!(values[8..].iter().all(|&value| value == 8.5));
        let bytes = (0..=255u8).cycle().take(64).collect();
        let packed = from_mlx((Format::Q8, 32), [1, 64], bytes, 32, &[1.0, 2.0], &[0.0, -1.0]).unwrap();
        let values = packed.unpacked();
        assert_eq!((values[0], values[31], values[32], values[63]), (0.0, 31.0, 63.0, 125.0));
    }

    #[test]
    fn a_scale_beyond_f16_is_refused() {
        let problem = from_mlx((Format::Q8, 32), [1, 32], vec![0; 32], 32, &[1e6], &[0.0]).unwrap_err();
        assert!(problem.contains("f16"), "{problem}");
    }
}
