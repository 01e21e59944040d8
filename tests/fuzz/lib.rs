//! What the fuzzers share: a body for each kind of input, and the seeds that they start from.

pub mod bodies;
pub mod seeds;
