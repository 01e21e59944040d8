//! Results on stdout or where `--output` says, words to the user on stderr, and what a pipe that closes early means.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use firebrick::Error;
use serde::Serialize;

use super::wrong_usage;

/// A line on stderr. Whether anybody reads it does not matter: `eprintln!` would panic when nobody does. Messages quote the files of
/// strangers, whose control characters could tell a terminal what to do: they are shown and not sent.
pub fn to_user(line: impl std::fmt::Display) {
    let line = line.to_string();
    let shown: String = line.chars().fold(String::with_capacity(line.len()), |mut shown, character| {
        match character {
            '\n' | '\t' => shown.push(character),
            control if control.is_control() => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
        shown
    });
    let _ = writeln!(io::stderr(), "{shown}");
}

/// A JSON value on a line of its own.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, value)?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

/// Text without a line end, at once.
pub fn text(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// What messages call an output.
pub fn named(path: &Path) -> String {
    format!("--output {}", path.display())
}

/// What a path of an output leads to.
pub enum Destination {
    /// A file that is there or will be, its links followed.
    File(PathBuf),
    /// Something else that can be written to.
    Stream,
}

impl Destination {
    /// What this path leads to.
    pub fn of(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => wrong_usage!("{}: is a folder; a file is written", named(path)),
            Ok(found) if found.is_file() => Ok(Self::File(path.canonicalize().with_context(|| named(path))?)),
            Ok(_) => Ok(Self::Stream),
            Err(_) if path.is_symlink() => bail!("{}: is a link that leads nowhere", named(path)),
            Err(_) => Ok(Self::File(path.to_owned())),
        }
    }
}

/// Whether the reader of our output went away, as `head` does: no failure of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        io.or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind())
    };
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// An error and its causes, leaving out a cause that the text before it already says: one line, except for a list of tensors.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut chain = error.chain().map(|cause| match cause.downcast_ref() {
        Some(listing @ Error::TensorMismatch { .. }) => listing.to_string(),
        Some(Error::AdapterMismatch { adapter, problems }) => {
            let separator = if problems.len() > 1 { "\n  " } else { " " };
            let lines = problems.iter().flat_map(|problem| [separator, problem]);
            format!("adapter {adapter} does not fit this model:{}", lines.collect::<String>())
        }
        _ => cause.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned(),
    });
    let first = chain.next().unwrap_or_default();
    chain.fold(first, |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_several_lines_is_printed_on_one() {
        let error = anyhow::anyhow!("regex parse error:\n    (\n    ^\nerror: unclosed group\n").context("--target");
        assert_eq!(with_causes(&error), "--target: regex parse error: ( ^ error: unclosed group");
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let error = anyhow::anyhow!("gone").context("file: gone");
        assert_eq!(with_causes(&error), "file: gone");
    }

    #[test]
    fn each_module_that_does_not_fit_has_a_line() {
        let problems = vec!["q is 4".to_owned(), "v is 5".to_owned()];
        let error = Error::AdapterMismatch { adapter: "a".into(), problems }.into();
        assert_eq!(with_causes(&error), "adapter a does not fit this model:\n  q is 4\n  v is 5");
    }
}
