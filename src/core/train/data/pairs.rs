//! Rows for contrastive learning: `{"query", "positive", "negatives"?}`, further keys ignored.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use super::form::{kind, object, string};
use super::{BadRows, Dataset, Lines, LoadReport, SkippedRow, Splits};
use crate::embed::{Embedder, Kind};
use crate::error::{Error, Result};

/// A query, the passage that answers it, and passages that seem to and do not: token ids, prefixes and special tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is searched for.
    pub query: Vec<u32>,
    /// What should be found.
    pub positive: Vec<u32>,
    /// What should not.
    pub negatives: Vec<Vec<u32>>,
    /// The line of the file it came from, from 1.
    pub line: usize,
}

impl Dataset<Pair> {
    /// Reads `path`, a jsonl file in UTF-8, row by row. Longer texts are cut off at the embedder's length.
    ///
    /// # Errors
    /// [`Error::BadRow`] for a row that cannot be used, unless such rows are skipped; [`Error::Data`] if no row is left; [`Error::Io`].
    pub fn load_pairs(path: &Path, embedder: &Embedder, bad_rows: BadRows) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let (mut examples, mut report) = (Vec::new(), LoadReport::default());
        while let Some((line, content)) = lines.next_line()? {
            report.rows += 1;
            match content.and_then(object).and_then(|row| pair(row, embedder, line)) {
                Ok((pair, truncated)) => {
                    report.truncated += usize::from(truncated);
                    examples.push(pair);
                }
                Err(problem) if bad_rows == BadRows::Skip => report.skipped.push(SkippedRow { line, problem }),
                Err(problem) => return Err(Error::BadRow { path: path.to_owned(), line, problem }),
            }
        }
        if examples.is_empty() {
            return Err(Error::Data { path: path.to_owned(), problem: format!("no row to use: {report}") });
        }
        Ok(Self { path: path.to_owned(), examples, report })
    }

    /// Pairs that were not read from a file.
    ///
    /// # Panics
    /// If there is none, or one has an empty text.
    pub fn from_pairs(examples: Vec<Pair>) -> Self {
        assert!(!examples.is_empty(), "a data set without a pair");
        for Pair { query, positive, negatives, .. } in &examples {
            let texts = [query, positive].into_iter().chain(negatives);
            assert!(texts.into_iter().all(|text| !text.is_empty()), "a pair with an empty text");
        }
        let report = LoadReport { rows: examples.len(), ..LoadReport::default() };
        Self { path: "(memory)".into(), examples, report }
    }
}

impl Splits<Pair> {
    /// Reads `train.jsonl`, and `valid.jsonl` and `test.jsonl` where they exist, of the folder `directory`.
    ///
    /// # Errors
    /// Those of [`Dataset::load_pairs`] for each file; [`Error::Data`] if there is no `train.jsonl`.
    pub fn load_pairs(directory: &Path, embedder: &Embedder, bad_rows: BadRows) -> Result<Self> {
        Self::of(directory, |path| match Dataset::load_pairs(path, embedder, bad_rows) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        })
    }
}

/// A row's texts as tokens, and whether one of them was cut off; or what is wrong with the row.
fn pair(mut row: Map<String, Value>, embedder: &Embedder, line: usize) -> std::result::Result<(Pair, bool), String> {
    let mut truncated = false;
    let mut tokens = |text: &str, what: &str, of: Kind| {
        if text.trim().is_empty() {
            return Err(format!("{what} is empty"));
        }
        let tokens = embedder.tokenize(text, of).map_err(|problem| format!("{what}: {problem}"))?;
        truncated |= tokens.truncated;
        Ok(tokens.ids)
    };
    let query = tokens(&string(&mut row, "query")?, "`query`", Kind::Query)?;
    let positive = tokens(&string(&mut row, "positive")?, "`positive`", Kind::Passage)?;
    let negatives = match row.remove("negatives") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(format!("`negatives` is an array of strings, this is {}", kind(&other))),
    };
    let negative = |(index, value): (usize, Value)| match value {
        Value::String(text) => tokens(&text, &format!("`negatives[{index}]`"), Kind::Passage),
        other => Err(format!("`negatives[{index}]` is a string, this is {}", kind(&other))),
    };
    let negatives = negatives.into_iter().enumerate().map(negative).collect::<std::result::Result<_, String>>()?;
    Ok((Pair { query, positive, negatives, line }, truncated))
}
