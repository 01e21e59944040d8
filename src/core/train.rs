//! Training: from rows of text to an adapter. Each step of the way has a file of its own under `train/`.

pub mod chart;
pub mod data;
pub mod schedule;
