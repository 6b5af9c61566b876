//! Packets and heads of frames over TCP, from bytes that anybody made up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_matrix::tcp::fuzz::wire(bytes));
