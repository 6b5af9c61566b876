//! Lines that anybody may say to a shelf.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::shelf::fuzz::control(bytes));
