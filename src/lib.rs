//! Firebrick: Qwen decoders that generate and carry LoRA, on Burn, written once over a backend type parameter.
//!
//! A model learns from rows of text, and answers with what it learnt. This is the whole way, and it compiles:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use firebrick::backends::{Autodiff, Flex};
//! use firebrick::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let model = LanguageModel::<Autodiff<Flex>>::load("models/Qwen2.5-0.5B-Instruct", &device)?;
//! let data = Splits::load("data".as_ref(), model.tokenizer(), &DataOptions::default())?;
//!
//! let base = model.valid(); // the same weights, on the backend underneath autodiff
//! let adapter = Adapter::create(base.model(), &LoraConfig::default(), 0)?;
//! let mut trainer = Trainer::new(model.model(), adapter, TrainConfig::default())?;
//! trainer.run(&data.train, data.valid.as_ref(), &mut |event| {
//!     println!("{event:?}");
//!     ControlFlow::Continue(()) // `Break` ends the run after this step
//! })?;
//! trainer.adapter().save("adapter".as_ref(), Format::Peft)?;
//!
//! let tuned = base.with_adapter(trainer.adapter())?;
//! for piece in tuned.chat(&[Message::user("Hello!")], &GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The floors, each a crate that uses only those under it: [`models`] (one folder per family) over [`core`] (layers, cache, sampling,
//! checkpoints, LoRA, training) over [`backend`] (the hot ops, their gradients, and the backends they run on).
//!
//! Generation and validation run on a plain backend such as `Flex`, training on `Autodiff` over it; [`LanguageModel::valid`] goes from the
//! second to the first without copying a weight. To let the user choose at run time, write the work as a [`Job`] and [`dispatch`] it.
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
