//! The one copy of a tensor: out of the file, into a buffer of the wanted dtype, with the values that are not finite counted
//! on the way while the bytes are still in the processor's cache. Names, shapes and policies are the callers' business.

use burn::tensor::{DType, TensorData};
use firebrick_backend::process::prefer_large_pages;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

// Files are little-endian and are copied as they are; a port to another order has to swap bytes here and in `write.rs`.
const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are copied as stored: little-endian");

/// Elements handled at a time: at most 512 KiB of source, which stays in a second-level cache.
const CHUNK: usize = 64 * 1024;

/// A tensor as copied out of a file.
pub(super) struct Elements {
    pub data: TensorData,
    /// Values that the file stores as infinite or NaN.
    pub non_finite: usize,
    /// Finite values that the wanted dtype cannot hold.
    pub overflowed: usize,
}

/// Whether the format stores real numbers as `dtype` and this module reads them.
pub(super) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

/// Copies a tensor of `shape`, asking `fetch(start, target)` for its bytes from `start` on.
///
/// # Panics
/// If either dtype is not one that [`is_float`] knows.
pub(super) fn copy<E: From<std::io::Error>>(
    stored: DType,
    wanted: DType,
    shape: &[usize],
    mut fetch: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Elements, E> {
    let (from, to) = (stored.size(), wanted.size());
    let mut data = zeroed(wanted, shape)?;
    let (mut non_finite, mut overflowed) = (0, 0);
    let mut converter = (stored != wanted).then(Converter::default);
    for (index, target) in data.bytes.chunks_mut(CHUNK * to).enumerate() {
        let start = index * CHUNK * from;
        match &mut converter {
            None => {
                fetch(start, target)?;
                non_finite += count_non_finite(wanted, target);
            }
            Some(converter) => {
                converter.source.resize(target.len() / to * from, 0);
                fetch(start, &mut converter.source)?;
                let before = count_non_finite(stored, &converter.source);
                converter.convert(stored, wanted, target);
                non_finite += before;
                // A conversion keeps infinities and NaN, so whatever there is more of was finite before.
                overflowed += count_non_finite(wanted, target).saturating_sub(before);
            }
        }
    }
    Ok(Elements { data, non_finite, overflowed })
}

/// A buffer aligned for `dtype`. Zeroed memory comes from the system untouched, so this writes nothing.
fn zeroed(dtype: DType, shape: &[usize]) -> std::io::Result<TensorData> {
    let elements: usize = shape.iter().product();
    // A failed allocation ends the process; asking first, without touching the memory, turns it into an error.
    let bytes = elements.saturating_mul(dtype.size());
    if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
        let problem = format!("{bytes} bytes of memory for one tensor are not to be had");
        return Err(std::io::Error::new(std::io::ErrorKind::OutOfMemory, problem));
    }
    let mut data = match dtype.size() {
        8 => TensorData::new(vec![0f64; elements], shape),
        4 => TensorData::new(vec![0f32; elements], shape),
        // As integers, because a vector of zero halves would be written element by element.
        _ => TensorData::new(vec![0u16; elements], shape),
    };
    data.dtype = dtype;
    prefer_large_pages(&mut data.bytes[..]);
    Ok(data)
}

/// Scratch for one chunk.
#[derive(Default)]
struct Converter {
    source: Vec<u8>,
    singles: Vec<f32>,
    halves: Vec<f16>,
}

impl Converter {
    /// Writes `source` to `target` in another dtype, each value rounded once: what is narrower than f64 goes through f32,
    /// which holds all of it exactly.
    fn convert(&mut self, stored: DType, wanted: DType, target: &mut [u8]) {
        if stored == DType::F64 {
            let doubles = self.source.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
            return match wanted {
                DType::F32 => fill(target, doubles.map(|value| (value as f32).to_le_bytes())),
                DType::F16 => fill(target, doubles.map(|value| f16::from_f32(to_odd(value)).to_le_bytes())),
                _ => fill(target, doubles.map(|value| bf16::from_f32(to_odd(value)).to_le_bytes())),
            };
        }
        self.widen(stored);
        let singles = self.singles.iter();
        match wanted {
            DType::F64 => fill(target, singles.map(|value| f64::from(*value).to_le_bytes())),
            DType::F32 => fill(target, singles.map(|value| value.to_le_bytes())),
            DType::BF16 => fill(target, singles.map(|value| bf16::from_f32(*value).to_le_bytes())),
            _ => {
                self.halves.resize(self.singles.len(), f16::ZERO);
                self.halves.convert_from_f32_slice(&self.singles);
                fill(target, self.halves.iter().map(|value| value.to_le_bytes()));
            }
        }
    }

    fn widen(&mut self, stored: DType) {
        self.singles.clear();
        match stored {
            DType::F32 => {
                let values = self.source.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                self.singles.extend(values);
            }
            // bf16 is the upper half of an f32.
            DType::BF16 => {
                let values = self.source.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
                self.singles.extend(values.map(|bits| f32::from_bits(u32::from(bits) << 16)));
            }
            _ => {
                let values = self.source.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes));
                self.halves.clear();
                self.halves.extend(values);
                self.singles.resize(self.halves.len(), 0.0);
                // The slice conversion uses the processor's own instruction, where there is one.
                self.halves.convert_to_f32_slice(&mut self.singles);
            }
        }
    }
}

/// The f32 beside `value` with an odd last bit, unless `value` is an f32: rounding that to a half gives what rounding `value`
/// itself gives, where going through the nearest f32 would round ties twice (`half::bf16::from_f64` drops bits there).
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || value.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    let towards_zero = if back.abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(towards_zero | 1)
}

fn fill<const WIDTH: usize>(target: &mut [u8], values: impl Iterator<Item = [u8; WIDTH]>) {
    for (slot, value) in target.as_chunks_mut::<WIDTH>().0.iter_mut().zip(values) {
        *slot = value;
    }
}

/// Values with all exponent bits set. Plain loops over integers, which the compiler turns into vector code.
fn count_non_finite(dtype: DType, bytes: &[u8]) -> usize {
    fn half(bytes: &[u8], exponent: u16) -> usize {
        let chunks = bytes.as_chunks::<2>().0.iter();
        chunks.map(|bytes| u32::from(u16::from_le_bytes(*bytes) & exponent == exponent)).sum::<u32>() as usize
    }
    match dtype {
        DType::F64 => {
            const EXPONENT: u64 = 0x7ff0_0000_0000_0000;
            let chunks = bytes.as_chunks::<8>().0.iter();
            chunks.map(|bytes| u32::from(u64::from_le_bytes(*bytes) & EXPONENT == EXPONENT)).sum::<u32>() as usize
        }
        DType::F32 => {
            const EXPONENT: u32 = 0x7f80_0000;
            let chunks = bytes.as_chunks::<4>().0.iter();
            chunks.map(|bytes| u32::from(u32::from_le_bytes(*bytes) & EXPONENT == EXPONENT)).sum::<u32>() as usize
        }
        DType::F16 => half(bytes, 0x7c00),
        DType::BF16 => half(bytes, 0x7f80),
        other => panic!("{other:?} is not a floating-point dtype of checkpoints"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `copy` out of a buffer.
    fn copied(stored: DType, wanted: DType, bytes: &[u8]) -> Elements {
        let shape = [bytes.len() / stored.size()];
        copy::<std::io::Error>(stored, wanted, &shape, |start, target| {
            target.copy_from_slice(&bytes[start..start + target.len()]);
            Ok(())
        })
        .unwrap()
    }

    /// The value of the half with these bits.
    fn half_value(bits: u16, dtype: DType) -> f64 {
        if dtype == DType::F16 { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
    }

    /// The half nearest to `value`, ties to even, found by looking at the neighbours.
    fn nearest_half(value: f64, dtype: DType) -> u16 {
        let near = value as f32;
        let guess = if dtype == DType::F16 { f16::from_f32(near).to_bits() } else { bf16::from_f32(near).to_bits() };
        let neighbours = [guess, guess.wrapping_sub(1), guess.wrapping_add(1)];
        let distance = |bits: u16| (half_value(bits, dtype) - value).abs();
        let better = |a: &u16, b: &u16| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)));
        if value.is_finite() && half_value(guess, dtype).is_finite() {
            neighbours.into_iter().min_by(better).unwrap()
        } else {
            guess
        }
    }

    fn bytes_of(values: &[f64], dtype: DType) -> Vec<u8> {
        let one = |value: &f64| match dtype {
            DType::F64 => value.to_le_bytes().to_vec(),
            DType::F32 => (*value as f32).to_le_bytes().to_vec(),
            _ => nearest_half(*value, dtype).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(one).collect()
    }

    const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

    #[test]
    fn every_conversion_rounds_once_and_crosses_chunks() {
        // Longer than two chunks, with an odd tail; values that need rounding in every narrower dtype.
        let values: Vec<f64> = (0..2 * CHUNK + 7).map(|i| (i as f64 * 0.7311).sin() * 3.0 + 1e-3).collect();
        for stored in FLOATS {
            let bytes = bytes_of(&values, stored);
            let kept: Vec<f64> = copied(stored, stored, &bytes).data.iter::<f64>().collect();
            assert!(bytes_of(&kept, stored) == bytes);
            for wanted in FLOATS {
                let elements = copied(stored, wanted, &bytes);
                assert_eq!((elements.non_finite, elements.overflowed), (0, 0), "{stored:?} {wanted:?}");
                assert_eq!((elements.data.dtype, elements.data.shape.to_vec()), (wanted, vec![values.len()]));
                assert!(elements.data.as_bytes() == bytes_of(&kept, wanted), "{stored:?} -> {wanted:?}");
            }
        }
    }

    #[test]
    fn doubles_just_beside_a_tie_are_not_rounded_twice() {
        let (tie, little) = (1.0 + f64::powi(2.0, -8), f64::powi(2.0, -45));
        let values = [tie, tie + little, tie - little, -tie - little, little * 1e-30, f64::from(f32::MAX) * 0.99];
        let rounded: Vec<f64> = copied(DType::F64, DType::BF16, &bytes_of(&values, DType::F64)).data.iter().collect();
        let up = 1.0 + f64::powi(2.0, -7);
        assert_eq!(rounded[..4], [1.0, up, 1.0, -up]);
        let tie = 1.0 + f64::powi(2.0, -11);
        let values = [tie, tie + little, tie - little, -tie - little];
        let rounded: Vec<f64> = copied(DType::F64, DType::F16, &bytes_of(&values, DType::F64)).data.iter().collect();
        let up = 1.0 + f64::powi(2.0, -10);
        assert_eq!(rounded, [1.0, up, 1.0, -up]);
    }

    #[test]
    fn the_buffers_have_the_type_of_their_elements() {
        assert_eq!(copied(DType::F16, DType::F16, &[0, 0x3c]).data.into_vec::<f16>().unwrap(), [f16::ONE]);
        assert_eq!(copied(DType::F16, DType::F32, &[0, 0x3c]).data.into_vec::<f32>().unwrap(), [1.0]);
        assert_eq!(copied(DType::F16, DType::F64, &[0, 0x3c]).data.into_vec::<f64>().unwrap(), [1.0]);
        assert_eq!(copied(DType::F16, DType::BF16, &[0, 0x3c]).data.into_vec::<bf16>().unwrap(), [bf16::ONE]);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_kept() {
        let values = [1.0, f64::NAN, f64::INFINITY, -2.0, f64::NEG_INFINITY];
        for stored in FLOATS {
            for wanted in FLOATS {
                let elements = copied(stored, wanted, &bytes_of(&values, stored));
                assert_eq!((elements.non_finite, elements.overflowed), (3, 0), "{stored:?} {wanted:?}");
                let kept: Vec<f64> = elements.data.iter().collect();
                assert!(kept[1].is_nan() && kept[2] == f64::INFINITY && kept[4] == f64::NEG_INFINITY);
            }
        }
    }

    #[test]
    fn values_too_large_for_the_wanted_dtype_are_counted() {
        let cases = [
            (DType::F32, DType::F16, 65_520.0, 65_504.0),
            (DType::BF16, DType::F16, 131_072.0, 32_768.0),
            (DType::F64, DType::F32, 1e39, 3e38),
            (DType::F64, DType::BF16, 1e39, 3e38),
            (DType::F64, DType::F16, -1e5, -65_504.0),
            (DType::F32, DType::BF16, f64::from(f32::MAX), 3e38),
        ];
        for (stored, wanted, too_large, fits) in cases {
            let elements = copied(stored, wanted, &bytes_of(&[too_large, fits, f64::NAN], stored));
            assert_eq!((elements.non_finite, elements.overflowed), (1, 1), "{stored:?} -> {wanted:?}");
        }
    }

    #[test]
    fn empty_tensors_and_scalars_are_read() {
        assert_eq!(copied(DType::F32, DType::F16, &[]).data.num_elements(), 0);
        let scalar = copy::<std::io::Error>(DType::F32, DType::F32, &[], |_, target| {
            target.copy_from_slice(&2f32.to_le_bytes());
            Ok(())
        });
        assert_eq!(scalar.unwrap().data.to_vec::<f32>().unwrap(), [2.0]);
    }

    #[test]
    fn memory_that_is_not_to_be_had_is_an_error() {
        let error = copy::<std::io::Error>(DType::F32, DType::F32, &[usize::MAX / 8], |_, _| Ok(())).err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
    }
}
