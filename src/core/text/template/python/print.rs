//! How Python prints values: `True`, `None`, `['a', 1.0]`. JSON lives beside it.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};

/// Containers within one another; Python's own limit is near a thousand.
const DEPTH: usize = 100;

/// `str(value)`.
pub(super) fn to_string(value: &Value) -> String {
    let mut text = String::new();
    // Only a container too deep fails, and then the text so far stands.
    let _ = write(&mut text, value);
    text
}

/// Writes `str(value)`: a string is written bare.
pub(super) fn write(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => represent(out, value, 0),
    }
}

/// Writes `repr(value)`.
fn represent(out: &mut impl Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(out, value),
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (index, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index == 0 { "" } else { ", " })?;
                represent(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (index, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index == 0 { "" } else { ", " })?;
                represent(out, &key, depth + 1)?;
                out.write_str(": ")?;
                represent(out, &value.get_item(&key).map_err(|_| fmt::Error)?, depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Writes a number: integers as they are, floats in Python's shortest form.
pub(super) fn number(out: &mut impl Write, value: &Value) -> fmt::Result {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => write_float(out, float),
        _ => write!(out, "{value}"),
    }
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn write_float(out: &mut impl Write, float: f64) -> fmt::Result {
    if !float.is_finite() {
        return out.write_str(if float.is_nan() {
            "nan"
        } else if float > 0.0 {
            "inf"
        } else {
            "-inf"
        });
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        let point = if plain.contains('.') { "" } else { ".0" };
        write!(out, "{plain}{point}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.abs())
    }
}

/// A string as Python quotes it: single quotes, or double ones where the text has single ones only.
fn quoted(out: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_in_python() {
        let print =
            |json: &str| to_string(&Value::from_serialize(serde_json::from_str::<serde_json::Value>(json).unwrap()));
        assert_eq!(
            print(r#"["a", "it's", "\"'", null, true, 1, 1.0, {"k": false}]"#),
            r#"['a', "it's", '"\'', None, True, 1, 1.0, {'k': False}]"#
        );
        assert_eq!(print(r#""plain\n""#), "plain\n");
        for (number, text) in [
            ("1e16", "1e+16"),
            ("1e15", "1000000000000000.0"),
            ("0.0001", "0.0001"),
            ("1.5e-5", "1.5e-05"),
            ("-0.0", "-0.0"),
            ("1e300", "1e+300"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(print(number), text);
        }
    }
}
