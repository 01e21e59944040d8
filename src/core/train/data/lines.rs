//! Lines of a file or of stdin, none longer than a cap. What a line means is not known here.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line in bytes, 16 MiB. A row that long is far beyond any model's context: a file without line ends, most likely.
pub const LINE_CAP: usize = 16 << 20;

/// A line's number, from 1, and its text or what is wrong with it.
pub type Line<'a> = (usize, std::result::Result<&'a str, String>);

/// The lines of a file, one at a time.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    buffer: Vec<u8>,
    /// The line in the buffer, from 1.
    line: usize,
    /// Whether the rest of a line beyond the cap is still ahead.
    inside_line: bool,
}

impl Lines {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Self::new(Box::new(file), path))
    }

    /// Reads what is already open; errors name it as `path`.
    pub fn new(reader: Box<dyn Read + Send>, path: &Path) -> Self {
        let reader = BufReader::new(reader);
        Self { path: path.to_owned(), reader, buffer: Vec::new(), line: 0, inside_line: false }
    }

    /// The next line that is not blank: its number and its text without white space around it, or what is wrong with it. None at the end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        while self.fill()? {
            if self.inside_line || !self.buffer.trim_ascii().is_empty() {
                return Ok(Some(self.line(<[u8]>::trim_ascii)));
            }
        }
        Ok(None)
    }

    /// The next line as it is, blank or not, without the line end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn next_text(&mut self) -> Result<Option<Line<'_>>> {
        let without_end = |line: &[u8]| {
            line.strip_suffix(b"\n").map_or(line.len(), |line| line.strip_suffix(b"\r").map_or(line.len(), <[u8]>::len))
        };
        Ok(if self.fill()? { Some(self.line(|line| &line[..without_end(line)])) } else { None })
    }

    fn line(&self, trim: impl Fn(&[u8]) -> &[u8]) -> Line<'_> {
        if self.inside_line {
            return (self.line, Err(format!("the line is longer than {} MiB", LINE_CAP >> 20)));
        }
        let text = std::str::from_utf8(trim(&self.buffer));
        (self.line, text.map_err(|error| format!("not UTF-8 from byte {} on", error.valid_up_to() + 1)))
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
        if self.line == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
            self.buffer.drain(..3);
        }
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_they_are_keep_their_blanks() {
        let text: &[u8] = b"\xef\xbb\xbf a \r\n\n\xff\nlast";
        let mut lines = Lines::new(Box::new(text), Path::new("(memory)"));
        assert_eq!(lines.next_text().unwrap(), Some((1, Ok(" a "))));
        assert_eq!(lines.next_text().unwrap(), Some((2, Ok(""))));
        assert!(matches!(lines.next_text().unwrap(), Some((3, Err(_)))));
        assert_eq!(lines.next_text().unwrap(), Some((4, Ok("last"))));
        assert_eq!(lines.next_text().unwrap(), None);
    }

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
