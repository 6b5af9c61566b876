//! A device for the simulator and for tests: the contract of [`Device`], in virtual time, as hostile as the contract allows.
//!
//! A [`FakeMedium`] is one dual-ported namespace; each [`FakeDevice`] is one host's way to it. What it does to its users:
//!
//! - **Time.** A command is fetched some time after it was submitted, moves its blocks at random moments and in any order, and completes after the
//!   latency that is set ([`FakeMedium::set_latency`]). Some commands are delayed for long after they were fetched ([`FakeMedium::set_delay`]).
//! - **Atomicity.** 4 KiB blocks; nothing else. Whatever ends a command early (abort, crash, loss of port or power) leaves any part of its blocks done.
//! - **Reservations** are exact for the two types that directors use (module `reservations`), checked when a command is fetched. Preempt and Abort
//!   ends or waits for every command of a host without write access that had passed its check: nothing of theirs reaches the media after it completes.
//! - **Power.** With a volatile cache, what was neither flushed nor written with FUA may be lost, block by block, back to any older unflushed version.
//! - **Faults**: bad blocks, a lost controller port, a dead director ([`FakeDevice::kill`]), a lost medium, reservations that did not persist.
//!
//! Everything is drawn from the medium's seed: the same seed and the same commands give the same run. Memory that a command names is held (cloned) by
//! the command. Unlike a real device's, its `submit` allocates, and the bytes that it moves, which stand for DMA, are counted as copies.

mod blocks;
mod medium;
mod reservations;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::virtual_time::VirtualTime;

use self::medium::{CommandId, Medium, PortId};
use crate::device::{Device, DeviceError, DeviceInfo, Io, ReservationOp, ReservationReport, SubmitError};

/// How long a command takes: between `base` and `base + jitter`.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Latency {
    /// At least this.
    pub base: Duration,
    /// And up to this more.
    pub jitter: Duration,
}

impl Default for Latency {
    /// A flash device under some load.
    fn default() -> Self {
        Self { base: Duration::from_micros(60), jitter: Duration::from_micros(60) }
    }
}

/// One fetched data command in `one_in` takes `by` instead of its latency, and moves its blocks any time in it.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Delay {
    /// Not zero.
    pub one_in: u64,
    /// From the fetch to the completion.
    pub by: Duration,
}

/// How a block is bad.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BadBlock {
    /// Reads fail until it is written again.
    UntilWritten,
    /// Reads and writes fail.
    Forever,
    /// Reads return what another block holds, without an error, until it is written again: its last write went astray.
    Misdirected {
        /// That block.
        from: Lba,
    },
}

/// One namespace with any number of ports. Clones are the same medium.
#[derive(Debug, Clone)]
pub struct FakeMedium(Rc<RefCell<Medium>>);

impl FakeMedium {
    /// An empty medium: all blocks are zeros, nobody is registered.
    #[must_use]
    pub fn new(info: DeviceInfo, time: VirtualTime, seed: u64) -> Self {
        Self(Medium::new(info, time, seed))
    }

    /// A controller for the host. Another one that the host had is reset by this: its commands are over before this returns.
    #[must_use]
    pub fn port(&self, host_identifier: [u8; 16]) -> FakeDevice {
        let port = self.0.borrow_mut().attach(host_identifier);
        FakeDevice { medium: Rc::clone(&self.0), port }
    }

    /// From the next command on.
    pub fn set_latency(&self, latency: Latency) {
        self.0.borrow_mut().latency = latency;
    }

    /// From the next fetch on.
    pub fn set_delay(&self, delay: Option<Delay>) {
        self.0.borrow_mut().delay = delay;
    }

    /// Makes a block bad.
    pub fn spoil(&self, lba: Lba, how: BadBlock) {
        self.0.borrow_mut().blocks.spoil(lba, how);
    }

    /// The medium loses power and has it again: commands in flight are aborted anywhere in their course, and what the cache held is lost or not, block
    /// by block. Reservations persist, as directors ask for.
    pub fn power_loss(&self) {
        self.0.borrow_mut().power_loss();
    }

    /// All registrations and the reservation are gone, like after the restart of a shelf that does not keep them.
    pub fn forget_reservations(&self) {
        self.0.borrow_mut().forget_reservations();
    }

    /// The medium is gone, for all ports and for ever.
    pub fn fail(&self) {
        self.0.borrow_mut().fail();
    }

    /// What a read of the block returns now; `None` if the block is bad.
    #[must_use]
    pub fn contents(&self, lba: Lba) -> Option<[u8; BLOCK_BYTES]> {
        self.0.borrow().blocks.contents(lba).copied()
    }

    /// Whether a write of this host would pass the reservation now.
    #[must_use]
    pub fn may_write(&self, host_identifier: &[u8; 16]) -> bool {
        self.0.borrow().may_write(host_identifier)
    }

    /// How many writes of this host were let through while another host could have written, too.
    #[must_use]
    pub fn shared_writes(&self, host_identifier: &[u8; 16]) -> u64 {
        self.0.borrow().shared_writes(host_identifier)
    }
}

/// One host's controller of a medium. Clones are the same controller.
#[derive(Debug, Clone)]
pub struct FakeDevice {
    medium: Rc<RefCell<Medium>>,
    port: PortId,
}

impl FakeDevice {
    /// The director behind this port died. Commands that the device had fetched go on, and their writes land unless somebody preempts them;
    /// of the others some are fetched still, the rest is never seen.
    pub fn kill(&self) {
        self.medium.borrow_mut().kill(self.port);
    }

    /// The controller is reset and works on: its commands end with [`DeviceError::Aborted`], done, half done or not done; nothing of them lands later.
    pub fn reset(&self) {
        self.medium.borrow_mut().reset(self.port);
    }

    /// The controller was pulled out. Its commands end with [`DeviceError::Gone`], done, half done or not done; nothing of them lands later.
    pub fn remove(&self) {
        self.medium.borrow_mut().detach(self.port, DeviceError::Gone);
    }
}

impl Device for FakeDevice {
    type Completion = FakeCompletion;

    fn info(&self) -> DeviceInfo {
        self.medium.borrow().info()
    }

    fn map(&self, memory: &Memory) -> Result<(), SubmitError> {
        self.medium.borrow_mut().map(self.port, memory)
    }

    fn submit(&self, io: Io<'_>) -> Result<FakeCompletion, SubmitError> {
        let id = self.medium.borrow_mut().submit(self.port, &io)?;
        Ok(FakeCompletion { medium: Rc::clone(&self.medium), id })
    }

    async fn reserve(&self, op: ReservationOp) -> Result<(), DeviceError> {
        let id = self.medium.borrow_mut().reserve(self.port, op)?;
        FakeCompletion { medium: Rc::clone(&self.medium), id }.await
    }

    async fn reservation_report(&self) -> Result<ReservationReport, DeviceError> {
        let id = self.medium.borrow_mut().report(self.port)?;
        let completion = FakeCompletion { medium: Rc::clone(&self.medium), id };
        let (outcome, report) = poll_fn(|cx| completion.poll_outcome(cx)).await;
        outcome.map(|()| report.expect("a report that succeeded"))
    }
}

/// The completion of a command of a [`FakeDevice`].
#[derive(Debug)]
pub struct FakeCompletion {
    medium: Rc<RefCell<Medium>>,
    id: CommandId,
}

impl FakeCompletion {
    fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<(Result<(), DeviceError>, Option<ReservationReport>)> {
        self.medium.borrow_mut().poll(self.id, cx)
    }
}

impl Future for FakeCompletion {
    type Output = Result<(), DeviceError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_outcome(cx).map(|(outcome, _)| outcome)
    }
}

impl Drop for FakeCompletion {
    fn drop(&mut self) {
        self.medium.borrow_mut().abandon(self.id);
    }
}
