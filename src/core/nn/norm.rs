//! Norms: the fused op with its weights.

use burn::tensor::Tensor;
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

    /// The norm on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> RmsNorm<B::InnerBackend>
    where
        B: TrainBackend,
    {
        RmsNorm { weight: self.weight.clone().inner(), epsilon: self.epsilon }
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

    /// The norm on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> LayerNorm<B::InnerBackend>
    where
        B: TrainBackend,
    {
        LayerNorm { weight: self.weight.clone().inner(), bias: self.bias.clone().inner(), epsilon: self.epsilon }
    }
}
