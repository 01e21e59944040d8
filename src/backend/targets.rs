//! One file per backend: its type, the devices it finds, and which of the hot ops it runs with a kernel of its own. Everything absent
//! there is the reference.

pub(crate) mod autodiff;
#[cfg(feature = "candle")]
pub(crate) mod candle;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "flex")]
pub(crate) mod flex;
#[cfg(feature = "cube")]
mod fusion;
// Elsewhere only the tests read them.
#[cfg(any(test, feature = "candle"))]
#[cfg_attr(not(all(feature = "candle-metal", target_os = "macos")), allow(dead_code))]
pub(crate) mod shader;
#[cfg(feature = "wgpu")]
pub(crate) mod wgpu;
