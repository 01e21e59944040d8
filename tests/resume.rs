//! Training survives: a run that is stopped, killed or whose disk fails continues to the same end, bit for bit; and numbers that are not
//! finite do not reach the adapter.

mod support;

#[path = "resume/continuing.rs"]
mod continuing;
#[path = "resume/damage.rs"]
mod damage;
#[path = "resume/disks.rs"]
mod disks;
#[path = "resume/faults.rs"]
mod faults;
#[path = "resume/not_finite.rs"]
mod not_finite;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use firebrick::TrainBackend;
use firebrick::backends::{Autodiff, Flex};
use firebrick::core::lora::{Adapter, LoraConfig};
use firebrick::core::model::CausalLm;
use firebrick::core::train::checkpoint::{Checkpoints, Newest};
use firebrick::core::train::data::{Dataset, Example};
use firebrick::core::train::run::{Duration, Event, TrainConfig, Trainer};
use firebrick::core::train::schedule::{LearningRate, Schedule};

/// The CPU, for what does not depend on the backend.
pub type Cpu = Autodiff<Flex>;

/// Seven rows of different lengths: with two passes of two rows a step ends in the middle of an epoch, most of the time.
pub fn rows() -> Dataset {
    let example = |row: u32| {
        let length = 5 + row as usize % 4;
        let tokens: Vec<u32> = (0..length as u32).map(|at| (row * 37 + at * 11) % 512).collect();
        let weights = (0..length).map(|at| f32::from(u8::from(at > 0))).collect();
        Example { weights, tokens, line: row as usize + 1 }
    };
    Dataset::from_examples((0..7).map(example).collect())
}

/// Accumulation, dropout, warmup and a falling rate: all of it depends on where the run stands.
pub fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        learning_rate: LearningRate { peak: 1e-2, schedule: Schedule::Cosine, warmup_steps: 3, final_fraction: None },
        batch_size: 2,
        gradient_accumulation: 2,
        duration: Duration::Steps(steps),
        eval_every: Some(5),
        ..TrainConfig::default()
    }
}

pub fn model<B: TrainBackend>(device: &B::Device) -> Box<dyn CausalLm<B>> {
    support::load::<B>(&support::repository("tests/goldens/qwen2-tiny"), device)
}

pub fn trainer<B: TrainBackend>(model: &dyn CausalLm<B>, config: TrainConfig) -> Trainer<B> {
    let lora = LoraConfig { dropout: 0.1, rank: 2, ..LoraConfig::default() };
    Trainer::new(model, Adapter::create(&*model.valid(), &lora, 0).unwrap(), config).unwrap()
}

/// What a run tells, without what the clock decides.
pub fn told(event: &Event) -> Option<String> {
    match event {
        Event::Step(step) => {
            Some(format!("{} {:e} {:e} {:e}", step.step, step.loss, step.grad_norm, step.learning_rate))
        }
        Event::Evaluated { step, valid_loss, .. } => Some(format!("{step} valid {valid_loss:e}")),
        Event::Skipped { step, problem, .. } => Some(format!("{step} skipped {problem}")),
        _ => None,
    }
}

/// Trains from the newest checkpoint in `checkpoints` on, for as long as `go_on` says so after each step; what it told.
pub fn train<B: TrainBackend>(
    trainer: &mut Trainer<B>,
    checkpoints: Checkpoints,
    go_on: impl Fn(usize) -> bool,
) -> firebrick::core::error::Result<Vec<String>> {
    let (rows, Newest { saved, .. }) = (rows(), checkpoints.newest()?);
    trainer.keep(checkpoints, saved.as_ref(), &rows)?;
    let mut lines = Vec::new();
    trainer.run(&rows, Some(&rows), &mut |event| {
        lines.extend(told(&event));
        match event {
            Event::Step(step) if !go_on(step.step) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    })?;
    Ok(lines)
}

/// Every file of a checkpoint.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = folder.read_dir().unwrap_or_else(|problem| panic!("{}: {problem}", folder.display()));
    let file = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
    };
    entries.map(|entry| file(entry.unwrap().path())).collect()
}

/// A folder in memory, where there is one: to bring a file to a disk takes longer than everything else here.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}
