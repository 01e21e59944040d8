//! Data sets, as every verb that reads them tells about them and lets their rows be treated.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use firebrick::core::train::data::{BadRows, OverLong, SkippedRow};
use firebrick::prelude::*;

use super::options::Everywhere;

/// A value of a fixed set, which the help lists.
pub fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err: std::fmt::Display> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse().map_err(|problem: T::Err| problem.to_string()))
}

/// What `--bad-rows` takes.
pub fn bad_rows() -> impl TypedValueParser<Value = BadRows> {
    one_of(&["fail", "skip"])
}

/// What `--over-long` takes.
pub fn over_long() -> impl TypedValueParser<Value = OverLong> {
    one_of(&["truncate", "drop", "split"])
}

/// Says what became of the rows that could not be used as they are.
pub fn report_rows<E>(dataset: &Dataset<E>, max_tokens: usize, everywhere: &Everywhere) {
    const SHOWN: usize = 10;
    let (path, report, limit) = (dataset.path().display(), dataset.report(), max_tokens);
    for SkippedRow { line, problem } in report.skipped.iter().take(SHOWN) {
        everywhere.note(format_args!("skipped {path}:{line}: {problem}"));
    }
    let counts = [
        (report.skipped.len(), "cannot be used and were skipped".to_owned()),
        (report.truncated, format!("are longer than {limit} tokens and were truncated")),
        (report.dropped, format!("are longer than {limit} tokens and were dropped")),
        (report.split, format!("are longer than {limit} tokens and were split")),
        (report.unweighted, "have no token that counts and were left out".to_owned()),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        everywhere.note(format_args!("{path}: {count} of {} rows {what}", report.rows));
    }
}
