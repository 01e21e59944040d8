//! How to train: what a run is told, and what follows from it for the order and the passes of its rows.

use std::ops::Range;

use super::adamw::AdamWConfig;
use super::batch::{Order, bin_ends, passes};
use super::schedule::{LearningRate, Schedule};

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// This many optimizer steps.
    Steps(usize),
    /// This many times through the data.
    Epochs(usize),
}

/// How to train an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Learning rate over the steps.
    pub learning_rate: LearningRate,
    /// The optimizer's constants.
    pub adamw: AdamWConfig,
    /// Examples in a forward pass, or bins of them.
    pub batch_size: usize,
    /// Forward passes for each step; their loss is normalised by all their weighted tokens together.
    pub gradient_accumulation: usize,
    /// Fill each place of a batch with whole examples up to this many tokens, instead of with one. Decoders only.
    pub pack: Option<usize>,
    /// Keep each layer's input alone, and compute the layer again on the way back.
    pub gradient_checkpointing: bool,
    /// When to stop.
    pub duration: Duration,
    /// The gradient of all matrices together is scaled down to this norm.
    pub max_grad_norm: Option<f64>,
    /// Validate each so many steps, and before the first and after the last.
    pub eval_every: Option<usize>,
    /// Steps in a row without a finite loss and gradient that are passed over, the adapter and the optimizer untouched.
    pub max_skipped_steps: usize,
    /// Decides order and dropout.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: LearningRate {
                peak: 2e-4,
                schedule: Schedule::Cosine,
                warmup_steps: 0,
                final_fraction: None,
            },
            adamw: AdamWConfig::default(),
            batch_size: 4,
            gradient_accumulation: 1,
            pack: None,
            gradient_checkpointing: false,
            duration: Duration::Epochs(1),
            max_grad_norm: Some(1.0),
            eval_every: None,
            max_skipped_steps: 3,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// With this peak learning rate.
    pub fn learning_rate(mut self, peak: f64) -> Self {
        self.learning_rate.peak = peak;
        self
    }

    /// Bins that a step takes: one example each, unless they are packed.
    pub(super) fn bins_per_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation
    }

    /// The order of examples with so many tokens each.
    pub(super) fn order(&self, lengths: Vec<usize>, taken: usize) -> Order {
        Order::new(lengths, self.pack, self.seed, taken)
    }

    /// Steps of a run in this order.
    pub(super) fn total_steps(&self, order: &Order) -> usize {
        match self.duration {
            Duration::Steps(steps) => steps,
            Duration::Epochs(epochs) => order.bins(epochs).div_ceil(self.bins_per_step()),
        }
    }

    /// The passes of a step over examples with so many tokens each, of `least` examples or more.
    pub(super) fn passes(&self, lengths: impl ExactSizeIterator<Item = usize>, least: usize) -> Vec<Range<usize>> {
        passes(&bin_ends(lengths, self.pack), self.batch_size, least)
    }

    /// What of it decides the steps, by name: a run continues under the same alone.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let Self { learning_rate: rate, adamw, batch_size, gradient_accumulation, pack, max_grad_norm, seed, .. } =
            self;
        vec![
            ("learning_rate", rate.peak.to_string()),
            ("schedule", rate.schedule.to_string()),
            ("warmup_steps", rate.warmup_steps.to_string()),
            ("final_fraction", format!("{:?}", rate.final_fraction)),
            ("adamw", format!("{adamw:?}")),
            ("batch_size", batch_size.to_string()),
            ("gradient_accumulation", gradient_accumulation.to_string()),
            ("pack", format!("{pack:?}")),
            ("max_grad_norm", format!("{max_grad_norm:?}")),
            ("seed", seed.to_string()),
        ]
    }
}
