//! What a run will hold at its peak, known before it starts. What is there already is measured; what comes is counted: the values that the
//! ops of a layer keep for each token ([`Footprint`]), the chunks of the head, the adapter with its moments, and
//! the longest pass that the order of the rows brings.
//!
//! The count is that of the CPU's ops, which `tests/memory_estimate.rs` holds against the measured peak. Other backends keep as much for the
//! gradients, and more besides.

use firebrick_backend::TrainBackend;
use firebrick_backend::ops::cross_entropy::rows_of_chunk;
use firebrick_backend::packed::{Format, value_dtype};
use serde::Serialize;

use super::backward::layer_of;
use super::run::{TrainConfig, Trainer};
use super::task::Task;
use crate::model::{Adapt, Footprint, Handle};
use crate::nn::{Dropout, Lora};

/// Bytes of a number in activations, adapters and moments.
const F32: u64 = 4;

/// What the threads of the CPU's kernels and the graph of a pass take besides, measured: the difference that was left between counted and
/// measured peaks of models too small for their tensors to matter.
const RUNTIME_BYTES: u64 = 1 << 20;

/// Part of the working memory that is kept between two uses, or lost between blocks in use: of the test's models between none and all,
/// where large blocks go back to the system when they are freed ([`return_freed_memory`](firebrick_backend::process::return_freed_memory)).
const KEPT_OF_WORKING: f64 = 0.2;

/// What the CPU's kernels keep besides, beyond the most that was ever in use: of 16 MB, or of half of what is in use, about half.
const SPARE_BYTES: u64 = 8 << 20;

/// Rows whose order is looked at for the longest pass. A run beyond is taken to have seen it.
const ROWS_LOOKED_AT: usize = 1 << 22;

/// Peak memory of a run in bytes, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Tokens of the longest pass.
    pub pass_tokens: usize,
    /// What the process holds besides the model: the runtime, the tokenizer, the rows.
    pub process_bytes: u64,
    /// The base's weights, in their dtype.
    pub weights_bytes: u64,
    /// The adapter's matrices, their gradients, and both moments of each.
    pub adapter_bytes: u64,
    /// What is kept of the longest pass for its way back.
    pub activations_bytes: u64,
    /// The most that the ops of a layer or of the head hold besides.
    pub working_bytes: u64,
    /// The most that validation holds, in place of the last two.
    pub validation_bytes: u64,
    /// Freed memory that is kept for later.
    pub allocator_bytes: u64,
    /// All of that at the worst moment.
    pub peak_bytes: u64,
}

/// What the layers of a model hold, in values.
struct Layers {
    width: usize,
    vocabulary: Option<usize>,
    /// Of each layer, from the first.
    footprints: Vec<Footprint>,
    /// The lowest layer with an adapter.
    first: usize,
}

/// Rows of a pass.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    tokens: usize,
    /// Those that go through the head.
    weighted: usize,
}

impl<B: TrainBackend, T: Task<B>> Trainer<B, T> {
    /// Peak memory of a run on these rows with `config` in place of the trainer's own. `resident_bytes` is what the process holds now, model
    /// and rows included, where the weights are in its memory.
    pub fn estimate(
        &self,
        config: &TrainConfig,
        train: &[T::Example],
        valid: Option<&[T::Example]>,
        resident_bytes: Option<u64>,
    ) -> Estimate {
        let (layers, weights_bytes) = self.layers();
        let longest = longest_pass::<B, T>(config, train);
        let (kept, working) =
            if config.gradient_checkpointing { layers.by_layer(longest) } else { layers.whole(longest) };
        let validation = valid.map_or(0, |valid| layers.validation(evaluated::<B, T>(config, valid)));
        let parameters = self.adapter().parameters() as u64 * F32;
        let (adapter_bytes, activations_bytes) = (4 * parameters, kept as u64 * F32);
        let (working_bytes, validation_bytes) = (working as u64 * F32, validation as u64 * F32);
        let held = resident_bytes.unwrap_or(0).max(weights_bytes + parameters);
        let process_bytes = held - weights_bytes - parameters + RUNTIME_BYTES;
        // Before the first step there are no moments, but between two steps there are.
        let passes = (activations_bytes + working_bytes).max(validation_bytes);
        let of_working = (KEPT_OF_WORKING * working_bytes.max(validation_bytes) as f64) as u64;
        let allocator_bytes = of_working + SPARE_BYTES.min(passes / 4);
        let peak_bytes = process_bytes + weights_bytes + adapter_bytes + passes + allocator_bytes;
        let pass_tokens = longest.tokens;
        Estimate {
            pass_tokens,
            process_bytes,
            weights_bytes,
            adapter_bytes,
            activations_bytes,
            working_bytes,
            validation_bytes,
            allocator_bytes,
            peak_bytes,
        }
    }

    /// What the layers hold with the adapter attached as training does, and the bytes of all weights.
    fn layers(&self) -> (Layers, u64) {
        let mut model = self.base().handle();
        let (adapter, mut weights) = (self.adapter(), 0);
        let dropout = (adapter.dropout() > 0.0).then_some(Dropout { probability: adapter.dropout() as f32, key: 0 });
        model.each_linear(&mut |path, linear| {
            weights += bytes_of(linear.shape(), linear.weight.dtype());
            linear.lora = adapter.modules().get(path).map(|module| {
                let (a, b) = (module.a.clone(), module.b.clone());
                Lora { a, b, scale: module.scale, dropout }
            });
        });
        weights += model.tables().iter().map(|table| bytes_of(table.dims(), table.dtype())).sum::<u64>();
        let first = adapter.modules().keys().map(|path| layer_of(path).unwrap_or(0)).min().unwrap_or(0);
        let footprints = (0..model.layers()).map(|index| model.layer_footprint(index)).collect();
        (Layers { width: model.width(), vocabulary: model.vocabulary(), footprints, first }, weights)
    }
}

impl Layers {
    /// Values kept, and held besides, of a pass whose activations are all kept.
    fn whole(&self, rows: Rows) -> (usize, usize) {
        let tracked = &self.footprints[self.first..];
        let kept: usize = tracked.iter().map(|layer| layer.kept).sum();
        let working = tracked.iter().map(|layer| layer.forward.max(layer.backward)).max().unwrap_or(0);
        (kept * rows.tokens, (working * rows.tokens).max(self.head(rows, true)))
    }

    /// The same of one that goes layer by layer: the inputs are kept, and besides there is one layer.
    fn by_layer(&self, rows: Rows) -> (usize, usize) {
        let tracked = &self.footprints[self.first..];
        let kept = (tracked.len() + 1) * self.width;
        // The layer's output, its product with the gradient above, and the gradient of that.
        let around = 3 * self.width;
        let of_layer = |layer: &Footprint| layer.inference.max(layer.kept + layer.forward.max(layer.backward) + around);
        let working = self.footprints.iter().map(of_layer).max().unwrap_or(0);
        (kept * rows.tokens, (working * rows.tokens).max(self.head(rows, true)))
    }

    /// Values that a pass holds of which nothing goes back.
    fn validation(&self, rows: Rows) -> usize {
        let layer = self.footprints.iter().map(|layer| layer.inference).max().unwrap_or(0);
        (layer * rows.tokens).max(self.head(rows, false))
    }

    /// Values that the final norm and the loss hold.
    fn head(&self, rows: Rows, gradient: bool) -> usize {
        let (all, weighted) = (rows.tokens * self.width, rows.weighted * self.width);
        // The sum that is normed, and hidden states of the rows that count.
        let Some(vocabulary) = self.vocabulary else { return 4 * all };
        let chunk = rows_of_chunk(vocabulary).min(rows.weighted);
        let forward = all + weighted.max(all.min(2 * weighted)) + chunk * (vocabulary + self.width);
        if !gradient {
            return forward;
        }
        // The gradient comes chunk by chunk and is put together; then it is scaled, spread over all rows, and goes through the norm.
        (forward + weighted).max(all + 3 * weighted).max(3 * all + 2 * weighted)
    }
}

/// The longest pass of the run.
fn longest_pass<B: TrainBackend, T: Task<B>>(config: &TrainConfig, examples: &[T::Example]) -> Rows {
    let mut order = config.order(examples.iter().map(T::tokens).collect(), 0);
    let bins_per_step = config.bins_per_step();
    let steps = config.total_steps(&order).min(ROWS_LOOKED_AT.div_ceil(bins_per_step));
    let mut longest = Rows::default();
    for _ in 0..steps {
        let chosen = order.take(bins_per_step);
        let lengths = chosen.iter().map(|&index| T::tokens(&examples[index]));
        for pass in config.passes(lengths, T::LEAST) {
            let rows = chosen[pass].iter().map(|&index| &examples[index]);
            let (tokens, weighted) = rows.fold((0, 0), |(tokens, weighted), example| {
                (tokens + T::tokens(example), weighted + T::weighted(example))
            });
            longest = Rows { tokens: longest.tokens.max(tokens), weighted: longest.weighted.max(weighted) };
        }
    }
    longest
}

/// The most that goes through the model at a time when it is evaluated: whole rows up to a number of tokens, or a longer row; and of those
/// the rows that go through the head, one example after the other.
fn evaluated<B: TrainBackend, T: Task<B>>(config: &TrainConfig, examples: &[T::Example]) -> Rows {
    let (mut all, mut longest, mut weighted) = (0, 0, 0);
    for example in examples {
        all += T::tokens(example);
        longest = longest.max(T::tokens(example));
        weighted = weighted.max(T::weighted(example));
    }
    let batch = if T::PACKS { 0 } else { longest * config.batch_size };
    Rows { tokens: all.min(T::EVALUATED_TOKENS.max(longest).max(batch)), weighted }
}

/// Bytes of a matrix in the dtype it is stored in.
fn bytes_of([rows, columns]: [usize; 2], dtype: burn::tensor::DType) -> u64 {
    let count = rows * columns;
    let bytes = match Format::of(dtype) {
        // A scale of two bytes for each block.
        Some((format, block)) => count * format.bits() / 8 + count / block * 2,
        None => count * value_dtype(dtype).size(),
    };
    bytes as u64
}
