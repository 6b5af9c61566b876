//! The inside of a fake medium: its ports, the commands in flight, and what happens to them when.
//!
//! A command moves between stages by this table, and nowhere else:
//!
//! | stage | event | next |
//! |---|---|---|
//! | `Queued` | fetched, no conflict | `Executing`; `Draining` for Preempt and Abort |
//! | `Queued` | fetched, conflict | `Done`: nothing of it was done |
//! | `Executing` | some blocks moved | `Executing` |
//! | `Executing` | all moved and its time is over | `Done` |
//! | `Draining` | the last command of the preempted hosts is done | `Done` |
//! | any but `Done` | cut: aborted, port or medium lost, power lost | `Done`; of `Executing` either nothing more or all the rest has moved |

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::virtual_time::VirtualTime;
use dyad_reactor::{Clock, Rng, SeededRng, Time};

use super::blocks::Blocks;
use super::reservations::{HostId, Reservations};
use super::{Delay, Latency};
use crate::device::{DeviceError, DeviceInfo, Io, ReservationOp, ReservationReport, SubmitError};

/// The number of logical blocks of Write Zeroes is a 16-bit field, zero meaning one.
const WRITE_ZEROES_BLOCKS_MAX: u64 = 1 << 16;

/// Names a command for as long as its medium lives.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CommandId(u64);

/// Place in [`Medium::ports`].
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct PortId(usize);

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum PortState {
    Up,
    /// Nothing is taken any more.
    Down,
}

#[derive(Debug)]
struct Port {
    host: HostId,
    state: PortState,
    memories: Vec<Memory>,
    /// Data commands in flight.
    outstanding: u16,
}

/// One block's place in memory. It holds the memory, so that nothing in flight points at memory that is gone.
#[derive(Debug)]
struct Place {
    memory: Memory,
    offset: u64,
}

#[derive(Debug)]
enum Work {
    Read { lba: Lba, places: Vec<Place> },
    Write { lba: Lba, places: Vec<Place>, fua: bool },
    WriteZeroes { lba: Lba, blocks: u64 },
    Flush,
    Reserve(ReservationOp),
    Report,
}

impl Work {
    /// Blocks it moves.
    fn blocks(&self) -> u64 {
        match self {
            Self::Read { places, .. } | Self::Write { places, .. } => places.len() as u64,
            Self::WriteZeroes { blocks, .. } => *blocks,
            Self::Flush | Self::Reserve(_) | Self::Report => 0,
        }
    }

    /// Of the write group: only with access.
    const fn writes(&self) -> bool {
        match self {
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Flush => true,
            Self::Read { .. } | Self::Reserve(_) | Self::Report => false,
        }
    }

    /// In an I/O queue of the port, not in its admin queue.
    const fn queued(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::WriteZeroes { .. } | Self::Flush => true,
            Self::Reserve(_) | Self::Report => false,
        }
    }
}

#[derive(Debug)]
enum Stage {
    Queued,
    /// Blocks that have not moved yet, as offsets from the command's first; taken from the end.
    Executing {
        left: Vec<u64>,
    },
    Draining {
        victims: Vec<CommandId>,
    },
    Done,
}

#[derive(Debug)]
struct Command {
    port: PortId,
    work: Work,
    stage: Stage,
    /// When it ends, if nothing else happens.
    ends: Time,
    /// Only the newest appointment of a command counts.
    appointment: u32,
    outcome: Result<(), DeviceError>,
    report: Option<ReservationReport>,
    waker: Option<Waker>,
    /// Nobody waits for it: it is forgotten when it is done.
    abandoned: bool,
}

#[derive(Debug)]
pub(super) struct Medium {
    me: Weak<RefCell<Self>>,
    info: DeviceInfo,
    time: VirtualTime,
    rng: SeededRng,
    pub(super) latency: Latency,
    pub(super) delay: Option<Delay>,
    pub(super) blocks: Blocks,
    reservations: Reservations,
    ports: Vec<Port>,
    /// Ordered: what is drawn at random must not depend on the process.
    commands: BTreeMap<CommandId, Command>,
    next: CommandId,
    failed: bool,
    /// Writes by host, that were let through while another host could write, too.
    shared_writes: BTreeMap<HostId, u64>,
}

impl Medium {
    pub(super) fn new(info: DeviceInfo, time: VirtualTime, seed: u64) -> Rc<RefCell<Self>> {
        Rc::new_cyclic(|me| {
            RefCell::new(Self {
                me: me.clone(),
                info,
                time,
                rng: SeededRng::new(seed),
                latency: Latency::default(),
                delay: None,
                blocks: Blocks::default(),
                reservations: Reservations::new(),
                ports: Vec::new(),
                commands: BTreeMap::new(),
                next: CommandId(0),
                failed: false,
                shared_writes: BTreeMap::new(),
            })
        })
    }

    pub(super) const fn info(&self) -> DeviceInfo {
        self.info
    }

    pub(super) fn may_write(&self, host: &HostId) -> bool {
        self.reservations.may_write(host)
    }

    pub(super) fn shared_writes(&self, host: &HostId) -> u64 {
        self.shared_writes.get(host).copied().unwrap_or(0)
    }

    // What is done to it.

    /// The host's controller comes up anew: a reset ends what it had outstanding.
    pub(super) fn attach(&mut self, host: HostId) -> PortId {
        for port in (0..self.ports.len()).map(PortId) {
            if self.port(port).host == host {
                self.detach(port, DeviceError::Aborted);
            }
        }
        self.ports.push(Port { host, state: PortState::Up, memories: Vec::new(), outstanding: 0 });
        PortId(self.ports.len() - 1)
    }

    /// The port takes nothing any more and nothing that it took is still in flight.
    pub(super) fn detach(&mut self, port: PortId, why: DeviceError) {
        self.port_mut(port).state = PortState::Down;
        self.port_mut(port).memories.clear();
        for id in self.in_flight(port) {
            self.cut(id, why);
        }
    }

    /// The controller is reset, and works on.
    pub(super) fn reset(&mut self, port: PortId) {
        for id in self.in_flight(port) {
            self.cut(id, DeviceError::Aborted);
        }
    }

    /// The director behind the port died. What the device had fetched goes on; the rest it will never see.
    pub(super) fn kill(&mut self, port: PortId) {
        self.port_mut(port).state = PortState::Down;
        for id in self.in_flight(port) {
            if matches!(self.command(id).stage, Stage::Queued) && self.rng.one_in(2) {
                self.cut(id, DeviceError::Gone);
            }
        }
    }

    pub(super) fn fail(&mut self) {
        self.failed = true;
        for port in (0..self.ports.len()).map(PortId) {
            self.detach(port, DeviceError::Gone);
        }
    }

    pub(super) fn power_loss(&mut self) {
        for port in (0..self.ports.len()).map(PortId) {
            for id in self.in_flight(port) {
                self.cut(id, DeviceError::Aborted);
            }
        }
        self.blocks.power_loss(&mut self.rng);
    }

    pub(super) fn forget_reservations(&mut self) {
        self.reservations = Reservations::new();
    }

    // What a port asks for.

    pub(super) fn map(&mut self, port: PortId, memory: &Memory) -> Result<(), SubmitError> {
        self.up(port)?;
        self.port_mut(port).memories.push(memory.clone());
        Ok(())
    }

    pub(super) fn submit(&mut self, port: PortId, io: &Io<'_>) -> Result<CommandId, SubmitError> {
        self.up(port)?;
        let work = self.parse(port, io)?;
        if self.port(port).outstanding == self.info.queue_depth {
            return Err(SubmitError::Full);
        }
        Ok(self.start(port, work))
    }

    pub(super) fn reserve(&mut self, port: PortId, op: ReservationOp) -> Result<CommandId, DeviceError> {
        self.start_reservation(port, Work::Reserve(op))
    }

    pub(super) fn report(&mut self, port: PortId) -> Result<CommandId, DeviceError> {
        self.start_reservation(port, Work::Report)
    }

    /// The outcome, once; a report if that was asked for.
    pub(super) fn poll(
        &mut self,
        id: CommandId,
        cx: &mut Context<'_>,
    ) -> Poll<(Result<(), DeviceError>, Option<ReservationReport>)> {
        let command = self.command_mut(id);
        if !matches!(command.stage, Stage::Done) {
            command.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let command = self.commands.remove(&id).expect("it was just there");
        Poll::Ready((command.outcome, command.report))
    }

    pub(super) fn abandon(&mut self, id: CommandId) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        command.abandoned = true;
        command.waker = None;
        if matches!(command.stage, Stage::Done) {
            self.commands.remove(&id);
        }
    }

    // The way of a command.

    fn up(&self, port: PortId) -> Result<(), SubmitError> {
        match self.port(port).state {
            PortState::Up if !self.failed => Ok(()),
            PortState::Up | PortState::Down => Err(SubmitError::Gone),
        }
    }

    fn parse(&self, port: PortId, io: &Io<'_>) -> Result<Work, SubmitError> {
        let fits = |lba: Lba, blocks: u64, most: u64| {
            let inside = lba.0.checked_add(blocks).is_some_and(|end| end <= self.info.blocks.0);
            if inside && (1..=most).contains(&blocks) { Ok(()) } else { Err(SubmitError::Invalid) }
        };
        let most = self.info.transfer_blocks_max.0;
        match *io {
            Io::Read { lba, segments } => {
                let places = self.places(port, segments, true)?;
                fits(lba, places.len() as u64, most).map(|()| Work::Read { lba, places })
            }
            Io::Write { lba, segments, fua } => {
                let places = self.places(port, segments, false)?;
                fits(lba, places.len() as u64, most).map(|()| Work::Write { lba, places, fua })
            }
            Io::WriteZeroes { lba, blocks: BlockCount(blocks) } => {
                fits(lba, blocks, WRITE_ZEROES_BLOCKS_MAX).map(|()| Work::WriteZeroes { lba, blocks })
            }
            Io::Flush => Ok(Work::Flush),
        }
    }

    fn places(&self, port: PortId, segments: &[Segment], written: bool) -> Result<Vec<Place>, SubmitError> {
        let block = BLOCK_BYTES as u64;
        let mut places = Vec::new();
        for segment in segments {
            let memory =
                self.port(port).memories.iter().find(|m| m.id() == segment.memory).ok_or(SubmitError::Invalid)?;
            let (offset, len) = (segment.offset, u64::from(segment.len));
            let inside = offset.checked_add(len).is_some_and(|end| end <= memory.len());
            let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0;
            if !inside || !aligned || (written && !memory.writable()) {
                return Err(SubmitError::Invalid);
            }
            places.extend((0..len / block).map(|i| Place { memory: memory.clone(), offset: offset + i * block }));
        }
        Ok(places)
    }

    fn start_reservation(&mut self, port: PortId, work: Work) -> Result<CommandId, DeviceError> {
        self.up(port).map_err(|_| DeviceError::Gone)?;
        if self.info.reservations { Ok(self.start(port, work)) } else { Err(DeviceError::Rejected) }
    }

    fn start(&mut self, port: PortId, work: Work) -> CommandId {
        let id = self.next;
        self.next = CommandId(id.0 + 1);
        if work.queued() {
            self.port_mut(port).outstanding += 1;
        }
        let takes = self.takes();
        let command = Command {
            port,
            work,
            stage: Stage::Queued,
            ends: self.time.now() + takes,
            appointment: 0,
            outcome: Ok(()),
            report: None,
            waker: None,
            abandoned: false,
        };
        self.commands.insert(id, command);
        let fetched = self.some_of(takes / 2);
        self.appoint(id, fetched);
        id
    }

    /// Comes back to the command after `delay`.
    fn appoint(&mut self, id: CommandId, delay: Duration) {
        let me = self.me.clone();
        let command = self.command_mut(id);
        command.appointment += 1;
        let appointment = command.appointment;
        self.time.schedule_in(delay, move || {
            let Some(medium) = me.upgrade() else { return };
            let mut medium = medium.borrow_mut();
            if medium.commands.get(&id).is_some_and(|c| c.appointment == appointment) {
                medium.step(id);
            }
        });
    }

    fn step(&mut self, id: CommandId) {
        match &self.command(id).stage {
            Stage::Queued => self.fetch(id),
            Stage::Executing { left } if left.is_empty() => return self.done(id),
            Stage::Executing { left } => {
                let (count, over) = (left.len() as u64, self.time.now() >= self.command(id).ends);
                let some = if over { count } else { 1 + self.rng.below(count) };
                self.move_blocks(id, some);
            }
            Stage::Draining { .. } | Stage::Done => return,
        }
        let command = self.command(id);
        if let Stage::Executing { left } = &command.stage {
            let remaining = command.ends.since(self.time.now());
            let delay = if left.is_empty() { remaining } else { self.some_of(remaining) };
            self.appoint(id, delay);
        }
    }

    fn fetch(&mut self, id: CommandId) {
        let command = self.command(id);
        let host = self.port(command.port).host;
        if command.work.writes() && !self.reservations.may_write(&host) {
            self.command_mut(id).outcome = Err(DeviceError::ReservationConflict);
            return self.done(id);
        }
        if matches!(command.work, Work::Write { .. } | Work::WriteZeroes { .. })
            && !self.reservations.writes_alone(&host)
        {
            *self.shared_writes.entry(host).or_default() += 1;
        }
        match self.command(id).work {
            Work::Flush => self.blocks.flush(),
            Work::Report => {
                let report = self.reservations.report();
                self.command_mut(id).report = Some(report);
            }
            Work::Reserve(op) => {
                let outcome = self.reservations.apply(&host, op);
                self.command_mut(id).outcome = outcome;
                if let (Ok(()), ReservationOp::PreemptAndAbort { .. }) = (outcome, op) {
                    return self.drain(id);
                }
            }
            Work::Read { .. } | Work::Write { .. } | Work::WriteZeroes { .. } => {
                if let Some(Delay { one_in, by }) = self.delay
                    && self.rng.one_in(one_in)
                {
                    let ends = self.time.now() + by;
                    self.command_mut(id).ends = ends;
                }
            }
        }
        // In any order, but cheaply: from a random one on, around.
        let count = self.command(id).work.blocks();
        let first = if count > 0 { self.rng.below(count) } else { 0 };
        let left = (0..count).map(|i| (first + i) % count).collect();
        self.command_mut(id).stage = Stage::Executing { left };
    }

    /// Moves `count` of the blocks that are left, each of them atomically.
    fn move_blocks(&mut self, id: CommandId, count: u64) {
        let command = self.commands.get_mut(&id).expect("a command in flight");
        let Stage::Executing { left } = &mut command.stage else { unreachable!("only fetched commands move blocks") };
        for _ in 0..count {
            let i = left.pop().expect("no more than are left");
            let at = usize::try_from(i).expect("as many as places in a vector");
            let moved = match &command.work {
                Work::Read { lba, places } => self.blocks.read(Lba(lba.0 + i)).map(|block| {
                    let to = &places[at];
                    to.memory.write(to.offset, block).expect("checked when it was submitted");
                }),
                Work::Write { lba, places, fua } => {
                    let from = &places[at];
                    let mut block = [0; BLOCK_BYTES];
                    from.memory.read(from.offset, &mut block).expect("checked when it was submitted");
                    let through = *fua || !self.info.volatile_cache;
                    self.blocks.write(Lba(lba.0 + i), Some(&block), through, &mut self.rng)
                }
                Work::WriteZeroes { lba, .. } => {
                    self.blocks.write(Lba(lba.0 + i), None, !self.info.volatile_cache, &mut self.rng)
                }
                Work::Flush | Work::Reserve(_) | Work::Report => unreachable!("they move no blocks"),
            };
            if moved.is_err() {
                command.outcome = Err(DeviceError::Media);
            }
        }
    }

    /// A Preempt and Abort has changed the reservation. The commands of hosts without access that passed their check before either end
    /// now or are waited for; new ones will not pass. So it also waits for what an earlier Preempt and Abort, whose issuer died, left behind.
    fn drain(&mut self, id: CommandId) {
        let fenced = |c: &Command| c.work.writes() && !self.reservations.may_write(&self.port(c.port).host);
        let executing = self.commands.iter().filter(|(_, c)| matches!(c.stage, Stage::Executing { .. }) && fenced(c));
        let victims: Vec<CommandId> = executing.map(|(&victim, _)| victim).collect();
        self.command_mut(id).stage = Stage::Draining { victims: victims.clone() };
        for victim in victims {
            if self.rng.one_in(2) {
                self.cut(victim, DeviceError::Aborted);
            }
        }
        self.end_drains();
    }

    fn end_drains(&mut self) {
        let done = |id: &CommandId| self.commands.get(id).is_none_or(|c| matches!(c.stage, Stage::Done));
        let drained = self.commands.iter().find_map(|(id, c)| match &c.stage {
            Stage::Draining { victims } if victims.iter().all(done) => Some(*id),
            Stage::Draining { .. } | Stage::Queued | Stage::Executing { .. } | Stage::Done => None,
        });
        if let Some(id) = drained {
            self.done(id); // and that looks for the next
        }
    }

    /// Ends a command from outside: of what was being moved, the rest is moved now or never.
    fn cut(&mut self, id: CommandId, why: DeviceError) {
        match self.commands.get(&id).map(|c| &c.stage) {
            // The end of another command may have ended it meanwhile.
            None | Some(Stage::Done) => return,
            Some(Stage::Executing { left }) => {
                let rest = left.len() as u64;
                if self.rng.one_in(2) {
                    self.move_blocks(id, rest);
                }
            }
            Some(Stage::Queued | Stage::Draining { .. }) => {}
        }
        self.command_mut(id).outcome = Err(why);
        self.done(id);
    }

    fn done(&mut self, id: CommandId) {
        let command = self.command_mut(id);
        assert!(!matches!(command.stage, Stage::Done), "a command completes exactly once");
        command.stage = Stage::Done;
        let (port, queued, waker, abandoned) =
            (command.port, command.work.queued(), command.waker.take(), command.abandoned);
        if queued {
            self.port_mut(port).outstanding -= 1;
        }
        if abandoned {
            self.commands.remove(&id);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        self.end_drains();
    }

    // Small things.

    fn in_flight(&self, port: PortId) -> Vec<CommandId> {
        let of_port = self.commands.iter().filter(|(_, c)| c.port == port && !matches!(c.stage, Stage::Done));
        of_port.map(|(&id, _)| id).collect()
    }

    /// What a command takes.
    fn takes(&mut self) -> Duration {
        self.latency.base + self.some_of(self.latency.jitter)
    }

    /// Up to `most`, at random.
    fn some_of(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(if most > 0 { self.rng.below(most) } else { 0 })
    }

    fn port(&self, port: PortId) -> &Port {
        &self.ports[port.0]
    }

    fn port_mut(&mut self, port: PortId) -> &mut Port {
        &mut self.ports[port.0]
    }

    fn command(&self, id: CommandId) -> &Command {
        self.commands.get(&id).expect("a command that nobody took the outcome of")
    }

    fn command_mut(&mut self, id: CommandId) -> &mut Command {
        self.commands.get_mut(&id).expect("a command that nobody took the outcome of")
    }
}
