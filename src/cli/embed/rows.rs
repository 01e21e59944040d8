//! The texts to embed: a line each, or rows of jsonl with `text`. A row that cannot be read is that row's problem alone.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use firebrick::core::train::data::Lines;
use serde::Deserialize;

/// Rows of a file or of stdin.
pub struct Rows {
    lines: Lines,
    path: PathBuf,
    is_jsonl: bool,
    next: usize,
    read: Arc<AtomicU64>,
    /// Bytes of the file, where it is one.
    pub total: Option<u64>,
}

/// A row: its number, from 0, its line, from 1, and its text or what is wrong with it.
pub struct Row {
    pub index: usize,
    pub line: usize,
    pub text: std::result::Result<String, String>,
}

#[derive(Deserialize)]
struct JsonRow {
    text: String,
}

impl Rows {
    /// Opens a file, or stdin.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let (source, total): (Box<dyn Read + Send>, _) = match path {
            None => (Box::new(std::io::stdin()), None),
            Some(path) => {
                let name = || format!("--input {}", path.display());
                let file = std::fs::File::open(path).with_context(name)?;
                let metadata = file.metadata().with_context(name)?;
                anyhow::ensure!(!metadata.is_dir(), "--input {}: is a folder", path.display());
                (Box::new(file), metadata.is_file().then_some(metadata.len()))
            }
        };
        let path = path.unwrap_or(Path::new("stdin")).to_owned();
        let lines = Lines::new(Box::new(Counted { source, read: read.clone() }), &path);
        let is_jsonl = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
        Ok(Self { lines, path, is_jsonl, next: 0, read, total })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The next row.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        // A blank line is a text without a word; between rows of JSON it is nothing.
        let line = if self.is_jsonl { self.lines.next_line()? } else { self.lines.next_text()? };
        let Some((line, text)) = line else { return Ok(None) };
        let text = match text {
            Ok(text) if self.is_jsonl => match serde_json::from_str::<JsonRow>(text) {
                Ok(row) => Ok(row.text),
                Err(problem) => Err(problem.to_string().replace(" at line 1 column ", " at column ")),
            },
            text => text.map(str::to_owned),
        };
        self.next += 1;
        Ok(Some(Row { index: self.next - 1, line, text }))
    }
}

/// Counts what passes, for the bar.
struct Counted {
    source: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
