//! Forward and backward of one batch. Whole, every activation is kept until its turn comes; layer by layer, each layer keeps its input
//! alone and is computed a second time, so that activations of one layer exist at a time (Chen et al. 2016).

use std::collections::BTreeMap;
use std::ops::RangeFrom;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use firebrick_backend::{KernelBackend, TrainBackend};

use super::task::Task;
use crate::error::{Error, Result};
use crate::lora::{Adapter, Module};
use crate::model::Handle;
use crate::nn::{Dropout, Lora, Stream};
use crate::random::key;
use crate::sequence::Sequences;

/// Sums of gradients by module: of `A` and of `B`.
pub type Gradients<B> = BTreeMap<String, [Tensor<<B as AutodiffBackend>::InnerBackend, 2>; 2]>;

/// One batch's way through the model and back.
pub(super) struct Pass<'t, B: TrainBackend, T: Task<B>> {
    pub(super) task: &'t T,
    pub(super) model: &'t T::Model,
    /// The same weights on the backend underneath.
    pub(super) inner: &'t T::Valid,
    pub(super) adapter: &'t Adapter<B::InnerBackend>,
    /// What dropout is a function of, besides the module: the seed, the step, and the number of the pass in it.
    pub(super) numbers: [u64; 3],
    /// What the sum of the losses is divided by.
    pub(super) weight: f64,
}

/// The adapter's matrices whose gradients are still to come.
struct Awaited<B: TrainBackend>(BTreeMap<String, [Tensor<B, 2>; 2]>);

impl<B: TrainBackend, T: Task<B>> Pass<'_, B, T> {
    /// The batch's share of the loss; its gradients are added to `gradients`.
    ///
    /// # Errors
    /// If a module receives none.
    pub(super) fn whole(&self, batch: &T::Batch, gradients: &mut Gradients<B>) -> Result<f64> {
        let (model, mut awaited) = self.tracked();
        let loss = self.task.loss(&*model, batch) / self.weight;
        awaited.take(&mut loss.backward(), gradients);
        awaited.finish()?;
        Ok(value(loss))
    }

    /// The same, layer by layer. Below the lowest layer with an adapter nothing is kept and nothing goes back.
    ///
    /// # Errors
    /// If a module receives none.
    pub(super) fn by_layer(&self, batch: &T::Batch, gradients: &mut Gradients<B>) -> Result<f64> {
        let sequences = T::sequences(batch);
        let (model, mut awaited) = self.tracked();
        let first = awaited.first_layer();
        let (inputs, left) = self.inputs(sequences, first..);

        let left = Tensor::<B, 2>::from_inner(left).require_grad();
        let hidden = model.leave(Stream::of(left.clone()));
        let loss = self.task.loss_of_hidden(&*model, batch, hidden) / self.weight;
        let mut taken = loss.backward();
        let loss = value(loss);
        let mut gradient = left.grad_remove(&mut taken);
        drop((left, taken));

        let places = model.places(&sequences.segments);
        for (index, input) in (first..).zip(inputs).collect::<Vec<_>>().into_iter().rev() {
            let Some(above) = gradient else {
                let reason = "the graph does not reach the layer's output".into();
                return Err(Error::NoGradient { module: format!("layer {index}"), reason });
            };
            let input = Tensor::<B, 2>::from_inner(input);
            let input = if index > first { input.require_grad() } else { input };
            let output = model.pass(index, Stream::of(input.clone()), &places).sum();
            // The derivative of this sum is the layer's, applied to the gradient above: Burn's `backward` starts from a scalar.
            let mut taken = (output * Tensor::from_inner(above)).sum().backward();
            awaited.take(&mut taken, gradients);
            gradient = input.grad_remove(&mut taken);
        }
        awaited.finish()?;
        Ok(loss)
    }

    /// Where a number that is not finite comes up first on the way forward, if one does.
    pub(super) fn first_not_finite(&self, batch: &T::Batch) -> Option<String> {
        let is_finite = |x: Tensor<B::InnerBackend, 2>| x.sum().into_data().iter::<f64>().all(f64::is_finite);
        let (inputs, left) = self.inputs(T::sequences(batch), 0..);
        let mut sums = inputs.into_iter().chain([left]).enumerate();
        let (entered, _) = sums.find(|(_, x)| !is_finite(x.clone()))?;
        Some(entered.checked_sub(1).map_or("the embeddings".to_owned(), |layer| format!("layer {layer}")))
    }

    /// What enters each of these layers, and what leaves the last, `[tokens, hidden]` each. Nothing is tracked.
    fn inputs(
        &self,
        sequences: &Sequences<B>,
        layers: RangeFrom<usize>,
    ) -> (Vec<Tensor<B::InnerBackend, 2>>, Tensor<B::InnerBackend, 2>) {
        let model = self.attached(self.inner, |_, module| [module.a.clone(), module.b.clone()]);
        let tokens = Sequences { ids: sequences.ids.clone().inner(), segments: sequences.segments.clone() };
        let places = model.places(&tokens.segments);
        let mut stream = Stream::of(model.enter(&tokens));
        let mut inputs = Vec::new();
        for index in 0..model.layers() {
            if layers.contains(&index) {
                // The sum is half of what its parts would take.
                let x = stream.sum();
                inputs.push(x.clone());
                stream = Stream::of(x);
            }
            stream = model.pass(index, stream, &places);
        }
        (inputs, stream.sum())
    }

    /// A handle to the model with the adapter attached, its matrices tracked.
    fn tracked(&self) -> (Box<T::Model>, Awaited<B>) {
        let mut awaited = BTreeMap::new();
        let model = self.attached(self.model, |path, module| {
            let [a, b] = [&module.a, &module.b].map(|matrix| Tensor::<B, 2>::from_inner(matrix.clone()).require_grad());
            awaited.insert(path.to_owned(), [a.clone(), b.clone()]);
            [a, b]
        });
        (model, Awaited(awaited))
    }

    /// A handle to the model with the adapter attached as training does it: with dropout.
    fn attached<C: KernelBackend, M: Handle<C> + ?Sized>(
        &self,
        model: &M,
        mut matrices: impl FnMut(&str, &Module<B::InnerBackend>) -> [Tensor<C, 2>; 2],
    ) -> Box<M> {
        let mut handle = model.handle();
        let numbers = self.numbers.map(u64::to_le_bytes).concat();
        let probability = self.adapter.dropout();
        handle.each_linear(&mut |path, linear| {
            linear.lora = self.adapter.modules().get(path).map(|module| {
                let [a, b] = matrices(path, module);
                let dropout = (probability > 0.0)
                    .then(|| Dropout { probability: probability as f32, key: key(&[&numbers, path.as_bytes()]) });
                Lora { a, b, scale: module.scale, dropout }
            });
        });
        handle
    }
}

impl<B: TrainBackend> Awaited<B> {
    /// Adds the gradients that have come.
    fn take(&mut self, taken: &mut B::Gradients, into: &mut Gradients<B>) {
        self.0.retain(|path, [a, b]| {
            let [Some(d_a), Some(d_b)] = [a.grad_remove(taken), b.grad_remove(taken)] else { return true };
            let sum = match into.remove(path) {
                Some([sum_a, sum_b]) => [sum_a + d_a, sum_b + d_b],
                None => [d_a, d_b],
            };
            into.insert(path.clone(), sum);
            false
        });
    }

    /// An error that names a module whose gradient never came.
    fn finish(self) -> Result<()> {
        match self.0.into_keys().next() {
            Some(module) => Err(Error::NoGradient { module, reason: "the graph does not reach it".into() }),
            None => Ok(()),
        }
    }

    /// The lowest layer that has a module; the very first if one belongs to none.
    fn first_layer(&self) -> usize {
        self.0.keys().map(|path| layer_of(path).unwrap_or(0)).min().unwrap_or(0)
    }
}

/// The layer that a checkpoint's path is in: 3 of `model.layers.3.self_attn.q_proj`.
pub(super) fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

fn value<B: TrainBackend>(loss: Tensor<B, 1>) -> f64 {
    loss.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::layer_of;

    #[test]
    fn a_path_tells_its_layer() {
        assert_eq!(layer_of("model.layers.13.self_attn.q_proj"), Some(13));
        assert_eq!(layer_of("encoder.layer.0.attention.self.query"), Some(0));
        assert_eq!(layer_of("lm_head"), None);
    }
}
