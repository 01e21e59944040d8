//! What a model's own folder says about generating with it: `generation_config.json`, and the end-of-sequence ids of `config.json`
//! where that is silent. How an option acts is `sample.rs`; who overrides it is the caller's affair.

use crate::error::{Error, Result};
use crate::file::Files;
use crate::sample::Sampling;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// No real configuration comes near; a larger file is refused before it is read.
const LARGEST_FILE_BYTES: u64 = 16 << 20;

/// What transformers samples from when the file asks for sampling and does not say.
const DEFAULT_TOP_K: usize = 50;

/// Keys of transformers that change which tokens come out and that this framework does not act on, each with the number that
/// switches it off (null, false and empty do so too). Any other value is an error rather than a silent difference.
const UNSUPPORTED: [(&str, f64); 20] = [
    ("bad_words_ids", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("forced_bos_token_id", f64::NAN),
    ("forced_eos_token_id", f64::NAN),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beams", 1.0),
    ("num_return_sequences", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("suppress_tokens", 0.0),
    ("typical_p", 1.0),
    ("watermarking_config", 0.0),
];

/// The generation defaults a model ships with. Fields have the names of the file's keys; absent is what the file leaves open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Every token that ends an answer.
    pub eos_token_id: Vec<u32>,
    /// Texts that end an answer.
    pub stop_strings: Vec<String>,
    /// Whether to draw at random; false or absent in the file means greedy, as in transformers.
    pub do_sample: bool,
    /// See [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`]; 0 in the file means off.
    pub top_k: Option<usize>,
    /// See [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`Sampling::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`Sampling::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// The longest answer, in tokens.
    pub max_new_tokens: Option<usize>,
    /// The longest prompt and answer together, in tokens; `max_new_tokens` goes before it.
    pub max_length: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder, and `eos_token_id` of its `config.json` if the former has none. Neither file
    /// has to exist.
    ///
    /// Errors: [`Error::Io`] if the folder or a file in it cannot be read; [`Error::Malformed`] for what is not JSON or has a value of
    /// the wrong type or out of bounds, naming the key; [`Error::UnsupportedConfig`] for a key that would change the tokens and
    /// is not acted on.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::from_files(&Files::folder(folder))
    }

    /// As [`from_folder`](Self::from_folder), of a model's files wherever they are.
    ///
    /// # Errors
    /// As there.
    pub fn from_files(files: &Files) -> Result<Self> {
        std::fs::metadata(files.place()).map_err(Error::io(files.place()))?;
        let mut config = match Keys::read(files, "generation_config.json")? {
            Some(keys) => Self::from_keys(&keys)?,
            None => Self::default(),
        };
        if config.eos_token_id.is_empty()
            && let Some(keys) = Keys::read(files, "config.json")?
        {
            config.eos_token_id = keys.ids("eos_token_id")?;
        }
        Ok(config)
    }

    fn from_keys(keys: &Keys) -> Result<Self> {
        keys.refuse_unsupported()?;
        let do_sample = keys.boolean("do_sample")?.unwrap_or(false);
        let top_k = keys.integer("top_k")?.or(do_sample.then_some(DEFAULT_TOP_K));
        let config = Self {
            eos_token_id: keys.ids("eos_token_id")?,
            stop_strings: keys.texts("stop_strings")?,
            do_sample,
            temperature: keys.number("temperature")?,
            top_k: top_k.filter(|&k| k > 0),
            top_p: keys.number("top_p")?,
            min_p: keys.number("min_p")?,
            repetition_penalty: keys.number("repetition_penalty")?,
            presence_penalty: keys.number("presence_penalty")?,
            frequency_penalty: keys.number("frequency_penalty")?,
            max_new_tokens: keys.integer("max_new_tokens")?,
            max_length: keys.integer("max_length")?,
        };
        // Checked as if sampling were on: a caller may turn it on by giving a temperature.
        let sampling = Self { do_sample: true, ..config.clone() }.sampling();
        sampling.validate().map_err(|error| Error::malformed(&keys.path, error.to_string()))?;
        Ok(config)
    }

    /// The options as the model's authors meant them: greedy unless `do_sample`; penalties hold either way. The seed is 0.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: if self.do_sample { self.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: 0,
        }
    }

    /// How many tokens may follow a prompt of this length, if the file says.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if the file's `max_length`, of prompt and answer together, leaves none.
    pub fn max_tokens(&self, prompt_tokens: usize) -> Result<Option<usize>> {
        match (self.max_new_tokens, self.max_length) {
            (Some(tokens), _) => Ok(Some(tokens)),
            (None, Some(limit)) if limit <= prompt_tokens => Err(Error::PromptTooLong { tokens: prompt_tokens, limit }),
            (None, length) => Ok(length.map(|length| length - prompt_tokens)),
        }
    }
}

/// A JSON object that remembers its file, for the errors. A key that is null counts as absent.
struct Keys {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl Keys {
    fn read(files: &Files, name: &str) -> Result<Option<Self>> {
        let path = files.path(name);
        let Some(bytes) = files.read(name, LARGEST_FILE_BYTES)? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(keys)) => Ok(Some(Self { path, keys })),
            Ok(other) => Err(Error::malformed(path, format!("must hold a JSON object, found {}", excerpt(&other)))),
            Err(error) => Err(Error::malformed(path, format!("not JSON: {error}"))),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        for (key, off) in UNSUPPORTED {
            let Some(value) = self.get(key) else { continue };
            let is_off = match value {
                Value::Bool(on) => !on,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                other => other.as_f64() == Some(off),
            };
            if !is_off {
                let reason =
                    "it changes which tokens are generated and is not implemented; remove the key to go on without it";
                return Err(Error::UnsupportedConfig {
                    path: self.path.clone(),
                    key: key.to_owned(),
                    value: excerpt(value),
                    reason: reason.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn convert<T>(&self, key: &str, expected: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || Error::malformed(&self.path, format!("`{key}` must be {expected}, found {}", excerpt(value)));
        convert(value).map(Some).ok_or_else(wrong)
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.convert(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        self.convert(key, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    fn integer(&self, key: &str) -> Result<Option<usize>> {
        self.convert(key, "a whole number of at least 0", |value| value.as_u64().and_then(|x| x.try_into().ok()))
    }

    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        Ok(self.convert(key, "a token id or a list of them", |value| one_or_many(value, id))?.unwrap_or_default())
    }

    fn texts(&self, key: &str) -> Result<Vec<String>> {
        // The empty text would end every answer before it began.
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(self
            .convert(key, "a text or a list of texts, none empty", |value| one_or_many(value, text))?
            .unwrap_or_default())
    }
}

fn one_or_many<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match value {
        Value::Array(items) => items.iter().map(convert).collect(),
        one => convert(one).map(|one| vec![one]),
    }
}

/// A value as JSON, short enough for one line.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
