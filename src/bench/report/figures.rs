//! Beyond speed: shares of the roof, parts of a call, memory and launches.

use std::collections::{BTreeMap, BTreeSet};

use super::super::record::{Record, Status};
use super::Shown;
use super::matrix::{Column, Reasons, Sheet, find};
use super::table::{escaped, table, three};

/// Parts in the order in which they happen. Others come after them, by name.
const PARTS: [&str; 5] = ["forward", "backward", "optimizer", "first_token", "per_token"];

/// The measured roof of each device, and how much of it each of our backends reaches.
pub fn roof(shown: &Shown) -> String {
    // By backend and device: bytes a second by how much is moved, operations a second by dtype.
    let mut roofs = BTreeMap::<Column, (Vec<f64>, BTreeMap<&str, f64>)>::new();
    for record in shown.records.iter().filter(|record| record.status == Status::Measured && !record.peer) {
        if let Some(roof) = &record.roof {
            let (bytes, operations) = roofs.entry(Column::of(record)).or_default();
            bytes.push(roof.bytes_per_second / 1e9);
            let dtype = record.workload.get("dtype").and_then(|dtype| dtype.as_str()).unwrap_or("no dtype");
            if roof.operations_per_second > 0.0 {
                let best = operations.entry(dtype).or_insert(0.0);
                *best = best.max(roof.operations_per_second / 1e9);
            }
        }
    }
    let line = |(column, (bytes, operations)): (&Column, &(Vec<f64>, BTreeMap<&str, f64>))| {
        let low = three(bytes.iter().copied().fold(f64::INFINITY, f64::min));
        let high = three(bytes.iter().copied().fold(0.0, f64::max));
        let bytes = if low == high { low } else { format!("{low} to {high}") };
        let operations = operations.iter().map(|(dtype, best)| format!(", {} GFLOP/s in {dtype}", three(*best)));
        let (device, kind) = (escaped(&column.device.name), column.device.kind.name());
        format!("- `{}`, {device} ({kind}): {bytes} GB/s{}\n", column.implementation, operations.collect::<String>())
    };
    let roofs: String = roofs.iter().map(line).collect();
    let mut text = String::new();
    for sheet in Sheet::all(shown) {
        let ours: Vec<&Column> = sheet
            .columns
            .iter()
            .filter(|column| rows_of(&sheet, column).any(|(_, record)| record.of_roof.is_some() && !record.peer))
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
                    let share = record.and_then(|record| record.of_roof);
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
    format!(
        "### Share of the roof\n\nThe roof is what the device was measured to do at best in this run: bytes a second when it only reads or
copies as much, and operations a second in large matrix products of that dtype. A workload's share is the larger of both.\n\n{roofs}\n{text}"
    )
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

/// The most memory a process had, and the launches of a token.
pub fn memory(shown: &Shown) -> String {
    let sheets = Sheet::with_memory(shown);
    let told = |record: &Record| record.peak_bytes.is_some() || record.launches_per_token.is_some();
    let all = || sheets.iter().flat_map(|sheet| &sheet.rows).flat_map(|(_, row)| row);
    let mut columns: Vec<Column> = all().filter(|record| told(record)).map(|record| Column::of(record)).collect();
    columns.sort();
    columns.dedup();
    let (mut rows, mut reasons) = (Vec::new(), Reasons::default());
    for (label, row) in sheets.iter().flat_map(|sheet| &sheet.rows) {
        type Figure = fn(&Record) -> Option<f64>;
        let figures: [(&str, Figure); 2] = [
            ("peak, MB", |record| record.peak_bytes.map(|bytes| bytes as f64 / 1e6)),
            ("launches a token", |record| record.launches_per_token),
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
    let explained = "The most the whole process had, the libraries it loaded included.";
    format!("### Memory and launches\n\n{explained}\n\n{}{}", table(2, &header, &rows), reasons.list())
}
