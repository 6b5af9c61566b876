//! dyad
fn main() {}
