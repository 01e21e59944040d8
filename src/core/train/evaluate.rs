//! The loss of a model on a data set, without training: validation, and the `score` command.

use std::ops::ControlFlow;

use firebrick_backend::KernelBackend;

use super::batch::Batch;
use super::data::{Dataset, Example};
use crate::error::{Error, Result};
use crate::model::CausalLm;

/// Tokens evaluated at a time.
pub(super) const BATCH_TOKENS: usize = 2048;

/// The loss of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// Line of the data file, from 1.
    pub line: usize,
    /// Weighted tokens.
    pub tokens: f64,
    /// Mean loss of a weighted token, in nats.
    pub loss: f64,
}

/// The loss of each example, in order: stream it, or [`mean_loss`] of all.
///
/// # Panics
/// On an autodiff backend, whose graph would grow: evaluate `model.valid()`.
pub fn row_losses<'a, B: KernelBackend>(
    model: &'a dyn CausalLm<B>,
    examples: &'a [Example],
) -> impl Iterator<Item = Result<RowLoss>> + 'a {
    assert!(!B::ad_enabled(&model.device()), "evaluating on an autodiff backend: use model.valid()");
    batches(examples).flat_map(move |batch| {
        let views: Vec<&Example> = batch.iter().collect();
        let losses = Batch::<B>::new(&views, &model.device()).losses(model);
        let row = |(example, (sum, weight)): (&Example, (f64, f64))| {
            let loss = sum / weight;
            if loss.is_finite() {
                Ok(RowLoss { line: example.line, tokens: weight, loss })
            } else {
                Err(Error::NotFinite { what: "the loss", place: Some(format!("the row on line {}", example.line)) })
            }
        };
        batch.iter().zip(losses).map(row).collect::<Vec<_>>()
    })
}

/// Examples that are evaluated together, in their order.
fn batches(examples: &[Example]) -> impl Iterator<Item = &[Example]> {
    let mut rest = examples;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |example: &&Example| {
            tokens += example.tokens.len();
            tokens <= BATCH_TOKENS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, later) = rest.split_at(count);
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Mean loss of the data set's weighted tokens, in nats.
///
/// # Errors
/// If a loss is not finite.
pub fn mean_loss<B: KernelBackend>(model: &dyn CausalLm<B>, dataset: &Dataset) -> Result<f64> {
    let mean = mean_loss_while(model, dataset, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(mean.unwrap_or_else(|| unreachable!("nobody breaks")))
}

/// [`mean_loss`], or nothing if `go_on` breaks; it is told how many rows are done, and of how many.
pub(super) fn mean_loss_while<B: KernelBackend>(
    model: &dyn CausalLm<B>,
    dataset: &Dataset,
    go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<f64>> {
    assert!(!B::ad_enabled(&model.device()), "evaluating on an autodiff backend: use model.valid()");
    let (mut sum, mut tokens, mut done) = (0.0, 0.0, 0);
    let examples = dataset.examples();
    for batch in batches(examples) {
        let views: Vec<&Example> = batch.iter().collect();
        let (loss, weight) = Batch::<B>::new(&views, &model.device()).loss(model);
        if !loss.is_finite() {
            // Which row it was is worth another pass.
            row_losses(model, batch).try_for_each(|row| row.map(drop))?;
            return Err(Error::NotFinite { what: "the loss", place: None });
        }
        sum += loss;
        tokens += weight;
        done += batch.len();
        if go_on(done, examples.len()).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(sum / tokens))
}
