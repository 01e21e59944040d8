//! The cross-backend benchmark matrix: what is timed, how it is kept from lying, and what is made of the figures.
//!
//! [`workload`] says what there is to time, [`subject`] does it on a backend and [`peers`] elsewhere; [`measure`] times them in turns and
//! refuses what cannot be true; [`run`] makes [`record`]s of it. Nobody writes a figure by hand: `benches/README.md` and its charts are
//! rendered from `benches/records` by [`report`], and every figure elsewhere is compared with the record it names by [`drift`].

pub mod drift;
pub mod expected;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod probe;
pub mod record;
pub mod report;
pub mod run;
pub mod subject;
pub mod workload;
