//! Lines of a jsonl file as JSON objects, without ever holding a line that is too long. A bad line is a row's problem, not the file's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// No row of text comes near.
const MAX_LINE_BYTES: usize = 16 << 20;

/// A row, or what is wrong with it.
type Row = std::result::Result<Map<String, Value>, String>;

/// The rows that are not blank, with their line numbers from 1.
pub(super) fn rows(path: &Path) -> Result<Vec<(usize, Row)>> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let (mut rows, mut bytes) = (Vec::new(), Vec::new());
    for line in 1.. {
        bytes.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        if (&mut file).take(limit).read_until(b'\n', &mut bytes).map_err(Error::io(path))? == 0 {
            break;
        }
        if bytes.len() > MAX_LINE_BYTES && !bytes.ends_with(b"\n") {
            skip_line(&mut file).map_err(Error::io(path))?;
            rows.push((line, Err(format!("is longer than {MAX_LINE_BYTES} bytes"))));
            continue;
        }
        let text = if line == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
        let text = text.trim_ascii();
        if !text.is_empty() {
            rows.push((line, row(text)));
        }
    }
    Ok(rows)
}

fn skip_line(file: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        file.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

fn row(text: &[u8]) -> Row {
    let text = std::str::from_utf8(text).map_err(|problem| format!("is not UTF-8: {problem}"))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(format!("is not a JSON object but {}", kind(&other))),
        Err(problem) => Err(format!("is not JSON: {problem}")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
