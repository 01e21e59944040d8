//! The framework of Firebrick: layers, cache, sampling, checkpoints, LoRA and training. No model and no backend lives here.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![recursion_limit = "256"]

pub mod cache;
pub mod checkpoint;
pub mod decode;
pub mod disk;
pub mod embed;
pub mod error;
pub mod file;
pub mod generate;
pub mod generation;
pub mod lora;
pub mod model;
pub mod nn;
mod random;
pub mod sample;
pub mod sequence;
pub mod text;
pub mod train;
