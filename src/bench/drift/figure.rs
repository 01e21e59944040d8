//! Finding figures in a text: numbers in digits, each with its unit.

use std::sync::LazyLock;

use regex::Regex;

/// What a unit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    Seconds,
    Bytes,
    BytesPerSecond,
    OperationsPerSecond,
    TokensPerSecond,
    TextsPerSecond,
    /// How many times.
    Ratio,
    /// A part of 1.
    Share,
}

/// Units as they are written, in the order in which they are tried: how much one of it is.
const UNITS: [(&str, Dimension, f64); 35] = [
    ("GB/s", Dimension::BytesPerSecond, 1e9),
    ("MB/s", Dimension::BytesPerSecond, 1e6),
    ("TFLOP/s", Dimension::OperationsPerSecond, 1e12),
    ("GFLOP/s", Dimension::OperationsPerSecond, 1e9),
    ("TFLOPS", Dimension::OperationsPerSecond, 1e12),
    ("GFLOPS", Dimension::OperationsPerSecond, 1e9),
    ("tokens/s", Dimension::TokensPerSecond, 1.0),
    ("tokens per second", Dimension::TokensPerSecond, 1.0),
    ("tokens a second", Dimension::TokensPerSecond, 1.0),
    ("texts/s", Dimension::TextsPerSecond, 1.0),
    ("texts per second", Dimension::TextsPerSecond, 1.0),
    ("texts a second", Dimension::TextsPerSecond, 1.0),
    ("GiB", Dimension::Bytes, 1_073_741_824.0),
    ("MiB", Dimension::Bytes, 1_048_576.0),
    ("KiB", Dimension::Bytes, 1024.0),
    ("GB", Dimension::Bytes, 1e9),
    ("MB", Dimension::Bytes, 1e6),
    ("KB", Dimension::Bytes, 1e3),
    ("kB", Dimension::Bytes, 1e3),
    ("hours", Dimension::Seconds, 3600.0),
    ("hour", Dimension::Seconds, 3600.0),
    ("minutes", Dimension::Seconds, 60.0),
    ("minute", Dimension::Seconds, 60.0),
    ("min", Dimension::Seconds, 60.0),
    ("seconds", Dimension::Seconds, 1.0),
    ("second", Dimension::Seconds, 1.0),
    ("milliseconds", Dimension::Seconds, 1e-3),
    ("microseconds", Dimension::Seconds, 1e-6),
    ("ms", Dimension::Seconds, 1e-3),
    ("µs", Dimension::Seconds, 1e-6),
    ("s", Dimension::Seconds, 1.0),
    ("times", Dimension::Ratio, 1.0),
    ("×", Dimension::Ratio, 1.0),
    ("x", Dimension::Ratio, 1.0),
    ("%", Dimension::Share, 0.01),
];

/// A number with its unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// As the text has it, for messages: `21.6 times`.
    pub written: String,
    /// The digits alone.
    pub digits: String,
    /// Where they are in the text, in bytes.
    pub at: usize,
    pub dimension: Dimension,
    /// How much one of the unit is.
    pub factor: f64,
    /// Whether the words after it compare speeds.
    pub compares: bool,
}

impl Figure {
    /// Whether a value, in seconds, bytes and so on, is this figure at the digits it is written with.
    pub fn is(&self, value: f64) -> bool {
        Self::rounds_to(&self.digits, value / self.factor)
    }

    /// The same, were the digits others.
    pub fn rounds_to(digits: &str, value: f64) -> bool {
        let plain = digits.replace(',', "");
        let Ok(number) = plain.parse::<f64>() else { return false };
        let decimals = plain.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        let half = 0.5 * 10f64.powi(-(decimals as i32));
        // Halves are rounded up; what is one but for the last bits of a double counts as one.
        let value = value * (1.0 + 1e-12);
        number - half <= value && value < number + half
    }

    /// Whether only a measurement can say this.
    pub fn is_speed(&self) -> bool {
        match self.dimension {
            Dimension::Seconds | Dimension::Bytes => false,
            Dimension::Ratio | Dimension::Share => self.compares,
            _ => true,
        }
    }
}

/// Digits with one of them changed, in every way: the edits that have to be noticed.
pub fn edits(digits: &str) -> Vec<String> {
    let mut edits = Vec::new();
    for (at, written) in digits.char_indices().filter(|(_, c)| c.is_ascii_digit()) {
        for digit in ('0'..='9').filter(|digit| *digit != written) {
            let mut edited = digits.to_owned();
            edited.replace_range(at..=at, digit.encode_utf8(&mut [0; 4]));
            edits.push(edited);
        }
    }
    edits
}

/// Several numbers may share a unit: `1.08 to 21.6 times`.
static NUMBERS: LazyLock<Regex> = LazyLock::new(|| {
    let number = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?";
    let units: Vec<String> = UNITS.iter().map(|(unit, ..)| regex::escape(unit)).collect();
    let between = r"(?: to |, and |, | and | or |–|-)";
    pattern(&format!(r"\b({number}(?:{between}{number})*)[ \u{{a0}}-]?({})", units.join("|")))
});
static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9][0-9,]*(?:\.[0-9]+)?"));
static COMPARISON: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^\s*(?:as fast|as slow|faster|slower|the speed|quicker)"));
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let number = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|hundred";
    pattern(&format!(
        r"\b(?:{number}|half)[ \n-](?:milliseconds|seconds|minutes|hours|times as|times faster|times slower)\b"
    ))
});
static RECORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z0-9_./-]*records/[A-Za-z0-9_.-]+\.jsonl"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the patterns of this file are regular expressions")
}

/// The figures of a text, in order. Code, links' targets and comments have none.
pub fn figures(text: &str) -> Vec<Figure> {
    let prose = prose(text);
    let mut found = Vec::new();
    for hit in NUMBERS.captures_iter(&prose) {
        let (Some(whole), Some(numbers), Some(unit)) = (hit.get(0), hit.get(1), hit.get(2)) else { continue };
        // Not inside a word or another number: `f16 s`, `v1.2.3 s`, `5 sentences`.
        let before = prose[..whole.start()].chars().next_back();
        let after = prose[whole.end()..].chars().next();
        let inside = |c: char| c.is_alphanumeric() || c == '_' || c == '/';
        let symbol = unit.as_str() == "×" || unit.as_str() == "%";
        if before.is_some_and(|c| inside(c) || c == '.') || (!symbol && after.is_some_and(inside)) {
            continue;
        }
        let Some(&(name, dimension, factor)) = UNITS.iter().find(|(name, ..)| *name == unit.as_str()) else { continue };
        let compares = COMPARISON.is_match(&prose[whole.end()..]);
        found.extend(NUMBER.find_iter(numbers.as_str()).map(|number| {
            // A comma after a number is not of it.
            let digits = number.as_str().trim_end_matches(',').to_owned();
            let written = format!("{digits} {name}");
            Figure { written, digits, at: numbers.start() + number.start(), dimension, factor, compares }
        }));
    }
    found
}

/// Counts in words that stand before a unit of time or compare.
pub fn in_words(text: &str) -> impl Iterator<Item = String> {
    let prose = prose(text);
    let found: Vec<String> = WORDS.find_iter(&prose).map(|words| words.as_str().replace('\n', " ")).collect();
    found.into_iter()
}

/// The files of records that a text names.
pub fn record_links(text: &str) -> Vec<&str> {
    let mut links: Vec<&str> = RECORD.find_iter(text).map(|link| link.as_str()).collect();
    links.sort_unstable();
    links.dedup();
    links
}

/// The text with spaces for what is not read as prose, as long as it was; line ends are spaces too, so that a unit may follow on the
/// next line.
fn prose(text: &str) -> String {
    let mut out = text.replace('\n', " ");
    for (open, close) in [("<!--", "-->"), ("`", "`"), ("](", ")")] {
        let mut from = 0;
        while let Some(start) = out[from..].find(open).map(|at| from + at) {
            let inside = start + open.len();
            let Some(end) = out[inside..].find(close).map(|at| inside + at + close.len()) else { break };
            // A mark that is no part of any figure, so that what is around it does not become one.
            out.replace_range(start..end, &"_".repeat(end - start));
            from = end;
        }
    }
    out
}
