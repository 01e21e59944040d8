//! What to do with rows that are bad or too long, and which tokens count.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a data file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// Whether only the completion, or the last message, carries weight.
    pub mask_prompt: bool,
    /// The longest example.
    pub max_tokens: usize,
    /// What a row that cannot be used leads to.
    pub bad_rows: BadRows,
    /// What becomes of a row of more than `max_tokens`.
    pub over_long: OverLong,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self { mask_prompt: false, max_tokens: 2048, bad_rows: BadRows::default(), over_long: OverLong::default() }
    }
}

impl DataOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] with the option's name, value and bounds.
    pub fn validate(&self) -> Result<()> {
        if self.max_tokens < 2 {
            return Err(Error::OutOfBounds {
                name: "max_tokens",
                value: self.max_tokens.to_string(),
                bounds: "at least 2, one token to predict another from".to_owned(),
            });
        }
        Ok(())
    }
}

/// What a row that cannot be used leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// An error with its line.
    #[default]
    Fail,
    /// It is left out, and reported.
    Skip,
}

impl BadRows {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Fail, Self::Skip];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// What becomes of a row of too many tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLong {
    /// Its end is cut off.
    #[default]
    Truncate,
    /// It is left out.
    Drop,
    /// It becomes several examples, each predicted from its own start.
    Split,
}

impl OverLong {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Truncate, Self::Drop, Self::Split];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::Drop => "drop",
            Self::Split => "split",
        }
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl fmt::Display for OverLong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for BadRows {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == text).ok_or_else(|| Error::OutOfBounds {
            name: "bad_rows",
            value: text.to_owned(),
            bounds: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl FromStr for OverLong {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == text).ok_or_else(|| Error::OutOfBounds {
            name: "over_long",
            value: text.to_owned(),
            bounds: Self::ALL.map(Self::name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        for choice in BadRows::ALL {
            assert_eq!(choice.to_string().parse::<BadRows>().unwrap(), choice);
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{choice}\""));
            assert_eq!(serde_json::from_str::<BadRows>(&format!("\"{choice}\"")).unwrap(), choice);
        }
        for choice in OverLong::ALL {
            assert_eq!(choice.to_string().parse::<OverLong>().unwrap(), choice);
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{choice}\""));
            assert_eq!(serde_json::from_str::<OverLong>(&format!("\"{choice}\"")).unwrap(), choice);
        }
        let message = "Skip".parse::<BadRows>().unwrap_err().to_string();
        assert_eq!(message, "bad_rows = Skip is out of bounds: fail, skip");
        let message = "cut".parse::<OverLong>().unwrap_err().to_string();
        assert_eq!(message, "over_long = cut is out of bounds: truncate, drop, split");
    }

    #[test]
    fn a_limit_below_two_is_refused_by_name() {
        for max_tokens in [0, 1] {
            let message = DataOptions { max_tokens, ..DataOptions::default() }.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("max_tokens = {max_tokens} ")), "{message}");
        }
        DataOptions { max_tokens: 2, ..DataOptions::default() }.validate().unwrap();
    }
}
