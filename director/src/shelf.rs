//! The emulated shelf of an array on one host: two devices in memory, each with a port for either director.

use std::time::Duration;

use dyad_backend::emulator::{BlockFormat, Latency};
use dyad_backend::shelf::{ShelfConfig, ShelfDevice, ShelfError, ShelfMedia, run_shelf};
use dyad_reactor::reactor::max_spin_for;

use crate::layout::{ArrayDir, DEVICE_BLOCKS, DEVICES};

/// Blocks that each device's volatile write cache holds: it must be flushed to, like a real one.
const CACHE_BLOCKS: usize = 1024;

/// Serves the shelf until the process is ended; `ready` is called when directors can connect.
///
/// # Errors
/// [`ShelfError`].
pub fn run(array: &ArrayDir, reactors: usize, ready: impl FnOnce()) -> Result<(), ShelfError> {
    let device = |(number, name): (u8, &&str)| ShelfDevice {
        name: (*name).to_owned(),
        uuid: [number; 16],
        blocks: DEVICE_BLOCKS,
        media: ShelfMedia::Memory,
        cache_blocks: Some(CACHE_BLOCKS),
        format: BlockFormat::default(),
        latency: Latency::default(),
    };
    let config = ShelfConfig {
        directory: array.shelf(),
        devices: (1..).zip(DEVICES.iter()).map(device).collect(),
        max_spin: max_spin_for(reactors).min(Duration::from_micros(50)),
        core: None,
        seed: 1,
    };
    run_shelf(&config, |_stopper| ready())
}
