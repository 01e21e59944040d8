//! What was measured, kept as records, and the documents that are made of them. Nobody writes a figure by hand: `benches/README.md` and
//! its charts are rendered from `benches/records`, and every figure elsewhere is compared with the record it names.

pub mod record;
pub mod report;
