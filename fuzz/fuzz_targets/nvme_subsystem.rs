//! What a host may ask of the NVMe-oF subsystem core.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_frontend::fuzz::commands(bytes));
