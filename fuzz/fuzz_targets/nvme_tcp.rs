//! What a host may send over NVMe/TCP.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_frontend::fuzz::pdus(bytes));
