//! Text ⇄ tokens: the tokenizer of a checkpoint, its chat template, and text that streams without half characters.

mod detokenizer;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use template::{ChatTemplate, Message, TemplateOptions};
pub use tokenizer::Tokenizer;
