//! Rotary angles: base frequencies with the scalings checkpoints ask for, and their tables for the rows of a forward pass.
//!
//! Source: transformers' `modeling_rope_utils.py` (default, linear, llama3, yarn).

use burn::tensor::{DType, Tensor, TensorData};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::norm_rope::{norm_rope, norm_rope_into};
use firebrick_backend::ops::rope::{rope, rope_into};

use super::RmsNorm;

/// Heads `[tokens, heads, dim]`, normed each, if they have a norm, and turned by their positions' cos and sin `[tokens, dim / 2]`.
pub fn turned<B: KernelBackend>(
    heads: Tensor<B, 3>,
    norm: Option<&RmsNorm<B>>,
    [cos, sin]: [Tensor<B, 2>; 2],
) -> Tensor<B, 3> {
    match norm {
        None => rope(heads, cos, sin),
        Some(norm) => norm_rope(heads, norm.weight.clone(), norm.epsilon, [cos, sin]),
    }
}

/// `target` `[capacity, heads, dim]` with [`turned`] heads written from row `start` on; in place where this is its only handle.
pub fn turned_into<B: KernelBackend>(
    target: Tensor<B, 3>,
    heads: Tensor<B, 3>,
    norm: Option<&RmsNorm<B>>,
    [cos, sin]: [Tensor<B, 2>; 2],
    start: usize,
) -> Tensor<B, 3> {
    match norm {
        None => rope_into(target, heads, cos, sin, start),
        Some(norm) => norm_rope_into(target, heads, norm.weight.clone(), norm.epsilon, [cos, sin], start),
    }
}

/// How a checkpoint stretches its positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor` (Chen et al. 2023).
    Linear {
        /// How many times longer the context became.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// How many times longer the context became.
        factor: f64,
        /// Wavelengths longer than the original context over this are scaled.
        low_frequency_factor: f64,
        /// Wavelengths shorter than the original context over this are kept.
        high_frequency_factor: f64,
        /// Context before scaling.
        original_positions: f64,
    },
    /// NTK by parts with a temperature on the attention (Peng et al. 2023).
    Yarn {
        /// How many times longer the context became.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// Context before scaling.
        original_positions: f64,
        /// Factor on cos and sin; `None` for `0.1·ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Whether the borders are rounded to whole dimensions.
        truncate: bool,
    },
}

/// What the angles follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryConfig {
    /// Dimension of a head.
    pub dim: usize,
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Scaling, if any.
    pub scaling: Option<RopeScaling>,
}

/// Frequencies of the dimension pairs, and the factor on cos and sin.
#[derive(Clone, Debug)]
pub struct Rotary {
    frequencies: Vec<f64>,
    factor: f64,
}

impl Rotary {
    /// The frequencies of a config.
    pub fn new(config: &RotaryConfig) -> Self {
        let dim = config.dim as f64;
        let base: Vec<f64> = (0..config.dim / 2).map(|i| config.theta.powf(-2.0 * i as f64 / dim)).collect();
        match config.scaling {
            None => Self { frequencies: base, factor: 1.0 },
            Some(RopeScaling::Linear { factor }) => {
                Self { frequencies: base.iter().map(|f| f / factor).collect(), factor: 1.0 }
            }
            Some(RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions }) => {
                let scale = |&frequency: &f64| {
                    let wavelength = std::f64::consts::TAU / frequency;
                    if wavelength < original_positions / high_frequency_factor {
                        frequency
                    } else if wavelength > original_positions / low_frequency_factor {
                        frequency / factor
                    } else {
                        let smooth = (original_positions / wavelength - low_frequency_factor)
                            / (high_frequency_factor - low_frequency_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                Self { frequencies: base.iter().map(scale).collect(), factor: 1.0 }
            }
            Some(RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_positions,
                attention_factor,
                truncate,
            }) => {
                let border = |rotations: f64| {
                    dim * (original_positions / (rotations * std::f64::consts::TAU)).ln() / (2.0 * config.theta.ln())
                };
                let (mut low, mut high) = (border(beta_fast), border(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scale = |(i, &frequency): (usize, &f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * ramp + frequency * (1.0 - ramp)
                };
                Self {
                    frequencies: base.iter().enumerate().map(scale).collect(),
                    factor: attention_factor.unwrap_or(if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }),
                }
            }
        }
    }

    /// cos and sin of the rows' positions, `[rows, dim / 2]` each, in `dtype`. Angles are taken in f64: at position 100,000 an f32 angle is
    /// off by a hundredth of a turn's radian.
    pub fn tables<B: KernelBackend>(
        &self,
        positions: impl Iterator<Item = usize>,
        dtype: DType,
        device: &B::Device,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let half = self.frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * frequency;
                cos.push(angle.cos() * self.factor);
                sin.push(angle.sin() * self.factor);
            }
        }
        let rows = cos.len() / half;
        let table = |values: Vec<f64>| {
            let data = TensorData::new(values, [rows, half]).convert_dtype(dtype);
            Tensor::from_data(data, (device, dtype))
        };
        (table(cos), table(sin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: Option<RopeScaling>) -> RotaryConfig {
        RotaryConfig { dim: 8, theta: 10_000.0, scaling }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = Rotary::new(&config(None));
        let scaled = Rotary::new(&config(Some(RopeScaling::Linear { factor: 4.0 })));
        assert_eq!(plain.frequencies, [1.0, 0.1, 0.01, 0.001].map(|f: f64| f));
        for (plain, scaled) in plain.frequencies.iter().zip(&scaled.frequencies) {
            assert!((plain / 4.0 - scaled).abs() < 1e-15);
        }
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 64.0,
        };
        let rotary = Rotary::new(&config(Some(scaling)));
        assert_eq!(rotary.frequencies[0], 1.0);
        assert_eq!(rotary.frequencies[3], 0.001 / 8.0);
        // Wavelength 20π = 62.8 lies between 16 and 64.
        let smooth = (64.0 / (std::f64::consts::TAU / 0.1) - 1.0) / 3.0;
        assert!((rotary.frequencies[1] - ((1.0 - smooth) * 0.0125 + smooth * 0.1)).abs() < 1e-12);
    }

    #[test]
    fn yarn_raises_the_temperature_and_keeps_the_first_dimension() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 32_768.0,
            attention_factor: None,
            truncate: true,
        };
        let rotary = Rotary::new(&config(Some(scaling)));
        assert_eq!(rotary.frequencies[0], 1.0);
        assert!(rotary.frequencies[3] < 0.001);
        assert!((rotary.factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    }
}
