//! The Kernel Agent: the slow path, one thread per provider. It makes connections, hands memory over, and notices deaths;
//! it touches no payload. The reactor gives it [`Command`]s and gets [`Notice`]s.
//!
//! Each end of a connection goes through the stages of [`peer::Stage`]; their transitions stand in the table there.

mod handle;
mod peer;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Time};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::ShmLimits;
use super::layout::{Geometry, StatusShape};
use super::socket;
use crate::memory::{HugePages, Memory};
use crate::provider::{BrokenReason, NetAddress, PrivateData, RefusedReason, Reliability, ViId};
use crate::slots::Slots;
use handle::Notices;
pub(super) use handle::{AgentHandle, Command, ConnectionName, Notice, Wire};
use peer::Peer;

/// Commands and notices that may wait each way.
const QUEUE: usize = 256;
/// A client that connects and says nothing is dropped after this time.
const GREETING: Duration = Duration::from_secs(5);
/// How long after its socket closed a process may take to be dead.
const DYING: Duration = Duration::from_secs(1);
/// How long a region may take that the peer said to have announced.
const ANNOUNCED: Duration = Duration::from_secs(5);
/// How often a server is called again whose backlog is full.
const RETRY: Duration = Duration::from_millis(10);

impl AgentHandle {
    /// Starts the agent: it listens at `path` when this returns.
    pub(super) fn start(path: PathBuf, status: &Memory, shape: StatusShape, limits: &ShmLimits) -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let alarm = Arc::new(EventFd::from_flags(flags)?);
        let notice_alarm = Arc::new(EventFd::from_flags(flags)?);
        let (commands, command_receiver) = sync_channel(QUEUE);
        let (notice_sender, notices) = sync_channel(QUEUE);
        let told = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listener = socket::listen_at(&path)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&*alarm, EpollEvent::new(EpollFlags::EPOLLIN, ALARM))?;
        let agent = Agent {
            epoll,
            listener,
            deaf_until: None,
            commands: command_receiver,
            alarm: Arc::clone(&alarm),
            notices: Notices { sender: notice_sender, told: Arc::clone(&told), alarm: Arc::clone(&notice_alarm) },
            status: socket::read_only(status.fd().expect("the status is a file"))?,
            shape,
            geometry: Geometry { entries: limits.ring_entries, data: limits.ring_data_bytes },
            peers: Slots::new(limits.connections),
            calls: Vec::new(),
            calls_max: usize::from(limits.vis),
        };
        let name = "dyad-agent".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || agent.run()).map_err(|_| Errno::EAGAIN)?;
        Ok(Self { commands: Some(commands), notices, told, alarm, notice_alarm, thread: Some(thread), path })
    }
}

const LISTENER: u64 = 0;
const ALARM: u64 = 1;
/// Plus the name of the connection.
const SOCKET: u64 = 1 << 32;
/// Plus the name of the connection.
const PROCESS: u64 = 2 << 32;

struct Agent {
    epoll: Epoll,
    listener: OwnedFd,
    /// No new connections until then: the process is out of file descriptors.
    deaf_until: Option<Time>,
    commands: Receiver<Command>,
    alarm: Arc<EventFd>,
    notices: Notices,
    /// Our status, to be mapped for reading.
    status: OwnedFd,
    shape: StatusShape,
    geometry: Geometry,
    peers: Slots<Peer>,
    /// Clients whose server's backlog is full.
    calls: Vec<Call>,
    calls_max: usize,
}

/// A connection that is to be made.
struct Call {
    vi: ViId,
    to: NetAddress,
    private_data: PrivateData,
    reliability: Reliability,
    deadline: Time,
    next_try: Time,
}

impl Agent {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let timeout = match self.next_deadline() {
                None => EpollTimeout::NONE,
                Some(deadline) => {
                    // Rounded up, or it would spin through the last millisecond.
                    let wait = deadline.since(BootClock.now()) + Duration::from_millis(1);
                    EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
                }
            };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => panic!("epoll_wait on our own epoll instance: {error}"),
            };
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.take_connections(),
                    ALARM => {
                        let _ = self.alarm.read();
                        if !self.take_commands() {
                            return;
                        }
                    }
                    peer => self.peer_ready(peer, event.events()),
                }
            }
            self.pass_deadlines();
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let peers = self.peers.iter().filter_map(|(_, peer)| peer.deadline);
        let calls = self.calls.iter().map(|call| call.next_try.min(call.deadline));
        peers.chain(calls).chain(self.deaf_until).min()
    }

    fn take_connections(&mut self) {
        loop {
            match socket::accept_from(&self.listener) {
                Ok(socket) => {
                    if let Ok(mut peer) = Peer::new(socket, peer::Stage::Greeted) {
                        peer.deadline = Some(BootClock.now() + GREETING);
                        // Without room it is dropped, and the client reads that as a refusal.
                        let _ = self.add(peer);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
                Err(_) => {
                    let _ = self.epoll.delete(&self.listener);
                    self.deaf_until = Some(BootClock.now() + RETRY * 10);
                    return;
                }
            }
        }
    }

    fn add(&mut self, peer: Peer) -> Option<ConnectionName> {
        let name = self.peers.insert(peer)?;
        let peer = self.peers.get(name).expect("it was just put in");
        let watch = |fd: &OwnedFd, what, how| self.epoll.add(fd, EpollEvent::new(how, what | u64::from(name)));
        // A dead process stays readable; once is enough.
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let socket = watch(&peer.socket, SOCKET, EpollFlags::EPOLLIN);
        if socket.and_then(|()| watch(&peer.process, PROCESS, once)).is_err() {
            self.peers.remove(name);
            return None;
        }
        Some(name)
    }

    /// Takes what the reactor asks for; false when it asks for nothing any more.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect { vi, to, private_data, timeout, reliability } => {
                let now = BootClock.now();
                self.call(Call { vi, to, private_data, reliability, deadline: now + timeout, next_try: now });
            }
            Command::Abandon { vi } => {
                self.calls.retain(|call| call.vi != vi);
                let names = self.peers.iter().filter(|(_, peer)| peer.waits_with(vi)).map(|(name, _)| name);
                for name in names.collect::<Vec<_>>() {
                    self.with(name, |peer, agent| peer.close(BrokenReason::Disconnected, agent));
                }
            }
            // The client gave up while the reactor made up its mind.
            Command::Accept { connection, vi, .. } if self.peers.get(connection).is_none() => {
                self.notices.tell(Notice::Ended { vi, why: BrokenReason::Disconnected });
            }
            Command::Accept { connection, vi, private_data } => {
                self.with(connection, |peer, agent| peer.accept(vi, private_data, agent));
            }
            Command::Refuse { connection, why, private_data } => {
                self.with(connection, |peer, _| peer.refuse(why, private_data));
            }
            Command::Export { connection, region, memory, access } => {
                self.with(connection, |peer, _| peer.export(region, &memory, access));
            }
            Command::Unexport { connection, region } => {
                self.with(connection, |peer, _| peer.unexport(region));
            }
            Command::Expect { connection } => self.with(connection, |peer, _| peer.expect_export()),
            Command::Release { connection, region, memory } => {
                drop(memory);
                self.with(connection, |peer, _| peer.release(region));
            }
            Command::Close { connection, why, memories } => {
                drop(memories);
                self.with(connection, |peer, agent| peer.close(why, agent));
            }
        }
    }

    /// Lets something happen to a peer; removes it if that was the last.
    fn with(&mut self, name: ConnectionName, action: impl FnOnce(&mut Peer, &peer::Around<'_>) -> peer::Fate) {
        let Self { peers, notices, status, shape, epoll, .. } = self;
        let Some(peer) = peers.get_mut(name) else { return };
        let around = peer::Around { name, notices, status, shape: *shape };
        let fate = action(peer, &around);
        let fate = if fate == peer::Fate::Stays { peer.flush(&around) } else { fate };
        match fate {
            peer::Fate::Stays => {
                let write = if peer.outbox.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN | write, SOCKET | u64::from(name));
                if !peer.deaf {
                    let _ = epoll.modify(&peer.socket, &mut event);
                }
            }
            peer::Fate::Over => {
                peers.remove(name);
            }
        }
    }

    fn peer_ready(&mut self, what: u64, events: EpollFlags) {
        let name = u32::try_from(what & u64::from(u32::MAX)).expect("masked");
        if what & !u64::from(u32::MAX) == PROCESS {
            self.with(name, |peer, agent| peer.died(agent));
            return;
        }
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.with(name, |peer, agent| peer.hear(agent));
            if let Some(peer) = self.peers.get(name).filter(|peer| peer.deaf) {
                let _ = self.epoll.delete(&peer.socket);
            }
        } else {
            self.with(name, |_, _| peer::Fate::Stays);
        }
    }

    fn pass_deadlines(&mut self) {
        let now = BootClock.now();
        if self.deaf_until.is_some_and(|until| until <= now) {
            self.deaf_until = None;
            let _ = self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER));
        }
        let late = |peer: &Peer| peer.deadline.is_some_and(|deadline| deadline <= now);
        let names: Vec<_> = self.peers.iter().filter(|(_, peer)| late(peer)).map(|(name, _)| name).collect();
        for name in names {
            self.with(name, |peer, agent| peer.late(agent));
        }
        for call in self.calls.extract_if(.., |call| call.next_try <= now || call.deadline <= now).collect::<Vec<_>>() {
            self.call(call);
        }
    }

    /// Calls a server.
    fn call(&mut self, mut call: Call) {
        let now = BootClock.now();
        let refused = |why| Notice::Refused { vi: call.vi, why, private_data: PrivateData::new() };
        if call.deadline <= now {
            return self.notices.tell(refused(RefusedReason::TimedOut));
        }
        let socket = match socket::connect_to(&call.to.host) {
            Ok(socket) => socket,
            Err(Errno::EAGAIN) if self.calls.len() < self.calls_max => {
                call.next_try = now + RETRY;
                self.calls.push(call);
                return;
            }
            Err(_) => return self.notices.tell(refused(RefusedReason::NoListener)),
        };
        let notice = refused(RefusedReason::NoListener);
        if self.request(call, socket, now).is_none() {
            // Out of descriptors or memory, or the server died just now.
            self.notices.tell(notice);
        }
    }

    fn request(&mut self, call: Call, socket: OwnedFd, now: Time) -> Option<()> {
        let bytes = usize::try_from(self.geometry.channel_bytes()).ok()?;
        let channel = Memory::shared("dyad-channel", bytes, HugePages::No).ok()?;
        let (ours, theirs) = socket::doorbell().ok()?;
        let fds =
            vec![channel.fd()?.try_clone_to_owned().ok()?, self.status.as_fd().try_clone_to_owned().ok()?, theirs];
        let timeout = call.deadline.since(now);
        let request = super::control::Request {
            discriminator: call.to.discriminator,
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            vi: call.vi,
            shape: self.shape,
            geometry: self.geometry,
            reliability: call.reliability,
            private_data: call.private_data,
        };
        let stage = peer::Stage::Calling { vi: call.vi, channel, geometry: self.geometry, doorbell: ours };
        let mut peer = Peer::new(socket, stage).ok()?;
        peer.deadline = Some(call.deadline);
        peer.say(super::control::Control::Request(request), fds);
        let name = self.add(peer)?;
        self.with(name, |_, _| peer::Fate::Stays);
        Some(())
    }
}
