//! The linear layer, with or without an adapter. Models call `forward` and never say "LoRA".

use burn::tensor::{Tensor, TensorData};
use firebrick_backend::ops::linear::linear;
use firebrick_backend::ops::linears::linears;
use firebrick_backend::ops::lora_linear::lora_linear;
use firebrick_backend::{KernelBackend, TrainBackend};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `y = x·Wᵀ + b`, plus `scale·(dropout(x)·Aᵀ)·Bᵀ` where an adapter is attached (Hu et al. 2021).
#[derive(Clone, Debug)]
pub struct Linear<B: KernelBackend> {
    /// `[out, in]`, in the dtype it is stored in.
    pub weight: Tensor<B, 2>,
    /// `[out]`.
    pub bias: Option<Tensor<B, 1>>,
    /// The attached adapter's part for this layer.
    pub lora: Option<Lora<B>>,
}

/// One layer's low-rank update.
#[derive(Clone, Debug)]
pub struct Lora<B: KernelBackend> {
    /// `A`, `[rank, in]`, f32.
    pub a: Tensor<B, 2>,
    /// `B`, `[out, rank]`, f32.
    pub b: Tensor<B, 2>,
    /// `alpha / rank`, or `alpha / √rank` with rsLoRA.
    pub scale: f64,
    /// Dropout before `A`, in training only.
    pub dropout: Option<Dropout>,
}

/// Dropout as a function of its key: the same key gives the same mask, so that a run can be repeated and a layer recomputed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped.
    pub probability: f32,
    /// Derived from seed, step and module.
    pub key: u64,
}

impl<B: KernelBackend> Linear<B> {
    /// A layer without an adapter.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// `[rows, in]` → `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.mapped(x, self.bias.clone())
    }

    /// As [`forward`](Self::forward), the bias left to the op that comes next.
    pub fn forward_without_bias(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.mapped(x, None)
    }

    /// [`forward`](Self::forward) of several layers that see the same `x`, in one op where none has an adapter.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: Tensor<B, 2>) -> [Tensor<B, 2>; N] {
        if layers.iter().any(|layer| layer.lora.is_some()) {
            return layers.map(|layer| layer.forward(x.clone()));
        }
        linears(x, layers.map(|layer| (layer.weight.clone(), layer.bias.clone())))
    }

    fn mapped(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        let Some(lora) = &self.lora else {
            return linear(x, self.weight.clone(), bias);
        };
        let dropped = lora.dropout.map(|dropout| x.clone() * dropout.mask(x.dims(), &x));
        let matrices = [lora.a.clone(), lora.b.clone()];
        lora_linear(x, dropped, self.weight.clone(), bias, matrices, lora.scale)
    }

    /// The layer on the backend underneath autodiff, sharing storage.
    pub fn valid(&self) -> Linear<B::InnerBackend>
    where
        B: TrainBackend,
    {
        let lora = self.lora.as_ref().map(|lora| Lora {
            a: lora.a.clone().inner(),
            b: lora.b.clone().inner(),
            scale: lora.scale,
            dropout: None,
        });
        Linear { weight: self.weight.clone().inner(), bias: self.bias.clone().map(Tensor::inner), lora }
    }

    /// Whether training keeps what enters this layer: an adapter's `A` needs it, unless dropout gave it something else.
    pub fn keeps_input(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.dropout.is_none())
    }

    /// Values that training keeps of this layer's adapter for each token: the narrow product, and with dropout the mask and what it left.
    pub fn kept_by_adapter(&self) -> usize {
        self.lora.as_ref().map_or(0, |lora| {
            let [rank, inputs] = lora.a.dims();
            rank + if lora.dropout.is_some() { 2 * inputs } else { 0 }
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }
}

impl Dropout {
    /// 0 for a dropped element, `1 / (1 − p)` for a kept one.
    fn mask<B: KernelBackend>(&self, shape: [usize; 2], like: &Tensor<B, 2>) -> Tensor<B, 2> {
        let mut random = ChaCha8Rng::seed_from_u64(self.key);
        let kept = 1.0 / (1.0 - self.probability);
        // 16 bits an element: a probability is met to 1 in 65,536.
        let threshold = (self.probability * 65_536.0).round() as u32;
        let mut mask = vec![0.0f32; shape[0] * shape[1]];
        for pair in mask.chunks_mut(4) {
            let bits: u64 = random.random();
            for (index, value) in pair.iter_mut().enumerate() {
                if (bits >> (16 * index)) as u32 & 0xffff >= threshold {
                    *value = kept;
                }
            }
        }
        let data = TensorData::new(mask, shape).convert_dtype(like.dtype());
        Tensor::from_data(data, (&like.device(), like.dtype()))
    }
}
