//! The charts, as SVGs that stand alone: on a ground of their own, so that they read the same on a light page and a dark one.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::record::{Kind, Record, Spread};
use super::Shown;
use super::compare::{comparisons, is_fair};
use super::matrix::{Column, Sheet};
use super::table::three;

const GROUND: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 41, 55);
const FAINT: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
/// Of a bar, light enough to show the line of its quartiles, and of the figure beside it.
type Shade = (RGBColor, RGBColor);
const GOOD: Shade = (RGBColor(94, 190, 178), RGBColor(15, 118, 110));
const BAD: Shade = (RGBColor(251, 152, 96), RGBColor(194, 65, 12));
/// Figures that say nothing of any hardware.
const IMITATED: Shade = (RGBColor(200, 205, 212), FAINT);

/// The picture's width and the parts of its height, in pixels.
const WIDTH: i32 = 1000;
const HEADING: i32 = 52;
const TITLE: i32 = 34;
const ROW: i32 = 20;
const AXIS: i32 = 34;
/// Room right of the bars for what they end at.
const NOTE: i32 = 190;
/// The mean width of a letter, generous: nobody knows which font there will be.
const LETTER: f64 = 6.7;
const LONGEST_LABEL: usize = 62;

/// Bars that share an axis.
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

struct Bar {
    label: String,
    /// Where it ends.
    value: f64,
    /// Its quartiles, where it has any.
    spread: Option<Spread>,
    /// What is written beside it.
    note: String,
    shade: Shade,
}

/// Of an axis: from where bars start, and which values are marked.
struct Scale {
    log: bool,
    origin: f64,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    suffix: &'static str,
}

/// How many times as fast each of our backends is as the fastest peer, by workload, with a line at 1.
pub fn peers(shown: &[Shown]) -> String {
    let mut panels = Vec::new();
    for shown in shown {
        let sheets = Sheet::all(shown);
        for column in ours(&sheets) {
            let mut bars = Vec::new();
            for sheet in &sheets {
                let all = comparisons(sheet);
                for (label, row) in sheet.rows.iter().filter(|(_, row)| is_fair(row)) {
                    // By the record: two workloads may share a label, and the record is in one row.
                    let of = |found: &&super::compare::Comparison| {
                        Column::of(found.ours) == column && row.iter().any(|record| std::ptr::eq(*record, found.ours))
                    };
                    let worst = all.iter().filter(of).min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
                    bars.extend(worst.map(|found| Bar {
                        label: label.clone(),
                        value: found.ratio.median,
                        spread: Some(found.ratio),
                        note: format!("{}× {}", three(found.ratio.median), found.peer.implementation),
                        shade: if found.ratio.median < 1.0 { BAD } else { GOOD },
                    }));
                }
            }
            panels.push(Panel { title: title(&shown.machine, &column), bars });
        }
    }
    let ends = panels.iter().flat_map(|panel| &panel.bars).filter_map(|bar| bar.spread);
    let (mut low, mut high) = (0.5_f64, 2.0_f64);
    for spread in ends {
        (low, high) = (low.min(spread.low), high.max(spread.high));
    }
    let (low, high) = (low / 1.15, high * 1.15);
    let decades = (-4..6).flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(exponent)));
    let ticks = decades.filter(|tick| (low..=high).contains(tick)).collect();
    let scale = Scale { log: true, origin: 1.0, low, high, ticks, suffix: "×" };
    draw("Times as fast as the fastest peer", "right of 1 we are faster; thin lines span the quartiles", panels, &scale)
}

/// The share of the measured roof that each of our backends reaches, by workload.
pub fn roof(shown: &[Shown]) -> String {
    let mut panels = Vec::new();
    for shown in shown {
        let sheets = Sheet::all(shown);
        for column in ours(&sheets) {
            let shade = if column.device.kind == Kind::Software { IMITATED } else { GOOD };
            let bar = |label: &String, record: &&Record| {
                let share = 100.0 * record.share()?;
                let note = format!("{} %", three(share));
                Some(Bar { label: label.clone(), value: share, spread: None, note, shade })
            };
            let rows = sheets.iter().flat_map(|sheet| &sheet.rows);
            let records = rows.flat_map(|(label, row)| row.iter().map(move |record| (label, record)));
            let records = records.filter(|(_, record)| Column::of(record) == column);
            let bars = records.filter_map(|(label, record)| bar(label, record)).collect();
            panels.push(Panel { title: title(&shown.machine, &column), bars });
        }
    }
    // What runs inside a cache goes far beyond main memory: its bar leaves the picture, and the figure says how far.
    let highest = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.value).fold(100.0, f64::max);
    let high = highest.min(200.0);
    let ticks = (0..=10).map(|tick| 20.0 * f64::from(tick)).filter(|tick| *tick <= high).collect();
    let scale = Scale { log: false, origin: 0.0, low: 0.0, high, ticks, suffix: " %" };
    let what = "100 %: the most that the same device was measured to read or to compute in the same run";
    draw("Share of the measured roof", what, panels, &scale)
}

/// Our backends that have figures, in the order of columns.
fn ours<'a>(sheets: &[Sheet<'a>]) -> Vec<Column<'a>> {
    let mut columns: Vec<Column> = Vec::new();
    for sheet in sheets {
        let records = sheet.rows.iter().flat_map(|(_, row)| row).filter(|record| !record.peer);
        columns.extend(records.map(|record| Column::of(record)).filter(|column| sheet.columns.contains(column)));
    }
    columns.sort();
    columns.dedup();
    columns
}

fn title(machine: &str, column: &Column) -> String {
    let device = column.device;
    let imitated = if device.kind == Kind::Software { ": imitates a GPU on the processor" } else { "" };
    format!("{machine}, {} on {} ({}{imitated})", column.implementation, device.name, device.kind.name())
}

fn draw(heading: &str, explained: &str, mut panels: Vec<Panel>, scale: &Scale) -> String {
    panels.retain(|panel| !panel.bars.is_empty());
    let heights = panels.iter().map(|panel| TITLE + AXIS + ROW * panel.bars.len() as i32);
    let height = HEADING + heights.sum::<i32>().max(ROW) + ROW;
    let mut svg = String::new();
    // Writing into memory has nothing to fail by, and the ranges are not empty; were it otherwise, the picture would say so.
    if let Err(error) = draw_into(&mut svg, height, heading, explained, &panels, scale) {
        return format!("<!-- the chart could not be drawn: {error} -->\n");
    }
    svg
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn draw_into(
    svg: &mut String,
    height: i32,
    heading: &str,
    explained: &str,
    panels: &[Panel],
    scale: &Scale,
) -> Outcome {
    let root = SVGBackend::with_string(svg, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&GROUND)?;
    write(&root, (20, 26), HPos::Left, 17, INK, heading)?;
    if panels.is_empty() {
        write(&root, (20, HEADING + 8), HPos::Left, 14, FAINT, "nothing to draw has been measured yet")?;
    } else {
        write(&root, (20, 46), HPos::Left, 12, FAINT, explained)?;
    }
    let longest = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let left = 30 + (LETTER * longest.min(LONGEST_LABEL) as f64) as i32;
    let mut top = HEADING;
    for panel in panels {
        let bottom = top + TITLE + ROW * panel.bars.len() as i32 + AXIS;
        write(&root, (20, top + 22), HPos::Left, 14, INK, &panel.title)?;
        let plot = root.clone().shrink((left, top + TITLE), (WIDTH - NOTE - left, bottom - top - TITLE - AXIS));
        let rows = 0.0..panel.bars.len() as f64;
        if scale.log {
            let mut chart = ChartBuilder::on(&plot).build_cartesian_2d((scale.low..scale.high).log_scale(), rows)?;
            draw_bars(&root, &mut chart, panel, scale)?;
        } else {
            let mut chart = ChartBuilder::on(&plot).build_cartesian_2d(scale.low..scale.high, rows)?;
            draw_bars(&root, &mut chart, panel, scale)?;
        }
        top = bottom;
    }
    root.present()?;
    Ok(())
}

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bars<'a, X>(
    root: &Root<'a>,
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    panel: &Panel,
    scale: &Scale,
) -> Outcome
where
    X: Ranged<ValueType = f64>,
{
    let count = panel.bars.len() as f64;
    let (_, bottom) = chart.backend_coord(&(scale.low, 0.0));
    for &tick in &scale.ticks {
        let color = if tick == scale.origin || (!scale.log && tick == 100.0) { FAINT } else { GRID };
        chart.draw_series([PathElement::new([(tick, 0.0), (tick, count)], color)])?;
        let (x, _) = chart.backend_coord(&(tick, 0.0));
        write(root, (x, bottom + 16), HPos::Center, 11, FAINT, &format!("{tick}{}", scale.suffix))?;
    }
    for (at, bar) in panel.bars.iter().enumerate() {
        // Rows run downwards.
        let middle = count - at as f64 - 0.5;
        let within = |value: f64| value.clamp(scale.low, scale.high);
        let corners = [(scale.origin, middle - 0.3), (within(bar.value), middle + 0.3)];
        chart.draw_series([Rectangle::new(corners, bar.shade.0.filled())])?;
        if let Some(spread) = bar.spread {
            let ends = [(within(spread.low), middle), (within(spread.high), middle)];
            chart.draw_series([PathElement::new(ends, INK)])?;
        }
        let (left, y) = chart.backend_coord(&(scale.low, middle));
        let (right, _) = chart.backend_coord(&(scale.high, middle));
        write(root, (left - 10, y + 7), HPos::Right, 12, INK, &shortened(&bar.label))?;
        write(root, (right + 10, y + 7), HPos::Left, 12, bar.shade.1, &bar.note)?;
    }
    Ok(())
}

/// A text by its base line.
fn write(root: &Root, at: (i32, i32), side: HPos, size: i32, color: RGBColor, text: &str) -> Outcome {
    // plotters gives 1/1.24 of what it is asked for as the size of the font.
    let style = ("sans-serif", 1.24 * f64::from(size)).into_font().color(&color).pos(Pos::new(side, VPos::Bottom));
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= LONGEST_LABEL {
        return label.to_owned();
    }
    label.chars().take(LONGEST_LABEL - 1).chain(['…']).collect()
}
