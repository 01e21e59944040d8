//! From a hub into the cache: what a snapshot needs, file by file; a file that breaks off goes on where it stopped, and becomes final
//! only when its size and hash are right.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Event;
use crate::cache::RepoCache;
use crate::error::Error;
use crate::name::RepoId;
use crate::remote::{Metadata, Remote};
use crate::select::{INDEX, select, shards};
use crate::verify::Verifier;

/// Attempts of which each gets nowhere.
const ATTEMPTS: u32 = 5;
/// How often a file may change while it is downloaded.
const RESTARTS: u32 = 3;
const CHUNK_BYTES: usize = 1 << 18;

/// A download in progress.
pub(crate) struct Download<'a> {
    pub remote: Remote<'a>,
    pub cache: &'a RepoCache,
    pub id: &'a RepoId,
    /// Before the second attempt; twice as long before each further one.
    pub pause: Duration,
    pub progress: &'a mut dyn FnMut(Event<'_>),
}

/// Why the bytes of one file are not there.
enum Failure {
    /// Asking for the same again makes no sense.
    Final(Error),
    /// It is another file now, or the parts of several attempts do not make one.
    Changed,
}

impl<T: Into<Error>> From<T> for Failure {
    fn from(error: T) -> Self {
        Self::Final(error.into())
    }
}

impl Download<'_> {
    /// Downloads what the snapshot of a revision lacks. The revision points to it only when it is complete.
    pub fn snapshot(&mut self, revision: &str) -> Result<PathBuf, Error> {
        let repo = self.id.repo();
        let listing = self.persistently(|this| this.remote.list(revision))?;
        let selection = select(&repo, &listing.files)?;
        let commit = &*listing.commit;
        let begun = Event::Begun { repo: &repo, commit, host: self.remote.host(), files: selection.files.len() };
        (self.progress)(begun);
        for file in &selection.files {
            self.file(commit, file)?;
        }
        let snapshot = self.cache.snapshot(commit);
        if selection.is_sharded {
            let shards = shards(&snapshot.join(INDEX))?;
            if let Some(file) = shards.iter().find(|shard| !listing.files.contains(shard)) {
                return Err(Error::NoFile { repo, file: file.clone() });
            }
            for shard in &shards {
                self.file(commit, shard)?;
            }
        }
        for file in selection.absent {
            self.cache.note_absent(commit, file)?;
        }
        self.cache.note_commit(revision, commit)?;
        self.cache.tag();
        Ok(snapshot)
    }

    /// Downloads one file, unless the snapshot has it.
    fn file(&mut self, commit: &str, file: &str) -> Result<(), Error> {
        if self.cache.snapshot(commit).join(file).is_file() {
            return Ok(());
        }
        for _ in 0..RESTARTS {
            let metadata = self.persistently(|this| this.remote.metadata(commit, file))?;
            let blob = self.cache.blob(&metadata.etag)?;
            let progress = &mut self.progress;
            let lock = self.cache.lock(&metadata.etag, || progress(Event::Waiting { file }))?;
            if !self.cache.has_blob(&blob, metadata.size)? {
                let (incomplete, bytes) = self.cache.open_incomplete(&blob, &lock)?;
                match self.receive(commit, file, &metadata, &incomplete, bytes) {
                    Ok(()) => fs::rename(&incomplete, &blob).map_err(Error::io(&blob))?,
                    Err(Failure::Changed) => {
                        fs::remove_file(&incomplete).map_err(Error::io(&incomplete))?;
                        continue;
                    }
                    Err(Failure::Final(error)) => {
                        if !lock.is_held() {
                            // Nobody will find this file of ours to go on with.
                            let _ = fs::remove_file(&incomplete);
                        }
                        return Err(error);
                    }
                }
            }
            return self.cache.place(commit, file, &blob);
        }
        Err(Error::Changed { repo: self.id.repo(), file: file.to_owned() })
    }

    /// Receives the bytes of a file that are not there yet, and checks all of them.
    fn receive(
        &mut self,
        commit: &str,
        file: &str,
        metadata: &Metadata,
        path: &Path,
        bytes: File,
    ) -> Result<(), Failure> {
        let mut partial =
            Partial { path, bytes, verifier: Verifier::new(&metadata.etag, metadata.size), length: 0, parts: 0 };
        let result =
            self.fill(commit, file, metadata, &mut partial).and_then(|()| self.verify(file, metadata, partial));
        // What is damaged is of no use to the next attempt either.
        if let Err(Failure::Final(Error::Hash { .. } | Error::Pointer { .. } | Error::Size { .. })) = result {
            fs::remove_file(path).map_err(Error::io(path))?;
        }
        result
    }

    /// Asks for the rest until all is there.
    fn fill(&mut self, commit: &str, file: &str, metadata: &Metadata, partial: &mut Partial) -> Result<(), Failure> {
        let Metadata { etag, size } = metadata;
        partial.read_back(etag, *size)?;
        let (mut furthest, mut fruitless) = (partial.length, 0);
        (self.progress)(Event::Received { file, bytes: partial.length, total: *size });
        // An empty file is there without asking.
        while partial.length < *size {
            let failed = match self.remote.read(commit, file, metadata, partial.length) {
                Ok(None) => return Err(Failure::Changed),
                Ok(Some(transfer)) => {
                    if transfer.start != partial.length {
                        partial.restart(etag, *size)?;
                    }
                    partial.parts += 1;
                    self.copy(file, *size, transfer, partial)?
                }
                Err(error) if error.is_transient() => {
                    // Perhaps what we have is too long for what the hub has.
                    if matches!(error, Error::Status { status: 416, .. }) {
                        partial.restart(etag, *size)?;
                    }
                    Some(error)
                }
                Err(error) => return Err(Failure::Final(error)),
            };
            if partial.length == *size {
                break;
            }
            if partial.verifier.is_pointer() && failed.is_none() {
                return Err(Error::Pointer { repo: self.id.repo(), file: file.to_owned() }.into());
            }
            // What came further than any attempt before was worth it.
            fruitless = if partial.length > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(partial.length);
            if fruitless >= ATTEMPTS {
                let (repo, file) = (self.id.repo(), file.to_owned());
                let short = Error::Size { repo, file, expected: *size, received: partial.length };
                return Err(failed.unwrap_or(short).into());
            }
            self.wait(fruitless);
        }
        Ok(())
    }

    /// Appends what arrives; says why it broke off, if it did.
    fn copy(
        &mut self,
        file: &str,
        size: u64,
        mut transfer: crate::remote::Transfer,
        partial: &mut Partial,
    ) -> Result<Option<Error>, Failure> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = match transfer.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) => return Ok(Some(self.remote.network(self.remote.host(), file, &error))),
            };
            if partial.length + count as u64 > size {
                let (repo, file, received) = (self.id.repo(), file.to_owned(), partial.length + count as u64);
                return Err(Error::Size { repo, file, expected: size, received }.into());
            }
            partial.append(&chunk[..count])?;
            (self.progress)(Event::Received { file, bytes: partial.length, total: size });
        }
    }

    fn verify(&self, file: &str, metadata: &Metadata, partial: Partial) -> Result<(), Failure> {
        let (repo, file) = (self.id.repo(), file.to_owned());
        if partial.verifier.is_pointer() {
            return Err(Error::Pointer { repo, file }.into());
        }
        // On the disk before it has its final name, so that not even a power cut leaves a broken file under it.
        partial.bytes.sync_all().map_err(Error::io(partial.path))?;
        match partial.verifier.finish() {
            Some(actual) if !actual.eq_ignore_ascii_case(&metadata.etag) => {
                if partial.parts > 1 {
                    return Err(Failure::Changed);
                }
                Err(Error::Hash { repo, file, expected: metadata.etag.clone(), actual }.into())
            }
            _ => Ok(()),
        }
    }

    /// Asks again if that may help.
    fn persistently<T>(&mut self, ask: impl Fn(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let mut failures = 0;
        loop {
            match ask(self) {
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS.min(3) => {
                    failures += 1;
                    self.wait(failures);
                }
                result => return result,
            }
        }
    }

    fn wait(&self, failures: u32) {
        std::thread::sleep(self.pause * (1 << failures.min(5)) / 2);
    }
}

/// What has arrived of a file.
struct Partial<'p> {
    path: &'p Path,
    bytes: File,
    verifier: Verifier,
    length: u64,
    /// How many attempts it took.
    parts: usize,
}

impl Partial<'_> {
    /// Hashes what an earlier attempt left.
    fn read_back(&mut self, etag: &str, size: u64) -> Result<(), Error> {
        if self.bytes.metadata().map_err(Error::io(self.path))?.len() > size {
            return self.restart(etag, size);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = self.bytes.read(&mut chunk).map_err(Error::io(self.path))?;
            if count == 0 {
                self.parts = usize::from(self.length > 0);
                return Ok(());
            }
            self.verifier.update(&chunk[..count]);
            self.length += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.bytes.write_all(bytes).map_err(Error::io(self.path))?;
        self.verifier.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, etag: &str, size: u64) -> Result<(), Error> {
        self.bytes.set_len(0).map_err(Error::io(self.path))?;
        self.bytes.seek(SeekFrom::Start(0)).map_err(Error::io(self.path))?;
        self.verifier = Verifier::new(etag, size);
        (self.length, self.parts) = (0, 0);
        Ok(())
    }
}
