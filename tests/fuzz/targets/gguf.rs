//! libFuzzer on `bodies::gguf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    firebrick_fuzz::bodies::gguf(data);
});
