//! `tokenizer.json` with what `tokenizer_config.json` says about it. Model files come from strangers: sizes are bounded and panics caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::Detokenizer;
use super::template::{ChatTemplate, Message, SpecialTokens, TemplateOptions};
use crate::error::{Error, Result};

const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A checkpoint's tokenizer and chat template. Clones share them.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    bos: Option<String>,
    eos: Option<String>,
    template: Option<ChatTemplate>,
    folder: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where they exist.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing, too large or malformed, or the template does not parse.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
        // Hostile files have made the library panic; that is this file's fault and nobody else's.
        let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&bytes)));
        let mut tokenizer = match parsed {
            Ok(Ok(tokenizer)) => tokenizer,
            Ok(Err(problem)) => return Err(Error::malformed(path, format!("not a tokenizer: {problem}"))),
            Err(_) => return Err(Error::malformed(path, "not a tokenizer: parsing it panicked")),
        };
        // What a training run stored is no property of the model.
        tokenizer.with_padding(None);
        let _ = tokenizer.with_truncation(None);

        let path = folder.join("tokenizer_config.json");
        let config: Value = if path.exists() {
            let bytes = read_bounded(&path, MAX_CONFIG_BYTES)?;
            serde_json::from_slice(&bytes).map_err(|problem| Error::malformed(&path, format!("not JSON: {problem}")))?
        } else {
            Value::Null
        };
        let token = |key: &str| {
            let value = config.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let special = SpecialTokens { bos: token("bos_token"), eos: token("eos_token"), pad: token("pad_token") };
        let (bos, eos) = (special.bos.clone(), special.eos.clone());
        let path = folder.join("chat_template.jinja");
        let source = if path.exists() {
            let bytes = read_bounded(&path, MAX_CONFIG_BYTES)?;
            Some(String::from_utf8(bytes).map_err(|problem| Error::malformed(&path, problem.to_string()))?)
        } else {
            template_in(&config)
        };
        let template = source.map(|source| ChatTemplate::new(&source, special)).transpose()?;
        let folder = folder.display().to_string();
        Ok(Self { inner: Arc::new(Inner { tokenizer, bos, eos, template, folder }) })
    }

    /// Token ids of a text; `special` adds what the tokenizer puts around a prompt, such as BOS.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = catch_unwind(AssertUnwindSafe(|| self.inner.tokenizer.encode_fast(text, special)));
        match encoded {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(problem)) => Err(Error::Tokenizer(problem.to_string())),
            Err(_) => Err(Error::Tokenizer("encoding panicked".into())),
        }
    }

    /// The text of token ids; an id the tokenizer does not know has none.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.tokenizer.decode(ids, skip_special).map_err(|problem| Error::Tokenizer(problem.to_string()))
    }

    /// Ids the tokenizer knows.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token that ends a text.
    pub fn eos_token(&self) -> Option<u32> {
        self.token_id(self.inner.eos.as_deref()?)
    }

    /// The token that begins a text.
    pub fn bos_token(&self) -> Option<u32> {
        self.token_id(self.inner.bos.as_deref()?)
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.inner.template.as_ref()
    }

    /// Token ids of a conversation. Nothing is added to what the template writes, so that BOS does not double.
    ///
    /// # Errors
    /// If there is no template, or it fails.
    pub fn chat(&self, messages: &[Message], options: &TemplateOptions) -> Result<Vec<u32>> {
        let template = self.template();
        let template = template.ok_or_else(|| Error::Template(format!("{} has none", self.inner.folder)))?;
        self.encode(&template.render(messages, options)?, false)
    }

    /// Text that streams as tokens come.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer::new(self, skip_special)
    }
}

/// The template of `tokenizer_config.json`: a string, or a list of named ones.
fn template_in(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(list) => {
            let named = |name: &str| list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
            named("default")?.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > limit {
        return Err(Error::malformed(path, format!("{length} bytes are more than the {limit} allowed")));
    }
    std::fs::read(path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens");

    #[test]
    fn ids_and_text_equal_transformers() {
        for name in ["qwen2-tiny", "qwen2-tiny-untied", "qwen3-tiny"] {
            let folder = Path::new(GOLDENS).join(name);
            let tokenizer = Tokenizer::from_folder(&folder).unwrap();
            let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
            let cases = golden["tokenizer"].as_array().unwrap();
            assert!(!cases.is_empty());
            for case in cases {
                let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
                assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap(), ids, "{case}");
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
            }
            let case = &golden["chat_template"];
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let options = TemplateOptions { add_generation_prompt: true, ..Default::default() };
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.chat(&messages, &options).unwrap(), ids);
            assert_eq!(
                tokenizer.template().unwrap().render(&messages, &options).unwrap(),
                case["text"].as_str().unwrap()
            );
        }
    }

    #[test]
    fn broken_files_are_typed_errors() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Tokenizer::from_folder(folder.path()).err().unwrap();
        assert!(missing.to_string().contains("tokenizer.json"), "{missing}");
        for content in
            ["", "{", "{}", "[1]", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}, \"merges\": []}}"]
        {
            std::fs::write(folder.path().join("tokenizer.json"), content).unwrap();
            let error = Tokenizer::from_folder(folder.path()).err().unwrap();
            assert!(error.to_string().contains("not a tokenizer"), "{error}");
        }
    }

    #[test]
    fn a_million_letters_take_bounded_time() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny/rust-tiny");
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let begun = std::time::Instant::now();
        let ids = tokenizer.encode(&"a".repeat(1_000_000), true).unwrap();
        assert!(!ids.is_empty());
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
