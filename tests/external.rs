//! What needs Python, its packages or a large model: our answers beside those of transformers, PEFT and mlx-lm. `.ci/run` makes the
//! environment and exports the variables; without them these tests fail, they never pass by skipping.

mod support;

#[path = "external/adapters.rs"]
mod adapters;
#[path = "external/memory.rs"]
mod memory;
#[path = "external/python.rs"]
mod python;
#[path = "external/qwen_tokenizer.rs"]
mod qwen_tokenizer;
#[path = "external/smollm2.rs"]
mod smollm2;
