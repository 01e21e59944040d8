//! libFuzzer on `bodies::config`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code)]
mod bodies;
#[path = "../seeds.rs"]
#[allow(dead_code)]
mod seeds;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bodies::config(data);
});
