//! From a model's name to its folder: a local path, or a repo id `org/name[@revision]` in the cache that huggingface_hub keeps.
//!
//! Nothing here opens a socket. What is not in the cache is an error that says where it was looked for and how to get it.
//!
//! Source: huggingface_hub's `constants.py` for the environment, its guide "Manage your cache" for the layout.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Why a model's folder was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a folder nor a repo id.
    #[error("{name}: no such folder, and not a repo id of the form org/name[@revision]")]
    NotFound {
        /// The name given.
        name: String,
    },
    /// A repo id whose files are not in the cache.
    #[error(
        "{name}: no such folder, and revision {revision} is not in the Hugging Face cache {}; get it with `hf download {repo} --revision {revision}`",
        cache.display()
    )]
    NotCached {
        /// The name given.
        name: String,
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// No variable says where the cache is, nor where home is.
    #[error("{name}: no Hugging Face cache, since none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set")]
    NoCache {
        /// The name given.
        name: String,
    },
}

/// The folder of a model: `name` itself where it exists, else the snapshot of the repo it names.
///
/// # Errors
/// If it is neither, or the snapshot is not in the cache.
pub fn resolve(name: &str) -> Result<PathBuf, Error> {
    resolve_in(name, |variable| std::env::var_os(variable))
}

/// The cache folder by the first of `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` and the home folder that is set.
pub fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(folder("HOME").or_else(|| folder("USERPROFILE"))?.join(".cache/huggingface/hub")))
}

fn resolve_in(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let Some((organisation, model, revision)) = parse(name) else {
        return Err(Error::NotFound { name: name.to_owned() });
    };
    let cache = cache_folder(variable).ok_or_else(|| Error::NoCache { name: name.to_owned() })?;
    let repo = cache.join(format!("models--{organisation}--{model}"));
    // A branch or tag is a file that holds the commit; a commit is its own name.
    let commit = std::fs::read_to_string(repo.join("refs").join(revision)).ok();
    let commit = commit.as_deref().map(str::trim).filter(|commit| is_component(commit)).unwrap_or(revision);
    let snapshot = repo.join("snapshots").join(commit);
    if is_component(commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    let (name, repo) = (name.to_owned(), format!("{organisation}/{model}"));
    Err(Error::NotCached { name, repo, revision: revision.to_owned(), cache })
}

/// Organisation, model and revision of a repo id. Names become parts of a path, so that nothing else may pass.
fn parse(name: &str) -> Option<(&str, &str, &str)> {
    let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
    let (organisation, model) = repo.split_once('/')?;
    // A branch may have a slash, as pull requests do (`refs/pr/1`).
    let good = is_component(organisation) && is_component(model) && revision.split('/').all(is_component);
    good.then_some((organisation, model, revision))
}

fn is_component(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache as huggingface_hub writes it.
    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--Qwen--Qwen2.5-0.5B");
        std::fs::create_dir_all(repo.join("snapshots").join(COMMIT)).unwrap();
        std::fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
        std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
        std::fs::write(repo.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
        std::fs::write(repo.join("refs/hostile"), "../../../etc").unwrap();
        cache
    }

    fn resolve_from(cache: &Path, name: &str) -> Result<PathBuf, Error> {
        resolve_in(name, |variable| (variable == "HF_HUB_CACHE").then(|| cache.as_os_str().to_owned()))
    }

    #[test]
    fn a_branch_a_pull_request_and_a_commit_lead_to_the_snapshot() {
        let cache = cache();
        let snapshot = cache.path().join("models--Qwen--Qwen2.5-0.5B/snapshots").join(COMMIT);
        for revision in ["", "@main", "@refs/pr/1", &format!("@{COMMIT}")] {
            assert_eq!(resolve_from(cache.path(), &format!("Qwen/Qwen2.5-0.5B{revision}")), Ok(snapshot.clone()));
        }
    }

    #[test]
    fn a_folder_is_itself() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(resolve(folder.path().to_str().unwrap()), Ok(folder.path().to_owned()));
    }

    #[test]
    fn what_is_not_cached_says_where_it_was_looked_for() {
        let cache = cache();
        for name in ["Qwen/Other", "Qwen/Qwen2.5-0.5B@v2", "Qwen/Qwen2.5-0.5B@hostile"] {
            let error = resolve_from(cache.path(), name).unwrap_err().to_string();
            assert!(error.contains("hf download Qwen/") && error.contains(cache.path().to_str().unwrap()), "{error}");
        }
        let error = resolve_in("Qwen/Qwen2.5-0.5B", |_| None).unwrap_err();
        assert_eq!(error, Error::NoCache { name: "Qwen/Qwen2.5-0.5B".into() });
    }

    #[test]
    fn hostile_names_are_no_repo_ids() {
        let cache = cache();
        let names = [
            "",
            "x",
            "a/b/c",
            "../x",
            "a/..",
            "a/.b",
            "a/b@",
            "a/b@../x",
            "a/b@/etc",
            "a\\b/c",
            "a/b\0",
            "a/b@x/../y",
            "~/x",
        ];
        for name in names {
            assert!(matches!(resolve_from(cache.path(), name), Err(Error::NotFound { .. })), "{name:?}");
        }
    }

    #[test]
    fn the_environment_has_its_precedence() {
        let order = [
            ("HF_HUB_CACHE", "/1"),
            ("HUGGINGFACE_HUB_CACHE", "/2"),
            ("HF_HOME", "/3"),
            ("XDG_CACHE_HOME", "/4"),
            ("HOME", "/5"),
        ];
        let expected = ["/1", "/2", "/3/hub", "/4/huggingface/hub", "/5/.cache/huggingface/hub"];
        for (first, expected) in expected.iter().enumerate() {
            let set = &order[first..];
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            assert_eq!(cache_folder(variable), Some(PathBuf::from(expected)));
        }
        let empty = |name: &str| Some(OsString::from(if name == "HOME" { "/5" } else { "" }));
        assert_eq!(cache_folder(empty), Some(PathBuf::from("/5/.cache/huggingface/hub")));
    }
}
