//! One TCP connection, from the first packet to the last byte.
//!
//! | stage | what happens | next |
//! |---|---|---|
//! | Connecting (client) | the kernel has connected | Calling; the request is said |
//! | | it could not, too late | over; refused |
//! | Calling (client) | accept | Open; the confirm is said |
//! | | refuse, anything else, hang-up, too late | over; refused |
//! | Greeted (server) | a request for a service that is there | Asked |
//! | | a request that does not fit | Farewell; refused |
//! | | anything else, hang-up, too late | over |
//! | Asked (server) | our owner accepts | Accepted |
//! | | our owner rejects | Farewell |
//! | | anything of the client, hang-up, too late | over; the request is gone |
//! | Accepted (server) | confirm | Open |
//! | | anything else, hang-up, too late | over; broken |
//! | Open | frames | Open |
//! | | the connection is broken here | Farewell if a last frame could be said, else over |
//! | | it is broken there | over |
//! | Farewell | bytes of the peer, which mean nothing | Farewell |
//! | | hang-up, too late | over |
//!
//! In Farewell the socket is kept until the peer has hung up too: what we said last would be lost if the kernel had to answer
//! its bytes with a reset.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use dyad_reactor::Time;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::frame::{NotUnderstood, PACKET_BYTES, Packet, PacketBytes};
use super::wire::Wire;
use crate::provider::ViId;
use crate::socket::{Gather, Moved, Scatter, Socket};

/// Where a connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting { vi: ViId, request: Box<PacketBytes> },
    Calling { vi: ViId },
    Greeted,
    Asked,
    Accepted { vi: ViId },
    Open { vi: ViId },
    Farewell,
}

pub(super) struct Connection {
    pub(super) wire: Wire,
    pub(super) stage: Stage,
    pub(super) deadline: Option<Time>,
    /// There may be something to read, and room to write: until the kernel says that there is not.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The kernel has seen an end of the connection.
    pub(super) ending: bool,
    /// It has a turn coming.
    pub(super) queued: bool,
    packet: PacketBytes,
    have: usize,
}

/// What was heard before frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Packet(Packet),
    /// It is one, but says nothing.
    NotUnderstood(NotUnderstood),
    HungUp,
}

impl Connection {
    /// Takes over a socket.
    pub(super) fn new(
        stream: TcpStream,
        session: Option<rustls::Connection>,
        stage: Stage,
        silence: Duration,
    ) -> std::io::Result<Self> {
        let socket = Socket::new(stream)?;
        socket.bound_silence(silence)?;
        let wire = Wire::new(socket, session);
        let (packet, have) = ([0; PACKET_BYTES], 0);
        let [readable, writable, ending, queued] = [false; 4];
        Ok(Self { wire, stage, deadline: None, readable, writable, ending, queued, packet, have })
    }

    /// Says a packet. There is room for a few in every fresh socket; false if the connection is gone.
    pub(super) fn say(&mut self, packet: &PacketBytes) -> bool {
        self.say_bytes(packet)
    }

    /// Says all of these bytes, or the connection is of no use.
    pub(super) fn say_bytes(&mut self, bytes: &[u8]) -> bool {
        let mut gather = Gather::new();
        gather.bytes(bytes);
        self.wire.send(&gather) == Moved::Bytes(bytes.len())
    }

    /// Reads one packet and not a byte more.
    pub(super) fn hear(&mut self) -> Heard {
        while self.readable {
            let mut scatter = Scatter::new();
            scatter.bytes(&mut self.packet[self.have..]);
            match self.wire.receive(&mut scatter) {
                Moved::Bytes(bytes) => self.have += bytes,
                Moved::Blocked => self.readable = false,
                Moved::Gone => return Heard::HungUp,
            }
            if self.have == PACKET_BYTES {
                self.have = 0;
                return match Packet::parse(&self.packet) {
                    Ok(packet) => Heard::Packet(packet),
                    Err(error) => Heard::NotUnderstood(error),
                };
            }
        }
        Heard::Nothing
    }

    /// Reads, a bounded part at a time, what means nothing any more; false when the peer has hung up.
    pub(super) fn swallow(&mut self) -> bool {
        let mut bytes = [0; 4096];
        for _ in 0..16 {
            let mut scatter = Scatter::new();
            scatter.bytes(&mut bytes);
            match self.wire.receive(&mut scatter) {
                Moved::Bytes(_) => {}
                Moved::Blocked => {
                    self.readable = false;
                    break;
                }
                Moved::Gone => return false,
            }
        }
        true
    }
}

/// Begins to connect; whether it worked is known when the socket is writable.
pub(super) fn call(to: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error),
    }
}
