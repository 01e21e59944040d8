//! One measurement: what ran, on what, how often, how long. A file of records has one on each line, in JSON, and is only ever appended to.

mod file;
mod label;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use file::{RecordError, append, name_of_file, newest, read, read_folder};
pub use label::{key, label, matches, model};

/// The part that is reading the bytes of a text's step, in turns with it.
pub const READ: &str = "read";

/// The variable that tells OpenMP's threads whether to sleep where they wait for each other.
pub const WAITING: &str = "OMP_WAIT_POLICY";

/// Peers whose threads are OpenMP's.
const OPENMP: [&str; 4] = ["pytorch", "peft", "sentence-transformers", "llama.cpp"];

/// What one implementation did with one workload in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The run: the time it began, as in `2026-11-21T13:40:00Z`, and what tells it from others of that second. Sorted, runs are in order.
    pub run: String,
    /// What was computed: `workload` names it, the other keys are its sizes.
    pub workload: Map<String, Value>,
    /// A backend of ours (`flex`, `wgpu`) or a peer (`pytorch`).
    pub implementation: String,
    /// Whether that is somebody else's work.
    pub peer: bool,
    /// Whether there are figures.
    pub status: Status,
    /// Why there are none, in one line.
    #[serde(default)]
    pub reason: Option<String>,
    /// What it ran on.
    pub device: Device,
    /// The threads it was given; 0 where that does not apply.
    pub threads: usize,
    /// The day, `2026-11-21`.
    pub date: String,
    /// The commit of this repository that was built.
    pub commit: String,
    /// Whether the sources were that commit's, without changes.
    pub clean: bool,
    /// The computer.
    pub machine: Machine,
    /// Of whatever may change the figure: ours, the peer's, its libraries'.
    pub versions: BTreeMap<String, String>,
    /// Of a peer: variables of its environment that may change the figure, `default` for one that was not set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// Calls before the clock first ran.
    #[serde(default)]
    pub warm_up: u64,
    /// Calls in one sample.
    #[serde(default)]
    pub calls: u64,
    /// Seconds of the very first call, after inputs and weights were in memory.
    #[serde(default)]
    pub cold_seconds: Option<f64>,
    /// Seconds per call, one for each round. Round k of every implementation of one run and workload was taken in turn with the others'.
    #[serde(default)]
    pub samples: Vec<f64>,
    /// Seconds per call: the median of the samples.
    #[serde(default)]
    pub median: Option<f64>,
    /// Seconds per call: their lower quartile.
    #[serde(default)]
    pub low: Option<f64>,
    /// Seconds per call: their upper quartile.
    #[serde(default)]
    pub high: Option<f64>,
    /// What one call amounts to.
    #[serde(default)]
    pub work: Work,
    /// The figure to show.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// What that device was measured to do at best, in the same run.
    #[serde(default)]
    pub roof: Option<Roof>,
    /// How much of the roof the median reaches: the larger of both shares, 1 being all of it.
    #[serde(default)]
    pub of_roof: Option<f64>,
    /// The most memory the process had, in bytes.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// Kernels launched for one token.
    #[serde(default)]
    pub launches_per_token: Option<f64>,
    /// Of the model on texts that it has not seen: `exp` of the mean loss of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Seconds of a copy of a tensor of that size, taken in turns with an op on rows: the median.
    #[serde(default)]
    pub copy_seconds: Option<f64>,
    /// Seconds of the parts of one call, medians.
    #[serde(default)]
    pub parts: BTreeMap<String, f64>,
}

/// Whether a record has figures, and if not, whose decision that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    /// There are figures.
    #[serde(rename = "measured")]
    Measured,
    /// It was not tried here.
    #[serde(rename = "not measured")]
    NotMeasured,
    /// The implementation does not do it, or its answer was wrong.
    #[serde(rename = "refused")]
    Refused,
}

/// What the work ran on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// As its driver calls it.
    pub name: String,
    /// The driver, or of a processor its instructions.
    pub driver: String,
    /// What it is.
    pub kind: Kind,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// The processor itself.
    #[serde(rename = "CPU")]
    Cpu,
    /// A GPU with memory of its own.
    #[serde(rename = "discrete GPU")]
    DiscreteGpu,
    /// A GPU that shares the processor's memory.
    #[serde(rename = "integrated GPU")]
    IntegratedGpu,
    /// A part of a GPU lent to a virtual machine.
    #[serde(rename = "virtual GPU")]
    VirtualGpu,
    /// A driver that imitates a GPU on the processor. Its figures say that something runs, and nothing of any GPU.
    #[serde(rename = "software")]
    Software,
}

/// The computer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What its files are called after: `linux-2-cores`.
    pub name: String,
    /// The processor.
    pub cpu: String,
    /// The cores the process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// System and version.
    pub os: String,
}

/// What one call amounts to; 0 where something does not apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Bytes that have to be read and written at least.
    pub bytes: u64,
    /// Floating-point additions and multiplications.
    pub operations: u64,
    /// Tokens read or made.
    pub tokens: u64,
}

/// A figure with its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many.
    pub value: f64,
    /// Of what.
    pub unit: Unit,
}

/// Units of rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unit {
    /// 1e9 bytes in a second.
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    /// 1e9 floating-point operations in a second.
    #[serde(rename = "GFLOP/s")]
    GigaflopsPerSecond,
    /// Tokens in a second.
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    /// Texts in a second.
    #[serde(rename = "texts/s")]
    TextsPerSecond,
    /// Milliseconds of one call: the only unit of which less is better.
    #[serde(rename = "ms")]
    Milliseconds,
}

/// What a device was measured to do at best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roof {
    /// Bytes copied in a second, read and written both counted.
    pub bytes_per_second: f64,
    /// Floating-point operations in a second.
    pub operations_per_second: f64,
}

/// A median with its quartiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle value.
    pub median: f64,
    /// The lower quartile.
    pub low: f64,
    /// The upper quartile.
    pub high: f64,
}

impl Spread {
    /// Of values in any order, between two values in proportion; nothing of none, or where one is not a number.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self { median: at(0.5), low: at(0.25), high: at(0.75) })
    }
}

impl Record {
    /// Takes the samples, in seconds per call and in the order of the rounds, with their median and quartiles.
    #[must_use]
    pub fn with_samples(mut self, samples: Vec<f64>) -> Self {
        let spread = Spread::of(&samples);
        self.median = spread.map(|spread| spread.median);
        self.low = spread.map(|spread| spread.low);
        self.high = spread.map(|spread| spread.high);
        self.samples = samples;
        self
    }

    /// Whether it is a peer's figure that says too little of it: until 2026-11-29 this benchmark told OpenMP's threads to sleep at every barrier,
    /// with which a token of llama.cpp takes up to twice as long.
    pub fn was_held_back(&self) -> bool {
        let sleeps = self.settings.get(WAITING).is_none_or(|policy| policy.eq_ignore_ascii_case("passive"));
        self.status == Status::Measured && OPENMP.contains(&self.implementation.as_str()) && sleeps
    }

    /// What was computed, readable: `softmax [1024, 1024] f32`.
    pub fn label(&self) -> String {
        label(&self.workload)
    }

    /// Its share of the roof, if it was taken as it is today: a text's once was that of all bytes and operations, of the prompt too.
    pub fn share(&self) -> Option<f64> {
        self.of_roof.filter(|_| self.kind() != "generate" || self.parts.contains_key(READ))
    }

    /// The workload's name: `softmax`.
    pub fn kind(&self) -> &str {
        self.workload.get("workload").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is wrong with it in itself; nothing if all is well.
    fn problem(&self) -> Option<String> {
        if self.kind().is_empty() {
            return Some("`workload` has no name: its key `workload` has to be a text".to_owned());
        }
        if self.status != Status::Measured {
            let spare = !self.samples.is_empty() || self.median.is_some() || self.rate.is_some();
            return match self.reason.as_deref().is_some_and(|reason| !reason.trim().is_empty()) {
                false => Some("it has no figures and no `reason` why".to_owned()),
                true => spare.then(|| "it says that nothing was measured and has figures all the same".to_owned()),
            };
        }
        if self.samples.is_empty() || self.samples.iter().any(|&seconds| !(seconds > 0.0 && seconds.is_finite())) {
            return Some("`samples` has to hold seconds above 0, at least one".to_owned());
        }
        let (Some(median), Some(low), Some(high)) = (self.median, self.low, self.high) else {
            return Some("`median`, `low` or `high` is missing".to_owned());
        };
        let spread = Spread::of(&self.samples)?;
        for (name, written, is) in
            [("median", median, spread.median), ("low", low, spread.low), ("high", high, spread.high)]
        {
            if (written - is).abs() > 1e-6 * is {
                return Some(format!("`{name}` is {written}, of its samples it is {is}"));
            }
        }
        let Some(rate) = &self.rate else { return Some("`rate` is missing".to_owned()) };
        let is = match rate.unit {
            Unit::GigabytesPerSecond => self.work.bytes as f64 / median / 1e9,
            Unit::GigaflopsPerSecond => self.work.operations as f64 / median / 1e9,
            Unit::Milliseconds => median * 1e3,
            // A rate of tokens or texts may be that of a part of a call.
            Unit::TokensPerSecond | Unit::TextsPerSecond => rate.value,
        };
        // Rates may have been rounded; no more than that.
        ((rate.value - is).abs() > 1e-2 * is)
            .then(|| format!("`rate` is {}, of its work and median it is {is}", rate.value))
    }
}

impl Kind {
    /// As records and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::DiscreteGpu => "discrete GPU",
            Self::IntegratedGpu => "integrated GPU",
            Self::VirtualGpu => "virtual GPU",
            Self::Software => "software",
        }
    }
}

impl Status {
    /// As records and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::NotMeasured => "not measured",
            Self::Refused => "refused",
        }
    }
}

impl Unit {
    /// As records and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GigabytesPerSecond => "GB/s",
            Self::GigaflopsPerSecond => "GFLOP/s",
            Self::TokensPerSecond => "tokens/s",
            Self::TextsPerSecond => "texts/s",
            Self::Milliseconds => "ms",
        }
    }
}

/// How many times as fast `ours` is as `theirs`: the median over the rounds of their seconds over ours, with its quartiles. Nothing where
/// one of both has no figures, or they are not of one run and workload, since then they were not taken in turns.
pub fn ratio(theirs: &Record, ours: &Record) -> Option<Spread> {
    if theirs.run != ours.run || key(&theirs.workload) != key(&ours.workload) {
        return None;
    }
    let rounds: Vec<f64> = theirs.samples.iter().zip(&ours.samples).map(|(theirs, ours)| theirs / ours).collect();
    Spread::of(&rounds)
}
