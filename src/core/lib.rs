//! The framework of Firebrick: layers, cache, sampling, checkpoints, LoRA and training. No model and no backend lives here.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod error;
