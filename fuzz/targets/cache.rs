//! `cargo fuzz run cache`: see `collective_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| collective_fuzz::cache(bytes));
