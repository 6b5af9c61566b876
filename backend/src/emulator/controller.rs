//! One controller (one port of the subsystem): registers, queues and what the host set.
//!
//! | state | what happens | next |
//! |---|---|---|
//! | `Disabled` | CC.EN set, queues make sense | `Enabling` |
//! | `Disabled` | CC.EN set, queues make no sense | `Fatal` |
//! | `Enabling` | its time is over | `Ready` |
//! | `Enabling`, `Ready`, `Fatal`, `ShutDown` | CC.EN cleared (controller reset) | `Disabled` |
//! | `Ready` | CC.SHN set | `ShutDown` |
//! | `Enabling`, `Ready` | controller fatal (fault) | `Fatal` |
//! | any | power lost, or removed | `Off` |
//! | `Off` | power back | `Disabled` |

use std::collections::VecDeque;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::feature::AsyncEvent;
use dyad_nvme::log::{ErrorEntry, ReservationNotification, SmartLog};
use dyad_nvme::register::{
    self, AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, Doorbell, ShutdownRequest, Version,
};
use dyad_nvme::types::{BLOCK_BYTES, CommandId, HostId, Lba, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::Time;

use super::dma::{DmaMap, PAGE, Place};
use super::event::Events;
use super::queue::{CompletionQueue, SubmissionQueue, completion};
use super::reservation::Host;

/// Bytes of BAR 0: registers, doorbells, and the MSI-X table with its pending bits.
pub const BAR_BYTES: u64 = 0x4000;
/// Where the doorbells lie in BAR 0.
pub const DOORBELL_PAGE: u64 = 0x1000;
/// Where the MSI-X table lies in BAR 0; the pending bit array is a page behind it.
pub const MSIX_PAGE: u64 = 0x2000;
/// Where the vector control word of vector 0 lies in BAR 0; bit 0 masks the vector (PCI 3.0, 6.8.2.9).
pub const MSIX_CONTROL: u64 = MSIX_PAGE + 12;

/// Entries of the error log.
pub(super) const ERROR_LOG_ENTRIES: usize = 16;

/// Reservation notifications that wait to be read; later ones push out earlier ones.
const NOTIFICATIONS_MAX: usize = 255;

/// Completions that wait for room in their queue before no more commands are fetched for it.
const BACKLOG_MAX: usize = 4096;

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum State {
    Off,
    Disabled,
    Enabling { at: Time },
    Ready,
    Fatal,
    ShutDown,
}

/// Shadow doorbells and `EventIdx` values in host memory (Base B.5).
#[derive(Debug, Clone)]
struct Shadow {
    doorbells: Place,
    event_index: Place,
}

/// What Set Features set; gone with a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) arbitration: u32,
    pub(super) power_management: u32,
    /// Composite temperature above, and below, which to warn.
    pub(super) temperature_thresholds: [u32; 2],
    pub(super) error_recovery: u32,
    pub(super) write_cache: u32,
    pub(super) interrupt_coalescing: u32,
    pub(super) write_atomicity: u32,
    pub(super) timestamp: u64,
    pub(super) keep_alive_ms: u32,
    pub(super) host_behavior: [u8; 512],
    pub(super) reservation_mask: u32,
}

impl Features {
    pub(super) const fn new() -> Self {
        Self {
            arbitration: 0,
            power_management: 0,
            temperature_thresholds: [343, 0],
            error_recovery: 0,
            write_cache: 1,
            interrupt_coalescing: 0,
            write_atomicity: 0,
            timestamp: 0,
            keep_alive_ms: 0,
            host_behavior: [0; 512],
            reservation_mask: 0,
        }
    }
}

/// What has been moved in one direction.
#[derive(Debug, Copy, Clone, Default)]
pub(super) struct Moved {
    commands: u64,
    blocks: u64,
}

impl Moved {
    #[inline]
    pub(super) fn count(&mut self, entry: &SubmissionEntry) {
        self.commands += 1;
        self.blocks += entry.block_count().0;
    }

    /// In thousands of 512 bytes, rounded up.
    fn units(self) -> u128 {
        (u128::from(self.blocks) * (BLOCK_BYTES as u128 / 512)).div_ceil(1000)
    }
}

/// One controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) port: usize,
    pub(super) state: State,
    capabilities: Capabilities,
    ready_after: Duration,
    configuration: Configuration,
    admin_queues: AdminQueueAttributes,
    admin_sq: u64,
    admin_cq: u64,
    /// BAR 0 as far as it is memory: doorbells and the MSI-X table, shared with whoever rings.
    pub(super) bar: Memory,
    /// Vector 0 is to be signalled.
    interrupt: bool,
    /// It was to be signalled while masked.
    interrupt_pending: bool,
    pub(super) dma: DmaMap,
    sqs: Vec<Option<SubmissionQueue>>,
    cqs: Vec<Option<CompletionQueue>>,
    shadow: Option<Shadow>,
    pub(super) host_id: HostId,
    pub(super) features: Features,
    pub(super) events: Events,
    /// Counts resets: commands of an earlier life end silently.
    pub(super) life: u32,
    /// Commands fetched and not completed.
    pub(super) in_flight: u32,
    pub(super) reads: Moved,
    pub(super) writes: Moved,
    pub(super) smart: SmartLog,
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    notifications: VecDeque<ReservationNotification>,
    notification_count: u64,
    pub(super) changed_namespaces: Vec<NamespaceId>,
}

impl Controller {
    pub(super) fn new(port: usize, io_queues: u16, queue_entries: u16, ready_after: Duration) -> Self {
        let queues = usize::from(io_queues) + 1;
        let bar = Memory::anonymous(usize::try_from(BAR_BYTES).expect("a few pages"));
        bar.store_u32(MSIX_CONTROL, 1).expect("inside the BAR");
        Self {
            port,
            state: State::Disabled,
            capabilities: Capabilities::new(queue_entries, 20),
            ready_after,
            configuration: Configuration::DISABLED,
            admin_queues: AdminQueueAttributes::default(),
            admin_sq: 0,
            admin_cq: 0,
            bar,
            interrupt: false,
            interrupt_pending: false,
            dma: DmaMap::default(),
            sqs: (0..queues).map(|_| None).collect(),
            cqs: (0..queues).map(|_| None).collect(),
            shadow: None,
            host_id: HostId::NONE,
            features: Features::new(),
            events: Events::default(),
            life: 0,
            in_flight: 0,
            reads: Moved::default(),
            writes: Moved::default(),
            smart: SmartLog {
                temperature_k: 300,
                spare_percent: 100,
                spare_threshold_percent: 10,
                ..SmartLog::default()
            },
            errors: VecDeque::with_capacity(ERROR_LOG_ENTRIES),
            error_count: 0,
            notifications: VecDeque::new(),
            notification_count: 0,
            changed_namespaces: Vec::new(),
        }
    }

    /// Who is behind this controller.
    pub(super) fn host(&self) -> Host {
        if self.host_id == HostId::NONE {
            Host::Unidentified { port: self.port }
        } else {
            Host::Identified(self.host_id)
        }
    }

    pub(super) fn io_queues_max(&self) -> u16 {
        u16::try_from(self.sqs.len() - 1).expect("made from a u16")
    }

    /// Reads a 4-byte register.
    pub(super) fn read32(&self, offset: u32) -> u32 {
        if self.state == State::Off {
            return register::GONE;
        }
        let half =
            |value: u64, high: bool| u32::try_from(if high { value >> 32 } else { value & 0xffff_ffff }).expect("half");
        match offset {
            register::CAP => half(self.capabilities.0, false),
            0x04 => half(self.capabilities.0, true),
            register::VS => Version::V2_0.0,
            register::CC => self.configuration.0,
            register::CSTS => match self.state {
                State::Off => register::GONE,
                State::Disabled | State::Enabling { .. } => 0,
                State::Ready => ControllerStatus::READY,
                State::Fatal => ControllerStatus::FATAL,
                State::ShutDown => ControllerStatus::READY | ControllerStatus::SHUTDOWN_COMPLETE,
            },
            register::AQA => self.admin_queues.0,
            register::ASQ => half(self.admin_sq, false),
            0x2c => half(self.admin_sq, true),
            register::ACQ => half(self.admin_cq, false),
            0x34 => half(self.admin_cq, true),
            _ => 0,
        }
    }

    /// Writes a 4-byte register other than CC; see [`Self::configure`].
    pub(super) fn write32(&mut self, offset: u32, value: u32) {
        let low = |whole: u64| whole & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |whole: u64| whole & 0xffff_ffff | u64::from(value) << 32;
        if self.state != State::Disabled {
            return; // Base 3.1.3.8 to 10: changed only while disabled
        }
        match offset {
            register::AQA => self.admin_queues = AdminQueueAttributes(value),
            register::ASQ => self.admin_sq = low(self.admin_sq),
            0x2c => self.admin_sq = high(self.admin_sq),
            register::ACQ => self.admin_cq = low(self.admin_cq),
            0x34 => self.admin_cq = high(self.admin_cq),
            _ => {}
        }
    }

    /// Writes CC. True if the controller was reset by it.
    pub(super) fn configure(&mut self, configuration: Configuration, now: Time) -> Configured {
        let before = std::mem::replace(&mut self.configuration, configuration);
        match (self.state, configuration.enabled()) {
            (State::Off, _) => {
                self.configuration = before;
                Configured::Nothing
            }
            (State::Disabled, true) => {
                self.state = self.enable(now);
                Configured::Nothing
            }
            (State::Disabled, false) => Configured::Nothing,
            (_, false) => {
                self.reset(State::Disabled);
                Configured::Reset
            }
            (State::Ready, true) if configuration.shutdown() != ShutdownRequest::None => {
                self.state = State::ShutDown;
                Configured::ShutDown(configuration.shutdown())
            }
            (State::Enabling { .. } | State::Ready | State::Fatal | State::ShutDown, true) => Configured::Nothing,
        }
    }

    fn enable(&mut self, now: Time) -> State {
        let (sq_entries, cq_entries) = (self.admin_queues.sq_entries(), self.admin_queues.cq_entries());
        let sq = self.dma.place(self.admin_sq, u64::from(sq_entries) * 64);
        let cq = self.dma.place(self.admin_cq, u64::from(cq_entries) * 16);
        let fits = sq_entries >= 2
            && cq_entries >= 2
            && self.configuration.command_set() == 0
            && self.configuration.page_size() == 0
            && self.configuration.arbitration() == 0;
        let (Some(sq), Some(cq), true) = (sq, cq, fits) else { return State::Fatal };
        self.sqs[0] = Some(SubmissionQueue::new(QueueId::ADMIN, sq, sq_entries, QueueId::ADMIN));
        self.cqs[0] = Some(CompletionQueue::new(cq, cq_entries, true));
        State::Enabling { at: now + self.ready_after }
    }

    /// Forgets everything that a controller reset, or worse, ends.
    pub(super) fn reset(&mut self, to: State) {
        self.state = to;
        self.configuration = Configuration::DISABLED;
        self.sqs.iter_mut().for_each(|q| *q = None);
        self.cqs.iter_mut().for_each(|q| *q = None);
        self.shadow = None;
        self.host_id = HostId::NONE;
        self.features = Features::new();
        self.events = Events::default();
        self.notifications.clear();
        self.changed_namespaces.clear();
        self.interrupt_pending = false;
        self.life = self.life.wrapping_add(1);
        self.in_flight = 0;
        let _ = self.bar.fill_zero(DOORBELL_PAGE, PAGE);
        let _ = self.bar.store_u32(MSIX_CONTROL, 1);
    }

    /// Broken until it is reset: CSTS.CFS, nothing is fetched or completed any more.
    pub(super) fn fail(&mut self) {
        if matches!(self.state, State::Enabling { .. } | State::Ready) {
            self.state = State::Fatal;
        }
    }

    /// Goes from enabling to ready when it is time. True when commands are to be served.
    pub(super) fn ready(&mut self, now: Time) -> bool {
        if matches!(self.state, State::Enabling { at } if at <= now) {
            self.state = State::Ready;
        }
        self.state == State::Ready
    }

    /// When something happens by itself.
    pub(super) fn next_event(&self) -> Option<Time> {
        match self.state {
            State::Enabling { at } => Some(at),
            _ => None,
        }
    }

    /// Queue identifiers that there may be: zero to this, exclusive.
    pub(super) fn queues(&self) -> usize {
        self.sqs.len()
    }

    /// Fetches the next command of a queue.
    #[inline]
    pub(super) fn fetch(&mut self, queue: usize) -> Option<(QueueId, SubmissionEntry)> {
        let sq = self.sqs[queue].as_mut()?;
        let at = doorbell(queue, Doorbell::SubmissionTail);
        let tail = match &self.shadow {
            Some(shadow) if queue != 0 => shadow.doorbells.load_u32(at),
            _ => self.bar.load_u32(DOORBELL_PAGE + at).unwrap_or(0),
        };
        match sq.waiting(tail) {
            Ok(0) => None,
            Ok(_) => {
                self.in_flight += 1;
                Some((sq.id, sq.fetch()))
            }
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    /// The host takes no completions: nothing more is fetched for them before it does.
    #[inline]
    pub(super) fn clogged(&self, queue: usize) -> bool {
        let sq = self.sqs[queue].as_ref();
        let cq = sq.and_then(|sq| self.cqs[usize::from(sq.completion_queue.0)].as_ref());
        cq.is_some_and(|cq| cq.backlog.len() >= BACKLOG_MAX)
    }

    /// What the next command of the queue would read; see [`SubmissionQueue::peek`].
    #[inline]
    pub(super) fn peek(&self, queue: usize) -> Option<(u64, u64)> {
        self.sqs[queue].as_ref()?.peek()
    }

    /// After a burst of fetches: hosts need not ring, the queue is being watched.
    #[inline]
    pub(super) fn watch(&self, queue: usize) {
        if let (Some(shadow), Some(sq)) = (&self.shadow, &self.sqs[queue])
            && queue != 0
        {
            shadow.event_index.store_u32(doorbell(queue, Doorbell::SubmissionTail), sq.quiet_event_index());
            if let Some(cq) = &self.cqs[usize::from(sq.completion_queue.0)] {
                let at = doorbell(usize::from(sq.completion_queue.0), Doorbell::CompletionHead);
                shadow.event_index.store_u32(at, u32::from(cq.tail));
            }
        }
    }

    /// Asks the host to ring from now on. The caller must look at the queues once more before it sleeps.
    pub(super) fn ask_for_doorbells(&self) {
        let Some(shadow) = &self.shadow else { return };
        for queue in 1..self.sqs.len() {
            if let Some(sq) = &self.sqs[queue] {
                shadow.event_index.store_u32(doorbell(queue, Doorbell::SubmissionTail), u32::from(sq.head));
            }
            if let Some(cq) = self.cqs[queue].as_ref().filter(|cq| !cq.backlog.is_empty()) {
                let at = doorbell(queue, Doorbell::CompletionHead);
                shadow.event_index.store_u32(at, shadow.doorbells.load_u32(at));
                debug_assert!(cq.entries >= 2);
            }
        }
    }

    /// Completes a command.
    #[inline]
    pub(super) fn complete(&mut self, queue: QueueId, command: CommandId, status: Status, result: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(sq) = &self.sqs[usize::from(queue.0)] else { return };
        let entry = completion(sq, command, status, result);
        let to = usize::from(sq.completion_queue.0);
        self.post(to, entry);
    }

    /// Posts a completion whose submission queue may be gone.
    fn post(&mut self, queue: usize, entry: CompletionEntry) {
        let head = self.completion_head(queue);
        let Some(cq) = &mut self.cqs[queue] else { return };
        if !cq.backlog.is_empty() || !cq.post(head, entry) {
            cq.backlog.push_back(entry);
        }
        self.interrupt_pending |= cq.interrupt;
    }

    #[inline]
    fn completion_head(&self, queue: usize) -> u32 {
        let at = doorbell(queue, Doorbell::CompletionHead);
        match &self.shadow {
            Some(shadow) if queue != 0 => shadow.doorbells.load_u32(at),
            _ => self.bar.load_u32(DOORBELL_PAGE + at).unwrap_or(0),
        }
    }

    /// Posts what found its completion queue full, as far as there is room now.
    pub(super) fn post_backlog(&mut self) -> usize {
        let mut posted = 0;
        for queue in 0..self.cqs.len() {
            let head = self.completion_head(queue);
            let Some(cq) = &mut self.cqs[queue] else { continue };
            while let Some(entry) = cq.backlog.front().copied()
                && cq.post(head, entry)
            {
                cq.backlog.pop_front();
                posted += 1;
            }
        }
        posted
    }

    /// Vector 0 is to be signalled now. Between the completions and the look at the mask lies a full fence, as between the host's unmasking and its last look.
    pub(super) fn take_interrupt(&mut self) -> bool {
        if self.interrupt_pending {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.bar.load_u32(MSIX_CONTROL).unwrap_or(1) & 1 == 0 {
                self.interrupt_pending = false;
                self.interrupt = true;
            }
        }
        std::mem::take(&mut self.interrupt)
    }

    /// Create I/O Completion Queue (Base 5.4).
    pub(super) fn create_cq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (id, entries) = self.new_queue(entry)?;
        if entry.dword(11) & 1 == 0 || self.configuration.io_cq_entry() != 4 {
            return Err(Status::INVALID_FIELD);
        }
        if self.cqs[id].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let interrupt = entry.dword(11) & 2 != 0;
        if interrupt && entry.dword(11) >> 16 != 0 {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        let ring = self.ring(entry.prp1(), u64::from(entries) * 16)?;
        self.cqs[id] = Some(CompletionQueue::new(ring, entries, interrupt));
        self.clear_doorbell(id, Doorbell::CompletionHead);
        Ok(())
    }

    /// Create I/O Submission Queue (Base 5.5).
    pub(super) fn create_sq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (id, entries) = self.new_queue(entry)?;
        if entry.dword(11) & 1 == 0 || self.configuration.io_sq_entry() != 6 {
            return Err(Status::INVALID_FIELD);
        }
        if self.sqs[id].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let completion_queue = u16::try_from(entry.dword(11) >> 16).expect("16 bits");
        if completion_queue == 0 || self.cqs.get(usize::from(completion_queue)).is_none_or(Option::is_none) {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let ring = self.ring(entry.prp1(), u64::from(entries) * 64)?;
        let queue = QueueId(u16::try_from(id).expect("checked"));
        self.sqs[id] = Some(SubmissionQueue::new(queue, ring, entries, QueueId(completion_queue)));
        self.clear_doorbell(id, Doorbell::SubmissionTail);
        Ok(())
    }

    /// Delete I/O Completion Queue (Base 5.6).
    pub(super) fn delete_cq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let id = self.io_queue(entry)?;
        if self.cqs[id].is_none() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.sqs.iter().flatten().any(|sq| usize::from(sq.completion_queue.0) == id) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.cqs[id] = None;
        Ok(())
    }

    /// Delete I/O Submission Queue (Base 5.7). The caller ends its commands first.
    pub(super) fn delete_sq(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let id = self.io_queue(entry)?;
        self.sqs[id].take().map(|_| ()).ok_or(Status::INVALID_QUEUE_ID)
    }

    /// True if there is such a submission queue.
    pub(super) fn has_sq(&self, queue: QueueId) -> bool {
        self.sqs.get(usize::from(queue.0)).is_some_and(Option::is_some)
    }

    /// Doorbell Buffer Config (Base 5.8).
    pub(super) fn set_shadow(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let page = |address: u64| {
            if address == 0 || !address.is_multiple_of(PAGE) {
                return Err(Status::INVALID_FIELD);
            }
            self.dma.place(address, PAGE).ok_or(Status::INVALID_FIELD)
        };
        let shadow = Shadow { doorbells: page(entry.prp1())?, event_index: page(entry.prp2())? };
        // Queues that exist go on where they are.
        for queue in 1..self.sqs.len() {
            for which in [Doorbell::SubmissionTail, Doorbell::CompletionHead] {
                let at = doorbell(queue, which);
                shadow.doorbells.store_u32(at, self.bar.load_u32(DOORBELL_PAGE + at).unwrap_or(0));
            }
        }
        self.shadow = Some(shadow);
        Ok(())
    }

    /// The DMA range lost its memory: queues in it cannot be used any more.
    pub(super) fn unmap(&mut self, start: u64, len: u64) -> bool {
        let found = self.dma.unmap(start, len);
        if found && matches!(self.state, State::Enabling { .. } | State::Ready) {
            let lost = |place: &Place, len: u64| !self.dma.holds(&place.memory, place.offset, len);
            let sq_lost = self.sqs.iter().flatten().any(|q| lost(&q.ring, u64::from(q.entries) * 64));
            let cq_lost = self.cqs.iter().flatten().any(|q| lost(&q.ring, u64::from(q.entries) * 16));
            let shadow_lost = self.shadow.iter().any(|s| lost(&s.doorbells, PAGE) || lost(&s.event_index, PAGE));
            if sq_lost || cq_lost || shadow_lost {
                self.sqs.iter_mut().for_each(|q| *q = None);
                self.cqs.iter_mut().for_each(|q| *q = None);
                self.shadow = None;
                self.fail();
            }
        }
        found
    }

    /// SMART / Health Information (Base 5.16.1.3).
    pub(super) fn smart(&self) -> SmartLog {
        SmartLog {
            host_reads: self.reads.commands.into(),
            host_writes: self.writes.commands.into(),
            data_units_read: self.reads.units(),
            data_units_written: self.writes.units(),
            ..self.smart
        }
    }

    /// Notes an error for the log page, and counts it.
    pub(super) fn log_error(
        &mut self,
        queue: QueueId,
        command: CommandId,
        status: Status,
        lba: Lba,
        namespace: NamespaceId,
    ) {
        self.error_count += 1;
        self.smart.error_entries += 1;
        if status.kind() == dyad_nvme::status::StatusType::Media {
            self.smart.media_errors += 1;
        }
        if self.errors.len() == ERROR_LOG_ENTRIES {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorEntry { count: self.error_count, queue, command, status, lba, namespace });
    }

    /// The error log, newest first.
    pub(super) fn errors(&self) -> impl Iterator<Item = &ErrorEntry> {
        self.errors.iter()
    }

    /// A namespace is not what it was; the host hears of it, and finds it in the log page.
    pub(super) fn namespace_changed(&mut self, namespace: NamespaceId) {
        if !self.changed_namespaces.contains(&namespace) {
            self.changed_namespaces.push(namespace);
        }
        self.events.raise(AsyncEvent::NAMESPACE_CHANGED);
    }

    /// A reservation of this controller's host changed by somebody else's command.
    pub(super) fn notify(&mut self, kind: u8, namespace: NamespaceId) {
        if self.features.reservation_mask & 1 << kind != 0 || self.state != State::Ready {
            return;
        }
        self.notification_count += 1;
        if self.notifications.len() == NOTIFICATIONS_MAX {
            self.notifications.pop_front();
        }
        let count = self.notification_count;
        self.notifications.push_back(ReservationNotification { count, kind, available: 0, namespace: namespace.0 });
        self.events.raise(AsyncEvent::RESERVATION);
    }

    /// The oldest notification; it is gone once it was read.
    pub(super) fn take_notification(&mut self) -> ReservationNotification {
        let mut notification = self.notifications.pop_front().unwrap_or_default();
        notification.available = u8::try_from(self.notifications.len()).unwrap_or(u8::MAX);
        notification
    }

    fn io_queue(&self, entry: &SubmissionEntry) -> Result<usize, Status> {
        let id = usize::try_from(entry.dword(10) & 0xffff).expect("16 bits");
        if (1..self.sqs.len()).contains(&id) { Ok(id) } else { Err(Status::INVALID_QUEUE_ID) }
    }

    fn new_queue(&self, entry: &SubmissionEntry) -> Result<(usize, u16), Status> {
        let id = self.io_queue(entry)?;
        let size = entry.dword(10) >> 16;
        if size == 0 || size >= self.capabilities.queue_entries_max() {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        Ok((id, u16::try_from(size + 1).map_err(|_| Status::INVALID_QUEUE_SIZE)?))
    }

    fn ring(&self, address: u64, len: u64) -> Result<Place, Status> {
        if !address.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        self.dma.place(address, len).ok_or(Status::INVALID_FIELD)
    }

    fn clear_doorbell(&self, queue: usize, which: Doorbell) {
        let at = doorbell(queue, which);
        let _ = self.bar.store_u32(DOORBELL_PAGE + at, 0);
        if let Some(shadow) = &self.shadow {
            shadow.doorbells.store_u32(at, 0);
            shadow.event_index.store_u32(at, 0);
        }
    }
}

/// What writing CC did.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Configured {
    Nothing,
    Reset,
    ShutDown(ShutdownRequest),
}

/// Offset of a doorbell behind [`DOORBELL_PAGE`], and in the shadow pages.
#[inline]
fn doorbell(queue: usize, which: Doorbell) -> u64 {
    let queue = u16::try_from(queue).expect("queue identifiers have 16 bits");
    u64::from(register::doorbell_offset(queue, which, 0)) - DOORBELL_PAGE
}
