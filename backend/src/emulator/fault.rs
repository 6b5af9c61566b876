//! How long commands take, and what goes wrong: latency, bandwidth, delays, commands that hang, controllers that fail or vanish, power.

use std::time::Duration;

use dyad_nvme::SubmissionEntry;
use dyad_nvme::opcode::nvm;
use dyad_nvme::types::{BLOCK_BYTES, Lba, NamespaceId};
use dyad_reactor::{Rng, SeededRng, Time};

use super::controller::State;
use super::namespace::BlockFault;
use super::{MediaError, Subsystem};

/// How long commands take between fetch and execution.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Latency {
    /// Reads, compares, verifies.
    pub read: Duration,
    /// Writes and everything else that changes blocks.
    pub write: Duration,
    /// Flushes.
    pub flush: Duration,
    /// Up to this more.
    pub jitter: Duration,
    /// The media moves so many bytes a second, one command after the other.
    pub bytes_per_s: Option<u64>,
}

/// One fetched command in `one_in` takes `by` longer.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Delay {
    /// Not zero.
    pub one_in: u64,
    /// How much longer.
    pub by: Duration,
}

/// The faults of a subsystem as a whole.
#[derive(Debug, Default)]
pub(super) struct Faults {
    latency: Latency,
    delay: Option<Delay>,
    /// So many fetched commands get stuck.
    hang: u64,
    /// Abort finds nothing.
    pub(super) deaf: bool,
    /// The media is busy until then.
    busy_until: Time,
}

impl Faults {
    /// Commands are executed as they are fetched.
    #[inline]
    pub(super) fn immediate(&self) -> bool {
        self.latency == Latency::default() && self.delay.is_none() && self.hang == 0
    }

    /// Whether this command gets stuck.
    pub(super) fn swallow(&mut self) -> bool {
        let stuck = self.hang > 0;
        self.hang = self.hang.saturating_sub(1);
        stuck
    }

    /// When a command is executed.
    pub(super) fn execution(&mut self, entry: &SubmissionEntry, now: Time, rng: &mut SeededRng) -> Time {
        let (base, moves) = match entry.opcode() {
            nvm::READ | nvm::COMPARE => (self.latency.read, true),
            nvm::VERIFY => (self.latency.read, false),
            nvm::FLUSH => (self.latency.flush, false),
            nvm::WRITE => (self.latency.write, true),
            _ => (self.latency.write, false),
        };
        let mut at = now + base;
        let jitter = u64::try_from(self.latency.jitter.as_nanos()).unwrap_or(u64::MAX - 1);
        at = at + Duration::from_nanos(rng.below(jitter.saturating_add(1)));
        if let (Some(rate), true) = (self.latency.bytes_per_s, moves) {
            let bytes = u128::from(entry.block_count().0) * BLOCK_BYTES as u128;
            let nanos = bytes * 1_000_000_000 / u128::from(rate.max(1));
            let busy = self.busy_until.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.busy_until = busy;
            at = at.max(busy);
        }
        match self.delay {
            Some(delay) if rng.one_in(delay.one_in) => at + delay.by,
            _ => at,
        }
    }
}

/// The hand of fate.
impl Subsystem {
    /// From the next fetch on.
    pub fn set_latency(&mut self, latency: Latency) {
        self.faults.latency = latency;
    }

    /// From the next fetch on.
    ///
    /// # Panics
    /// If one in zero commands is to be delayed.
    pub fn set_delay(&mut self, delay: Option<Delay>) {
        assert!(delay.is_none_or(|d| d.one_in > 0), "one in zero");
        self.faults.delay = delay;
    }

    /// The next `commands` I/O commands never complete. With `deaf`, aborting them does not help either; a controller reset does.
    pub fn hang(&mut self, commands: u64, deaf: bool) {
        self.faults.hang = commands;
        self.faults.deaf = deaf;
    }

    /// Something happens to a block, or will. False if there is no such block.
    pub fn inject(&mut self, namespace: NamespaceId, lba: Lba, fault: BlockFault) -> bool {
        match self.namespace(namespace) {
            Some(namespace) if lba.0 < namespace.blocks().0 => {
                namespace.inject(lba, fault);
                true
            }
            _ => false,
        }
    }

    /// The controller of a port fails: CSTS.CFS, until it is reset.
    pub fn fail(&mut self, port: usize) {
        self.controllers[port].fail();
    }

    /// The port is pulled out. Its commands end anywhere in their course and do not complete.
    pub fn remove(&mut self, port: usize) {
        self.end_fetched(|f| f.port == port, None);
        self.controllers[port].reset(State::Off);
        self.controllers[port].dma.clear();
        self.namespaces.iter_mut().for_each(|n| n.reservations.forget_unidentified(port));
    }

    /// The port is plugged in again: a controller that nobody has enabled.
    pub fn plug_in(&mut self, port: usize) {
        if self.controllers[port].state == State::Off {
            self.controllers[port].state = State::Disabled;
        }
    }

    /// Power is lost on all ports: commands end anywhere in their course, and what the caches held is lost or not, block by block.
    pub fn power_loss(&mut self) {
        self.end_fetched(|_| true, None);
        for namespace in &mut self.namespaces {
            namespace.power_loss(&mut self.rng);
        }
        for controller in &mut self.controllers {
            controller.smart.unsafe_shutdowns += 1;
            controller.reset(State::Off);
        }
    }

    /// Power is back.
    pub fn power_on(&mut self) {
        for controller in &mut self.controllers {
            controller.smart.power_cycles += 1;
        }
        (0..self.controllers.len()).for_each(|port| self.plug_in(port));
    }

    /// The contents of a block as the media has them now.
    ///
    /// # Errors
    /// When the media fails, or has no such block.
    pub fn peek(&mut self, namespace: NamespaceId, lba: Lba) -> Result<Box<[u8; BLOCK_BYTES]>, MediaError> {
        self.namespace(namespace).filter(|n| lba.0 < n.blocks().0).ok_or(MediaError)?.peek(lba)
    }
}
