//! The training loop: batches in, an adapter out. It calls back at each step, never prints, and ends when the callback says so.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use burn::tensor::Tensor;
use firebrick_backend::{KernelBackend, TrainBackend};

use super::adamw::{AdamW, AdamWConfig};
pub use super::backward::Gradients;
use super::backward::Pass;
use super::batch::{Order, bin_ends};
use super::contrastive::Contrastive;
use super::data::Dataset;
use super::schedule::{LearningRate, Schedule};
use super::task::{NextToken, Retrieval, Task};
use crate::error::{Error, Result};
use crate::lora::Adapter;
use crate::model::{CausalLm, Encoder, Handle};

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Duration {
    /// This many optimizer steps.
    Steps(usize),
    /// This many times through the data.
    Epochs(usize),
}

/// How to train an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Learning rate over the steps.
    pub learning_rate: LearningRate,
    /// The optimizer's constants.
    pub adamw: AdamWConfig,
    /// Examples in a forward pass, or bins of them.
    pub batch_size: usize,
    /// Forward passes for each step; their loss is normalised by all their weighted tokens together.
    pub gradient_accumulation: usize,
    /// Fill each place of a batch with whole examples up to this many tokens, instead of with one. Decoders only.
    pub pack: Option<usize>,
    /// Keep each layer's input alone, and compute the layer again on the way back.
    pub gradient_checkpointing: bool,
    /// When to stop.
    pub duration: Duration,
    /// The gradient of all matrices together is scaled down to this norm.
    pub max_grad_norm: Option<f64>,
    /// Validate each so many steps, and before the first and after the last.
    pub eval_every: Option<usize>,
    /// Decides order and dropout.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: LearningRate {
                peak: 2e-4,
                schedule: Schedule::Cosine,
                warmup_steps: 0,
                final_fraction: None,
            },
            adamw: AdamWConfig::default(),
            batch_size: 4,
            gradient_accumulation: 1,
            pack: None,
            gradient_checkpointing: false,
            duration: Duration::Epochs(1),
            max_grad_norm: Some(1.0),
            eval_every: None,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// With this peak learning rate.
    pub fn learning_rate(mut self, peak: f64) -> Self {
        self.learning_rate.peak = peak;
        self
    }

    /// Bins that a step takes: one example each, unless they are packed.
    pub(super) fn bins_per_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation
    }

    /// The order of examples with so many tokens each.
    pub(super) fn order(&self, lengths: Vec<usize>) -> Order {
        Order::new(lengths, self.pack, self.seed)
    }

    /// Steps of a run in this order.
    pub(super) fn total_steps(&self, order: &Order) -> usize {
        match self.duration {
            Duration::Steps(steps) => steps,
            Duration::Epochs(epochs) => order.bins(epochs).div_ceil(self.bins_per_step()),
        }
    }

    /// The passes of a step over examples with so many tokens each, of `least` examples or more.
    pub(super) fn passes(&self, lengths: impl ExactSizeIterator<Item = usize>, least: usize) -> Vec<Range<usize>> {
        let count = lengths.len();
        let ends = bin_ends(lengths, self.pack);
        let mut start = 0;
        let ends = ends.chunks(self.batch_size).filter_map(|bins| bins.last());
        let mut passes: Vec<Range<usize>> = ends.map(|&end| std::mem::replace(&mut start, end)..end).collect();
        // Too few to learn from among themselves: they join those before them.
        if let [.., before, last] = &mut passes[..]
            && last.len() < least
        {
            before.end = count;
            passes.pop();
        }
        passes
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub step: usize,
    /// Mean loss of its weighted tokens, or of its pairs, before the update, in nats.
    pub loss: f64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Norm of its whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that passed through the model in it.
    pub tokens: usize,
    /// Its length in seconds, the device's work included.
    pub seconds: f64,
}

/// What the trainer reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A step was taken.
    Step(Step),
    /// The validation set was evaluated after this many steps.
    Evaluated {
        /// Steps taken so far.
        step: usize,
        /// Mean loss of its weighted tokens, or of its pairs, in nats.
        valid_loss: f64,
        /// How well passages were found, of a model that learns to.
        retrieval: Option<Retrieval>,
    },
}

/// Trains an adapter on a frozen base: a decoder's to predict tokens, or an encoder's to find passages.
pub struct Trainer<B: TrainBackend, T: Task<B> = NextToken> {
    task: T,
    model: Box<T::Model>,
    valid_model: Box<T::Valid>,
    adapter: Adapter<B::InnerBackend>,
    optimizer: AdamW<B::InnerBackend>,
    config: TrainConfig,
    step: usize,
}

impl<B: TrainBackend> Trainer<B> {
    /// A trainer of a decoder that continues from `adapter`, new or loaded.
    ///
    /// # Errors
    /// If the adapter does not fit the model or a value is out of bounds.
    pub fn new(model: &dyn CausalLm<B>, adapter: Adapter<B::InnerBackend>, config: TrainConfig) -> Result<Self> {
        Self::of(NextToken, model.boxed(), adapter, config)
    }
}

impl<B: TrainBackend> Trainer<B, Contrastive> {
    /// A trainer of an encoder that continues from `adapter`, new or loaded.
    ///
    /// # Errors
    /// If the adapter does not fit the model or a value is out of bounds.
    pub fn contrastive(
        model: &dyn Encoder<B>,
        task: Contrastive,
        adapter: Adapter<B::InnerBackend>,
        config: TrainConfig,
    ) -> Result<Self> {
        task.validate()?;
        Self::of(task, model.boxed(), adapter, config)
    }
}

impl<B: TrainBackend, T: Task<B>> Trainer<B, T> {
    fn of(task: T, model: Box<T::Model>, adapter: Adapter<B::InnerBackend>, config: TrainConfig) -> Result<Self> {
        config.learning_rate.validate()?;
        let counts =
            [("batch_size", config.batch_size, T::LEAST), ("gradient_accumulation", config.gradient_accumulation, 1)];
        if let Some((name, value, least)) = counts.into_iter().find(|(_, value, least)| value < least) {
            return Err(Error::OutOfBounds { name, value: value.to_string(), bounds: format!("at least {least}") });
        }
        if let Some(norm) = config.max_grad_norm.filter(|norm| norm.is_nan() || *norm <= 0.0) {
            let bounds = "above 0".into();
            return Err(Error::OutOfBounds { name: "max_grad_norm", value: norm.to_string(), bounds });
        }
        if let Some(tokens) = config.pack.filter(|tokens| !T::PACKS || *tokens == 0) {
            let bounds =
                if T::PACKS { "at least 1" } else { "off: rows of this task learn from the others of their batch" };
            return Err(Error::OutOfBounds { name: "pack", value: tokens.to_string(), bounds: bounds.into() });
        }
        let valid_model = T::valid(&*model);
        adapter.attach(&*valid_model)?;
        let optimizer = AdamW::new(config.adamw);
        Ok(Self { task, model, valid_model, adapter, optimizer, config, step: 0 })
    }

    /// The adapter as it stands.
    pub fn adapter(&self) -> &Adapter<B::InnerBackend> {
        &self.adapter
    }

    /// The base, without an adapter.
    pub(super) fn base(&self) -> &T::Valid {
        &self.valid_model
    }

    /// The same trainer with another number of examples in a pass, and of passes in a step.
    ///
    /// # Panics
    /// If there are none, or too few to learn from.
    pub fn with_batches(mut self, batch_size: usize, gradient_accumulation: usize) -> Self {
        assert!(batch_size >= T::LEAST && gradient_accumulation > 0, "{gradient_accumulation} passes of {batch_size}");
        (self.config.batch_size, self.config.gradient_accumulation) = (batch_size, gradient_accumulation);
        self
    }

    /// How it trains.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps that a run on these examples takes.
    pub fn total_steps(&self, examples: &[T::Example]) -> usize {
        self.config.total_steps(&self.order(examples))
    }

    fn order(&self, examples: &[T::Example]) -> Order {
        self.config.order(examples.iter().map(T::tokens).collect())
    }

    /// Trains to the end of the duration, or until `report` breaks. Either way the adapter stands as after the last whole step.
    ///
    /// # Errors
    /// If there are fewer examples than a batch, or a loss or a gradient is missing or not finite.
    pub fn run(
        &mut self,
        train: &Dataset<T::Example>,
        valid: Option<&Dataset<T::Example>>,
        report: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let done = self.steps(train, valid, report);
        B::InnerBackend::release_memory(&self.model.place());
        done
    }

    fn steps(
        &mut self,
        train: &Dataset<T::Example>,
        valid: Option<&Dataset<T::Example>>,
        report: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let examples = train.examples();
        if examples.len() < self.config.batch_size && self.config.pack.is_none() {
            let problem = format!("{} rows are fewer than a batch of {}", examples.len(), self.config.batch_size);
            return Err(Error::Data { path: train.path().into(), problem });
        }
        let mut order = self.order(examples);
        let total = self.config.total_steps(&order);
        let mut left = match self.config.duration {
            Duration::Steps(_) => usize::MAX,
            Duration::Epochs(epochs) => order.bins(epochs),
        };
        if let Some(valid) = valid
            && self.evaluate(valid, report)?.is_break()
        {
            return Ok(());
        }
        for step in 1..=total {
            let bins = self.config.bins_per_step().min(left).max(T::LEAST);
            let chosen = order.take(bins);
            left = left.saturating_sub(bins);
            let batch: Vec<&T::Example> = chosen.iter().map(|&index| &examples[index]).collect();
            let taken = self.step(&batch, self.config.learning_rate.at(step - 1, total))?;
            let mut flow = report(Event::Step(taken));
            let due = self.config.eval_every.is_some_and(|every| step % every.max(1) == 0);
            if let Some(valid) = valid
                && (due || step == total || flow.is_break())
            {
                flow = match self.evaluate(valid, report)? {
                    ControlFlow::Break(()) => ControlFlow::Break(()),
                    ControlFlow::Continue(()) => flow,
                };
            }
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn evaluate(
        &self,
        valid: &Dataset<T::Example>,
        report: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let model = self.adapter.attach(&*self.valid_model)?;
        let found = self.task.evaluate(&*model, valid, self.config.batch_size)?;
        Ok(report(Event::Evaluated { step: self.step, valid_loss: found.loss, retrieval: found.retrieval }))
    }

    /// One optimizer step on these examples, in passes of the configured batch size.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite, or a module receives none; the adapter and the optimizer are then as before.
    pub fn step(&mut self, examples: &[&T::Example], rate: f64) -> Result<Step> {
        let begun = Instant::now();
        let step = self.step + 1;
        let (loss, gradients) = self.gradients(examples)?;
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: "the loss", place: Some(format!("step {step}")) });
        }
        let grad_norm = norm::<B>(&gradients)?;
        let clip = self.config.max_grad_norm.map_or(1.0, |max| (max / (grad_norm + 1e-6)).min(1.0));
        self.optimizer.begin_step();
        let updated = gradients.into_iter().map(|(path, [d_a, d_b])| {
            let module = &self.adapter.modules()[&path];
            let scaled = |gradient: Tensor<B::InnerBackend, 2>| if clip < 1.0 { gradient * clip } else { gradient };
            let a = self.optimizer.update(&format!("{path}.lora_A"), module.a.clone(), scaled(d_a), rate);
            let b = self.optimizer.update(&format!("{path}.lora_B"), module.b.clone(), scaled(d_b), rate);
            (path, a, b)
        });
        let updated: Vec<_> = updated.collect();
        self.adapter = self.adapter.with_matrices(updated);
        self.step = step;
        // The clock stops when the device has: what was read above was the gradient, not yet the update.
        if let Err(problem) = B::sync(&self.model.place()) {
            return Err(Error::Device(problem.to_string()));
        }
        let tokens = examples.iter().map(|example| T::tokens(example)).sum();
        Ok(Step { step, loss, learning_rate: rate, grad_norm, tokens, seconds: begun.elapsed().as_secs_f64() })
    }

    /// The loss of these examples and its gradients, as [`step`](Self::step) takes them: by module, of `A` and of `B`. Whether they are
    /// finite is for the caller to see.
    ///
    /// # Errors
    /// If a module receives none.
    pub fn gradients(&self, examples: &[&T::Example]) -> Result<(f64, Gradients<B>)> {
        let device = self.model.place();
        let passes = self.config.passes(examples.iter().map(|example| T::tokens(example)), T::LEAST);
        let batches: Vec<T::Batch> = passes.into_iter().map(|pass| self.task.batch(&examples[pass], &device)).collect();
        let weight: f64 = batches.iter().map(T::weight).sum();
        let (mut loss, mut gradients) = (0.0, Gradients::<B>::new());
        for (number, batch) in batches.iter().enumerate() {
            let pass = Pass {
                task: &self.task,
                model: &*self.model,
                inner: &*self.valid_model,
                adapter: &self.adapter,
                numbers: [self.config.seed, self.step as u64 + 1, number as u64],
                weight,
            };
            loss += match self.config.gradient_checkpointing {
                true => pass.by_layer(batch, &mut gradients)?,
                false => pass.whole(batch, &mut gradients)?,
            };
        }
        Ok((loss, gradients))
    }
}

/// Norm of all gradients together; an error names the module whose gradient is not finite or zero.
fn norm<B: TrainBackend>(gradients: &Gradients<B>) -> Result<f64> {
    // One read for all: on a GPU each costs a round trip.
    let squares = gradients.values().flatten().map(|gradient| (gradient.clone() * gradient.clone()).sum());
    let squares: Vec<f64> = Tensor::cat(squares.collect(), 0).into_data().iter::<f64>().collect();
    for (path, squares) in gradients.keys().zip(squares.chunks(2)) {
        if !squares.iter().all(|square| square.is_finite()) {
            return Err(Error::NotFinite { what: "the gradient", place: Some(path.clone()) });
        }
        if squares.iter().all(|square| *square == 0.0) {
            return Err(Error::NoGradient { module: path.clone(), reason: "those of A and B are both zero".into() });
        }
    }
    Ok(squares.iter().sum::<f64>().sqrt())
}
