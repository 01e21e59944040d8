//! A decoder with its tokenizer and its own defaults: what most programs want.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::DType;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::decode::DecodeOptions;
use firebrick_core::error::Result;
use firebrick_core::generate::{Generation, Session};
use firebrick_core::generation::GenerationConfig;
use firebrick_core::lora::{Adapter, LoraConfig, linear_dtype};
use firebrick_core::model::CausalLm;
use firebrick_core::sample::Sampling;
use firebrick_core::text::{Message, TemplateOptions, Tokenizer};

use crate::load_causal_lm;

/// New tokens where neither the caller nor the model says.
const DEFAULT_MAX_TOKENS: usize = 128;

/// What to change of the model's own generation defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen; `None` for `generation_config.json`'s way.
    pub sampling: Option<Sampling>,
    /// New tokens at most; `None` for the model's default, or 128.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer, besides the model's own.
    pub stop: Vec<String>,
    /// How many of the likeliest tokens to report with each.
    pub logprobs: usize,
    /// What the keys and values of the context are stored in; `None` for f32.
    pub cache_dtype: Option<DType>,
}

impl GenerateOptions {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self { sampling: Some(Sampling::greedy()), ..Self::default() }
    }

    /// With tokens chosen in this way.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = Some(sampling);
        self
    }

    /// With this text as an end of the answer, which is not part of it.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// With this many new tokens at most.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }
}

/// A decoder, its tokenizer and its generation defaults. Handles made from it share its weights.
pub struct LanguageModel<B: KernelBackend> {
    model: Box<dyn CausalLm<B>>,
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    fingerprint: String,
    name: String,
    /// Tells its sessions from those of others, of the same base with another adapter too.
    number: u64,
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<B: KernelBackend> LanguageModel<B> {
    /// Loads a folder in Hugging Face layout, or a `.gguf` file, weights in the dtype they are stored in.
    ///
    /// # Errors
    /// If a file is missing, malformed, or asks for something unsupported.
    pub fn load(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self> {
        Self::load_as(folder, DTypePolicy::Auto, device)
    }

    /// Loads a folder in Hugging Face layout, weights in the dtype `policy` says.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if a weight does not fit the dtype.
    pub fn load_as(folder: impl AsRef<Path>, policy: DTypePolicy, device: &B::Device) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(folder.as_ref())?, policy, device)
    }

    /// Loads an opened checkpoint.
    ///
    /// # Errors
    /// As [`load_as`](Self::load_as).
    pub fn from_checkpoint(checkpoint: &Checkpoint, policy: DTypePolicy, device: &B::Device) -> Result<Self> {
        let (folder, files) = (checkpoint.folder(), checkpoint.files());
        let tokenizer = Tokenizer::from_files(files)?;
        let generation = GenerationConfig::from_files(files)?;
        let model = load_causal_lm::<B>(checkpoint, policy, device)?;
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { model, tokenizer, generation, fingerprint: checkpoint.fingerprint(), name, number: next_number() })
    }

    /// The decoder.
    pub fn model(&self) -> &dyn CausalLm<B> {
        &*self.model
    }

    /// The dtype of its layers' weights; `firebrick_backend::packed::dtype_name` names it. A table of tokens may have another.
    pub fn weight_dtype(&self) -> DType {
        linear_dtype(&*self.model).unwrap_or_else(|| self.model.head_weight().dtype())
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its own generation defaults.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// What identifies the base that an adapter belongs to.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An adapter for this model that changes nothing until it is trained; the seed decides its random values. It notes which base it is for.
    ///
    /// # Errors
    /// If the config names no linear of the model, or a number is out of bounds.
    pub fn new_adapter(&self, config: &LoraConfig, seed: u64) -> Result<Adapter<B>> {
        let mut adapter = Adapter::create(&*self.model, config, seed)?;
        adapter.set_base(self.fingerprint.as_str(), &self.name, None);
        Ok(adapter)
    }

    /// The same model with an adapter attached. The base stays as it is: swapping is taking another handle.
    ///
    /// # Errors
    /// If the adapter was made for another base or does not fit.
    pub fn with_adapter(&self, adapter: &Adapter<B>) -> Result<Self> {
        adapter.check_base(&self.fingerprint, &self.name)?;
        Ok(self.with_model(adapter.attach(&*self.model)?))
    }

    /// The same model with an adapter folded into its weights, in their dtype.
    ///
    /// # Errors
    /// As [`with_adapter`](Self::with_adapter).
    pub fn merged(&self, adapter: &Adapter<B>) -> Result<Self> {
        adapter.check_base(&self.fingerprint, &self.name)?;
        Ok(self.with_model(adapter.merge(&*self.model)?))
    }

    fn with_model<C: KernelBackend>(&self, model: Box<dyn CausalLm<C>>) -> LanguageModel<C> {
        LanguageModel {
            model,
            tokenizer: self.tokenizer.clone(),
            generation: self.generation.clone(),
            fingerprint: self.fingerprint.clone(),
            name: self.name.clone(),
            number: next_number(),
        }
    }

    /// The same weights on the backend underneath autodiff, to generate with.
    pub fn valid(&self) -> LanguageModel<B::InnerBackend>
    where
        B: TrainBackend,
    {
        self.with_model(self.model.valid())
    }

    /// Token ids of a plain prompt.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(prompt, true)
    }

    /// Token ids of a conversation, ready for the assistant's answer.
    ///
    /// # Errors
    /// If there is no chat template, or it fails.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.tokenizer.chat(messages, &TemplateOptions::answer())
    }

    /// Continues a text.
    ///
    /// # Errors
    /// If the prompt is empty or too long, or an option is out of bounds.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generation<'_, B>> {
        self.generate_from(&self.encode(prompt)?, options, None)
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and if there is no chat template.
    pub fn chat(&self, messages: &[Message], options: &GenerateOptions) -> Result<Generation<'_, B>> {
        self.chat_with(messages, &TemplateOptions::answer(), options)
    }

    /// Answers a conversation for which the chat template is given more, such as tools or Qwen3's `enable_thinking`.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn chat_with(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        options: &GenerateOptions,
    ) -> Result<Generation<'_, B>> {
        self.generate_from(&self.tokenizer.chat(messages, template)?, options, None)
    }

    /// Continues token ids; a `session` of an earlier answer saves what the prompts have in common, and keeps the dtype of its cache. One of another
    /// model, or of this one with another adapter, is of no use and dropped.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_from(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        session: Option<Session<B>>,
    ) -> Result<Generation<'_, B>> {
        let own = match options.max_tokens {
            Some(_) => None,
            None => self.generation.max_tokens(prompt.len())?,
        };
        let stop = [&options.stop[..], &self.generation.stop_strings[..]].concat();
        let decode = DecodeOptions {
            sampling: options.sampling.clone().unwrap_or_else(|| self.generation.sampling()),
            max_tokens: options.max_tokens.or(own).unwrap_or(DEFAULT_MAX_TOKENS),
            eos: [self.eos(), self.special(&stop)].concat(),
            logprobs: options.logprobs,
            cache_dtype: options.cache_dtype,
        };
        let session = session.filter(|session| session.model() == self.number);
        let generation = Generation::new(&*self.model, &self.tokenizer, prompt, decode, &stop, session)?;
        Ok(generation.of_model(self.number))
    }

    /// Every token that ends an answer.
    fn eos(&self) -> Vec<u32> {
        match &self.generation.eos_token_id[..] {
            [] => self.tokenizer.eos_token().into_iter().collect(),
            ids => ids.to_vec(),
        }
    }

    /// Those of these texts that are special tokens, which never appear in the text of an answer.
    fn special(&self, texts: &[String]) -> Vec<u32> {
        let ids = texts.iter().filter_map(|text| self.tokenizer.token_id(text));
        ids.filter(|&id| self.tokenizer.is_special(id)).collect()
    }

    /// An adapter read from a folder, refused if it was made for another base.
    ///
    /// # Errors
    /// If it cannot be read, or was made for another base.
    pub fn load_adapter(&self, folder: impl AsRef<Path>) -> Result<Adapter<B>> {
        let adapter = Adapter::load(folder.as_ref(), &self.model.device())?;
        adapter.check_base(&self.fingerprint, &self.name)?;
        Ok(adapter)
    }
}
