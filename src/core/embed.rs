//! Texts to vectors: tokens with the prefix of their kind, hidden states, one vector for each text, in the order of the texts.
//!
//! Texts of like length pass through the model together, laid end to end: there is no padding, and a vector does not depend on what else
//! was in the batch. Training through the same path is in `train/`.

mod config;
mod groups;
mod pooling;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;
use firebrick_backend::KernelBackend;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::{Encoder, EncoderFacts};
use crate::sequence::{Segments, Sequences};
use crate::text::Tokenizer;

pub use config::EmbedConfig;
pub use pooling::Pooling;

/// What a text is to a search. Models such as E5 were trained with a prefix for each and lose much without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What is searched for.
    Query,
    /// What is found.
    #[default]
    Passage,
    /// Neither: the text as it is, without a prefix.
    None,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Query, Self::Passage, Self::None];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Passage => "passage",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| Error::OutOfBounds {
            name: "kind",
            value: text.to_owned(),
            bounds: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// Tokens that pass through the model at a time where nobody says.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;

/// How texts are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// What the texts are.
    pub kind: Kind,
    /// Features kept of each vector, from the first; `None` for all. For models trained so that a part suffices (Kusupati et al. 2022).
    pub dimensions: Option<usize>,
    /// Tokens that pass through the model at a time.
    pub batch_tokens: usize,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { kind: Kind::default(), dimensions: None, batch_tokens: DEFAULT_BATCH_TOKENS }
    }
}

impl EmbedOptions {
    /// For texts of this kind.
    pub fn of(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// With this many features kept.
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }
}

/// A text as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextTokens {
    /// Token ids, special ones included.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than the model takes, and its end was cut off.
    pub truncated: bool,
}

/// A text's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The vector, of unit length unless the checkpoint's files say otherwise.
    pub vector: Vec<f32>,
    /// Tokens that it was made from, special ones and the prefix included.
    pub tokens: usize,
    /// Whether the text's end was cut off.
    pub truncated: bool,
}

impl Embedding {
    /// The cosine of the angle between this vector and another of the same model: 1 where they point the same way. 0 beside a vector of zeros.
    ///
    /// # Panics
    /// If they are not equally long.
    pub fn cosine(&self, other: &Self) -> f32 {
        assert_eq!(self.vector.len(), other.vector.len(), "vectors of two models");
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let lengths = dot(&self.vector, &self.vector).sqrt() * dot(&other.vector, &other.vector).sqrt();
        if lengths == 0.0 { 0.0 } else { (dot(&self.vector, &other.vector) / lengths) as f32 }
    }
}

/// A checkpoint's way from texts to vectors. The encoder itself is an argument, so that one way serves it with and without an adapter.
#[derive(Clone, Debug)]
pub struct Embedder {
    tokenizer: Tokenizer,
    config: EmbedConfig,
    facts: EncoderFacts,
    max_tokens: usize,
    /// Special tokens before and after a text.
    around: [Vec<u32>; 2],
}

impl Embedder {
    /// Reads the tokenizer and the files of sentence-transformers.
    ///
    /// # Errors
    /// If a file is missing, malformed, or asks for something unsupported.
    pub fn read(checkpoint: &Checkpoint, facts: EncoderFacts) -> Result<Self> {
        Self::new(Tokenizer::from_folder(checkpoint.folder())?, EmbedConfig::read(checkpoint)?, facts)
    }

    /// From its parts.
    ///
    /// # Errors
    /// If the tokenizer cannot be used, or the length leaves no room for a token between the special ones.
    pub fn new(tokenizer: Tokenizer, config: EmbedConfig, facts: EncoderFacts) -> Result<Self> {
        let max_tokens = config.max_tokens.map_or(facts.context, |max| max.min(facts.context));
        let around = around(&tokenizer)?;
        let special = around.concat().len();
        if max_tokens <= special {
            let bounds = format!("above {special}, the special tokens around a text");
            return Err(Error::OutOfBounds { name: "max_tokens", value: max_tokens.to_string(), bounds });
        }
        Ok(Self { tokenizer, config, facts, max_tokens, around })
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the checkpoint's files say.
    pub fn config(&self) -> &EmbedConfig {
        &self.config
    }

    /// Tokens of a text at most, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The same with texts cut off earlier.
    ///
    /// # Errors
    /// If that leaves no room for a token, or is more than the model takes.
    pub fn with_max_tokens(&self, max_tokens: usize) -> Result<Self> {
        let special = self.around.concat().len();
        if max_tokens <= special || max_tokens > self.max_tokens {
            let bounds = format!("from {} to {}", special + 1, self.max_tokens);
            return Err(Error::OutOfBounds { name: "max_tokens", value: max_tokens.to_string(), bounds });
        }
        Ok(Self { max_tokens, ..self.clone() })
    }

    /// Features of a vector.
    pub fn dimensions(&self) -> usize {
        self.facts.hidden * self.config.pooling.len()
    }

    /// What goes before texts of a kind.
    pub fn prefix(&self, kind: Kind) -> &str {
        match kind {
            Kind::Query => &self.config.query_prefix,
            Kind::Passage => &self.config.passage_prefix,
            Kind::None => "",
        }
    }

    /// The tokens of a text behind the prefix of its kind, cut off at the model's length.
    ///
    /// # Errors
    /// [`Error::EmptyText`] if there is no token at all, [`Error::Tokenizer`] if the tokenizer fails, [`Error::UnknownToken`] if it knows
    /// tokens that the model does not.
    pub fn tokenize(&self, text: &str, kind: Kind) -> Result<TextTokens> {
        let mut whole = format!("{}{text}", self.prefix(kind));
        if self.config.lowercase {
            whole = whole.to_lowercase();
        }
        let room = self.max_tokens - self.around.concat().len();
        let mut ids = self.first_tokens(&whole, room)?;
        let truncated = ids.len() > room;
        ids.truncate(room);
        let [before, after] = &self.around;
        let ids = [before, &ids[..], after].concat();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.facts.vocabulary) {
            return Err(Error::UnknownToken { id, vocabulary: self.facts.vocabulary });
        }
        if ids.is_empty() { Err(Error::EmptyText) } else { Ok(TextTokens { ids, truncated }) }
    }

    /// The text's tokens, or of a long text at least one more than `room`: time grows with what is used, not with what is given.
    fn first_tokens(&self, text: &str, room: usize) -> Result<Vec<u32>> {
        /// Tokens read beyond the limit, so that where the text was parted does not show in those that are used.
        const SLACK: usize = 32;
        let mut bytes = (room + SLACK) * 16;
        while bytes < text.len() {
            // Tokenizers part texts at white space before anything else.
            let whole_words = text.floor_char_boundary(bytes);
            if let Some(end) = text[..whole_words].rfind(char::is_whitespace).filter(|&end| end > 0) {
                let ids = self.tokenizer.encode(&text[..end], false)?;
                if ids.len() > room + SLACK {
                    return Ok(ids);
                }
            }
            bytes *= 8;
        }
        self.tokenizer.encode(text, false)
    }

    /// The vectors of texts whose hidden states are there, `[tokens, hidden]` → `[texts, features]`: the one way, for embedding and for
    /// training.
    pub fn vectors<B: KernelBackend>(
        &self,
        hidden: Tensor<B, 2>,
        segments: &Segments,
        dimensions: Option<usize>,
    ) -> Tensor<B, 2> {
        let pooled = self.config.pooling.iter().map(|pooling| pooling.pool(hidden.clone(), segments));
        let pooled = Tensor::cat(pooled.collect(), 1);
        let [rows, features] = pooled.dims();
        let kept = match dimensions {
            Some(dimensions) if dimensions < features => pooled.slice([0..rows, 0..dimensions]),
            _ => pooled,
        };
        if self.config.normalize { unit_length(kept) } else { kept }
    }

    /// The vectors of tokenized texts, in their order.
    ///
    /// # Errors
    /// If an option is out of bounds, or a vector is not finite.
    ///
    /// # Panics
    /// On an autodiff backend, whose graph would grow: embed with `model.valid()`.
    pub fn encode<B: KernelBackend>(
        &self,
        model: &dyn Encoder<B>,
        texts: &[TextTokens],
        options: &EmbedOptions,
    ) -> Result<Vec<Embedding>> {
        let device = model.device();
        assert!(!B::ad_enabled(&device), "embedding on an autodiff backend: use model.valid()");
        self.check(options)?;
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let mut embeddings = vec![None; texts.len()];
        let vectors = |group: &[usize]| {
            let ids: Vec<&[u32]> = group.iter().map(|&index| &texts[index].ids[..]).collect();
            let tokens = Sequences::whole(&ids, &device);
            let vectors = self.vectors(model.encode(&tokens), &tokens.segments, options.dimensions);
            let features = vectors.dims()[1];
            (vectors.into_data().iter::<f32>().collect::<Vec<f32>>(), features)
        };
        for group in groups::groups(&lengths, options.batch_tokens) {
            let parts = groups::parts(&lengths, &group, B::workers());
            let of_parts = B::concurrently(parts.clone(), |part| vectors(&part));
            for (part, (values, features)) in parts.iter().zip(&of_parts) {
                for (&row, vector) in part.iter().zip(values.chunks_exact(*features)) {
                    if vector.iter().any(|value| !value.is_finite()) {
                        return Err(Error::NotFinite { what: "the embedding", place: Some(format!("text {row}")) });
                    }
                    let TextTokens { ids, truncated } = &texts[row];
                    let (tokens, truncated) = (ids.len(), *truncated);
                    embeddings[row] = Some(Embedding { vector: vector.to_vec(), tokens, truncated });
                }
            }
        }
        Ok(embeddings.into_iter().flatten().collect())
    }

    /// The vectors of texts, in their order.
    ///
    /// # Errors
    /// [`Error::Text`] with the number of a text that cannot be tokenized, and as [`encode`](Self::encode).
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    pub fn embed<B: KernelBackend, T: AsRef<str>>(
        &self,
        model: &dyn Encoder<B>,
        texts: &[T],
        options: &EmbedOptions,
    ) -> Result<Vec<Embedding>> {
        let tokenize = |(row, text): (usize, &T)| {
            let tokens = self.tokenize(text.as_ref(), options.kind);
            tokens.map_err(|problem| Error::Text { row, source: Box::new(problem) })
        };
        let texts: Vec<TextTokens> = texts.iter().enumerate().map(tokenize).collect::<Result<_>>()?;
        self.encode(model, &texts, options)
    }

    /// Checks the options against the model.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] with the option's name, value and bounds.
    pub fn check(&self, options: &EmbedOptions) -> Result<()> {
        let out_of_bounds =
            |name, value: usize, bounds: String| Err(Error::OutOfBounds { name, value: value.to_string(), bounds });
        match options.dimensions {
            Some(value) if !(1..=self.dimensions()).contains(&value) => {
                out_of_bounds("dimensions", value, format!("from 1 to {}, those of the model", self.dimensions()))
            }
            _ if options.batch_tokens == 0 => out_of_bounds("batch_tokens", 0, "at least 1".into()),
            _ => Ok(()),
        }
    }
}

/// Each row over its length. As torch's `normalize`, a row of zeros stays one.
pub(crate) fn unit_length<B: KernelBackend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = (rows.clone() * rows.clone()).sum_dim(1).sqrt().clamp_min(1e-12);
    rows / length
}

/// The special tokens that the tokenizer puts before and after a text, found by comparing one with and without them.
fn around(tokenizer: &Tokenizer) -> Result<[Vec<u32>; 2]> {
    let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
    let mut windows = with.windows(without.len().max(1));
    match windows.position(|window| window == without) {
        Some(start) => Ok([with[..start].to_vec(), with[start + without.len()..].to_vec()]),
        None => Err(Error::Tokenizer("its special tokens do not stand around a text but inside it".into())),
    }
}
