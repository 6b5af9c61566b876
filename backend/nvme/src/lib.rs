//! NVMe as bytes: the types that driver, emulated controller, target and initiator share.

pub mod types;
