//! What the records say, as documents: the text of `benches/README.md` and its charts. The same records give the same bytes, on any day
//! and any machine. Of each machine and workload the newest run is shown; older ones stay in their files.

mod causes;
mod chart;
mod compare;
mod figures;
mod matrix;
mod summary;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::record::{self, Kind, Record, RecordError, Status};
pub use causes::{Cause, Causes};
use table::listed;

/// Our backends and the peers, in the order of columns. Others come after them, by name.
const ORDER: [&str; 15] = [
    "flex",
    "candle",
    "wgpu",
    "vulkan",
    "metal",
    "cuda",
    "candle-metal",
    "candle-cuda",
    "pytorch",
    "peft",
    "mlx",
    "candle-peer",
    "llama.cpp",
    "onnxruntime",
    "sentence-transformers",
];
/// How many of them are ours.
const OURS: usize = 8;

/// The documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `benches/README.md`, GitHub-flavoured markdown.
    pub text: String,
    /// Its first table, which `README.md` has too, between the lines [`SUMMARY`].
    pub summary: String,
    /// SVG texts by the names of their files, which are kept in `benches/charts`.
    pub charts: BTreeMap<&'static str, String>,
}

/// Why documents could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Of the records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// `benches/causes.toml` is not what it should be.
    #[error("{}: {problem}", path.display())]
    Causes {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The lines of `README.md` between which the summary stands.
pub const SUMMARY: [&str; 2] = ["<!-- Made by `firebrick bench report`. -->\n\n", "<!-- End of what it made. -->\n"];

/// Everything that is shown of one machine.
struct Shown<'a> {
    /// Its name, and its processor where another one goes by the same name.
    machine: String,
    processor: Option<&'a str>,
    records: Vec<&'a Record>,
}

impl<'a> Shown<'a> {
    /// All machines.
    fn all(records: &'a [Record]) -> Vec<Self> {
        let newest = record::newest(records);
        let names: Vec<&str> = newest.keys().map(|(name, _)| *name).collect();
        let shown = newest.into_iter().map(|((name, processor), records)| {
            let processor = Some(processor).filter(|_| names.iter().filter(|other| **other == name).count() > 1);
            let machine =
                processor.map_or(name.to_owned(), |processor| format!("{name}, {}", table::escaped(processor)));
            Self { machine, processor, records }
        });
        shown.collect()
    }
}

/// The documents of these records.
pub fn render(records: &[Record], causes: &Causes) -> Report {
    let shown = Shown::all(records);
    let summary = summary::of(&shown);
    let mut text = OPENING.to_owned();
    if shown.is_empty() {
        text += "**Nothing has been measured yet**: there is no record of this matrix in [records](records).\n\n";
    } else {
        text += HOW_TO_READ;
        if !summary.is_empty() {
            text += &format!("## In short\n\n{ABOUT_SUMMARY}{summary}");
        }
        text += CHARTS;
    }
    for shown in &shown {
        text += &format!("## {}\n\n", shown.machine);
        text += &origin(shown);
        text += &matrix::tables(shown);
        text += &compare::tables(shown);
        text += &compare::slower(shown, causes);
        text += &figures::copies(shown);
        text += &figures::roof(shown);
        text += &figures::parts(shown);
        text += &figures::sampling(shown);
        text += &figures::memory(shown);
    }
    text += &not_measured(&shown);
    let charts = BTreeMap::from([("peers.svg", chart::peers(&shown)), ("roof.svg", chart::roof(&shown))]);
    Report { text, summary, charts }
}

/// Renders the repository at `root` and writes what changed: `benches/README.md`, `benches/charts`, and the summary in `README.md`. Returns the
/// files written.
///
/// # Errors
/// If a record or `benches/causes.toml` cannot be read or is wrong, or a document cannot be written.
pub fn write(root: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let outdated = outdated(root)?;
    for (path, text) in &outdated {
        let io = |source| ReportError::Io { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        std::fs::write(path, text).map_err(|source| ReportError::Io { path: path.clone(), source })?;
    }
    Ok(outdated.into_keys().collect())
}

/// The documents of the repository at `root` that are not what its records say, with what they should be.
///
/// # Errors
/// If a record or `benches/causes.toml` cannot be read or is wrong.
pub fn outdated(root: &Path) -> Result<BTreeMap<PathBuf, String>, ReportError> {
    let benches = root.join("benches");
    let records = record::read_folder(&benches.join("records"))?;
    let report = render(&records, &Causes::read(&benches.join("causes.toml"))?);
    let charts = report.charts.into_iter().map(|(name, svg)| (benches.join("charts").join(name), svg));
    let readme = root.join("README.md");
    let with_summary = std::fs::read_to_string(&readme).ok().and_then(|text| with_summary(&text, &report.summary));
    let documents =
        charts.chain([(benches.join("README.md"), report.text)]).chain(with_summary.map(|text| (readme, text)));
    // What cannot be read is written anew, which says why if it cannot.
    Ok(documents.filter(|(path, text)| std::fs::read_to_string(path).ok().as_ref() != Some(text)).collect())
}

/// A document with this summary between its lines; nothing if it has no such lines.
fn with_summary(document: &str, summary: &str) -> Option<String> {
    let (before, rest) = document.split_once(SUMMARY[0])?;
    let (_, after) = rest.split_once(SUMMARY[1])?;
    Some([before, SUMMARY[0], summary, SUMMARY[1], after].concat())
}

const OPENING: &str = "# What was measured

Made of [records](records) by `firebrick bench`, never edited: a test renders this page again and compares. Causes are kept in
[causes.toml](causes.toml).

";

const HOW_TO_READ: &str = "Every figure is a median over rounds, of three significant digits. Implementations took turns within a round,
and all results had been computed before the clock stopped. Answers were compared; one that differed is refused. **Bold** is the best of
a row, `–` stands where there is no record; `≈` precedes a figure whose quartiles lie further apart than a fifth of it. A ratio is the
peer's time over ours, round by round: above 1 we are faster; in parentheses its quartiles. A *software* device is a driver that imitates a
GPU on the processor: it shows that something runs, and nothing about any GPU, so it is compared with nobody. Peers have as many threads as
we, which wait for each other as their libraries have it. `†` marks a peer that we held back: until 2026-11-29 this benchmark told OpenMP's threads to
sleep at each barrier (`OMP_WAIT_POLICY=passive`), with which a token of llama.cpp takes up to twice as long. Such a figure is less than the peer can do; no
ratio is made of it, no row with it has a best, and what it belongs to has to be measured again.

";

const ABOUT_SUMMARY: &str = "How many times as fast as the fastest peer of the same run `flex` is; of several workloads the lowest and the highest;
*italic* where we are slower somewhere.

";

const CHARTS: &str = "![Times as fast as the fastest peer, by workload](charts/peers.svg)

![Share of the measured roof, by workload and backend](charts/roof.svg)

";

/// Where the figures of a machine come from.
fn origin(shown: &Shown) -> String {
    let Some(first) = shown.records.first() else { return String::new() };
    let all = |of: &dyn Fn(&Record) -> String| -> String {
        let distinct: BTreeSet<String> = shown.records.iter().map(|record| of(record)).collect();
        distinct.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
    };
    let commit = |record: &Record| match record.clean {
        true => record.commit.clone(),
        false => format!("{} with changes that were not committed", record.commit),
    };
    // A device nobody reached is in a reason, not here.
    let devices = |record: &Record| match record.status {
        Status::Measured => {
            let device = &record.device;
            format!("{} ({}, {})", table::escaped(&device.name), device.kind.name(), table::escaped(&device.driver))
        }
        _ => String::new(),
    };
    let threads = |record: &Record| if record.threads == 0 { String::new() } else { record.threads.to_string() };
    let mut versions = BTreeSet::new();
    for record in shown.records.iter().filter(|record| record.status == Status::Measured) {
        versions.extend(record.versions.iter().map(|(name, version)| format!("{name} {version}")));
    }
    let files = all(&|record| format!("[{}](records/{0})", record::name_of_file(record)));
    let runs = all(&|record| format!("`{}`", record.run));
    let mut text = format!(
        "{}, {} cores, {} GB of memory, {}. Runs: {runs}, of commits: {}. Records: {files}. Threads: {}.\n",
        table::escaped(&first.machine.cpu),
        first.machine.cores,
        table::three(first.machine.memory_bytes as f64 / 1e9),
        table::escaped(&first.machine.os),
        all(&commit),
        all(&threads),
    );
    text +=
        &format!("Devices: {}. Versions: {}.\n\n", all(&devices), versions.into_iter().collect::<Vec<_>>().join(", "));
    text
}

/// What nobody should conclude from this page.
fn not_measured(shown: &[Shown]) -> String {
    let measured = || shown.iter().flat_map(|shown| &shown.records).filter(|record| record.status == Status::Measured);
    let without = |names: &[&str]| -> Vec<String> {
        let missing = names.iter().filter(|name| measured().all(|record| record.implementation != **name));
        missing.map(|name| format!("`{name}`")).collect()
    };
    let mut text = "## What is not measured\n\n".to_owned();
    let kinds = [Kind::DiscreteGpu, Kind::IntegratedGpu, Kind::VirtualGpu];
    if measured().all(|record| !kinds.contains(&record.device.kind)) {
        text += "No GPU: not one figure on this page comes from one. ";
    }
    let backends = without(&ORDER[..OURS]);
    if !backends.is_empty() {
        text += &format!("Of our backends there is no figure for {}. ", listed(&backends));
    }
    let peers = without(&ORDER[OURS..]);
    if !peers.is_empty() {
        text += &format!("Of the peers there is none for {}. ", listed(&peers));
    }
    text += "Nothing here says how good an answer is, but for the perplexity of a small model, how long a model takes to download or load,
how much energy a figure costs, how several processes or several sequences at once fare, or what larger models and other machines than
those named would do.\n";
    text
}
