//! The model families of Firebrick, one folder each. Adding a model touches one folder and one row of [`FAMILIES`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![recursion_limit = "256"]

pub mod e5;
mod embedding_model;
mod language_model;
pub mod qwen;

use firebrick_backend::KernelBackend;
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::error::{Error, Result};
use firebrick_core::model::{CausalLm, Encoder};

pub use embedding_model::EmbeddingModel;
pub use language_model::{GenerateOptions, LanguageModel};

/// What the models of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Decoders: tokens in, the next token out.
    CausalLm,
    /// Encoders: tokens in, hidden states out.
    Encoder,
}

/// A family of architectures that share one implementation.
pub struct Family {
    /// The folder's name.
    pub name: &'static str,
    /// What its models are.
    pub role: Role,
    /// The values of `model_type` in `config.json` that it reads.
    pub model_types: &'static [&'static str],
}

/// Every family, a row each.
pub const FAMILIES: &[Family] = &[
    Family { name: "qwen", role: Role::CausalLm, model_types: qwen::MODEL_TYPES },
    Family { name: "e5", role: Role::Encoder, model_types: e5::MODEL_TYPES },
];

/// The family of a checkpoint, if one reads its `model_type`.
pub fn family(checkpoint: &Checkpoint) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_types.contains(&model_type(checkpoint)))
}

fn model_type(checkpoint: &Checkpoint) -> &str {
    checkpoint.config().get("model_type").and_then(|value| value.as_str()).unwrap_or_default()
}

/// The families that are not, or the one that is but in another role.
fn not_a(role: Role, checkpoint: &Checkpoint) -> Error {
    let path = checkpoint.folder().join("config.json");
    let types = |role| FAMILIES.iter().filter(move |family| family.role == role).flat_map(|family| family.model_types);
    let supported = types(role).map(|&name| name.to_owned()).collect();
    let model_type = model_type(checkpoint).to_owned();
    let other = if role == Role::Encoder { Role::CausalLm } else { Role::Encoder };
    if types(other).any(|name| *name == model_type) {
        let (is, wanted) = match role {
            Role::Encoder => ("a decoder, which generates text", "an encoder"),
            Role::CausalLm => ("an encoder, which embeds texts", "a decoder"),
        };
        return Error::WrongRole { path, model_type, is, wanted };
    }
    Error::UnknownModelType { path, model_type, supported }
}

/// Loads the decoder of a checkpoint.
///
/// # Errors
/// If no family of decoders reads its `model_type`, its config asks for something unsupported, or its tensors do not fit.
pub fn load_causal_lm<B: KernelBackend>(
    checkpoint: &Checkpoint,
    policy: DTypePolicy,
    device: &B::Device,
) -> Result<Box<dyn CausalLm<B>>> {
    match family(checkpoint).map(|family| family.name) {
        Some("qwen") => Ok(Box::new(qwen::Qwen::load(checkpoint, policy, device)?)),
        _ => Err(not_a(Role::CausalLm, checkpoint)),
    }
}

/// Loads the encoder of a checkpoint.
///
/// # Errors
/// If no family of encoders reads its `model_type`, its config asks for something unsupported, or its tensors do not fit.
pub fn load_encoder<B: KernelBackend>(
    checkpoint: &Checkpoint,
    policy: DTypePolicy,
    device: &B::Device,
) -> Result<Box<dyn Encoder<B>>> {
    match family(checkpoint).map(|family| family.name) {
        Some("e5") => Ok(Box::new(e5::E5::load(checkpoint, policy, device)?)),
        _ => Err(not_a(Role::Encoder, checkpoint)),
    }
}
