//! A namespace behind NVMe/TCP as a volume, over as many controllers as the subsystem has.
//!
//! One path is used at a time. A command whose path is gone, is silent, or answers that the namespace is elsewhere goes out
//! again on the next one; a path that is gone is attached again, on a thread of its own, for as long as the volume lives.
//!
//! What is sent again may have been done. That it is not done after what came later is the array's to see to, as for every
//! standard host (PROTOCOLS 9.4): a director lets no host back in while commands of it are under way, and one that is not the home
//! any more commits nothing. Frames need no quarantine: it is this program that copies between socket and frames.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::geometry::{GEOMETRY, Geometry};
use dyad_nvme::status::StatusType;
use dyad_nvme::types::{BlockCount, HostId, Lba, NamespaceId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::executor::Handle;
use dyad_reactor::ring::ring;
use dyad_reactor::sync::{Permits, Signal};
use dyad_reactor::{Source, Time};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::attach::{AttachError, Attached, attach};
use super::queue::{Queue, Way};
use crate::volume::{Volume, VolumeError};

/// What a [`TcpInitiator`] is made with.
#[derive(Debug, Clone)]
pub struct TcpInitiatorConfig {
    /// The controllers' ports, the preferred one first; at least one.
    pub addresses: Vec<SocketAddr>,
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
    /// How long a command may be without an answer before its path is given up.
    pub path_timeout: Duration,
    /// How long a command may take in all.
    pub command_timeout: Duration,
    /// How long a path that did not help is left alone.
    pub retry_delay: Duration,
}

/// What an initiator has seen.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct TcpInitiatorCounters {
    /// Times that a controller was attached.
    pub attached: u64,
    /// Commands that were sent again.
    pub retries: u64,
}

/// Which of a controller's queues.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Which {
    Admin,
    Io,
}

/// A queue, and the frames of its commands in flight, by slot.
struct Lent {
    queue: Queue,
    held: Vec<Option<Pinned>>,
}

impl Lent {
    fn new(queue: Queue) -> Self {
        Self { held: (0..queue.entries()).map(|_| None).collect(), queue }
    }

    fn poll(&mut self, memory: &Memory) -> usize {
        let work = self.queue.poll(memory);
        while let Some(slot) = self.queue.take_abandoned() {
            self.held[usize::from(slot)] = None;
        }
        work
    }
}

/// A controller that is attached.
struct Link {
    admin: Lent,
    io: Lent,
}

impl Link {
    fn queue(&mut self, which: Which) -> &mut Lent {
        match which {
            Which::Admin => &mut self.admin,
            Which::Io => &mut self.io,
        }
    }
}

/// The way to one controller.
struct Path {
    address: SocketAddr,
    link: RefCell<Option<Link>>,
    /// Counts links: a command knows by it that its own is gone.
    generation: Cell<u64>,
    /// It did not help; others first.
    shunned_until: Cell<Time>,
}

struct Inner {
    handle: Handle,
    config: TcpInitiatorConfig,
    pool: FramePool,
    blocks: Cell<BlockCount>,
    transfer_max: Cell<u64>,
    epoll: Epoll,
    paths: Vec<Path>,
    /// The path that is tried first: the last that helped.
    preferred: Cell<usize>,
    /// A path came or went.
    changed: Signal,
    slots: Permits,
    /// Something was queued since the queues were polled.
    queued: Cell<bool>,
    counters: Cell<TcpInitiatorCounters>,
}

/// The volume. Clones are the same.
#[derive(Clone)]
pub struct TcpInitiator {
    inner: Rc<Inner>,
}

/// The part of a [`TcpInitiator`] that a reactor polls.
pub struct TcpInitiatorSource(TcpInitiator);

/// Frames that a log page of geometry is read into: room for two thousand groups.
const GEOMETRY_FRAMES: usize = 16;

/// How an attempt ended.
enum Attempt {
    Answered(CompletionEntry, Pinned),
    /// Nobody will answer any more.
    Lost,
}

impl TcpInitiator {
    /// Attaches to the first controller that takes us, and to the others in the background. Waits on the calling thread, as long as the
    /// configuration says at most.
    ///
    /// # Errors
    /// What the last controller said.
    ///
    /// # Panics
    /// If the configuration has no address.
    pub fn attach(handle: &Handle, config: TcpInitiatorConfig, pool: FramePool) -> Result<Self, AttachError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(AttachError::Os)?;
        let path = |address: &SocketAddr| Path {
            address: *address,
            link: RefCell::new(None),
            generation: Cell::new(0),
            shunned_until: Cell::new(Time::ZERO),
        };
        let initiator = Self {
            inner: Rc::new(Inner {
                handle: handle.clone(),
                blocks: Cell::new(BlockCount(0)),
                transfer_max: Cell::new(0),
                epoll,
                paths: config.addresses.iter().map(path).collect(),
                preferred: Cell::new(0),
                changed: Signal::new(),
                slots: Permits::new(usize::from(config.depth)),
                queued: Cell::new(false),
                counters: Cell::default(),
                pool,
                config,
            }),
        };
        let mut refused = None;
        let attached = (0..initiator.inner.paths.len()).find_map(|index| {
            match attach(&initiator.inner.config, initiator.inner.paths[index].address) {
                Ok(attached) => Some((index, attached)),
                Err(error) => {
                    refused = Some(error);
                    None
                }
            }
        });
        let Some((index, attached)) = attached else { return Err(refused.expect("at least one address")) };
        initiator.install(index, attached).map_err(AttachError::Os)?;
        for index in 0..initiator.inner.paths.len() {
            handle.spawn("tcp path", initiator.clone().run_path(index));
            handle.spawn("tcp keep alive", initiator.clone().run_keep_alive(index));
        }
        Ok(initiator)
    }

    /// Tasks that an initiator with so many addresses spawns.
    #[must_use]
    pub const fn tasks(addresses: usize) -> usize {
        addresses * 2
    }

    /// What the reactor is to poll.
    #[must_use]
    pub fn source(&self) -> TcpInitiatorSource {
        TcpInitiatorSource(self.clone())
    }

    /// Controllers that are attached now.
    #[must_use]
    pub fn live_paths(&self) -> usize {
        self.inner.paths.iter().filter(|path| path.link.borrow().is_some()).count()
    }

    /// What was seen so far.
    #[must_use]
    pub fn counters(&self) -> TcpInitiatorCounters {
        self.inner.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut TcpInitiatorCounters)) {
        let mut counters = self.inner.counters.get();
        change(&mut counters);
        self.inner.counters.set(counters);
    }

    fn install(&self, index: usize, attached: Attached) -> Result<(), Errno> {
        let inner = &*self.inner;
        let Attached { admin, io, blocks, transfer_max } = attached;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        for (queue, number) in [(&admin, 0), (&io, 1)] {
            inner.epoll.add(queue.socket.as_fd(), EpollEvent::new(interest, index as u64 * 2 + number))?;
        }
        inner.blocks.set(blocks);
        inner.transfer_max.set(transfer_max);
        let path = &inner.paths[index];
        path.generation.set(path.generation.get() + 1);
        path.shunned_until.set(Time::ZERO);
        *path.link.borrow_mut() = Some(Link { admin: Lent::new(admin), io: Lent::new(io) });
        self.count(|counters| counters.attached += 1);
        inner.queued.set(true);
        inner.changed.notify_all();
        Ok(())
    }

    /// Gives a link up, if it is still the one with that generation; whoever waits for its answers is told.
    fn lose(&self, index: usize, generation: u64) {
        let path = &self.inner.paths[index];
        if path.generation.get() != generation {
            return;
        }
        let Some(mut link) = path.link.borrow_mut().take() else { return };
        path.generation.set(generation + 1);
        link.io.queue.end();
        link.admin.queue.end();
        self.inner.changed.notify_all();
    }

    /// Attaches to a controller again whenever it is lost. Attaching waits, so a thread does it.
    async fn run_path(self, index: usize) {
        let inner = &*self.inner;
        loop {
            let seen = inner.changed.generation();
            if inner.paths[index].link.borrow().is_some() {
                inner.changed.changed_since(seen).await;
                continue;
            }
            let (config, address) = (inner.config.clone(), inner.paths[index].address);
            let (mut tell, mut told) = ring(1);
            std::thread::spawn(move || {
                // Nobody listens any more when the volume is gone.
                let _ = tell.try_send(attach(&config, address));
            });
            let attached = told.receive().await.and_then(Result::ok);
            if attached.is_none_or(|attached| self.install(index, attached).is_err()) {
                inner.handle.sleep(inner.config.retry_delay).await;
            }
        }
    }

    async fn run_keep_alive(self, index: usize) {
        let inner = &*self.inner;
        let (path, interval) = (&inner.paths[index], inner.config.keep_alive / 2);
        while !interval.is_zero() {
            inner.handle.sleep(interval).await;
            let generation = path.generation.get();
            let Some(slot) = path.link.borrow_mut().as_mut().and_then(|link| {
                link.admin.queue.submit(SubmissionEntry::keep_alive(), Way::FromHost, Default::default())
            }) else {
                continue;
            };
            inner.queued.set(true);
            let answered = poll_fn(|cx| match &mut *path.link.borrow_mut() {
                Some(link) if path.generation.get() == generation => {
                    match link.admin.queue.completion(slot, cx.waker()) {
                        Some(_) => Poll::Ready(()),
                        None => Poll::Pending,
                    }
                }
                _ => Poll::Ready(()),
            });
            let deadline = inner.handle.now() + inner.config.path_timeout;
            if inner.handle.timeout_at(deadline, answered).await.is_err() {
                self.lose(index, generation);
            }
        }
    }

    /// The path to use now: the preferred one, or the next that is attached and may help.
    fn choose(&self) -> Option<usize> {
        let inner = &*self.inner;
        let (count, now) = (inner.paths.len(), inner.handle.now());
        let usable = |index: &usize| {
            let path = &inner.paths[*index];
            path.link.borrow().is_some() && path.shunned_until.get() <= now
        };
        (0..count).map(|step| (inner.preferred.get() + step) % count).find(usable)
    }

    async fn wait_for_path(&self, deadline: Time) -> Result<usize, VolumeError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.changed.generation();
            if let Some(index) = self.choose() {
                return Ok(index);
            }
            let now = inner.handle.now();
            if now >= deadline {
                return Err(VolumeError::TimedOut);
            }
            let shunned = inner.paths.iter().map(|path| path.shunned_until.get()).filter(|until| *until > now).min();
            let until = shunned.map_or(deadline, |until| until.min(deadline));
            let _ = inner.handle.timeout_at(until, inner.changed.changed_since(seen)).await;
        }
    }

    /// Has a command done, on whichever path; the frames that its data is in.
    async fn execute(&self, entry: SubmissionEntry, way: Way, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.execute_on(Which::Io, entry, way, frames).await
    }

    async fn execute_on(
        &self,
        which: Which,
        entry: SubmissionEntry,
        way: Way,
        frames: Pinned,
    ) -> Result<Pinned, VolumeError> {
        let inner = &*self.inner;
        let deadline = inner.handle.now() + inner.config.command_timeout;
        let permit = inner.handle.timeout_at(deadline, inner.slots.acquire(1)).await;
        let _permit = permit.map_err(|_| VolumeError::TimedOut)?;
        loop {
            let index = self.wait_for_path(deadline).await?;
            match self.attempt((index, which), entry, way, &frames, deadline).await? {
                Attempt::Answered(completion, frames) => {
                    let status = completion.status();
                    if status.is_success() {
                        inner.preferred.set(index);
                        return Ok(frames);
                    }
                    if !helps_elsewhere(status) {
                        return Err(VolumeError::Status(status));
                    }
                    inner.paths[index].shunned_until.set(inner.handle.now() + inner.config.retry_delay);
                }
                Attempt::Lost => {}
            }
            self.count(|counters| counters.retries += 1);
        }
    }

    async fn attempt(
        &self,
        (index, which): (usize, Which),
        entry: SubmissionEntry,
        way: Way,
        frames: &Pinned,
        deadline: Time,
    ) -> Result<Attempt, VolumeError> {
        let inner = &*self.inner;
        let path = &inner.paths[index];
        let generation = path.generation.get();
        let slot = {
            let mut link = path.link.borrow_mut();
            let Some(link) = &mut *link else { return Ok(Attempt::Lost) };
            // Commands that were given up still have their slots: there may be none.
            let lent = link.queue(which);
            let slot = lent.queue.submit(entry, way, frames.segments()).ok_or(VolumeError::TimedOut)?;
            lent.held[usize::from(slot)] = Some(frames.again());
            slot
        };
        inner.queued.set(true);
        let mut waiting = Waiting { path, which, generation, slot, ended: false };
        let answered = poll_fn(|cx| match &mut *path.link.borrow_mut() {
            Some(link) if path.generation.get() == generation => {
                let lent = link.queue(which);
                match lent.queue.completion(slot, cx.waker()) {
                    Some(completion) => Poll::Ready(Some((completion, lent.held[usize::from(slot)].take()))),
                    None => Poll::Pending,
                }
            }
            _ => Poll::Ready(None),
        });
        let until = deadline.min(inner.handle.now() + inner.config.path_timeout);
        let answered = inner.handle.timeout_at(until, answered).await;
        waiting.ended = answered.is_ok();
        match answered {
            Ok(Some((completion, Some(frames)))) => Ok(Attempt::Answered(completion, frames)),
            Ok(_) => Ok(Attempt::Lost),
            Err(_) => {
                waiting.ended = true;
                self.lose(index, generation);
                Ok(Attempt::Lost)
            }
        }
    }

    /// What lies behind the volume, from the controller that serves it now; `None` if it does not tell.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn geometry(&self) -> Result<Option<Geometry>, VolumeError> {
        let frames = self.inner.pool.try_take(GEOMETRY_FRAMES).ok_or(VolumeError::TimedOut)?;
        let len = u32::try_from(GEOMETRY_FRAMES * FRAME_BYTES).expect("short");
        let entry = SubmissionEntry::get_log_page(GEOMETRY, self.inner.config.namespace, 0, len, false);
        match self.execute_on(Which::Admin, entry, Way::ToHost, frames).await {
            Ok(frames) => {
                let mut page = vec![0; GEOMETRY_FRAMES * FRAME_BYTES];
                for (index, bytes) in page.chunks_exact_mut(FRAME_BYTES).enumerate() {
                    frames.read(index, bytes);
                }
                Ok(Geometry::from_bytes(&page))
            }
            Err(VolumeError::Status(status)) if !matches!(status.kind(), StatusType::Path) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn check_length(&self, frames: usize) -> Result<(), VolumeError> {
        let fits = frames as u64 <= self.inner.transfer_max.get();
        if fits { Ok(()) } else { Err(VolumeError::Status(Status::INVALID_FIELD)) }
    }

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

/// Another path, or the same one later, may do what this answer refused.
fn helps_elsewhere(status: Status) -> bool {
    let path = status.kind() == StatusType::Path && status.code() != Status::ANA_PERSISTENT_LOSS;
    path || status.code() == Status::TRANSIENT_TRANSPORT
}

/// A command in flight. If nobody waits for it any more, its frames and its slot wait for the controller.
struct Waiting<'a> {
    path: &'a Path,
    which: Which,
    generation: u64,
    slot: u16,
    ended: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(link) = &mut *self.path.link.borrow_mut()
            && self.path.generation.get() == self.generation
            && !self.ended
        {
            let lent = link.queue(self.which);
            if !lent.queue.abandon(self.slot) {
                lent.held[usize::from(self.slot)] = None;
            }
        }
    }
}

impl Volume for TcpInitiator {
    fn blocks(&self) -> BlockCount {
        self.inner.blocks.get()
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

impl TcpInitiatorSource {
    /// Has a path's queues send and receive what they can; how much that was.
    fn serve(&self, index: usize) -> usize {
        let inner = &*self.0.inner;
        let (path, memory) = (&inner.paths[index], inner.pool.memory());
        let (work, dead) = {
            let mut link = path.link.borrow_mut();
            let Some(link) = &mut *link else { return 0 };
            let work = link.io.poll(memory) + link.admin.poll(memory);
            (work, link.io.queue.dead || link.admin.queue.dead)
        };
        if dead {
            self.0.lose(index, path.generation.get());
        }
        work
    }
}

impl Source for TcpInitiatorSource {
    fn poll(&mut self) -> usize {
        let inner = &*self.0.inner;
        let mut work = 0;
        if inner.queued.replace(false) {
            work += (0..inner.paths.len()).map(|index| self.serve(index)).sum::<usize>();
        }
        let mut events = [EpollEvent::empty(); 16];
        let found = inner.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..found] {
            let readable = event.events().intersects(!EpollFlags::EPOLLOUT);
            let writable = event.events().intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR);
            let index = usize::try_from(event.data() / 2).expect("few paths");
            if let Some(link) = &mut *inner.paths[index].link.borrow_mut() {
                let which = if event.data() % 2 == 1 { Which::Io } else { Which::Admin };
                link.queue(which).queue.notice(readable, writable);
            }
            work += self.serve(index);
        }
        work
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.inner.epoll.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_path_may_do_is_tried_there_and_nothing_else() {
        for status in
            [Status::ANA_INACCESSIBLE, Status::ANA_TRANSITION, Status::HOST_PATHING_ERROR, Status::TRANSIENT_TRANSPORT]
        {
            assert!(helps_elsewhere(status), "{status}");
        }
        for status in [Status::ANA_PERSISTENT_LOSS, Status::LBA_OUT_OF_RANGE, Status::WRITE_FAULT] {
            assert!(!helps_elsewhere(status), "{status}");
        }
    }
}
