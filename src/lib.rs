#![doc = "placeholder"]
pub use firebrick_backend as backend;
pub use firebrick_backend::select::{BackendName, Job, SelectError, built, dispatch};
pub use firebrick_backend::{KernelBackend, TrainBackend};
pub use firebrick_core as core;
pub use firebrick_models as models;
