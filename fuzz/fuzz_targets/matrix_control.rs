//! What another process says to the Kernel Agent, from bytes that anybody made up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_matrix::shm::fuzz::control(bytes));
