//! AdamW (Loshchilov & Hutter 2019) as `torch.optim.AdamW` computes it: weight decay apart from the gradient, moments in f32.
//!
//! Our own because Burn's keeps its state inside a module, where it can neither be saved by name nor hold the adapters as values.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use firebrick_backend::KernelBackend;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Fraction of a parameter taken off at each step, times the learning rate.
    pub weight_decay: f64,
}

impl AdamWConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] with the field's name, value and bounds.
    pub fn validate(&self) -> Result<()> {
        let Self { beta1, beta2, epsilon, weight_decay } = *self;
        let from_0_below_1 = |value: f64| (0.0..1.0).contains(&value);
        let fields = [
            ("beta1", beta1, from_0_below_1(beta1), "from 0 to below 1"),
            ("beta2", beta2, from_0_below_1(beta2), "from 0 to below 1"),
            ("epsilon", epsilon, epsilon > 0.0 && epsilon.is_finite(), "above 0"),
            ("weight_decay", weight_decay, weight_decay >= 0.0 && weight_decay.is_finite(), "at least 0"),
        ];
        match fields.into_iter().find(|(.., fits, _)| !fits) {
            None => Ok(()),
            Some((name, value, _, bounds)) => {
                Err(Error::OutOfBounds { name, value: value.to_string(), bounds: bounds.into() })
            }
        }
    }
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// AdamW and its moments, by parameter name.
#[derive(Clone, Debug)]
pub struct AdamW<B: KernelBackend> {
    config: AdamWConfig,
    step: i32,
    moments: BTreeMap<String, [Tensor<B, 2>; 2]>,
}

impl<B: KernelBackend> AdamW<B> {
    /// An optimizer that has taken no step.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new() }
    }

    /// An optimizer that has taken `steps` steps and holds these moments, first and second, by parameter name.
    pub(crate) fn restored(config: AdamWConfig, steps: i32, moments: BTreeMap<String, [Tensor<B, 2>; 2]>) -> Self {
        Self { config, step: steps, moments }
    }

    /// Steps taken.
    pub(crate) fn steps(&self) -> i32 {
        self.step
    }

    /// First and second moment by parameter name.
    pub(crate) fn moments(&self) -> &BTreeMap<String, [Tensor<B, 2>; 2]> {
        &self.moments
    }

    /// Begins a step: the parameters updated until the next call belong to it.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// The parameter after this step.
    pub fn update(&mut self, name: &str, parameter: Tensor<B, 2>, gradient: Tensor<B, 2>, rate: f64) -> Tensor<B, 2> {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let squared = gradient.clone() * gradient.clone();
        let (first, second) = match self.moments.remove(name) {
            Some([first, second]) => {
                (first * beta1 + gradient * (1.0 - beta1), second * beta2 + squared * (1.0 - beta2))
            }
            None => (gradient * (1.0 - beta1), squared * (1.0 - beta2)),
        };
        self.moments.insert(name.to_owned(), [first.clone(), second.clone()]);
        let corrected = first / (1.0 - beta1.powi(self.step));
        let root = (second / (1.0 - beta2.powi(self.step))).sqrt() + epsilon;
        parameter * (1.0 - rate * weight_decay) - corrected / root * rate
    }
}
