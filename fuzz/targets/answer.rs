//! `cargo fuzz run answer`: see `collective_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| collective_fuzz::answer(bytes));
