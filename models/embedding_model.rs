//! An encoder with its tokenizer and its own way of pooling: what most programs that search want.

use std::path::Path;

use firebrick_backend::{KernelBackend, TrainBackend};
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::embed::{EmbedOptions, Embedder, Embedding, Kind};
use firebrick_core::error::Result;
use firebrick_core::lora::{Adapter, LoraConfig};
use firebrick_core::model::Encoder;

use crate::load_encoder;

/// An encoder and its way from texts to vectors. Handles made from it share its weights, and every method takes `&self`: one model serves
/// any number of threads.
pub struct EmbeddingModel<B: KernelBackend> {
    model: Box<dyn Encoder<B>>,
    embedder: Embedder,
    fingerprint: String,
    name: String,
}

impl<B: KernelBackend> EmbeddingModel<B> {
    /// Loads a folder in Hugging Face layout, with the files of sentence-transformers where it has them, weights in the dtype they are
    /// stored in.
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
        let model = load_encoder::<B>(checkpoint, policy, device)?;
        let embedder = Embedder::read(checkpoint, model.facts())?;
        let folder = checkpoint.folder();
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { model, embedder, fingerprint: checkpoint.fingerprint(), name })
    }

    /// From parts that were made otherwise, such as a synthetic checkpoint and a tokenizer of another folder.
    pub fn from_parts(model: Box<dyn Encoder<B>>, embedder: Embedder, fingerprint: &str, name: &str) -> Self {
        Self { model, embedder, fingerprint: fingerprint.to_owned(), name: name.to_owned() }
    }

    /// The encoder.
    pub fn model(&self) -> &(dyn Encoder<B> + 'static) {
        &*self.model
    }

    /// Its way from texts to vectors.
    pub fn embedder(&self) -> &Embedder {
        &self.embedder
    }

    /// What identifies the base that an adapter belongs to.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The vectors of texts of one kind, in their order.
    ///
    /// # Errors
    /// If a text cannot be tokenized, which is named by its number, or a vector is not finite.
    ///
    /// # Panics
    /// On an autodiff backend, whose graph would grow: embed with [`valid`](Self::valid).
    pub fn encode<T: AsRef<str>>(&self, texts: &[T], kind: Kind) -> Result<Vec<Embedding>> {
        self.encode_with(texts, &EmbedOptions::of(kind))
    }

    /// The vectors of texts, in their order.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and if an option is out of bounds.
    ///
    /// # Panics
    /// As [`encode`](Self::encode).
    pub fn encode_with<T: AsRef<str>>(&self, texts: &[T], options: &EmbedOptions) -> Result<Vec<Embedding>> {
        self.embedder.embed(&*self.model, texts, options)
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

    /// An adapter read from a folder, refused if it was made for another base.
    ///
    /// # Errors
    /// If it cannot be read, or was made for another base.
    pub fn load_adapter(&self, folder: impl AsRef<Path>) -> Result<Adapter<B>> {
        let adapter = Adapter::load(folder.as_ref(), &self.model.device())?;
        adapter.check_base(&self.fingerprint, &self.name)?;
        Ok(adapter)
    }

    /// The same weights on the backend underneath autodiff, to embed with.
    pub fn valid(&self) -> EmbeddingModel<B::InnerBackend>
    where
        B: TrainBackend,
    {
        self.with_model(self.model.valid())
    }

    fn with_model<C: KernelBackend>(&self, model: Box<dyn Encoder<C>>) -> EmbeddingModel<C> {
        let (fingerprint, name) = (self.fingerprint.clone(), self.name.clone());
        EmbeddingModel { model, embedder: self.embedder.clone(), fingerprint, name }
    }
}
