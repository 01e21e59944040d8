//! Examples laid end to end, the rows whose next token counts, and the order in which examples come.

use burn::tensor::{Int, Tensor, TensorData};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::cross_entropy::Targets;

use super::data::{Example, epoch_order};
use crate::model::CausalLm;
use crate::nn::Stream;
use crate::sequence::{Segments, Sequences};

/// Some examples as one forward pass.
pub struct Batch<B: KernelBackend> {
    tokens: Sequences<B>,
    /// Rows that predict a weighted token, and which.
    rows: Vec<usize>,
    pub(crate) targets: Targets,
    /// How many of `rows` belong to each example.
    counts: Vec<usize>,
}

impl<B: KernelBackend> Batch<B> {
    /// The last token of an example predicts nothing and is left out of the pass.
    pub(crate) fn new(examples: &[&Example], device: &B::Device) -> Self {
        let (mut ids, mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for example in examples {
            let before = rows.len();
            for (next, &weight) in example.weights.iter().enumerate().skip(1) {
                if weight != 0.0 {
                    rows.push(ids.len() + next - 1);
                    targets.push(example.tokens[next]);
                    weights.push(weight);
                }
            }
            counts.push(rows.len() - before);
            ids.extend_from_slice(&example.tokens[..example.tokens.len() - 1]);
        }
        let segments = Segments::whole(examples.iter().map(|example| example.tokens.len() - 1));
        let tokens = Sequences::new(&ids, segments, device);
        Self { tokens, rows, targets: Targets::new(targets, weights), counts }
    }

    /// Tokens that pass through the model.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.segments.rows()
    }

    /// The first layer whose output is not finite, counted from the embeddings.
    pub(crate) fn first_not_finite(&self, model: &dyn CausalLm<B>) -> Option<String> {
        let is_finite = |x: Tensor<B, 2>| x.sum().into_data().iter::<f64>().all(f64::is_finite);
        let positions = model.positions(&self.tokens.segments);
        let mut stream = Stream { x: model.embed(&self.tokens), update: None };
        if !is_finite(stream.x.clone()) {
            return Some("the embeddings".into());
        }
        for index in 0..model.facts().layers {
            stream = model.layer(index, stream, &positions, None);
            let Stream { x, update } = stream.clone();
            if !is_finite(update.map_or(x.clone(), |update| x + update)) {
                return Some(format!("layer {index}"));
            }
        }
        None
    }

    /// Hidden states of the weighted rows.
    pub(crate) fn hidden(&self, model: &dyn CausalLm<B>) -> Tensor<B, 2> {
        let hidden = model.hidden(&self.tokens, None);
        if self.rows.len() == self.tokens() {
            return hidden;
        }
        let rows: Vec<i64> = self.rows.iter().map(|&row| row as i64).collect();
        let count = rows.len();
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [count]), &model.device());
        hidden.select(0, rows)
    }

    /// Weighted sum of the losses, `[1]`.
    pub(crate) fn loss(&self, model: &dyn CausalLm<B>) -> Tensor<B, 1> {
        model.loss(self.hidden(model), &self.targets)
    }

    /// Weighted sum of the losses and sum of the weights of each example.
    pub(crate) fn losses(&self, model: &dyn CausalLm<B>) -> Vec<(f64, f64)> {
        let hidden = self.hidden(model);
        let mut start = 0;
        let mut losses = Vec::new();
        for &count in &self.counts {
            let range = start..start + count;
            start += count;
            if count == 0 {
                losses.push((0.0, 0.0));
                continue;
            }
            let (ids, weights) = (&self.targets.ids[range.clone()], &self.targets.weights[range.clone()]);
            let loss = model.loss(hidden.clone().narrow(0, range.start, count), &Targets::new(ids, weights));
            let loss = loss.into_data().iter::<f64>().next().unwrap_or(f64::NAN);
            losses.push((loss, weights.iter().map(|&weight| f64::from(weight)).sum()));
        }
        losses
    }
}

/// Examples in training order: epoch after epoch, each shuffled by the seed.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    examples: usize,
    seed: u64,
    epoch: usize,
    shuffled: Vec<usize>,
    at: usize,
}

impl Order {
    /// The order from where `taken` examples were taken before.
    pub(crate) fn at(examples: usize, seed: u64, taken: usize) -> Self {
        let epoch = taken / examples;
        Self { examples, seed, epoch, shuffled: epoch_order(examples, seed, epoch), at: taken % examples }
    }

    /// The next examples' indices.
    pub(crate) fn take(&mut self, count: usize) -> Vec<usize> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if self.at == self.examples {
                self.epoch += 1;
                self.shuffled = epoch_order(self.examples, self.seed, self.epoch);
                self.at = 0;
            }
            taken.push(self.shuffled[self.at]);
            self.at += 1;
        }
        taken
    }
}
