//! Beyond speed: shares of the roof, parts of a call, memory, launches, perplexity.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::record::{READ, Record, Status};
use super::Shown;
use super::matrix::{Column, Reasons, Sheet, find};
use super::table::{escaped, table, three};

/// Parts in the order in which they happen. Others come after them, by name.
const PARTS: [&str; 6] = ["forward", "backward", "optimizer", "first_token", "per_token", READ];

/// The measured roof of each device, and how much of it each of our backends reaches.
pub fn roof(shown: &Shown) -> String {
    let mut roofs = BTreeMap::<String, Vec<&Record>>::new();
    let told = |record: &&&Record| record.status == Status::Measured && record.roof.is_some() && !record.peer;
    for record in shown.records.iter().filter(told) {
        let threads = if record.threads == 0 { String::new() } else { format!(", {} threads", record.threads) };
        let device = format!("{} ({}{threads})", escaped(&record.device.name), record.device.kind.name());
        roofs.entry(device).or_default().push(record);
    }
    let line = |(device, records): (&String, &Vec<&Record>)| {
        let of = |record: &&&Record| record.roof.map_or(0.0, |roof| roof.bytes_per_second / 1e9);
        let most = records.iter().map(|record| of(&record)).fold(0.0, f64::max);
        // Several may move as much: the best of them, in whatever order they come.
        let largest = records.iter().map(|record| record.work.bytes).max().unwrap_or(0);
        let largest = records.iter().filter(|record| record.work.bytes == largest);
        let memory = largest.map(|record| of(&record)).fold(0.0, f64::max);
        let operations = records.iter().filter_map(|record| record.roof).map(|roof| roof.operations_per_second / 1e9);
        let (most, memory, operations) = (three(most), three(memory), three(operations.fold(0.0, f64::max)));
        format!(
            "- {device}: {operations} GFLOP/s; reads {memory} GB/s of what is in no cache, at most {most} GB/s of what is\n"
        )
    };
    let roofs: Vec<String> = roofs.iter().map(line).collect();
    let mut text = String::new();
    for sheet in Sheet::all(shown) {
        let ours: Vec<&Column> = sheet
            .columns
            .iter()
            .filter(|column| rows_of(&sheet, column).any(|(_, record)| record.share().is_some() && !record.peer))
            .collect();
        if ours.is_empty() {
            continue;
        }
        let mut rows = Vec::new();
        for (label, row) in &sheet.rows {
            let cells: Vec<String> = ours
                .iter()
                .map(|column| {
                    let record = row.iter().find(|record| Column::of(record) == **column);
                    let share = record.and_then(|record| record.share());
                    share.map_or("not measured".to_owned(), |share| format!("{} %", three(100.0 * share)))
                })
                .collect();
            rows.push([escaped(label)].into_iter().chain(cells).collect());
        }
        let titles = ours.iter().map(|column| column.title(&sheet.columns));
        let header: Vec<String> = [sheet.title.to_owned()].into_iter().chain(titles).collect();
        text += &table(1, &header, &rows);
    }
    if roofs.is_empty() && text.is_empty() {
        return String::new();
    }
    let roofs = roofs.concat();
    format!(
        "### Share of the roof\n\nThe roof is what each device was measured to do at best in this run. A workload is held against reading as
many bytes over and over, out of whichever cache holds them, and against multiplying and adding in registers, or on a GPU the best product
of large matrices; its share is the larger of both. What would be above 100 % is refused. A generated text is held against its steps: how much
of the time of one reading the weights and the cache out of memory takes, in turns with it.\n\n{roofs}\n{text}"
    )
}

/// Ops on rows beside a copy of a tensor of the same size, fused and composed of Burn's own ops: shares of the bytes it moves in a second.
pub fn copies(shown: &Shown) -> String {
    let (mut rows, mut columns) = (BTreeMap::<(u64, u64, String), BTreeMap<String, String>>::new(), BTreeSet::new());
    let mut reasons = Reasons::default();
    for record in shown.records.iter().filter(|record| !record.peer && record.kind() != "copy") {
        let size = |name: &str| record.workload.get(name).and_then(Value::as_u64);
        let (Some(height), Some(width)) = (size("rows"), size("width")) else { continue };
        let cell = match (record.copy_seconds, record.median) {
            (Some(copy), Some(median)) => {
                // A copy reads its tensor and writes it.
                let (copied, moved) = (2 * height * width * size_of::<f32>() as u64, record.work.bytes);
                format!("{} %", three(100.0 * (moved as f64 / median) / (copied as f64 / copy)))
            }
            (None, Some(_)) => "no copy".to_owned(),
            (_, None) => reasons.cell(Some(record)),
        };
        let composed = record.workload.get("reference").is_some_and(|value| value == true);
        let title = Column::of(record).title(&[]) + if composed { ", composed" } else { "" };
        columns.insert(title.clone());
        rows.entry((height * width, height, record.kind().to_owned())).or_default().insert(title, cell);
    }
    rows.retain(|_, cells| cells.values().any(|cell| cell.ends_with('%')));
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<String> = ["op".to_owned()].into_iter().chain(columns.iter().cloned()).collect();
    let cells = |((elements, height, name), shares): (&(u64, u64, String), &BTreeMap<String, String>)| {
        let share = |column: &String| shares.get(column).cloned().unwrap_or_else(|| "not measured".into());
        let label = format!("{name} [{height}, {}]", elements / height);
        [label].into_iter().chain(columns.iter().map(share)).collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let text = table(1, &header, &rows);
    format!("### Beside a copy\n\nBytes read and written in a second, as a share of a copy of a tensor of that size, taken in turns with it; *composed* is the op made of
Burn's own ops. What is too large for the caches flex writes past them, a copy through them: so an op can be above it.\n\n{text}{}", reasons.list())
}

/// What the choice of a token costs beside the model that it is chosen for.
pub fn sampling(shown: &Shown) -> String {
    let measured = |record: &&&Record| record.status == Status::Measured && !record.peer;
    let Some(choice) = shown.records.iter().filter(measured).find(|record| record.kind() == "sampling") else {
        return String::new();
    };
    let Some(choosing) = choice.median else { return String::new() };
    let mut shares = Vec::new();
    // A decoded token: a forward pass of one position, with the cache.
    let generates = |record: &&&Record| record.kind() == "generate" && record.implementation == choice.implementation;
    for record in shown.records.iter().filter(measured).filter(generates) {
        if let Some(token) = record.parts.get("per_token") {
            let share = format!("{} % of a token of {}", three(100.0 * choosing / token), escaped(&record.label()));
            shares.push(format!("{share} ({} ms)", three(1e3 * token)));
        }
    }
    if shares.is_empty() {
        return String::new();
    }
    shares.sort();
    format!("Choosing a token takes {} ms: {}.\n\n", three(1e3 * choosing), super::table::listed(&shares))
}

fn rows_of<'a>(sheet: &'a Sheet<'a>, column: &'a Column<'a>) -> impl Iterator<Item = (&'a str, &'a Record)> {
    let records = sheet.rows.iter().flat_map(|(label, row)| row.iter().map(move |record| (label.as_str(), *record)));
    records.filter(move |(_, record)| Column::of(record) == *column && record.status == Status::Measured)
}

/// What a call consists of, in milliseconds: for a LoRA step forward, backward and the optimizer.
pub fn parts(shown: &Shown) -> String {
    let mut text = String::new();
    for sheet in Sheet::all(shown) {
        let names: BTreeSet<&str> = sheet
            .rows
            .iter()
            .flat_map(|(_, row)| row)
            .flat_map(|record| record.parts.keys())
            .map(String::as_str)
            .collect();
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_by_key(|name| PARTS.iter().position(|part| part == name).unwrap_or(PARTS.len()));
        if names.is_empty() {
            continue;
        }
        let mut rows = Vec::new();
        for (label, row) in &sheet.rows {
            for column in &sheet.columns {
                let record = row.iter().find(|record| Column::of(record) == *column && !record.parts.is_empty());
                let Some(record) = record else { continue };
                let milliseconds =
                    |seconds: Option<f64>| seconds.map_or("not measured".to_owned(), |seconds| three(1e3 * seconds));
                let parts = names.iter().map(|name| milliseconds(record.parts.get(*name).copied()));
                let cells = parts.chain([milliseconds(record.median)]);
                rows.push([escaped(label), column.title(&sheet.columns)].into_iter().chain(cells).collect());
            }
        }
        let titles = names.iter().map(|name| format!("{}, ms", name.replace('_', " ")));
        let header: Vec<String> = ["workload".to_owned(), "implementation".to_owned()]
            .into_iter()
            .chain(titles)
            .chain(["whole call, ms".to_owned()])
            .collect();
        text += &format!("#### {}\n\n{}", sheet.title, table(2, &header, &rows));
    }
    if text.is_empty() { text } else { format!("### Parts of a call\n\n{text}") }
}

/// The most memory a process had, the launches of a token, and what packing costs in perplexity.
pub fn memory(shown: &Shown) -> String {
    let sheets = Sheet::with_memory(shown);
    let told = |record: &Record| {
        record.peak_bytes.is_some() || record.launches_per_token.is_some() || record.perplexity.is_some()
    };
    let all = || sheets.iter().flat_map(|sheet| &sheet.rows).flat_map(|(_, row)| row);
    let mut columns: Vec<Column> = all().filter(|record| told(record)).map(|record| Column::of(record)).collect();
    columns.sort();
    columns.dedup();
    let (mut rows, mut reasons) = (Vec::new(), Reasons::default());
    for (label, row) in sheets.iter().flat_map(|sheet| &sheet.rows) {
        type Figure = fn(&Record) -> Option<f64>;
        let figures: [(&str, Figure); 3] = [
            ("peak, MB", |record| record.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
            ("launches a token", |record| record.launches_per_token),
            ("perplexity", |record| record.perplexity),
        ];
        for (unit, figure) in figures {
            if !row.iter().any(|record| figure(record).is_some()) {
                continue;
            }
            let cells = columns.iter().map(|column| match find(row, column) {
                Some(record) if record.status == Status::Measured => {
                    figure(record).map_or_else(|| "not measured".to_owned(), three)
                }
                other => reasons.cell(other),
            });
            rows.push([escaped(label), unit.to_owned()].into_iter().chain(cells).collect());
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let titles = columns.iter().map(|column| column.title(&columns));
    let header: Vec<String> = ["workload".to_owned(), "unit".to_owned()].into_iter().chain(titles).collect();
    let explained =
        "Ours is of a process that did this and nothing else. A peer's is the most that its process had by then, the
libraries it loaded included.";
    format!("### Memory, launches, perplexity\n\n{explained}\n\n{}{}", table(2, &header, &rows), reasons.list())
}
