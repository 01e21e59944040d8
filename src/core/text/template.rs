//! Chat templates, in the environment that transformers gives them. A template is a stranger's program: it runs on a budget, without files.
//!
//! Source: transformers' `chat_template_utils.py` (`_compile_jinja_template`, `render_jinja_template`).

use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

const NAME: &str = "chat";
const FUEL: u64 = 1_000_000;
const RECURSION: usize = 64;
const MAX_OUTPUT: usize = 4 << 20;

/// One turn of a conversation. Keys beyond role and content, such as `tool_calls`, reach the template as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text; null beside tool calls, and a list of parts in some data.
    #[serde(default)]
    pub content: Value,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: Value::String(content.into()), extra: Map::new() }
    }
    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
    /// An assistant's turn.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
    /// The system prompt.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }
}

/// What a template is given besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateOptions {
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tools the model may call.
    pub tools: Option<Vec<Value>>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Map<String, Value>,
}

/// The special tokens a template may name.
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills a batch, elsewhere.
    pub pad: Option<String>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", strftime_now);
        let source = without_generation_tags(source);
        environment.add_template_owned(NAME, source).map_err(template_error)?;
        Ok(Self { environment, special })
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// If the template fails, refuses the conversation, or exceeds its budget.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let mut variables = Map::new();
        variables.insert("messages".into(), json!(messages));
        variables.insert("add_generation_prompt".into(), json!(options.add_generation_prompt));
        variables.insert("tools".into(), json!(options.tools));
        let special =
            [("bos_token", &self.special.bos), ("eos_token", &self.special.eos), ("pad_token", &self.special.pad)];
        for (name, token) in special {
            if let Some(token) = token {
                variables.insert(name.into(), json!(token));
            }
        }
        variables.extend(options.extra.clone());
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let mut output = Bounded(Vec::new());
        template.render_captured_to(JinjaValue::from_serialize(&variables), &mut output).map_err(template_error)?;
        String::from_utf8(output.0).map_err(|problem| Error::Template(problem.to_string()))
    }
}

/// Output that refuses to grow past its bound.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::Error::other(format!("the output exceeds {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    Error::Template(text)
}

/// transformers' `{% generation %}` marks the assistant's text for training masks; its rendering is its body. As a block of another name
/// that always holds, it keeps its whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let tag = &rest[open + 2..open + length];
        let bare = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out += &rest[..open + 2];
        match bare {
            "generation" => out += &tag.replace("generation", "if true"),
            "endgeneration" => out += &tag.replace("endgeneration", "endif"),
            _ => out += tag,
        }
        rest = &rest[open + length..];
    }
    out + rest
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`: a space after each comma and colon, no escape for HTML.
fn to_json(value: JinjaValue, options: Kwargs) -> std::result::Result<JinjaValue, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let failed = |problem: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, problem.to_string());
    let value = serde_json::to_value(&value).map_err(failed)?;
    let mut text = String::new();
    dump(&value, indent, 0, &mut text);
    Ok(JinjaValue::from_safe_string(text))
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let entries: Vec<(Option<&String>, &Value)> = match value {
        Value::Array(list) => list.iter().map(|value| (None, value)).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (Some(key), value)).collect(),
        // Strings escape the same in both languages once ASCII is not enforced.
        scalar => return *out += &scalar.to_string(),
    };
    let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
    out.push(open);
    let new_line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent.filter(|_| !entries.is_empty()) {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    };
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(depth + 1, out);
        if let Some(key) = key {
            *out += &Value::String((*key).clone()).to_string();
            out.push_str(": ");
        }
        dump(value, indent, depth + 1, out);
    }
    new_line(depth, out);
    out.push(close);
}

/// Today by Python's `strftime`, in UTC; the directives that templates use.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let (days, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", of_day / 3600),
            Some('M') => out += &format!("{:02}", of_day / 60 % 60),
            Some('S') => out += &format!("{:02}", of_day % 60),
            Some('%') => out.push('%'),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                let problem = format!("strftime_now does not know %{directive}");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: i64) -> (i64, usize, usize) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * march_month + 2) / 5 + 1) as usize;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 } as usize;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        ChatTemplate::new(source, SpecialTokens::default())?.render(&[Message::user("hi")], &TemplateOptions::default())
    }

    #[test]
    fn renders_equal_transformers_byte_for_byte() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/qwen3_chat_template.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let template = ChatTemplate::new(golden["template"].as_str().unwrap(), SpecialTokens::default()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let mut options = TemplateOptions {
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
                tools: case.get("tools").and_then(Value::as_array).cloned(),
                extra: Map::new(),
            };
            if let Some(thinking) = case.get("enable_thinking") {
                options.extra.insert("enable_thinking".into(), thinking.clone());
            }
            assert_eq!(template.render(&messages, &options).unwrap(), case["text"].as_str().unwrap());
        }
    }

    #[test]
    fn json_is_that_of_python() {
        let text =
            render("{{ {'b': [1, 2.5, true, none], 'a': '<ü\"'} | tojson }}|{{ [{'k': []}] | tojson(indent=2) }}");
        assert_eq!(text.unwrap(), "{\"b\": [1, 2.5, true, null], \"a\": \"<ü\\\"\"}|[\n  {\n    \"k\": []\n  }\n]");
    }

    #[test]
    fn generation_blocks_render_their_body() {
        assert_eq!(render("a{% generation %}b{% endgeneration %}c").unwrap(), "abc");
        assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c").unwrap(), "abc");
    }

    #[test]
    fn a_template_can_refuse_and_name_its_reason() {
        let error = render("{{ raise_exception('only tools here') }}").unwrap_err().to_string();
        assert!(error.contains("only tools here"), "{error}");
    }

    #[test]
    fn programs_that_do_not_end_are_ended() {
        let bombs = [
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{{ 'x' * 100000000 }}",
            "{% include '/etc/hostname' %}",
            "{% for i in range(100000) %}{{ messages | tojson }}{{ messages | tojson }}{{ messages | tojson }}{% endfor %}",
        ];
        for bomb in bombs {
            let begun = std::time::Instant::now();
            assert!(matches!(render(bomb), Err(Error::Template(_))), "{bomb}");
            assert!(begun.elapsed().as_secs() < 5, "{bomb}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(strftime_now("%Y%%".into()).unwrap().len(), 5);
        assert!(strftime_now("%Q".into()).is_err());
    }
}
