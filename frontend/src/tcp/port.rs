//! The NVMe/TCP port of a director: listens, polls its connections, and has lanes that do their commands. `data`: what lanes see
//! of a command's data.

mod data;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::socket::{Moved, Socket};
use dyad_nvme::opcode::fabrics;
use dyad_nvme::sgl::Sgl;
use dyad_nvme::types::{BlockCount, NamespaceId, QueueId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{Inbox, Signal};
use dyad_reactor::{Source, Time};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::parse::Params;
use super::session::{Event, Phase, Session, Step};
use crate::subsystem::backing::Backing;
use crate::subsystem::execute::execute;
use crate::subsystem::{Action, Answer, ControllerKey, Direction, IoCommand, Operation, PortId, Queue, Subsystem};
use data::CommandData;

/// What a [`TcpPort`] is made with.
#[derive(Debug, Copy, Clone)]
pub struct TcpConfig {
    /// Which port it is, for the table of who may use what.
    pub port: PortId,
    /// Connections at once; more are closed as they come.
    pub connections: u16,
    /// Commands served at once, on all connections.
    pub lanes: u16,
    /// CPDA: data in PDUs to us begins at a multiple of `4 * (alignment + 1)` bytes; at most 31.
    pub alignment: u8,
    /// MAXH2CDATA, at least 4096.
    pub data_max: u32,
    /// How long a connection may take until it is a queue.
    pub setup_timeout: Duration,
    /// How long a host may leave half a PDU, data that was asked for, or answers, lying.
    pub patience: Duration,
    /// How long a command may wait for a decision about who serves (ANATT).
    pub command_deadline: Duration,
}

/// The listener's name among epoll's events.
const LISTENER: u64 = u64::MAX;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;
/// Steps on one connection before the next one has its turn.
const STEPS: usize = 256;
/// While nobody is connected the kernel is asked once in so many turns, and before the reactor sleeps: other ports of this reactor
/// are to make no system call while they are busy.
const IDLE_TURNS: u32 = 64;
/// Turns with work on known connections until the kernel is asked for more.
const BUSY_TURNS: u32 = 4;
/// Connections taken from the listener in one turn.
const ACCEPTS: usize = 16;
/// Bytes thrown away after the end before the connection is closed anyway are bounded by time alone.
const ENDING: Duration = Duration::from_secs(5);

/// Names a connection.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct SessionKey {
    index: u16,
    generation: u32,
}

/// A command that waits for a lane.
struct Work {
    session: SessionKey,
    slot: u16,
}

struct Inner<B> {
    handle: Handle,
    config: TcpConfig,
    backing: B,
    subsystem: Rc<RefCell<Subsystem>>,
    listener: TcpListener,
    epoll: Epoll,
    sessions: RefCell<Vec<Option<Session>>>,
    generation: Cell<u32>,
    /// Places of `sessions` that are taken.
    taken: Cell<u16>,
    /// Turns until the kernel is asked although nobody is connected.
    idle_turns: Cell<u32>,
    /// Turns since the kernel was asked.
    busy_turns: Cell<u32>,
    /// Connections to look at, each once.
    notices: RefCell<VecDeque<u16>>,
    work: Inbox<Work>,
    /// Commands that wait for a lane or have one.
    begun: Cell<u16>,
    opened: Signal,
    counters: Cell<TcpCounters>,
}

/// What a port has seen.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Connections that were taken.
    pub connections: u64,
    /// Connections that were turned away because there were too many.
    pub turned_away: u64,
    /// Connections that were ended for a malformed PDU.
    pub malformed: u64,
    /// Connections that were closed because the host was too slow.
    pub impatient: u64,
    /// I/O commands that were answered.
    pub commands: u64,
    /// System calls on connections, and to learn which of them have something.
    pub calls: u64,
}

/// An NVMe/TCP port. Clones are the same port.
pub struct TcpPort<B> {
    inner: Rc<Inner<B>>,
}

impl<B> Clone for TcpPort<B> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

/// The part of a [`TcpPort`] that a reactor polls.
pub struct TcpSource<B: Backing>(TcpPort<B>);

impl<B: Backing> TcpPort<B> {
    /// A port that serves `subsystem` from `backing` on `listener`; spawns its lanes and its watch. [`Self::source`] is to be polled.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(
        handle: &Handle,
        config: TcpConfig,
        subsystem: Rc<RefCell<Subsystem>>,
        backing: B,
        listener: TcpListener,
    ) -> Result<Self, Errno> {
        listener.set_nonblocking(true).map_err(|error| errno(&error))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let queue_entries = subsystem.borrow().config().queue_entries;
        let connections = usize::from(config.connections);
        let port = Self {
            inner: Rc::new(Inner {
                handle: handle.clone(),
                backing,
                subsystem,
                listener,
                epoll,
                sessions: RefCell::new((0..connections).map(|_| None).collect()),
                generation: Cell::new(0),
                taken: Cell::new(0),
                idle_turns: Cell::new(0),
                busy_turns: Cell::new(0),
                notices: RefCell::new(VecDeque::with_capacity(connections)),
                work: Inbox::new(connections * usize::from(queue_entries + 8)),
                begun: Cell::new(0),
                opened: Signal::new(),
                counters: Cell::default(),
                config,
            }),
        };
        for _ in 0..config.lanes {
            handle.spawn("tcp lane", port.clone().run_lane());
        }
        handle.spawn("tcp watch", port.clone().run_watch());
        Ok(port)
    }

    /// Tasks that [`Self::new`] spawns.
    #[must_use]
    pub fn tasks(config: &TcpConfig) -> usize {
        usize::from(config.lanes) + 1
    }

    /// What the reactor is to poll.
    #[must_use]
    pub fn source(&self) -> TcpSource<B> {
        TcpSource(self.clone())
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> Result<SocketAddr, Errno> {
        self.inner.listener.local_addr().map_err(|error| errno(&error))
    }

    /// What it has seen.
    #[must_use]
    pub fn counters(&self) -> TcpCounters {
        self.inner.counters.get()
    }

    /// Connections that are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.inner.sessions.borrow().iter().flatten().filter(|session| session.phase != Phase::Closed).count()
    }

    /// Has done what the core asked for, after the array or the table of who may use what was changed.
    pub fn perform_actions(&self) {
        loop {
            let action = self.inner.subsystem.borrow_mut().next_action();
            match action {
                None => return,
                Some(Action::Complete(key, completion)) => {
                    self.each_queue(|port, index, session, queue| {
                        if queue.controller == key && queue.id == QueueId::ADMIN {
                            session.complete(completion);
                            port.notice(index, session);
                        }
                    });
                }
                Some(Action::CloseIoQueues(key)) => self.end_queues(key, |queue| queue.id != QueueId::ADMIN),
                Some(Action::Close(key)) => self.end_queues(key, |_| true),
            }
        }
    }

    fn each_queue(&self, mut act: impl FnMut(&Self, u16, &mut Session, Queue)) {
        for (index, session) in (0..).zip(self.inner.sessions.borrow_mut().iter_mut()) {
            if let Some(session) = session
                && let Phase::Running(queue) = session.phase
            {
                act(self, index, session, queue);
            }
        }
    }

    fn end_queues(&self, key: ControllerKey, which: impl Fn(Queue) -> bool) {
        self.each_queue(|port, index, session, queue| {
            if queue.controller == key && which(queue) {
                port.lost(session);
                session.end();
                session.progress = port.inner.handle.now();
                port.notice(index, session);
            }
        });
    }

    fn count(&self, change: impl FnOnce(&mut TcpCounters)) {
        let mut counters = self.inner.counters.get();
        change(&mut counters);
        self.inner.counters.set(counters);
    }

    /// Has the connection looked at in the next turn.
    fn notice(&self, index: u16, session: &mut Session) {
        if !std::mem::replace(&mut session.noticed, true) {
            self.inner.notices.borrow_mut().push_back(index);
        }
    }

    /// Tells the core that a queue is no more.
    fn lost(&self, session: &Session) {
        if let Phase::Running(queue) = session.phase {
            self.inner.subsystem.borrow_mut().lost(queue);
        }
    }

    /// Takes what is new from the kernel.
    fn poll_kernel(&self) -> usize {
        let mut events = [EpollEvent::empty(); EVENTS];
        self.count(|counters| counters.calls += 1);
        let found = self.inner.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..found] {
            if event.data() == LISTENER {
                self.accept();
                continue;
            }
            let index = u16::try_from(event.data() & 0xffff).expect("16 bits");
            let mut sessions = self.inner.sessions.borrow_mut();
            let Some(session) = &mut sessions[usize::from(index)] else { continue };
            if u64::from(session.generation) == event.data() >> 16 {
                let closing =
                    EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                session.readable |= event.events().intersects(closing);
                session.writable |= event.events().intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR);
                self.notice(index, session);
            }
        }
        found
    }

    fn accept(&self) {
        let inner = &*self.inner;
        for _ in 0..ACCEPTS {
            let Ok((stream, _)) = inner.listener.accept() else { return };
            let mut sessions = inner.sessions.borrow_mut();
            let Some(place) = sessions.iter().position(Option::is_none) else {
                self.count(|counters| counters.turned_away += 1);
                continue;
            };
            let index = u16::try_from(place).expect("as many as configured");
            let Ok(socket) = Socket::new(stream) else { continue };
            inner.generation.set(inner.generation.get().wrapping_add(1));
            let generation = inner.generation.get();
            // Edge-triggered: what was told once is kept in the session, so one that waits for a lane keeps nobody awake.
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            let data = u64::from(generation) << 16 | u64::from(index);
            if inner.epoll.add(socket.as_fd(), EpollEvent::new(interest, data)).is_err() {
                continue;
            }
            let params = Params::new(inner.config.alignment, inner.config.data_max);
            let entries = inner.subsystem.borrow().config().queue_entries;
            let mut session = Session::new(socket, generation, params, entries, inner.handle.now());
            self.notice(index, &mut session);
            sessions[place] = Some(session);
            inner.taken.set(inner.taken.get() + 1);
            self.count(|counters| counters.connections += 1);
            inner.opened.notify_all();
        }
    }

    /// Moves the connections on that are to be looked at.
    fn serve_noticed(&self) -> usize {
        let count = self.inner.notices.borrow().len();
        let mut work = 0;
        for _ in 0..count {
            let Some(index) = self.inner.notices.borrow_mut().pop_front() else { break };
            work += self.serve(index);
        }
        work
    }

    /// Moves a connection on; how much it did.
    fn serve(&self, index: u16) -> usize {
        let mut sessions = self.inner.sessions.borrow_mut();
        let Some(session) = &mut sessions[usize::from(index)] else { return 0 };
        session.noticed = false;
        if session.phase == Phase::Closed {
            self.forget(&mut sessions, index);
            return 0;
        }
        let memory = self.inner.backing.pool().memory();
        let (mut work, calls) = (0, session.calls);
        let mut alive = true;
        if session.has_output() {
            match session.send(memory) {
                Some(bytes) => work += bytes,
                None => alive = false,
            }
        }
        alive = alive && self.receive(index, session, &mut work);
        if alive && session.writable {
            match session.send(memory) {
                Some(bytes) => work += bytes,
                None => alive = false,
            }
        }
        self.count(|counters| counters.calls += session.calls - calls);
        if work > 0 {
            session.progress = self.inner.handle.now();
        }
        if !alive {
            self.lost(session);
            session.close();
            self.forget(&mut sessions, index);
        }
        work + 1
    }

    /// Receives and deals with PDUs; false if the host is gone.
    fn receive(&self, index: u16, session: &mut Session, work: &mut usize) -> bool {
        let memory = self.inner.backing.pool().memory();
        for _ in 0..STEPS {
            match session.step(memory) {
                Ok(Step::Event(event)) => {
                    *work += 1;
                    self.event(index, session, event);
                }
                Ok(Step::Again) => {}
                Ok(Step::Stalled) => return true,
                Ok(Step::Hungry) => {
                    if !session.readable {
                        return true;
                    }
                    let (moved, wanted) = session.read(memory);
                    match moved {
                        Moved::Gone => return false,
                        Moved::Blocked => session.readable = false,
                        Moved::Bytes(bytes) => {
                            *work += bytes;
                            // Less than there was room for: the kernel has no more, and will tell when it has (epoll(7)).
                            session.readable = bytes == wanted;
                            if let Step::Event(event) = session.scattered(memory, bytes) {
                                self.event(index, session, event);
                            }
                        }
                    }
                }
                Err(error) => {
                    self.count(|counters| counters.malformed += 1);
                    self.lost(session);
                    session.terminate(error);
                    return true;
                }
            }
        }
        self.notice(index, session);
        true
    }

    /// Frees a connection that is over, once no lane has one of its commands.
    fn forget(&self, sessions: &mut [Option<Session>], index: u16) {
        let place = &mut sessions[usize::from(index)];
        if place.as_ref().is_some_and(|session| session.phase == Phase::Closed && session.lanes == 0) {
            *place = None;
            self.inner.taken.set(self.inner.taken.get() - 1);
            self.inner.notices.borrow_mut().retain(|noticed| *noticed != index);
        }
    }

    fn event(&self, index: u16, session: &mut Session, event: Event) {
        match (event, session.phase) {
            (Event::Command(entry, payload), Phase::Running(queue)) if queue.id != QueueId::ADMIN => {
                self.io_command(index, session, queue, &entry, payload);
            }
            (Event::Command(entry, payload), _) => self.admin_command(session, entry, payload),
            (Event::Admin(entry, _, true), _) => {
                session.answer(entry.command(), Status::TRANSIENT_TRANSPORT, 0);
            }
            (Event::Admin(entry, data, false), _) => self.perform(session, &entry, &data),
        }
    }

    fn io_command(&self, index: u16, session: &mut Session, queue: Queue, entry: &SubmissionEntry, payload: u32) {
        let mut subsystem = self.inner.subsystem.borrow_mut();
        if entry.opcode() == fabrics::OPCODE {
            let status = subsystem.fabrics_on_io_queue(entry).err().unwrap_or(Status::SUCCESS);
            session.refuse();
            session.answer(entry.command(), status, 0);
            if status.is_success() {
                subsystem.lost(queue);
                session.end();
            }
            return;
        }
        if session.outstanding >= session.entries {
            // More commands than the queue has entries: there is no status for that, and no trusting this host.
            subsystem.lost(queue);
            session.refuse();
            session.end();
            return;
        }
        let checked = subsystem.parse(queue.controller, entry).and_then(|command| {
            let direction = command.operation.direction();
            let total = check_data(entry, direction, command.operation.data_bytes_max(), payload)?;
            Ok((command, total))
        });
        match checked {
            Ok((command, total)) => {
                subsystem.admit(queue.controller);
                let slot = session.admit(command, total);
                // As many as there are lanes hold frames at once, as without this.
                if self.inner.begun.get() < self.inner.config.lanes
                    && let Operation::Write { run, .. } = command.operation
                    && let Some(frames) = self.inner.backing.frames_for(run)
                {
                    session.place(slot, frames);
                }
                self.inner.begun.set(self.inner.begun.get() + 1);
                session.lanes += 1;
                let work = Work { session: SessionKey { index, generation: session.generation }, slot };
                assert!(self.inner.work.try_push(work).is_ok(), "there is room for all slots of all connections");
            }
            Err(status) => {
                session.refuse();
                session.answer(entry.command(), status, 0);
            }
        }
    }

    /// A command of an admin queue, or of a connection that is no queue yet.
    fn admin_command(&self, session: &mut Session, entry: SubmissionEntry, payload: u32) {
        let direction = self.inner.subsystem.borrow().admin_direction(&entry);
        let checked =
            |direction: Direction| check_data(&entry, direction, direction.bytes(), payload).map(|_| direction);
        match direction.and_then(checked) {
            Ok(Direction::FromHost(bytes)) => session.begin_admin(entry, bytes),
            Ok(Direction::None | Direction::ToHost(_)) => {
                session.refuse();
                self.perform(session, &entry, &[]);
            }
            Err(status) => {
                session.refuse();
                session.answer(entry.command(), status, 0);
            }
        }
    }

    fn perform(&self, session: &mut Session, entry: &SubmissionEntry, data: &[u8]) {
        let inner = &*self.inner;
        let now = inner.handle.now();
        let id = entry.command();
        let mut subsystem = inner.subsystem.borrow_mut();
        let Phase::Running(queue) = session.phase else {
            match subsystem.connect(now, inner.config.port, entry, data) {
                Ok(connected) => {
                    let in_capsule = match connected.queue.id {
                        QueueId::ADMIN => session.params.in_capsule_max,
                        _ => subsystem.config().in_capsule_bytes,
                    };
                    session.run(connected.queue, connected.entries, connected.flow_control, in_capsule);
                    session.answer(id, Status::SUCCESS, u64::from(connected.controller.0));
                }
                Err(refused) => session.answer(id, refused.status, refused.result),
            }
            return;
        };
        match subsystem.admin(now, queue.controller, entry, data) {
            Ok(Answer::Held) => {}
            Ok(Answer::Done(reply)) if reply.data.is_empty() => session.answer(id, Status::SUCCESS, reply.result),
            Ok(Answer::Done(reply)) => session.answer_data(id, reply.data, reply.result),
            Err(status) => session.answer(id, status, 0),
        }
    }

    async fn run_lane(self) {
        let inner = &*self.inner;
        loop {
            let Work { session, slot } = inner.work.next().await;
            let (command, total, queue) = self.begin(session, slot);
            let deadline = inner.handle.now() + inner.config.command_deadline;
            let host = CommandData::new(&self, session, slot, total);
            let size = match command.namespace {
                NamespaceId::ALL => Some(BlockCount(0)),
                id => inner.subsystem.borrow().array().namespace(id).map(|namespace| namespace.blocks),
            };
            let done = match (host.placed().await, size) {
                (Err(_), _) => Err(None),
                (Ok(()), Some(size)) => execute(&inner.handle, &inner.backing, &command, size, deadline, &host).await,
                (Ok(()), None) => Err(Some(Status::INVALID_NAMESPACE)),
            };
            drop(host);
            self.finish(session, slot, done);
            inner.begun.set(inner.begun.get() - 1);
            let status = match done {
                Ok(()) => Status::SUCCESS,
                Err(status) => status.unwrap_or(Status::DATA_TRANSFER_ERROR),
            };
            inner.subsystem.borrow_mut().finish(queue, &command, status);
            self.count(|counters| counters.commands += 1);
            self.perform_actions();
        }
    }

    fn begin(&self, key: SessionKey, slot: u16) -> (IoCommand, u32, Queue) {
        let mut sessions = self.inner.sessions.borrow_mut();
        let session = sessions[usize::from(key.index)].as_mut().expect("a connection waits for its lanes");
        let slot = session.slot(slot);
        let queue = slot.queue.expect("I/O commands have a queue");
        (slot.io.expect("lanes have I/O commands"), slot.total, queue)
    }

    /// Answers a command that has ended, and lets its slot go.
    fn finish(&self, key: SessionKey, slot: u16, done: Result<(), Option<Status>>) {
        let mut sessions = self.inner.sessions.borrow_mut();
        let Some(session) = sessions[usize::from(key.index)].as_mut() else { return };
        session.lanes -= 1;
        let running = matches!(session.phase, Phase::Running(_));
        let (id, answered, damaged) = {
            let slot = session.slot(slot);
            (slot.id, slot.answered, slot.damaged)
        };
        let status = match done {
            _ if damaged => Some(Status::TRANSIENT_TRANSPORT),
            Ok(()) => Some(Status::SUCCESS),
            Err(status) => status,
        };
        if running && !answered {
            match status {
                Some(status) => session.answer(id, status, 0),
                // Its data could not be moved, though the connection stands: nothing can be trusted here.
                None => {
                    self.lost(session);
                    session.end();
                }
            }
        }
        session.free_slot(slot);
        self.notice(key.index, session);
        self.forget(&mut sessions, key.index);
    }

    /// Ends what takes too long, and has the core look at its clocks.
    async fn run_watch(self) {
        let inner = &*self.inner;
        let interval = (inner.config.patience / 4).clamp(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let seen = inner.opened.generation();
            if self.open_connections() == 0 {
                inner.opened.changed_since(seen).await;
            }
            inner.handle.sleep(interval).await;
            let now = inner.handle.now();
            inner.subsystem.borrow_mut().tick(now);
            self.perform_actions();
            let mut sessions = inner.sessions.borrow_mut();
            for index in 0..inner.config.connections {
                let Some(session) = &mut sessions[usize::from(index)] else { continue };
                if self.is_late(session, now) {
                    self.count(|counters| counters.impatient += 1);
                    self.lost(session);
                    session.close();
                    self.forget(&mut sessions, index);
                }
            }
        }
    }

    fn is_late(&self, session: &mut Session, now: Time) -> bool {
        let waited = now.since(session.progress);
        match session.phase {
            Phase::Closed => false,
            Phase::Opening | Phase::Unconnected => waited > self.inner.config.setup_timeout,
            Phase::Ending => waited > ENDING.min(self.inner.config.patience),
            Phase::Running(_) if session.has_output() || session.awaits_host() => waited > self.inner.config.patience,
            Phase::Running(_) => {
                // Idle: what comes next has all of the patience.
                session.progress = now;
                false
            }
        }
    }
}

/// Whether an entry names its data as NVMe/TCP wants it (3.3.2): what the command needs, `most` bytes at most, in the capsule or by
/// the transport. How much it is.
fn check_data(entry: &SubmissionEntry, direction: Direction, most: u32, payload: u32) -> Result<u32, Status> {
    let length = |len: u32| {
        let fits = (direction.bytes()..=most).contains(&len);
        if fits { Ok(len) } else { Err(Status::SGL_LENGTH_INVALID.with_do_not_retry()) }
    };
    match (direction, entry.sgl().parse()) {
        // Without data the descriptor says nothing.
        (Direction::None, _) => Ok(0),
        (Direction::ToHost(_), Some(Sgl::Transport { len })) => length(len),
        (Direction::FromHost(_), Some(Sgl::Transport { len })) if payload == 0 => length(len),
        (Direction::FromHost(_), Some(Sgl::InCapsule { offset: 1.., .. })) => {
            Err(Status::SGL_OFFSET_INVALID.with_do_not_retry())
        }
        (Direction::FromHost(_), Some(Sgl::InCapsule { len, .. })) if len == payload => length(len),
        (Direction::FromHost(_), Some(Sgl::InCapsule { .. })) => Err(Status::SGL_LENGTH_INVALID.with_do_not_retry()),
        (Direction::FromHost(_), Some(Sgl::Transport { .. })) => Err(Status::INVALID_FIELD.with_do_not_retry()),
        _ => Err(Status::SGL_TYPE_INVALID.with_do_not_retry()),
    }
}

impl<B: Backing> Source for TcpSource<B> {
    fn poll(&mut self) -> usize {
        let port = &self.0;
        let idle_turns = &port.inner.idle_turns;
        if port.inner.taken.get() == 0 && idle_turns.get() > 0 {
            idle_turns.set(idle_turns.get() - 1);
            return 0;
        }
        idle_turns.set(IDLE_TURNS);
        // First what lanes have left. As long as that is something, the kernel has time.
        let mut work = port.serve_noticed();
        let busy_turns = &port.inner.busy_turns;
        busy_turns.set(if work > 0 { busy_turns.get() + 1 } else { 0 });
        if work == 0 || busy_turns.get() >= BUSY_TURNS {
            busy_turns.set(0);
            work += port.poll_kernel();
            work += port.serve_noticed();
        }
        port.perform_actions();
        work
    }

    fn arm(&mut self) {
        self.0.inner.idle_turns.set(0);
    }

    fn disarm(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.inner.epoll.0.as_fd())
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
