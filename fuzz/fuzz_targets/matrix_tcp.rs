//! What a peer may send on an established TCP connection, at any moment.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_matrix::tcp::fuzz::connection(bytes));
