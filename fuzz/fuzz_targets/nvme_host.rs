//! What a host may do to an emulated controller.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::emulator::fuzz::host(bytes));
