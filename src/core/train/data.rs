//! Rows of a jsonl file as token ids with a weight each, and the order in which an epoch visits them. Batches and the loss live elsewhere.
//!
//! The form of a file is that of its first row, looked for in this order, as in mlx-lm; further keys are ignored:
//!
//! | keys | tokens | with `mask_prompt`, weight falls on |
//! |---|---|---|
//! | `prompt`, `completion` (`tools`) | the chat template of a user's and an assistant's turn; without a template, both texts and the end token | the completion |
//! | `messages` (`tools`) | the chat template of the messages | the last message |
//! | `text` | the text and the end token | an error: there is no prompt to mask |

mod form;
mod lines;
mod options;
mod order;
mod pairs;
mod report;
#[cfg(test)]
mod tests;
mod tokens;

pub use lines::{LINE_CAP, Line, Lines};
pub use options::{BadRows, DataOptions, OverLong};
pub use order::epoch_order;
pub use pairs::Pair;
pub use report::{LoadReport, SkippedRow};

use crate::error::{Error, Result};
use crate::text::Tokenizer;
use form::{Form, Row};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokens::Tokens;

/// One sequence to learn from. It has at least two tokens and a weight above 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The token ids.
    pub tokens: Vec<u32>,
    /// How much the prediction of the token at the same place counts. The first token is predicted from nothing: its weight is 0.
    pub weights: Vec<f32>,
    /// The line of the file it came from, from 1. The parts of a split row share it.
    pub line: usize,
}

/// The examples of one file, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset<E = Example> {
    path: PathBuf,
    examples: Vec<E>,
    report: LoadReport,
}

impl Dataset {
    /// Reads `path`, a jsonl file in UTF-8, row by row. A byte order mark, CRLF and blank lines are accepted.
    ///
    /// # Errors
    /// [`Error::BadRow`] for a row that cannot be used, unless the options skip such rows; [`Error::Data`] if no row is left, or if the
    /// file's form, the options and the tokenizer do not go together; [`Error::OutOfBounds`] for a bad option; [`Error::Io`].
    pub fn load(path: &Path, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self> {
        options.validate()?;
        let mut lines = Lines::open(path)?;
        let mut loader =
            Loader { path, tokenizer, options, form: None, examples: Vec::new(), report: LoadReport::default() };
        while let Some((line, content)) = lines.next_line()? {
            loader.report.rows += 1;
            let row = match content {
                Ok(text) => loader.row(line, text)?,
                Err(problem) => Err(problem),
            };
            match (row, options.bad_rows) {
                (Ok(tokens), _) => loader.keep(tokens, line),
                (Err(problem), BadRows::Skip) => loader.report.skipped.push(SkippedRow { line, problem }),
                (Err(problem), BadRows::Fail) => return Err(Error::BadRow { path: path.to_owned(), line, problem }),
            }
        }
        let Loader { examples, report, .. } = loader;
        if examples.is_empty() {
            return Err(Error::Data { path: path.to_owned(), problem: format!("no row to use: {report}") });
        }
        Ok(Self { path: path.to_owned(), examples, report })
    }

    /// Examples that were not read from a file.
    ///
    /// # Panics
    /// If there is none, or one has fewer than two tokens or not a weight for each.
    pub fn from_examples(examples: Vec<Example>) -> Self {
        assert!(!examples.is_empty(), "a data set without an example");
        for example in &examples {
            assert!(example.tokens.len() >= 2 && example.tokens.len() == example.weights.len(), "{example:?}");
        }
        let report = LoadReport { rows: examples.len(), ..LoadReport::default() };
        Self { path: PathBuf::from("(memory)"), examples, report }
    }

    /// How many tokens of all examples have a weight above 0.
    pub fn weighted_tokens(&self) -> usize {
        self.examples.iter().flat_map(|example| &example.weights).filter(|&&weight| weight > 0.0).count()
    }
}

impl<E> Dataset<E> {
    /// The examples.
    pub fn examples(&self) -> &[E] {
        &self.examples
    }

    /// What became of the file's rows.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The files of a data folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Splits<E = Example> {
    /// `train.jsonl`.
    pub train: Dataset<E>,
    /// `valid.jsonl`, where there is one.
    pub valid: Option<Dataset<E>>,
    /// `test.jsonl`, where there is one.
    pub test: Option<Dataset<E>>,
}

impl Splits {
    /// Reads `train.jsonl`, and `valid.jsonl` and `test.jsonl` where they exist, of the folder `directory`.
    ///
    /// # Errors
    /// Those of [`Dataset::load`] for each file; [`Error::Data`] if there is no `train.jsonl`.
    pub fn load(directory: &Path, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self> {
        Self::of(directory, |path| match Dataset::load(path, tokenizer, options) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        })
    }
}

impl<E> Splits<E> {
    /// The files of a folder, each read by `load`, which gives nothing for one that is not there.
    fn of(directory: &Path, load: impl Fn(&Path) -> Result<Option<Dataset<E>>>) -> Result<Self> {
        let load = |name: &str| load(&directory.join(name));
        let train = load("train.jsonl")?.ok_or_else(|| Error::Data {
            path: directory.to_owned(),
            problem: "there is no train.jsonl in this folder".to_owned(),
        })?;
        Ok(Self { train, valid: load("valid.jsonl")?, test: load("test.jsonl")? })
    }
}

/// A file being read.
struct Loader<'a> {
    path: &'a Path,
    tokenizer: &'a Tokenizer,
    options: &'a DataOptions,
    /// The file's form, and the line that decided it.
    form: Option<(Form, usize)>,
    examples: Vec<Example>,
    report: LoadReport,
}

impl Loader<'_> {
    /// The tokens of a row, or what is wrong with the row. The outer error is one that no other row could do without.
    fn row(&mut self, line: usize, text: &str) -> Result<std::result::Result<Tokens, String>> {
        let object = match form::object(text) {
            Ok(object) => object,
            Err(problem) => return Ok(Err(problem)),
        };
        let (form, decided) = match self.form {
            Some(known) => known,
            None => match Form::of(&object) {
                None => return Ok(Err(form::unknown(&object))),
                Some(form) => {
                    tokens::check(form, self.tokenizer, self.options.mask_prompt)
                        .map_err(|problem| Error::Data { path: self.path.to_owned(), problem })?;
                    *self.form.insert((form, line))
                }
            },
        };
        let row = Row::read(object, form, decided);
        Ok(row.and_then(|row| tokens::tokens(row, self.tokenizer, self.options.mask_prompt)))
    }

    /// Makes examples of a row's tokens, as the options treat rows that are too long.
    fn keep(&mut self, row: Tokens, line: usize) {
        let limit = self.options.max_tokens;
        let Tokens { mut tokens, offset } = row;
        if tokens.len() > limit {
            match self.options.over_long {
                OverLong::Drop => {
                    self.report.dropped += 1;
                    return;
                }
                OverLong::Truncate => {
                    self.report.truncated += 1;
                    tokens.truncate(limit);
                }
                OverLong::Split => self.report.split += 1,
            }
        }
        if tokens.is_empty() {
            self.report.unweighted += 1;
        }
        for (index, part) in tokens.chunks(limit).enumerate() {
            let start = index * limit;
            let weights: Vec<f32> =
                (0..part.len()).map(|place| if place > 0 && start + place >= offset { 1.0 } else { 0.0 }).collect();
            // This holds for a part of a single token too.
            if weights.iter().all(|&weight| weight == 0.0) {
                self.report.unweighted += 1;
            } else {
                self.examples.push(Example { tokens: part.to_vec(), weights, line });
            }
        }
    }
}
