//! Whether to trust a backend on a device: each op, cached decoding, the adapter's gradients and the narrow dtypes, against the same
//! computed on the CPU in f64. Reports from other projects (gradients that are NaN or explode on some drivers, cached decoding that differs
//! from one pass) are why a device is examined before its results are believed.
//!
//! ```no_run
//! use firebrick::backend::select::{built, devices};
//! use firebrick::gate;
//!
//! # fn main() -> Result<(), gate::Error> {
//! for device in built().into_iter().flat_map(devices) {
//!     let report = gate::examine_device(&device, &mut |_| {})?;
//!     println!("{device}: {}", if report.passed() { "sound" } else { "not to be trusted" });
//! }
//! # Ok(())
//! # }
//! ```

mod decoder;
mod memory;
mod ops;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use firebrick_backend::TrainBackend;
use firebrick_backend::device::{DeviceInfo, DeviceKind};
use firebrick_backend::packed::{BLOCK, Format, dtype_name};
use firebrick_backend::select::{BackendName, Job, SelectError, dispatch, dispatch_on, has_autotune};
use serde::{Deserialize, Serialize};

pub use self::memory::{cache_folder, remember, remembered};
pub use self::ops::Op;

/// Tokens of the sequences on which the adapter's gradients are checked.
pub const GRADIENT_TOKENS: [usize; 4] = [64, 256, 1024, 2048];

/// Time after which no longer gradient check is begun on a software device.
const SOFTWARE_TIME: Duration = Duration::from_secs(60);

/// One thing that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// An op and its gradient against its reference in f64.
    Op(Op),
    /// The logits of a small decoder against those in f64.
    Logits,
    /// Decoding through the cache against one pass, both on the device.
    CachedDecode,
    /// Gradients of an adapter, nothing else being tracked, against those in f64, over this many tokens.
    Gradients(usize),
    /// Logits with the weights in a narrow dtype, where the device has it, or packed, where the backend reads them so.
    Weights(DType),
    /// The same bits three times.
    Determinism,
}

impl Check {
    /// Every check, in the order they are made.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Op::ALL.map(Self::Op).to_vec();
        all.extend([Self::Logits, Self::CachedDecode]);
        all.extend(GRADIENT_TOKENS.map(Self::Gradients));
        all.extend([DType::F16, DType::BF16].map(Self::Weights));
        all.extend([Format::Q8, Format::Q4].map(|format| Self::Weights(format.dtype(BLOCK))));
        all.push(Self::Determinism);
        all
    }

    /// The largest relative error that passes, as ‖actual − expected‖ / ‖expected‖: rounding of f32 with products in TF32, which NVIDIA's
    /// tensor cores use for f32; or that of the narrow dtype.
    fn tolerance(self) -> f64 {
        match self {
            Self::Op(op) => op.tolerance(),
            Self::Weights(DType::BF16) => 3e-2,
            // What packing itself costs, compared with weights that are not packed.
            Self::Weights(dtype) if dtype == Format::Q8.dtype(BLOCK) => 3e-2,
            Self::Weights(dtype) if dtype == Format::Q4.dtype(BLOCK) => 3e-1,
            Self::Weights(_) => 1e-2,
            Self::Determinism => 0.0,
            Self::Logits | Self::CachedDecode | Self::Gradients(_) => 3e-3,
        }
    }

    /// What is compared, by name.
    fn measure<B: TrainBackend>(self, device: &B::Device, dtype: DType) -> Result<Parts, String> {
        match self {
            Self::Op(op) => Ok(op.measure::<B>(device, dtype)),
            // Both ways to multiply by a packed weight: many rows, and one.
            Self::Weights(stored) if Format::of(stored).is_some() => decoder::cached_logits::<B>(device, dtype),
            Self::Logits | Self::Weights(_) => decoder::logits::<B>(device, dtype),
            Self::CachedDecode => decoder::cached_logits::<B>(device, dtype),
            Self::Gradients(tokens) => decoder::gradients::<B>(device, dtype, tokens),
            Self::Determinism => {
                let mut parts = decoder::logits::<B>(device, dtype)?;
                parts.extend(decoder::gradients::<B>(device, dtype, GRADIENT_TOKENS[0])?);
                Ok(parts)
            }
        }
    }

    fn run<B: TrainBackend>(self, device: &B::Device) -> Result<Outcome, Error> {
        let dtype = match self {
            Self::Weights(dtype) if Format::of(dtype).is_some() && !B::reads_weights(device, dtype) => {
                return Ok(Outcome::NotRun { reason: "the backend unpacks them when they are loaded".into() });
            }
            Self::Weights(dtype) if Format::of(dtype).is_none() && !B::supports_dtype(device, dtype) => {
                return Ok(Outcome::NotRun { reason: "the device does not have this dtype".into() });
            }
            Self::Weights(dtype) => dtype,
            _ => DType::F32,
        };
        let measure = |check: Self| caught(|| check.measure::<B>(device, dtype));
        let compared = match self {
            Self::CachedDecode => measure(Self::Logits).and_then(|whole| Ok((measure(self)?, whole))),
            Self::Determinism => {
                let runs: Result<Vec<Parts>, String> = (0..3).map(|_| measure(self)).collect();
                runs.and_then(|runs| steady(&runs)).map(|first| (first.clone(), first))
            }
            _ => {
                let expected = dispatch(BackendName::Flex, Truth(self)).map_err(Error::NoCpu)?;
                let expected = expected.map_err(|problem| Error::Truth { check: self, problem })?;
                measure(self).map(|actual| (actual, expected))
            }
        };
        Ok(match compared {
            Ok((actual, expected)) => judge(&actual, &expected, self.tolerance()),
            Err(problem) => Outcome::Failed { problem },
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op(op) => op.fmt(f),
            Self::Logits => f.write_str("logits"),
            Self::CachedDecode => f.write_str("cached decode"),
            Self::Gradients(tokens) => write!(f, "gradients over {tokens} tokens"),
            Self::Weights(dtype) => write!(f, "{} weights", dtype_name(*dtype)),
            Self::Determinism => f.write_str("determinism"),
        }
    }
}

/// Named numbers that a check compares.
type Part = (String, Vec<f64>);
type Parts = Vec<Part>;

fn part<B: Backend, const D: usize>(name: &str, tensor: Tensor<B, D>) -> Part {
    (name.to_owned(), tensor.into_data().iter::<f64>().collect())
}

/// FNV-1a: the same number for the same bytes, on every machine.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let fold = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, fold)
}

/// A check computed on the CPU in f64, where every op is its reference.
struct Truth(Check);

impl Job for Truth {
    type Output = Result<Parts, String>;
    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        self.0.measure::<B>(&device, DType::F64)
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The largest relative error was within the tolerance.
    Passed {
        /// ‖actual − expected‖ / ‖expected‖ of the worst part.
        error: f64,
    },
    /// It is wrong: where, and how much.
    Failed {
        /// One line.
        problem: String,
    },
    /// Nothing is known.
    NotRun {
        /// Why.
        reason: String,
    },
}

/// A check and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
}

/// The examination of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The backend's name.
    pub backend: String,
    /// The device's name.
    pub device: String,
    /// Its driver and version.
    pub driver: String,
    /// What it is made of.
    pub kind: String,
    /// Firebrick's version.
    pub version: String,
    /// Whether matrix products are tuned on the device.
    pub autotune: bool,
    /// A line for each check.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Nothing is wrong that was checked.
    pub fn passed(&self) -> bool {
        self.failed().next().is_none()
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &str> {
        failed(&self.findings)
    }
}

/// The names of the checks that failed.
pub fn failed(findings: &[Finding]) -> impl Iterator<Item = &str> {
    let is_failed = |finding: &&Finding| matches!(finding.outcome, Outcome::Failed { .. });
    findings.iter().filter(is_failed).map(|finding| finding.check.as_str())
}

/// Why a device could not be examined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The CPU backend that says what is right is not built in.
    #[error("a device is examined against the CPU: {0}")]
    NoCpu(SelectError),
    /// The CPU itself could not say what is right.
    #[error("{check}: the CPU could not compute what is right: {problem}")]
    Truth {
        /// The check.
        check: Check,
        /// What happened.
        problem: String,
    },
    /// The backend cannot be had.
    #[error(transparent)]
    Select(#[from] SelectError),
}

/// Examines a device: a minute or less on a CPU or a GPU; on a software device gradient checks end after about a minute.
///
/// # Errors
/// If there is nothing to compare with. What is wrong with the device is in the report.
pub fn examine_device(device: &DeviceInfo, progress: &mut dyn FnMut(&Finding)) -> Result<Report, Error> {
    struct Examine<'a>(Option<Duration>, &'a mut dyn FnMut(&Finding));
    impl Job for Examine<'_> {
        type Output = Result<Vec<Finding>, Error>;
        fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
            examine::<B>(&device, &Check::all(), self.0, self.1)
        }
    }
    let limit = (device.kind == DeviceKind::Software).then_some(SOFTWARE_TIME);
    let findings = dispatch_on(device.backend, device.index, Examine(limit, progress))??;
    Ok(Report { findings, ..blank(device) })
}

/// A report of this device without findings.
fn blank(device: &DeviceInfo) -> Report {
    Report {
        backend: device.backend.to_string(),
        device: device.name.clone(),
        driver: device.driver.clone(),
        kind: device.kind.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        autotune: has_autotune(),
        findings: Vec::new(),
    }
}

/// Makes these checks on any backend, one that is not in our table as well. After `limit` no longer gradient check is begun.
///
/// # Errors
/// As [`examine_device`].
pub fn examine<B: TrainBackend>(
    device: &B::Device,
    checks: &[Check],
    limit: Option<Duration>,
    progress: &mut dyn FnMut(&Finding),
) -> Result<Vec<Finding>, Error> {
    let begun = Instant::now();
    let mut findings = Vec::new();
    for &check in checks {
        let one = Instant::now();
        // A check of four times the tokens takes at least four times as long as the last one did.
        let last = findings.last().map_or(0.0, |finding: &Finding| finding.seconds);
        let longer = matches!(check, Check::Gradients(tokens) if tokens > GRADIENT_TOKENS[0]);
        let over = limit.is_some_and(|limit| begun.elapsed().as_secs_f64() + 4.0 * last > limit.as_secs_f64());
        let skipped = matches!(findings.last(), Some(Finding { outcome: Outcome::NotRun { .. }, .. }));
        let outcome = if longer && (over || skipped) {
            Outcome::NotRun { reason: "a software device is too slow for it".into() }
        } else {
            check.run::<B>(device)?
        };
        let finding = Finding { check: check.to_string(), outcome, seconds: one.elapsed().as_secs_f64() };
        progress(&finding);
        findings.push(finding);
    }
    Ok(findings)
}

/// The result of `work`, or what it panicked with: a driver that gives up must not end the examination.
fn caught(work: impl FnOnce() -> Result<Parts, String>) -> Result<Parts, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(format!("it panics: {}", text.lines().next().unwrap_or_default()))
    })
}

/// The first of several runs, if all are the same bit for bit.
fn steady(runs: &[Parts]) -> Result<Parts, String> {
    let (first, others) = runs.split_first().ok_or("nothing was run")?;
    let differs = |((_, a), (_, b)): &(&Part, &Part)| a.iter().zip(b).any(|(a, b)| a.to_bits() != b.to_bits());
    match others.iter().flat_map(|again| first.iter().zip(again)).find(differs) {
        Some(((name, _), _)) => Err(format!("{name} differs from run to run")),
        None => Ok(first.clone()),
    }
}

fn judge(actual: &Parts, expected: &Parts, tolerance: f64) -> Outcome {
    let names = |parts: &Parts| parts.iter().map(|(name, values)| (name.clone(), values.len())).collect::<Vec<_>>();
    if names(actual) != names(expected) {
        return Outcome::Failed { problem: "its results have other names or shapes".into() };
    }
    let mut worst = (0.0, "");
    for ((name, actual), (_, expected)) in actual.iter().zip(expected) {
        if let Some(value) = actual.iter().find(|value| !value.is_finite()) {
            return Outcome::Failed { problem: format!("{name} holds {value}") };
        }
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let difference = square(&mut actual.iter().zip(expected).map(|(a, e)| a - e));
        let error = difference / square(&mut expected.iter().copied()).max(f64::MIN_POSITIVE);
        if difference > 0.0 && error > worst.0 {
            worst = (error, name);
        }
    }
    let (error, name) = worst;
    match error <= tolerance {
        true => Outcome::Passed { error },
        false => {
            Outcome::Failed { problem: format!("{name} is off by {error:.1e} of its size, {tolerance:.0e} is allowed") }
        }
    }
}
