//! The cache folder as huggingface_hub keeps it: blobs by etag, snapshots that link to them, branches as files with a commit.
//! Nothing here knows the network.
//!
//! ```text
//! models--org--name/refs/main                  the commit
//! models--org--name/blobs/<etag>               the bytes; <etag>.incomplete while they arrive
//! models--org--name/snapshots/<commit>/file    a link to ../../blobs/<etag>
//! models--org--name/.no_exist/<commit>/file    the repo has no such file
//! .locks/models--org--name/<etag>.lock         held while the blob arrives
//! ```
//!
//! Source: huggingface_hub's guide "Manage your cache" and its `file_download.py`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::name::{RepoId, is_component};

/// How often a lock that somebody else holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Entries of a snapshot that are looked at, and how deep: more are no model.
const MAX_ENTRIES: usize = 10_000;
const MAX_DEPTH: usize = 8;

/// A repo's folder in the cache.
pub(crate) struct RepoCache {
    root: PathBuf,
    name: String,
    symlinks: bool,
}

impl RepoCache {
    pub fn new(root: &Path, id: &RepoId, symlinks: bool) -> Self {
        Self { root: root.to_owned(), name: id.folder(), symlinks }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The commit of a revision, as far as the cache knows.
    pub fn commit(&self, revision: &str) -> String {
        // A branch or tag is a file that holds the commit; a commit is its own name.
        let known = fs::read_to_string(self.folder().join("refs").join(revision)).ok();
        let known = known.as_deref().map(str::trim).filter(|commit| is_component(commit));
        known.unwrap_or(revision).to_owned()
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// Whether the repo is known not to have a file at a commit.
    pub fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.folder().join(".no_exist").join(commit).join(file).exists()
    }

    /// Refuses a snapshot with a link that leads out of the cache.
    pub fn check_links(&self, snapshot: &Path) -> Result<(), Error> {
        let root = self.root.canonicalize().map_err(Error::io(&self.root))?;
        self.inside(&root, snapshot)?;
        let mut folders = vec![(snapshot.to_owned(), 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = folders.pop() {
            for entry in folder.read_dir().map_err(Error::io(&folder))? {
                let entry = entry.map_err(Error::io(&folder))?;
                let kind = entry.file_type().map_err(Error::io(&folder))?;
                seen += 1;
                if kind.is_symlink() {
                    self.inside(&root, &entry.path())?;
                } else if kind.is_dir() && depth < MAX_DEPTH && seen < MAX_ENTRIES {
                    folders.push((entry.path(), depth + 1));
                }
            }
        }
        Ok(())
    }

    /// Refuses a path that leads out of the cache. A link to nothing leads nowhere.
    fn inside(&self, root: &Path, path: &Path) -> Result<(), Error> {
        match path.canonicalize() {
            Ok(target) if target.starts_with(root) => Ok(()),
            Ok(target) => Err(Error::Escape { path: path.to_owned(), target }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::Io { path: path.to_owned(), source: error }),
        }
    }

    /// A folder below the root, made where it is not there; no part of it is a link out of the cache.
    fn make_folder(&self, below: &Path) -> Result<PathBuf, Error> {
        fs::create_dir_all(&self.root).map_err(Error::io(&self.root))?;
        let root = self.root.canonicalize().map_err(Error::io(&self.root))?;
        let mut folder = self.root.clone();
        for part in below.components() {
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(Error::Io { path: folder, source: error });
                }
                _ => self.inside(&root, &folder)?,
            }
        }
        Ok(folder)
    }

    /// Marks the cache for backup programs, which need not save it.
    pub fn tag(&self) {
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // What is not tagged is only saved in vain. Source: bford.info/cachedir.
            let _ = fs::write(tag, "Signature: 8a477f597d28d172789f06886806bc55\n# The Hugging Face cache.\n");
        }
    }

    /// Where a blob is when it is complete.
    pub fn blob(&self, etag: &str) -> Result<PathBuf, Error> {
        Ok(self.make_folder(&Path::new(&self.name).join("blobs"))?.join(etag))
    }

    /// Whether a blob is complete; one of another size is not, and is deleted.
    pub fn has_blob(&self, blob: &Path, size: u64) -> Result<bool, Error> {
        let root = self.root.canonicalize().map_err(Error::io(&self.root))?;
        self.inside(&root, blob)?;
        match blob.metadata() {
            Ok(metadata) if metadata.len() == size => Ok(true),
            _ if blob.symlink_metadata().is_ok() => fs::remove_file(blob).map(|()| false).map_err(Error::io(blob)),
            _ => Ok(false),
        }
    }

    /// Opens what has arrived of a blob, to read and to go on writing.
    pub fn open_incomplete(&self, blob: &Path, lock: &Lock) -> Result<(PathBuf, File), Error> {
        let mut path = blob.as_os_str().to_owned();
        if !lock.is_held() {
            // Nobody keeps others from writing at the same time, so this attempt has a file of its own.
            path.push(format!(".{}", unique()));
        }
        path.push(".incomplete");
        let path = PathBuf::from(path);
        remove_link(&path)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Ok((path.clone(), file.map_err(Error::io(&path))?))
    }

    /// Takes the lock of a blob; `wait` is called once if another process has it.
    pub fn lock(&self, etag: &str, wait: impl FnOnce()) -> Result<Lock, Error> {
        let path = self.make_folder(&Path::new(".locks").join(&self.name))?.join(format!("{etag}.lock"));
        remove_link(&path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
        let mut wait = Some(wait);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(Some(file))),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(Lock(None)),
                Err(TryLockError::Error(error)) => return Err(Error::Io { path, source: error }),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(wait) = wait.take() {
                wait();
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// Puts a blob into a snapshot under a file's name: as a relative link, or where links are not possible as a copy.
    pub fn place(&self, commit: &str, file: &str, blob: &Path) -> Result<(), Error> {
        let below = Path::new(&self.name).join("snapshots").join(commit).join(file);
        let folder = self.make_folder(below.parent().unwrap_or(Path::new(&self.name)))?;
        let path = self.root.join(&below);
        let up = Path::new(file).components().filter(|part| matches!(part, Component::Normal(_))).count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).collect();
        let target = target.join("blobs").join(blob.file_name().unwrap_or_default());
        // Written beside and renamed, so that it appears whole and replaces whatever was planted there.
        let temporary = folder.join(format!(".{}.incomplete", unique()));
        if !self.symlinks || symlink(&target, &temporary).is_err() {
            fs::copy(blob, &temporary).map_err(Error::io(&temporary))?;
        }
        fs::rename(&temporary, &path).map_err(Error::io(&path))
    }

    /// Notes that the repo has no such file at a commit.
    pub fn note_absent(&self, commit: &str, file: &str) -> Result<(), Error> {
        let below = Path::new(&self.name).join(".no_exist").join(commit).join(file);
        self.make_folder(below.parent().unwrap_or(Path::new(&self.name)))?;
        let path = self.root.join(&below);
        match File::create_new(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Error::Io { path, source: error }),
            _ => Ok(()),
        }
    }

    /// Notes the commit of a branch or tag.
    pub fn note_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if revision == commit || self.commit(revision) == commit {
            return Ok(());
        }
        let below = Path::new(&self.name).join("refs").join(revision);
        let folder = self.make_folder(below.parent().unwrap_or(Path::new(&self.name)))?;
        let (path, temporary) = (self.root.join(&below), folder.join(format!(".{}.incomplete", unique())));
        fs::write(&temporary, commit).map_err(Error::io(&temporary))?;
        fs::rename(&temporary, &path).map_err(Error::io(&path))
    }
}

/// The right to write a blob, until it is dropped; empty where the file system has no locks.
pub(crate) struct Lock(Option<File>);

impl Lock {
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }
}

/// Deletes a link where a file is about to be written: it would make us write elsewhere.
fn remove_link(path: &Path) -> Result<(), Error> {
    match path.symlink_metadata() {
        Ok(entry) if entry.is_symlink() => fs::remove_file(path).map_err(Error::io(path)),
        _ => Ok(()),
    }
}

/// A name that no other process or thread has.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// On Windows a link needs a privilege that few have.
#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
