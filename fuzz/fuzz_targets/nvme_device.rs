//! What a device may do to its driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::driver::fuzz::device(bytes));
