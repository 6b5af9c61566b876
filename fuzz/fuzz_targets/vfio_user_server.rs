//! What a client may send to a shelf.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dyad_backend::vfio_user::fuzz::server(bytes));
