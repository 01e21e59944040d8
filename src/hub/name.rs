//! What strangers may call things: repo ids, revisions, etags and file names become parts of a path, so that nothing else may pass.

/// A repo at a revision: `org/name[@revision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoId {
    organisation: String,
    model: String,
    pub revision: String,
}

impl RepoId {
    pub fn parse(name: &str) -> Option<Self> {
        let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (organisation, model) = repo.split_once('/')?;
        // A branch may have a slash, as pull requests do (`refs/pr/1`).
        let good = is_component(organisation) && is_component(model) && revision.split('/').all(is_component);
        // Python keeps a repo in a folder where `--` stands for the slash.
        let unambiguous = !organisation.contains("--") && !model.contains("--");
        (good && unambiguous).then(|| Self {
            organisation: organisation.to_owned(),
            model: model.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// `org/name`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.organisation, self.model)
    }

    /// Its folder in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation, self.model)
    }
}

/// Whether a commit, an etag or a part of a repo id is one plain component of a path on every system.
pub(crate) fn is_component(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let safe = part.chars().all(allowed) && !part.starts_with('.') && !part.ends_with('.') && !part.contains("..");
    (1..=128).contains(&part.len()) && safe && !is_device(part)
}

/// Whether a file's name from a listing stays inside the folder it is joined to, on every system.
pub(crate) fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    // `c:x` is a drive's on Windows, and `\` separates there.
    let drive = name.as_bytes().get(1) == Some(&b':');
    name.len() <= 1024 && name.split('/').all(plain) && !name.contains(|c: char| c == '\\' || c.is_control()) && !drive
}

/// Whether a file may be called so on every system: what is downloaded is named so, the rest of a listing need not be.
pub(crate) fn is_portable(name: &str) -> bool {
    let plain = |part: &str| {
        !part.ends_with(['.', ' '])
            && !part.starts_with(' ')
            && part.len() <= 255
            && !part.contains(|c: char| "<>:\"|?*".contains(c))
            && !is_device(part)
    };
    is_inside(name) && name.split('/').all(plain)
}

/// Windows opens the device whatever ending follows: `NUL.safetensors` is NUL.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
    let port = ["COM", "LPT"].iter().find_map(|prefix| stem.strip_prefix(prefix));
    let numbered = port.is_some_and(|rest| rest.chars().count() == 1 && rest.contains(|c: char| c.is_numeric()));
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&&*stem) || numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repo_id_has_an_organisation_a_name_and_perhaps_a_revision() {
        let of = |name: &str| RepoId::parse(name).map(|id| (id.repo(), id.folder(), id.revision));
        let expected = |revision: &str| Some(("a/b.c".into(), "models--a--b.c".into(), revision.into()));
        assert_eq!(of("a/b.c"), expected("main"));
        assert_eq!(of("a/b.c@v1.0"), expected("v1.0"));
        assert_eq!(of("a/b.c@refs/pr/1"), expected("refs/pr/1"));
    }

    #[test]
    fn hostile_names_are_no_repo_ids() {
        let names = "|x|a/b/c|../x|a/..|a/.b|a/b@|a/b@../x|a/b@/etc|a\\b/c|a/b\0|a/b@x/../y|~/x|a--b/c|NUL/x|a/con.x";
        for name in names.split('|') {
            assert_eq!(RepoId::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn hostile_file_names_are_not_inside_or_not_portable() {
        let names = "|/|/etc/passwd|..|../x|x/../../y|x/..|.|./x|x//y|x/|a\\b|..\\x|c:x|C:\\x|a\0b|a\nb";
        for name in names.split('|') {
            assert!(!is_inside(name), "{name:?}");
        }
        let names = "CON|con.json|x/NUL.safetensors|aux|COM1|LPT9.txt|com¹|x.|x |a:b|a?b|a|b*|<x>|\"";
        for name in names.split('|').filter(|name| !["a", "b"].contains(name)) {
            assert!(!is_portable(name), "{name:?}");
        }
        for name in ["config.json", "1_Pooling/config.json", ".gitattributes", "model-00001-of-00002.safetensors"] {
            assert!(is_portable(name), "{name:?}");
        }
    }
}
