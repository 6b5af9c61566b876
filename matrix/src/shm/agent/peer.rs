//! One connection as the Kernel Agent sees it.
//!
//! | stage | what happens | next |
//! |---|---|---|
//! | Greeted (server) | request | Asked |
//! | | anything else, hang-up, too late | over |
//! | Asked (server) | accept | Accepted |
//! | | refuse | over |
//! | | anything of the client, hang-up, too late | over; the request is gone |
//! | Accepted (server) | confirm | Open |
//! | | bye, garbage, death, too late, too long between hang-up and death | Ended |
//! | Calling (client) | accept | Open |
//! | | refuse, garbage, hang-up, too late | over; refused |
//! | Open | export, unexport, released | Open |
//! | | bye, garbage, death, too long between hang-up and death, reads nothing | Ended |
//! | | close | Farewell |
//! | Ended | close | over if the peer is quiet, else Farewell |
//! | Farewell | bye, death | over; the peer is quiet |
//!
//! A peer is *quiet* when it can touch nothing of ours any more: it said so (bye), or its process is dead (pidfd). A closed
//! socket proves neither.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Time};
use nix::errno::Errno;

use super::super::control::{Control, Packet, Request};
use super::super::layout::{Geometry, Side, StatusShape};
use super::super::socket::{self, Received};
use super::{ANNOUNCED, ConnectionName, DYING, Notice, Notices, Wire};
use crate::memory::Memory;
use crate::provider::{BrokenReason, PrivateData, RefusedReason, RegionHandle, RemoteAccess, ViId};

/// Packets taken from one peer before others have their turn.
const TURN: usize = 16;
/// Packets that may wait for a peer that does not read.
const OUTBOX: usize = 4096;

pub(super) enum Stage {
    Greeted,
    Asked {
        wire: Box<Wire>,
    },
    Accepted {
        vi: ViId,
        wire: Box<Wire>,
    },
    Calling {
        vi: ViId,
        channel: Memory,
        geometry: Geometry,
        doorbell: OwnedFd,
    },
    Open {
        vi: ViId,
    },
    /// The peer's end is closed; the reactor knows and will close ours.
    Ended {
        quiet: bool,
    },
    /// Ours is closed.
    Farewell,
}

pub(super) struct Peer {
    pub(super) socket: OwnedFd,
    pub(super) process: OwnedFd,
    stage: Stage,
    /// When waiting is over, in the stages that wait.
    pub(super) deadline: Option<Time>,
    pub(super) outbox: VecDeque<(Packet, Vec<OwnedFd>)>,
    /// Nothing comes from the socket any more; only the process is watched.
    pub(super) deaf: bool,
    /// Regions of the peer that are mapped here, and what it may have at most.
    mapped: u16,
    mapped_max: u16,
}

/// What a peer needs of its agent.
pub(super) struct Around<'a> {
    pub(super) name: ConnectionName,
    pub(super) notices: &'a Notices,
    pub(super) status: &'a OwnedFd,
    pub(super) shape: StatusShape,
}

/// Whether a peer is kept.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Over,
}

impl Peer {
    pub(super) fn new(socket: OwnedFd, stage: Stage) -> Result<Self, Errno> {
        let process = socket::peer_process(&socket)?;
        let (outbox, deaf) = (VecDeque::new(), false);
        Ok(Self { socket, process, stage, deadline: None, outbox, deaf, mapped: 0, mapped_max: 0 })
    }

    /// Whether this VI waits here for a connection.
    pub(super) fn waits_with(&self, wanted: ViId) -> bool {
        matches!(&self.stage, Stage::Calling { vi, .. } | Stage::Accepted { vi, .. } if *vi == wanted)
    }

    /// Queues a packet.
    pub(super) fn say(&mut self, control: Control, fds: Vec<OwnedFd>) {
        debug_assert_eq!(control.fds(), fds.len());
        self.outbox.push_back((control.encode(), fds));
    }

    /// Sends what is queued as far as the socket takes it. A peer that reads nothing while too much waits for it is hung up on.
    pub(super) fn flush(&mut self, agent: &Around<'_>) -> Fate {
        self.send_queued();
        if self.outbox.len() <= OUTBOX {
            return Fate::Stays;
        }
        self.outbox.clear();
        self.ended(BrokenReason::Protocol, false, agent)
    }

    fn send_queued(&mut self) {
        while let Some((packet, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send_packet(&self.socket, packet, &borrowed) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ETOOMANYREFS) => break,
                // Its end is closed: the socket, or the process, will say so.
                Err(_) => self.outbox.clear(),
            }
        }
    }

    // What the reactor asks for.

    pub(super) fn accept(&mut self, vi: ViId, private_data: PrivateData, agent: &Around<'_>) -> Fate {
        let Stage::Asked { wire } = std::mem::replace(&mut self.stage, Stage::Greeted) else {
            return self.fail_accept(vi, agent);
        };
        let Ok(status) = agent.status.try_clone() else { return self.fail_accept(vi, agent) };
        self.stage = Stage::Accepted { vi, wire };
        self.say(Control::Accept { vi, shape: agent.shape, private_data }, vec![status]);
        Fate::Stays
    }

    fn fail_accept(&mut self, vi: ViId, agent: &Around<'_>) -> Fate {
        agent.notices.tell(Notice::Ended { vi, why: BrokenReason::Protocol });
        Fate::Over
    }

    pub(super) fn refuse(&mut self, why: RefusedReason, private_data: PrivateData) -> Fate {
        self.say(Control::Refuse { why, private_data }, Vec::new());
        self.send_queued();
        Fate::Over
    }

    pub(super) fn export(&mut self, region: RegionHandle, memory: &Memory, access: RemoteAccess) -> Fate {
        if matches!(self.stage, Stage::Open { .. }) {
            let fd = memory.fd().expect("only memory with a file is exported");
            let fd =
                if access.write { fd.try_clone_to_owned().map_err(|_| Errno::EMFILE) } else { socket::read_only(fd) };
            // Out of descriptors: the peer waits for it in vain and breaks the connection at its bound.
            if let Ok(fd) = fd {
                self.say(Control::Export { region, len: memory.len(), access }, vec![fd]);
            }
        }
        Fate::Stays
    }

    pub(super) fn unexport(&mut self, region: RegionHandle) -> Fate {
        self.say(Control::Unexport { region }, Vec::new());
        Fate::Stays
    }

    /// An announced region must arrive in time.
    pub(super) fn expect_export(&mut self) -> Fate {
        if matches!(self.stage, Stage::Open { .. }) && self.deadline.is_none() {
            self.deadline = Some(BootClock.now() + ANNOUNCED);
        }
        Fate::Stays
    }

    pub(super) fn release(&mut self, region: RegionHandle) -> Fate {
        self.mapped = self.mapped.saturating_sub(1);
        self.say(Control::Released { region }, Vec::new());
        Fate::Stays
    }

    pub(super) fn close(&mut self, why: BrokenReason, agent: &Around<'_>) -> Fate {
        self.say(Control::Bye { why }, Vec::new());
        match self.stage {
            Stage::Open { .. } | Stage::Ended { quiet: false } => {
                self.stage = Stage::Farewell;
                self.deadline = None;
                if socket::is_dead(&self.process) { self.died(agent) } else { Fate::Stays }
            }
            _ => {
                self.send_queued();
                Fate::Over
            }
        }
    }

    // What the peer does.

    /// Takes packets.
    pub(super) fn hear(&mut self, agent: &Around<'_>) -> Fate {
        let mut fate = Fate::Stays;
        for _ in 0..TURN {
            match socket::receive_packet(&self.socket) {
                Ok(received) if received.bytes.is_empty() => return self.hung_up(agent),
                Ok(received) => fate = self.understand(received, agent),
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(_) => return self.hung_up(agent),
            }
            if fate == Fate::Over || self.deaf {
                break;
            }
        }
        fate
    }

    fn understand(&mut self, received: Received, agent: &Around<'_>) -> Fate {
        let control = Control::parse(&received.bytes).ok().filter(|control| control.fds() == received.fds.len());
        let Some(control) = control else { return self.garbage(agent) };
        let mut fds = received.fds.into_iter();
        match (std::mem::replace(&mut self.stage, Stage::Greeted), control) {
            (Stage::Greeted, Control::Request(request)) => self.requested(request, fds, agent),
            (Stage::Accepted { vi, wire }, Control::Confirm) => {
                self.open(vi, wire, PrivateData::new(), agent);
                Fate::Stays
            }
            (
                Stage::Calling { vi, channel, geometry, doorbell },
                Control::Accept { vi: peer_vi, shape, private_data },
            ) => {
                let status = fds.next().and_then(|fd| map(fd, shape.bytes(), false));
                let (Some(peer_status), true) = (status, shape.vi(peer_vi).is_some()) else {
                    return refused(vi, RefusedReason::Mismatch, agent);
                };
                let side = Side::Client;
                let wire = Wire { side, geometry, channel, peer_status, peer_shape: shape, peer_vi, doorbell };
                self.say(Control::Confirm, Vec::new());
                self.open(vi, Box::new(wire), private_data, agent);
                Fate::Stays
            }
            (Stage::Calling { vi, .. }, Control::Refuse { why, private_data }) => {
                agent.notices.tell(Notice::Refused { vi, why, private_data });
                Fate::Over
            }
            (Stage::Open { vi }, Control::Export { region, len, access }) => {
                self.stage = Stage::Open { vi };
                let memory = fds.next().and_then(|fd| map(fd, len, access.write));
                match memory {
                    Some(memory) if self.mapped < self.mapped_max => {
                        self.mapped += 1;
                        if !self.deaf {
                            self.deadline = None;
                        }
                        agent.notices.tell(Notice::Exported { vi, region, memory, access });
                        Fate::Stays
                    }
                    _ => self.garbage(agent),
                }
            }
            (Stage::Open { vi }, Control::Unexport { region }) => {
                self.stage = Stage::Open { vi };
                agent.notices.tell(Notice::Unexported { vi, region });
                Fate::Stays
            }
            (stage @ (Stage::Open { .. } | Stage::Ended { .. } | Stage::Farewell), Control::Released { region }) => {
                self.stage = stage;
                agent.notices.tell(Notice::Released { connection: agent.name, region });
                Fate::Stays
            }
            (
                stage @ (Stage::Accepted { .. } | Stage::Open { .. } | Stage::Ended { .. } | Stage::Farewell),
                Control::Bye { why },
            ) => {
                self.stage = stage;
                self.ended(why, true, agent)
            }
            // We have said goodbye, or are about to; what was on its way does not matter.
            (stage @ (Stage::Farewell | Stage::Ended { .. }), _) => {
                self.stage = stage;
                Fate::Stays
            }
            (stage, _) => {
                self.stage = stage;
                self.garbage(agent)
            }
        }
    }

    fn requested(&mut self, request: Request, mut fds: impl Iterator<Item = OwnedFd>, agent: &Around<'_>) -> Fate {
        let Request { discriminator, timeout_ms, vi: peer_vi, shape: peer_shape, geometry, reliability, private_data } =
            request;
        let (Some(channel), Some(status), Some(doorbell)) = (fds.next(), fds.next(), fds.next()) else {
            return Fate::Over;
        };
        let channel = map(channel, geometry.channel_bytes(), true);
        let peer_status = map(status, peer_shape.bytes(), false);
        let (Some(channel), Some(peer_status), Some(_)) = (channel, peer_status, peer_shape.vi(peer_vi)) else {
            return self.refuse(RefusedReason::Mismatch, PrivateData::new());
        };
        let side = Side::Server;
        let wire = Wire { side, geometry, channel, peer_status, peer_shape, peer_vi, doorbell };
        self.stage = Stage::Asked { wire: Box::new(wire) };
        // The client keeps the time; this bounds a client that does not.
        self.deadline = Some(BootClock.now() + Duration::from_millis(u64::from(timeout_ms)) + DYING);
        agent.notices.tell(Notice::Requested { connection: agent.name, discriminator, reliability, private_data });
        Fate::Stays
    }

    fn open(&mut self, vi: ViId, wire: Box<Wire>, private_data: PrivateData, agent: &Around<'_>) {
        self.stage = Stage::Open { vi };
        self.deadline = None;
        self.mapped_max = wire.peer_shape.regions;
        agent.notices.tell(Notice::Ready { connection: agent.name, vi, wire, private_data });
    }

    /// The socket is closed. A connection ends when the process turns out to be dead, or after a while does not.
    fn hung_up(&mut self, agent: &Around<'_>) -> Fate {
        self.deaf = true;
        self.outbox.clear();
        if socket::is_dead(&self.process) {
            return self.died(agent);
        }
        match self.stage {
            Stage::Accepted { .. } | Stage::Open { .. } => {
                self.deadline = Some(BootClock.now() + DYING);
                Fate::Stays
            }
            Stage::Ended { .. } | Stage::Farewell => Fate::Stays,
            _ => self.ended(BrokenReason::Disconnected, true, agent),
        }
    }

    pub(super) fn died(&mut self, agent: &Around<'_>) -> Fate {
        self.deaf = true;
        self.ended(BrokenReason::PeerGone, true, agent)
    }

    fn garbage(&mut self, agent: &Around<'_>) -> Fate {
        self.ended(BrokenReason::Protocol, false, agent)
    }

    /// It took too long.
    pub(super) fn late(&mut self, agent: &Around<'_>) -> Fate {
        self.deadline = None;
        match &self.stage {
            Stage::Calling { vi, .. } => refused(*vi, RefusedReason::TimedOut, agent),
            _ => self.ended(BrokenReason::Protocol, false, agent),
        }
    }

    /// The peer's end is closed, or as good as.
    fn ended(&mut self, why: BrokenReason, is_quiet: bool, agent: &Around<'_>) -> Fate {
        let quiet = Notice::Quiet { connection: agent.name };
        match self.stage {
            Stage::Greeted => Fate::Over,
            Stage::Asked { .. } => {
                agent.notices.tell(Notice::RequestGone { connection: agent.name });
                Fate::Over
            }
            Stage::Calling { vi, .. } => refused(vi, RefusedReason::NoListener, agent),
            Stage::Accepted { vi, .. } | Stage::Open { vi } => {
                // Before it was open it got nothing of ours.
                let is_quiet = is_quiet || !matches!(self.stage, Stage::Open { .. });
                self.stage = Stage::Ended { quiet: is_quiet };
                self.deadline = None;
                agent.notices.tell(Notice::Ended { vi, why });
                if is_quiet {
                    agent.notices.tell(quiet);
                }
                Fate::Stays
            }
            Stage::Ended { quiet: before } => {
                if is_quiet && !before {
                    self.stage = Stage::Ended { quiet: true };
                    agent.notices.tell(quiet);
                }
                Fate::Stays
            }
            Stage::Farewell if is_quiet => {
                agent.notices.tell(quiet);
                Fate::Over
            }
            Stage::Farewell => Fate::Stays,
        }
    }
}

/// Maps a file of the peer, unless an access to it could fault.
fn map(fd: OwnedFd, len: u64, writable: bool) -> Option<Memory> {
    Memory::from_fd(fd, len, writable).ok().filter(|memory| !memory.huge_pages())
}

fn refused(vi: ViId, why: RefusedReason, agent: &Around<'_>) -> Fate {
    agent.notices.tell(Notice::Refused { vi, why, private_data: PrivateData::new() });
    Fate::Over
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn a_peer_that_reads_nothing_is_hung_up_on_when_too_much_waits_for_it() {
        let (ours, theirs) = socket::doorbell().unwrap();
        let (sender, told) = sync_channel(4);
        let notices = Notices { sender, told: Arc::default(), alarm: Arc::new(EventFd::new().unwrap()) };
        let shape = StatusShape { regions: 1, vis: 1 };
        let agent = Around { name: 7, notices: &notices, status: &theirs, shape };
        let mut peer = Peer::new(ours, Stage::Open { vi: ViId(3) }).unwrap();
        let region = RegionHandle { incarnation: 1, index: 0 };
        let mut said = 0;
        while told.try_recv().is_err() {
            assert_eq!((peer.unexport(region), peer.flush(&agent)), (Fate::Stays, Fate::Stays));
            said += 1;
            assert!(said < 100 * OUTBOX, "what waits for it grows and grows");
        }
        assert!(said > OUTBOX && peer.outbox.is_empty());
        assert!(matches!(peer.stage, Stage::Ended { quiet: false }), "it may still write to our memory");
    }
}
