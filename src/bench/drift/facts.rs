//! What files of records say, as numbers with names: of the matrix rates, times and ratios, of older files every number by its keys.

use std::path::Path;

use serde_json::Value;

use super::super::record::{self, Record, Unit};
use super::figure::Dimension;

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Of which workload.
    pub workload: String,
    /// Its name: `ratio.flex.pytorch`, `seconds`.
    pub name: String,
    /// In seconds, bytes, and so on.
    pub value: f64,
    /// Nothing where the name does not tell: a count.
    pub dimension: Option<Dimension>,
}

/// Those of several files.
#[derive(Debug, Default, Clone)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// Adds what a file says. Of a file of the matrix, which is read strictly, the newest run counts.
    ///
    /// # Errors
    /// If it cannot be read or a line is wrong; in one line.
    pub fn add(&mut self, path: &Path) -> Result<(), String> {
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains("-matrix-")) {
            let records = record::read(path).map_err(|error| error.to_string())?;
            for records in record::newest(&records).values() {
                self.matrix(records);
            }
            return Ok(());
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let value: Value =
                serde_json::from_str(line).map_err(|error| format!("{}:{}: {error}", path.display(), at + 1))?;
            let workload = value.get("workload").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.leaves(&workload, "", &value);
        }
        Ok(())
    }

    /// Adds what others say.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend(others.0.iter().cloned());
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Fact> {
        self.0.iter()
    }

    fn matrix(&mut self, records: &[&Record]) {
        for record in records.iter().filter(|record| !record.samples.is_empty()) {
            let (workload, by) = (record.label(), record.implementation.as_str());
            let mut add = |name: &str, value: Option<f64>, dimension| {
                let name = format!("{name}.{by}");
                self.0.extend(value.map(|value| Fact { workload: workload.clone(), name, value, dimension }));
            };
            for (name, seconds) in [
                ("median", record.median),
                ("low", record.low),
                ("high", record.high),
                ("cold_seconds", record.cold_seconds),
            ] {
                add(name, seconds, Some(Dimension::Seconds));
            }
            if let Some(rate) = &record.rate {
                let (dimension, factor) = match rate.unit {
                    Unit::GigabytesPerSecond => (Dimension::BytesPerSecond, 1e9),
                    Unit::GigaflopsPerSecond => (Dimension::OperationsPerSecond, 1e9),
                    Unit::TokensPerSecond => (Dimension::TokensPerSecond, 1.0),
                    Unit::TextsPerSecond => (Dimension::TextsPerSecond, 1.0),
                    Unit::Milliseconds => (Dimension::Seconds, 1e-3),
                };
                add("rate", Some(rate.value * factor), Some(dimension));
            }
            if let Some(roof) = &record.roof {
                add("roof.bytes", Some(roof.bytes_per_second), Some(Dimension::BytesPerSecond));
                add("roof.operations", Some(roof.operations_per_second), Some(Dimension::OperationsPerSecond));
            }
            add("of_roof", record.share(), Some(Dimension::Share));
            add("peak_bytes", record.peak_bytes.map(|bytes| bytes as f64), Some(Dimension::Bytes));
            add("launches_per_token", record.launches_per_token, None);
            add("perplexity", record.perplexity, None);
            for (part, seconds) in &record.parts {
                add(&format!("parts.{part}"), Some(*seconds), Some(Dimension::Seconds));
            }
            for peer in records.iter().filter(|peer| peer.peer && !record.peer) {
                let Some(ratio) = record::ratio(peer, record) else { continue };
                for (name, value) in [("ratio", ratio.median), ("ratio_low", ratio.low), ("ratio_high", ratio.high)] {
                    let name = format!("{name}.{by}.{}", peer.implementation);
                    let dimension = Some(Dimension::Ratio);
                    self.0.push(Fact { workload: workload.clone(), name, value, dimension });
                }
            }
        }
    }

    /// Every number below a value; those of a list share its name.
    fn leaves(&mut self, workload: &str, name: &str, value: &Value) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    self.leaves(workload, &name, value);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.leaves(workload, name, value)),
            Value::Number(number) => {
                let (dimension, factor) = named(name);
                let value = number.as_f64().unwrap_or(f64::NAN) * factor;
                self.0.push(Fact { workload: workload.to_owned(), name: name.to_owned(), value, dimension });
            }
            _ => {}
        }
    }
}

/// What numbers of this name count, and how much one is.
fn named(name: &str) -> (Option<Dimension>, f64) {
    let has = |words: &str| name.split('.').any(|key| key == words || key.ends_with(&format!("_{words}")));
    if has("seconds_over_ours") {
        (Some(Dimension::Ratio), 1.0)
    } else if has("gigabytes_per_second") {
        (Some(Dimension::BytesPerSecond), 1e9)
    } else if has("tokens_per_second") {
        (Some(Dimension::TokensPerSecond), 1.0)
    } else if has("texts_per_second") {
        (Some(Dimension::TextsPerSecond), 1.0)
    } else if has("seconds") {
        (Some(Dimension::Seconds), 1.0)
    } else if has("bytes") {
        (Some(Dimension::Bytes), 1.0)
    } else if name.contains("recall") || name.contains("mrr") {
        (Some(Dimension::Share), 1.0)
    } else {
        (None, 1.0)
    }
}
