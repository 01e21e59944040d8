//! The model families of Firebrick, one folder each. Adding a model touches one folder and one row of [`FAMILIES`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![recursion_limit = "256"]

mod language_model;
pub mod qwen;

use firebrick_backend::KernelBackend;
use firebrick_core::checkpoint::{Checkpoint, DTypePolicy};
use firebrick_core::error::{Error, Result};
use firebrick_core::model::CausalLm;

pub use language_model::{GenerateOptions, LanguageModel};

/// A family of architectures that share one implementation.
pub struct Family {
    /// The folder's name.
    pub name: &'static str,
    /// The values of `model_type` in `config.json` that it reads.
    pub model_types: &'static [&'static str],
}

/// Every decoder family, a row each.
pub const FAMILIES: &[Family] = &[Family { name: "qwen", model_types: qwen::MODEL_TYPES }];

/// Loads the decoder of a checkpoint.
///
/// # Errors
/// If no family reads its `model_type`, its config asks for something unsupported, or its tensors do not fit.
pub fn load_causal_lm<B: KernelBackend>(
    checkpoint: &Checkpoint,
    policy: DTypePolicy,
    device: &B::Device,
) -> Result<Box<dyn CausalLm<B>>> {
    let model_type = checkpoint.config().get("model_type").and_then(|value| value.as_str()).unwrap_or_default();
    let family = FAMILIES.iter().find(|family| family.model_types.contains(&model_type));
    match family.map(|family| family.name) {
        Some("qwen") => Ok(Box::new(qwen::Qwen::load(checkpoint, policy, device)?)),
        _ => Err(Error::UnknownModelType {
            path: checkpoint.folder().join("config.json"),
            model_type: model_type.to_owned(),
            supported: FAMILIES.iter().flat_map(|family| family.model_types).map(|&name| name.to_owned()).collect(),
        }),
    }
}
