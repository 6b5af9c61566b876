//! The provider that a configuration names, whichever it is: shared memory between processes of one host, or TCP between any.
//!
//! One type, so that a director is compiled once; each call is one predictable branch, and nothing else is between a node and its provider.

use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};
use std::time::Duration;

use dyad_matrix::provider::{
    Capabilities, Completion, CqId, Descriptor, Discriminator, Event, NetAddress, PostError, ProtectionTag,
    RegionHandle, RemoteAccess, RequestId, ResourceError, Revocable, ViAttributes, ViId,
};
use dyad_matrix::shm::{ShmError, ShmLimits, ShmProvider};
use dyad_matrix::tcp::{KeyError, Security, TcpError, TcpLimits, TcpProvider};
use dyad_matrix::{Memory, Provider, Segment};
use dyad_reactor::Source;

use crate::config::{MatrixAddress, MatrixSecurity};

/// Either. Clones are the same provider.
#[derive(Clone)]
pub enum Fabric {
    /// Between processes of this host.
    Shm(ShmProvider),
    /// Between any hosts.
    Tcp(TcpProvider),
}

/// There is no provider.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// Shared memory.
    #[error(transparent)]
    Shm(#[from] ShmError),
    /// TCP.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The secret of the configuration.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Fabric {
    /// Starts a provider for this run of a director.
    ///
    /// # Errors
    /// [`FabricError`].
    pub fn new(address: &MatrixAddress, security: &MatrixSecurity, incarnation: u64) -> Result<Self, FabricError> {
        match address {
            MatrixAddress::Socket(path) => Ok(Self::Shm(ShmProvider::new(path, incarnation, ShmLimits::default())?)),
            MatrixAddress::Tcp(listen) => {
                let security = match security {
                    MatrixSecurity::Loopback => Security::Loopback,
                    MatrixSecurity::TrustedNetwork => Security::TrustedNetwork,
                    MatrixSecurity::Secret(secret) => {
                        Security::Key(dyad_matrix::tcp::Key::from_secret(secret.as_str().as_bytes())?)
                    }
                };
                Ok(Self::Tcp(TcpProvider::new(*listen, incarnation, &security, TcpLimits::default())?))
            }
        }
    }
}

macro_rules! either {
    ($fabric:expr, $provider:ident => $call:expr) => {
        match $fabric {
            Fabric::Shm($provider) => $call,
            Fabric::Tcp($provider) => $call,
        }
    };
}

impl Provider for Fabric {
    fn capabilities(&self) -> Capabilities {
        either!(self, provider => provider.capabilities())
    }

    fn register(
        &self,
        memory: &Memory,
        tag: ProtectionTag,
        access: RemoteAccess,
    ) -> Result<RegionHandle, ResourceError> {
        either!(self, provider => provider.register(memory, tag, access))
    }

    fn deregister(&self, region: RegionHandle) -> Result<(), ResourceError> {
        either!(self, provider => provider.deregister(region))
    }

    fn create_cq(&self, depth: u32) -> Result<CqId, ResourceError> {
        either!(self, provider => provider.create_cq(depth))
    }

    fn create_vi(&self, attributes: &ViAttributes) -> Result<ViId, ResourceError> {
        either!(self, provider => provider.create_vi(attributes))
    }

    fn destroy_vi(&self, vi: ViId) -> Result<(), ResourceError> {
        either!(self, provider => provider.destroy_vi(vi))
    }

    fn listen(&self, discriminator: Discriminator) -> Result<(), ResourceError> {
        either!(self, provider => provider.listen(discriminator))
    }

    fn connect(&self, vi: ViId, to: &NetAddress, private_data: &[u8], timeout: Duration) -> Result<(), ResourceError> {
        either!(self, provider => provider.connect(vi, to, private_data, timeout))
    }

    fn accept(&self, request: RequestId, vi: ViId, private_data: &[u8]) -> Result<(), ResourceError> {
        either!(self, provider => provider.accept(request, vi, private_data))
    }

    fn reject(&self, request: RequestId, private_data: &[u8]) -> Result<(), ResourceError> {
        either!(self, provider => provider.reject(request, private_data))
    }

    fn disconnect(&self, vi: ViId) -> Result<(), ResourceError> {
        either!(self, provider => provider.disconnect(vi))
    }

    fn post_send(&self, vi: ViId, descriptor: &Descriptor<'_>) -> Result<(), PostError> {
        either!(self, provider => provider.post_send(vi, descriptor))
    }

    fn post_receive(&self, vi: ViId, segments: &[Segment], cookie: u64) -> Result<(), PostError> {
        either!(self, provider => provider.post_receive(vi, segments, cookie))
    }

    fn poll_completion(&self, cq: CqId, cx: &mut Context<'_>) -> Poll<Completion> {
        either!(self, provider => provider.poll_completion(cq, cx))
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        either!(self, provider => provider.poll_event(cx))
    }

    fn revoke(&self, what: Revocable) -> Result<(), ResourceError> {
        either!(self, provider => provider.revoke(what))
    }

    fn is_reachable(&self, memory: &Memory) -> bool {
        either!(self, provider => provider.is_reachable(memory))
    }
}

impl Source for Fabric {
    fn poll(&mut self) -> usize {
        either!(self, provider => provider.poll())
    }

    fn arm(&mut self) {
        either!(self, provider => provider.arm());
    }

    fn disarm(&mut self) {
        either!(self, provider => provider.disarm());
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        either!(self, provider => provider.fd())
    }
}
