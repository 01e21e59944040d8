//! Weights that are computed and not read: a model of any shape from its config alone, for benchmarks and for checking a device. The same
//! name, shape and seed give the same values everywhere.

use burn::tensor::{DType, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A tensor of `shape` for the name `name`: around one for the weight of a norm, small for a bias, of a spread that keeps activations
/// near one for a matrix. Each value is a multiple of a power of two below 2⁷ in size, which f64, f32, bf16 and f16 all hold exactly, so
/// that a model is the same in each.
pub(super) fn tensor(seed: u64, name: &str, shape: &[usize], wanted: Option<DType>) -> TensorData {
    let mut random = ChaCha8Rng::seed_from_u64(crate::random::key(&[&seed.to_le_bytes(), name.as_bytes()]));
    let is_norm = name.to_ascii_lowercase().ends_with("norm.weight");
    let inputs = shape.last().copied().unwrap_or(1).max(1) as f32;
    // A uniform value within ±bound has the spread bound / √3.
    let bound = if shape.len() > 1 { (3.0 / inputs).sqrt() } else { 0.25 };
    let exponent = (bound / 128.0).log2().round();
    let unit = exponent.exp2();
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            let value = f32::from(random.random_range(-127i16..=127)) * unit;
            if is_norm { 1.0 + (value * 64.0).round() / 64.0 } else { value }
        })
        .collect();
    TensorData::new(values, shape).convert_dtype(wanted.unwrap_or(DType::F32))
}
