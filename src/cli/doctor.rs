//! `doctor`: which backends are built in, which devices they find, and whether each can be trusted.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use firebrick::backend::device::{DeviceInfo, DeviceKind};
use firebrick::backend::process::memory_bytes;
use firebrick::backend::select::{BackendName, built, devices, has_autotune, known};
use firebrick::gate::{self, Finding, Outcome, Report};
use serde_json::json;

use super::options::Everywhere;
use super::output;

/// Examine every backend and device: ops, cached decoding, adapter gradients, dtypes, determinism
///
/// Each is compared with the same computed on the CPU in f64. The verdict is remembered, and a run on a device with a failed check says
/// so. Exit status 1 if something is wrong.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Say what is there and what is remembered of it, and examine nothing
    #[arg(long)]
    list: bool,
}

impl Doctor {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        let chosen = match everywhere.backend.as_str() {
            "auto" => built(),
            name => vec![BackendName::named(name)?],
        };
        if !everywhere.json {
            line(&backends())?;
        }
        let (mut reports, mut present, mut sound) = (Vec::new(), Vec::new(), true);
        for backend in &chosen {
            let found = devices(*backend);
            if found.is_empty() && !everywhere.json {
                line(&format!("\n{backend}: no device found"))?;
            }
            for device in &found {
                let DeviceInfo { backend, index, name, driver, kind, .. } = device;
                let (backend, kind) = (backend.to_string(), kind.to_string());
                present
                    .push(json!({"backend": backend, "index": index, "device": name, "driver": driver, "kind": kind,
                    "memory_bytes": memory_of(device)}));
                let report = self.examine(device, &everywhere)?;
                sound &= report.as_ref().is_none_or(Report::passed);
                reports.extend(report);
            }
        }
        if everywhere.json {
            let backends: Vec<_> =
                known().map(|(name, built)| json!({"name": name.to_string(), "built": built})).collect();
            output::json_line(
                &json!({"backends": backends, "autotune": has_autotune(), "present": present, "devices": reports, "passed": sound}),
            )?;
        } else if !self.list {
            line(&verdict(&reports))?;
        }
        Ok(ExitCode::from(u8::from(!sound)))
    }

    fn examine(&self, device: &DeviceInfo, everywhere: &Everywhere) -> Result<Option<Report>> {
        if !everywhere.json {
            let DeviceInfo { driver, kind, .. } = device;
            let memory =
                memory_of(device).map_or(String::new(), |bytes| format!(", {:.1} GB of memory", bytes as f64 / 1e9));
            line(&format!("\n{device}, {kind}, {driver}{memory}"))?;
        }
        if self.list {
            let report = gate::remembered(device);
            if !everywhere.json {
                line(&match &report {
                    None => "  never examined".to_owned(),
                    Some(report) if report.passed() => "  passed when it was last examined".to_owned(),
                    Some(report) => format!("  failed: {}", report.failed().collect::<Vec<_>>().join(", ")),
                })?;
            }
            return Ok(report);
        }
        let mut written = Ok(());
        let report = gate::examine_device(device, &mut |finding| {
            if !everywhere.json && written.is_ok() {
                written = line(&row(finding));
            }
        })?;
        written?;
        if let Err(problem) = gate::remember(device, &report) {
            everywhere.note(format_args!("the verdict is not remembered: {problem}"));
        }
        Ok(Some(report))
    }
}

/// The machine's memory, of a device that computes in it. Drivers of graphics cards do not tell theirs through the interfaces used here.
fn memory_of(device: &DeviceInfo) -> Option<u64> {
    memory_bytes().filter(|_| matches!(device.kind, DeviceKind::Cpu | DeviceKind::Software))
}

fn line(text: &str) -> Result<()> {
    output::text(&format!("{text}\n"))
}

/// What this binary has, and how to get the rest.
fn backends() -> String {
    let (built, absent): (Vec<_>, Vec<_>) = known().partition(|(_, built)| *built);
    let names =
        |rows: Vec<(BackendName, bool)>| rows.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" ");
    let autotune = if has_autotune() { "on" } else { "off" };
    format!("built in: {}\nnot built in, a feature each: {}\nautotune: {autotune}", names(built), names(absent))
}

fn row(finding: &Finding) -> String {
    let Finding { check, outcome, seconds, .. } = finding;
    match outcome {
        Outcome::Passed { error } => format!("  {check:<28} passed   error {error:<8.1e} {seconds:6.1} s"),
        Outcome::Failed { problem } => format!("  {check:<28} FAILED   {problem}"),
        Outcome::NotRun { reason } => format!("  {check:<28} not run  {reason}"),
        _ => format!("  {check}"),
    }
}

fn verdict(reports: &[Report]) -> String {
    let wrong: Vec<String> = reports
        .iter()
        .filter(|report| !report.passed())
        .map(|report| {
            format!("{} ({}): {}", report.backend, report.device, report.failed().collect::<Vec<_>>().join(", "))
        })
        .collect();
    match wrong.len() {
        0 => "\nnothing is wrong".to_owned(),
        _ => format!("\nnot to be trusted:\n  {}", wrong.join("\n  ")),
    }
}
