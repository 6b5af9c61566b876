//! The NVMe-oF subsystem core, sans-I/O: what hosts may ask for and what they are answered, whatever carries it (DESIGN 6;
//! NVM Express Base 2.0; NVMe over Fabrics 1.1).
//!
//! One subsystem over all directors: each director runs a [`Subsystem`] with the same NQN, hands out controller identifiers
//! of its own range, and reports by ANA how it reaches each volume. What the array is comes in as data ([`Array`],
//! [`AccessTable`]), the time with each call; what is to be done besides answering goes out as [`Action`]s.
//!
//! - `array`: what the core is told; `connect`: how queues come to be; `controller`: the state behind CC and CSTS;
//! - `admin`, `feature`, `identify`, `log_page`, `event`: the admin queue; `command`: I/O commands, parsed once;
//! - `backing`, `execute`: how I/O commands are done, on whatever holds the blocks;
//! - `cached`: a director's cache, `memory`: frames alone, for tests and benches.
//!
//! Transports promise: they call [`Subsystem::admit`] before an I/O command is begun and [`Subsystem::finish`] when nothing of it can
//! land any more, also if its queue is gone meanwhile; and they have the actions done after every call.

mod admin;
pub mod array;
pub mod backing;
pub mod cached;
pub mod command;
mod connect;
mod controller;
mod event;
pub mod execute;
mod feature;
mod identify;
mod log_page;
pub mod memory;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use dyad_nvme::feature::AsyncEvent;
use dyad_nvme::register::Capabilities;
use dyad_nvme::types::{BlockCount, ControllerId, HostId, Lba, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::Time;

pub use admin::Reply;
pub use array::{
    Access, AccessRow, AccessTable, AnaGroupId, AnaGroupView, Array, DirectorIndex, NamespaceView, PortId,
};
pub use command::{Direction, IoCommand, Operation};
pub use connect::{Connected, Refused};
pub use controller::Kind;

use command::Limits;
use controller::{Controller, Step};
use event::DISCOVERY_CHANGED;

/// Controller identifiers of one director: 16 directors share what the specification leaves (Base 3.1.1: FFF0h and above are reserved).
pub const CONTROLLERS_PER_DIRECTOR: u16 = 4080;
/// I/O queues of one controller at most.
pub const IO_QUEUES_MAX: u16 = 64;
/// Keep alive granularity (KAS).
const KEEP_ALIVE_GRANULARITY_MS: u32 = 100;
/// How long a discovery controller without a keep alive time-out may be silent (NVMe over Fabrics 1.1, 5.2).
const DISCOVERY_PATIENCE: Duration = Duration::from_mins(2);
/// Namespace identifiers go up to this (NN).
pub const NAMESPACES_MAX: u32 = 1024;

/// What a [`Subsystem`] is made with; the same at all directors but for `director`.
#[derive(Debug, Clone)]
pub struct SubsystemConfig {
    /// The array's NQN.
    pub nqn: String,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Which director this is.
    pub director: DirectorIndex,
    /// Controllers at once, at most [`CONTROLLERS_PER_DIRECTOR`].
    pub controllers: u16,
    /// I/O queues per controller, 1 to [`IO_QUEUES_MAX`].
    pub io_queues: u16,
    /// Entries of a queue, 2 or more.
    pub queue_entries: u16,
    /// MDTS: the longest transfer is `4096 << transfer_log2` bytes.
    pub transfer_log2: u8,
    /// In-capsule data of I/O commands, a multiple of 16 bytes.
    pub in_capsule_bytes: u32,
    /// The longest a command waits for a change of who serves (ANATT), in whole seconds.
    pub ana_transition: Duration,
    /// The longest that commands of a lost association may still land (CQT).
    pub quiesce: Duration,
}

/// Names a controller of this director; never used again.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ControllerKey {
    slot: u16,
    generation: u32,
}

/// A queue of a controller.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Whose.
    pub controller: ControllerKey,
    /// Which.
    pub id: QueueId,
}

/// What a transport is to do.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this completion on the controller's admin queue.
    Complete(ControllerKey, CompletionEntry),
    /// Close the controller's I/O queues and begin no more of their commands.
    CloseIoQueues(ControllerKey),
    /// Close all of the controller's queues.
    Close(ControllerKey),
}

/// What became of an admin command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done(Reply),
    /// It waits for an event.
    Held,
}

/// The array's subsystem and its discovery service, as one director presents them.
#[derive(Debug)]
pub struct Subsystem {
    config: SubsystemConfig,
    array: Array,
    access: AccessTable,
    controllers: Vec<Option<Controller>>,
    generation: u32,
    /// The identifier that was handed out last, counted within this director's range.
    last_id: u16,
    /// Counts changes of the ports.
    ports_changed: u64,
    /// Counts changes of each ANA group's descriptor.
    groups_changed: Vec<(AnaGroupId, u64)>,
    actions: VecDeque<Action>,
}

impl Subsystem {
    /// A subsystem without controllers.
    ///
    /// # Panics
    /// If the configuration is beyond what its fields allow.
    #[must_use]
    pub fn new(config: SubsystemConfig, array: Array, access: AccessTable) -> Self {
        assert!((1..=CONTROLLERS_PER_DIRECTOR).contains(&config.controllers), "{} controllers", config.controllers);
        assert!((1..=IO_QUEUES_MAX).contains(&config.io_queues), "{} I/O queues", config.io_queues);
        assert!(config.queue_entries >= 2, "queues of {} entries", config.queue_entries);
        assert!(config.director.0 < 16, "directors are 0 to 15");
        let groups_changed = array.groups().iter().map(|group| (group.id, 1)).collect();
        Self {
            controllers: (0..config.controllers).map(|_| None).collect(),
            config,
            array,
            access,
            generation: 0,
            last_id: 0,
            ports_changed: 1,
            groups_changed,
            actions: VecDeque::new(),
        }
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &SubsystemConfig {
        &self.config
    }

    /// The array as it was told.
    #[must_use]
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// What is to be done next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Controllers that hosts have.
    #[must_use]
    pub fn controller_count(&self) -> usize {
        self.controllers.iter().flatten().filter(|controller| !controller.ended).count()
    }

    fn controller(&self, key: ControllerKey) -> Option<&Controller> {
        let slot = self.controllers.get(usize::from(key.slot))?.as_ref();
        slot.filter(|controller| controller.generation == key.generation)
    }

    fn controller_mut(&mut self, key: ControllerKey) -> Option<&mut Controller> {
        let slot = self.controllers.get_mut(usize::from(key.slot))?.as_mut();
        slot.filter(|controller| controller.generation == key.generation)
    }

    fn keys(&self) -> impl Iterator<Item = ControllerKey> + '_ {
        let of = |(slot, controller): (u16, &Option<Controller>)| {
            controller.as_ref().map(|controller| ControllerKey { slot, generation: controller.generation })
        };
        (0..).zip(&self.controllers).filter_map(of)
    }

    /// CAP (Base 3.1.3.1) as a host with these credits sees it.
    fn capabilities(&self, access: &Access) -> Capabilities {
        Capabilities::new(self.io_queue_entries(access), 30)
    }

    fn io_queue_entries(&self, access: &Access) -> u16 {
        self.config.queue_entries.min(access.credits).max(2)
    }

    /// Checks a command of an I/O queue.
    ///
    /// # Errors
    /// The status to answer with.
    pub fn parse(&self, controller: ControllerKey, entry: &SubmissionEntry) -> Result<IoCommand, Status> {
        let controller = self.controller(controller).ok_or(Status::COMMAND_SEQUENCE)?;
        let transfer_max = BlockCount(1 << self.config.transfer_log2);
        command::parse(entry, Limits { array: &self.array, access: &controller.access, transfer_max })
    }

    /// A command of an I/O queue begins.
    pub fn admit(&mut self, controller: ControllerKey) {
        if let Some(controller) = self.controller_mut(controller) {
            controller.admitted += 1;
        }
    }

    /// An admitted command has ended: nothing of it can land any more.
    ///
    /// # Panics
    /// If it was not admitted.
    pub fn finish(&mut self, queue: Queue, command: &IoCommand, status: Status) {
        let Some(controller) = self.controller_mut(queue.controller) else { return };
        assert!(controller.admitted > 0, "a command ended that was not admitted");
        controller.admitted -= 1;
        let statistics = &mut controller.statistics;
        match (&command.operation, status.is_success()) {
            (Operation::Read(run), true) => {
                statistics.reads += 1;
                statistics.blocks_read += run.blocks.0;
            }
            (Operation::Write { run, .. }, true) => {
                statistics.writes += 1;
                statistics.blocks_written += run.blocks.0;
            }
            (_, true) => {}
            (_, false) => {
                let lba = command.operation.run().map_or(Lba(0), |run| run.lba);
                statistics.media_errors += u64::from(status.kind() == dyad_nvme::status::StatusType::Media);
                controller.note_error(queue.id, command.id, status, lba, command.namespace);
            }
        }
        controller.settle();
        if controller.ended && controller.admitted == 0 {
            self.controllers[usize::from(queue.controller.slot)] = None;
        }
    }

    /// The connection of a queue is gone. Without its admin queue a controller ends (NVMe over Fabrics 1.1, 2.2.2).
    pub fn lost(&mut self, queue: Queue) {
        let Some(controller) = self.controller_mut(queue.controller) else { return };
        if queue.id != QueueId::ADMIN {
            controller.queues &= !(1 << (queue.id.0 - 1));
            return;
        }
        controller.ended = true;
        if controller.admitted == 0 {
            self.controllers[usize::from(queue.controller.slot)] = None;
        }
        self.actions.push_back(Action::Close(queue.controller));
    }

    /// Ends controllers whose hosts were silent too long (Base 3.9). To be called now and then: a host has so much more time.
    pub fn tick(&mut self, now: Time) {
        let expired = |controller: &Controller| {
            !controller.ended && controller.keep_alive_deadline(DISCOVERY_PATIENCE).is_some_and(|until| now > until)
        };
        for slot in 0..self.controllers.len() {
            let Some(controller) = self.controllers[slot].as_mut().filter(|controller| expired(controller)) else {
                continue;
            };
            controller.step(Step::KeepAliveExpired);
            // Once is enough: the transport closes its queues, and with the admin queue the controller ends.
            controller.features.keep_alive_ms = 0;
            controller.last_keep_alive = now;
            let slot = u16::try_from(slot).expect("fewer than 4080");
            self.actions.push_back(Action::Close(ControllerKey { slot, generation: controller.generation }));
        }
    }

    /// The array changed: hosts that asked for it hear of it (Base 5.2).
    pub fn set_array(&mut self, array: Array) {
        let old = std::mem::replace(&mut self.array, array);
        if old.ports() != self.array.ports() {
            self.ports_changed += 1;
            self.each(|controller| {
                if controller.kind == Kind::Discovery {
                    controller.events.raise(DISCOVERY_CHANGED);
                }
            });
        }
        self.count_group_changes(&old);
        let changed = changed_namespaces(&old, &self.array);
        let ana = old.groups() != self.array.groups();
        let geometry = old.geometries() != self.array.geometries();
        self.each(|controller| {
            if controller.kind == Kind::Io {
                for id in &changed {
                    if controller.access.allows(*id) {
                        controller.note_changed(*id);
                    }
                }
                if ana {
                    controller.events.raise(AsyncEvent::ANA_CHANGED);
                }
                if geometry {
                    controller.events.raise(AsyncEvent::GEOMETRY_CHANGED);
                }
            }
        });
        self.report_events();
    }

    /// The table of who may use what changed. Hosts that are not in it any more keep their controllers and see no volume.
    pub fn set_access(&mut self, access: AccessTable) {
        self.access = access;
        let Self { access, array, controllers, .. } = self;
        for controller in controllers.iter_mut().flatten().filter(|controller| controller.kind == Kind::Io) {
            let new = access.find(controller.port, &controller.host_nqn).unwrap_or(Access::nothing());
            let old = std::mem::replace(&mut controller.access, new);
            for namespace in array.namespaces() {
                if old.allows(namespace.id) != controller.access.allows(namespace.id) {
                    controller.note_changed(namespace.id);
                }
            }
        }
        self.report_events();
    }

    fn each(&mut self, change: impl FnMut(&mut Controller)) {
        self.controllers.iter_mut().flatten().for_each(change);
    }

    fn count_group_changes(&mut self, old: &Array) {
        let members = |array: &Array, id: AnaGroupId| -> Vec<NamespaceId> {
            array.namespaces().iter().filter(|namespace| namespace.group == id).map(|namespace| namespace.id).collect()
        };
        let counts = self.array.groups().iter().map(|group| {
            let before = self.groups_changed.iter().find(|(id, _)| *id == group.id).map_or(0, |(_, count)| *count);
            let same = old.state(group.id) == Some(group.state)
                && members(old, group.id) == members(&self.array, group.id)
                && before > 0;
            (group.id, before + u64::from(!same))
        });
        self.groups_changed = counts.collect();
    }

    /// Completes requests for events as far as there are both.
    fn report_events(&mut self) {
        for slot in 0..self.controllers.len() {
            let Some(controller) = &mut self.controllers[slot] else { continue };
            let slot = u16::try_from(slot).expect("fewer than 4080");
            let key = ControllerKey { slot, generation: controller.generation };
            while let Some((command, event)) = controller.events.next() {
                let completion =
                    CompletionEntry::new(0, command, Status::SUCCESS).with_result(u64::from(event.to_result()));
                self.actions.push_back(Action::Complete(key, completion));
            }
        }
    }

    /// This director's next free controller identifier.
    fn take_id(&mut self) -> ControllerId {
        let base = 1 + u16::from(self.config.director.0) * CONTROLLERS_PER_DIRECTOR;
        loop {
            self.last_id = (self.last_id + 1) % CONTROLLERS_PER_DIRECTOR;
            let id = ControllerId(base + self.last_id);
            if !self.controllers.iter().flatten().any(|controller| controller.id == id) {
                return id;
            }
        }
    }

    /// Commands of a lost association of this host are still admitted: they could land after what it sends on a new one.
    fn drains(&self, host: HostId) -> bool {
        self.controllers.iter().flatten().any(|controller| controller.ended && controller.host == host)
    }
}

/// Namespaces that came, went or are different.
fn changed_namespaces(old: &Array, new: &Array) -> Vec<NamespaceId> {
    let gone = old.namespaces().iter().filter(|before| new.namespace(before.id).is_none());
    let different = new.namespaces().iter().filter(|after| old.namespace(after.id) != Some(after));
    gone.chain(different).map(|namespace| namespace.id).collect()
}
