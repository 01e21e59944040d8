//! One file per backend: which of the hot ops it runs with a kernel of its own. Everything absent there is the reference.

pub(crate) mod autodiff;
#[cfg(feature = "flex")]
pub(crate) mod flex;
