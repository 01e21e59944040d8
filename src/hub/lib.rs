//! From a model's name to its folder: a local path, or a repo id `org/name[@revision]`, from the cache that huggingface_hub keeps or
//! downloaded into it.
//!
//! The cache comes first: what is there is used without a socket being opened. What is not is downloaded by
//! [`ureq`](https://docs.rs/ureq), which is blocking and thus callable from anywhere. The crate `hf-hub` is not used: 1.0.0 neither
//! resumes a download nor checks its hash or the names it is given, and brings 166 crates that take more than twice as long to compile
//! as the rest of Firebrick.
//!
//! ```no_run
//! let folder = firebrick_hub::resolve("Qwen/Qwen2.5-Coder-0.5B-Instruct")?;
//! # Ok::<(), firebrick_hub::Error>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod cache;
mod download;
mod environment;
mod error;
mod name;
mod remote;
mod select;
mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use environment::cache_folder;
pub use error::Error;

use cache::RepoCache;
use download::Download;
use environment::{Environment, Token};
use name::RepoId;
use remote::Remote;
use select::{Lack, lack};

/// The folder of a model, as the environment says: [`Hub::resolve`] without showing progress.
///
/// # Errors
/// If it is neither a folder nor a repo that can be had.
pub fn resolve(name: &str) -> Result<PathBuf, Error> {
    Hub::from_environment().resolve(name, &mut |_| ())
}

/// Repo and commit of a folder that [`resolve`] found in a cache.
pub fn origin(folder: &Path) -> Option<(String, String)> {
    let name = |folder: &Path| folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let snapshots = folder.parent()?;
    let repo = name(snapshots.parent()?)?.strip_prefix("models--")?.replacen("--", "/", 1);
    (name(snapshots)? == "snapshots").then_some((repo, name(folder)?))
}

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    environment: Environment,
    pause: Duration,
}

/// What happens during a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Files of a repo are about to be downloaded.
    Begun {
        /// `org/name`.
        repo: &'a str,
        /// The commit that the revision stands for.
        commit: &'a str,
        /// The hub.
        host: &'a str,
        /// How many files the repo has for us, without the shards of weights.
        files: usize,
    },
    /// Another process downloads this file; its result will be used.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// So much of a file is here. The first event of a file tells what an earlier attempt left, the last that all is there; less than
    /// before means that it had to be begun anew.
    Received {
        /// The file.
        file: &'a str,
        /// Bytes that are here.
        bytes: u64,
        /// Bytes that it has.
        total: u64,
    },
}

impl Hub {
    /// As the environment says: `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and their kin.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// As the given variables say.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        Self { environment: Environment::read(variable), pause: Duration::from_millis(500) }
    }

    /// With another cache folder.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.environment.cache = Some(folder.into());
        self
    }

    /// With another hub than `https://huggingface.co`.
    pub fn endpoint(mut self, address: &str) -> Self {
        self.environment.endpoint = address.trim_end_matches('/').to_owned();
        self
    }

    /// With a token for gated and private repos; it is sent to the hub only, and never shown.
    pub fn token(mut self, token: &str) -> Self {
        self.environment.token = Token::new(token);
        self
    }

    /// Whether to stay offline: nothing opens a socket then.
    pub fn offline(mut self, offline: bool) -> Self {
        self.environment.offline = offline;
        self
    }

    /// With another pause before what failed is tried again; each further one is twice as long.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Whether the environment wants progress bars: not if `HF_HUB_DISABLE_PROGRESS_BARS` is set.
    pub fn shows_progress(&self) -> bool {
        self.environment.shows_progress
    }

    /// The folder of a model: `name` itself where it exists, else the snapshot of the repo it names, downloaded where the cache lacks it.
    ///
    /// # Errors
    /// If it is neither, or cannot be had. A download that failed goes on where it stopped when this is called again.
    pub fn resolve(&self, name: &str, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, Error> {
        let path = Path::new(name);
        if path.exists() {
            return Ok(path.to_owned());
        }
        let id = RepoId::parse(name).ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let root = self.environment.cache.as_deref().ok_or_else(|| Error::NoCache { name: name.to_owned() })?;
        let cache = RepoCache::new(root, &id, self.environment.symlinks);
        let commit = cache.commit(&id.revision);
        let snapshot = cache.snapshot(&commit);
        let is_here = snapshot.is_dir();
        let missing = if is_here {
            cache.check_links(&snapshot)?;
            lack(&snapshot, |file| cache.is_absent(&commit, file))?
        } else {
            Lack::Needed("config.json".to_owned())
        };
        match missing {
            Lack::Nothing => return Ok(snapshot),
            Lack::Perhaps(_) if self.environment.offline => return Ok(snapshot),
            Lack::Needed(file) if self.environment.offline => {
                let (cache, revision) = (root.to_owned(), id.revision.clone());
                return Err(Error::Offline { repo: id.repo(), revision, file, cache });
            }
            _ => {}
        }
        let remote = Remote::new(&self.environment, &id)?;
        let mut download = Download { remote, cache: &cache, id: &id, pause: self.pause, progress };
        match (download.snapshot(&id.revision), missing) {
            // It worked without that file so far.
            (Err(Error::Network { .. }), Lack::Perhaps(_)) => Ok(snapshot),
            (Ok(snapshot), _) => {
                cache.check_links(&snapshot)?;
                Ok(snapshot)
            }
            (Err(error), _) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_says_where_it_is_from() {
        let of = |folder: &str| origin(Path::new(folder));
        assert_eq!(of("/c/models--a--b-c/snapshots/0123"), Some(("a/b-c".into(), "0123".into())));
        for folder in ["/models/qwen", "/c/models--a--b/other/0123", "/c/a--b/snapshots/0123", "x", "/", ""] {
            assert_eq!(of(folder), None, "{folder}");
        }
    }
}
