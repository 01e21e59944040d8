//! jsonl rows → token ids with a weight for each: the data sets of fine-tuning. How rows are read line by line is in `data/lines.rs`.
//!
//! Source: mlx-lm's `tuner/datasets.py` for the forms of rows, their order of detection, and what is masked.

mod lines;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::text::{Message, TemplateOptions, Tokenizer};

/// One training example.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// How much predicting each token counts; the first is predicted from nothing and weighs 0.
    pub weights: Vec<f32>,
    /// Line of the file, from 1.
    pub line: usize,
}

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// Stop at the first, naming file and line.
    #[default]
    Fail,
    /// Leave them out and count them.
    Skip,
}

/// What to do with a row longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLong {
    /// Keep its beginning.
    #[default]
    Truncate,
    /// Leave it out.
    Drop,
    /// Make several examples of it.
    Split,
}

/// How rows become examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Only the completion, or the last assistant turn, counts.
    pub mask_prompt: bool,
    /// Tokens of an example at most.
    pub max_tokens: usize,
    /// What to do with unusable rows.
    pub bad_rows: BadRows,
    /// What to do with long rows.
    pub over_long: OverLong,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self { mask_prompt: false, max_tokens: 2048, bad_rows: BadRows::Fail, over_long: OverLong::Truncate }
    }
}

macro_rules! named {
    ($type:ident, $what:literal, { $($name:literal => $variant:ident),+ }) => {
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> std::result::Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is not a {}; there are {}", $what, [$($name),+].join(", "))),
                }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}
named!(BadRows, "policy for bad rows", { "fail" => Fail, "skip" => Skip });
named!(OverLong, "policy for over-long rows", { "truncate" => Truncate, "drop" => Drop, "split" => Split });

/// What became of a file's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Rows that are not blank.
    pub rows: usize,
    /// Rows left out because they could not be used: line and problem.
    pub skipped: Vec<(usize, String)>,
    /// Rows cut at the limit.
    pub truncated: usize,
    /// Rows left out because they were too long.
    pub dropped: usize,
    /// Rows made into several examples.
    pub split: usize,
    /// Rows left out because no token of theirs counts.
    pub unweighted: usize,
}

/// The examples of a file.
#[derive(Clone, Debug)]
pub struct Dataset {
    path: PathBuf,
    examples: Vec<Example>,
    report: LoadReport,
}

/// The data sets of a folder.
#[derive(Clone, Debug)]
pub struct Splits {
    /// `train.jsonl`.
    pub train: Dataset,
    /// `valid.jsonl`, if there is one.
    pub valid: Option<Dataset>,
    /// `test.jsonl`, if there is one.
    pub test: Option<Dataset>,
}

impl Splits {
    /// Loads `train.jsonl`, and `valid.jsonl` and `test.jsonl` where they exist.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn load(folder: &Path, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self> {
        let optional = |name: &str| {
            let path = folder.join(name);
            path.exists().then(|| Dataset::load(&path, tokenizer, options)).transpose()
        };
        let train = Dataset::load(&folder.join("train.jsonl"), tokenizer, options)?;
        Ok(Self { train, valid: optional("valid.jsonl")?, test: optional("test.jsonl")? })
    }
}

impl Dataset {
    /// Loads a jsonl file whose rows hold `prompt` and `completion`, `messages`, or `text`, as the first of them shows.
    ///
    /// # Errors
    /// If the file cannot be read, a row cannot be used and none may be skipped, or no example is left.
    pub fn load(path: &Path, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self> {
        if options.max_tokens < 2 {
            let value = options.max_tokens.to_string();
            return Err(Error::OutOfBounds { name: "max_tokens", value, bounds: "at least 2".into() });
        }
        let (mut examples, mut report, mut form) = (Vec::new(), LoadReport::default(), None);
        for (line, row) in lines::rows(path)? {
            report.rows += 1;
            let tokens = row.and_then(|row| {
                let found = Form::of(&row)?;
                let form = *form.get_or_insert(found);
                if form != found {
                    return Err(format!("has {found}, the rows before it {form}"));
                }
                form.tokens(&row, tokenizer, options)
            });
            match tokens {
                Ok((tokens, offset)) => add(&mut examples, &mut report, tokens, offset, line, options),
                Err(problem) if options.bad_rows == BadRows::Skip => report.skipped.push((line, problem)),
                Err(problem) => return Err(Error::BadRow { path: path.into(), line, problem }),
            }
        }
        if examples.is_empty() {
            let LoadReport { rows, skipped, dropped, unweighted, .. } = &report;
            let mut problem = format!(
                "no row can be trained on: {rows} rows, {} bad, {dropped} too long, {unweighted} without a token that counts",
                skipped.len()
            );
            if let Some((line, first)) = skipped.first() {
                problem += &format!("; line {line}: {first}");
            }
            return Err(Error::Data { path: path.into(), problem });
        }
        Ok(Self { path: path.into(), examples, report })
    }

    /// Examples that were not read from a file.
    ///
    /// # Panics
    /// If an example has fewer than two tokens, or not a weight for each.
    pub fn from_examples(examples: Vec<Example>) -> Self {
        for example in &examples {
            assert!(example.tokens.len() >= 2 && example.tokens.len() == example.weights.len(), "{example:?}");
        }
        let report = LoadReport { rows: examples.len(), ..LoadReport::default() };
        Self { path: PathBuf::from("(memory)"), examples, report }
    }

    /// The examples, in the order of the file.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// What became of the rows.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens that count.
    pub fn weighted_tokens(&self) -> usize {
        self.examples.iter().map(|example| example.weights.iter().filter(|weight| **weight != 0.0).count()).sum()
    }
}

/// Cuts a row to the limit as the policy says, and keeps what has a token that counts.
fn add(
    examples: &mut Vec<Example>,
    report: &mut LoadReport,
    tokens: Vec<u32>,
    offset: usize,
    line: usize,
    options: &DataOptions,
) {
    let weights: Vec<f32> = (0..tokens.len()).map(|at| if at > 0 && at >= offset { 1.0 } else { 0.0 }).collect();
    let limit = options.max_tokens;
    let over = tokens.len() > limit;
    match options.over_long {
        OverLong::Drop if over => return report.dropped += 1,
        OverLong::Truncate if over => report.truncated += 1,
        OverLong::Split if over => report.split += 1,
        _ => {}
    }
    let parts = if options.over_long == OverLong::Split { tokens.len().div_ceil(limit) } else { 1 };
    let before = examples.len();
    for (tokens, weights) in tokens.chunks(limit).zip(weights.chunks(limit)).take(parts) {
        let (tokens, mut weights) = (tokens.to_vec(), weights.to_vec());
        // The first token of a part is predicted from nothing.
        weights[0] = 0.0;
        if weights.iter().any(|&weight| weight != 0.0) {
            examples.push(Example { tokens, weights, line });
        }
    }
    if examples.len() == before {
        report.unweighted += 1;
    }
}

/// The form of a row.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Completion,
    Messages,
    Text,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Completion => "`prompt` and `completion`",
            Self::Messages => "`messages`",
            Self::Text => "`text`",
        })
    }
}

impl Form {
    fn of(row: &Map<String, Value>) -> std::result::Result<Self, String> {
        let has = |key| row.contains_key(key);
        if has("prompt") && has("completion") {
            Ok(Self::Completion)
        } else if has("messages") {
            Ok(Self::Messages)
        } else if has("text") {
            Ok(Self::Text)
        } else {
            Err("has neither `prompt` and `completion`, nor `messages`, nor `text`".into())
        }
    }

    /// Token ids, and the first one that counts.
    fn tokens(
        self,
        row: &Map<String, Value>,
        tokenizer: &Tokenizer,
        options: &DataOptions,
    ) -> std::result::Result<(Vec<u32>, usize), String> {
        let text = |key: &str| row[key].as_str().ok_or_else(|| format!("`{key}` is not a string"));
        let tools = row.get("tools").and_then(Value::as_array).cloned();
        let failed = |error: Error| error.to_string();
        match self {
            Self::Text if options.mask_prompt => Err("`text` has no prompt to mask".into()),
            Self::Text => {
                let mut tokens = tokenizer.encode(text("text")?, true).map_err(failed)?;
                end(&mut tokens, tokenizer);
                Ok((tokens, 0))
            }
            Self::Completion if tokenizer.template().is_none() => {
                let prompt = tokenizer.encode(text("prompt")?, true).map_err(failed)?;
                let offset = if options.mask_prompt { prompt.len() } else { 0 };
                let mut tokens = prompt;
                tokens.extend(tokenizer.encode(text("completion")?, false).map_err(failed)?);
                end(&mut tokens, tokenizer);
                Ok((tokens, offset))
            }
            Self::Completion => {
                let messages = [Message::user(text("prompt")?), Message::assistant(text("completion")?)];
                conversation(&messages, tools, tokenizer, options).map_err(failed)
            }
            Self::Messages => {
                let messages: Vec<Message> = serde_json::from_value(row["messages"].clone())
                    .map_err(|problem| format!("`messages`: {problem}"))?;
                if messages.is_empty() {
                    return Err("`messages` is empty".into());
                }
                conversation(&messages, tools, tokenizer, options).map_err(failed)
            }
        }
    }
}

fn end(tokens: &mut Vec<u32>, tokenizer: &Tokenizer) {
    let eos = tokenizer.eos_token();
    if tokens.last().copied() != eos {
        tokens.extend(eos);
    }
}

/// The rendered conversation; with a masked prompt its last turn counts, and of that what the model has to say itself.
fn conversation(
    messages: &[Message],
    tools: Option<Vec<Value>>,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<(Vec<u32>, usize)> {
    let template = TemplateOptions { tools, ..TemplateOptions::default() };
    let tokens = tokenizer.chat(messages, &template)?;
    if !options.mask_prompt {
        return Ok((tokens, 0));
    }
    let (last, before) = messages.split_last().map_or((None, &[][..]), |(last, before)| (Some(last), before));
    let answered = last.is_some_and(|message| message.role == "assistant");
    let prompt = tokenizer.chat(before, &TemplateOptions { add_generation_prompt: answered, ..template })?;
    // Tokens may join across the border, and a template may write a past turn differently: what both begin with is the prompt.
    let offset = prompt.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
    Ok((tokens, offset))
}

/// The order of an epoch: a shuffle that follows from seed and epoch alone.
pub fn epoch_order(examples: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch as u64);
    let mut order: Vec<usize> = (0..examples).collect();
    for last in (1..examples).rev() {
        order.swap(last, random.random_range(0..=last));
    }
    order
}

#[cfg(test)]
mod tests;
