//! A file's lines, none longer than a cap. What a line means is not known here.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line in bytes, 16 MiB. A row that long is far beyond any model's context: a file without line ends, most likely.
pub(super) const LINE_CAP: usize = 16 << 20;

/// The lines of a file that are not blank, one at a time.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    /// The line in the buffer, from 1.
    line: usize,
    /// Whether the rest of a line beyond the cap is still ahead.
    inside_line: bool,
}

impl Lines {
    /// Opens `path`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            buffer: Vec::new(),
            line: 0,
            inside_line: false,
        })
    }

    /// The next line that is not blank: its number and its text without the line end, or what is wrong with it. None at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(usize, std::result::Result<&str, String>)>> {
        while self.fill()? {
            if self.inside_line {
                return Ok(Some((self.line, Err(format!("the line is longer than {} MiB", LINE_CAP >> 20)))));
            }
            if self.line == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.buffer.drain(..3);
            }
            if !self.buffer.trim_ascii().is_empty() {
                let text = std::str::from_utf8(self.buffer.trim_ascii())
                    .map_err(|error| format!("not UTF-8 from byte {} on", error.valid_up_to() + 1));
                return Ok(Some((self.line, text)));
            }
        }
        Ok(None)
    }

    /// Reads one more line into the buffer, of a longer line as much as the cap allows; false at the end of the file.
    fn fill(&mut self) -> Result<bool> {
        if self.inside_line {
            self.reader.skip_until(b'\n').map_err(Error::io(&self.path))?;
        }
        self.buffer.clear();
        let mut capped = (&mut self.reader).take(LINE_CAP as u64 + 1);
        let read = capped.read_until(b'\n', &mut self.buffer).map_err(Error::io(&self.path))?;
        self.line += 1;
        self.inside_line = self.buffer.len() > LINE_CAP && !self.buffer.ends_with(b"\n");
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_line_is_never_held_whole() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("long");
        std::fs::write(&path, [vec![b'a'; 6 * LINE_CAP], b"\nb".to_vec()].concat()).unwrap();
        let mut lines = Lines::open(&path).unwrap();
        assert!(matches!(lines.next_line().unwrap(), Some((1, Err(_)))));
        assert_eq!(lines.next_line().unwrap(), Some((2, Ok("b"))));
        assert_eq!(lines.next_line().unwrap(), None);
        // A growing buffer doubles.
        assert!(lines.buffer.capacity() <= 2 * LINE_CAP + 2, "{}", lines.buffer.capacity());
    }
}
