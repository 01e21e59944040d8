//! What the environment says: where the cache is, which hub, who asks, and whether to ask at all.
//!
//! Source: huggingface_hub's `constants.py` and `utils/_auth.py`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::Error;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The settings of a [`Hub`](crate::Hub).
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    pub cache: Option<PathBuf>,
    pub endpoint: String,
    pub token: Option<Token>,
    pub offline: bool,
    pub shows_progress: bool,
    pub symlinks: bool,
}

impl Environment {
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let is_true = |name: &str| text(&variable, name).is_some_and(|value| is_true(&value));
        let endpoint = text(&variable, "HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        // As in Python, the second counts only where the first is absent.
        let offline = text(&variable, "HF_HUB_OFFLINE").or_else(|| text(&variable, "TRANSFORMERS_OFFLINE"));
        Self {
            cache: cache_folder(&variable),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { Token::read(&variable) },
            offline: offline.is_some_and(|value| self::is_true(&value)),
            shows_progress: !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
            symlinks: !is_true("HF_HUB_DISABLE_SYMLINKS"),
        }
    }
}

/// The cache folder by the first of `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` and the home folder that is set.
pub fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let first = folder(&variable, "HF_HUB_CACHE").or_else(|| folder(&variable, "HUGGINGFACE_HUB_CACHE"));
    first.or_else(|| Some(home_of_hugging_face(&variable)?.join("hub")))
}

fn home_of_hugging_face(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    folder(variable, "HF_HOME")
        .or_else(|| Some(folder(variable, "XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(home(variable)?.join(".cache/huggingface")))
}

fn home(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HOME").or_else(|| set("USERPROFILE"))
}

/// A folder that a variable names; `~` is the home folder, as in Python.
fn folder(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    let path = variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)?;
    match path.strip_prefix("~") {
        Ok(rest) => Some(home(variable)?.join(rest)),
        Err(_) => Some(path),
    }
}

fn text(variable: &impl Fn(&str) -> Option<OsString>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// A secret that shows itself only to the hub.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    fn read(variable: &impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let said = text(variable, "HF_TOKEN").or_else(|| text(variable, "HUGGING_FACE_HUB_TOKEN"));
        if let Some(token) = said.and_then(|text| Self::new(&text)) {
            return Some(token);
        }
        let of_file = |path: &Path| Self::new(&std::fs::read_to_string(path).ok()?);
        match folder(variable, "HF_TOKEN_PATH") {
            Some(path) => of_file(&path),
            None => of_file(&home_of_hugging_face(variable)?.join("token")),
        }
    }

    /// The value of the `authorization` header.
    pub fn header(&self) -> Result<String, Error> {
        let sendable = self.0.chars().all(|c| c.is_ascii_graphic());
        if sendable { Ok(format!("Bearer {}", self.0)) } else { Err(Error::Token) }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Environment {
        Environment::read(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    }

    fn token(set: &[(&str, &str)]) -> Option<String> {
        read(set).token.map(|token| token.0)
    }

    #[test]
    fn the_cache_has_its_precedence() {
        let order = [
            ("HF_HUB_CACHE", "/1"),
            ("HUGGINGFACE_HUB_CACHE", "/2"),
            ("HF_HOME", "/3"),
            ("XDG_CACHE_HOME", "/4"),
            ("HOME", "/5"),
        ];
        let expected = ["/1", "/2", "/3/hub", "/4/huggingface/hub", "/5/.cache/huggingface/hub"];
        for (first, expected) in expected.iter().enumerate() {
            assert_eq!(read(&order[first..]).cache, Some(PathBuf::from(expected)));
        }
        let empty = order.map(|(name, _)| (name, if name == "HOME" { "/5" } else { "" }));
        assert_eq!(read(&empty).cache, Some(PathBuf::from("/5/.cache/huggingface/hub")));
        assert_eq!(read(&[("HF_HOME", "~/x"), ("HOME", "/5")]).cache, Some(PathBuf::from("/5/x/hub")));
        assert_eq!(read(&[("HF_HOME", "~/x")]).cache, None);
        assert_eq!(read(&[]).cache, None);
    }

    #[test]
    fn the_token_has_its_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("token"), " of-home\n").unwrap();
        std::fs::write(path("other"), "of-path\n").unwrap();
        let (home, other, gone) = (path(""), path("other"), path("gone"));
        let all = [("HF_TOKEN", "said\n"), ("HF_TOKEN_PATH", &*other), ("HF_HOME", &*home)];
        for (first, expected) in ["said", "of-path", "of-home"].iter().enumerate() {
            assert_eq!(token(&all[first..]).as_deref(), Some(*expected));
        }
        assert_eq!(token(&[("HF_TOKEN_PATH", &gone), ("HF_HOME", &home)]), None);
        assert_eq!(token(&[("HF_TOKEN", "said"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")]), None);
        assert_eq!(token(&[]), None);
    }

    #[test]
    fn a_switch_is_1_on_yes_or_true() {
        for value in ["1", "on", "YES", "True"] {
            assert!(read(&[("HF_HUB_OFFLINE", value)]).offline, "{value}");
            assert!(read(&[("TRANSFORMERS_OFFLINE", value)]).offline, "{value}");
            assert!(!read(&[("HF_HUB_DISABLE_PROGRESS_BARS", value)]).shows_progress, "{value}");
        }
        for value in ["", "0", "off", "no", "false", "2"] {
            assert!(!read(&[("HF_HUB_OFFLINE", value)]).offline, "{value}");
        }
        assert!(!read(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    }

    #[test]
    fn a_token_is_not_shown() {
        let environment = read(&[("HF_TOKEN", "hf_secret")]);
        assert!(!format!("{environment:?}").contains("secret"));
        let error = read(&[("HF_TOKEN", "hf_\u{e9}secret")]).token.unwrap().header().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
