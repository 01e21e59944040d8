//! libFuzzer on `bodies::checkpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    firebrick_fuzz::bodies::checkpoint(data);
});
