//! libFuzzer's entry to the target `codec`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::codec(data));
