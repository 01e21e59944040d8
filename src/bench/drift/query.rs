//! Which fact a figure is, as the comment of its block says.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::record::{Spread, matches};
use super::facts::{Fact, Facts};
use super::figure::{Figure, edits};

/// What one figure is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The one fact that it equals.
    Itself,
    /// No measurement.
    NotMeasured,
    /// The bytes of a file of the repository.
    Size(String),
    /// One of the facts of a name.
    Of { pick: Pick, name: String, workloads: Vec<String> },
}

/// Which of several facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    Min,
    Max,
    Median,
    Only,
}

/// The queries of a block, one for each of its figures; nothing if it has no such comment.
pub fn queries(text: &str) -> Result<Option<Vec<Query>>, String> {
    let Some((_, rest)) = text.split_once("<!-- figures:") else { return Ok(None) };
    let (inside, _) = rest.split_once("-->").ok_or("the comment on figures does not end: add `-->`")?;
    inside
        .split(';')
        .map(|text| parse(&text.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn parse(text: &str) -> Result<Query, String> {
    match text {
        "itself" => return Ok(Query::Itself),
        "not measured" => return Ok(Query::NotMeasured),
        _ => {}
    }
    let wrong = || {
        format!(
            "`{text}` is no query: `itself`, `not measured`, `size PATH`, or `min`, `max`, `median` or `only` with the name of facts and, \
             if wanted, `of` patterns of workloads"
        )
    };
    let (pick, rest) = text.split_once(' ').ok_or_else(wrong)?;
    let pick = match pick {
        "size" => return Ok(Query::Size(rest.to_owned())),
        "min" => Pick::Min,
        "max" => Pick::Max,
        "median" => Pick::Median,
        "only" => Pick::Only,
        _ => return Err(wrong()),
    };
    let (name, workloads) = rest.split_once(" of ").unwrap_or((rest, "*"));
    let workloads = workloads.split('|').map(|pattern| pattern.trim().to_owned()).collect();
    Ok(Query::Of { pick, name: name.to_owned(), workloads })
}

impl Query {
    /// Whether the figure is what this says.
    pub fn check(&self, figure: &Figure, facts: &Facts, root: &Path) -> Result<(), String> {
        let value = match self {
            Self::NotMeasured => return Ok(()),
            Self::Itself => return by_itself(figure, facts),
            Self::Size(path) => size(&root.join(path))?,
            Self::Of { pick, name, workloads } => picked(*pick, name, workloads, figure, facts)?,
        };
        if figure.is(value) { Ok(()) } else { Err(format!("it is {} in that unit", shown(value / figure.factor))) }
    }
}

/// A value to write a figure from.
fn shown(value: f64) -> String {
    format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn by_itself(figure: &Figure, facts: &Facts) -> Result<(), String> {
    let values = || facts.iter().filter(|fact| fact.dimension == Some(figure.dimension)).map(|fact| fact.value);
    if !values().any(|value| figure.is(value)) {
        let mut near: Vec<f64> = values().map(|value| value / figure.factor).collect();
        let number: f64 = figure.digits.replace(',', "").parse().unwrap_or(f64::NAN);
        near.sort_by(|a, b| (a - number).abs().total_cmp(&(b - number).abs()));
        return Err(match near.first() {
            Some(&value) => format!("no such figure is in the linked record; the nearest is {}", shown(value)),
            None => "the linked record has nothing in that unit".to_owned(),
        });
    }
    // Were another fact one digit away, an edit could pass as that one.
    let other = edits(&figure.digits)
        .into_iter()
        .find(|digits| values().any(|value| Figure::rounds_to(digits, value / figure.factor)));
    other.map_or(Ok(()), |digits| {
        Err(format!(
            "the linked record also has {digits} in that unit, so that an edit might go unnoticed: say which fact it is by a comment \
             `<!-- figures: … -->` at the end of the block (how: firebrick::bench::drift)"
        ))
    })
}

fn picked(pick: Pick, name: &str, workloads: &[String], figure: &Figure, facts: &Facts) -> Result<f64, String> {
    let named: Vec<&Fact> = facts.iter().filter(|fact| fact.name == name).collect();
    if named.is_empty() {
        let names: BTreeSet<&str> = facts.iter().map(|fact| fact.name.as_str()).collect();
        return Err(format!(
            "the linked record has no `{name}`, but {}",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    let wanted = |fact: &&&Fact| workloads.iter().any(|pattern| matches(pattern, &fact.workload));
    let of: Vec<&Fact> = named.iter().filter(wanted).copied().collect();
    if of.is_empty() {
        let all: BTreeSet<&str> = named.iter().map(|fact| fact.workload.as_str()).collect();
        return Err(format!(
            "no workload is {}; `{name}` is of {}",
            workloads.join(" or "),
            all.into_iter().collect::<Vec<_>>().join("; ")
        ));
    }
    if of.iter().any(|fact| fact.dimension.is_some_and(|dimension| dimension != figure.dimension)) {
        return Err(format!("`{name}` is not counted in that unit"));
    }
    let values: Vec<f64> = of.iter().map(|fact| fact.value).collect();
    let spread = Spread::of(&values).ok_or("a fact is not a number")?;
    let (low, high) = (
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    );
    match pick {
        Pick::Min => Ok(low),
        Pick::Max => Ok(high),
        Pick::Median => Ok(spread.median),
        Pick::Only if low == high => Ok(low),
        Pick::Only => Err(format!("`{name}` has {} values here, from {low} to {high}", values.len())),
    }
}

/// Of a file, or of all files in a folder.
fn size(path: &Path) -> Result<f64, String> {
    let io = |error: std::io::Error| format!("{}: {error}", path.display());
    let about = path.metadata().map_err(io)?;
    if about.is_file() {
        return Ok(about.len() as f64);
    }
    let mut sum = 0.0;
    for entry in path.read_dir().map_err(io)? {
        sum += size(&entry.map_err(io)?.path())?;
    }
    Ok(sum)
}
