//! The ops in f64, as plainly as they can be written. Rows lie one behind the other.

use super::cases::Dtype;

/// Element by element, in the dtype of the tensors.
pub(crate) fn add(x: &[f64], residual: &[f64], dtype: Dtype) -> Vec<f64> {
    x.iter().zip(residual).map(|(x, r)| dtype.round(x + r)).collect()
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        row.iter().zip(weight).map(|(x, w)| x / (mean + epsilon).sqrt() * w).collect()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

pub(crate) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let normed = row.iter().map(|x| (x - mean) / (variance + epsilon).sqrt());
        normed.zip(weight).zip(bias).map(|((x, w), b)| x * w + b).collect()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

pub(crate) fn softmax(x: &[f64], width: usize, scale: f64, mask: Option<&[f64]>) -> Vec<f64> {
    let row = |(index, row): (usize, &[f64])| -> Vec<f64> {
        let masks = mask.map(|mask| mask.chunks_exact(width).cycle().nth(index).expect("a mask has rows"));
        let scaled: Vec<f64> = (0..width).map(|i| row[i] * scale + masks.map_or(0.0, |mask| mask[i])).collect();
        let shift = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scaled.iter().map(|x| (x - shift).exp()).sum();
        scaled.iter().map(|x| (x - shift).exp() / sum).collect()
    };
    x.chunks_exact(width).enumerate().flat_map(row).collect()
}

pub(crate) fn rope(x: &[f64], cos: &[f64], sin: &[f64], heads: usize, dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let head = |(index, head): (usize, &[f64])| -> Vec<f64> {
        let (low, high) = head.split_at(half);
        let angle = |i: usize| (cos[index / heads * half + i], sin[index / heads * half + i]);
        let first = (0..half).map(|i| low[i] * angle(i).0 - high[i] * angle(i).1);
        first.chain((0..half).map(|i| high[i] * angle(i).0 + low[i] * angle(i).1)).collect()
    };
    x.chunks_exact(dim).enumerate().flat_map(head).collect()
}

pub(crate) fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

pub(crate) fn gelu(x: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let biased = x.iter().enumerate().map(|(i, x)| x + bias.map_or(0.0, |bias| bias[i % bias.len()]));
    biased.map(|x| 0.5 * x * (1.0 + error_function(x * std::f64::consts::FRAC_1_SQRT_2))).collect()
}

/// By a series without cancellation: `2/√π · e^(−x²) · Σ 2ⁿ·x^(2n+1) / (2n+1)!!` (Abramowitz & Stegun 7.1.6).
fn error_function(x: f64) -> f64 {
    if x.abs() > 6.0 || x.is_nan() {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
