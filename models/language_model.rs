//! A decoder with its tokenizer and its own defaults: what most programs want.

use std::path::Path;

use burn::tensor::DType;
use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::decode::DecodeOptions;
use firebrick_core::error::Result;
use firebrick_core::generate::{Generation, Session};
use firebrick_core::generation::GenerationConfig;
use firebrick_core::lora::Adapter;
use firebrick_core::model::{CausalLm, Handle};
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
        Ok(Self { model, tokenizer, generation, fingerprint: checkpoint.fingerprint(), name })
    }

    /// The decoder.
    pub fn model(&self) -> &dyn CausalLm<B> {
        &*self.model
    }

    /// The dtype of its layers' weights; `firebrick_backend::packed::dtype_name` names it. A table of tokens may have another.
    pub fn weight_dtype(&self) -> DType {
        let mut dtype = self.model.head_weight().dtype();
        let mut seen = false;
        self.model.handle().each_linear(&mut |_, linear| {
            if !std::mem::replace(&mut seen, true) {
                dtype = linear.weight.dtype();
            }
        });
        dtype
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
        let options = TemplateOptions { add_generation_prompt: true, ..TemplateOptions::default() };
        self.tokenizer.chat(messages, &options)
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
        self.generate_from(&self.encode_chat(messages)?, options, None)
    }

    /// Continues token ids; a `session` of an earlier answer saves what the prompts have in common.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_from(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        session: Option<Session<B>>,
    ) -> Result<Generation<'_, B>> {
        let own = self.generation.max_tokens(prompt.len());
        let decode = DecodeOptions {
            sampling: options.sampling.clone().unwrap_or_else(|| self.generation.sampling()),
            max_tokens: options.max_tokens.or(own).unwrap_or(DEFAULT_MAX_TOKENS),
            eos: self.eos(),
            logprobs: options.logprobs,
            cache_dtype: options.cache_dtype,
        };
        let stop = [&options.stop[..], &self.generation.stop_strings[..]].concat();
        Generation::new(&*self.model, &self.tokenizer, prompt, decode, &stop, session)
    }

    /// Every token that ends an answer.
    fn eos(&self) -> Vec<u32> {
        match &self.generation.eos_token_id[..] {
            [] => self.tokenizer.eos_token().into_iter().collect(),
            ids => ids.to_vec(),
        }
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
