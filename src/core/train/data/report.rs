//! What became of a file's rows, to be shown to whoever asked for them.

use serde::Serialize;
use std::fmt;

/// What became of a file's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Rows in the file, good or bad; blank lines are none.
    pub rows: usize,
    /// Rows that could not be used.
    pub skipped: Vec<SkippedRow>,
    /// Rows whose end was cut off.
    pub truncated: usize,
    /// Rows left out because they were too long.
    pub dropped: usize,
    /// Rows that were split into several examples.
    pub split: usize,
    /// Rows, or parts of split rows, left out because they had fewer than two tokens or no weighted one.
    pub unweighted: usize,
}

/// A row that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedRow {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// One line: the number of rows, and what happened to those that were not used as they are.
impl fmt::Display for LoadReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} row{}", self.rows, if self.rows == 1 { "" } else { "s" })?;
        if let Some(SkippedRow { line, problem }) = self.skipped.first() {
            write!(formatter, ", {} skipped (the first in line {line}: {problem})", self.skipped.len())?;
        }
        let counts = [
            (self.truncated, "truncated"),
            (self.dropped, "dropped as too long"),
            (self.split, "split"),
            (self.unweighted, "left out without a weighted token to predict"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(formatter, ", {count} {what}")?;
        }
        Ok(())
    }
}
