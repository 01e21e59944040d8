//! The command line as a script sees it: statuses, streams, JSON, files. What is computed is tested against the library elsewhere;
//! here it is compared only where an option could get lost on the way.
#![cfg(unix)]

#[path = "cli/adapters.rs"]
mod adapters;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/bombs.rs"]
mod bombs;
#[path = "cli/command.rs"]
mod command;
#[path = "cli/conversation.rs"]
mod conversation;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/downloading.rs"]
mod downloading;
#[path = "cli/embedding.rs"]
mod embedding;
#[path = "../src/hub/tests/fake_hub/mod.rs"]
mod fake_hub;
#[path = "cli/generating.rs"]
mod generating;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/merging.rs"]
mod merging;
#[path = "cli/quantizing.rs"]
mod quantizing;
#[path = "cli/resuming.rs"]
mod resuming;
#[path = "cli/scoring.rs"]
mod scoring;
#[path = "cli/streams.rs"]
mod streams;
mod support;
#[path = "cli/training.rs"]
mod training;
#[path = "cli/training_options.rs"]
mod training_options;
