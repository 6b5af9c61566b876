//! What a peer may write into the memory that it shares with us, at any moment.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_matrix::shm::fuzz::ring(bytes));
