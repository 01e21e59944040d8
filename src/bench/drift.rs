//! Figures in documents, each compared with the record it comes from, so that none can be edited by hand or outlive its measurement.
//!
//! A figure is a number in digits with a unit of speed, time, size or comparison (`13 MB`, `2.6 minutes`, `1.08 to 21.6 times`, `52 %`).
//!
//! - **Markdown**, except code and the page that [`super::report`] makes: the block of each figure (a paragraph, list or table) has to link
//!   to a file in `benches/records`. A figure that is the only one of its kind there is found by itself: it equals a fact of the file, and
//!   no other fact would do if one of its digits were another. Otherwise the block ends with a comment that says, in the order of its
//!   figures, which facts they are:
//!
//!   ```text
//!   <!-- figures: min ratio.flex.pytorch of softmax *; max ratio.flex.pytorch of softmax *; not measured -->
//!   ```
//!
//!   `min`, `max`, `median` or `only` (they are all the same), the facts' name (an error lists what there is), and, if wanted, `of` patterns
//!   of workloads with `*`, parted by `|`. `size PATH` is the bytes of a file of the repository; `not measured` is for a number that is
//!   no measurement, and `itself` for one that is found without help.
//! - **Doc comments**: a paragraph that names a file in `benches/records` is treated the same. Elsewhere times and sizes are limits and
//!   settings, which nobody measured; a speed or a comparison of speeds is an error, since it can only have been measured.
//!
//! Numbers are compared at the digits they are written with. A count of seconds, minutes or times in words cannot be compared, so in
//! markdown it is an error.

mod facts;
mod figure;
mod query;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use facts::Facts;
pub use figure::edits;
use figure::{Figure, figures, in_words};
use query::Query;

use super::record::RecordError;

/// Where documents are, below the root; at the root itself there are only the files.
const FOLDERS: [&str; 5] = ["src", "models", "benches", "examples", "tests"];
/// The page that is compared whole.
const RENDERED: &str = "benches/README.md";

/// A figure that no record bears out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The document, below the root.
    pub path: PathBuf,
    /// Its line, from 1, at which the block begins.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.problem)
    }
}

/// Every figure in the repository at `root` that no record bears out, by documents.
///
/// # Errors
/// If a document or folder cannot be read. A record file that cannot be read is a problem of the block that links to it.
pub fn check(root: &Path) -> Result<Vec<Drift>, RecordError> {
    let mut documents = Vec::new();
    let mut folders: Vec<PathBuf> =
        FOLDERS.iter().map(|folder| root.join(folder)).filter(|path| path.is_dir()).collect();
    folders.push(root.to_owned());
    while let Some(folder) = folders.pop() {
        let io = |source| RecordError::Io { path: folder.clone(), source };
        for entry in folder.read_dir().map_err(io)? {
            let path = entry.map_err(|source| RecordError::Io { path: folder.clone(), source })?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What cargo builds is not ours, nor what hides.
            let foreign = name.starts_with('.') || name == "target";
            if path.is_dir() && folder != root && !foreign {
                folders.push(path);
            } else if path.is_file() && (name.ends_with(".md") || (name.ends_with(".rs") && folder != root)) {
                documents.push(path);
            }
        }
    }
    documents.sort();
    let (mut found, checker) = (Vec::new(), Checker::new(root));
    for path in documents {
        let text = std::fs::read_to_string(&path).map_err(|source| RecordError::Io { path: path.clone(), source })?;
        let below = path.strip_prefix(root).unwrap_or(&path);
        found.extend(checker.document(below, &text));
    }
    Ok(found)
}

/// Checks documents of one repository, whose records it reads once.
pub struct Checker<'r> {
    root: &'r Path,
    /// What the files say that were asked for, or what is wrong with them.
    known: RefCell<BTreeMap<PathBuf, Rc<Result<Facts, String>>>>,
}

impl<'r> Checker<'r> {
    /// For the repository at `root`.
    pub fn new(root: &'r Path) -> Self {
        Self { root, known: RefCell::default() }
    }

    fn facts(&self, path: &Path) -> Rc<Result<Facts, String>> {
        let read = || {
            let mut facts = Facts::default();
            Rc::new(facts.add(path).map(|()| facts))
        };
        self.known.borrow_mut().entry(path.to_owned()).or_insert_with(read).clone()
    }

    /// Every figure of one document that no record bears out. It may be another text than the file has; `path` is below the root and says what
    /// kind of document it is.
    pub fn document(&self, path: &Path, text: &str) -> Vec<Drift> {
        if path == Path::new(RENDERED) {
            return Vec::new();
        }
        let markdown = path.extension().is_some_and(|extension| extension == "md");
        // Links are relative to the document; in a doc comment a record is named from the root.
        let from = if markdown { self.root.join(path.parent().unwrap_or(Path::new(""))) } else { self.root.to_owned() };
        let blocks = if markdown { blocks_of_markdown(text) } else { blocks_of_comments(text) };
        let mut found = Vec::new();
        for Block { line, text, .. } in blocks {
            let problems = if markdown || text.contains("benches/records/") {
                self.block(&from, &text, markdown)
            } else {
                let speeds = figures(&text).into_iter().filter(Figure::is_speed);
                let unnamed = |figure: Figure| {
                    format!(
                        "`{}` is a speed without its record: name the file in benches/records in this paragraph",
                        figure.written
                    )
                };
                speeds.map(unnamed).collect()
            };
            found.extend(problems.into_iter().map(|problem| Drift { path: path.to_owned(), line, problem }));
        }
        found
    }

    /// What is wrong with the figures of a block. Records are looked for from the folder `from`.
    fn block(&self, from: &Path, text: &str, markdown: bool) -> Vec<String> {
        let figures = figures(text);
        let mut problems: Vec<String> = Vec::new();
        if markdown {
            problems.extend(
                in_words(text).map(|words| format!("`{words}`: write it in digits, so that it can be compared")),
            );
        }
        let queries = match query::queries(text) {
            Ok(queries) => queries,
            Err(problem) => return [problems, vec![problem]].concat(),
        };
        if figures.is_empty() && queries.is_none() {
            return problems;
        }
        if let Some(queries) = queries.as_ref().filter(|queries| queries.len() != figures.len()) {
            let written: Vec<&str> = figures.iter().map(|figure| figure.written.as_str()).collect();
            problems.push(format!("{} figures ({}), and {} queries", figures.len(), written.join(", "), queries.len()));
            return problems;
        }
        let mut facts = Facts::default();
        let links = figure::record_links(text);
        for link in &links {
            match &*self.facts(&from.join(link)) {
                Ok(known) => facts.extend(known),
                Err(problem) => problems.push(problem.clone()),
            }
        }
        for (at, figure) in figures.iter().enumerate() {
            let query = queries.as_ref().map_or(&Query::Itself, |queries| &queries[at]);
            let needs_record = matches!(query, Query::Itself | Query::Of { .. });
            if needs_record && links.is_empty() {
                problems.push(format!(
                    "`{}` has no record: link to its file in benches/records in this paragraph, or, if nobody measured it, end the paragraph \
                     with <!-- figures: not measured -->",
                    figure.written
                ));
            } else if let Err(problem) = query.check(figure, &facts, self.root) {
                problems.push(format!("`{}`: {problem}", figure.written));
            }
        }
        problems
    }
}

/// The digits of every figure of a markdown document, each with its place in bytes, except what a comment calls not measured: any of
/// [`edits`] of any of them is a problem to [`Checker::document`].
pub fn figures_of(markdown: &str) -> Vec<(usize, String)> {
    let compared = |block: Block| {
        let queries = query::queries(&block.text).ok().flatten().unwrap_or_default();
        let figures = figures(&block.text).into_iter().enumerate();
        let measured = figures.filter(move |(at, _)| queries.get(*at) != Some(&Query::NotMeasured));
        measured.map(move |(_, figure)| (block.start + figure.at, figure.digits))
    };
    blocks_of_markdown(markdown).into_iter().flat_map(compared).collect()
}

/// What stands together.
struct Block {
    line: usize,
    /// Where its text begins in the document, in bytes; of markdown only.
    start: usize,
    text: String,
}

/// Paragraphs, lists and tables: what is between empty lines, without fenced code. A comment on figures belongs to what is above it.
fn blocks_of_markdown(text: &str) -> Vec<Block> {
    let (mut fenced, mut open) = (false, false);
    let mut blocks: Vec<Block> = Vec::new();
    let mut start = 0;
    for (at, whole) in text.split_inclusive('\n').enumerate() {
        let line = whole.trim_end_matches('\n');
        if line.trim_start().starts_with("```") {
            (fenced, open) = (!fenced, false);
        } else if fenced || line.trim().is_empty() {
            open = false;
        } else {
            add(&mut blocks, &mut open, (at, start), line);
        }
        start += whole.len();
    }
    blocks
}

/// Paragraphs of doc comments.
fn blocks_of_comments(text: &str) -> Vec<Block> {
    let mut open = false;
    let mut blocks: Vec<Block> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        match line.strip_prefix("//!").or_else(|| line.strip_prefix("///")) {
            Some(words) if !words.trim().is_empty() => add(&mut blocks, &mut open, (at, 0), words),
            _ => open = false,
        }
    }
    blocks
}

fn add(blocks: &mut Vec<Block>, open: &mut bool, (at, start): (usize, usize), line: &str) {
    match blocks.last_mut().filter(|_| *open) {
        Some(block) => block.text = format!("{}\n{line}", block.text),
        None => blocks.push(Block { line: at + 1, start, text: line.to_owned() }),
    }
    *open = true;
}
