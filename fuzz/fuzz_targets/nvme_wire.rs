//! Everything that hosts and devices send, from bytes that anybody made up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_nvme::fuzz::wire(bytes));
