//! What a shelf may answer to its client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::vfio_user::fuzz::client(bytes));
