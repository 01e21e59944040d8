//! Norms: the fused op with its weights, and the sums they take on the way.

use burn::tensor::Tensor;
use firebrick_backend::ops::add_layer_norm::add_layer_norm;
use firebrick_backend::ops::add_rms_norm::add_rms_norm;
use firebrick_backend::ops::layer_norm::layer_norm;
use firebrick_backend::ops::rms_norm::rms_norm;
use firebrick_backend::{KernelBackend, TrainBackend};

/// Root mean square norm with a weight `[hidden]`.
#[derive(Clone, Debug)]
pub struct RmsNorm<B: KernelBackend> {
    /// The scale of each feature.
    pub weight: Tensor<B, 1>,
    /// Added to the mean square.
    pub epsilon: f64,
}

impl<B: KernelBackend> RmsNorm<B> {
    /// `[…, hidden]` → `[…, hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        rms_norm(x, self.weight.clone(), self.epsilon)
    }

    /// The sum that `stream` stands for, and its norm.
    pub fn forward_sum(&self, stream: Stream<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        match stream.update {
            Some(update) => add_rms_norm(update, stream.x, self.weight.clone(), self.epsilon),
            None => (stream.x.clone(), self.forward(stream.x)),
        }
    }

    /// The norm on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> RmsNorm<B::InnerBackend>
    where
        B: TrainBackend,
    {
        RmsNorm { weight: self.weight.clone().inner(), epsilon: self.epsilon }
    }
}

/// Hidden states as a sum that nobody has taken yet: whoever norms them next adds in the same pass.
#[derive(Clone, Debug)]
pub struct Stream<B: KernelBackend> {
    /// What was there before, `[tokens, hidden]`.
    pub x: Tensor<B, 2>,
    /// What a sublayer adds to it.
    pub update: Option<Tensor<B, 2>>,
}

impl<B: KernelBackend> Stream<B> {
    /// States to which nothing is to be added.
    pub fn of(x: Tensor<B, 2>) -> Self {
        Self { x, update: None }
    }

    /// The sum, taken.
    pub fn sum(self) -> Tensor<B, 2> {
        match self.update {
            Some(update) => self.x + update,
            None => self.x,
        }
    }
}

/// Layer norm with weight and bias `[hidden]`.
#[derive(Clone, Debug)]
pub struct LayerNorm<B: KernelBackend> {
    /// The scale of each feature.
    pub weight: Tensor<B, 1>,
    /// The shift of each feature.
    pub bias: Tensor<B, 1>,
    /// Added to the variance.
    pub epsilon: f64,
}

impl<B: KernelBackend> LayerNorm<B> {
    /// `[…, hidden]` → `[…, hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        layer_norm(x, self.weight.clone(), self.bias.clone(), self.epsilon)
    }

    /// The norm of `x + residual`.
    pub fn forward_sum<const D: usize>(&self, x: Tensor<B, D>, residual: Tensor<B, D>) -> Tensor<B, D> {
        add_layer_norm(x, residual, self.weight.clone(), self.bias.clone(), self.epsilon)
    }

    /// The norm on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> LayerNorm<B::InnerBackend>
    where
        B: TrainBackend,
    {
        LayerNorm { weight: self.weight.clone().inner(), bias: self.bias.clone().inner(), epsilon: self.epsilon }
    }
}
