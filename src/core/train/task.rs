//! What can be learned: the loss of a batch, and what validation measures. The loop, the optimizer and the collection of gradients in
//! `run.rs` are the same for every task.

use burn::tensor::Tensor;
use firebrick_backend::TrainBackend;

use super::batch::Batch;
use super::data::{Dataset, Example};
use super::evaluate::mean_loss;
use crate::error::Result;
use crate::model::{CausalLm, Handle};

/// What validation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss.
    pub loss: f64,
    /// How well passages were found, where that is what is learned.
    pub retrieval: Option<Retrieval>,
}

/// How well passages are found among all passages of a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieval {
    /// Part of the queries whose own passage came first.
    pub recall_at_1: f64,
    /// Part of the queries whose own passage was among the first ten.
    pub recall_at_10: f64,
    /// Mean of one over the rank of the query's own passage.
    pub reciprocal_rank: f64,
}

/// Something that an adapter can learn.
pub trait Task<B: TrainBackend> {
    /// The kind of model, behind `dyn`.
    type Model: Handle<B> + ?Sized;
    /// The same on the backend underneath autodiff.
    type Valid: Handle<B::InnerBackend> + ?Sized;
    /// A row of data.
    type Example;
    /// Rows as one forward pass.
    type Batch;
    /// Rows of a pass at least.
    const LEAST: usize;

    /// The same weights on the backend underneath autodiff.
    fn valid(model: &Self::Model) -> Box<Self::Valid>;
    /// Rows laid end to end.
    fn batch(&self, examples: &[&Self::Example], device: &B::Device) -> Self::Batch;
    /// What the sum of its losses is divided by to be their mean.
    fn weight(batch: &Self::Batch) -> f64;
    /// The sum of its losses, `[1]`.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch) -> Tensor<B, 1>;
    /// Tokens of a row that pass through the model.
    fn tokens(example: &Self::Example) -> usize;
    /// Measures a model on rows it does not learn from; `batch_size` rows pass through it at a time where that matters to the loss.
    ///
    /// # Errors
    /// If a number is not finite.
    fn evaluate(&self, model: &Self::Valid, data: &Dataset<Self::Example>, batch_size: usize) -> Result<Evaluation>;
}

/// Decoders learn to predict the weighted tokens of their rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextToken;

impl<B: TrainBackend> Task<B> for NextToken {
    type Model = dyn CausalLm<B>;
    type Valid = dyn CausalLm<B::InnerBackend>;
    type Example = Example;
    type Batch = Batch<B>;
    const LEAST: usize = 1;

    fn valid(model: &Self::Model) -> Box<Self::Valid> {
        model.valid()
    }

    fn batch(&self, examples: &[&Example], device: &B::Device) -> Batch<B> {
        Batch::new(examples, device)
    }

    fn weight(batch: &Batch<B>) -> f64 {
        batch.weight()
    }

    fn loss(&self, model: &Self::Model, batch: &Batch<B>) -> Tensor<B, 1> {
        batch.loss(model)
    }

    fn tokens(example: &Example) -> usize {
        // The last token is predicted and passes through nothing.
        example.tokens.len() - 1
    }

    fn evaluate(&self, model: &Self::Valid, data: &Dataset, _: usize) -> Result<Evaluation> {
        Ok(Evaluation { loss: mean_loss(model, data)?, retrieval: None })
    }
}
