//! What `dyad bench matrix` measures: the `shm` provider between two processes, next to plain TCP loopback, a Unix socket and
//! memcpy in the same run, each several times in turn (DESIGN 8); streams, and the `tcp` provider.
//!
//! The caller runs [`run`] and brings a way to start a second process, which runs [`serve`]. The loops here poll the provider
//! as a reactor does, but without its tasks: the figures are the transport's.

mod crowd;
mod figures;
mod sockets;
mod station;
mod streams;
mod vi;

use std::path::Path;
use std::process::{Child, Command};

use dyad_reactor::figures::{ROUNDS, Row};
use nix::errno::Errno;

use crate::provider::{PostError, ResourceError};
use crate::shm::ShmError;
use crate::tcp::TcpError;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A provider could not be started.
    #[error(transparent)]
    Provider(#[from] ShmError),
    /// As above, over TCP.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The provider had no room.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// A descriptor was not taken.
    #[error(transparent)]
    Post(#[from] PostError),
    /// A socket or the other process failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The operating system refused.
    #[error(transparent)]
    Os(#[from] Errno),
    /// The other process does not answer or said something unexpected.
    #[error("the other process {0}")]
    Peer(&'static str),
}

/// VIs on which nothing happens.
const FEW: u16 = 2;
const MANY: u16 = 200;

/// Kills the other process when the figures are taken, or were not to be had.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes all figures. `server` is a command that will run [`serve`] with `directory`; `progress` gets a line now and then.
///
/// # Errors
/// [`BenchError`].
pub fn run(server: &mut Command, directory: &Path, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let mut figures = figures::Figures::default();
    // Before the other process is there: its thread that serves never rests.
    for round in 1..=ROUNDS {
        progress(&format!("streams, round {round} of {ROUNDS}"));
        streams::round(directory, &mut figures)?;
    }
    let _other = Other(server.spawn()?);
    let mut shm = vi::Client::connect(directory)?;
    let mut sockets = sockets::Client::connect(directory)?;
    let crowds = [crowd::Crowd::gather(directory, FEW)?, crowd::Crowd::gather(directory, MANY)?];
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {}", ROUNDS));
        for bytes in [64, 4096] {
            shm.round_trips(bytes, &mut figures)?;
            sockets.round_trips(bytes, &mut figures)?;
        }
        shm.rate(64, &mut figures)?;
        sockets.rate(64, &mut figures)?;
        for bytes in [4096, 65_536, 1 << 20] {
            shm.rdma(bytes, &mut figures)?;
        }
        shm.crossover(&mut figures)?;
        for crowd in &crowds {
            crowd.turns(&mut figures);
        }
    }
    Ok(figures.rows())
}

/// The other process: serves until it is killed.
///
/// # Errors
/// [`BenchError`].
pub fn serve(directory: &Path) -> Result<(), BenchError> {
    sockets::serve(directory)?;
    vi::serve(directory)
}
