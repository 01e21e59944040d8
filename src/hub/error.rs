//! Why a model's name did not lead to its folder. No text here has a token or the query of an address in it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model's folder was not found, or not downloaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a folder nor a repo id.
    #[error("{name}: no such folder, and not a repo id of the form org/name[@revision]")]
    NotFound {
        /// The name given.
        name: String,
    },
    /// No variable says where the cache is, nor where home is.
    #[error("{name}: no Hugging Face cache, since none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set")]
    NoCache {
        /// The name given.
        name: String,
    },
    /// Offline, and not everything is in the cache.
    #[error(
        "{repo}: no such folder, and {file} of revision {revision} is not in the Hugging Face cache {}; HF_HUB_OFFLINE forbids to download it: \
         unset that, or fill the cache elsewhere with `hf download {repo} --revision {revision}`",
        cache.display()
    )]
    Offline {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The first file that is missing.
        file: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT must be an address such as https://huggingface.co")]
    Endpoint,
    /// The token cannot be sent.
    #[error(
        "the Hugging Face token has characters that no token has: check HF_TOKEN, or the file that HF_TOKEN_PATH names"
    )]
    Token,
    /// The hub wants to know who asks, or refuses who does.
    #[error(
        "{repo}: {host} refuses access (status {status}): {}",
        if *with_token {
            "the token is not valid or may not read this repo; accept its conditions on its page, then check HF_TOKEN"
        } else {
            "it is gated or private; accept its conditions on its page, then set HF_TOKEN"
        }
    )]
    Denied {
        /// `org/name`.
        repo: String,
        /// The hub's host.
        host: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The hub knows no such repo.
    #[error("{repo}: no such folder, and no such repo at {host}, or a private one; if it is private, set HF_TOKEN")]
    NoRepo {
        /// `org/name`.
        repo: String,
        /// The hub's host.
        host: String,
    },
    /// The hub knows the repo, but not the revision.
    #[error("{repo}: no revision {revision} at {host}")]
    NoRevision {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The hub's host.
        host: String,
    },
    /// The repo lacks a file that it must have.
    #[error("{repo}: has no {file}")]
    NoFile {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
    },
    /// The repo has no weights in safetensors.
    #[error(
        "{repo}: has no model.safetensors{}",
        if others.is_empty() { String::new() } else { format!("; {} will not be downloaded: only safetensors are", others.join(", ")) }
    )]
    NoWeights {
        /// `org/name`.
        repo: String,
        /// Weights in other formats.
        others: Vec<String>,
    },
    /// A status that means nothing else here.
    #[error("{repo}: {host} answers {what} with status {status}")]
    Status {
        /// `org/name`.
        repo: String,
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// No answer.
    #[error("{repo}: no such folder, and no connection to {host} for {what}: {reason}")]
    Network {
        /// `org/name`.
        repo: String,
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{repo}: {host} answers {what} with {problem}")]
    Answer {
        /// `org/name`.
        repo: String,
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file changed on the hub each time it was begun.
    #[error("{repo}: {file} changes on the hub while it is downloaded; try again later")]
    Changed {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
    },
    /// More or fewer bytes than announced.
    #[error("{repo}: {file} should have {expected} bytes but {received} arrived; nothing was kept as final, try again")]
    Size {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        received: u64,
    },
    /// Not the announced bytes.
    #[error("{repo}: {file} arrived damaged: its hash is {actual}, not {expected}; it was deleted, try again")]
    Hash {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
        /// The hash announced.
        expected: String,
        /// The hash of what arrived.
        actual: String,
    },
    /// Git's stand-in for a large file, not the file.
    #[error("{repo}: the hub sent a Git LFS pointer instead of {file}; the repo was uploaded without its large files")]
    Pointer {
        /// `org/name`.
        repo: String,
        /// The file.
        file: String,
    },
    /// A name from the hub that must not become a path.
    #[error("{repo}: the hub names {what} `{name}`, which could lead out of the cache; nothing is written")]
    Hostile {
        /// `org/name`.
        repo: String,
        /// What has the name.
        what: &'static str,
        /// The name, escaped.
        name: String,
    },
    /// A link in the cache that leads out of it.
    #[error("{}: leads out of the Hugging Face cache, to {}; remove it", path.display(), target.display())]
    Escape {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A list of shards that cannot be read.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: what the system says about a path.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether asking again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 416 | 429 | 500..=599),
            _ => false,
        }
    }
}
