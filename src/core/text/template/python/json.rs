//! `tojson` as transformers defines it: Python's `json.dumps(ensure_ascii=False)`, without HTML escapes.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::print;

/// Containers within one another.
const DEPTH: usize = 100;
/// Most bytes of one value's JSON: what a rendered chat may have.
const LIMIT: usize = 4 << 20;

/// The filter. Its arguments are those of `json.dumps`: `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn tojson(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<String, Error> {
    let ensure_ascii = match ensure_ascii {
        Some(given) => given,
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = indent(options.get::<Option<Value>>("indent")?)?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = Writer { out: String::new(), ensure_ascii, indent, item, key, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// One level's indentation: that many spaces, or the string itself.
fn indent(given: Option<Value>) -> Result<Option<String>, Error> {
    let Some(given) = given.filter(|given| !given.is_none()) else { return Ok(None) };
    if let Some(text) = given.as_str() {
        return Ok(Some(text.to_owned()));
    }
    match given.as_i64() {
        Some(spaces @ ..=64) => Ok(Some(" ".repeat(usize::try_from(spaces).unwrap_or(0)))),
        _ => Err(invalid("indent must be a string or a number up to 64")),
    }
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH || self.out.len() > LIMIT {
            return Err(invalid("the value is too deep or too long for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            kind => return Err(invalid(&format!("{kind} has no JSON"))),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        let mut text = String::new();
        print::number(&mut text, value).map_err(|_| invalid("a number cannot be written"))?;
        self.out += match text.as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            other => other,
        };
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.separate(empty, depth + 1);
            empty = false;
            self.value(&item, depth + 1)?;
        }
        self.close(empty, depth);
        self.out.push(']');
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.separate(index == 0, depth + 1);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default())?,
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    self.out.push('"');
                    self.value(key, depth + 1)?;
                    self.out.push('"');
                }
                kind => return Err(invalid(&format!("{kind} cannot be a key of a JSON object"))),
            }
            self.out += &self.key;
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close(keys.is_empty(), depth);
        self.out.push('}');
        Ok(())
    }

    /// What stands before an item.
    fn separate(&mut self, first: bool, depth: usize) {
        if !first {
            self.out += &self.item;
        }
        self.line(depth);
    }

    /// What stands before the closing bracket.
    fn close(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        let json = serde_json::to_string(text).map_err(|error| invalid(&error.to_string()))?;
        if !self.ensure_ascii {
            self.out += &json;
            return Ok(());
        }
        for c in json.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    self.out += &format!("\\u{unit:04x}");
                }
            }
        }
        Ok(())
    }
}

fn invalid(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.to_owned())
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn render(expression: &str) -> String {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"z": "é<&>'\"\n\u0001🙂", "a": [1, 2.0, null, true, [], {}]}"#).unwrap();
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        environment.render_str(&format!("{{{{ {expression} }}}}"), context!(value)).unwrap()
    }

    #[test]
    fn json_is_spaced_ordered_and_escaped_as_by_python() {
        assert_eq!(render("value|tojson"), "{\"z\": \"é<&>'\\\"\\n\\u0001🙂\", \"a\": [1, 2.0, null, true, [], {}]}");
        assert_eq!(render("value.z|tojson(ensure_ascii=true)"), "\"\\u00e9<&>'\\\"\\n\\u0001\\ud83d\\ude42\"");
        assert_eq!(render("value.a|tojson(separators=(',', ':'))"), "[1,2.0,null,true,[],{}]");
        assert_eq!(render("{'b': 1, 'a': 2}|tojson(sort_keys=true)"), "{\"a\": 2, \"b\": 1}");
        assert_eq!(render("{1: 2, true: 3}|tojson"), "{\"1\": 2, \"true\": 3}");
    }

    #[test]
    fn indented_json_breaks_lines_as_by_python() {
        assert_eq!(
            render("{'a': [1, {}], 'b': []}|tojson(indent=2)"),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(render("[1]|tojson(indent='\t')"), "[\n\t1\n]");
    }
}
