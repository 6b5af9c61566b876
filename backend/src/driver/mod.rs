//! The NVMe driver: one controller behind a [`PciFunction`], one namespace as a [`Device`].
//!
//! - **I/O path**: [`Device::submit`] writes a submission entry and remembers the command; [`Driver::poll`], called in
//!   every turn of the reactor, rings the doorbells for all that was submitted and takes completions. Nothing is
//!   allocated, nothing copied, and while the device watches its shadow doorbells there is no system call.
//! - **Memory in flight** belongs to the command table (module `channel`), never to a future. A command ends when the
//!   device completed it, or when the controller is known to be stopped.
//! - **Time-outs** climb a ladder (module `watch`): Abort, controller reset, failed. A reset ends commands with
//!   [`DeviceError::Aborted`], sets the Host Identifier again, and never registers again: whoever was preempted
//!   meanwhile stays fenced (PROTOCOLS 5.3).
//!
//! | state | what happens | next |
//! |---|---|---|
//! | `Starting` | the controller is up, the namespace identified | `Running` |
//! | `Starting` | anything fails | `Failed` |
//! | `Running` | a command stays overdue after Abort, an admin command has no answer; the controller is fatal, or answers nonsense | `Resetting` |
//! | `Running` | registers read as all ones, or are not answered; memory was refused; the device is asked back | `Failed` |
//! | `Resetting` | the controller is up, the namespace is the same | `Running` |
//! | `Resetting` | anything fails | `Failed` |
//!
//! A failed driver stays failed: its function was reset, so it touches no memory. A device that was plugged in again is attached again.

mod bring_up;
mod channel;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod mapping;
mod slow;
mod watch;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::command::rw;
use dyad_nvme::feature::AsyncEvent;
use dyad_nvme::identify::IdentifyController;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, CommandId, HostId, Lba, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::sync::{Inbox, Pending, Signal};
use dyad_reactor::{Executor, Fifo, Handle};

use crate::device::{Device, DeviceError, DeviceId, DeviceInfo, Io, ReservationOp, ReservationReport, SubmitError};
use crate::pci::{DmaError, PciFunction};

use self::channel::{Answer, Channel, Ended};
use self::mapping::Mappings;

pub use self::bring_up::AttachError;

/// Events that wait to be taken; later ones are dropped, their log pages still say it.
const EVENTS_MAX: usize = 16;

/// How a controller is driven.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Options {
    /// I/O commands outstanding, 2 to 4095. A controller with shorter queues gets fewer.
    pub queue_depth: u16,
    /// What a command may take before it is aborted.
    pub command_timeout: Duration,
    /// What an admin command may take before the controller is reset. Asynchronous Event Requests wait for ever.
    pub admin_timeout: Duration,
    /// Which namespace; by default the controller's first.
    pub namespace: Option<NamespaceId>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            command_timeout: Duration::from_secs(4),
            admin_timeout: Duration::from_secs(2),
            namespace: None,
        }
    }
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Running,
    Resetting,
    Failed,
}

/// How blocks are written and read besides their data.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Protection {
    None,
    /// The controller makes, checks and strips it (PRACT); type 3 has no reference tag to check.
    Controller {
        reference: bool,
    },
}

/// What [`Driver::poll`] found, for the watch to do.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Verdict {
    /// The controller answers nonsense, or not at all.
    Reset,
    /// The device does not take memory that the reactor works with, or is to be given up.
    Fail,
}

/// Where the Asynchronous Event Request is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Listening {
    /// Not sent yet.
    No,
    /// At the controller.
    Asked(CommandId),
    /// An event was reported; reading this log page lets the controller report the next.
    Heard(u8),
    /// The controller takes none: nothing is heard before its next reset.
    Refused,
}

struct Core {
    state: State,
    info: DeviceInfo,
    admin: Channel,
    io: Channel,
    mappings: Mappings,
    sgl: bool,
    protection: Protection,
    /// Goes on while commands are outstanding; see `watch`.
    tick: u32,
    ticking: bool,
    verdict: Option<Verdict>,
    listening: Listening,
    /// The device reaches all memory that was mapped; before that no command is shown to it.
    settled: bool,
}

struct Shared<F: PciFunction> {
    function: F,
    /// The longest that CSTS.RDY may take to follow CC.EN.
    ready_within: Duration,
    handle: Handle,
    options: Options,
    host: HostId,
    core: RefCell<Core>,
    controller: RefCell<IdentifyController>,
    /// Wakes the watch.
    alarm: Signal,
    events: Inbox<AsyncEvent>,
    /// How often the controller was reset by the ladder.
    resets: Cell<u32>,
}

/// One namespace of one controller. Clones are the same.
pub struct Driver<F: PciFunction> {
    shared: Rc<Shared<F>>,
}

impl<F: PciFunction> Clone for Driver<F> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl<F: PciFunction> fmt::Debug for Driver<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = self.shared.core.borrow();
        f.debug_struct("Driver")
            .field("state", &core.state)
            .field("info", &core.info)
            .field("outstanding", &core.io.outstanding())
            .finish_non_exhaustive()
    }
}

impl<F: PciFunction> Driver<F> {
    /// Brings the controller up and makes the task that watches over it, so the executor must not be sealed yet. `host` is this director's Host Identifier.
    ///
    /// The controller is reset, whatever it did before. Nobody needs to call [`Self::poll`] for this to end.
    ///
    /// # Errors
    /// [`AttachError`].
    pub async fn attach(function: F, handle: &Handle, host: [u8; 16]) -> Result<Self, AttachError> {
        let driver = Self::attach_with(function, handle, host, Options::default()).await?;
        handle.spawn("nvme watch", driver.watch());
        Ok(driver)
    }

    /// As [`Self::attach`], with options, and without the task: somebody must run [`Self::watch`].
    ///
    /// # Errors
    /// [`AttachError`].
    pub async fn attach_with(
        function: F,
        handle: &Handle,
        host: [u8; 16],
        options: Options,
    ) -> Result<Self, AttachError> {
        let driver = Self { shared: Shared::new(function, handle, host, options).await? };
        match driver.shared.bring_up().await {
            Ok(info) => {
                driver.shared.run(info);
                Ok(driver)
            }
            Err(error) => {
                driver.shared.fail();
                Err(error)
            }
        }
    }

    /// Watches over time-outs and events until the device has failed. A service task runs it, once.
    pub fn watch(&self) -> impl Future<Output = ()> + 'static {
        watch::watch(Rc::downgrade(&self.shared))
    }

    /// Rings the doorbells and takes completions; returns how many. Part of every turn of the reactor.
    pub fn poll(&self) -> usize {
        self.shared.poll()
    }

    /// The controller behind it, as it identified itself.
    #[must_use]
    pub fn controller(&self) -> IdentifyController {
        self.shared.controller.borrow().clone()
    }

    /// The function behind it.
    #[must_use]
    pub fn function(&self) -> &F {
        &self.shared.function
    }

    /// The device has failed or was removed; it can only be attached anew.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.shared.core.borrow().state == State::Failed
    }

    /// How often the controller was reset because it did not do its work.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.shared.resets.get()
    }

    /// The next asynchronous event of the controller.
    pub async fn next_event(&self) -> AsyncEvent {
        self.shared.events.next().await
    }
}

impl Core {
    /// Commands may be shown to the device.
    #[inline]
    fn settle(&mut self, function: &impl PciFunction) -> bool {
        if !self.settled {
            match function.settled() {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.settled = true,
                Poll::Ready(Err(_)) => self.verdict = Some(Verdict::Fail),
            }
        }
        self.settled
    }
}

impl<F: PciFunction> Drop for Shared<F> {
    /// Nobody has the device any more, but it may still have memory of ours: it is stopped before that goes.
    fn drop(&mut self) {
        if self.core.get_mut().state != State::Failed {
            self.function.reset();
        }
    }
}

impl<F: PciFunction> Shared<F> {
    /// Rings and takes completions.
    fn poll(&self) -> usize {
        let mut core = self.core.borrow_mut();
        let core = &mut *core;
        if core.state == State::Failed {
            return 0;
        }
        core.admin.ring(&self.function);
        let listening = &mut core.listening;
        let mut outcome = core.admin.complete(|command, entry| {
            if *listening != Listening::Asked(command) {
                return;
            }
            *listening = Listening::Refused;
            if entry.status().is_success() {
                let event = AsyncEvent::from_result(entry.result_low());
                *listening = Listening::Heard(event.log_page);
                // Full: whoever does not listen misses it.
                let _ = self.events.try_push(event);
            }
        });
        let mut held = 0;
        // Who has talked nonsense is not listened to before its reset.
        if core.state == State::Running && core.verdict.is_none() {
            if core.settle(&self.function) {
                core.io.ring(&self.function);
            } else {
                // Looked at again in the next turn, not after a sleep.
                held = usize::from(core.io.outstanding() > 0);
            }
            outcome = outcome.and_then(|admin| core.io.complete(|_, _| {}).map(|io| admin + io));
        }
        let count = outcome.unwrap_or_else(|channel::Nonsense| {
            core.verdict = Some(Verdict::Reset);
            0
        });
        let heard = matches!(core.listening, Listening::No | Listening::Heard(_));
        if core.state == State::Running && (heard || core.verdict.is_some()) {
            self.alarm.notify_all();
        }
        count + held
    }

    /// The controller is up.
    fn run(&self, info: DeviceInfo) {
        let mut core = self.core.borrow_mut();
        core.info = info;
        core.state = State::Running;
    }

    /// The end: nothing is submitted any more, the function is stopped, and what was in flight ends.
    fn fail(&self) {
        self.core.borrow_mut().state = State::Failed;
        self.function.reset();
        let mut core = self.core.borrow_mut();
        core.io.restart(Ended::Gone);
        core.admin.restart(Ended::Gone);
        self.alarm.notify_all();
    }

    #[inline]
    fn submit(&self, io: Io<'_>) -> Result<Pending<Answer>, SubmitError> {
        let mut core = self.core.borrow_mut();
        let (entry, segments) = command(&core.info, io)?;
        let entry = match core.protection {
            Protection::Controller { reference } => protected(entry, io, reference),
            Protection::None => entry,
        };
        self.start(&mut core, entry, segments)
    }

    /// As a read, but the device looks whether the memory holds the same already. It has no place for protection information.
    fn compare(&self, lba: Lba, segments: &[Segment]) -> Result<Pending<Answer>, SubmitError> {
        let mut core = self.core.borrow_mut();
        let (read, segments) = command(&core.info, Io::Read { lba, segments })?;
        if core.protection != Protection::None {
            return Err(SubmitError::Invalid);
        }
        let entry = SubmissionEntry::compare(core.info.namespace, lba, read.block_count());
        self.start(&mut core, entry, segments)
    }

    #[inline]
    fn start(
        &self,
        core: &mut Core,
        entry: SubmissionEntry,
        segments: &[Segment],
    ) -> Result<Pending<Answer>, SubmitError> {
        if core.state == State::Failed {
            return Err(SubmitError::Gone);
        }
        let pending = core.io.submit(entry, segments, &core.mappings, core.sgl, core.tick)?;
        if !core.ticking {
            core.ticking = true;
            self.alarm.notify_all();
        }
        Ok(pending)
    }
}

/// The command without its data, after the checks that need no device.
#[inline]
fn command<'a>(info: &DeviceInfo, io: Io<'a>) -> Result<(SubmissionEntry, &'a [Segment]), SubmitError> {
    let ns = info.namespace;
    let blocks = |lba: Lba, segments: &[Segment]| {
        let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
        let blocks = BlockCount(bytes / BLOCK_BYTES as u64);
        if blocks > info.transfer_blocks_max { Err(SubmitError::Invalid) } else { in_range(info, lba, blocks) }
    };
    Ok(match io {
        Io::Read { lba, segments } => (SubmissionEntry::read(ns, lba, blocks(lba, segments)?), segments),
        Io::Write { lba, segments, fua } => {
            let blocks = blocks(lba, segments)?;
            (SubmissionEntry::write(ns, lba, blocks, fua && info.volatile_cache), segments)
        }
        Io::Flush => (SubmissionEntry::flush(ns), &[]),
        Io::WriteZeroes { lba, blocks } => {
            let blocks = in_range(info, lba, blocks)?;
            if blocks.0 > rw::BLOCKS_MAX {
                return Err(SubmitError::Invalid);
            }
            (SubmissionEntry::write_zeroes(ns, lba, blocks), &[])
        }
    })
}

fn in_range(info: &DeviceInfo, lba: Lba, blocks: BlockCount) -> Result<BlockCount, SubmitError> {
    let end = lba.0.checked_add(blocks.0).ok_or(SubmitError::Invalid)?;
    if blocks.0 == 0 || end > info.blocks.0 { Err(SubmitError::Invalid) } else { Ok(blocks) }
}

/// Asks the controller to make and check protection information (NVM 5.2.2; the initial reference tag is the low half of the address).
fn protected(entry: SubmissionEntry, io: Io<'_>, reference: bool) -> SubmissionEntry {
    let [a, b, c, d, ..] = entry.lba().0.to_le_bytes();
    let checks = match io {
        Io::Flush => return entry,
        // There is nothing to check, and asking for it is an error (NVM 3.2.8, PRINFO).
        Io::WriteZeroes { .. } => 0,
        Io::Read { .. } | Io::Write { .. } if reference => rw::CHECK_GUARD | rw::CHECK_REFERENCE_TAG,
        Io::Read { .. } | Io::Write { .. } => rw::CHECK_GUARD,
    };
    entry.with_dword(12, entry.dword(12) | rw::PRACT | checks).with_dword(14, u32::from_le_bytes([a, b, c, d]))
}

/// What a status means to whoever gave the command.
fn error_of(status: Status) -> DeviceError {
    match status.code() {
        Status::RESERVATION_CONFLICT => DeviceError::ReservationConflict,
        Status::ABORT_REQUESTED
        | Status::ABORTED_SQ_DELETION
        | Status::ABORTED_PREEMPT
        | Status::ABORTED_POWER_LOSS
        | Status::COMMAND_INTERRUPTED
        | Status::TRANSIENT_TRANSPORT
        | Status::NAMESPACE_NOT_READY
        | Status::FORMAT_IN_PROGRESS => DeviceError::Aborted,
        Status::INTERNAL_ERROR | Status::DATA_TRANSFER_ERROR => DeviceError::Media,
        other => match other.kind() {
            dyad_nvme::status::StatusType::Media => DeviceError::Media,
            dyad_nvme::status::StatusType::Path => DeviceError::Aborted,
            _ => DeviceError::Rejected,
        },
    }
}

fn outcome(answer: Answer) -> Result<(), DeviceError> {
    match answer {
        Ok(entry) if entry.status().is_success() => Ok(()),
        Ok(entry) => Err(error_of(entry.status())),
        Err(Ended::Reset) => Err(DeviceError::Aborted),
        Err(Ended::Gone) => Err(DeviceError::Gone),
    }
}

/// The completion of an I/O command.
#[derive(Debug)]
pub struct Completion(Pending<Answer>);

impl Future for Completion {
    type Output = Result<(), DeviceError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(outcome)
    }
}

impl<F: PciFunction> Device for Driver<F> {
    type Completion = Completion;

    fn info(&self) -> DeviceInfo {
        self.shared.core.borrow().info
    }

    fn map(&self, memory: &Memory) -> Result<(), SubmitError> {
        if self.failed() {
            return Err(SubmitError::Gone);
        }
        let address = self.shared.function.map_dma(memory).map_err(|error| match error {
            DmaError::Gone => SubmitError::Gone,
            DmaError::Unreachable | DmaError::Full | DmaError::NoMemory | DmaError::LockLimit { .. } => {
                SubmitError::Invalid
            }
        })?;
        let mut core = self.shared.core.borrow_mut();
        core.mappings.add(memory, address.0);
        core.settled = false;
        Ok(())
    }

    #[inline]
    fn submit(&self, io: Io<'_>) -> Result<Completion, SubmitError> {
        self.shared.submit(io).map(Completion)
    }

    async fn reserve(&self, op: ReservationOp) -> Result<(), DeviceError> {
        self.shared.reserve(op).await
    }

    async fn reservation_report(&self) -> Result<ReservationReport, DeviceError> {
        self.shared.reservation_report().await
    }
}

impl<F: PciFunction> dyad_reactor::Source for Driver<F> {
    fn poll(&mut self) -> usize {
        Self::poll(self)
    }

    fn arm(&mut self) {
        self.shared.function.mask_interrupt(false);
    }

    fn disarm(&mut self) {
        self.shared.function.mask_interrupt(true);
        if self.shared.function.is_leaving() {
            self.shared.core.borrow_mut().verdict = Some(Verdict::Fail);
            self.shared.alarm.notify_all();
        }
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.shared.function.interrupt()
    }
}

/// Runs a future on an executor that nobody runs yet: devices are attached before the reactor starts. `pump` does
/// whatever else the future waits for (polling drivers, stepping emulated devices) and returns how much there was.
///
/// Uses the core until the future is done, so only for what ends soon.
pub fn block_on<T>(executor: &Executor, mut pump: impl FnMut() -> usize, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        if pump() + executor.run_until_idle(&mut Fifo) + executor.fire_timers() == 0 {
            std::thread::yield_now();
        }
    }
}

/// A device that nobody has identified yet.
const UNKNOWN: DeviceInfo = DeviceInfo {
    id: DeviceId([0; 16]),
    namespace: NamespaceId::NONE,
    blocks: BlockCount(0),
    transfer_blocks_max: BlockCount(0),
    queue_depth: 0,
    volatile_cache: false,
    reservations: false,
};

#[cfg(test)]
mod tests;
