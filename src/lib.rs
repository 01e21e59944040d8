//! Firebrick: text generation, text embeddings and LoRA fine-tuning on Burn. Qwen and Llama decoders, E5 and other BERT encoders, written once over
//! a backend type parameter.
//!
//! Fine-tune a decoder, save the adapter, and generate with it:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use firebrick::backends::{Autodiff, Flex};
//! use firebrick::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default(); // the backend's default device
//! let model = LanguageModel::<Autodiff<Flex>>::load("Qwen2.5-0.5B-Instruct", &device)?;
//! let data = Splits::load("data".as_ref(), model.tokenizer(), &DataOptions::default())?;
//!
//! let base = model.valid(); // the same weights, on the backend underneath autodiff
//! let adapter = base.new_adapter(&LoraConfig::default(), 0)?;
//! let mut trainer = Trainer::new(model.model(), adapter, TrainConfig::default())?;
//! trainer.run(&data.train, data.valid.as_ref(), &mut |event| {
//!     println!("{event:?}");
//!     ControlFlow::Continue(()) // `Break` ends the run after this step
//! })?;
//! trainer.adapter().save("adapter".as_ref(), Format::Peft)?;
//!
//! let tuned = base.with_adapter(&base.load_adapter("adapter")?)?;
//! for piece in tuned.chat(&[Message::user("Hello!")], &GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Embed texts and compare them:
//!
//! ```no_run
//! use firebrick::backends::Flex;
//! use firebrick::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = EmbeddingModel::<Flex>::load("e5-small-v2", &Default::default())?;
//! let query = model.encode(&["use of a moved value"], Kind::Query)?.remove(0);
//! let passage = model.encode(&["A variable was used after it was moved."], Kind::Passage)?.remove(0);
//! println!("{:.3}", query.cosine(&passage));
//! # Ok(())
//! # }
//! ```
//!
//! Generation, embedding and validation run on a plain backend such as `Flex`, training on `Autodiff` over it; [`LanguageModel::valid`] goes from
//! the second to the first without copying a weight. To let the user choose the backend at run time, write the work as a [`Job`] and
//! [`dispatch`] it.
//!
//! The crates, each of which uses only those under it: [`models`] (a folder for each family), [`core`] (layers, cache, sampling, checkpoints,
//! LoRA, training), [`backend`] (the hot ops, their gradients, and the backends they run on).
#![warn(missing_docs)]
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "bench")]
pub mod bench;
pub mod gate;

pub use firebrick_backend as backend;
pub use firebrick_backend::backends;
pub use firebrick_core as core;
#[cfg(feature = "hub")]
pub use firebrick_hub as hub;
pub use firebrick_models as models;

pub use firebrick_backend::select::{BackendName, Job, SelectError, built, dispatch};
pub use firebrick_backend::{KernelBackend, TrainBackend};
pub use firebrick_core::error::{Error, Result};
pub use firebrick_models::{EmbeddingModel, GenerateOptions, LanguageModel};

/// What a program that generates or fine-tunes needs, in one import.
pub mod prelude {
    pub use burn::tensor::DType;
    pub use firebrick_backend::select::{BackendName, Job, built, dispatch};
    pub use firebrick_backend::{KernelBackend, TrainBackend};
    pub use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
    pub use firebrick_core::embed::{EmbedOptions, Embedder, Embedding, Kind};
    pub use firebrick_core::generate::{Generation, Piece, Session};
    pub use firebrick_core::lora::{Adapter, Adapters, Format, LoraConfig, Targets};
    pub use firebrick_core::model::{CausalLm, Encoder};
    pub use firebrick_core::sample::Sampling;
    pub use firebrick_core::sequence::Sequences;
    pub use firebrick_core::text::{Message, Tokenizer};
    pub use firebrick_core::train::contrastive::Contrastive;
    pub use firebrick_core::train::data::{DataOptions, Dataset, Splits};
    pub use firebrick_core::train::run::{Duration, Event, TrainConfig, Trainer};
    pub use firebrick_core::train::task::Retrieval;
    pub use firebrick_models::{EmbeddingModel, GenerateOptions, LanguageModel};
}
