//! A decoder with its tokenizer and defaults: what most programs want.
