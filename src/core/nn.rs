//! The layers a model is written in. None knows which model it is in, and only `linear` knows of adapters.

mod embedding;
mod linear;
mod norm;
mod rotary;

pub use embedding::Embedding;
pub use linear::{Dropout, Linear, Lora};
pub use norm::{LayerNorm, RmsNorm, Stream};
pub use rotary::{RopeScaling, Rotary, RotaryConfig, turned, turned_into};
