//! The training loop: batches in, an adapter out. It calls back at each step, never prints, and ends when the callback says so. What of it
//! outlives the process is in `checkpoint.rs`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::Tensor;
use firebrick_backend::packed::dtype_name;
use firebrick_backend::{KernelBackend, TrainBackend};
use sha2::{Digest, Sha256};

use super::adamw::AdamW;
pub use super::backward::Gradients;
use super::backward::Pass;
use super::checkpoint::{Checkpoints, Cursor, Saved, State, optimizer};
pub use super::config::{Duration, TrainConfig};
use super::contrastive::Contrastive;
use super::data::Dataset;
pub use super::event::{Event, Step};
use super::task::{NextToken, Task};
use crate::checkpoint::hexadecimal;
use crate::error::{Error, Result};
use crate::lora::{Adapter, linear_dtype};
use crate::model::{CausalLm, Encoder, Handle};

/// Trains an adapter on a frozen base: a decoder's to predict tokens, or an encoder's to find passages.
pub struct Trainer<B: TrainBackend, T: Task<B> = NextToken> {
    task: T,
    model: Box<T::Model>,
    valid_model: Box<T::Valid>,
    adapter: Adapter<B::InnerBackend>,
    optimizer: AdamW<B::InnerBackend>,
    config: TrainConfig,
    cursor: Cursor,
    /// The validation loss of the adapter as it stands, once measured.
    valid_loss: Option<f64>,
    checkpoints: Option<Checkpoints>,
    /// What decides every step, as the checkpoints tell it.
    settings: BTreeMap<String, String>,
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
        config.adamw.validate()?;
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
        check_can_learn(&adapter)?;
        let optimizer = AdamW::new(config.adamw);
        Ok(Self {
            task,
            model,
            valid_model,
            adapter,
            optimizer,
            config,
            cursor: Cursor::default(),
            valid_loss: None,
            checkpoints: None,
            settings: BTreeMap::new(),
        })
    }

    /// Keeps the run's state in these checkpoints, and continues from one of them if it is given: bit for bit as the run would have gone on, on
    /// a device that computes the same twice. Validation, and how long the run is, may be other than they were.
    ///
    /// # Errors
    /// If the checkpoint cannot be read or does not fit the model, or the run has other settings or other data than it was saved with.
    pub fn keep(
        &mut self,
        mut checkpoints: Checkpoints,
        from: Option<&Saved>,
        train: &Dataset<T::Example>,
    ) -> Result<()> {
        let settings = self.settings(train);
        if let Some(saved) = from {
            let device = self.valid_model.place();
            saved.state().check(saved.folder(), &settings)?;
            let adapter = Adapter::load(saved.folder(), &device)?;
            adapter.attach(&*self.valid_model)?;
            self.optimizer = optimizer(saved, self.config.adamw, &adapter, &device)?;
            self.adapter = adapter;
            self.cursor = saved.state().cursor;
            self.valid_loss = saved.state().valid_loss;
        }
        checkpoints.begin(from)?;
        self.checkpoints = Some(checkpoints);
        self.settings = settings;
        Ok(())
    }

    /// What decides every step, setting by setting.
    fn settings(&self, train: &Dataset<T::Example>) -> BTreeMap<String, String> {
        let mut data = Sha256::new();
        for example in train.examples() {
            T::identify(example, &mut data);
        }
        let lora = ["r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"].map(|key| {
            (key.to_owned(), self.adapter.config().get(key).map_or("(absent)".to_owned(), ToString::to_string))
        });
        let mut settings = self.config.settings();
        settings.extend([
            ("task", format!("{:?}", self.task.settings())),
            ("base", self.adapter.base().unwrap_or("(unknown)").to_owned()),
            // What is learnt on packed weights is not what is learnt on others.
            ("weights", linear_dtype(&*self.valid_model).map_or("(none)", dtype_name).to_owned()),
            ("data", hexadecimal(&data.finalize()[..8])),
        ]);
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(lora).collect()
    }

    /// How far the run has come.
    pub fn cursor(&self) -> Cursor {
        self.cursor
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
        self.config.total_steps(&self.config.order(examples.iter().map(T::tokens).collect(), 0))
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
        [Some(train), valid].into_iter().flatten().try_for_each(|data| self.check_ids(data))?;
        let examples = train.examples();
        if examples.len() < self.config.batch_size && self.config.pack.is_none() {
            let problem = format!("{} rows are fewer than a batch of {}", examples.len(), self.config.batch_size);
            return Err(Error::Data { path: train.path().into(), problem });
        }
        let mut order = self.config.order(examples.iter().map(T::tokens).collect(), self.cursor.taken);
        let total = self.config.total_steps(&order);
        let ending = match self.config.duration {
            Duration::Steps(_) => usize::MAX,
            Duration::Epochs(epochs) => order.bins(epochs),
        };
        let mut flow = ControlFlow::Continue(());
        loop {
            let step = self.cursor.step;
            let due = step == 0
                || step == total
                || self.config.eval_every.is_some_and(|every| step.is_multiple_of(every.max(1)));
            // A step that was told to be the last is validated too, where that is due and nobody gives it up.
            if let Some(valid) = valid.filter(|_| due && self.valid_loss.is_none())
                && self.evaluate(valid, report)?.is_break()
            {
                flow = ControlFlow::Break(());
            }
            let saving = flow.is_break() || step == total || self.checkpoints.as_ref().is_some_and(|c| c.is_due(step));
            if saving && step > 0 {
                self.save(total, report)?;
            }
            if flow.is_break() || step >= total {
                return Ok(());
            }
            let left = ending.saturating_sub(self.cursor.taken);
            let bins = self.config.bins_per_step().min(left).max(T::LEAST);
            let chosen = order.take(bins);
            let batch: Vec<&T::Example> = chosen.iter().map(|&index| &examples[index]).collect();
            flow = match self.attempt(&batch, self.config.learning_rate.at(step, total), report) {
                Ok(None) => ControlFlow::Break(()),
                Ok(Some(taken)) => {
                    self.cursor.taken += bins;
                    self.cursor.skipped_in_row = 0;
                    report(Event::Step(taken))
                }
                Err(problem @ Error::NotFinite { .. }) => {
                    let problem = self.blame(problem, &batch, train);
                    if self.cursor.skipped_in_row >= self.config.max_skipped_steps {
                        return Err(problem);
                    }
                    self.cursor.step += 1;
                    self.cursor.taken += bins;
                    self.cursor.skipped_in_row += 1;
                    self.valid_loss = None;
                    let tokens = batch.iter().map(|example| T::tokens(example)).sum();
                    report(Event::Skipped { step: step + 1, problem: problem.to_string(), tokens })
                }
                Err(problem) => return Err(problem),
            };
        }
    }

    /// Refuses rows with a token that the model's table has no row for: a tokenizer may know more tokens than the model it comes with.
    fn check_ids(&self, data: &Dataset<T::Example>) -> Result<()> {
        // Positions may have a table as well, behind the one of tokens.
        let Some(rows) = self.valid_model.tables().first().map(|table| table.dims()[0]) else { return Ok(()) };
        let unknown = data.examples().iter().find(|example| T::largest_id(example) as usize >= rows);
        unknown.map_or(Ok(()), |example| {
            let (line, id) = (T::line(example), T::largest_id(example));
            let problem = format!("line {line} has the token id {id}, and the model knows {rows} tokens");
            Err(Error::Data { path: data.path().into(), problem })
        })
    }

    /// Writes the checkpoint of the last whole step, if there is somewhere to and it is not there yet.
    fn save(&mut self, total: usize, report: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<()> {
        let step = self.cursor.step;
        let Some(checkpoints) = self.checkpoints.as_mut().filter(|checkpoints| step > 0 && !checkpoints.has(step))
        else {
            return Ok(());
        };
        // Nobody can keep a state from being saved by breaking here.
        let _ = report(Event::Saving { step });
        let state = State {
            cursor: self.cursor,
            updates: self.optimizer.steps(),
            total,
            valid_loss: self.valid_loss,
            settings: self.settings.clone(),
        };
        checkpoints.save(&state, &self.adapter, &self.optimizer)
    }

    fn evaluate(
        &mut self,
        valid: &Dataset<T::Example>,
        report: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let model = self.adapter.attach(&*self.valid_model)?;
        let begun = Instant::now();
        let mut go_on = |done: usize, of: usize| {
            let seconds_left = begun.elapsed().as_secs_f64() / done.max(1) as f64 * of.saturating_sub(done) as f64;
            report(Event::Unfinished { seconds_left })
        };
        let Some(found) = self.task.evaluate(&*model, valid, self.config.batch_size, &mut go_on)? else {
            return Ok(ControlFlow::Break(()));
        };
        self.valid_loss = Some(found.loss);
        let step = self.cursor.step;
        Ok(report(Event::Evaluated { step, valid_loss: found.loss, retrieval: found.retrieval }))
    }

    /// The error of a step whose loss or gradient is not finite, with the place where that began and the rows it was taken on.
    fn blame(&self, problem: Error, examples: &[&T::Example], train: &Dataset<T::Example>) -> Error {
        let Error::NotFinite { what, place } = problem else { return problem };
        let device = self.model.place();
        let passes = self.config.passes(examples.iter().map(|example| T::tokens(example)), T::LEAST);
        let layer = passes.into_iter().enumerate().find_map(|(number, rows)| {
            self.pass(number, 1.0).first_not_finite(&self.task.batch(&examples[rows], &device))
        });
        let lines: Vec<String> = examples.iter().map(|example| T::line(example).to_string()).collect();
        let rows = format!(
            "line{} {} of {}",
            if lines.len() == 1 { "" } else { "s" },
            lines.join(", "),
            train.path().display()
        );
        let begun = layer.map_or(String::new(), |layer| format!(", first in {layer}"));
        let place = place.map_or(String::new(), |place| format!("{place}, "));
        Error::NotFinite { what, place: Some(format!("{place}step {}{begun}, {rows}", self.cursor.step + 1)) }
    }

    /// One optimizer step on these examples, in passes of the configured batch size.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite, or a module receives none; the adapter and the optimizer are then as before.
    pub fn step(&mut self, examples: &[&T::Example], rate: f64) -> Result<Step> {
        let taken = self.attempt(examples, rate, &mut |_| ControlFlow::Continue(()))?;
        Ok(taken.unwrap_or_else(|| unreachable!("nobody breaks")))
    }

    /// [`step`](Self::step), or nothing if `report` breaks before its last pass.
    fn attempt(
        &mut self,
        examples: &[&T::Example],
        rate: f64,
        report: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Option<Step>> {
        let begun = Instant::now();
        let step = self.cursor.step + 1;
        let mut go_on = |pass: usize, of: usize| {
            let seconds_left = begun.elapsed().as_secs_f64() / pass as f64 * (of - pass) as f64;
            report(Event::Unfinished { seconds_left })
        };
        let Some((loss, gradients)) = self.passes(examples, &mut go_on)? else { return Ok(None) };
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: "the loss", place: None });
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
        self.cursor.step = step;
        self.valid_loss = None;
        // The clock stops when the device has: what was read above was the gradient, not yet the update.
        if let Err(problem) = B::sync(&self.model.place()) {
            return Err(Error::Device(problem.to_string()));
        }
        let tokens = examples.iter().map(|example| T::tokens(example)).sum();
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Some(Step { step, loss, learning_rate: rate, grad_norm, tokens, seconds }))
    }

    /// The loss of these examples and its gradients, as [`step`](Self::step) takes them: by module, of `A` and of `B`. Whether they are
    /// finite is for the caller to see.
    ///
    /// # Errors
    /// If a module receives none.
    pub fn gradients(&self, examples: &[&T::Example]) -> Result<(f64, Gradients<B>)> {
        let taken = self.passes(examples, &mut |_, _| ControlFlow::Continue(()))?;
        Ok(taken.unwrap_or_else(|| unreachable!("nobody breaks")))
    }

    /// The way through the model and back of one of the passes of the step that comes next.
    fn pass(&self, number: usize, weight: f64) -> Pass<'_, B, T> {
        Pass {
            task: &self.task,
            model: &*self.model,
            inner: &*self.valid_model,
            adapter: &self.adapter,
            numbers: [self.config.seed, self.cursor.step as u64 + 1, number as u64],
            weight,
        }
    }

    /// [`gradients`](Self::gradients), or nothing if `go_on` breaks between two passes; it is told how many are done, and of how many.
    fn passes(
        &self,
        examples: &[&T::Example],
        go_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<(f64, Gradients<B>)>> {
        let device = self.model.place();
        let passes = self.config.passes(examples.iter().map(|example| T::tokens(example)), T::LEAST);
        let weight = T::weight(examples);
        let (mut loss, mut gradients) = (0.0, Gradients::<B>::new());
        for (number, rows) in passes.iter().enumerate() {
            if number > 0 && go_on(number, passes.len()).is_break() {
                return Ok(None);
            }
            let batch = self.task.batch(&examples[rows.clone()], &device);
            let pass = self.pass(number, weight);
            loss += match self.config.gradient_checkpointing {
                true => pass.by_layer(&batch, &mut gradients)?,
                false => pass.whole(&batch, &mut gradients)?,
            };
        }
        Ok(Some((loss, gradients)))
    }
}

/// Refuses a module of which both matrices are zero: the gradient of each is a product with the other.
fn check_can_learn<B: KernelBackend>(adapter: &Adapter<B>) -> Result<()> {
    let matrices = adapter.modules().values().flat_map(|module| [&module.a, &module.b]);
    let sums: Vec<Tensor<B, 1>> = matrices.map(|matrix| matrix.clone().abs().sum()).collect();
    if sums.is_empty() {
        return Ok(());
    }
    // One read for all.
    let sums: Vec<f64> = Tensor::cat(sums, 0).into_data().iter::<f64>().collect();
    let stuck = adapter.modules().keys().zip(sums.chunks(2)).find(|(_, sums)| sums.iter().all(|sum| *sum == 0.0));
    stuck.map_or(Ok(()), |(module, _)| {
        Err(Error::NoGradient { module: module.clone(), reason: "its A and B are both zero, and would stay so".into() })
    })
}

/// Norm of all gradients together; an error names the module whose gradient is not finite. One that is zero is as good as any: a row of two tokens
/// has nothing for its queries to learn. That every module is reached is seen where gradients are collected.
fn norm<B: TrainBackend>(gradients: &Gradients<B>) -> Result<f64> {
    // One read for all: on a GPU each costs a round trip.
    let squares = gradients.values().flatten().map(|gradient| (gradient.clone() * gradient.clone()).sum());
    let squares: Vec<f64> = Tensor::cat(squares.collect(), 0).into_data().iter::<f64>().collect();
    for (path, squares) in gradients.keys().zip(squares.chunks(2)) {
        if !squares.iter().all(|square| square.is_finite()) {
            return Err(Error::NotFinite { what: "the gradient", place: Some(path.clone()) });
        }
    }
    Ok(squares.iter().sum::<f64>().sqrt())
}
