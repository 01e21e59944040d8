//! Files of which ranges are read. They are not mapped into memory: when somebody shortens a mapped file, touching a page behind the new
//! end kills the process with SIGBUS, which no Rust code can turn into an error.
//!
//! A positional read copies out of the page cache that a mapping would show. Tensors are copied once into a backend's buffer anyway, so it
//! costs nothing more, causes no page faults and never counts mapped pages to this process; nothing refers to the file afterwards. What can
//! happen to the file meanwhile, and what is guaranteed:
//!
//! - shortened or grown, at any moment: an error that names the file, here and for every later range;
//! - rewritten in place: an error, by the time of its modification, which is compared after each reading, so that bytes of two versions
//!   are never returned as one. A file rewritten to the same length within the clock tick of the opening (milliseconds on most file
//!   systems) is not noticed;
//! - replaced by renaming another over it, as a careful writer does: the opened one stays whole, and reading goes on undisturbed. That is
//!   why the comparison asks the open file and not the path.

use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file opened for reading ranges; see the module's head for what happens when it changes.
#[derive(Debug)]
pub(crate) struct RangeFile {
    path: PathBuf,
    file: File,
    length: usize,
    modified: Option<SystemTime>,
}

impl RangeFile {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// What the system says, and `InvalidInput` for what is not a regular file (opening a pipe would wait for ever).
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before opening as well, because the opening of a pipe is what would hang.
        regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?;
        let length = usize::try_from(metadata.len())
            .map_err(|_| Error::new(ErrorKind::FileTooLarge, "the file is larger than the address space"))?;
        Ok(Self { path: path.to_path_buf(), file, length, modified: metadata.modified().ok() })
    }

    /// The path given to [`RangeFile::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Fills `target` with the bytes of the file from `start` on: the one copy of a tensor.
    ///
    /// # Errors
    /// `UnexpectedEof` for a range outside the file; `InvalidData` when the file has changed since it was opened.
    pub fn copy_into(&self, start: usize, target: &mut [u8]) -> Result<()> {
        self.inside(&(start..start.saturating_add(target.len())))?;
        let read = self.read_at(start, target);
        // A shortened file makes the read fail too; "changed" is the reason worth telling.
        self.unchanged()?;
        read
    }

    /// The bytes of `range`.
    ///
    /// # Errors
    /// As [`RangeFile::copy_into`].
    pub fn copy(&self, range: Range<usize>) -> Result<Vec<u8>> {
        self.inside(&range)?;
        let mut bytes = vec![0; range.len()];
        self.copy_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn inside(&self, range: &Range<usize>) -> Result<()> {
        if range.start <= range.end && range.end <= self.length {
            return Ok(());
        }
        let problem = format!("bytes {}..{} asked of a file of {}", range.start, range.end, self.length);
        Err(Error::new(ErrorKind::UnexpectedEof, problem))
    }

    fn unchanged(&self) -> Result<()> {
        let now = self.file.metadata()?;
        if now.len() != self.length as u64 {
            let problem = format!("the file changed while it was in use: {} bytes became {}", self.length, now.len());
            return Err(Error::new(ErrorKind::InvalidData, problem));
        }
        if now.modified().ok() != self.modified {
            return Err(Error::new(ErrorKind::InvalidData, "the file was written to while it was in use"));
        }
        Ok(())
    }

    #[cfg(unix)]
    fn read_at(&self, start: usize, target: &mut [u8]) -> Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, target, start as u64)
    }

    #[cfg(windows)]
    fn read_at(&self, start: usize, target: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < target.len() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, &mut target[done..], (start + done) as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Where no positional read is, there are no threads either that could move the position meanwhile.
    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, start: usize, target: &mut [u8]) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start as u64))?;
        file.read_exact(target)
    }
}

fn regular(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a folder, not a file" } else { "not a regular file" };
    Err(Error::new(ErrorKind::InvalidInput, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn ranges_are_those_of_the_file() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i * 7 / 3) as u8).collect();
        let file = file(&content);
        let opened = RangeFile::open(file.path()).unwrap();
        assert_eq!((opened.len(), opened.path()), (content.len(), file.path()));
        for range in [0..content.len(), 0..0, 5..5, 299_999..300_000, 4095..200_001, 300_000..300_000] {
            assert_eq!(opened.copy(range.clone()).unwrap(), &content[range]);
        }
    }

    #[test]
    fn an_empty_file_has_no_bytes_and_no_panic() {
        let file = file(b"");
        let opened = RangeFile::open(file.path()).unwrap();
        assert!(opened.copy(0..0).unwrap().is_empty());
        assert_eq!(opened.copy(0..1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_range_outside_the_file_is_an_error() {
        let file = file(b"12345678");
        let opened = RangeFile::open(file.path()).unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "such a range must be refused too")]
        for range in [0..9, 9..9, 5..4, 8..usize::MAX] {
            assert_eq!(opened.copy(range).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
        assert_eq!(opened.copy_into(usize::MAX, &mut [0; 4]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_shortened_or_grown_after_opening_is_an_error_and_no_signal() {
        for length in [10, 0, 100_001] {
            let file = file(&[7; 100_000]);
            let opened = RangeFile::open(file.path()).unwrap();
            file.as_file().set_len(length).unwrap();
            for range in [0..10, 0..100_000, 90_000..100_000] {
                let error = opened.copy(range).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidData);
                assert!(error.to_string().contains(&format!("100000 bytes became {length}")), "{error}");
            }
            if length < 100_000 {
                // Even without the comparison, a read reports an end of file where a mapping would raise SIGBUS.
                assert_eq!(opened.read_at(90_000, &mut [0; 10]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            }
        }
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_never_raises_a_signal() {
        let file = file(&[7; 4 << 20]);
        let opened = RangeFile::open(file.path()).unwrap();
        let mut errors = 0;
        std::thread::scope(|scope| {
            let shrinking = scope.spawn(|| {
                for length in (0..64u64).rev() {
                    file.as_file().set_len(length << 16).unwrap();
                }
            });
            while !shrinking.is_finished() || errors == 0 {
                errors += usize::from(opened.copy(0..4 << 20).is_err());
            }
        });
        assert!(opened.copy(0..1).is_err());
    }

    #[test]
    fn a_file_rewritten_to_the_same_length_is_noticed() {
        let mut file = file(b"first content");
        let opened = RangeFile::open(file.path()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.write_all(b"other content").unwrap();
        file.as_file().set_modified(SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
        assert!(opened.copy(0..5).unwrap_err().to_string().contains("written to"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_replaced_by_renaming_stays_readable_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("weights"), folder.path().join("new"));
        std::fs::write(&path, b"as opened").unwrap();
        let opened = RangeFile::open(&path).unwrap();
        std::fs::write(&other, b"something longer").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(opened.copy(0..9).unwrap(), b"as opened");
    }

    #[test]
    fn folders_and_absent_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(RangeFile::open(folder.path()).unwrap_err().to_string().contains("a folder"));
        assert_eq!(RangeFile::open(&folder.path().join("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
