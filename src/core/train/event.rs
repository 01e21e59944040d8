//! What a run tells while it goes on.

use super::task::Retrieval;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub step: usize,
    /// Mean loss of its weighted tokens, or of its pairs, before the update, in nats.
    pub loss: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Norm of its whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that passed through the model in it.
    pub tokens: usize,
    /// Its length in seconds, the device's work included.
    pub seconds: f64,
}

/// What the trainer reports.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A step was taken.
    Step(Step),
    /// A step was passed over, since its loss or a gradient was not finite; adapter and optimizer are as before.
    Skipped {
        /// Number of the step, from 1.
        step: usize,
        /// What was not finite, where, and the rows of the step.
        problem: String,
        /// Tokens that passed through the model in it.
        tokens: usize,
    },
    /// A step or a validation goes on. Who breaks here gives up what is unfinished of it.
    Unfinished {
        /// About how much longer it takes, in seconds.
        seconds_left: f64,
    },
    /// The checkpoint of this step is about to be written.
    Saving {
        /// Steps taken so far.
        step: usize,
    },
    /// The validation set was evaluated after this many steps.
    Evaluated {
        /// Steps taken so far.
        step: usize,
        /// Mean loss of its weighted tokens, or of its pairs, in nats.
        valid_loss: f64,
        /// How well passages were found, of a model that learns to.
        retrieval: Option<Retrieval>,
    },
}
