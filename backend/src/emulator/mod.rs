//! An NVMe subsystem as a state machine: the devices of the shelf, of tests and of the simulator.
//!
//! **Sans-I/O.** A [`Subsystem`] reads no clock and waits for nothing. Its owner hands in register accesses and DMA
//! mappings, and calls [`Subsystem::step`] with the time; commands are read from, and data and completions written to,
//! the memory that was mapped. [`Subsystem::next_event`] says when to come again if nothing else happens. Chance comes
//! from the seed: the same calls give the same run.
//!
//! **What it is.** One or more controllers (ports), each with its own host, share all namespaces. Commands are
//! *fetched* (and checked against the reservation), then *executed*, which moves all data at once, then *completed*.
//! Without a latency model these happen in one step; with one, or with a delay fault, a command waits between fetch and
//! execution, where aborts, resets, preemptions and power loss find it. Whatever ends a fetched write early leaves any
//! subset of its blocks written, each whole.
//!
//! **Hostile hosts** get statuses, fatal controllers, or silence; never a panic, an unbounded loop or memory of somebody else.
//!
//! Sources: NVMe Base 2.0, NVM Command Set 1.0, PCIe Transport 1.0; sections stand where they are used.

mod admin;
mod controller;
mod dma;
mod event;
mod fault;
mod function;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod media;
mod namespace;
mod queue;
mod reservation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::command::rw;
use dyad_nvme::log::ReservationNotification;
use dyad_nvme::opcode::{admin as admin_opcode, nvm};
use dyad_nvme::register::{self, Configuration, ShutdownRequest};
use dyad_nvme::reservation::{
    AcquireAction, AcquireData, RegisterAction, RegisterData, ReleaseAction, ReservationType,
};
use dyad_nvme::types::{CommandId, Lba, NamespaceId, QueueId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::{SeededRng, Time};

use self::admin::{Reply, Surroundings};
use self::controller::{Configured, Controller, State};
use self::namespace::Namespace;
use self::reservation::{Access, Effects, Host};

pub use self::controller::{BAR_BYTES, DOORBELL_PAGE, MSIX_CONTROL, MSIX_PAGE};
pub use self::fault::{Delay, Latency};
pub use self::function::EmulatedFunction;
pub use self::media::{Media, MediaError, MemoryMedia, NullMedia};
pub use self::namespace::{BadBlock, BlockFault, BlockFormat, NamespaceConfig};

/// MDTS: a command moves at most `4096 << TRANSFER_LOG2` bytes.
pub const TRANSFER_LOG2: u8 = 8;

/// Commands fetched from one queue before the next has its turn.
const BURST: usize = 64;

/// Commands that one controller has fetched and not completed, at most.
const IN_FLIGHT_MAX: u32 = 4096;

/// What a subsystem is made with.
#[derive(Debug, Clone)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: String,
    /// Serial number: at most 20 ASCII characters.
    pub serial: String,
    /// Controllers, 1 to 64.
    pub ports: usize,
    /// I/O queue pairs per controller, 1 to 511.
    pub io_queues: u16,
    /// Entries of the largest queue, 2 to 32768.
    pub queue_entries: u16,
    /// Time between CC.EN and CSTS.RDY; below the 10 s that CAP.TO says.
    pub ready_after: Duration,
}

impl Default for SubsystemConfig {
    fn default() -> Self {
        Self {
            nqn: "nqn.2026-01.org.dyad:device".to_owned(),
            serial: "DYAD0".to_owned(),
            ports: 2,
            io_queues: 16,
            queue_entries: 1024,
            ready_after: Duration::ZERO,
        }
    }
}

/// A command between fetch and completion.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    port: usize,
    host: Host,
    queue: QueueId,
    entry: SubmissionEntry,
}

/// Controllers and the namespaces that they share.
pub struct Subsystem {
    config: SubsystemConfig,
    controllers: Vec<Controller>,
    namespaces: Vec<Namespace>,
    rng: SeededRng,
    faults: fault::Faults,
    /// By the time of execution, then by order of fetching.
    waiting: BTreeMap<(Time, u64), Fetched>,
    /// Commands that never complete by themselves.
    stuck: Vec<Fetched>,
    fetched: u64,
}

impl std::fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subsystem")
            .field("config", &self.config)
            .field("states", &self.controllers.iter().map(|c| c.state).collect::<Vec<_>>())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

/// The host has switched the volatile write cache off (Base 5.27.1.5): whatever changes blocks is as if it had FUA.
#[cold]
fn written_through(entry: SubmissionEntry) -> SubmissionEntry {
    match entry.opcode() {
        nvm::WRITE | nvm::WRITE_ZEROES => entry.with_dword(12, entry.dword(12) | rw::FORCE_UNIT_ACCESS),
        _ => entry,
    }
}

/// Making it, and the side of the hosts: registers and memory.
impl Subsystem {
    /// A subsystem without namespaces. `rng` draws latencies and faults.
    ///
    /// # Panics
    /// If the configuration is out of its ranges.
    #[must_use]
    pub fn new(config: SubsystemConfig, rng: SeededRng) -> Self {
        assert!((1..=64).contains(&config.ports), "1 to 64 ports");
        assert!((1..=511).contains(&config.io_queues), "1 to 511 I/O queues: their doorbells are one page");
        assert!((2..=32768).contains(&config.queue_entries), "queues of 2 to 32768 entries");
        let controllers = (0..config.ports)
            .map(|port| Controller::new(port, config.io_queues, config.queue_entries, config.ready_after))
            .collect();
        Self {
            config,
            controllers,
            namespaces: Vec::new(),
            rng,
            faults: fault::Faults::default(),
            waiting: BTreeMap::new(),
            stuck: Vec::new(),
            fetched: 0,
        }
    }

    /// Adds a namespace, on all ports, on `media` of [`NamespaceConfig::media_bytes`]. Done before hosts come.
    pub fn add_namespace(&mut self, config: NamespaceConfig, media: Box<dyn Media>) -> NamespaceId {
        let id = NamespaceId(u32::try_from(self.namespaces.len() + 1).expect("fewer than 2^32 namespaces"));
        self.namespaces.push(Namespace::new(id, config, media));
        id
    }

    /// Number of ports.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.controllers.len()
    }

    /// Reads a register of a port. All ones if the port is off.
    #[must_use]
    pub fn read32(&self, port: usize, offset: u32) -> u32 {
        self.controllers[port].read32(offset)
    }

    /// Writes a register of a port, or a doorbell.
    pub fn write32(&mut self, port: usize, offset: u32, value: u32, now: Time) {
        let controller = &mut self.controllers[port];
        if u64::from(offset) >= DOORBELL_PAGE {
            let _ = controller.bar.store_u32(u64::from(offset), value);
        } else if offset == register::CC {
            match controller.configure(Configuration(value), now) {
                Configured::Nothing => {}
                Configured::Reset => self.after_reset(port),
                Configured::ShutDown(ShutdownRequest::Normal) => {
                    self.end_fetched(|f| f.port == port, None);
                    for namespace in &mut self.namespaces {
                        // Media that fails now has nobody to tell.
                        let _ = namespace.flush();
                    }
                }
                Configured::ShutDown(_) => {
                    self.end_fetched(|f| f.port == port, None);
                }
            }
        } else {
            controller.write32(offset, value);
        }
    }

    /// BAR 0 of a port from [`DOORBELL_PAGE`] on, [`BAR_BYTES`] with the registers that are not in it: to ring a doorbell is to store into it.
    #[must_use]
    pub fn bar(&self, port: usize) -> Memory {
        self.controllers[port].bar.clone()
    }

    /// Puts memory of [`BAR_BYTES`] that others can map in the place of a port's BAR 0. Done before hosts come.
    ///
    /// # Panics
    /// If it is shorter.
    pub fn share_bar(&mut self, port: usize, bar: Memory) {
        assert!(bar.len() >= BAR_BYTES, "BAR 0 has {BAR_BYTES} bytes");
        bar.store_u32(MSIX_CONTROL, 1).expect("inside the BAR");
        self.controllers[port].bar = bar;
    }

    /// Lets a port reach `len` bytes of `memory` from `offset` on at bus address `start`. False if that cannot be.
    #[must_use]
    pub fn map_dma(&mut self, port: usize, start: u64, len: u64, memory: &Memory, offset: u64) -> bool {
        self.controllers[port].dma.map(start, len, memory.clone(), offset)
    }

    /// Takes memory away from a port. False if none was mapped there. A controller whose queues lie in it becomes fatal.
    pub fn unmap_dma(&mut self, port: usize, start: u64, len: u64) -> bool {
        self.controllers[port].unmap(start, len)
    }

    /// Mappings that a port has.
    #[must_use]
    pub fn mappings(&self, port: usize) -> usize {
        self.controllers[port].dma.len()
    }

    /// Function level reset of a port. Its mappings stay.
    pub fn reset(&mut self, port: usize) {
        if self.controllers[port].state != State::Off {
            self.controllers[port].reset(State::Disabled);
            self.after_reset(port);
        }
    }

    /// Whoever drove a port is gone: it is reset, and reaches no memory any more.
    pub fn disconnect(&mut self, port: usize) {
        self.reset(port);
        self.controllers[port].dma.clear();
    }

    /// Whether vector 0 of the port is to be signalled, once.
    pub fn take_interrupt(&mut self, port: usize) -> bool {
        self.controllers[port].take_interrupt()
    }

    fn after_reset(&mut self, port: usize) {
        self.end_fetched(|f| f.port == port, None);
        self.namespaces.iter_mut().for_each(|n| n.reservations.forget_unidentified(port));
    }
}

/// Working.
impl Subsystem {
    /// Does everything that can be done at `now`; returns how many commands moved.
    pub fn step(&mut self, now: Time) -> usize {
        let mut work = self.run_due(now);
        for port in 0..self.controllers.len() {
            if self.controllers[port].ready(now) {
                work += self.serve(port, now);
            }
        }
        work
    }

    /// When something happens by itself, if nobody comes before.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        let waiting = self.waiting.first_key_value().map(|((at, _), _)| *at);
        self.controllers.iter().filter_map(Controller::next_event).chain(waiting).min()
    }

    /// Asks all hosts to ring from now on (shadow doorbells: `EventIdx`). The owner must [`step`](Self::step) once more
    /// before it sleeps, because a host may have looked just before.
    pub fn ask_for_doorbells(&self) {
        self.controllers.iter().for_each(Controller::ask_for_doorbells);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn run_due(&mut self, now: Time) -> usize {
        let mut work = 0;
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let fetched = first.remove();
            self.execute(&fetched);
            work += 1;
        }
        work
    }

    fn serve(&mut self, port: usize, now: Time) -> usize {
        let mut work = self.controllers[port].post_backlog();
        for queue in 0..self.controllers[port].queues() {
            if self.controllers[port].clogged(queue) {
                continue;
            }
            let mut burst = 0;
            while burst < BURST && self.controllers[port].in_flight < IN_FLIGHT_MAX {
                let Some((id, entry)) = self.controllers[port].fetch(queue) else { break };
                burst += 1;
                // While this command is executed, the next one's block may come closer.
                if let Some((namespace, lba)) = self.controllers[port].peek(queue)
                    && let Some(namespace) =
                        usize::try_from(namespace.wrapping_sub(1)).ok().and_then(|n| self.namespaces.get(n))
                {
                    namespace.prefetch(lba);
                }
                if id == QueueId::ADMIN {
                    self.admin(port, &entry);
                } else {
                    self.start(port, id, entry, now);
                }
            }
            if burst > 0 {
                self.controllers[port].watch(queue);
                work += burst;
            }
        }
        let controller = &mut self.controllers[port];
        while let Some((command, event)) = controller.events.next() {
            controller.complete(QueueId::ADMIN, command, Status::SUCCESS, u64::from(event.to_result()));
            work += 1;
        }
        work
    }

    fn admin(&mut self, port: usize, entry: &SubmissionEntry) {
        let result = match entry.opcode() {
            admin_opcode::ABORT => Ok(Reply::Done(self.abort(port, entry))),
            admin_opcode::DELETE_SQ => {
                let queue = QueueId(u16::try_from(entry.dword(10) & 0xffff).expect("16 bits"));
                if queue != QueueId::ADMIN && self.controllers[port].has_sq(queue) {
                    self.end_fetched(|f| f.port == port && f.queue == queue, Some(Status::ABORTED_SQ_DELETION));
                }
                self.controllers[port].delete_sq(entry).map(|()| Reply::Done(0))
            }
            admin_opcode::FORMAT_NVM => self.format(port, entry).map(|()| Reply::Done(0)),
            _ => {
                let controllers = u16::try_from(self.controllers.len()).expect("few ports");
                let mut around = Surroundings { config: &self.config, controllers, namespaces: &mut self.namespaces };
                admin::execute(&mut self.controllers[port], &mut around, entry)
            }
        };
        let controller = &mut self.controllers[port];
        match result {
            Ok(Reply::Held) => {}
            Ok(Reply::Done(result)) => {
                controller.complete(QueueId::ADMIN, entry.command(), Status::SUCCESS, u64::from(result));
            }
            Err(status) => {
                controller.log_error(QueueId::ADMIN, entry.command(), status, Lba(0), entry.namespace());
                controller.complete(QueueId::ADMIN, entry.command(), status, 0);
            }
        }
    }

    /// Abort (Base 5.1): bit 0 of the result is set if the command was not aborted.
    fn abort(&mut self, port: usize, entry: &SubmissionEntry) -> u32 {
        let [q0, q1, c0, c1] = entry.dword(10).to_le_bytes();
        let (queue, command) = (QueueId(u16::from_le_bytes([q0, q1])), CommandId(u16::from_le_bytes([c0, c1])));
        if self.faults.deaf {
            return 1;
        }
        if queue == QueueId::ADMIN {
            let found = self.controllers[port].events.abort(command);
            if found {
                self.controllers[port].complete(QueueId::ADMIN, command, Status::ABORT_REQUESTED, 0);
            }
            return u32::from(!found);
        }
        let ended = self.end_fetched(
            |f| f.port == port && f.queue == queue && f.entry.command() == command,
            Some(Status::ABORT_REQUESTED),
        );
        u32::from(ended == 0)
    }

    /// Format NVM (Base 5.14).
    fn format(&mut self, port: usize, entry: &SubmissionEntry) -> Result<(), Status> {
        let [settings, more, ..] = entry.dword(10).to_le_bytes();
        let protection = settings >> 5;
        let format = match (settings & 0xf, protection, more & 1) {
            (0, 0, _) => BlockFormat::Bare,
            (1, 0, _) => BlockFormat::Metadata,
            (1, 1, 1) => BlockFormat::Protected,
            _ => return Err(Status::INVALID_FORMAT),
        };
        // Metadata at the end of the data (bit 4) and secure erase (11:9) are not there; cryptographic erase neither.
        if settings & 0x10 != 0 || more & 0xe > 2 {
            return Err(Status::INVALID_FORMAT);
        }
        let host = self.controllers[port].host();
        let id = entry.namespace();
        if id != NamespaceId::ALL && !self.namespaces.iter().any(|n| n.id == id) {
            return Err(Status::INVALID_NAMESPACE.with_do_not_retry());
        }
        let chosen = |n: &Namespace| id == NamespaceId::ALL || n.id == id;
        if !self.namespaces.iter().filter(|n| chosen(n)).all(|n| n.reservations.permits(host, Access::Write)) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        self.end_fetched(|f| id == NamespaceId::ALL || f.entry.namespace() == id, Some(Status::FORMAT_IN_PROGRESS));
        for namespace in self.namespaces.iter_mut().filter(|n| id == NamespaceId::ALL || n.id == id) {
            namespace.format(format)?;
            for controller in self.controllers.iter_mut().filter(|c| c.port != port) {
                controller.namespace_changed(namespace.id);
            }
        }
        Ok(())
    }

    /// A command was fetched: check it, then execute it now or later.
    #[inline]
    fn start(&mut self, port: usize, queue: QueueId, entry: SubmissionEntry, now: Time) {
        let controller = &self.controllers[port];
        let entry = if controller.features.write_cache == 0 { written_through(entry) } else { entry };
        let fetched = Fetched { port, host: controller.host(), queue, entry };
        if let Err(status) = self.check(&fetched) {
            return self.finish(&fetched, Err(status));
        }
        if self.faults.immediate() || Access::of(entry.opcode()) == Access::Always {
            return self.execute(&fetched);
        }
        if self.faults.swallow() {
            return self.stuck.push(fetched);
        }
        let at = self.faults.execution(&entry, now, &mut self.rng);
        self.fetched += 1;
        self.waiting.insert((at, self.fetched), fetched);
    }

    fn namespace(&mut self, id: NamespaceId) -> Option<&mut Namespace> {
        let index = usize::try_from(id.0).ok()?.checked_sub(1)?;
        self.namespaces.get_mut(index)
    }

    /// What is refused before anything is done.
    #[inline]
    fn check(&mut self, Fetched { host, entry, .. }: &Fetched) -> Result<(), Status> {
        let opcode = entry.opcode();
        let known = matches!(
            opcode,
            nvm::FLUSH
                | nvm::WRITE
                | nvm::READ
                | nvm::COMPARE
                | nvm::WRITE_ZEROES
                | nvm::DATASET_MANAGEMENT
                | nvm::VERIFY
                | nvm::RESERVATION_REGISTER
                | nvm::RESERVATION_REPORT
                | nvm::RESERVATION_ACQUIRE
                | nvm::RESERVATION_RELEASE
        );
        if !known {
            return Err(Status::INVALID_OPCODE.with_do_not_retry());
        }
        if entry.fuse() != Some(dyad_nvme::command::Fuse::Normal) {
            return Err(Status::INVALID_FIELD.with_do_not_retry());
        }
        let access = Access::of(opcode);
        if opcode == nvm::FLUSH && entry.namespace() == NamespaceId::ALL {
            let permitted = self.namespaces.iter().all(|n| n.reservations.permits(*host, access));
            return if permitted { Ok(()) } else { Err(Status::RESERVATION_CONFLICT) };
        }
        let namespace = self.namespace(entry.namespace()).ok_or(Status::INVALID_NAMESPACE.with_do_not_retry())?;
        if !namespace.reservations.permits(*host, access) {
            return Err(Status::RESERVATION_CONFLICT);
        }
        if matches!(opcode, nvm::READ | nvm::WRITE | nvm::COMPARE) && entry.block_count().0 > 1 << TRANSFER_LOG2 {
            return Err(Status::INVALID_FIELD.with_do_not_retry());
        }
        Ok(())
    }

    #[inline]
    fn execute(&mut self, fetched: &Fetched) {
        let entry = &fetched.entry;
        let result = match entry.opcode() {
            nvm::FLUSH if entry.namespace() == NamespaceId::ALL => {
                self.namespaces.iter_mut().try_for_each(Namespace::flush)
            }
            nvm::RESERVATION_REGISTER | nvm::RESERVATION_ACQUIRE | nvm::RESERVATION_RELEASE => {
                self.reservation(fetched)
            }
            nvm::RESERVATION_REPORT => self.report(fetched),
            opcode => {
                let index = usize::try_from(entry.namespace().0).expect("checked") - 1;
                let namespace = &mut self.namespaces[index];
                let dma = &self.controllers[fetched.port].dma;
                match opcode {
                    nvm::READ => namespace.read(entry, dma),
                    nvm::WRITE => namespace.write(entry, dma),
                    nvm::FLUSH => namespace.flush(),
                    nvm::COMPARE => namespace.compare(entry, dma),
                    nvm::WRITE_ZEROES => namespace.write_zeroes(entry),
                    nvm::VERIFY => namespace.verify(entry),
                    nvm::DATASET_MANAGEMENT => {
                        let mut ranges = vec![0; (usize::try_from(entry.dword(10) & 0xff).expect("a byte") + 1) * 16];
                        dma.read(entry, &mut ranges).and_then(|()| {
                            // Only Deallocate does anything; the rest of the attributes are hints.
                            if entry.dword(11) & 4 == 0 { Ok(()) } else { namespace.deallocate(&ranges) }
                        })
                    }
                    _ => Err(Status::INVALID_OPCODE),
                }
            }
        };
        self.finish(fetched, result);
    }

    #[inline]
    fn finish(&mut self, fetched: &Fetched, result: Result<(), Status>) {
        let entry = &fetched.entry;
        let controller = &mut self.controllers[fetched.port];
        let status = match result {
            Ok(()) => {
                match entry.opcode() {
                    nvm::READ => controller.reads.count(entry),
                    nvm::WRITE => controller.writes.count(entry),
                    _ => {}
                }
                Status::SUCCESS
            }
            Err(status) => {
                controller.log_error(fetched.queue, entry.command(), status, entry.lba(), entry.namespace());
                status
            }
        };
        controller.complete(fetched.queue, entry.command(), status, 0);
    }

    /// Reservation Register, Acquire and Release (Base 7.2 to 7.4).
    fn reservation(&mut self, fetched: &Fetched) -> Result<(), Status> {
        let entry = &fetched.entry;
        let [action, rtype, ..] = entry.dword(10).to_le_bytes();
        let ignore_existing = action & 1 << 3 != 0;
        let rtype = ReservationType::from_bits(rtype);
        let index = usize::try_from(entry.namespace().0).expect("checked") - 1;
        let reservations = &mut self.namespaces[index].reservations;
        let dma = &self.controllers[fetched.port].dma;
        let mut abort = false;
        let effects = match entry.opcode() {
            nvm::RESERVATION_REGISTER => {
                let mut data = [0; RegisterData::BYTES];
                dma.read(entry, &mut data)?;
                let persist = match entry.dword(10) >> 30 {
                    0 => None,
                    2 => Some(false),
                    3 => Some(true),
                    _ => return Err(Status::INVALID_FIELD),
                };
                let action = RegisterAction::from_bits(action & 7).ok_or(Status::INVALID_FIELD)?;
                reservations.register(
                    fetched.host,
                    action,
                    ignore_existing,
                    persist,
                    RegisterData::from_bytes(&data),
                )?
            }
            // IEKEY is for Register; here it is to be refused (Base 7.2, 7.4).
            _ if ignore_existing => return Err(Status::INVALID_FIELD),
            nvm::RESERVATION_ACQUIRE => {
                let mut data = [0; AcquireData::BYTES];
                dma.read(entry, &mut data)?;
                let action = AcquireAction::from_bits(action & 7).ok_or(Status::INVALID_FIELD)?;
                abort = action == AcquireAction::PreemptAndAbort;
                let rtype = rtype.ok_or(Status::INVALID_FIELD)?;
                reservations.acquire(fetched.host, action, rtype, AcquireData::from_bytes(&data))?
            }
            _ => {
                let mut key = [0; 8];
                dma.read(entry, &mut key)?;
                let action = ReleaseAction::from_bits(action & 7).ok_or(Status::INVALID_FIELD)?;
                reservations.release(fetched.host, action, rtype, u64::from_le_bytes(key))?
            }
        };
        self.namespaces[index].keep_reservations()?;
        self.tell(entry.namespace(), &effects);
        if abort {
            let namespace = entry.namespace();
            self.end_fetched(
                |f| f.entry.namespace() == namespace && effects.unregistered.contains(&f.host),
                Some(Status::ABORTED_PREEMPT),
            );
        }
        Ok(())
    }

    /// Reservation Report (Base 7.5).
    fn report(&self, fetched: &Fetched) -> Result<(), Status> {
        let entry = &fetched.entry;
        let index = usize::try_from(entry.namespace().0).expect("checked") - 1;
        let len = (u64::from(entry.dword(10)) + 1) * 4;
        if len > 4096 << TRANSFER_LOG2 {
            return Err(Status::INVALID_FIELD.with_do_not_retry());
        }
        let port_of = |host| {
            let port = self.controllers.iter().position(|c| c.state == State::Ready && c.host() == host)?;
            u16::try_from(port + 1).ok()
        };
        let mut report = self.namespaces[index].reservations.report(entry.dword(11) & 1 != 0, port_of);
        report.resize(usize::try_from(len).expect("at most one transfer"), 0);
        self.controllers[fetched.port].dma.write(entry, &report)
    }

    /// Notifies the hosts that a reservation command changed something for (Base 8.19.9).
    fn tell(&mut self, namespace: NamespaceId, effects: &Effects) {
        for (hosts, kind) in [
            (&effects.unregistered, ReservationNotification::REGISTRATION_PREEMPTED),
            (&effects.released, ReservationNotification::RESERVATION_RELEASED),
            (&effects.preempted, ReservationNotification::RESERVATION_PREEMPTED),
        ] {
            for controller in self.controllers.iter_mut().filter(|c| hosts.contains(&c.host())) {
                controller.notify(kind, namespace);
            }
        }
    }

    /// Ends commands between fetch and execution; a write among them may be done in part. With a status they complete, without they are forgotten.
    fn end_fetched(&mut self, ends: impl Fn(&Fetched) -> bool, status: Option<Status>) -> usize {
        let mut ended: Vec<Fetched> = Vec::new();
        self.waiting.retain(|_, fetched| {
            let end = ends(fetched);
            if end {
                ended.push(*fetched);
            }
            !end
        });
        self.stuck.retain(|fetched| {
            let end = ends(fetched);
            if end {
                ended.push(*fetched);
            }
            !end
        });
        for fetched in &ended {
            self.tear(fetched);
            if let Some(status) = status {
                self.finish(fetched, Err(status));
            }
        }
        ended.len()
    }

    /// Does a write in part, as chance will have it.
    fn tear(&mut self, fetched: &Fetched) {
        let entry = &fetched.entry;
        if entry.opcode() == nvm::WRITE
            && let Some(index) = usize::try_from(entry.namespace().0).ok().and_then(|n| n.checked_sub(1))
            && let Some(namespace) = self.namespaces.get_mut(index)
        {
            namespace.write_torn(entry, &self.controllers[fetched.port].dma, &mut self.rng);
        }
    }
}
