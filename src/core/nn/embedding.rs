//! Token embeddings: rows of a table in its stored format, widened as they are read.

use burn::tensor::{Int, Tensor};
use firebrick_backend::ops::embedding::embedding;
use firebrick_backend::{KernelBackend, TrainBackend};

/// A table `[vocabulary, hidden]` in its stored dtype.
#[derive(Clone, Debug)]
pub struct Embedding<B: KernelBackend> {
    /// The table, also the head of a model with tied embeddings.
    pub weight: Tensor<B, 2>,
}

impl<B: KernelBackend> Embedding<B> {
    /// The table on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> Embedding<B::InnerBackend>
    where
        B: TrainBackend,
    {
        Embedding { weight: self.weight.clone().inner() }
    }

    /// The rows of `ids`, `[tokens]` → `[tokens, hidden]`, in f32 (f64 if the table is).
    pub fn forward(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        embedding(self.weight.clone(), ids)
    }
}
