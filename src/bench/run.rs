//! The matrix: each workload on each backend and by each peer, in turns, as records.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::DType;
use firebrick_backend::device::{DeviceInfo, DeviceKind};
use firebrick_backend::packed::Format;
use firebrick_backend::process::threads;
use firebrick_backend::select::{BackendName, Job, devices, dispatch};
use firebrick_backend::{KernelBackend, TrainBackend, roof};
use serde_json::{Value, json};

use super::measure::{Beside, Contender, Measured, Plan, Refusal, Runner, close, interleaved};
use super::peers::{Absent, Peer};
use super::probe::Probe;
use super::record::{READ, Rate, Record, Roof, Spread, Status, Unit, Work};
use super::subject::{Models, reading, runner, texts};
use super::workload::{Kind, Workload, dtype_name, lengths};
use super::{expected, machine};

/// What to measure on what.
#[derive(Debug, Default)]
pub struct Settings {
    /// Our backends.
    pub backends: Vec<BackendName>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Samples of each.
    pub rounds: usize,
    /// Seconds of a sample, at least.
    pub sample_seconds: f64,
    /// Folders that peers load too.
    pub models: Models,
}

/// Measures, and hands over each record as soon as it is made.
///
/// # Errors
/// What `report` returns.
pub fn run<E>(
    base: &Base,
    settings: &Settings,
    peers: &mut [Peer],
    absent: &[Absent],
    report: &mut dyn FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    let roofs = RefCell::new(Roofs::default());
    let backends: Vec<(BackendName, Option<DeviceInfo>)> =
        settings.backends.iter().map(|&backend| (backend, devices(backend).into_iter().next())).collect();
    for workload in &settings.workloads {
        for record in one(settings, workload, base, &backends, peers, absent, &roofs) {
            report(record)?;
        }
    }
    Ok(())
}

/// Measures what only a process of its own can tell: memory where the device is the processor, launches where there are any.
///
/// # Errors
/// What `report` returns.
pub fn probes<E>(
    base: &Base,
    settings: &Settings,
    probes: &[Probe],
    report: &mut dyn FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    for &backend in &settings.backends {
        let Some(device) = devices(backend).into_iter().next() else { continue };
        for &probe in probes {
            let of_cpu = probe != Probe::Launches;
            if of_cpu != (device.kind == DeviceKind::Cpu) {
                continue;
            }
            let blank = Workload { kind: Kind::Sampling, dtype: DType::F32 };
            let mut record = base.record(&blank, &backend.to_string(), machine::device(&device));
            (record.workload, record.work) = (probe.describe(), Work::default());
            match probe.start(backend, threads()) {
                Err(reason) => record = without_figures(record, Status::Refused, reason),
                Ok(found) => {
                    record.status = Status::Measured;
                    (record.peak_bytes, record.launches_per_token) = (found.bytes, found.launches);
                    record.perplexity = found.perplexity;
                    (record.warm_up, record.calls) = (0, 1);
                    record = record.with_samples(vec![found.seconds]);
                    record.rate = Some(Rate { value: found.seconds * 1e3, unit: Unit::Milliseconds });
                }
            }
            report(record)?;
        }
    }
    Ok(())
}

/// What all records of a run say: when it began, on what.
pub struct Base {
    run: String,
    date: String,
    commit: (String, bool),
    machine: super::record::Machine,
    versions: BTreeMap<String, String>,
}

impl Base {
    /// A run that begins now.
    pub fn now() -> Self {
        let now = machine::now();
        Self {
            run: format!("{now}-{:04x}", std::process::id() & 0xffff),
            date: now[..10].to_owned(),
            commit: machine::commit(),
            machine: machine::machine(),
            versions: machine::versions(),
        }
    }

    fn record(&self, workload: &Workload, implementation: &str, device: super::record::Device) -> Record {
        let cost = workload.cost();
        Record {
            run: self.run.clone(),
            workload: workload.describe(),
            implementation: implementation.to_owned(),
            peer: false,
            status: Status::NotMeasured,
            reason: None,
            device,
            threads: threads(),
            date: self.date.clone(),
            commit: self.commit.0.clone(),
            clean: self.commit.1,
            machine: self.machine.clone(),
            versions: self.versions.clone(),
            settings: BTreeMap::new(),
            warm_up: 0,
            calls: 0,
            cold_seconds: None,
            samples: Vec::new(),
            median: None,
            low: None,
            high: None,
            work: Work { bytes: cost.bytes as u64, operations: cost.operations as u64, tokens: cost.tokens as u64 },
            rate: None,
            roof: None,
            of_roof: None,
            peak_bytes: None,
            launches_per_token: None,
            perplexity: None,
            copy_seconds: None,
            parts: BTreeMap::new(),
        }
    }
}

/// The processor as a device, for peers that run on it.
fn cpu() -> super::record::Device {
    super::record::Device {
        name: firebrick_backend::process::cpu_name(),
        driver: firebrick_backend::process::cpu_instructions().to_owned(),
        kind: super::record::Kind::Cpu,
    }
}

fn one(
    settings: &Settings,
    workload: &Workload,
    base: &Base,
    backends: &[(BackendName, Option<DeviceInfo>)],
    peers: &mut [Peer],
    absent: &[Absent],
    roofs: &RefCell<Roofs>,
) -> Vec<Record> {
    let mut records = Vec::new();
    let (mut contenders, mut entered) = (Vec::new(), Vec::new());
    for &(backend, ref device) in backends {
        match enter(base, workload, backend, device.as_ref(), &settings.models, roofs) {
            Err(record) => records.push(*record),
            Ok(Entry { record, contender, .. }) => {
                contenders.push(contender);
                entered.push((record, Some(backend)));
            }
        }
    }
    let on_cpu = backends.iter().find(|(_, device)| device.as_ref().is_some_and(|it| it.kind == DeviceKind::Cpu));
    let gpu = backends.iter().find(|(_, device)| device.as_ref().is_some_and(|it| it.kind.is_gpu()));
    // What is composed of Burn's own ops is nobody else's.
    let composed = matches!(workload.kind, Kind::Rows { reference: true, .. });
    let (peers, absent) = if composed { (&mut [][..], &[][..]) } else { (peers, absent) };
    let request = request(workload, &settings.models);
    for absent in absent {
        let mut record = base.record(workload, &absent.name, cpu());
        record.peer = true;
        records.push(without_figures(record, Status::NotMeasured, absent.reason.clone()));
    }
    for peer in &mut *peers {
        let place = if peer.device == "cpu" { on_cpu } else { gpu };
        let device = place.and_then(|(_, device)| device.as_ref()).map_or_else(cpu, machine::device);
        let mut record = base.record(workload, &peer.name, device);
        (record.peer, record.versions, record.settings) = (true, peer.versions.clone(), peer.settings.clone());
        let prepared = match &request {
            _ if peer.name == "mlx" && peer.device == "cpu" && workload.is_model() => Err(MLX.to_owned()),
            Ok(request) => peer.prepare(request),
            Err(reason) => Err(reason.clone()),
        };
        match prepared {
            Err(reason) => records.push(without_figures(record, Status::NotMeasured, reason)),
            Ok(cold) => {
                record.cold_seconds = cold;
                let least_seconds: Box<dyn FnMut() -> Option<f64>> = match place {
                    Some((backend, Some(info))) => least_seconds(workload, *backend, info.kind, roofs),
                    _ => Box::new(|| None),
                };
                contenders.push(Contender { runner: Box::new(peer), quarter: None, floor: 0.0, least_seconds });
                entered.push((record, place.map(|(backend, _)| *backend)));
            }
        }
    }
    let plan = Plan { rounds: settings.rounds, sample_seconds: settings.sample_seconds };
    let right = |input| expected::answer(workload, input);
    let agree = |actual: &[f64], expected: &[f64]| agree(workload, actual, expected);
    let results = interleaved(&mut contenders, &plan, right, &agree);
    drop(contenders);
    for ((mut record, backend), result) in entered.into_iter().zip(results) {
        match result {
            Err(refusal) => record = refused(record, &refusal),
            Ok(measured) => {
                record.roof = backend.and_then(|backend| roofs.borrow().known(workload, backend));
                record = filled(record, workload, measured);
            }
        }
        records.push(record);
    }
    for peer in peers {
        let peak = peer.release();
        if let Some(record) = records.iter_mut().find(|record| record.implementation == peer.name) {
            record.peak_bytes = peak.filter(|_| record.status == Status::Measured && workload.is_model());
        }
    }
    records
}

/// A workload on one of our backends, ready to be timed.
pub struct Entry<'r> {
    /// Its record, still without figures.
    record: Record,
    contender: Contender<'r>,
    workload: &'r Workload,
}

/// Prepares a workload on a backend, or says in its record why there will be no figures.
///
/// # Errors
/// That record.
pub fn enter<'r>(
    base: &Base,
    workload: &'r Workload,
    backend: BackendName,
    device: Option<&DeviceInfo>,
    models: &Models,
    roofs: &'r RefCell<Roofs>,
) -> Result<Entry<'r>, Box<Record>> {
    let left = |record: Record, reason: String| Box::new(without_figures(record, Status::NotMeasured, reason));
    let Some(device) = device else {
        let record = base.record(workload, &backend.to_string(), cpu());
        return Err(left(record, "no such device".into()));
    };
    let record = base.record(workload, &backend.to_string(), machine::device(device));
    if let Some(reason) = left_out(workload, backend, device, base.machine.memory_bytes) {
        return Err(left(record, reason));
    }
    let make = |workload: &Workload| {
        dispatch(backend, Prepare { workload, models, eager: device.kind == DeviceKind::Cpu })
            .map_err(|problem| problem.to_string())
            .and_then(|made| made)
    };
    let mut runner = make(workload).map_err(|reason| left(record.clone(), reason))?;
    if let Some(copy) = workload.copy() {
        let copy = make(&copy).map_err(|reason| left(record.clone(), reason))?;
        runner = Box::new(Beside { subject: runner, yardstick: copy, name: COPY });
    }
    if let (Some(step), DeviceKind::Cpu) = (workload.step(), device.kind) {
        let yardstick = dispatch(backend, Read { bytes: step.cost().bytes })
            .map_err(|problem| left(record.clone(), problem.to_string()))?;
        runner = Box::new(Beside { subject: runner, yardstick, name: READ });
    }
    // A second copy of a model would not leave room for the peers.
    let quarter = workload.quarter().filter(|_| !workload.is_model());
    let contender = Contender {
        runner: runner as Box<dyn Runner>,
        quarter: quarter.and_then(|quarter| make(&quarter).ok()).map(|made| made as Box<dyn Runner>),
        floor: if device.kind == DeviceKind::Cpu { 2e-4 } else { 5e-3 },
        least_seconds: least_seconds(workload, backend, device.kind, roofs),
    };
    Ok(Entry { record, contender, workload })
}

impl Entry<'_> {
    /// Measures it once and refuses what cannot be true.
    ///
    /// # Errors
    /// The record that says why.
    pub fn check(&mut self) -> Result<(), Box<Record>> {
        let plan = Plan { rounds: 1, sample_seconds: 0.01 };
        let workload = self.workload;
        let right = |input| expected::answer(workload, input);
        let agree = |actual: &[f64], expected: &[f64]| agree(workload, actual, expected);
        let result = interleaved(std::slice::from_mut(&mut self.contender), &plan, right, &agree).remove(0);
        result.map(|_| ()).map_err(|refusal| Box::new(refused(self.record.clone(), &refusal)))
    }

    /// Seconds that so many calls take together.
    ///
    /// # Errors
    /// If they fail.
    pub fn sample(&mut self, calls: usize) -> Result<f64, String> {
        Ok(self.contender.runner.sample(calls, 0)?.seconds)
    }

    /// Its record, with these samples: seconds of a call.
    pub fn conclude(mut self, samples: Vec<f64>, calls: usize) -> Record {
        let median = Spread::of(&samples).map_or(f64::NAN, |spread| spread.median);
        let of_roof = (self.contender.least_seconds)().map(|least| least / median);
        let (warm_up, cold_seconds) = (calls, f64::NAN);
        let measured = Measured { warm_up, calls, cold_seconds, samples, parts: BTreeMap::new(), of_roof };
        let mut record = filled(self.record, self.workload, measured);
        record.cold_seconds = None;
        record
    }
}

/// The part of a sample that is a copy of a tensor of that size.
const COPY: &str = "copy";

/// MLX's wheel for Linux computes matrix products with the reference BLAS, at some GFLOP/s.
const MLX: &str = "its build for this processor has the reference BLAS, with which a pass of the model takes minutes";

/// Why a workload is not tried on a device.
fn left_out(workload: &Workload, backend: BackendName, device: &DeviceInfo, memory: u64) -> Option<String> {
    if device.kind == DeviceKind::Software && workload.is_model() {
        return Some("a driver that computes on the processor takes minutes for a whole model".into());
    }
    if matches!(workload.kind, Kind::Sampling) && backend.to_string() != "flex" {
        return Some("the choice of a token is made on the host, the same on every backend".into());
    }
    if Format::of(workload.dtype).is_some() && backend.to_string() != "flex" {
        return Some("packed weights have no kernel here".into());
    }
    let narrow = workload.dtype != DType::F32;
    if matches!(workload.kind, Kind::Generate { .. }) && narrow && backend.to_string() == "candle" {
        return Some(
            "candle's product of f16 on the processor takes a second for each token, and minutes for a call".into(),
        );
    }
    const TRAINING: u64 = 40 << 30;
    if matches!(workload.kind, Kind::LoraStep { .. }) && backend.to_string() == "candle" && memory < TRAINING {
        return Some("beside the peers it does not fit into the memory of this machine".into());
    }
    None
}

/// Whether an answer is the right one, as far as the dtype lets it be.
fn agree(workload: &Workload, actual: &[f64], expected: &[f64]) -> bool {
    match workload.kind {
        // Greedy tokens part for good at the first tie; until then they are equal. Narrow weights are compared by their logits.
        Kind::Generate { .. } if workload.dtype == DType::F32 => actual.first() == expected.first(),
        Kind::Generate { .. } => actual.len() == expected.len(),
        Kind::Sampling => actual == expected,
        // Activations are rounded to eight bits beside packed weights, by each in its own way.
        _ if Format::of(workload.dtype).is_some() => close(actual, expected, 1e-1),
        _ if workload.dtype != DType::F32 => close(actual, expected, 2e-2),
        // Through many layers; and llama.cpp's attention rounds to f16 whatever the weights are.
        _ if workload.is_model() => close(actual, expected, 5e-3),
        _ => close(actual, expected, 1e-3),
    }
}

/// The record with a reason in place of figures.
fn without_figures(mut record: Record, status: Status, reason: String) -> Record {
    (record.status, record.reason) = (status, Some(reason));
    record
}

/// What cannot be done was not measured; what was measured and cannot be true is refused.
fn refused(record: Record, refusal: &Refusal) -> Record {
    let cannot = matches!(refusal, Refusal::Unsupported(_) | Refusal::TooLong { .. });
    let status = if cannot { Status::NotMeasured } else { Status::Refused };
    without_figures(record, status, refusal.to_string().replace('\n', " "))
}

/// What a peer is asked to prepare.
fn request(workload: &Workload, models: &Models) -> Result<Value, String> {
    let mut request = workload.describe();
    if workload.is_model() {
        let folder = if matches!(workload.kind, Kind::Embed { .. }) { &models.e5 } else { &models.qwen };
        let folder = folder.as_ref().ok_or("there is no model that both could load")?;
        request.insert("model".into(), json!(folder));
    }
    if let (Kind::Embed { texts: count, mixed }, Some(folder)) = (workload.kind, &models.e5) {
        let tokenizer = firebrick_core::text::Tokenizer::from_folder(folder).map_err(|problem| problem.to_string())?;
        let all = (0..expected::INPUTS).map(|input| texts(&tokenizer, lengths(count, mixed), input));
        request.insert("texts".into(), json!(all.collect::<Result<Vec<_>, _>>()?));
    }
    Ok(request.into())
}

fn filled(mut record: Record, workload: &Workload, measured: Measured) -> Record {
    let Measured { warm_up, calls, cold_seconds, samples, mut parts, of_roof } = measured;
    record.copy_seconds = parts.remove(COPY);
    record.status = Status::Measured;
    (record.warm_up, record.calls) = (warm_up as u64, calls as u64);
    // A peer's first call was before its first sample.
    record.cold_seconds = record.cold_seconds.or(Some(cold_seconds));
    (record.parts, record.of_roof) = (parts, of_roof);
    record = record.with_samples(samples);
    let (median, cost) = (record.median.unwrap_or(f64::NAN), workload.cost());
    let (value, unit) = match workload.kind {
        Kind::Generate { .. } => {
            (1.0 / record.parts.get("per_token").copied().unwrap_or(f64::NAN), Unit::TokensPerSecond)
        }
        Kind::NextToken { .. } | Kind::Sampling => (median * 1e3, Unit::Milliseconds),
        Kind::Embed { texts, .. } => (texts as f64 / median, Unit::TextsPerSecond),
        Kind::Prefill { .. } | Kind::LoraStep { .. } => (cost.tokens as f64 / median, Unit::TokensPerSecond),
        _ if cost.operations > 0 => (cost.operations as f64 / median / 1e9, Unit::GigaflopsPerSecond),
        _ => (cost.bytes as f64 / median / 1e9, Unit::GigabytesPerSecond),
    };
    record.rate = Some(Rate { value, unit });
    // The rate of a text is that of its steps, which are held against reading in turns with them.
    if let (Some(step), Some(read), Some(took)) =
        (workload.step(), record.parts.get(READ).copied(), record.parts.get("per_token").copied())
    {
        if let Some(roof) = &mut record.roof {
            roof.bytes_per_second = step.cost().bytes as f64 / read;
        }
        record.of_roof = Some(read / took);
    }
    record
}

struct Prepare<'a> {
    workload: &'a Workload,
    models: &'a Models,
    eager: bool,
}

impl Job for Prepare<'_> {
    type Output = Result<Box<dyn Runner + Send>, String>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        runner::<B>(self.workload, self.models, &device, self.eager)
    }
}

struct Read {
    bytes: usize,
}

impl Job for Read {
    type Output = Box<dyn Runner + Send>;

    fn run<B: TrainBackend>(self, _: B::Device) -> Self::Output {
        reading::<B::InnerBackend>(self.bytes)
    }
}

/// What was measured of the devices in this run: bytes a second by the size of what is read, operations a second by dtype.
#[derive(Default)]
pub struct Roofs {
    bytes: BTreeMap<(String, usize), f64>,
    operations: BTreeMap<(String, String), f64>,
}

/// Sizes of which the speed of reading is measured: powers of two from a page to what no cache holds.
fn measured_size(bytes: usize) -> usize {
    // The next lower one, which a smaller cache may hold: what is held against it must not be held against too little.
    1 << bytes.clamp(4 << 10, 128 << 20).ilog2()
}

impl Roofs {
    /// Measures what is not known yet, or everything anew; the best counts.
    fn measure(&mut self, workload: &Workload, backend: BackendName, kind: DeviceKind, anew: bool) {
        let cost = workload.cost();
        let keep = |known: &mut f64, what: Limit| {
            if anew || *known == 0.0 {
                *known = known.max(dispatch(backend, Measure { kind, what }).unwrap_or(0.0));
            }
        };
        let size = measured_size(cost.bytes);
        keep(self.bytes.entry((backend.to_string(), size)).or_insert(0.0), Limit::Bytes(size));
        let dtype = dtype_name(workload.dtype);
        if cost.operations > 0 {
            let limit = Limit::Operations(workload.dtype);
            keep(self.operations.entry((backend.to_string(), dtype)).or_insert(0.0), limit);
        }
    }

    fn known(&self, workload: &Workload, backend: BackendName) -> Option<Roof> {
        let size = measured_size(workload.cost().bytes);
        let bytes_per_second = *self.bytes.get(&(backend.to_string(), size))?;
        let operations = self.operations.get(&(backend.to_string(), dtype_name(workload.dtype)));
        Some(Roof { bytes_per_second, operations_per_second: operations.copied().unwrap_or(0.0) })
    }
}

fn least_seconds<'r>(
    workload: &'r Workload,
    backend: BackendName,
    kind: DeviceKind,
    roofs: &'r RefCell<Roofs>,
) -> Box<dyn FnMut() -> Option<f64> + 'r> {
    let mut anew = false;
    Box::new(move || {
        roofs.borrow_mut().measure(workload, backend, kind, anew);
        anew = true;
        let (roof, cost) = (roofs.borrow().known(workload, backend)?, workload.cost());
        let moving = cost.bytes as f64 / roof.bytes_per_second;
        let computing = if cost.operations > 0 { cost.operations as f64 / roof.operations_per_second } else { 0.0 };
        Some(moving.max(computing)).filter(|seconds| seconds.is_finite())
    })
}

#[derive(Clone, Copy)]
enum Limit {
    Bytes(usize),
    Operations(DType),
}

struct Measure {
    kind: DeviceKind,
    what: Limit,
}

impl Job for Measure {
    type Output = f64;

    fn run<B: TrainBackend>(self, device: B::Device) -> f64 {
        of::<B::InnerBackend>(&device, &self)
    }
}

fn of<B: KernelBackend>(device: &B::Device, Measure { kind, what }: &Measure) -> f64 {
    match *what {
        Limit::Bytes(bytes) => {
            roof::read_bandwidth::<B>(device, *kind, bytes).max(roof::copy_bandwidth::<B>(device, *kind, bytes))
        }
        Limit::Operations(dtype) => roof::operations::<B>(device, *kind, dtype),
    }
}

#[cfg(test)]
mod tests;
