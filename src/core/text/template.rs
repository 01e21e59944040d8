//! Chat templates, rendered as Python transformers renders them. Reading them from a folder lives in the tokenizer.

mod environment;
mod python;
mod source;

use minijinja::value::Value as TemplateValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text; null or a list of parts where the template takes that.
    #[serde(default)]
    pub content: Value,
    /// Every other key, such as `tool_calls` or `reasoning_content`, in its order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// What the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new("user", text)
    }

    /// What the system prompt says.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new("system", text)
    }

    /// What the model says.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new("assistant", text)
    }

    fn new(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(text.into()), extra: Map::new() }
    }
}

/// What a template is given besides the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateOptions {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The functions the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Map<String, Value>,
}

impl TemplateOptions {
    /// For a text that ends where the assistant's answer begins.
    pub fn answer() -> Self {
        Self { add_generation_prompt: true, ..Self::default() }
    }

    /// With a value for a variable of the template, such as `false` for `enable_thinking`.
    pub fn variable(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }
}

/// A chat template, compiled. It cannot read files, and its work, depth and output are bounded.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: minijinja::Environment<'static>,
    /// `bos_token`, `eos_token` and `pad_token`, those the tokenizer has.
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Compiles `source`; the tokens are the template's variables `bos_token`, `eos_token` and `pad_token`.
    pub fn new(source: &str, bos: Option<String>, eos: Option<String>, pad: Option<String>) -> Result<Self> {
        let environment = environment::with_template(source::without_generation_tags(source)?)?;
        let tokens = [("bos_token", bos), ("eos_token", eos), ("pad_token", pad)];
        Ok(Self { environment, tokens: tokens.into_iter().filter_map(|(name, token)| Some((name, token?))).collect() })
    }

    /// The chat as text.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        // A later name wins: what the caller passes goes before the tokens, what the call defines before both.
        let mut variables: Vec<(&str, TemplateValue)> = Vec::new();
        variables.extend(self.tokens.iter().map(|(name, token)| (*name, token.as_str().into())));
        variables.extend(options.extra.iter().map(|(key, value)| (key.as_str(), TemplateValue::from_serialize(value))));
        variables.push(("messages", TemplateValue::from_serialize(messages)));
        variables.push(("tools", TemplateValue::from_serialize(&options.tools)));
        variables.push((
            "documents",
            options.extra.get("documents").map(TemplateValue::from_serialize).unwrap_or(().into()),
        ));
        variables.push(("add_generation_prompt", options.add_generation_prompt.into()));
        environment::render(&self.environment, variables.into_iter().collect())
    }
}

/// The engine's error with its line and its cause.
fn failure(error: &minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    Error::Template(text)
}

#[cfg(test)]
mod tests;
