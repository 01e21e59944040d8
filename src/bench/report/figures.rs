//! Beyond speed: shares of the roof, parts of a call, memory and launches.

use std::collections::BTreeSet;

use super::super::record::{Record, Status};
use super::Shown;
use super::matrix::{Column, Sheet};
use super::table::{escaped, table, three};

/// Parts in the order in which they happen. Others come after them, by name.
const PARTS: [&str; 5] = ["forward", "backward", "optimizer", "first_token", "per_token"];

/// The measured roof of each device, and how much of it each of our backends reaches.
pub fn roof(shown: &Shown) -> String {
    let mut roofs = BTreeSet::new();
    for record in shown.records.iter().filter(|record| record.status == Status::Measured) {
        if let Some(roof) = &record.roof {
            let (bytes, operations) = (roof.bytes_per_second / 1e9, roof.operations_per_second / 1e9);
            let (device, kind) = (escaped(&record.device.name), record.device.kind.name());
            let figures = format!("{} GB/s and {} GFLOP/s", three(bytes), three(operations));
            let threads = if record.threads == 0 { String::new() } else { format!(", threads: {}", record.threads) };
            roofs.insert(format!("- {device} ({kind}): {figures}{threads}\n"));
        }
    }
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
    let roofs: String = roofs.into_iter().collect();
    format!(
        "### Share of the roof\n\nThe roof is what the device was measured to do at best in this run, copying from and to main memory and
multiplying large matrices:\n\n{roofs}\nA workload's share is the larger of both. What fits into a cache is not bound by main memory and
may show more than 100 %.\n\n{text}"
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
    let mut rows = Vec::new();
    for sheet in Sheet::all(shown) {
        for (label, row) in &sheet.rows {
            for column in &sheet.columns {
                let record = row.iter().find(|record| Column::of(record) == *column);
                // Of a single op the process itself is most of it.
                let whole_model = record.is_some_and(|record| super::super::record::model(&record.workload).is_some());
                let Some(record) = record.filter(|record| whole_model || record.launches_per_token.is_some()) else {
                    continue;
                };
                if record.peak_bytes.is_none() && record.launches_per_token.is_none() {
                    continue;
                }
                let unknown = || "not measured".to_owned();
                let peak = record.peak_bytes.map_or_else(unknown, |bytes| three(bytes as f64 / 1e6));
                let launches = record.launches_per_token.map_or_else(unknown, three);
                rows.push(vec![escaped(label), column.title(&sheet.columns), peak, launches]);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut header = ["workload", "implementation", "peak, MB", "launches per token"].map(str::to_owned).to_vec();
    if rows.iter().all(|row| row[3] == "not measured") {
        header.pop();
        rows.iter_mut().for_each(|row| row.truncate(3));
    }
    format!(
        "### Memory\n\nThe most the whole process had, the libraries it loaded included.\n\n{}",
        table(2, &header, &rows)
    )
}
