//! One controller: what the host configured, and the state that CC and CSTS show (Base 3.1.3, 3.6; NVMe over Fabrics 1.1, 4.3).
//!
//! A controller that was told to reset or to shut down is not done while commands of its I/O queues are admitted: they could
//! still land after whatever the host sends next.

use dyad_nvme::log::ErrorEntry;
use dyad_nvme::register::{Capabilities, Configuration, ControllerStatus, ShutdownRequest};
use dyad_nvme::types::{CommandId, ControllerId, HostId, Lba, NamespaceId, QueueId};
use dyad_nvme::{Status, bytes};
use dyad_reactor::Time;
use std::collections::VecDeque;
use std::time::Duration;

use super::array::{Access, PortId};
use super::event::Events;

/// Entries of the error log.
pub(super) const ERROR_LOG_ENTRIES: usize = 64;
/// Namespaces that a Changed Namespace List names before it says "more" (Base 5.16.1.5).
const CHANGED_MAX: usize = 1024;

/// What a controller is for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces.
    Io,
    /// The discovery log.
    Discovery,
}

/// What CC and CSTS show.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Run {
    /// EN = 0, RDY = 0.
    Disabled,
    /// EN = 1, RDY = 1: I/O queues may be connected.
    Ready,
    /// EN = 0, RDY = 1: admitted commands end.
    Resetting,
    /// SHST = 01b: admitted commands end.
    ShuttingDown,
    /// SHST = 10b.
    ShutDown,
    /// CFS = 1: a configuration that cannot be, or a host that was silent too long.
    Fatal,
}

/// What moves a controller.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Enable,
    EnableNonsense,
    Disable,
    Shutdown,
    /// No command of its I/O queues is admitted any more.
    Drained,
    KeepAliveExpired,
}

impl Run {
    /// The table of transitions. What is not in it changes nothing.
    pub(super) const fn after(self, step: Step) -> Self {
        match (self, step) {
            (Self::Disabled, Step::Enable) => Self::Ready,
            (Self::Disabled, Step::EnableNonsense) => Self::Fatal,
            (Self::Ready, Step::Disable) => Self::Resetting,
            (Self::Ready, Step::Shutdown) => Self::ShuttingDown,
            (Self::Disabled, Step::Shutdown) => Self::ShutDown,
            (Self::ShuttingDown | Self::Fatal, Step::Disable) => Self::Resetting,
            (Self::ShutDown, Step::Disable) => Self::Disabled,
            (Self::Resetting, Step::Drained) => Self::Disabled,
            (Self::ShuttingDown, Step::Drained) => Self::ShutDown,
            (_, Step::KeepAliveExpired) => Self::Fatal,
            (state, _) => state,
        }
    }

    fn status(self) -> ControllerStatus {
        const SHUTDOWN_OCCURRING: u32 = 1 << 2;
        ControllerStatus(match self {
            Self::Disabled => 0,
            Self::Ready | Self::Resetting => ControllerStatus::READY,
            Self::ShuttingDown => ControllerStatus::READY | SHUTDOWN_OCCURRING,
            Self::ShutDown => ControllerStatus::READY | ControllerStatus::SHUTDOWN_COMPLETE,
            Self::Fatal => ControllerStatus::FATAL,
        })
    }
}

/// Values that the host set (Base 5.27); none is kept beyond the controller.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) arbitration: u32,
    pub(super) power_management: u32,
    pub(super) temperature_threshold: u32,
    pub(super) error_recovery: u32,
    pub(super) write_atomicity: u32,
    pub(super) keep_alive_ms: u32,
    pub(super) host_behavior: [u8; 512],
    /// I/O queues that were asked for; zero until then.
    pub(super) queues: u16,
}

impl Features {
    pub(super) const fn new(keep_alive_ms: u32) -> Self {
        Self {
            arbitration: 0,
            power_management: 0,
            temperature_threshold: 0x157,
            error_recovery: 0,
            write_atomicity: 0,
            keep_alive_ms,
            host_behavior: [0; 512],
            queues: 0,
        }
    }
}

/// Commands that were done, for the SMART log.
#[derive(Debug, Copy, Clone, Default)]
pub(super) struct Statistics {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) blocks_read: u64,
    pub(super) blocks_written: u64,
    pub(super) media_errors: u64,
}

#[derive(Debug)]
pub(super) struct Controller {
    pub(super) generation: u32,
    pub(super) id: ControllerId,
    pub(super) kind: Kind,
    pub(super) port: PortId,
    pub(super) host_nqn: String,
    pub(super) host: HostId,
    pub(super) access: Access,
    pub(super) configuration: Configuration,
    pub(super) run: Run,
    /// The I/O queues that are connected: bit `n - 1` is queue `n`.
    pub(super) queues: u64,
    /// Commands of I/O queues that are admitted and not answered.
    pub(super) admitted: u32,
    /// Its admin queue is gone; it is forgotten when nothing is admitted any more.
    pub(super) ended: bool,
    pub(super) last_keep_alive: Time,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: VecDeque<ErrorEntry>,
    pub(super) error_count: u64,
    changed: Vec<NamespaceId>,
    pub(super) statistics: Statistics,
}

/// Who made a controller, and how.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) id: ControllerId,
    pub(super) kind: Kind,
    pub(super) port: PortId,
    pub(super) host_nqn: String,
    pub(super) host: HostId,
    pub(super) access: Access,
    pub(super) keep_alive_ms: u32,
}

impl Controller {
    pub(super) fn new(generation: u32, now: Time, association: Association) -> Self {
        let Association { id, kind, port, host_nqn, host, access, keep_alive_ms } = association;
        Self {
            generation,
            id,
            kind,
            port,
            host_nqn,
            host,
            access,
            configuration: Configuration::DISABLED,
            run: Run::Disabled,
            queues: 0,
            admitted: 0,
            ended: false,
            last_keep_alive: now,
            features: Features::new(keep_alive_ms),
            events: Events::default(),
            errors: VecDeque::with_capacity(ERROR_LOG_ENTRIES),
            error_count: 0,
            changed: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// CSTS.
    pub(super) fn status(&self) -> ControllerStatus {
        self.run.status()
    }

    /// Takes a step; true if the I/O queues end with it.
    pub(super) fn step(&mut self, step: Step) -> bool {
        let was = self.run;
        self.run = was.after(step);
        let ends_queues = was != self.run && !matches!(self.run, Run::Ready | Run::Disabled);
        if was != self.run && matches!(self.run, Run::Resetting | Run::Fatal) {
            // A Controller Level Reset (Base 3.7.2) ends what waits on the admin queue without an answer.
            self.events = Events::default();
            self.features = Features::new(self.features.keep_alive_ms);
        }
        self.settle();
        ends_queues
    }

    /// A reset or shutdown is done once nothing is admitted.
    pub(super) fn settle(&mut self) {
        if self.admitted == 0 {
            self.run = self.run.after(Step::Drained);
        }
    }

    /// The host wrote CC (Base 3.1.3.5); true if the I/O queues end with it.
    pub(super) fn configure(&mut self, new: Configuration, capabilities: Capabilities) -> bool {
        let old = std::mem::replace(&mut self.configuration, new);
        let shuts = new.shutdown() != ShutdownRequest::None && old.shutdown() == ShutdownRequest::None;
        let ends = if !new.enabled() {
            self.step(Step::Disable)
        } else if !old.enabled() {
            self.step(if usable(new, capabilities, self.kind) { Step::Enable } else { Step::EnableNonsense })
        } else {
            false
        };
        ends | (shuts && self.step(Step::Shutdown))
    }

    /// Until when the next Keep Alive must come; `None` if the host did not ask to be watched.
    pub(super) fn keep_alive_deadline(&self, discovery_patience: Duration) -> Option<Time> {
        let patience = match (self.features.keep_alive_ms, self.kind) {
            (0, Kind::Io) => return None,
            (0, Kind::Discovery) => discovery_patience,
            (ms, _) => Duration::from_millis(u64::from(ms)),
        };
        Some(self.last_keep_alive + patience)
    }

    /// Notes a command that failed (Base 5.16.1.2).
    pub(super) fn note_error(
        &mut self,
        queue: QueueId,
        command: CommandId,
        status: Status,
        lba: Lba,
        namespace: NamespaceId,
    ) {
        self.error_count += 1;
        if self.errors.len() == ERROR_LOG_ENTRIES {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry { count: self.error_count, queue, command, status, lba, namespace });
    }

    /// A namespace appeared, went or changed.
    pub(super) fn note_changed(&mut self, id: NamespaceId) {
        if self.changed.len() <= CHANGED_MAX && !self.changed.contains(&id) {
            self.changed.push(id);
        }
        self.events.raise(dyad_nvme::feature::AsyncEvent::NAMESPACE_CHANGED);
    }

    /// The Changed Namespace List (Base 5.16.1.5); forgets it unless the host retains the event.
    pub(super) fn changed_list(&mut self, retain: bool) -> Vec<u8> {
        self.changed.sort_unstable();
        let mut page = vec![0; CHANGED_MAX * 4];
        if self.changed.len() > CHANGED_MAX {
            bytes::put(&mut page, 0, &NamespaceId::ALL.0.to_le_bytes());
        } else {
            for (index, id) in self.changed.iter().enumerate() {
                bytes::put(&mut page, index * 4, &id.0.to_le_bytes());
            }
        }
        if !retain {
            self.changed.clear();
        }
        page
    }
}

/// Whether a controller can run like this: NVM command set, a page size that there is, round robin, entries of 64 and 16 bytes. A
/// discovery controller has no I/O queues, so their entries' sizes do not matter.
fn usable(configuration: Configuration, capabilities: Capabilities, kind: Kind) -> bool {
    let entries = matches!((configuration.io_sq_entry(), configuration.io_cq_entry()), (6, 4) | (0, 0));
    configuration.command_set() == 0
        && configuration.page_size() == capabilities.page_size_min()
        && configuration.arbitration() == 0
        && (entries || kind == Kind::Discovery)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_done_when_nothing_is_admitted() {
        let association = Association {
            id: ControllerId(1),
            kind: Kind::Io,
            port: PortId(1),
            host_nqn: String::new(),
            host: HostId([1; 16]),
            access: Access::nothing(),
            keep_alive_ms: 0,
        };
        let mut controller = Controller::new(1, Time::ZERO, association);
        let capabilities = Capabilities::new(128, 20);
        assert!(!controller.status().ready());
        assert!(!controller.configure(Configuration::ENABLED, capabilities));
        assert!(controller.status().ready());
        controller.admitted = 2;
        assert!(controller.configure(Configuration::DISABLED, capabilities), "its I/O queues end");
        assert!(controller.status().ready(), "two commands may still land");
        assert!(!controller.configure(Configuration::ENABLED, capabilities));
        assert_eq!(controller.run, Run::Resetting, "it cannot be hurried");
        controller.admitted = 0;
        controller.settle();
        assert!(!controller.status().ready());

        controller.configure(Configuration::DISABLED, capabilities);
        controller.configure(Configuration(Configuration::ENABLED.0 | 5 << 7), capabilities);
        assert!(controller.status().fatal(), "no such page size");
        controller.configure(Configuration::DISABLED, capabilities);
        controller.configure(Configuration::ENABLED, capabilities);
        controller.admitted = 1;
        controller.configure(Configuration::ENABLED.with_shutdown(ShutdownRequest::Normal), capabilities);
        assert!(!controller.status().shutdown_complete());
        controller.admitted = 0;
        controller.settle();
        assert!(controller.status().shutdown_complete());
    }
}
