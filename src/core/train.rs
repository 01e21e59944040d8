//! Training: from rows of text to an adapter, of a decoder or of an encoder. Each step of the way has a file of its own under `train/`.

pub mod adamw;
mod backward;
mod batch;
pub mod chart;
pub mod checkpoint;
mod config;
pub mod contrastive;
pub mod data;
pub mod estimate;
pub mod evaluate;
mod event;
pub mod run;
pub mod schedule;
pub mod task;
