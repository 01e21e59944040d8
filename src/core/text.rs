//! Text to tokens and back: the tokenizer of a model folder, its chat template, and decoding token by token.
//!
//! What a token means to a model (embedding rows, stopping) does not live here.

mod config;
mod detokenizer;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use template::{ChatTemplate, Message, TemplateOptions};
pub use tokenizer::Tokenizer;
