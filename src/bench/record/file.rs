//! Files of records: read strictly, appended to whole lines at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Record, Status};

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line is no record, or one that contradicts itself.
    #[error("{}:{line}: {problem}; records are measured, not edited: take the line out or measure again", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl RecordError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// The records of a file, in its order.
///
/// # Errors
/// If the file cannot be read; if a line is not a record, has a key that records do not have, or contradicts itself. The error names the
/// file and the line.
pub fn read(path: &Path) -> Result<Vec<Record>, RecordError> {
    let text = std::fs::read_to_string(path).map_err(RecordError::io(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let record = |(at, line): (usize, &str)| {
        let wrong = |problem: String| RecordError::Line { path: path.to_owned(), line: at + 1, problem };
        let record: Record = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        record.problem().map_or(Ok(record), |problem| Err(wrong(problem)))
    };
    lines.map(record).collect()
}

/// The records of every `*-matrix-*.jsonl` in a folder, in the order of the files' names.
///
/// # Errors
/// As [`read`]; if the folder cannot be listed; if a file holds records of a machine that its name does not name.
pub fn read_folder(folder: &Path) -> Result<Vec<Record>, RecordError> {
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(RecordError::io(folder))? {
        let path = entry.map_err(RecordError::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains("-matrix-") && name.ends_with(".jsonl") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (at, record) in read(&path)?.into_iter().enumerate() {
            if name_of_file(&record) != name {
                let problem = format!("a record of this date and machine belongs to {}", name_of_file(&record));
                return Err(RecordError::Line { path, line: at + 1, problem });
            }
            records.push(record);
        }
    }
    Ok(records)
}

/// Where a record is kept, inside `benches/records`: `2026-11-21-matrix-linux-2-cores.jsonl`.
pub fn name_of_file(record: &Record) -> String {
    format!("{}-matrix-{}.jsonl", record.date, record.machine.name)
}

/// Adds records at the end of a file, which is created if it is not there, and so is its folder.
///
/// # Errors
/// If a record contradicts itself, in which case nothing is written, or the file cannot be written.
pub fn append(path: &Path, records: &[Record]) -> Result<(), RecordError> {
    let mut lines = String::new();
    for (at, record) in records.iter().enumerate() {
        let wrong = |problem| RecordError::Line { path: path.to_owned(), line: at + 1, problem };
        if let Some(problem) = record.problem() {
            return Err(wrong(format!("{} by {}: {problem}", record.label(), record.implementation)));
        }
        lines += &serde_json::to_string(record).map_err(|error| wrong(error.to_string()))?;
        lines.push('\n');
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(RecordError::io(folder))?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(RecordError::io(path))?;
    file.write_all(lines.as_bytes()).map_err(RecordError::io(path))
}

/// Of each machine and workload the records of the newest run that has it, by the machine's name and processor: a part may be measured anew,
/// and what stands in one row was still taken in turns. Of one implementation that was recorded twice in it the later, and a record with
/// figures rather than one without.
pub fn newest(records: &[Record]) -> BTreeMap<(&str, &str), Vec<&Record>> {
    fn machine(record: &Record) -> (&str, &str) {
        (&record.machine.name, &record.machine.cpu)
    }
    fn place(record: &Record) -> ((&str, &str), String) {
        (machine(record), super::key(&record.workload))
    }
    let mut runs = BTreeMap::new();
    for record in records {
        let run = runs.entry(place(record)).or_insert(&record.run);
        *run = (*run).max(&record.run);
    }
    let mut machines = BTreeMap::<(&str, &str), Vec<&Record>>::new();
    for record in records.iter().filter(|record| runs[&place(record)] == &record.run) {
        let kept = machines.entry(machine(record)).or_default();
        let same = |other: &&Record| {
            other.implementation == record.implementation
                && other.device == record.device
                && super::key(&other.workload) == super::key(&record.workload)
        };
        match kept.iter().position(same) {
            Some(_) if record.status != Status::Measured => {}
            Some(at) => kept[at] = record,
            None => kept.push(record),
        }
    }
    machines
}
