//! The forms of a row, and a row read from JSON with its types checked. Tokens are made elsewhere.

use crate::text::Message;
use serde_json::{Map, Value};

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Completion,
    Messages,
    Text,
}

/// A row's content.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Completion {
        prompt: String,
        completion: String,
        tools: Option<Vec<Value>>,
    },
    /// At least one message.
    Messages {
        messages: Vec<Message>,
        tools: Option<Vec<Value>>,
    },
    Text(String),
}

impl Form {
    /// The form of a row, by its keys; None if it has those of no form.
    pub(super) fn of(object: &Map<String, Value>) -> Option<Self> {
        [Self::Completion, Self::Messages, Self::Text]
            .into_iter()
            .find(|form| form.keys().iter().all(|&key| object.contains_key(key)))
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Completion => &["prompt", "completion"],
            Self::Messages => &["messages"],
            Self::Text => &["text"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Completion => "`prompt` and `completion`",
            Self::Messages => "`messages`",
            Self::Text => "`text`",
        }
    }
}

/// The JSON object of a line, or what is wrong with it.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("a row is a JSON object, this is {}", kind(&other))),
        // The parser sees one line at a time: its line number is always 1.
        Err(error) => Err(format!("not JSON: {}", error.to_string().replace(" at line 1 column ", " at column "))),
    }
}

/// What is wrong with a row that has no form.
pub(super) fn unknown(object: &Map<String, Value>) -> String {
    const SHOWN: usize = 8;
    let mut keys: Vec<String> =
        object.keys().take(SHOWN).map(|key| format!("`{}`", key.chars().take(40).collect::<String>())).collect();
    if object.len() > SHOWN {
        keys.push("…".to_owned());
    }
    let found = if keys.is_empty() { "no key".to_owned() } else { keys.join(", ") };
    format!("a row has `prompt` and `completion`, or `messages`, or `text`; this one has {found}")
}

impl Row {
    /// The row of `object` in a file whose form line `decided` has shown, or what is wrong with it.
    pub(super) fn read(mut object: Map<String, Value>, form: Form, decided: usize) -> Result<Self, String> {
        if let Some(missing) = form.keys().iter().find(|&&key| !object.contains_key(key)) {
            return Err(match Form::of(&object) {
                Some(other) => {
                    format!("a row of {} in a file whose rows have {} since line {decided}", other.name(), form.name())
                }
                None => format!("`{missing}` is missing; the file's rows have {} since line {decided}", form.name()),
            });
        }
        Ok(match form {
            Form::Text => Self::Text(string(&mut object, "text")?),
            Form::Completion => Self::Completion {
                prompt: string(&mut object, "prompt")?,
                completion: string(&mut object, "completion")?,
                tools: tools(&mut object)?,
            },
            Form::Messages => Self::Messages { messages: messages(&mut object)?, tools: tools(&mut object)? },
        })
    }
}

pub(super) fn string(object: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        other => Err(format!("`{key}` is a string, this is {}", kind(&other.unwrap_or_default()))),
    }
}

fn messages(object: &mut Map<String, Value>) -> Result<Vec<Message>, String> {
    let values = match object.remove("messages") {
        Some(Value::Array(values)) => values,
        other => return Err(format!("`messages` is an array, this is {}", kind(&other.unwrap_or_default()))),
    };
    if values.is_empty() {
        return Err("`messages` is empty".to_owned());
    }
    let read = |(index, value): (usize, Value)| {
        let problem = |what: String| Err(format!("`messages[{index}]` {what}"));
        let message: Message = match value {
            Value::Object(_) => serde_json::from_value(value).or_else(|error| problem(error.to_string()))?,
            other => return problem(format!("is not an object but {}", kind(&other))),
        };
        match &message.content {
            Value::String(_) | Value::Array(_) => Ok(message),
            // An assistant that only calls tools says nothing.
            Value::Null if message.extra.contains_key("tool_calls") => Ok(message),
            Value::Null => problem("has no `content`".to_owned()),
            other => problem(format!("has {} as its `content`, which is a string", kind(other))),
        }
    };
    values.into_iter().enumerate().map(read).collect()
}

fn tools(object: &mut Map<String, Value>) -> Result<Option<Vec<Value>>, String> {
    match object.remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) => Ok(Some(tools)),
        Some(other) => Err(format!("`tools` is an array, this is {}", kind(&other))),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
