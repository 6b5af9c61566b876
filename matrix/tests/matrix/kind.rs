//! Providers between processes, as the tests that run over several of them start and find them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use dyad_matrix::provider::{BrokenReason, Provider};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_matrix::tcp::{Security, TcpLimits, TcpProvider};
use dyad_reactor::Source;

/// A provider between processes.
pub(crate) trait Kind: Provider + Source {
    /// For the environment.
    const NAME: &str;
    /// What a death looks like.
    const DEATH: BrokenReason;
    /// Whether a stopped peer can still write what was revoked, when it goes on.
    const WRITES_LATE: bool;

    fn start(directory: &Path, name: &str) -> Self;

    /// Where `name` is reached; nowhere, as long as it was not started.
    fn address(directory: &Path, name: &str) -> String;
}

fn incarnation() -> u64 {
    u64::from(std::process::id())
}

impl Kind for ShmProvider {
    const NAME: &str = "shm";
    const DEATH: BrokenReason = BrokenReason::PeerGone;
    const WRITES_LATE: bool = true;

    fn start(directory: &Path, name: &str) -> Self {
        Self::new(&directory.join(name), incarnation(), ShmLimits::default()).unwrap()
    }

    fn address(directory: &Path, name: &str) -> String {
        directory.join(name).to_str().unwrap().to_owned()
    }
}

impl Kind for TcpProvider {
    const NAME: &str = "tcp";
    const DEATH: BrokenReason = BrokenReason::Protocol;
    const WRITES_LATE: bool = false;

    fn start(directory: &Path, name: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let provider = Self::new(any, incarnation(), &Security::Loopback, TcpLimits::default()).unwrap();
        let (new, file) = (directory.join(format!("{name}.new")), directory.join(name));
        std::fs::write(&new, provider.local_address().to_string()).unwrap();
        std::fs::rename(new, file).unwrap();
        provider
    }

    fn address(directory: &Path, name: &str) -> String {
        std::fs::read_to_string(directory.join(name)).unwrap_or_else(|_| "127.0.0.1:1".to_owned())
    }
}
