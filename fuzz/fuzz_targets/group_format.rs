//! What is on the devices of a RAID group, from bytes that anybody made up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::format::fuzz::group(bytes));
