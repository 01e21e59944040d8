//! Numbers and tables as markdown.

/// Three significant digits: `0.00123`, `1.23`, `123`, `12300`.
pub fn three(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return value.to_string();
    }
    // Rounded first, so that 9.999 counts as 10.0.
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    let exponent = rounded.abs().log10().floor() as i32;
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    format!("{rounded:.decimals$}")
}

/// Text of strangers, in one line and without meaning to markdown.
pub fn escaped(text: &str) -> String {
    const LONGEST: usize = 300;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::new();
    for (at, c) in words.chars().enumerate() {
        match c {
            _ if at == LONGEST => {
                out.push('…');
                break;
            }
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '|' | '*' | '`' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// `a, b and c`.
pub fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// A text by which labels sort as people count: `[64, 1024]` before `[1024, 1024]`.
pub fn natural(label: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in label.chars().chain([' ']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            out += &format!("{digits:0>12}");
            digits.clear();
        }
        out.push(c);
    }
    out
}

/// A table; the first columns, as many as `left`, hold words, the others numbers.
pub fn table(left: usize, header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = (0..header.len()).map(|at| if at < left { "---" } else { "---:" });
    let mut text = line(header) + &format!("|{}|\n", rule.collect::<Vec<_>>().join("|"));
    for row in rows {
        text += &line(row);
    }
    text + "\n"
}
