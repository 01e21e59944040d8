//! The matrix: a row for each workload, a column for each implementation and device.

use std::collections::BTreeMap;

use super::super::record::{Device, Kind, Record, Status, Unit, key};
use super::compare::is_fair;
use super::table::{escaped, listed, natural, table, three};
use super::{ORDER, Shown};

/// Workloads that share a table, with its title. What is in none is with the second.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Rows", &["copy", "softmax", "layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "gelu", "swiglu"]),
    (
        "Products and attention",
        &[
            "matmul",
            "lora_forward",
            "embedding",
            "rope",
            "attention",
            "decode_attention",
            "mlp",
            "layer",
            "head_loss",
            "sampling",
        ],
    ),
    ("Decoding", &["prefill", "generate", "next_token", "sampling"]),
    ("A LoRA step", &["lora_step"]),
    ("Embedding texts", &["embed"]),
    ("Memory, launches, perplexity", &["memory", "launches", "perplexity"]),
];
/// Those of which time says something: all but the last.
const TIMED: usize = GROUPS.len() - 1;

/// The place of a workload's name among the groups: which group, and where in it.
fn place(kind: &str) -> (usize, usize) {
    let within = |names: &[&str]| names.iter().position(|name| *name == kind);
    let found = GROUPS.iter().enumerate().find_map(|(group, (_, names))| Some((group, within(names)?)));
    found.unwrap_or((1, usize::MAX))
}

/// A column: an implementation on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column<'a> {
    order: usize,
    pub implementation: &'a str,
    pub device: &'a Device,
}

impl<'a> Column<'a> {
    pub fn of(record: &'a Record) -> Self {
        let implementation = record.implementation.as_str();
        let known = ORDER.iter().position(|name| *name == implementation);
        // Those that nobody foresaw come last, ours before peers.
        let order = known.unwrap_or(ORDER.len() + usize::from(record.peer));
        Self { order, implementation, device: &record.device }
    }

    /// The implementation, and what it ran on unless that is the processor.
    pub fn title(&self, all: &[Self]) -> String {
        let same = |other: &&Self| other.implementation == self.implementation && other.device.kind == self.device.kind;
        match (self.device.kind, all.iter().filter(same).count()) {
            (Kind::Cpu, 0 | 1) => format!("`{}`", self.implementation),
            (kind, 0 | 1) => format!("`{}` ({})", self.implementation, kind.name()),
            (kind, _) => format!("`{}` ({}, {})", self.implementation, kind.name(), escaped(&self.device.name)),
        }
    }
}

/// The records of one group on one machine.
pub struct Sheet<'a> {
    pub title: &'static str,
    /// By workload, in the order of rows: its label and its records.
    pub rows: Vec<(String, Vec<&'a Record>)>,
    /// Of what has figures.
    pub columns: Vec<Column<'a>>,
}

impl<'a> Sheet<'a> {
    /// Each group of which there is a record and time says something.
    pub fn all(shown: &Shown<'a>) -> Vec<Self> {
        Self::of(shown, &GROUPS[..TIMED])
    }

    /// Every group of which there is a record.
    pub fn with_memory(shown: &Shown<'a>) -> Vec<Self> {
        Self::of(shown, &GROUPS)
    }

    fn of(shown: &Shown<'a>, groups: &[(&'static str, &[&str])]) -> Vec<Self> {
        let sheets = groups.iter().enumerate().map(|(group, (title, _))| {
            let mut rows = BTreeMap::<_, (String, Vec<&Record>)>::new();
            let mut columns = Vec::new();
            // What is composed of Burn's own ops is shown beside a copy.
            let composed = |record: &Record| record.workload.contains_key("reference");
            for &record in shown.records.iter().filter(|it| place(it.kind()).0 == group && !composed(it)) {
                let label = record.label();
                let sorted = (place(record.kind()).1, natural(&label), key(&record.workload));
                rows.entry(sorted).or_insert_with(|| (label, Vec::new())).1.push(record);
                if record.status == Status::Measured {
                    columns.push(Column::of(record));
                }
            }
            columns.sort();
            columns.dedup();
            Self { title, rows: rows.into_values().collect(), columns }
        });
        sheets.filter(|sheet| !sheet.rows.is_empty()).collect()
    }
}

/// What a row has for a column. Who did not run may have named another device, or none.
pub fn find<'a>(row: &[&'a Record], column: &Column) -> Option<&'a Record> {
    let of = |record: &&&Record| record.implementation == column.implementation;
    let on = |record: &&&Record| record.device == *column.device;
    let exact = row.iter().find(|record| of(record) && on(record));
    exact.or_else(|| row.iter().find(|record| of(record) && record.status != Status::Measured)).copied()
}

/// The cell of what no record is of.
pub const NO_RECORD: &str = "–";

/// Why a record has no figures.
fn why(record: &Record) -> String {
    let reason = record.reason.as_deref().unwrap_or("no reason");
    // The row says of what.
    let has_none = reason.strip_prefix(record.kind()) == Some(" has no counterpart here");
    let reason = if has_none { "no counterpart here" } else { reason };
    format!("{}: {}", record.status.name(), escaped(reason))
}

/// Reasons, each with its number.
#[derive(Default)]
pub struct Reasons(Vec<String>);

impl Reasons {
    /// The cell of a record without figures, or of none at all.
    pub fn cell(&mut self, record: Option<&Record>) -> String {
        let Some(record) = record else { return NO_RECORD.to_owned() };
        let text = why(record);
        let at = self.0.iter().position(|known| *known == text).unwrap_or_else(|| {
            self.0.push(text);
            self.0.len() - 1
        });
        format!("{} ({})", record.status.name(), at + 1)
    }

    /// The list that the numbers point to.
    pub fn list(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let lines = self.0.iter().enumerate().map(|(at, text)| format!("({}) {text}", at + 1));
        lines.collect::<Vec<_>>().join("  \n") + "\n\n"
    }
}

/// The tables of one machine.
pub fn tables(shown: &Shown) -> String {
    Sheet::all(shown)
        .iter()
        .map(|sheet| format!("### {}\n\n{}{}", sheet.title, figures(sheet), absent(sheet)))
        .collect()
}

fn figures(sheet: &Sheet) -> String {
    let mut reasons = Reasons::default();
    let mut rows = Vec::new();
    for (label, row) in &sheet.rows {
        let unit = row.iter().find_map(|record| Some(record.rate.as_ref()?.unit));
        let Some(unit) = unit else {
            // Nobody did it; `absent` has those whose column is missing.
            let cells = sheet.columns.iter().map(|column| reasons.cell(find(row, column)));
            rows.push([escaped(label), "–".to_owned()].into_iter().chain(cells).collect());
            continue;
        };
        let best = best(row, unit);
        let cells = sheet.columns.iter().map(|column| match find(row, column) {
            Some(record) if record.status == Status::Measured => figure(record, unit, best),
            other => reasons.cell(other),
        });
        rows.push([escaped(label), unit.name().to_owned()].into_iter().chain(cells).collect());
    }
    if sheet.columns.is_empty() {
        return String::new();
    }
    let titles = sheet.columns.iter().map(|column| column.title(&sheet.columns));
    let header: Vec<String> = ["workload".to_owned(), "unit".to_owned()].into_iter().chain(titles).collect();
    table(2, &header, &rows) + &reasons.list()
}

/// The best rate of a row, where there is more than one and nobody was held back.
fn best(row: &[&Record], unit: Unit) -> Option<f64> {
    if !is_fair(row) {
        return None;
    }
    let rates = row.iter().filter_map(|record| record.rate.as_ref()).filter(|rate| rate.unit == unit);
    let rates: Vec<f64> = rates.map(|rate| rate.value).collect();
    let better = if unit == Unit::Milliseconds { f64::min } else { f64::max };
    if rates.len() < 2 { None } else { rates.into_iter().reduce(better) }
}

fn figure(record: &Record, unit: Unit, best: Option<f64>) -> String {
    let Some(rate) = &record.rate else { return "–".to_owned() };
    let mut text = three(rate.value);
    if rate.unit != unit {
        text += &format!(" {}", rate.unit.name());
    }
    if let (Some(median), Some(low), Some(high)) = (record.median, record.low, record.high)
        && high - low > 0.2 * median
    {
        text.insert_str(0, "≈ ");
    }
    if record.was_held_back() {
        text += " †";
    }
    if best == Some(rate.value) && rate.unit == unit { format!("**{text}**") } else { text }
}

/// Those of whom the whole group has no figure: they get a line instead of a column, which those share who have the same reasons.
fn absent(sheet: &Sheet) -> String {
    let mut whys = BTreeMap::<Column, Vec<String>>::new();
    for &record in sheet.rows.iter().flat_map(|(_, row)| row) {
        if sheet.columns.iter().any(|column| column.implementation == record.implementation) {
            continue;
        }
        let (whys, why) = (whys.entry(Column::of(record)).or_default(), why(record));
        if !whys.contains(&why) {
            whys.push(why);
        }
    }
    let mut lines: Vec<(Vec<String>, Vec<String>)> = Vec::new();
    for (column, whys) in whys {
        let name = format!("`{}`", column.implementation);
        match lines.iter_mut().find(|(_, known)| *known == whys) {
            Some((names, _)) => names.push(name),
            None => lines.push((vec![name], whys)),
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let lines = lines.iter().map(|(names, whys)| format!("- {}: {}\n", listed(names), listed(whys)));
    format!("Without any figure here:\n\n{}\n", lines.collect::<String>())
}
