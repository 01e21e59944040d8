//! The loop that turns a prompt into new tokens, as an iterator: stream it, `take(n)`, collect it, drop it to cancel.

use burn::tensor::{DType, Tensor};
use firebrick_backend::KernelBackend;
use firebrick_backend::packed::dtype_name;

use crate::cache::KvCache;
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::sample::{History, Sampler, Sampling, top_logprobs};
use crate::sequence::{Segments, Sequences};

/// Tokens of a prompt that pass through the model at a time: bounds the memory of activations, and changes no result.
const PREFILL_CHUNK: usize = 512;

/// Tokens of the answer that the cache has room for from the beginning.
const RESERVED: usize = 1024;

/// How to decode.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// New tokens at most.
    pub max_tokens: usize,
    /// Tokens that end the answer.
    pub eos: Vec<u32>,
    /// How many of the likeliest tokens to report with each, 0 for none.
    pub logprobs: usize,
    /// What keys and values are stored in; `None` for what the model computes in. f16 and bf16 take half the memory of f32.
    pub cache_dtype: Option<DType>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { sampling: Sampling::greedy(), max_tokens: 128, eos: Vec::new(), logprobs: 0, cache_dtype: None }
    }
}

/// One new token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its log-probability under the model, before sampling changed the distribution.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, as many as were asked for.
    pub top: Vec<(u32, f32)>,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// Why decoding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// As many tokens as were asked for, or the end of the context.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as in OpenAI's API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// An answer in the making. The cache can be taken back to continue the conversation from it.
pub struct Decode<'m, B: KernelBackend> {
    model: &'m dyn CausalLm<B>,
    cache: KvCache<B>,
    sampler: Sampler,
    options: DecodeOptions,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    /// Tokens the model has not seen yet.
    pending: Vec<u32>,
    finished: bool,
}

impl<'m, B: KernelBackend> Decode<'m, B> {
    /// Decodes from `prompt`.
    ///
    /// # Errors
    /// If the prompt is empty or longer than the context, an id is outside the vocabulary, a sampling option is out of bounds, or the backend
    /// does not read a cache of this dtype.
    ///
    /// # Panics
    /// On an autodiff backend, whose graph would grow with each token: decode on `model.valid()`.
    pub fn new(model: &'m dyn CausalLm<B>, prompt: &[u32], options: DecodeOptions) -> Result<Self> {
        // A long answer may end early: the cache grows when it does not.
        let room = (prompt.len() + options.max_tokens.min(RESERVED)).min(model.facts().context);
        let (own, device) = (model.compute_dtype(), model.device());
        let dtype = options.cache_dtype.unwrap_or(own);
        if dtype != own && !B::reads_cache(&device, dtype) {
            return Err(Error::CacheDType { dtype: dtype_name(dtype).to_owned(), backend: B::name(&device) });
        }
        let cache = model.new_cache_in(1, room, dtype);
        Self::with_cache(model, cache, prompt, options)
    }

    /// Decodes from `prompt`, of whose tokens the cache holds the first ones already: those both begin with are not computed again
    /// as long as `cache` was filled by this model from the same tokens. It keeps its dtype.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// As [`new`](Self::new), and if the cache holds more tokens than the prompt has.
    pub fn with_cache(
        model: &'m dyn CausalLm<B>,
        mut cache: KvCache<B>,
        prompt: &[u32],
        options: DecodeOptions,
    ) -> Result<Self> {
        let facts = model.facts();
        assert!(!B::ad_enabled(&model.device()), "decoding on an autodiff backend: use model.valid()");
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() > facts.context {
            return Err(Error::PromptTooLong { tokens: prompt.len(), limit: facts.context });
        }
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= facts.vocabulary) {
            return Err(Error::UnknownToken { id, vocabulary: facts.vocabulary });
        }
        assert!(
            cache.len(0) <= prompt.len(),
            "the cache holds {} tokens, the prompt has {}",
            cache.len(0),
            prompt.len()
        );
        // The last prompt token must pass the model to give the first logits.
        cache.truncate(0, prompt.len() - 1);
        let sampler = Sampler::new(&options.sampling)?;
        let pending = prompt[cache.len(0)..].to_vec();
        let finished = options.max_tokens == 0;
        Ok(Self { model, cache, sampler, options, prompt: prompt.to_vec(), generated: Vec::new(), pending, finished })
    }

    /// Logits after the pending tokens, which pass through the model in chunks.
    fn logits(&mut self) -> Result<Vec<f32>> {
        let device = self.model.device();
        let mut last = None;
        for chunk in self.pending.chunks(PREFILL_CHUNK) {
            let segments = Segments::continuing([(chunk.len(), self.cache.len(0))]).wanting_last();
            let tokens = Sequences::<B>::new(chunk, segments, &device);
            last = Some(self.model.hidden(&tokens, Some(&mut self.cache)));
        }
        self.pending.clear();
        let Some(last) = last else { return Ok(Vec::new()) };
        Ok(read_f32(self.model.head(last)))
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// Gives back the cache, and the tokens it holds.
    pub fn into_cache(self) -> (KvCache<B>, Vec<u32>) {
        let mut tokens = self.prompt;
        tokens.extend(&self.generated);
        tokens.truncate(self.cache.len(0));
        (self.cache, tokens)
    }

    fn step(&mut self) -> Result<Token> {
        let mut logits = B::concurrently(vec![&mut *self], Self::logits);
        let logits = logits.pop().unwrap_or_else(|| Ok(Vec::new()))?;
        let history = History { prompt: &self.prompt, generated: &self.generated };
        let choice = self.sampler.next(&logits, history)?;
        let top = if self.options.logprobs > 0 { top_logprobs(&logits, self.options.logprobs)? } else { Vec::new() };
        self.generated.push(choice.id);
        self.pending.push(choice.id);
        let seen = self.prompt.len() + self.generated.len();
        let finish = if self.options.eos.contains(&choice.id) {
            Some(FinishReason::Stop)
        } else if self.generated.len() >= self.options.max_tokens || seen > self.model.facts().context {
            Some(FinishReason::Length)
        } else {
            None
        };
        Ok(Token { id: choice.id, logprob: choice.logprob, top, finish })
    }
}

impl<B: KernelBackend> Iterator for Decode<'_, B> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let token = self.step();
        self.finished = token.as_ref().map_or(true, |token| token.finish.is_some());
        Some(token)
    }
}

/// Every element as f32, in order.
pub(crate) fn read_f32<B: KernelBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert_dtype(DType::F32).to_vec().expect("the values have just been made f32")
}
