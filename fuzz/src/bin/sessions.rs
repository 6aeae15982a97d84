#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tomada_fuzz::sessions(data));
