//! The page in one table, for who chooses: `flex` beside the fastest peer of each workload, machine by machine.

use std::collections::BTreeSet;

use super::super::record::matches;
use super::Shown;
use super::compare::{comparisons, is_fair};
use super::matrix::Sheet;
use super::table::{escaped, table, three};

/// What a line is called, and the labels of its workloads.
const LINES: [(&str, &[&str]); 13] = [
    ("generate 100 tokens after 128, f32", &["generate * f32"]),
    ("generate, f16", &["generate * f16"]),
    ("generate, Q8_0", &["generate * q8_0"]),
    ("generate, Q4_0", &["generate * q4_0"]),
    ("prompt of 512 tokens, f32", &["prefill * f32"]),
    ("prompt, Q8_0", &["prefill * q8_0"]),
    ("prompt, Q4_0", &["prefill * q4_0"]),
    ("LoRA step of 512 tokens, f32", &["lora_step * all counted f32"]),
    ("LoRA step, half of the tokens masked", &["lora_step * half counted f32"]),
    ("embed 1 to 100 texts of 32 tokens, f32", &["embed * of 32 tokens f32"]),
    ("embed 1 to 100 texts of 4 to 256 tokens, f32", &["embed * of 4 to 256 tokens f32"]),
    ("embed 1 to 100 texts of 32 tokens, int8", &["embed * of 32 tokens q8_0"]),
    (
        "softmax, layer norm, RMS norm of `[64, 1024]` and `[1024, 1024]`, f32",
        &["softmax [*, 1024] f32", "layer_norm [*, 1024] f32", "rms_norm [*, 1024] f32"],
    ),
];

/// Whose figures these are.
const OURS: &str = "flex";

/// The table, with a column for each machine of which there is a comparison; empty if there is none.
pub fn of(shown: &[Shown]) -> String {
    let columns: Vec<(String, Vec<String>)> = shown
        .iter()
        .map(|shown| (title(shown), cells(shown)))
        .filter(|(_, cells)| cells.iter().any(|cell| cell != NONE))
        .collect();
    if columns.is_empty() {
        return String::new();
    }
    let header: Vec<String> = ["times as fast as the fastest peer".to_owned()]
        .into_iter()
        .chain(columns.iter().map(|(title, _)| title.clone()))
        .collect();
    let rows = LINES.iter().enumerate().map(|(at, (name, _))| {
        [(*name).to_owned()].into_iter().chain(columns.iter().map(|(_, cells)| cells[at].clone())).collect::<Vec<_>>()
    });
    // What was compared nowhere has no line.
    let rows: Vec<Vec<String>> = rows.filter(|row| row[1..].iter().any(|cell| cell != NONE)).collect();
    table(1, &header, &rows)
}

const NONE: &str = "–";

/// The widest instructions that ours used, where that is not enough by whom, and how many threads.
fn title(shown: &Shown) -> String {
    let Some(record) = shown.records.iter().find(|record| record.implementation == OURS) else {
        return shown.machine.clone();
    };
    let instructions = record.device.driver.rsplit(", ").next().unwrap_or_default();
    let threads = if record.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", record.threads) };
    let processor = shown.processor.map_or(String::new(), |processor| format!(" of {}", escaped(processor)));
    format!("{instructions}{processor}, {threads}")
}

/// A cell for each line: the ratio to the fastest peer, or the lowest and the highest of several workloads, and who that was.
fn cells(shown: &Shown) -> Vec<String> {
    let sheets = Sheet::all(shown);
    let rows = sheets.iter().flat_map(|sheet| &sheet.rows);
    let fair: BTreeSet<&str> = rows.filter(|(_, row)| is_fair(row)).map(|(label, _)| label.as_str()).collect();
    let all = sheets.iter().flat_map(comparisons);
    let all: Vec<_> = all.filter(|found| found.ours.implementation == OURS && fair.contains(found.label)).collect();
    let cell = |patterns: &[&str]| {
        let of_line = || all.iter().filter(|found| patterns.iter().any(|pattern| matches(pattern, found.label)));
        let labels: BTreeSet<&str> = of_line().map(|found| found.label).collect();
        let fastest = labels.into_iter().filter_map(|label| {
            let of_label = of_line().filter(|found| found.label == label);
            of_label.min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median))
        });
        let fastest: Vec<_> = fastest.collect();
        let ratios = || fastest.iter().map(|found| found.ratio.median);
        let (Some(low), Some(high)) = (ratios().reduce(f64::min), ratios().reduce(f64::max)) else {
            return NONE.to_owned();
        };
        let peers: BTreeSet<&str> = fastest.iter().map(|found| found.peer.implementation.as_str()).collect();
        let ratio = if three(low) == three(high) { three(low) } else { format!("{}–{}", three(low), three(high)) };
        let ratio = if low < 1.0 { format!("*{ratio}*") } else { ratio };
        format!("{ratio} {}", peers.into_iter().collect::<Vec<_>>().join(", "))
    };
    LINES.iter().map(|(_, patterns)| cell(patterns)).collect()
}
