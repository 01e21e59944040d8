//! Files opened for reading many ranges out of them: mapped into memory, behind a type that is safe to use. What the bytes
//! mean (headers, tensors) is the business of `firebrick-core`.
//!
//! Two ways lead to the bytes, because a mapping has one weakness: when somebody shortens the file, touching a page behind
//! the new end kills the process with SIGBUS, which no Rust code can turn into an error.
//!
//! - [`Map::bytes`] lends the mapping itself, without a copy. It compares size and modification time of the open file with
//!   those seen at opening, and fails when they differ. What remains is a race: a file shortened *after* this check and
//!   *before* the last touch of the slice still ends in SIGBUS, and one rewritten in that time is seen changed. Use it for
//!   what is parsed at once, such as a header of some kilobytes.
//! - [`Map::copy_into`] goes through a positional read of the same open file. The system copies out of the page cache that
//!   the mapping would show, so it is one copy as well, costs no page faults, never counts mapped pages to this process,
//!   and a shortened file is an ordinary error whenever it happens. Tensors, which are copied once into a backend's buffer
//!   anyway, take this way.
//!
//! The comparison asks the open file, not the path: a file replaced by renaming another over it (as a careful writer does)
//! leaves the opened one whole, and reading goes on undisturbed. A file rewritten in place to the same length within the
//! clock tick of the opening (milliseconds on most file systems) is not noticed.

use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

/// A read-only file, mapped into memory; see the module's head for what protects the reader when the file changes.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    file: File,
    /// Absent for an empty file: some systems refuse to map nothing.
    mapping: Option<Mmap>,
    length: usize,
    modified: Option<SystemTime>,
}

impl Map {
    /// Opens and maps the regular file at `path`.
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
        let mapping = if length == 0 {
            None
        } else {
            // SAFETY: the mapping is private to `Map` and read-only. Its bytes leave through `bytes` only, as plain `u8`,
            // for which every value is valid; that others may write the file meanwhile is checked there as far as can be.
            Some(unsafe { memmap2::MmapOptions::new().len(length).map(&file)? })
        };
        Ok(Self { path: path.to_path_buf(), file, mapping, length, modified: metadata.modified().ok() })
    }

    /// The path given to [`Map::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the file was empty when it was opened.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The mapped bytes of `range`, not copied. To be read at once: see the race in the module's head.
    ///
    /// # Errors
    /// `UnexpectedEof` for a range outside the file; `InvalidData` when the file has changed since it was opened.
    pub fn bytes(&self, range: Range<usize>) -> Result<&[u8]> {
        self.inside(&range)?;
        self.unchanged()?;
        Ok(self.mapping.as_deref().unwrap_or_default().get(range).unwrap_or_default())
    }

    /// Fills `target` with the bytes of the file from `start` on: the one copy of a tensor.
    ///
    /// # Errors
    /// `UnexpectedEof` for a range outside the file; `InvalidData` when the file has changed since it was opened, checked
    /// after reading, so that bytes of two versions are never returned as one.
    pub fn copy_into(&self, start: usize, target: &mut [u8]) -> Result<()> {
        self.inside(&(start..start.saturating_add(target.len())))?;
        let read = self.read_at(start, target);
        // A shortened file makes the read fail too; "changed" is the reason worth telling.
        self.unchanged()?;
        read
    }

    /// The bytes of `range`, copied.
    ///
    /// # Errors
    /// As [`Map::copy_into`].
    pub fn copy(&self, range: Range<usize>) -> Result<Vec<u8>> {
        self.inside(&range)?;
        let mut bytes = vec![0; range.len()];
        self.copy_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Tells the system that the mapped pages wholly inside `range` are not needed any more, so that they stop counting to
    /// this process. They come back when touched again. Advice only: nothing happens on systems that do not know it.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(mapping) = &self.mapping {
            let page = page_size();
            // The end of the file closes its last page; elsewhere a page shared with a neighbour stays.
            let end = if range.end >= self.length { self.length } else { range.end / page * page };
            let start = range.start.div_ceil(page).saturating_mul(page);
            if start < end {
                // SAFETY: on a shared, read-only file mapping DONTNEED loses nothing: the next touch reads the file's page
                // again, with the same content (or the change that `bytes` would have reported).
                let advice =
                    unsafe { mapping.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
                // Refused advice costs memory, not correctness, and there is nothing the caller could do about it.
                drop(advice);
            }
        }
        #[cfg(not(unix))]
        let _ = range;
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

    #[cfg(not(any(unix, windows)))]
    fn read_at(&self, start: usize, target: &mut [u8]) -> Result<()> {
        target.copy_from_slice(self.bytes(start..start + target.len())?);
        Ok(())
    }
}

/// Bytes of a memory page, or more: `release` frees a little less when it is guessed too large, and fails when too small.
#[cfg(unix)]
fn page_size() -> usize {
    // Apple silicon has pages of 16 KiB, some 64-bit ARM Linux systems of 64 KiB; every other size divides this one.
    64 * 1024
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
    fn both_ways_read_the_same_bytes() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i * 7 / 3) as u8).collect();
        let file = file(&content);
        let map = Map::open(file.path()).unwrap();
        assert_eq!((map.len(), map.is_empty(), map.path()), (content.len(), false, file.path()));
        for range in [0..content.len(), 0..0, 5..5, 299_999..300_000, 4095..200_001, 300_000..300_000] {
            assert_eq!(map.bytes(range.clone()).unwrap(), &content[range.clone()]);
            assert_eq!(map.copy(range.clone()).unwrap(), &content[range]);
        }
    }

    #[test]
    fn released_pages_come_back_with_their_content() {
        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i / 11) as u8).collect();
        let file = file(&content);
        let map = Map::open(file.path()).unwrap();
        for range in [0..content.len(), 1..999_999, 70_000..70_001, 0..usize::MAX, usize::MAX - 1..usize::MAX] {
            assert_eq!(map.bytes(0..content.len()).unwrap(), content);
            map.release(range);
        }
        assert_eq!(map.bytes(0..content.len()).unwrap(), content);
    }

    #[test]
    fn an_empty_file_has_no_bytes_and_no_panic() {
        let file = file(b"");
        let map = Map::open(file.path()).unwrap();
        assert!(map.is_empty());
        assert!(map.bytes(0..0).unwrap().is_empty());
        assert!(map.copy(0..0).unwrap().is_empty());
        map.release(0..0);
        assert_eq!(map.copy(0..1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_range_outside_the_file_is_an_error() {
        let file = file(b"12345678");
        let map = Map::open(file.path()).unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "such a range must be refused too")]
        for range in [0..9, 9..9, 5..4, 8..usize::MAX] {
            assert_eq!(map.bytes(range.clone()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(map.copy(range).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
        assert_eq!(map.copy_into(usize::MAX, &mut [0; 4]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_shortened_after_opening_is_an_error_and_no_signal() {
        let file = file(&[7; 100_000]);
        let map = Map::open(file.path()).unwrap();
        file.as_file().set_len(10).unwrap();
        for range in [0..10, 0..100_000, 90_000..100_000] {
            let error = map.bytes(range.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains("100000 bytes became 10"), "{error}");
            assert_eq!(map.copy(range).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        // Even without the check, the copying way reports an end of file where the mapping would raise SIGBUS.
        assert_eq!(map.read_at(90_000, &mut [0; 10]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_rewritten_to_the_same_length_is_noticed() {
        let mut file = file(b"first content");
        let map = Map::open(file.path()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.write_all(b"other content").unwrap();
        file.as_file().set_modified(SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
        assert!(map.bytes(0..5).unwrap_err().to_string().contains("written to"));
        assert!(map.copy(0..5).unwrap_err().to_string().contains("written to"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_replaced_by_renaming_stays_readable_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("weights"), folder.path().join("new"));
        std::fs::write(&path, b"as opened").unwrap();
        let map = Map::open(&path).unwrap();
        std::fs::write(&other, b"something longer").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(map.bytes(0..9).unwrap(), b"as opened");
        assert_eq!(map.copy(0..9).unwrap(), b"as opened");
    }

    #[test]
    fn folders_and_absent_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Map::open(folder.path()).unwrap_err().to_string().contains("a folder"));
        assert_eq!(Map::open(&folder.path().join("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
