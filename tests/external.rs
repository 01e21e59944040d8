//! What needs Python, its packages or a large model: our answers beside those of transformers, PEFT, mlx-lm and huggingface_hub. `.ci/run` makes the
//! environment and exports the variables; without them these tests fail, they never pass by skipping.

mod support;

#[path = "external/adapters.rs"]
mod adapters;
#[path = "external/encoder.rs"]
mod encoder;
#[path = "../src/hub/tests/fake_hub/mod.rs"]
mod fake_hub;
#[path = "external/hub.rs"]
mod hub;
#[path = "external/memory.rs"]
mod memory;
#[path = "../examples/pairs/mod.rs"]
mod pairs;
#[path = "external/python.rs"]
mod python;
#[path = "external/qwen_tokenizer.rs"]
mod qwen_tokenizer;
#[path = "external/smollm2.rs"]
mod smollm2;
