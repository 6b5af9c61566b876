//! What `dyad bench nvme` measures, and the load of `dyad device bench` (DESIGN 8).
//!
//! In one thread: the driver against the emulated controller, without data and with, next to a bare loop that copies
//! the same blocks. Between two processes: the shelf over vfio-user. And a file through io_uring.

mod emulated;
mod file;
mod load;
pub mod raid;
mod remote;

use std::path::Path;
use std::process::{Child, Command};

use dyad_reactor::Executor;
use dyad_reactor::figures::{Figures, ROUNDS, Row};

pub use self::emulated::Emulated;
pub use self::load::{Load, Outcome, drive};

use crate::driver::AttachError;
use crate::shelf::ShelfError;
use crate::vfio_user::ConnectError;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The shelf could not be started.
    #[error("the shelf process: {0}")]
    Start(#[from] std::io::Error),
    /// The shelf could not serve.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// No device at the path.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The device could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A command failed.
    #[error("the device failed: {0}")]
    Device(#[from] crate::device::DeviceError),
    /// A file could not be made a device.
    #[error(transparent)]
    Open(#[from] crate::block::OpenError),
    /// A command was not taken.
    #[error("the device did not take a command: {0}")]
    Submit(#[from] crate::device::SubmitError),
}

/// Kills the other process when the figures are taken, or were not to be had.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes all figures. `shelf` is a command that will run [`serve`] with `directory`; `progress` gets a line now and then.
///
/// # Errors
/// [`BenchError`].
pub fn run(shelf: &mut Command, directory: &Path, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let _other = Other(shelf.spawn()?);
    let mut figures = Figures::default();
    let mut null = Emulated::null()?;
    let mut ram = Emulated::memory(emulated::RAM_BYTES)?;
    let mut remote = remote::Client::connect(directory)?;
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {}", ROUNDS));
        emulated::measure(&mut null, &mut ram, &mut figures)?;
        remote.measure(&mut figures)?;
    }
    progress("a file through io_uring");
    file::measure(directory, &mut figures)?;
    Ok(figures.rows())
}

/// The other process: a shelf with one device in memory, until it is killed.
///
/// # Errors
/// [`BenchError`].
pub fn serve(directory: &Path) -> Result<(), BenchError> {
    Ok(remote::serve(directory)?)
}

/// An executor for a load of at most 128 lanes.
fn executor() -> Executor {
    let limits = dyad_reactor::Limits { tasks: 136, timers: 16 };
    Executor::new(limits, std::rc::Rc::new(dyad_reactor::BootClock))
}
