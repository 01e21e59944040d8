//! The memory of a run, looked at before it starts: what it will take, whether that is there, and what would fit if it is not.

use std::fmt;

use anyhow::{Result, bail, ensure};
use firebrick::backend::process::{available_bytes, rss_bytes};
use firebrick::core::train::estimate::Estimate;
use firebrick::core::train::task::Task;
use firebrick::prelude::*;
use serde::Serialize;

/// What a run will take, and what there is.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    #[serde(flatten)]
    estimate: Estimate,
    /// What this process holds already and may still have; absent where that is not known.
    available_bytes: Option<u64>,
    /// Whether the counting was held against measurements on this backend.
    verified: bool,
    batch_size: usize,
    gradient_accumulation: usize,
    fits: bool,
    /// What is said where it does not.
    #[serde(skip)]
    refusal: String,
}

impl Memory {
    /// # Errors
    /// If the run will not fit; the error says what would.
    pub fn check(&self) -> Result<()> {
        ensure!(self.fits, "{}", self.refusal);
        Ok(())
    }
}

/// The estimate may be so much too low: the bound that its test holds it to.
const TOLERANCE: f64 = 0.15;

/// The trainer with the batches it will take, and its memory. With `auto` the rows of a step are parted into as few passes as there is memory
/// for. Whether it fits is for [`Memory::check`].
///
/// # Errors
/// With `auto` on a backend whose memory is not known.
pub fn fitted<B: TrainBackend, T: Task<B>>(
    trainer: Trainer<B, T>,
    splits: &Splits<T::Example>,
    auto: bool,
    backend: BackendName,
) -> Result<(Trainer<B, T>, Memory)> {
    let room = Room::of(backend);
    let valid = splits.valid.as_ref().map(|valid| valid.examples());
    let estimate = |config: &TrainConfig| trainer.estimate(config, splits.train.examples(), valid, room.held);
    let asked = trainer.config().clone();
    let chosen = if auto {
        if room.free.is_none() {
            bail!("--batch-size auto: the memory of {backend} is not known; give a number");
        }
        // More rows than there are make no batch, but bins are filled from the next epoch.
        let most = if asked.pack.is_some() { usize::MAX } else { splits.train.examples().len() };
        parted(&asked, most).find(|config| room.fits(&estimate(config))).unwrap_or(parting(&asked, 1))
    } else {
        asked
    };
    let found = estimate(&chosen);
    let fits = room.fits(&found);
    let memory = Memory {
        available_bytes: room.free.zip(room.held).map(|(free, held)| free + held),
        fits,
        refusal: if fits { String::new() } else { refusal(&found, &room, &chosen, T::PACKS, &estimate) },
        estimate: found,
        verified: backend == BackendName::Flex,
        batch_size: chosen.batch_size,
        gradient_accumulation: chosen.gradient_accumulation,
    };
    Ok((trainer.with_batches(chosen.batch_size, chosen.gradient_accumulation), memory))
}

/// What the device has, in so far as it is known: on the CPU.
struct Room {
    /// Resident now, the model included.
    held: Option<u64>,
    /// Still to be had.
    free: Option<u64>,
}

impl Room {
    fn of(backend: BackendName) -> Self {
        match backend {
            BackendName::Flex => Self { held: rss_bytes(), free: available_bytes() },
            _ => Self { held: None, free: None },
        }
    }

    fn fits(&self, estimate: &Estimate) -> bool {
        let Some((free, held)) = self.free.zip(self.held) else { return true };
        let needed = estimate.peak_bytes.saturating_sub(held) as f64 * (1.0 + TOLERANCE);
        needed <= free as f64
    }
}

/// The rows of a step in so many at a time.
fn parting(config: &TrainConfig, batch_size: usize) -> TrainConfig {
    let rows = config.batch_size * config.gradient_accumulation;
    TrainConfig { batch_size, gradient_accumulation: rows / batch_size, ..config.clone() }
}

/// Every way to part the rows of a step into passes of one size of at most `most`, the fewest first.
fn parted(config: &TrainConfig, most: usize) -> impl Iterator<Item = TrainConfig> {
    let rows = config.batch_size * config.gradient_accumulation;
    (1..=rows.min(most)).rev().filter(move |size| rows.is_multiple_of(*size)).map(|size| parting(config, size))
}

fn refusal(
    found: &Estimate,
    room: &Room,
    config: &TrainConfig,
    may_part: bool,
    estimate: &dyn Fn(&TrainConfig) -> Estimate,
) -> String {
    let free = room.free.unwrap_or(0) + room.held.unwrap_or(0);
    let told = format!(
        "training would take about {} of memory at its peak, and this process can have {}",
        Bytes(found.peak_bytes),
        Bytes(free)
    );
    let smaller = |config: &TrainConfig| -> Vec<TrainConfig> {
        if may_part { parted(config, config.batch_size - 1).collect() } else { Vec::new() }
    };
    let by_layer = TrainConfig { gradient_checkpointing: true, ..config.clone() };
    let unpacked = TrainConfig { pack: None, ..config.clone() };
    let flags = |other: &TrainConfig| {
        let mut flags = Vec::new();
        if other.gradient_checkpointing && !config.gradient_checkpointing {
            flags.push("--gradient-checkpointing".to_owned());
        }
        if other.batch_size != config.batch_size {
            let (size, passes) = (other.batch_size, other.gradient_accumulation);
            flags.push(format!("--batch-size {size} --gradient-accumulation {passes}"));
        }
        if other.pack.is_none() && config.pack.is_some() {
            flags.push("no --pack".to_owned());
        }
        flags.join(" ")
    };
    let first_that_fits = |configs: Vec<TrainConfig>| {
        let mut estimated = configs.into_iter().map(|config| (estimate(&config), config));
        let (estimate, config) = estimated.find(|(estimate, _)| room.fits(estimate))?;
        Some(format!("{} ({})", flags(&config), Bytes(estimate.peak_bytes)))
    };
    let may_go_by_layer = !config.gradient_checkpointing;
    let alone = [
        may_go_by_layer.then(|| vec![by_layer.clone()]),
        Some(smaller(config)),
        config.pack.is_some().then(|| vec![unpacked]),
    ];
    let mut fitting: Vec<String> = alone.into_iter().flatten().filter_map(first_that_fits).collect();
    if fitting.is_empty() && may_go_by_layer {
        fitting.extend(first_that_fits(smaller(&by_layer)));
    }
    if fitting.is_empty() {
        let least = estimate(&if may_part { parting(&by_layer, 1) } else { by_layer }).peak_bytes;
        return format!(
            "{told}; even --batch-size 1 --gradient-checkpointing takes {}: shorten rows with --max-seq-len, or weights with --dtype",
            Bytes(least)
        );
    }
    format!("{told}; what fits: {}", fitting.join(", or "))
}

/// Bytes for people.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.0 as f64 / 1e6;
        if megabytes < 1000.0 { write!(f, "{megabytes:.0} MB") } else { write!(f, "{:.2} GB", megabytes / 1e3) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { pass_tokens, .. } = self.estimate;
        write!(f, "memory: about {} at its peak", Bytes(self.estimate.peak_bytes))?;
        if let Some(available) = self.available_bytes {
            write!(f, " of {}", Bytes(available))?;
        }
        if !self.verified {
            write!(f, " (counted; the counting is verified on flex alone)")?;
        }
        let lines = [
            ("weights", self.estimate.weights_bytes, String::new()),
            ("adapter", self.estimate.adapter_bytes, ": matrices, gradients, moments".into()),
            ("activations", self.estimate.activations_bytes, format!(": kept of a pass of {pass_tokens} tokens")),
            ("working", self.estimate.working_bytes, ": of a layer or of the head".into()),
            ("validation", self.estimate.validation_bytes, ": in place of the two above".into()),
            ("allocator", self.estimate.allocator_bytes, ": freed, and kept for later".into()),
            ("process", self.estimate.process_bytes, ": runtime, tokenizer, rows".into()),
        ];
        for (name, bytes, what) in lines {
            write!(f, "\n  {:>8}  {name}{what}", Bytes(bytes).to_string())?;
        }
        let (size, passes) = (self.batch_size, self.gradient_accumulation);
        write!(f, "\n  a step is {passes} pass{} of {size}", if passes == 1 { "" } else { "es" })
    }
}
