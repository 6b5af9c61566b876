//! A namespace behind NVMe/TCP as a volume: one controller, an admin queue and an I/O queue.
//!
//! It has one path. When that is gone, operations fail with Host Pathing Error, and whoever uses it attaches again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::frames::{FramePool, Pinned};
use dyad_nvme::fabrics::{ConnectData, PropertySize};
use dyad_nvme::identify::{IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, cns};
use dyad_nvme::register::{self, Configuration, ControllerStatus};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, ControllerId, HostId, Lba, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry, feature};
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::Permits;
use dyad_reactor::{BootClock, Clock, Source, Time};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::queue::{Queue, Style, Way};
use crate::volume::{Volume, VolumeError};

/// What a [`TcpInitiator`] is made with.
#[derive(Debug, Clone)]
pub struct TcpInitiatorConfig {
    /// The controller's port.
    pub address: SocketAddr,
    /// The subsystem.
    pub subsystem_nqn: String,
    /// Who this host is.
    pub host_nqn: String,
    /// The same as a number; not zero.
    pub host: HostId,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Commands outstanding at once, 1 to 1023.
    pub depth: u16,
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// The controller ends the session of a host that is silent that long; zero: never.
    pub keep_alive: Duration,
    /// How long each step of attaching may take.
    pub connect_timeout: Duration,
    /// How long a command may take.
    pub command_timeout: Duration,
}

/// Why there is no volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::ErrorKind),
    /// The controller answered with this status.
    #[error("the controller answered {step} with: {status}")]
    Status {
        /// What it was asked.
        step: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The controller did not answer, or is not ready, in time.
    #[error("the controller does not answer {0}")]
    TimedOut(&'static str),
    /// The namespace has blocks of another size.
    #[error("the namespace has no blocks of 4 KiB")]
    BlockSize,
    /// There are no frames to learn in.
    #[error("no free frame")]
    Frames,
    /// The kernel refused something.
    #[error("the kernel: {0}")]
    Os(Errno),
}

struct Inner {
    handle: Handle,
    config: TcpInitiatorConfig,
    pool: FramePool,
    blocks: BlockCount,
    /// Longest transfer in blocks.
    transfer_max: u64,
    epoll: Epoll,
    admin: RefCell<Queue>,
    io: RefCell<Queue>,
    /// The frames of commands in flight, by slot of the I/O queue.
    held: RefCell<Vec<Option<Pinned>>>,
    slots: Permits,
    /// Something was queued since the queues were polled.
    queued: Cell<bool>,
}

/// The volume. Clones are the same.
#[derive(Clone)]
pub struct TcpInitiator {
    inner: Rc<Inner>,
}

/// The part of a [`TcpInitiator`] that a reactor polls.
pub struct TcpInitiatorSource(TcpInitiator);

const ADMIN: u64 = 0;
const IO: u64 = 1;
/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;

impl TcpInitiator {
    /// Connects, and spawns a task that keeps the session alive. Waits on the calling thread, as long as the configuration says at most.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(handle: &Handle, config: TcpInitiatorConfig, pool: FramePool) -> Result<Self, AttachError> {
        let setup = Setup { config: &config, pool: &pool };
        let mut admin = setup.open(ADMIN_ENTRIES)?;
        let keep_alive_ms = u32::try_from(config.keep_alive.as_millis()).unwrap_or(u32::MAX);
        let connect = SubmissionEntry::connect(QueueId::ADMIN, ADMIN_ENTRIES, keep_alive_ms);
        let answer = setup.connect(&mut admin, connect, ControllerId::DYNAMIC)?;
        let controller = ControllerId(u16::try_from(answer.result_low() & 0xffff).expect("16 bits"));
        setup.enable(&mut admin)?;
        let page = setup.page(&mut admin, "Identify Controller", cns::CONTROLLER, NamespaceId::NONE)?;
        let about = IdentifyController::from_bytes(&page);
        let page = setup.page(&mut admin, "Identify Namespace", cns::NAMESPACE, config.namespace)?;
        let namespace = IdentifyNamespace::from_bytes(&page);
        if namespace.block_bytes() != Some(BLOCK_BYTES as u64) {
            return Err(AttachError::BlockSize);
        }
        let queues = SubmissionEntry::set_features(feature::NUMBER_OF_QUEUES, NamespaceId::NONE, 0);
        setup.ask(&mut admin, "Set Features", queues)?;
        // One entry more than commands: a full queue has one that is empty (Base 3.3.1.4).
        let entries = config.depth + 1;
        let mut io = setup.open(entries)?;
        // We do not look at submission queue heads (CATTR bit 2).
        let connect = SubmissionEntry::connect(QueueId(1), entries, 0);
        let connect = connect.with_dword(11, connect.dword(11) | 1 << 18);
        setup.connect(&mut io, connect, controller)?;
        io.in_capsule_max = (about.command_capsule_16 * 16).saturating_sub(64);
        let transfer_max = if about.mdts == 0 { u64::MAX } else { 1 << about.mdts.min(16) };

        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(AttachError::Os)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        for (queue, name) in [(&admin, ADMIN), (&io, IO)] {
            epoll.add(queue.socket.as_fd(), EpollEvent::new(interest, name)).map_err(AttachError::Os)?;
        }
        let initiator = Self {
            inner: Rc::new(Inner {
                handle: handle.clone(),
                blocks: BlockCount(namespace.size),
                transfer_max,
                epoll,
                admin: RefCell::new(admin),
                io: RefCell::new(io),
                held: RefCell::new((0..entries).map(|_| None).collect()),
                slots: Permits::new(usize::from(config.depth)),
                queued: Cell::new(false),
                pool,
                config,
            }),
        };
        handle.spawn("tcp keep alive", initiator.clone().run_keep_alive());
        Ok(initiator)
    }

    /// What the reactor is to poll.
    #[must_use]
    pub fn source(&self) -> TcpInitiatorSource {
        TcpInitiatorSource(self.clone())
    }

    /// Its path is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.inner.io.borrow().dead
    }

    async fn run_keep_alive(self) {
        let inner = &*self.inner;
        if inner.config.keep_alive.is_zero() {
            return;
        }
        loop {
            inner.handle.sleep(inner.config.keep_alive / 2).await;
            let slot =
                inner.admin.borrow_mut().submit(SubmissionEntry::keep_alive(), Way::FromHost, Default::default());
            let Some(slot) = slot else { return };
            inner.queued.set(true);
            poll_fn(|cx| match inner.admin.borrow_mut().completion(slot, cx.waker()) {
                Some(_) => Poll::Ready(()),
                None => Poll::Pending,
            })
            .await;
            if inner.admin.borrow().dead {
                return;
            }
        }
    }

    /// Has a command done; the frames are held until the controller is done with them.
    async fn execute(&self, entry: SubmissionEntry, way: Way, frames: Pinned) -> Result<Pinned, VolumeError> {
        let inner = &*self.inner;
        let deadline = inner.handle.now() + inner.config.command_timeout;
        let timed_out = |_| VolumeError::TimedOut;
        let permit = inner.handle.timeout_at(deadline, inner.slots.acquire(1)).await.map_err(timed_out)?;
        let slot = {
            let mut queue = inner.io.borrow_mut();
            if queue.dead {
                return Err(VolumeError::Status(Status::HOST_PATHING_ERROR));
            }
            // Commands that were given up still have their slots: there may be none.
            let slot = queue.submit(entry, way, frames.segments()).ok_or(VolumeError::TimedOut)?;
            inner.held.borrow_mut()[usize::from(slot)] = Some(frames);
            slot
        };
        inner.queued.set(true);
        let mut waiting = Waiting { inner, slot, ended: false };
        let ended = poll_fn(|cx| match inner.io.borrow_mut().completion(slot, cx.waker()) {
            Some(completion) => Poll::Ready(completion),
            None => Poll::Pending,
        });
        let completion = inner.handle.timeout_at(deadline, ended).await.map_err(timed_out)?;
        waiting.ended = true;
        let frames = inner.held.borrow_mut()[usize::from(slot)].take().expect("they were held");
        drop(permit);
        if completion.status().is_success() { Ok(frames) } else { Err(VolumeError::Status(completion.status())) }
    }

    fn check_length(&self, frames: usize) -> Result<(), VolumeError> {
        let fits = frames as u64 <= self.inner.transfer_max;
        if fits { Ok(()) } else { Err(VolumeError::Status(Status::INVALID_FIELD)) }
    }
}

/// A command in flight. If it is given up, its frames and its slot wait for the controller.
struct Waiting<'a> {
    inner: &'a Inner,
    slot: u16,
    ended: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.ended && !self.inner.io.borrow_mut().abandon(self.slot) {
            self.inner.held.borrow_mut()[usize::from(self.slot)] = None;
        }
    }
}

impl Volume for TcpInitiator {
    fn blocks(&self) -> BlockCount {
        self.inner.blocks
    }

    fn pool(&self) -> &FramePool {
        &self.inner.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        self.check_length(frames.len())?;
        if frames.is_empty() {
            return Ok(frames);
        }
        let command = SubmissionEntry::read(self.inner.config.namespace, at, BlockCount(frames.len() as u64));
        self.execute(command, Way::ToHost, frames).await
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, false).await
    }

    async fn write_durable(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, true).await
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let nothing = self.inner.pool.pin(std::iter::empty());
        let flush = SubmissionEntry::flush(self.inner.config.namespace);
        self.execute(flush, Way::FromHost, nothing).await.map(|_| ())
    }
}

impl TcpInitiator {
    async fn write(&self, at: Lba, frames: &Pinned, fua: bool) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        self.check_length(frames.len())?;
        if frames.is_empty() {
            return Ok(());
        }
        let command = SubmissionEntry::write(self.inner.config.namespace, at, BlockCount(frames.len() as u64), fua);
        self.execute(command, Way::FromHost, frames.again()).await.map(|_| ())
    }
}

impl Source for TcpInitiatorSource {
    fn poll(&mut self) -> usize {
        let inner = &*self.0.inner;
        let memory = inner.pool.memory();
        let mut work = 0;
        if inner.queued.replace(false) {
            work += inner.io.borrow_mut().poll(memory) + inner.admin.borrow_mut().poll(memory);
        }
        let mut events = [EpollEvent::empty(); 2];
        let found = inner.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..found] {
            let readable = event.events().intersects(!EpollFlags::EPOLLOUT);
            let writable = event.events().intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR);
            let mut queue = if event.data() == IO { inner.io.borrow_mut() } else { inner.admin.borrow_mut() };
            queue.notice(readable, writable);
            work += queue.poll(memory);
        }
        while let Some(slot) = { inner.io.borrow_mut().take_abandoned() } {
            inner.held.borrow_mut()[usize::from(slot)] = None;
        }
        work
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.inner.epoll.0.as_fd())
    }
}

/// The steps of attaching, on the calling thread.
struct Setup<'a> {
    config: &'a TcpInitiatorConfig,
    pool: &'a FramePool,
}

impl Setup<'_> {
    fn open(&self, entries: u16) -> Result<Queue, AttachError> {
        let TcpInitiatorConfig { address, header_digest, data_digest, connect_timeout, .. } = *self.config;
        let style = Style { header_digest, data_digest };
        Queue::open(address, style, entries, connect_timeout).map_err(|error| AttachError::Connect(error.kind()))
    }

    /// Has one command done and waits for it.
    fn command(
        &self,
        queue: &mut Queue,
        step: &'static str,
        entry: SubmissionEntry,
        way: Way,
        frames: &Pinned,
        len: u32,
    ) -> Result<CompletionEntry, AttachError> {
        let deadline = BootClock.now() + self.config.connect_timeout;
        let mut segments = frames.segments();
        if let Some(segment) = segments.first_mut() {
            segment.len = len;
        }
        let slot = queue.submit(entry, way, segments).ok_or(AttachError::TimedOut(step))?;
        loop {
            queue.notice(true, true);
            queue.poll(self.pool.memory());
            if let Some(completion) = queue.completion(slot, std::task::Waker::noop()) {
                let status = completion.status();
                return if status.is_success() { Ok(completion) } else { Err(AttachError::Status { step, status }) };
            }
            let left = left_ms(deadline).ok_or(AttachError::TimedOut(step))?;
            let mut fds = [PollFd::new(queue.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(AttachError::Os(errno)),
            }
        }
    }

    fn ask(
        &self,
        queue: &mut Queue,
        step: &'static str,
        entry: SubmissionEntry,
    ) -> Result<CompletionEntry, AttachError> {
        self.command(queue, step, entry, Way::FromHost, &self.pool.pin(std::iter::empty()), 0)
    }

    fn connect(
        &self,
        queue: &mut Queue,
        entry: SubmissionEntry,
        controller: ControllerId,
    ) -> Result<CompletionEntry, AttachError> {
        let TcpInitiatorConfig { host, subsystem_nqn, host_nqn, .. } = self.config;
        let data = ConnectData::new(*host, controller, subsystem_nqn, host_nqn);
        let frame = self.pool.try_take(1).ok_or(AttachError::Frames)?;
        frame.write(0, &data.to_bytes());
        let len = u32::try_from(ConnectData::BYTES).expect("1024");
        self.command(queue, "Connect", entry, Way::FromHost, &frame, len)
    }

    /// Enables the controller and waits until it is ready (Base 3.5.1).
    fn enable(&self, queue: &mut Queue) -> Result<(), AttachError> {
        let enable = u64::from(Configuration::ENABLED.0);
        self.ask(queue, "Property Set", SubmissionEntry::property_set(register::CC, PropertySize::Four, enable))?;
        let deadline = BootClock.now() + self.config.connect_timeout;
        loop {
            let get = SubmissionEntry::property_get(register::CSTS, PropertySize::Four);
            let status = ControllerStatus(self.ask(queue, "Property Get", get)?.result_low());
            if status.ready() {
                return Ok(());
            }
            if status.fatal() || left_ms(deadline).is_none() {
                return Err(AttachError::TimedOut("to become ready"));
            }
        }
    }

    fn page(
        &self,
        queue: &mut Queue,
        step: &'static str,
        cns: u8,
        namespace: NamespaceId,
    ) -> Result<Box<[u8; IDENTIFY_BYTES]>, AttachError> {
        let frame = self.pool.try_take(1).ok_or(AttachError::Frames)?;
        let entry = SubmissionEntry::identify(cns, namespace, 0);
        let len = u32::try_from(IDENTIFY_BYTES).expect("4096");
        self.command(queue, step, entry, Way::ToHost, &frame, len)?;
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        frame.read(0, &mut page[..]);
        Ok(page)
    }
}

/// Milliseconds to a deadline, rounded up; `None` once it has passed.
fn left_ms(deadline: Time) -> Option<PollTimeout> {
    let left = deadline.since(BootClock.now());
    (!left.is_zero()).then(|| PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX))
}
