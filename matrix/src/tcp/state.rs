//! What the reactor knows, and what it does in each turn: VIs with their queues, regions, connections.

use std::collections::{BTreeSet, VecDeque};
use std::net::TcpListener;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use dyad_reactor::{BootClock, Clock, Time};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{Connection, Heard, Stage};
use super::flow::{Around, Flow, Progress, ReceiveItem, SendItem, Stop};
use super::frame::{End, NotUnderstood, Packet};
use super::incoming::Pulled;
use super::{Security, TcpCounters, TcpLimits, errno};
use crate::completion::CompletionQueue;
use crate::provider::{
    BrokenReason, Completion, DescriptorError, Discriminator, Event, PrivateData, RefusedReason, Reliability,
    RequestId, ViAttributes, ViId, WorkQueue,
};
use crate::regions::Regions;
use crate::slots::Slots;
use crate::socket::Moved;
use crate::vi_state::{ViEvent, ViState};
use crate::work_items::WorkItems;

/// Events taken from the kernel in one turn.
const EVENTS: usize = 64;
/// Reads and writes of one connection in one turn.
const CALLS: usize = 8;
/// Connections that are taken in one turn.
const ACCEPTS: usize = 32;
/// A client that connects and says nothing is dropped after this time.
const GREETING: Duration = Duration::from_secs(5);
/// How much longer than a client wants to wait its request is kept: it keeps the time, this bounds a client that does not.
const LATE: Duration = Duration::from_secs(1);
/// How long a peer may take to hang up when all is said.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long no connection is taken when the process is out of file descriptors.
const DEAF: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
/// Plus the name of the connection.
const CONNECTION: u64 = 1 << 32;

/// The name under which the listener's deadline stands; connections never have it.
const NOBODY: u32 = u32::MAX;

/// What the provider sleeps on.
pub(super) struct Bed {
    pub(super) epoll: Epoll,
    timer: TimerFd,
    listener: TcpListener,
}

impl Bed {
    pub(super) fn new(listener: TcpListener) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self { epoll, timer, listener })
    }
}

pub(super) struct Vi {
    pub(super) attributes: ViAttributes,
    pub(super) state: ViState,
    pub(super) connection: Option<u32>,
    pub(super) flow: Option<Box<Flow>>,
    pub(super) sends: WorkItems<SendItem>,
    pub(super) receives: WorkItems<ReceiveItem>,
}

impl Vi {
    pub(super) fn new(attributes: &ViAttributes) -> Self {
        Self {
            attributes: *attributes,
            state: ViState::Idle,
            connection: None,
            flow: None,
            sends: WorkItems::new(attributes.send_depth),
            receives: WorkItems::new(attributes.receive_depth),
        }
    }
}

pub(super) struct State {
    bed: Rc<Bed>,
    pub(super) security: Security,
    silence: Duration,
    pub(super) regions: Regions,
    pub(super) cqs: Slots<CompletionQueue>,
    pub(super) vis: Slots<Vi>,
    pub(super) listeners: BTreeSet<Discriminator>,
    pub(super) events: VecDeque<Event>,
    pub(super) event_waiter: Option<Waker>,
    pub(super) connections: Slots<Connection>,
    /// Connections with something to do, each once.
    todo: VecDeque<u32>,
    deadlines: BTreeSet<(Time, u32)>,
    timer_at: Option<Time>,
    pub(super) counters: TcpCounters,
}

impl State {
    pub(super) fn new(bed: Rc<Bed>, incarnation: u64, security: Security, limits: &TcpLimits) -> Self {
        Self {
            bed,
            security,
            silence: limits.silence,
            regions: Regions::new(incarnation, limits.regions),
            cqs: Slots::new(limits.completion_queues),
            vis: Slots::new(limits.vis),
            listeners: BTreeSet::new(),
            events: VecDeque::with_capacity(2 * usize::from(limits.vis)),
            event_waiter: None,
            connections: Slots::new(limits.connections),
            todo: VecDeque::with_capacity(2 * usize::from(limits.connections)),
            deadlines: BTreeSet::new(),
            timer_at: None,
            counters: TcpCounters::default(),
        }
    }

    /// One turn: what the kernel has to say, then every connection that has something to do.
    pub(super) fn poll(&mut self) -> usize {
        let mut work = self.look();
        self.pass_deadlines();
        for _ in 0..self.todo.len() {
            let Some(name) = self.todo.pop_front() else { break };
            if let Some(connection) = self.connections.get_mut(name) {
                connection.queued = false;
                work += self.turn(name);
            }
        }
        // Whoever wants another turn gets it before the reactor sleeps.
        work + usize::from(!self.todo.is_empty())
    }

    fn look(&mut self) -> usize {
        let mut events = [EpollEvent::empty(); EVENTS];
        let bed = Rc::clone(&self.bed);
        self.counters.waits += 1;
        let ready = bed.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut work = 0;
        for event in &events[..ready] {
            match event.data() {
                TIMER => {}
                LISTENER => work += self.take_connections(&bed.listener),
                data => {
                    let name = u32::try_from(data - CONNECTION).unwrap_or(NOBODY);
                    let Some(connection) = self.connections.get_mut(name) else { continue };
                    let flags = event.events();
                    let over = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                    connection.readable |= flags.intersects(over | EpollFlags::EPOLLIN);
                    connection.writable |= flags.intersects(over | EpollFlags::EPOLLOUT);
                    connection.ending |= flags.intersects(over);
                    self.wake(name);
                }
            }
        }
        work
    }

    /// The reactor is about to sleep.
    pub(super) fn arm(&mut self) {
        let first = self.deadlines.first().map(|&(at, _)| at);
        if let Some(first) = first
            && self.timer_at != Some(first)
        {
            let at = TimeSpec::from_duration(Duration::from_nanos(first.as_nanos().max(1)));
            if self.bed.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME).is_ok() {
                self.timer_at = Some(first);
            }
        }
    }

    fn pass_deadlines(&mut self) {
        while let Some(&(at, name)) = self.deadlines.first() {
            if at > BootClock.now() {
                break;
            }
            self.deadlines.pop_first();
            if name == NOBODY {
                // If that fails nobody connects any more, as if we were out of descriptors for good.
                let _ = self.bed.epoll.add(&self.bed.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER));
            } else {
                self.late(name);
            }
        }
    }

    fn set_deadline(&mut self, name: u32, deadline: Option<Time>) {
        let Some(connection) = self.connections.get_mut(name) else { return };
        if let Some(before) = std::mem::replace(&mut connection.deadline, deadline) {
            self.deadlines.remove(&(before, name));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, name));
        }
    }

    /// Gives a connection a turn.
    pub(super) fn wake(&mut self, name: u32) {
        if let Some(connection) = self.connections.get_mut(name)
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.todo.push_back(name);
        }
    }

    // Connections that come and go.

    fn take_connections(&mut self, listener: &TcpListener) -> usize {
        for taken in 0..ACCEPTS {
            match listener.accept() {
                Ok((stream, _)) => {
                    let session = match &self.security {
                        Security::Key(key) => key.take(),
                        Security::Loopback | Security::TrustedNetwork => None,
                    };
                    let connection = Connection::new(stream, session, Stage::Greeted, self.silence);
                    // Without room it is dropped, and the client reads that as a refusal.
                    if let Some(name) = connection.ok().and_then(|connection| self.add(connection)) {
                        self.set_deadline(name, Some(BootClock.now() + GREETING));
                    }
                }
                Err(error) => match errno(&error) {
                    Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                        let _ = self.bed.epoll.delete(listener);
                        self.deadlines.insert((BootClock.now() + DEAF, NOBODY));
                        return taken;
                    }
                    _ => return taken,
                },
            }
        }
        ACCEPTS
    }

    /// Puts a connection into the table and has the kernel tell about it.
    pub(super) fn add(&mut self, connection: Connection) -> Option<u32> {
        let name = self.connections.insert(connection)?;
        let all = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let socket = &self.connections.get(name).expect("it was just put in").wire.socket;
        if self.bed.epoll.add(socket, EpollEvent::new(all, CONNECTION + u64::from(name))).is_err() {
            self.connections.remove(name);
            return None;
        }
        Some(name)
    }

    /// A new connection to be made.
    pub(super) fn call(
        &mut self,
        vi: ViId,
        to: std::net::SocketAddr,
        request: &Packet,
        deadline: Time,
    ) -> Result<u32, RefusedReason> {
        let stream = super::connection::call(to).map_err(|_| RefusedReason::NoListener)?;
        let stage = Stage::Connecting { vi, request: Box::new(request.encode()) };
        let session = match &self.security {
            Security::Key(key) => Some(key.call(to.ip()).ok_or(RefusedReason::NoListener)?),
            Security::Loopback | Security::TrustedNetwork => None,
        };
        let connection =
            Connection::new(stream, session, stage, self.silence).map_err(|_| RefusedReason::NoListener)?;
        let name = self.add(connection).ok_or(RefusedReason::NoListener)?;
        self.set_deadline(name, Some(deadline));
        Ok(name)
    }

    fn remove(&mut self, name: u32) {
        self.set_deadline(name, None);
        self.connections.remove(name);
    }

    /// All is said; the peer is to hang up.
    fn part(&mut self, name: u32) {
        let Some(connection) = self.connections.get_mut(name) else { return };
        connection.stage = Stage::Farewell;
        connection.readable = true;
        connection.wire.finish();
        self.set_deadline(name, Some(BootClock.now() + FAREWELL));
        self.wake(name);
    }

    /// Our owner's answer to a request; false if the client is gone.
    pub(super) fn answer(&mut self, name: u32, packet: &Packet, next: Stage) -> bool {
        let Some(connection) = self.connections.get_mut(name).filter(|connection| connection.stage == Stage::Asked)
        else {
            return false;
        };
        let said = connection.say(&packet.encode());
        connection.stage = next;
        if !said {
            self.remove(name);
        } else if matches!(packet, Packet::Refuse { .. }) {
            self.part(name);
        }
        said
    }

    pub(super) fn is_asked(&self, request: RequestId) -> bool {
        self.connections.get(request.0).is_some_and(|connection| connection.stage == Stage::Asked)
    }

    /// It took too long.
    fn late(&mut self, name: u32) {
        let Some(connection) = self.connections.get_mut(name) else { return };
        connection.deadline = None;
        match connection.stage {
            Stage::Connecting { vi, .. } | Stage::Calling { vi } => {
                self.remove(name);
                self.refused(vi, RefusedReason::TimedOut, PrivateData::new());
            }
            Stage::Accepted { vi } => self.break_vi(vi, BrokenReason::Protocol, Some(End::Fault)),
            Stage::Greeted => {
                self.counters.strangers += 1;
                self.remove(name);
            }
            Stage::Asked | Stage::Farewell => self.remove(name),
            Stage::Open { .. } => unreachable!("an open connection has no deadline"),
        }
    }

    pub(super) fn refused(&mut self, vi: ViId, why: RefusedReason, private_data: PrivateData) {
        let Some(there) = self.vis.get_mut(vi.0) else { return };
        let Some(next) = there.state.step(ViEvent::Refused) else { return };
        there.state = next;
        there.connection = None;
        self.event(Event::Refused { vi, why, private_data });
    }

    // Turns.

    /// Does what there is to do on a connection; returns how much it was.
    fn turn(&mut self, name: u32) -> usize {
        let Some(connection) = self.connections.get_mut(name) else { return 0 };
        if connection.writable && !connection.wire.flush() {
            connection.writable = false;
        }
        match &connection.stage {
            Stage::Open { vi } => {
                let vi = *vi;
                self.turn_open(name, vi)
            }
            Stage::Connecting { vi, request } => {
                let vi = *vi;
                let error = connection.wire.socket.error();
                if error.is_some() || connection.ending {
                    self.remove(name);
                    let timed_out = error == Some(Errno::ETIMEDOUT);
                    let why = if timed_out { RefusedReason::TimedOut } else { RefusedReason::NoListener };
                    self.refused(vi, why, PrivateData::new());
                } else if connection.writable {
                    let request = request.clone();
                    if connection.say(&request) {
                        connection.stage = Stage::Calling { vi };
                        self.wake(name);
                    } else {
                        self.remove(name);
                        self.refused(vi, RefusedReason::NoListener, PrivateData::new());
                    }
                }
                1
            }
            Stage::Farewell => {
                if connection.readable && !connection.swallow() {
                    self.remove(name);
                } else if connection.readable {
                    self.wake(name);
                }
                1
            }
            Stage::Calling { .. } | Stage::Greeted | Stage::Asked | Stage::Accepted { .. } => {
                let heard = connection.hear();
                let (stage, stranger) = (connection.stage.clone(), connection.wire.has_failed());
                self.counters.wrong_keys += u64::from(stranger);
                usize::from(self.heard(name, &stage, heard, stranger))
            }
        }
    }

    /// Deals with what was heard before frames; whether it was anything.
    fn heard(&mut self, name: u32, stage: &Stage, heard: Heard, stranger: bool) -> bool {
        match (stage, heard) {
            (_, Heard::Nothing) => return false,
            (
                Stage::Greeted,
                Heard::Packet(Packet::Request { discriminator, timeout_ms, reliability, private_data }),
            ) => {
                let connection = self.connections.get_mut(name).expect("it has its turn");
                connection.stage = Stage::Asked;
                if reliability != Reliability::ReliableReception {
                    self.refuse(name, RefusedReason::Mismatch);
                } else if self.listeners.contains(&discriminator) {
                    let patience = Duration::from_millis(u64::from(timeout_ms)) + LATE;
                    self.set_deadline(name, Some(BootClock.now() + patience));
                    // It may have hung up already.
                    self.wake(name);
                    self.event(Event::Requested { request: RequestId(name), discriminator, private_data });
                } else {
                    self.refuse(name, RefusedReason::NoListener);
                }
            }
            (Stage::Greeted, Heard::NotUnderstood(NotUnderstood::OtherVersion)) => {
                self.counters.other_versions += 1;
                let connection = self.connections.get_mut(name).expect("it has its turn");
                connection.stage = Stage::Asked;
                self.refuse(name, RefusedReason::Mismatch);
            }
            (Stage::Greeted, _) => {
                self.counters.strangers += u64::from(!stranger);
                self.remove(name);
            }
            (Stage::Asked | Stage::Farewell, _) => self.remove(name),
            (&Stage::Calling { vi }, Heard::Packet(Packet::Accept { private_data })) => {
                let said =
                    self.connections.get_mut(name).is_some_and(|connection| connection.say(&Packet::Confirm.encode()));
                if said {
                    self.open(name, vi, private_data);
                } else {
                    self.remove(name);
                    self.refused(vi, RefusedReason::NoListener, PrivateData::new());
                }
            }
            (&Stage::Calling { vi }, Heard::Packet(Packet::Refuse { why, private_data })) => {
                self.remove(name);
                self.refused(vi, why, private_data);
            }
            (&Stage::Calling { vi }, other) => {
                let why = match other {
                    Heard::NotUnderstood(NotUnderstood::OtherVersion) => {
                        self.counters.other_versions += 1;
                        RefusedReason::Mismatch
                    }
                    Heard::HungUp if stranger => RefusedReason::Mismatch,
                    Heard::HungUp => RefusedReason::NoListener,
                    _ => {
                        self.counters.strangers += 1;
                        RefusedReason::Mismatch
                    }
                };
                self.remove(name);
                self.refused(vi, why, PrivateData::new());
            }
            (&Stage::Accepted { vi }, Heard::Packet(Packet::Confirm)) => self.open(name, vi, PrivateData::new()),
            (&Stage::Accepted { vi }, heard) => {
                self.counters.strangers += u64::from(heard != Heard::HungUp);
                self.break_vi(vi, BrokenReason::Protocol, None);
            }
            (Stage::Connecting { .. } | Stage::Open { .. }, _) => unreachable!("no packets are read there"),
        }
        true
    }

    fn refuse(&mut self, name: u32, why: RefusedReason) {
        self.answer(name, &Packet::Refuse { why, private_data: PrivateData::new() }, Stage::Farewell);
    }

    /// The two ends have agreed.
    fn open(&mut self, name: u32, vi: ViId, private_data: PrivateData) {
        self.set_deadline(name, None);
        let Some(there) = self.vis.get_mut(vi.0) else { return };
        let next = there.state.step(ViEvent::Established).expect("it was being connected");
        there.state = next;
        there.connection = Some(name);
        let posted = u32::try_from(there.receives.len()).expect("queues are short");
        there.flow = Some(Box::new(Flow::new(posted)));
        let connection = self.connections.get_mut(name).expect("it has its turn");
        connection.stage = Stage::Open { vi };
        (connection.readable, connection.writable) = (true, true);
        self.wake(name);
        self.event(Event::Established { vi, private_data });
    }

    fn turn_open(&mut self, name: u32, vi: ViId) -> usize {
        match self.exchange(name, vi) {
            Ok(work) => work,
            Err(stop) => {
                let (why, say) = match stop {
                    Stop::Garbage => {
                        self.counters.garbage += 1;
                        (BrokenReason::Protocol, Some(End::Fault))
                    }
                    Stop::Refused(end) => (BrokenReason::Protocol, Some(end)),
                    Stop::Failed => (BrokenReason::Protocol, Some(End::Fault)),
                    Stop::Ended(End::Disconnected) => (BrokenReason::Disconnected, None),
                    Stop::Ended(_) => (BrokenReason::Protocol, None),
                    Stop::HungUp => {
                        // Somebody else's bytes, between ours.
                        let failed = self.connections.get(name).is_some_and(|connection| connection.wire.has_failed());
                        self.counters.garbage += u64::from(failed);
                        (BrokenReason::Protocol, None)
                    }
                };
                self.break_vi(vi, why, say);
                1
            }
        }
    }

    /// Receives, completes and sends on one connection; returns how much.
    fn exchange(&mut self, name: u32, vi: ViId) -> Result<usize, Stop> {
        let Self { connections, vis, regions, cqs, counters, .. } = self;
        let connection = connections.get_mut(name).expect("it has its turn");
        let there = vis.get_mut(vi.0).expect("an open connection has its VI");
        let Vi { attributes, flow: Some(flow), sends, receives, .. } = there else { return Ok(0) };
        let copied = &mut counters.copied_bytes;
        let mut around = Around { vi, attributes, sends, receives, regions, cqs, copied };
        // What became known in the turn before is told now, unless something was sent since: an answer says it too.
        let tell = flow.receiving.is_untold();
        let mut work = 0;
        for _ in 0..CALLS {
            if !connection.readable {
                break;
            }
            counters.receives += 1;
            match flow.pull(&mut connection.wire, &mut around)? {
                Pulled::All => {}
                // An end that the kernel has seen is read to the end; else there will be another event.
                // TLS may have more at hand than the kernel.
                Pulled::Some => connection.readable = connection.ending || connection.wire.is_secure(),
                Pulled::Nothing => connection.readable = false,
                Pulled::HungUp => return Err(Stop::HungUp),
            }
            let digested = flow.digest(&mut around);
            if let Err(Stop::Ended(end)) = digested {
                // Of what it says has landed all has.
                flow.complete(&mut around)?;
                match end {
                    End::RemoteProtection => flow.fail_oldest(&mut around, DescriptorError::RemoteProtection),
                    End::Length => flow.fail_oldest(&mut around, DescriptorError::Length),
                    End::Disconnected | End::Fault => {}
                }
            }
            work += 1 + digested?;
        }
        work += flow.complete(&mut around)?;
        let mut sent_all = false;
        for _ in 0..CALLS {
            flow.pack(&mut around, tell)?;
            sent_all = flow.is_flushed();
            if sent_all || !connection.writable {
                break;
            }
            counters.sends += 1;
            match flow.transmit(&mut connection.wire, &mut around)? {
                Moved::Bytes(_) => work += 1,
                // If the peer is gone what it said before is read first.
                Moved::Blocked | Moved::Gone => connection.writable = false,
            }
        }
        // A descriptor that could not be put into a frame.
        work += flow.complete(&mut around)?;
        // If the kernel has no more for us, or no room, it will say when it has.
        let to_say = flow.receiving.is_untold() || !sent_all;
        if connection.readable || (connection.writable && to_say) {
            self.wake(name);
        }
        Ok(work)
    }

    /// Ends the connection of a VI: says why if it can, completes what was posted, and tells.
    pub(super) fn break_vi(&mut self, vi: ViId, why: BrokenReason, say: Option<End>) {
        let Self { vis, cqs, connections, .. } = self;
        let Some(there) = vis.get_mut(vi.0) else { return };
        let Some(broken) = there.state.step(ViEvent::Broken) else { return };
        there.state = broken;
        while let Some(item) = there.sends.pop() {
            let result = match item.progress {
                Progress::Done(result) => result,
                Progress::Framed(_) | Progress::Travelling(_) | Progress::Reading(_) => Err(DescriptorError::Flushed),
            };
            let cq = cqs.get_mut(there.attributes.send_cq.0).expect("queues outlive VIs");
            cq.push(Completion { vi, queue: WorkQueue::Send, cookie: item.cookie, result, immediate: None });
        }
        while let Some(item) = there.receives.pop() {
            let (cookie, result) = (item.cookie, Err(DescriptorError::Flushed));
            let cq = cqs.get_mut(there.attributes.receive_cq.0).expect("queues outlive VIs");
            cq.push(Completion { vi, queue: WorkQueue::Receive, cookie, result, immediate: None });
        }
        let mut flow = there.flow.take();
        if let Some(name) = there.connection.take() {
            let mut last_frame = |end| flow.get_or_insert_with(|| Box::new(Flow::new(0))).last_frame(end);
            let said = connections.get_mut(name).is_some_and(|connection| {
                let open = matches!(connection.stage, Stage::Open { .. } | Stage::Accepted { .. });
                let last = say.filter(|_| open).and_then(&mut last_frame);
                last.is_some_and(|last| connection.say_bytes(&last))
            });
            if said {
                self.part(name);
            } else {
                self.remove(name);
            }
        }
        self.event(Event::Broken { vi, why });
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back(event);
        if let Some(waiter) = self.event_waiter.take() {
            waiter.wake();
        }
    }
}
