//! `firebrick bench`: the cross-backend matrix, and `bench report`, which makes documents of its records.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use firebrick::backend::process::threads;
use firebrick::backend::select::{BackendName, built};
use firebrick::bench::peers::{self, Absent, Peer};
use firebrick::bench::probe::Probe;
use firebrick::bench::record::{self, Record, Status};
use firebrick::bench::report;
use firebrick::bench::run::{self, Base, Settings};
use firebrick::bench::subject::Models;
use firebrick::bench::workload::{self, Workload};
use firebrick::gate::cache_folder;
use serde_json::json;

use super::options::Everywhere;
use super::output;

/// Samples of each, and seconds of a sample: of a short run and of a full one.
const SHORT: (usize, f64) = (5, 0.02);
const FULL: (usize, f64) = (7, 0.05);

/// Time every workload on every backend that was built in
///
/// Whatever cannot be true is refused, with the reason: work that goes on after the clock, wrong answers, results that were kept, times
/// that do not grow with the work, speeds above what the device reaches at most.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    /// Only workloads whose name and sizes contain this text, such as `softmax`; may be given more than once
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Every workload; without it a choice that takes minutes
    #[arg(long)]
    full: bool,
    /// Peers beside them, in turns: all, or those whose names contain one of these texts. In a checkout; the first time installs them
    #[arg(long, value_name = "NAME", num_args = 0.., value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Samples of each [default: 5, with --full 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Append the records to a file of this folder, one for each machine and date
    #[arg(long, value_name = "FOLDER")]
    record: Option<PathBuf>,
    /// Name the workloads and measure nothing
    #[arg(long)]
    list: bool,
    /// Measure what only a process of its own can tell, in this one
    #[arg(long, hide = true)]
    probe: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Clone, Debug)]
enum Verb {
    /// Make the tables and charts of the records
    Report(Report),
}

/// Make the tables and charts of the records
#[derive(Args, Clone, Debug)]
struct Report {
    /// The checkout, whose benches/records are read and whose benches/README.md and charts are written
    #[arg(default_value = ".", value_name = "FOLDER")]
    root: PathBuf,
    /// Write nothing: name what differs, and exit with status 1 if anything does
    #[arg(long)]
    check: bool,
}

impl Bench {
    pub fn run(self, everywhere: Everywhere) -> Result<ExitCode> {
        if let Some(Verb::Report(report)) = self.verb {
            return report.run(&everywhere);
        }
        if let Some(name) = &self.probe {
            return probe(name, &everywhere);
        }
        let (workloads, probes) = (self.workloads(), self.probes());
        if workloads.is_empty() && probes.is_empty() {
            bail!("no workload contains {}; `firebrick bench --list --full` names them", self.only.join(" or "));
        }
        if self.list {
            let described = workloads.iter().map(Workload::describe).chain(probes.iter().map(|probe| probe.describe()));
            for workload in described {
                match everywhere.json {
                    true => output::json_line(&workload)?,
                    false => output::text(&format!("{}\n", record::label(&workload)))?,
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let backends = match everywhere.backend.as_str() {
            "auto" => built(),
            name => vec![BackendName::named(name)?],
        };
        let (models, mut peers, absent) = self.peers(&everywhere)?;
        let (rounds, sample_seconds) = if self.full { FULL } else { SHORT };
        let rounds = self.rounds.map_or(rounds, usize::from);
        let settings = Settings { backends, workloads, rounds, sample_seconds, models };
        let mut last = String::new();
        let mut keep = |record: Record| -> Result<()> {
            if let Some(folder) = &self.record {
                let file = folder.join(record::name_of_file(&record));
                record::append(&file, std::slice::from_ref(&record))?;
            }
            if everywhere.json {
                return output::json_line(&record);
            }
            let label = record.label();
            let shown = if label == last { "" } else { label.as_str() };
            output::text(&format!("{shown:<44} {:<21} {}\n", record.implementation, figures(&record)))?;
            last = label;
            Ok(())
        };
        let base = Base::now();
        run::run(&base, &settings, &mut peers, &absent, &mut keep)?;
        drop(peers);
        run::probes(&base, &settings, &probes, &mut keep)?;
        Ok(ExitCode::SUCCESS)
    }

    fn workloads(&self) -> Vec<Workload> {
        let mut all = workload::all(self.full || !self.only.is_empty());
        let wanted = |workload: &Workload| {
            let label = record::label(&workload.describe());
            self.only.is_empty() || self.only.iter().any(|part| label.contains(part.as_str()))
        };
        all.retain(wanted);
        all
    }

    /// What is measured in processes of their own: memory, launches, perplexity.
    fn probes(&self) -> Vec<Probe> {
        let wanted = |probe: &Probe| {
            let label = record::label(&probe.describe());
            self.only.is_empty() && self.full || self.only.iter().any(|part| label.contains(part.as_str()))
        };
        Probe::ALL.into_iter().filter(wanted).collect()
    }

    fn peers(&self, everywhere: &Everywhere) -> Result<(Models, Vec<Peer>, Vec<Absent>)> {
        let Some(wanted) = &self.peers else { return Ok(Default::default()) };
        let cache =
            cache_folder().context("no cache folder, since none of FIREBRICK_CACHE, XDG_CACHE_HOME and HOME is set")?;
        everywhere.note(
            "setting up the peers: the first time this takes a quarter of an hour, with llama.cpp half an hour more",
        );
        let setup = peers::set_up(Path::new("benches/peers"), &cache, wanted).map_err(|problem| anyhow!(problem))?;
        let models = Models { qwen: Some(setup.models.join("qwen")), e5: Some(setup.models.join("e5")) };
        let (peers, absent) = setup.start(threads(), &cache.join("peers"));
        for Absent { name, reason } in &absent {
            everywhere.note(format_args!("{name} is not measured: {reason}"));
        }
        Ok((models, peers, absent))
    }
}

/// What a line says of a record.
fn figures(record: &Record) -> String {
    if let Some(bytes) = record.peak_bytes.filter(|_| record.kind() == "memory") {
        return format!("{:>10.1} MB", bytes as f64 / 1e6);
    }
    if let Some(launches) = record.launches_per_token {
        return format!("{launches:>10.0} launches");
    }
    if let Some(perplexity) = record.perplexity {
        return format!("{perplexity:>10.4} perplexity");
    }
    match (record.status, &record.rate, &record.reason) {
        (Status::Measured, Some(rate), _) => {
            let spread = match (record.low, record.median, record.high) {
                (Some(low), Some(median), Some(high)) if median > 0.0 => (high - low) / median * 50.0,
                _ => 0.0,
            };
            let roof = record.of_roof.map_or(String::new(), |share| format!(", {:.0} % of the roof", share * 100.0));
            format!("{:>10.4} {:<8} ± {spread:.0} %{roof}", rate.value, rate.unit.name())
        }
        (status, _, reason) => format!("{}: {}", status.name(), reason.as_deref().unwrap_or_default()),
    }
}

fn probe(name: &str, everywhere: &Everywhere) -> Result<ExitCode> {
    let probe = Probe::named(name).with_context(|| format!("no probe {name}"))?;
    let backend = BackendName::named(&everywhere.backend)?;
    let found = probe.measure(backend, &Models::default()).map_err(|problem| anyhow!(problem))?;
    output::json_line(&found)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn run(self, everywhere: &Everywhere) -> Result<ExitCode> {
        let files: Vec<PathBuf> = match self.check {
            true => report::outdated(&self.root)?.into_keys().collect(),
            false => report::write(&self.root)?,
        };
        if everywhere.json {
            output::json_line(&json!({"outdated": self.check && !files.is_empty(), "files": files}))?;
        } else {
            for file in &files {
                let what = if self.check { "is not what the records say" } else { "written" };
                output::text(&format!("{}: {what}\n", file.display()))?;
            }
        }
        Ok(ExitCode::from(u8::from(self.check && !files.is_empty())))
    }
}
