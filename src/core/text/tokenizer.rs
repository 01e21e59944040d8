//! The tokenizer of a model folder: text to token ids and back. Rendering chats and streaming live beside it.

mod bounds;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::TokenizerConfig;
use super::{ChatTemplate, Detokenizer, Message, TemplateOptions};
use crate::error::{Error, Result};
use crate::file::Files;

/// Past about a million characters in one match the library's regular expressions give up without an error, and the rest of the text is
/// split as one piece: refused instead.
const LONGEST_RUN: usize = 900_000;

/// Most bytes of `tokenizer.json`; the largest published ones are near 35 MB.
const FILE_LIMIT: u64 = 64 << 20;

/// A model folder's tokenizer with its special tokens and chat template. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Parts>);

struct Parts {
    folder: PathBuf,
    inner: tokenizers::Tokenizer,
    specials: BTreeSet<u32>,
    vocabulary_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    template: Option<ChatTemplate>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("folder", &self.0.folder).field("tokens", &self.0.vocabulary_size).finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and where they are there `tokenizer_config.json` and `chat_template.jinja`.
    /// Truncation and padding stored in the file are off: whoever calls decides on lengths.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a file that is larger than 64 MiB, no tokenizer, or costs more than a text is worth, and for a template that
    /// does not compile; [`Error::Io`].
    pub fn from_folder(dir: &Path) -> Result<Self> {
        Self::from_files(&Files::folder(dir))
    }

    /// As [`from_folder`](Self::from_folder), of a model's files wherever they are.
    pub fn from_files(files: &Files) -> Result<Self> {
        const NAME: &str = "tokenizer.json";
        let path = files.path(NAME);
        let bytes = files.need(NAME, FILE_LIMIT)?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|problem| Error::malformed(&path, format!("not a tokenizer: {problem}")))?;
        drop(bytes);
        bounds::check(&inner).map_err(|problem| Error::malformed(&path, problem))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::Tokenizer(error.to_string()))?;

        let config = TokenizerConfig::from_files(files)?;
        let specials = inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        // Ids may have gaps; the size that an embedding table must have is what callers need.
        let vocabulary_size = inner.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);
        let id = |token: &Option<String>| token.as_deref().and_then(|token| inner.token_to_id(token));
        let (bos, eos) = (id(&config.bos), id(&config.eos));
        let template = match config.template {
            Some(source) => Some(
                ChatTemplate::new(&source, config.bos, config.eos, config.pad)
                    .map_err(|error| located(files.place(), error))?,
            ),
            None => None,
        };
        Ok(Self(Arc::new(Parts {
            folder: files.place().to_owned(),
            inner,
            specials,
            vocabulary_size,
            bos,
            eos,
            template,
        })))
    }

    /// The tokens of `text`. With `special`, also those the file's post-processor adds around it (BOS, CLS, SEP);
    /// special tokens written out in the text are recognised either way.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails, and for a run of 900,000 letters, spaces or signs without a break.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if longest_run(text) > LONGEST_RUN {
            let problem =
                format!("more than {LONGEST_RUN} letters, spaces or signs without a break cannot be split into words");
            return Err(Error::Tokenizer(problem));
        }
        let encoding = guarded(|| self.0.inner.encode_fast(text, special)).map_err(Error::Tokenizer)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, without special tokens if asked. An id no token has decodes to nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.0.inner.decode(ids, skip_special)).map_err(Error::Tokenizer)
    }

    /// One more than the largest token id: the rows an embedding table needs.
    pub fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size
    }

    /// The id of exactly this token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.inner.token_to_id(token)
    }

    /// The end-of-sequence token of `tokenizer_config.json`.
    pub fn eos_token(&self) -> Option<u32> {
        self.0.eos
    }

    /// The beginning-of-sequence token of `tokenizer_config.json`.
    pub fn bos_token(&self) -> Option<u32> {
        self.0.bos
    }

    /// Whether `id` is a special token: one that carries structure, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.specials.contains(&id)
    }

    /// The chat template, if the folder has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.0.template.as_ref()
    }

    /// Decodes tokens as they come.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer::new(self, skip_special)
    }

    /// The tokens of a chat. The template writes every special token itself, so none is added again.
    pub fn chat(&self, messages: &[Message], options: &TemplateOptions) -> Result<Vec<u32>> {
        let Some(template) = self.template() else {
            return Err(Error::Template(format!("{} has none", self.0.folder.display())));
        };
        let text = template.render(messages, options).map_err(|error| located(&self.0.folder, error))?;
        self.encode(&text, false)
    }

    /// Whether `id` adds nothing to a text: no token has it, or it is special and those are skipped.
    pub(super) fn is_silent(&self, id: u32, skip_special: bool) -> bool {
        (skip_special && self.is_special(id)) || self.0.inner.id_to_token(id).is_none()
    }
}

/// The tokenizers crate indexes and unwraps in places a hostile file can reach; what it panics over becomes an error.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("the tokenizer cannot be used: {}", text.unwrap_or_else(|| "it panicked".into())))
        }
    }
}

/// A template's error with the folder it is from.
fn located(folder: &Path, error: Error) -> Error {
    match error {
        Error::Template(problem) => Error::Template(format!("{}: {problem}", folder.display())),
        other => other,
    }
}

/// The longest stretch of characters of one kind.
fn longest_run(text: &str) -> usize {
    // Most texts are shorter than the limit as a whole.
    if text.len() <= LONGEST_RUN {
        return text.len();
    }
    let kind = |c: char| (c.is_alphanumeric(), c.is_whitespace());
    let (mut longest, mut length, mut last) = (0, 0, None);
    for character in text.chars() {
        length = if last == Some(kind(character)) { length + 1 } else { 1 };
        last = Some(kind(character));
        longest = longest.max(length);
    }
    longest
}

#[cfg(test)]
pub(in crate::text) mod tests;
