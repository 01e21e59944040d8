//! Why we are slower somewhere: the one part of the report that people write, in `benches/causes.toml`.

use std::path::Path;

use serde::Deserialize;

use super::super::record::{Record, matches};
use super::ReportError;

/// What is known about ratios below 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Causes {
    /// The first that fits counts.
    #[serde(default)]
    cause: Vec<Cause>,
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// The labels of workloads it holds for; `*` stands for anything: `layer_norm [1, *] f32`.
    pub workload: String,
    /// The peer that is faster; `*` as above.
    pub peer: String,
    /// Our backend; any if it is left out.
    pub backend: Option<String>,
    /// The machine; any if it is left out.
    pub machine: Option<String>,
    /// Why, in one sentence.
    pub because: String,
}

impl Causes {
    /// Those of a file; none if it is not there.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML of `[[cause]]` with these keys, or gives a cause of no words.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|source| ReportError::Io { path: path.to_owned(), source })?,
        };
        Self::parse(&text).map_err(|problem| ReportError::Causes { path: path.to_owned(), problem })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let causes: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        match causes.cause.iter().find(|cause| cause.because.trim().is_empty()) {
            Some(cause) => Err(format!("the cause of {} beside {} has no words", cause.workload, cause.peer)),
            None => Ok(causes),
        }
    }

    /// Why `ours` is slower than `peer` at the workload of this label, as far as somebody knows.
    pub(super) fn of(&self, label: &str, ours: &Record, peer: &Record) -> Option<&str> {
        let fits = |cause: &&Cause| {
            matches(&cause.workload, label)
                && matches(&cause.peer, &peer.implementation)
                && cause.backend.as_ref().is_none_or(|backend| *backend == ours.implementation)
                && cause.machine.as_ref().is_none_or(|machine| *machine == ours.machine.name)
        };
        self.cause.iter().find(fits).map(|cause| cause.because.as_str())
    }
}

impl std::str::FromStr for Causes {
    type Err = String;

    /// Of the text of such a file.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_causes_is_read_strictly() {
        let good = "[[cause]]\nworkload = \"rope *\"\npeer = \"mlx\"\nbecause = \"It is.\"\n";
        assert_eq!(good.parse::<Causes>().unwrap().cause.len(), 1);
        assert_eq!("".parse::<Causes>().unwrap(), Causes::default());
        for wrong in [good.replace("because", "why"), good.replace("It is.", " "), good.replace("[[cause]]", "[cause]")]
        {
            assert!(wrong.parse::<Causes>().is_err(), "{wrong}");
        }
    }
}
