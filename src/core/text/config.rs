//! What stands beside `tokenizer.json`: the special tokens and the chat template of `tokenizer_config.json` and
//! `chat_template.jinja`. Using them does not live here.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::file::Files;

/// Most bytes of `tokenizer_config.json`; the largest published ones, which list every added token, are near 1 MB.
const CONFIG_LIMIT: u64 = 16 << 20;
/// Most bytes of a chat template.
const TEMPLATE_LIMIT: u64 = 1 << 20;

/// The special tokens and the chat template's source, each where the folder has it.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    pub(super) pad: Option<String>,
    pub(super) template: Option<String>,
}

impl TokenizerConfig {
    /// Both files are optional; one that is there must be well formed. `chat_template.jinja` goes before the
    /// template of `tokenizer_config.json`, as in transformers.
    pub(super) fn from_files(files: &Files) -> Result<Self> {
        const CONFIG: &str = "tokenizer_config.json";
        const TEMPLATE: &str = "chat_template.jinja";
        let mut config = match files.read(CONFIG, CONFIG_LIMIT)? {
            Some(bytes) => Self::parse(&files.path(CONFIG), &bytes)?,
            None => Self::default(),
        };
        if let Some(bytes) = files.read(TEMPLATE, TEMPLATE_LIMIT)? {
            let not_text = |_| Error::malformed(files.path(TEMPLATE), "it is not UTF-8");
            let source = String::from_utf8(bytes).map_err(not_text)?;
            config.template = Some(source);
        }
        Ok(config)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::malformed(path, error.to_string()))?;
        if !value.is_object() {
            return Err(Error::malformed(path, "it is not a JSON object"));
        }
        let template = template_source(path, &value["chat_template"])?;
        if template.as_ref().is_some_and(|source| source.len() as u64 > TEMPLATE_LIMIT) {
            return Err(Error::malformed(path, format!("chat_template has more than {TEMPLATE_LIMIT} bytes")));
        }
        let token = |name| special_token(path, name, &value[name]);
        Ok(Self { bos: token("bos_token")?, eos: token("eos_token")?, pad: token("pad_token")?, template })
    }
}

/// A token is a string, or an object with the string under `content`.
fn special_token(path: &Path, name: &str, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(fields) if fields.get("content").is_some_and(Value::is_string) => {
            Ok(fields["content"].as_str().map(str::to_owned))
        }
        other => {
            Err(Error::malformed(path, format!("{name} is neither a string nor {{\"content\": string}}: {other}")))
        }
    }
}

/// A template is a string, or a list of `{name, template}` of which the one named `default` counts.
fn template_source(path: &Path, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(named) => {
            for entry in named {
                let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                    return Err(Error::malformed(path, "an entry of chat_template lacks `name` or `template`"));
                };
                if name == "default" {
                    return Ok(Some(source.to_owned()));
                }
            }
            Ok(None)
        }
        _ => Err(Error::malformed(path, "chat_template is neither a string nor a list of named templates")),
    }
}
