//! Damaged files, hostile configs, adapters of other bases, impossible requests: each ends in a typed error that names the thing, without
//! a panic and without anything partial left behind. One file for each kind of input.

mod support;

#[path = "bad_input/adapters.rs"]
mod adapters;
#[path = "bad_input/configs.rs"]
mod configs;
#[path = "bad_input/damage.rs"]
mod damage;
#[path = "bad_input/files.rs"]
mod files;
#[path = "bad_input/inference.rs"]
mod inference;
#[path = "bad_input/round_trips.rs"]
mod round_trips;
