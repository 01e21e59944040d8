//! Us beside each peer: ratios with their spread, and every one below 1 by name.

use super::super::record::{Kind, Record, Spread, Status, ratio};
use super::Shown;
use super::causes::Causes;
use super::matrix::{Column, Reasons, Sheet, find};
use super::table::{escaped, table, three};

/// One of ours beside one peer.
pub struct Comparison<'a> {
    pub label: &'a str,
    pub ours: &'a Record,
    pub peer: &'a Record,
    pub ratio: Spread,
}

/// Whether figures of two devices may be compared: a processor with a processor, a GPU with a GPU, and a software device with nothing.
fn comparable(one: Kind, other: Kind) -> bool {
    let gpu = |kind| matches!(kind, Kind::DiscreteGpu | Kind::IntegratedGpu | Kind::VirtualGpu);
    (one == Kind::Cpu && other == Kind::Cpu) || (gpu(one) && gpu(other))
}

/// Whether a row says who is the fastest: nobody in it was held back.
pub fn is_fair(row: &[&Record]) -> bool {
    !row.iter().any(|record| record.was_held_back())
}

/// Every comparison of a sheet, by rows, then ours, then peers; none with a peer that was held back.
pub fn comparisons<'a>(sheet: &'a Sheet<'a>) -> Vec<Comparison<'a>> {
    let mut found = Vec::new();
    for (label, row) in &sheet.rows {
        let measured: Vec<&Record> = sheet.columns.iter().filter_map(|column| find(row, column)).collect();
        for ours in measured.iter().filter(|record| !record.peer) {
            for peer in measured.iter().filter(|record| record.peer) {
                if comparable(ours.device.kind, peer.device.kind)
                    && !peer.was_held_back()
                    && let Some(ratio) = ratio(peer, ours)
                {
                    found.push(Comparison { label, ours, peer, ratio });
                }
            }
        }
    }
    found
}

/// What stands instead of a ratio to a peer that was held back.
const HELD_BACK: &str = "†";

/// A spread as it is written everywhere.
pub fn written(spread: &Spread) -> String {
    format!("{} ({}–{})", three(spread.median), three(spread.low), three(spread.high))
}

/// The tables of ratios of one machine, a row for each workload and backend, a column for each peer.
pub fn tables(shown: &Shown) -> String {
    let mut text = String::new();
    for sheet in &Sheet::all(shown) {
        let comparisons = comparisons(sheet);
        let mut peers: Vec<Column> = comparisons.iter().map(|comparison| Column::of(comparison.peer)).collect();
        peers.sort();
        peers.dedup();
        if peers.is_empty() {
            continue;
        }
        let mut reasons = Reasons::default();
        let mut rows = Vec::new();
        for (label, row) in &sheet.rows {
            let ours = sheet.columns.iter().filter(|column| column.device.kind != Kind::Software);
            for ours in ours.filter_map(|column| find(row, column)).filter(|ours| !ours.peer) {
                // Without any ratio it says nothing here; why there is none is in the table of figures.
                if !comparisons.iter().any(|found| std::ptr::eq(found.ours, ours)) {
                    continue;
                }
                let cells = peers.iter().map(|peer| {
                    let of = |found: &&Comparison| std::ptr::eq(found.ours, ours) && Column::of(found.peer) == *peer;
                    match (comparisons.iter().find(of), find(row, peer)) {
                        (Some(found), _) if found.ratio.median < 1.0 => format!("*{}*", written(&found.ratio)),
                        (Some(found), _) => written(&found.ratio),
                        (None, Some(peer)) if peer.was_held_back() => HELD_BACK.to_owned(),
                        (None, Some(peer)) if peer.status == Status::Measured => "another kind of device".to_owned(),
                        (None, other) => reasons.cell(other),
                    }
                });
                let backend = Column::of(ours).title(&sheet.columns);
                rows.push([escaped(label), backend].into_iter().chain(cells).collect());
            }
        }
        let titles = peers.iter().map(|peer| peer.title(&peers));
        let header: Vec<String> = ["workload".to_owned(), "ours".to_owned()].into_iter().chain(titles).collect();
        text += &format!("#### {}: times as fast as a peer\n\n", sheet.title);
        text += &table(2, &header, &rows);
        text += &reasons.list();
    }
    if text.is_empty() { text } else { format!("### Beside the peers\n\n{text}") }
}

/// Every ratio below 1 of one machine, the lowest first, with its cause.
pub fn slower(shown: &Shown, causes: &Causes) -> String {
    let sheets = Sheet::all(shown);
    let all: Vec<Comparison> = sheets.iter().flat_map(comparisons).collect();
    let mut text = "### Where we are slower\n\n".to_owned();
    if all.is_empty() {
        return text + "Not known: nothing here was measured beside a peer.\n\n";
    }
    let mut slower: Vec<&Comparison> = all.iter().filter(|comparison| comparison.ratio.median < 1.0).collect();
    // Stable: equal ones stay in the order of the tables.
    slower.sort_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
    if slower.is_empty() {
        return text + &format!("Nowhere: of {} ratios none is below 1.\n\n", all.len());
    }
    text += &format!("{} of {} ratios are below 1.\n\n", slower.len(), all.len());
    // Under each cause what it explains; the causes in the order of the lowest ratio of each.
    let mut explained: Vec<(&str, Vec<&Comparison>)> = Vec::new();
    for found in slower {
        let cause = causes.of(found.label, found.ours, found.peer).unwrap_or(UNKNOWN);
        match explained.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, found_by_it)) => found_by_it.push(found),
            None => explained.push((cause, vec![found])),
        }
    }
    let header = ["workload", "ours", "peer", "ratio"].map(str::to_owned);
    for (cause, found) in explained {
        let rows: Vec<Vec<String>> = found.into_iter().map(row).collect();
        text += &format!("{cause}\n\n{}", table(3, &header, &rows));
    }
    text
}

const UNKNOWN: &str = "The cause is not known yet:";

fn row(found: &Comparison) -> Vec<String> {
    let unsure = if found.ratio.high >= 1.0 { ", its quartiles reach 1" } else { "" };
    vec![
        escaped(found.label),
        Column::of(found.ours).title(&[]),
        format!("`{}`", found.peer.implementation),
        format!("{}{unsure}", written(&found.ratio)),
    ]
}
