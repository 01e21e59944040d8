//! What is timed: every workload with its sizes, what it moves and computes, and which of them make up the matrix.

use burn::tensor::DType;
use firebrick_backend::packed::{BLOCK, Format};
use serde_json::{Map, Value, json};

/// The sizes of Qwen2.5-0.5B.
pub mod qwen {
    /// Width of a hidden state.
    pub const HIDDEN: usize = 896;
    /// Width inside the MLP.
    pub const INTERMEDIATE: usize = 4864;
    /// Query heads, key-value heads, their dimension.
    pub const HEADS: [usize; 3] = [14, 2, 64];
    /// Decoder layers.
    pub const LAYERS: usize = 24;
    /// Rows of the embedding table, which is the head too.
    pub const VOCABULARY: usize = 151_936;

    /// Weights that a token passes through: the linears of all layers, and the head.
    pub fn weights() -> usize {
        let [heads, kv_heads, dim] = HEADS;
        let attention = HIDDEN * dim * (2 * heads + 2 * kv_heads);
        LAYERS * (attention + 3 * HIDDEN * INTERMEDIATE) + head()
    }

    /// Those of the head.
    pub fn head() -> usize {
        HIDDEN * VOCABULARY
    }
}

/// The sizes of E5-small-v2.
pub mod e5 {
    /// Width of a hidden state, and inside the MLP.
    pub const WIDTHS: [usize; 2] = [384, 1536];
    /// Encoder layers.
    pub const LAYERS: usize = 12;
    /// Attention heads.
    pub const HEADS: usize = 12;

    /// Weights of the linears.
    pub fn weights() -> usize {
        let [hidden, intermediate] = WIDTHS;
        LAYERS * (4 * hidden * hidden + 2 * hidden * intermediate)
    }
}

/// An op on rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowOp {
    /// `x` in memory of its own.
    Copy,
    /// Softmax.
    Softmax,
    /// Layer norm with an affine map.
    LayerNorm,
    /// Root mean square norm.
    RmsNorm,
    /// Sum with a residual, and RMS norm of it.
    AddRmsNorm,
    /// Layer norm of the sum with a residual.
    AddLayerNorm,
    /// `silu(x) · y`.
    Swiglu,
    /// `gelu(x + b)`.
    Gelu,
}

impl RowOp {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Copy,
        Self::Softmax,
        Self::LayerNorm,
        Self::RmsNorm,
        Self::AddRmsNorm,
        Self::AddLayerNorm,
        Self::Swiglu,
        Self::Gelu,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Softmax => "softmax",
            Self::LayerNorm => "layer_norm",
            Self::RmsNorm => "rms_norm",
            Self::AddRmsNorm => "add_rms_norm",
            Self::AddLayerNorm => "add_layer_norm",
            Self::Swiglu => "swiglu",
            Self::Gelu => "gelu",
        }
    }

    /// How many tensors of the input's size it reads and writes.
    pub fn tensors(self) -> usize {
        match self {
            Self::AddRmsNorm => 4,
            Self::AddLayerNorm | Self::Swiglu => 3,
            _ => 2,
        }
    }
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// An op on rows, fused as models use it, or composed of Burn's own ops.
    Rows {
        /// Which.
        op: RowOp,
        /// `[rows, width]`.
        shape: [usize; 2],
        /// Composed of Burn's own ops.
        reference: bool,
    },
    /// `[rows, inputs] · [outputs, inputs]ᵀ`.
    Matmul {
        /// Rows, inputs, outputs.
        sizes: [usize; 3],
    },
    /// A square linear with an adapter.
    LoraForward {
        /// Rows, features, rank.
        sizes: [usize; 3],
    },
    /// Causal grouped attention of this many tokens, with the heads of Qwen2.5-0.5B.
    Attention {
        /// Queries, and keys.
        tokens: usize,
    },
    /// The same of one query over a cache of keys.
    DecodeAttention {
        /// Keys.
        keys: usize,
    },
    /// Rows of Qwen2.5-0.5B's table.
    Embedding {
        /// Rows.
        tokens: usize,
    },
    /// Rotation of its queries.
    Rope {
        /// Rows.
        tokens: usize,
    },
    /// Its MLP.
    Mlp {
        /// Rows.
        tokens: usize,
    },
    /// One of its layers.
    Layer {
        /// Rows.
        tokens: usize,
    },
    /// The loss of its head and the gradient of that.
    HeadLoss {
        /// Rows, all of which count.
        tokens: usize,
        /// With the logits of all rows in memory, not of a chunk at a time.
        at_once: bool,
    },
    /// Logits after the last of some tokens by Qwen2.5-0.5B's shape.
    Prefill {
        /// Tokens of the prompt.
        tokens: usize,
    },
    /// Greedy generation by the same.
    Generate {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens.
        tokens: usize,
    },
    /// The next token after a text, by the same: with a cache of the text, or from the beginning.
    NextToken {
        /// Tokens of the text.
        after: usize,
        /// With a cache.
        cached: bool,
    },
    /// The choice of a token among 151,936, top-k 50 and top-p 0.9 at temperature 0.7.
    Sampling,
    /// A step of LoRA on q and v by the same, with AdamW.
    LoraStep {
        /// Tokens of the batch.
        tokens: usize,
        /// Rank; alpha is twice that.
        rank: usize,
        /// Every second token is masked.
        half: bool,
        /// How the tokens pass through the model.
        passes: Passes,
    },
    /// Texts to vectors by E5-small-v2's shape.
    Embed {
        /// How many texts.
        texts: usize,
        /// Of 4 to 256 tokens, else 32.
        mixed: bool,
    },
}

/// How the tokens of a training step pass through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// One row, every activation kept.
    One,
    /// One row, layer by layer.
    ByLayer,
    /// Eight rows of an eighth, one after the other.
    Rows,
    /// The same packed into one pass.
    Packed,
}

impl Passes {
    /// How many rows the tokens are.
    pub fn rows(self) -> usize {
        if matches!(self, Self::One | Self::ByLayer) { 1 } else { 8 }
    }

    /// What records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::ByLayer => "by layer",
            Self::Rows => "eight rows",
            Self::Packed => "eight rows packed",
        }
    }
}

/// One row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// What is computed.
    pub kind: Kind,
    /// The dtype of its weights, or of its inputs if it has none.
    pub dtype: DType,
}

/// What a call moves and computes at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes, each counted once however often it is used.
    pub bytes: usize,
    /// Multiplications and additions.
    pub operations: usize,
    /// Tokens that it is about, 0 where it is not about tokens.
    pub tokens: usize,
}

fn of(kind: Kind) -> Workload {
    Workload { kind, dtype: DType::F32 }
}

impl Workload {
    /// Its name, as records and peers know it.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Rows { op, .. } => op.name(),
            Kind::Matmul { .. } => "matmul",
            Kind::LoraForward { .. } => "lora_forward",
            Kind::Attention { .. } => "attention",
            Kind::DecodeAttention { .. } => "decode_attention",
            Kind::Embedding { .. } => "embedding",
            Kind::Rope { .. } => "rope",
            Kind::Mlp { .. } => "mlp",
            Kind::Layer { .. } => "layer",
            Kind::HeadLoss { .. } => "head_loss",
            Kind::Prefill { .. } => "prefill",
            Kind::Generate { .. } => "generate",
            Kind::NextToken { .. } => "next_token",
            Kind::Sampling => "sampling",
            Kind::LoraStep { .. } => "lora_step",
            Kind::Embed { .. } => "embed",
        }
    }

    /// Its name, sizes and dtype, as records and peers know them.
    pub fn describe(&self) -> Map<String, Value> {
        let [heads, kv_heads, dim] = qwen::HEADS;
        let sizes = match self.kind {
            Kind::Rows { shape: [rows, width], reference, .. } if reference => {
                json!({"rows": rows, "width": width, "reference": true})
            }
            Kind::Rows { shape: [rows, width], .. } => json!({"rows": rows, "width": width}),
            Kind::Matmul { sizes: [rows, inputs, outputs] } => {
                json!({"rows": rows, "inputs": inputs, "outputs": outputs})
            }
            Kind::LoraForward { sizes: [rows, features, rank] } => {
                json!({"rows": rows, "features": features, "rank": rank})
            }
            Kind::Attention { tokens } => json!({"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "dim": dim}),
            Kind::DecodeAttention { keys } => {
                json!({"keys": keys, "heads": heads, "kv_heads": kv_heads, "dim": dim})
            }
            Kind::Embedding { tokens } => {
                json!({"tokens": tokens, "vocabulary": qwen::VOCABULARY, "hidden": qwen::HIDDEN})
            }
            Kind::Rope { tokens } => json!({"tokens": tokens, "heads": heads, "dim": dim}),
            Kind::Mlp { tokens } => {
                json!({"tokens": tokens, "hidden": qwen::HIDDEN, "intermediate": qwen::INTERMEDIATE})
            }
            Kind::HeadLoss { tokens, at_once } => {
                json!({"tokens": tokens, "vocabulary": qwen::VOCABULARY, "hidden": qwen::HIDDEN, "logits": logits_of(at_once)})
            }
            Kind::Layer { tokens } | Kind::Prefill { tokens } => json!({"tokens": tokens}),
            Kind::Generate { prompt, tokens } => json!({"prompt": prompt, "tokens": tokens}),
            Kind::NextToken { after, cached } => json!({"after": after, "cached": cached}),
            Kind::Sampling => json!({"vocabulary": qwen::VOCABULARY}),
            Kind::LoraStep { tokens, rank, half, passes } => {
                let mut sizes = json!({"tokens": tokens, "rank": rank, "counted": if half { "half" } else { "all" }});
                if passes != Passes::One {
                    sizes["passes"] = passes.name().into();
                }
                sizes
            }
            Kind::Embed { texts, mixed } => json!({"texts": texts, "lengths": if mixed { "4 to 256" } else { "32" }}),
        };
        let mut map = Map::from_iter([("workload".into(), json!(self.name()))]);
        map.extend(sizes.as_object().cloned().unwrap_or_default());
        map.insert("dtype".into(), json!(dtype_name(self.dtype)));
        map
    }

    /// What a call moves and computes. Attention's operations are those of the pairs that see each other.
    pub fn cost(&self) -> Cost {
        const F32: usize = 4;
        let stored = |weights: usize| match Format::of(self.dtype) {
            Some((format, block)) => weights * format.bits() / 8 + weights / block * 2,
            None => weights * self.dtype.size(),
        };
        let [heads, kv_heads, dim] = qwen::HEADS;
        let pairs = |tokens: usize| tokens * (tokens + 1) / 2;
        let attention = |tokens: usize| 4 * pairs(tokens) * heads * dim;
        let per_token = 2 * (qwen::weights() - qwen::head());
        let forward = |tokens: usize| tokens * per_token + qwen::LAYERS * attention(tokens);
        let (bytes, operations, tokens) = match self.kind {
            Kind::Rows { op, shape: [rows, width], .. } => (op.tensors() * rows * width * F32, 0, 0),
            Kind::Matmul { sizes: [rows, inputs, outputs] } => {
                (stored(outputs * inputs) + rows * (inputs + outputs) * F32, 2 * rows * inputs * outputs, 0)
            }
            Kind::LoraForward { sizes: [rows, features, rank] } => {
                let weights = features * (features + 2 * rank);
                (stored(weights) + 2 * rows * features * F32, 2 * rows * weights, 0)
            }
            Kind::Attention { tokens } => (2 * tokens * (heads + kv_heads) * dim * F32, attention(tokens), 0),
            Kind::DecodeAttention { keys } => (2 * keys * kv_heads * dim * F32, 4 * keys * heads * dim, 0),
            Kind::Embedding { tokens } => (2 * tokens * qwen::HIDDEN * F32, 0, 0),
            Kind::Rope { tokens } => (2 * tokens * heads * dim * F32, 0, 0),
            Kind::Mlp { tokens } => {
                let weights = 3 * qwen::HIDDEN * qwen::INTERMEDIATE;
                (stored(weights) + 2 * tokens * qwen::HIDDEN * F32, 2 * tokens * weights, tokens)
            }
            Kind::Layer { tokens } => {
                let weights = (qwen::weights() - qwen::head()) / qwen::LAYERS;
                (stored(weights), 2 * tokens * weights + attention(tokens), tokens)
            }
            Kind::HeadLoss { tokens, .. } => (2 * stored(qwen::head()), 4 * tokens * qwen::head(), tokens),
            Kind::Prefill { tokens } => (stored(qwen::weights()), forward(tokens) + 2 * qwen::head(), tokens),
            Kind::Generate { prompt, tokens } => {
                let operations = forward(prompt) + tokens * (per_token + 2 * qwen::head());
                (tokens * stored(qwen::weights()), operations, tokens)
            }
            Kind::NextToken { after, cached: false } => (stored(qwen::weights()), forward(after + 1), 1),
            Kind::NextToken { after, cached: true } => {
                let cache = 2 * qwen::LAYERS * after * kv_heads * dim * F32;
                (stored(qwen::weights()) + cache, per_token + 2 * qwen::head(), 1)
            }
            Kind::Sampling => (qwen::VOCABULARY * F32, 0, 1),
            // Forward, and backward through activations only: frozen weights have no gradient.
            Kind::LoraStep { tokens, half, passes, .. } => {
                let counted = if half { tokens / 2 } else { tokens };
                let through = passes.rows() * forward(tokens / passes.rows());
                (2 * stored(qwen::weights()), 2 * through + 4 * counted * qwen::head(), tokens)
            }
            Kind::Embed { texts, mixed } => {
                let tokens: usize = lengths(texts, mixed).sum();
                (stored(e5::weights()), 2 * tokens * e5::weights(), tokens)
            }
        };
        Cost { bytes, operations, tokens }
    }

    /// A copy of a tensor of that size, for an op on rows.
    pub fn copy(&self) -> Option<Self> {
        match self.kind {
            Kind::Rows { op, shape, .. } if op != RowOp::Copy => {
                Some(Self { kind: Kind::Rows { op: RowOp::Copy, shape, reference: false }, dtype: self.dtype })
            }
            _ => None,
        }
    }

    /// One of the steps that a text is made of, in the middle of it.
    pub fn step(&self) -> Option<Self> {
        match self.kind {
            Kind::Generate { prompt, tokens } => {
                Some(Self { kind: Kind::NextToken { after: prompt + tokens / 2, cached: true }, dtype: self.dtype })
            }
            _ => None,
        }
    }

    /// A quarter of the work, where it can be divided.
    pub fn quarter(&self) -> Option<Self> {
        let kind = match self.kind {
            Kind::Rows { op, shape: [rows, width], reference } if rows >= 4 => {
                Kind::Rows { op, shape: [rows / 4, width], reference }
            }
            Kind::Rows { .. } | Kind::Sampling | Kind::NextToken { .. } => return None,
            Kind::Matmul { sizes: [rows, inputs, outputs] } => Kind::Matmul { sizes: [rows, inputs, outputs / 4] },
            Kind::LoraForward { sizes: [rows, features, rank] } => {
                Kind::LoraForward { sizes: [rows, features / 2, rank] }
            }
            // The work grows with the square.
            Kind::Attention { tokens } => Kind::Attention { tokens: tokens / 2 },
            Kind::DecodeAttention { keys } => Kind::DecodeAttention { keys: keys / 4 },
            Kind::Embedding { tokens } => Kind::Embedding { tokens: tokens / 4 },
            Kind::Rope { tokens } => Kind::Rope { tokens: tokens / 4 },
            Kind::Mlp { tokens } => Kind::Mlp { tokens: tokens / 4 },
            Kind::Layer { tokens } => Kind::Layer { tokens: tokens / 4 },
            Kind::HeadLoss { tokens, at_once } => Kind::HeadLoss { tokens: tokens / 4, at_once },
            Kind::Prefill { tokens } => Kind::Prefill { tokens: tokens / 4 },
            Kind::Generate { prompt, tokens } => Kind::Generate { prompt: prompt / 4, tokens: tokens / 4 },
            Kind::LoraStep { tokens, rank, half, passes } => Kind::LoraStep { tokens: tokens / 4, rank, half, passes },
            Kind::Embed { texts, mixed: false } if texts >= 8 => Kind::Embed { texts: texts / 4, mixed: false },
            Kind::Embed { .. } => return None,
        };
        Some(Self { kind, dtype: self.dtype })
    }

    /// Whether it runs a whole model, which takes seconds on a CPU and minutes on a device that imitates a GPU.
    pub fn is_model(&self) -> bool {
        use Kind::{Embed, Generate, LoraStep, NextToken, Prefill};
        matches!(self.kind, Prefill { .. } | Generate { .. } | NextToken { .. } | LoraStep { .. } | Embed { .. })
    }

    /// Whether a run without `--full` has it.
    fn is_quick(&self) -> bool {
        match self.kind {
            Kind::Rows { op, shape, reference } => {
                !reference && shape == [1024, 1024] && matches!(op, RowOp::Softmax | RowOp::LayerNorm | RowOp::RmsNorm)
            }
            Kind::LoraForward { sizes } => sizes == [64, 1024, 8],
            Kind::Prefill { .. } | Kind::Generate { .. } => self.dtype == DType::F16,
            Kind::Embed { texts, mixed } => self.dtype == DType::F32 && (texts == 10 || texts == 1 && !mixed),
            Kind::NextToken { .. } | Kind::LoraStep { .. } | Kind::HeadLoss { .. } => false,
            Kind::Matmul { sizes } => sizes == [1024; 3],
            _ => true,
        }
    }

    /// Whether it is an op by itself, which criterion's bench `kernels` times.
    pub fn is_kernel(&self) -> bool {
        !self.is_model() && !matches!(self.kind, Kind::Sampling | Kind::Mlp { .. } | Kind::Layer { .. })
    }
}

/// Every workload of the matrix, or those that take little time.
pub fn all(full: bool) -> Vec<Workload> {
    let mut all = Vec::new();
    for shape in [[64, 1024], [1024, 1024], [4096, 4096], [1, 896], [512, 896]] {
        for op in RowOp::ALL {
            all.push(of(Kind::Rows { op, shape, reference: false }));
            if op != RowOp::Copy {
                all.push(of(Kind::Rows { op, shape, reference: true }));
            }
        }
    }
    for rows in [1, 64] {
        all.extend([512, 1024, 2048].map(|features| of(Kind::LoraForward { sizes: [rows, features, 8] })));
    }
    all.extend([4, 16, 32, 64].map(|rank| of(Kind::LoraForward { sizes: [64, 1024, rank] })));
    all.push(of(Kind::Matmul { sizes: [1024; 3] }));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        all.push(Workload { kind: Kind::Matmul { sizes: [1, qwen::HIDDEN, qwen::INTERMEDIATE] }, dtype });
    }
    all.push(of(Kind::Attention { tokens: 1024 }));
    all.push(of(Kind::DecodeAttention { keys: 1024 }));
    let tokens = 512;
    all.extend([
        of(Kind::Embedding { tokens }),
        of(Kind::Rope { tokens }),
        of(Kind::Attention { tokens }),
        of(Kind::Mlp { tokens }),
        of(Kind::Layer { tokens }),
    ]);
    for dtype in [DType::F32, DType::F16, Format::Q8.dtype(BLOCK), Format::Q4.dtype(BLOCK)] {
        all.push(Workload { kind: Kind::Prefill { tokens }, dtype });
        all.push(Workload { kind: Kind::Generate { prompt: 128, tokens: 100 }, dtype });
    }
    all.extend([false, true].map(|at_once| of(Kind::HeadLoss { tokens, at_once })));
    all.extend([true, false].map(|cached| of(Kind::NextToken { after: 512, cached })));
    all.push(of(Kind::Sampling));
    let step = |half, passes| of(Kind::LoraStep { tokens, rank: 8, half, passes });
    all.extend([step(false, Passes::One), step(true, Passes::One)]);
    all.extend([Passes::ByLayer, Passes::Rows, Passes::Packed].map(|passes| step(false, passes)));
    for mixed in [false, true] {
        all.extend([1, 2, 5, 10, 20, 50, 100].map(|texts| of(Kind::Embed { texts, mixed })));
    }
    let packed = |texts| Workload { kind: Kind::Embed { texts, mixed: false }, dtype: Format::Q8.dtype(BLOCK) };
    all.extend([1, 5, 10, 20, 50, 100].map(packed));
    if !full {
        all.retain(Workload::is_quick);
    }
    all
}

/// What records say of the logits of a head whose loss is taken.
pub fn logits_of(at_once: bool) -> &'static str {
    if at_once { "of all rows" } else { "of a chunk of rows" }
}

/// How many tokens each text has.
pub fn lengths(texts: usize, mixed: bool) -> impl Iterator<Item = usize> {
    (0..texts).map(move |row| if mixed { 4 + (row * 97 + 60) % 253 } else { 32 })
}

/// `f32`, `f16`, …; packed ones by what ggml calls their blocks.
pub fn dtype_name(dtype: DType) -> String {
    match Format::of(dtype) {
        Some((format, _)) => format!("{}_0", format.name()),
        None => format!("{dtype:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests;
