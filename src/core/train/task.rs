//! What can be learned: the loss of a batch, and what validation measures. The loop, the optimizer and the collection of gradients in
//! `run.rs` are the same for every task.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use firebrick_backend::TrainBackend;
use sha2::{Digest, Sha256};

use super::batch::Batch;
use super::data::{Dataset, Example};
use super::evaluate::{BATCH_TOKENS, mean_loss_while};
use crate::error::Result;
use crate::model::{CausalLm, Handle};
use crate::sequence::Sequences;

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
    /// Whether a row's loss is its own, so that rows may be packed into a pass by their lengths.
    const PACKS: bool;
    /// Tokens that pass through the model at a time when it is evaluated.
    const EVALUATED_TOKENS: usize;

    /// The same weights on the backend underneath autodiff.
    fn valid(model: &Self::Model) -> Box<Self::Valid>;
    /// Rows laid end to end.
    fn batch(&self, examples: &[&Self::Example], device: &B::Device) -> Self::Batch;
    /// What the sum of the losses of a step's rows is divided by to be their mean.
    fn weight(examples: &[&Self::Example]) -> f64;
    /// The tokens that pass through the model.
    fn sequences(batch: &Self::Batch) -> &Sequences<B>;
    /// The sum of its losses from the hidden states of the tokens that are wanted, `[wanted, hidden]` → `[1]`.
    fn loss_of_hidden(&self, model: &Self::Model, batch: &Self::Batch, hidden: Tensor<B, 2>) -> Tensor<B, 1>;
    /// The sum of its losses, `[1]`.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch) -> Tensor<B, 1> {
        self.loss_of_hidden(model, batch, model.hidden_states(Self::sequences(batch)))
    }
    /// Tokens of a row that pass through the model.
    fn tokens(example: &Self::Example) -> usize;
    /// The largest id among a row's tokens.
    fn largest_id(example: &Self::Example) -> u32;
    /// Those of them that go through the model's head.
    fn weighted(example: &Self::Example) -> usize;
    /// Line of its file that a row came from, from 1.
    fn line(example: &Self::Example) -> usize;
    /// Adds what a row is to a hash.
    fn identify(example: &Self::Example, hash: &mut Sha256);
    /// Measures a model on rows it does not learn from; `batch_size` rows pass through it at a time where that matters to the loss. `go_on` is
    /// told how many rows are done, and of how many; nothing is measured if it breaks.
    ///
    /// # Errors
    /// If a number is not finite.
    fn evaluate(
        &self,
        model: &Self::Valid,
        data: &Dataset<Self::Example>,
        batch_size: usize,
        go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Evaluation>>;
    /// What else than the rows decides the loss, as it is told to who changed it.
    fn settings(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
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
    const PACKS: bool = true;
    const EVALUATED_TOKENS: usize = BATCH_TOKENS;

    fn valid(model: &Self::Model) -> Box<Self::Valid> {
        model.valid()
    }

    fn batch(&self, examples: &[&Example], device: &B::Device) -> Batch<B> {
        Batch::new(examples, device)
    }

    fn weight(examples: &[&Example]) -> f64 {
        // The first token of a row is predicted from nothing.
        examples.iter().flat_map(|example| &example.weights[1..]).map(|&weight| f64::from(weight)).sum()
    }

    fn sequences(batch: &Batch<B>) -> &Sequences<B> {
        &batch.tokens
    }

    fn loss_of_hidden(&self, model: &Self::Model, batch: &Batch<B>, hidden: Tensor<B, 2>) -> Tensor<B, 1> {
        model.loss(hidden, &batch.targets)
    }

    fn largest_id(example: &Example) -> u32 {
        example.tokens.iter().copied().max().unwrap_or_default()
    }

    fn tokens(example: &Example) -> usize {
        // The last token is predicted and passes through nothing.
        example.tokens.len() - 1
    }

    fn weighted(example: &Example) -> usize {
        example.weights.iter().skip(1).filter(|&&weight| weight != 0.0).count()
    }

    fn line(example: &Example) -> usize {
        example.line
    }

    fn identify(example: &Example, hash: &mut Sha256) {
        hash.update((example.tokens.len() as u64).to_le_bytes());
        for (token, weight) in example.tokens.iter().zip(&example.weights) {
            hash.update(token.to_le_bytes());
            hash.update(weight.to_le_bytes());
        }
    }

    fn evaluate(
        &self,
        model: &Self::Valid,
        data: &Dataset,
        _: usize,
        go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Evaluation>> {
        let loss = mean_loss_while(model, data, go_on)?;
        Ok(loss.map(|loss| Evaluation { loss, retrieval: None }))
    }
}
