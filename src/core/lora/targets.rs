//! Which linears an adapter changes, with PEFT's rules of matching.

use std::fmt;

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Whether a path is selected.
type Matcher<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// A choice of linears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Those whose path is, or ends in a dot and, one of these names.
    Names(Vec<String>),
    /// Those whose whole path matches this regular expression.
    Regex(String),
    /// Every linear of the layers; not the head, as in PEFT.
    AllLinear,
}

impl Targets {
    /// From the command line: `all-linear`, names separated by commas, or a regular expression, told by a character that no name has.
    pub fn parse(text: &str) -> Self {
        if text == "all-linear" {
            Self::AllLinear
        } else if text.contains(['*', '+', '(', '[', '\\', '|', '^', '$', '?']) {
            Self::Regex(text.to_owned())
        } else {
            Self::Names(text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
        }
    }

    /// The selected ones of `(path, shape)`.
    ///
    /// # Errors
    /// If one of the names, the expression, or the whole selects nothing: a mistyped target must not train silently without it.
    pub fn select(&self, linears: &[(String, [usize; 2])]) -> Result<Vec<(String, [usize; 2])>> {
        let nothing = |targets: String| {
            let mut available: Vec<String> =
                linears.iter().filter_map(|(path, _)| path.rsplit('.').next()).map(str::to_owned).collect();
            available.sort();
            available.dedup();
            Error::NoSuchTarget { targets, available }
        };
        if let Self::Names(names) = self {
            for name in names {
                if !linears.iter().any(|(path, _)| is_named(path, name)) {
                    return Err(nothing(format!("`{name}`")));
                }
            }
        }
        let matches = self.matcher().map_err(|problem| nothing(format!("`{self}` ({problem})")))?;
        let selected: Vec<_> = linears.iter().filter(|(path, _)| matches(path)).cloned().collect();
        if selected.is_empty() { Err(nothing(format!("`{self}`"))) } else { Ok(selected) }
    }

    /// The same choice in words that mean it in PEFT as well. There `all-linear` is every linear of the architecture, also those that the
    /// model leaves unread, such as an encoder's pooler: it is spelled out as the names within a layer.
    pub(super) fn spelled_out<'p>(&self, paths: impl Iterator<Item = &'p String>) -> Self {
        if *self != Self::AllLinear {
            return self.clone();
        }
        let within = |path: &String| {
            let layer = path.split('.').position(|part| part.parse::<usize>().is_ok());
            path.split('.').skip(layer.map_or(0, |layer| layer + 1)).collect::<Vec<_>>().join(".")
        };
        let mut names: Vec<String> = paths.map(within).collect();
        names.sort();
        names.dedup();
        Self::Names(names)
    }

    /// Whether a path is selected.
    pub(super) fn matcher(&self) -> std::result::Result<Matcher<'_>, regex::Error> {
        Ok(match self {
            Self::AllLinear => Box::new(|_| true),
            Self::Names(names) => Box::new(|path| names.iter().any(|name| is_named(path, name))),
            Self::Regex(pattern) => {
                let regex = compiled(&format!("^(?:{pattern})$"))?;
                Box::new(move |path| regex.is_match(path))
            }
        })
    }
}

/// An expression of a stranger, compiled within bounds: ours and those of PEFT take some kilobytes.
pub(super) fn compiled(pattern: &str) -> std::result::Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(1 << 20).dfa_size_limit(1 << 20).build()
}

fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str("all-linear"),
            Self::Names(names) => f.write_str(&names.join(",")),
            Self::Regex(pattern) => f.write_str(pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linears() -> Vec<(String, [usize; 2])> {
        let names = ["q_proj", "k_proj", "gate_proj"];
        let path = |layer| names.map(|name| (format!("model.layers.{layer}.self_attn.{name}"), [4, 4]));
        (0..2).flat_map(path).collect()
    }

    fn selected(text: &str) -> usize {
        Targets::parse(text).select(&linears()).unwrap().len()
    }

    #[test]
    fn names_expressions_and_all_select_as_in_peft() {
        assert_eq!(selected("q_proj"), 2);
        assert_eq!(selected("q_proj, k_proj"), 4);
        assert_eq!(selected("self_attn.q_proj"), 2);
        assert_eq!(selected("model.layers.1.self_attn.q_proj"), 1);
        assert_eq!(selected(r".*\.layers\.0\.self_attn\.(q|k)_proj"), 2);
        assert_eq!(selected("all-linear"), 6);
    }

    #[test]
    fn a_target_that_matches_nothing_is_an_error_that_lists_what_there_is() {
        for text in ["qproj", "q_proj,o_proj", r".*\.q_proj\.x", "proj", "", "(", "q_pro."] {
            let error = Targets::parse(text).select(&linears()).unwrap_err().to_string();
            assert!(error.contains("gate_proj, k_proj, q_proj"), "{text}: {error}");
        }
        assert!(Targets::parse("q_proj,o_proj").select(&linears()).unwrap_err().to_string().contains("`o_proj`"));
    }
}
