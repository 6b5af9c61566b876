//! The NVMe-oF initiator of the `vi` transport: one namespace of an array, over whichever director serves it.
//!
//! One path is used at a time. When it breaks, is silent, or answers that the namespace is elsewhere, its VI is taken
//! from the director and the next path is tried with a higher session generation (PROTOCOLS 9.3); commands that had no
//! answer are sent again under their number, so that they are applied once.
//!
//! What was cut off goes on in other frames: the old director may still be writing to the old ones, or reading them. These
//! stay in quarantine until that director's process is known dead, or it has accepted a newer session, which it does only
//! when nothing of the older one is under way (PROTOCOLS 10.2). A director that answers as another incarnation is another
//! process: the older one is dead (PROTOCOLS 2.2).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::frames::{FramePool, Pinned};
use dyad_matrix::provider::{
    BrokenReason, Event, NetAddress, ProtectionTag, RegionHandle, RemoteAccess, ResourceError, ViId,
};
use dyad_matrix::{Memory, Provider};
use dyad_nvme::capsule::{CommandCapsule, ConnectAnswer, ConnectRequest, DataBlock, DataBlocks};
use dyad_nvme::identify::{IDENTIFY_BYTES, IdentifyNamespace, cns};
use dyad_nvme::status::StatusType;
use dyad_nvme::types::{BlockCount, CommandId, HostId, Lba, NamespaceId};
use dyad_nvme::{CompletionEntry, SubmissionEntry};
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{Inbox, Permits, Replies, Signal, Ticket};

use crate::volume::{Volume, VolumeError};

/// The only protection tag of a host.
const TAG: ProtectionTag = ProtectionTag(1);

/// What an [`Initiator`] is made with.
#[derive(Debug, Clone)]
pub struct InitiatorConfig {
    /// Who this host is.
    pub host: HostId,
    /// The directors' ports.
    pub paths: Vec<NetAddress>,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Commands outstanding at once.
    pub depth: u16,
    /// Higher than the generation of every earlier session of this host: its clock will do.
    pub first_generation: u64,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a command may be without an answer on one path.
    pub path_timeout: Duration,
    /// How long a command may take in all.
    pub command_timeout: Duration,
    /// Pause between attempts to find a path.
    pub retry_delay: Duration,
}

/// The path in use.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Path {
    vi: ViId,
    index: usize,
    incarnation: u32,
}

struct InFlight {
    vi: ViId,
    ticket: Ticket,
    frames: Option<Pinned>,
}

struct Quarantined {
    path: Path,
    frames: Pinned,
}

/// What the initiator has seen.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct InitiatorCounters {
    /// Sessions that were established.
    pub sessions: u64,
    /// Commands sent again on another session.
    pub retries: u64,
}

struct Inner<P> {
    handle: Handle,
    config: InitiatorConfig,
    endpoint: Endpoint<P>,
    pool: FramePool,
    region: RegionHandle,
    path: Cell<Option<Path>>,
    /// The path in use has answered a command with success.
    served: Cell<bool>,
    path_changed: Signal,
    /// VIs that are to be given up.
    bad: Inbox<ViId>,
    connections: Inbox<Event>,
    in_flight: RefCell<Vec<Option<InFlight>>>,
    replies: Replies<Option<CompletionEntry>>,
    slots: Permits,
    /// Numbers of commands that have no answer.
    outstanding: RefCell<Vec<u64>>,
    answered: Signal,
    sequence: Cell<u64>,
    quarantine: RefCell<Vec<Quarantined>>,
    blocks: Cell<BlockCount>,
    counters: Cell<InitiatorCounters>,
}

/// A namespace of an array. Clones are the same initiator.
pub struct Initiator<P> {
    inner: Rc<Inner<P>>,
}

impl<P> Clone for Initiator<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<P: Provider> Initiator<P> {
    /// Exports `memory` and spawns the tasks; [`Self::attach`] finds the namespace.
    ///
    /// # Errors
    /// When the provider has no room.
    pub fn new(handle: &Handle, provider: P, config: InitiatorConfig, memory: Memory) -> Result<Self, ResourceError> {
        let remote_access = RemoteAccess { write: true, read: true };
        let region = provider.register(&memory, TAG, remote_access)?;
        // One VI in use, one being closed, one being opened; twice the depth for receives that wait to be taken.
        let endpoint = Endpoint::new(
            provider,
            EndpointConfig { vis_max: 4, depth: config.depth.max(2) * 2, tag: TAG, remote_access },
        )?;
        let depth = usize::from(config.depth);
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            endpoint,
            pool: FramePool::new(memory),
            region,
            path: Cell::new(None),
            served: Cell::new(false),
            path_changed: Signal::new(),
            bad: Inbox::new(64),
            connections: Inbox::new(64),
            in_flight: RefCell::new((0..depth * 2).map(|_| None).collect()),
            replies: Replies::new(depth * 2),
            slots: Permits::new(depth),
            outstanding: RefCell::new(Vec::with_capacity(depth)),
            answered: Signal::new(),
            // Directors remember numbers by host: those of an earlier run of this host must not come again.
            sequence: Cell::new(config.first_generation),
            quarantine: RefCell::new(Vec::with_capacity(depth)),
            blocks: Cell::new(BlockCount(0)),
            counters: Cell::default(),
            config,
        });
        let initiator = Self { inner };
        handle.spawn("host completions", initiator.inner.endpoint.clone().run());
        handle.spawn("host receive", initiator.clone().run_receive());
        handle.spawn("host events", initiator.clone().run_events());
        handle.spawn("host paths", initiator.clone().run_paths());
        Ok(initiator)
    }

    /// What was seen so far.
    #[must_use]
    pub fn counters(&self) -> InitiatorCounters {
        self.inner.counters.get()
    }

    /// The path in use: its place in the configuration.
    #[must_use]
    pub fn current_path(&self) -> Option<usize> {
        self.inner.path.get().map(|path| path.index)
    }

    /// Number of the oldest command without an answer: directors remember what they applied from it on.
    #[must_use]
    pub fn oldest_outstanding(&self) -> Option<u64> {
        self.inner.outstanding.borrow().iter().copied().min()
    }

    /// Frames that an old path may still write to.
    #[must_use]
    pub fn quarantined_frames(&self) -> usize {
        let quarantine = self.inner.quarantine.borrow();
        // A write that was lost twice is here twice.
        let mut frames: Vec<u64> =
            quarantine.iter().flat_map(|old| old.frames.frames()).map(|frame| frame.offset()).collect();
        frames.sort_unstable();
        frames.dedup();
        frames.len()
    }

    /// Waits for a path and learns the namespace's size.
    ///
    /// # Errors
    /// When no director answers in time, or none has the namespace.
    pub async fn attach(&self) -> Result<(), VolumeError> {
        let frames = self.take_frames(1).await?;
        let command = SubmissionEntry::identify(cns::NAMESPACE, self.inner.config.namespace, 0);
        let frames = self.execute(command, frames, true).await?;
        let mut bytes = Box::new([0; IDENTIFY_BYTES]);
        frames.read(0, &mut *bytes);
        self.inner.blocks.set(BlockCount(IdentifyNamespace::from_bytes(&bytes).size));
        Ok(())
    }

    async fn take_frames(&self, count: usize) -> Result<Pinned, VolumeError> {
        let inner = &*self.inner;
        let deadline = inner.handle.now() + inner.config.command_timeout;
        loop {
            let seen = inner.pool.freed().generation();
            if let Some(frames) = inner.pool.try_take(count) {
                return Ok(frames);
            }
            inner
                .handle
                .timeout_at(deadline, inner.pool.freed().changed_since(seen))
                .await
                .map_err(|_| VolumeError::TimedOut)?;
        }
    }

    /// Has the command done, on whichever path; `reads` says which way the data goes. Returns the frames that the data is in.
    async fn execute(&self, command: SubmissionEntry, frames: Pinned, reads: bool) -> Result<Pinned, VolumeError> {
        let inner = &*self.inner;
        let deadline = inner.handle.now() + inner.config.command_timeout;
        let _slot =
            inner.handle.timeout_at(deadline, inner.slots.acquire(1)).await.map_err(|_| VolumeError::TimedOut)?;
        let number = Number::take(inner, deadline).await?;
        let mut frames = frames;
        loop {
            let path = self.wait_for_path(deadline).await?;
            match self.attempt(path, command, number.0, &frames, deadline).await {
                Attempt::Answered(answer) if answer.status().is_success() => return Ok(frames),
                Attempt::Answered(answer) if answer.status().kind() != StatusType::Path => {
                    return Err(VolumeError::Status(answer.status()));
                }
                Attempt::Answered(_) | Attempt::Silent => self.give_up(path.vi),
                Attempt::Lost => {}
            }
            if inner.handle.now() >= deadline {
                return Err(VolumeError::TimedOut);
            }
            self.count(|counters| counters.retries += 1);
            self.wait_until_left(path, deadline).await?;
            if reads {
                let count = frames.len();
                drop(frames);
                frames = self.take_frames(count).await?;
            }
        }
    }

    async fn write(&self, at: Lba, frames: &Pinned, fua: bool) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        if frames.is_empty() {
            return Ok(());
        }
        let command = SubmissionEntry::write(self.inner.config.namespace, at, BlockCount(frames.len() as u64), fua);
        self.execute(command, frames.again(), false).await.map(|_| ())
    }

    async fn attempt(
        &self,
        path: Path,
        command: SubmissionEntry,
        number: u64,
        frames: &Pinned,
        deadline: Time,
    ) -> Attempt {
        let inner = &*self.inner;
        // Both are full only of commands that this path has not answered.
        let Some(pending) = inner.replies.reserve() else { return Attempt::Silent };
        let Some(place) = inner.in_flight.borrow().iter().position(Option::is_none) else { return Attempt::Silent };
        inner.in_flight.borrow_mut()[place] =
            Some(InFlight { vi: path.vi, ticket: pending.ticket(), frames: Some(frames.again()) });

        let data: DataBlocks =
            frames.segments().iter().map(|segment| DataBlock { offset: segment.offset, len: segment.len }).collect();
        let cid = CommandId(u16::try_from(place).expect("the table is small"));
        let oldest = inner.outstanding.borrow().iter().copied().min().unwrap_or(number);
        let capsule = CommandCapsule { command: command.with_command(cid), sequence: number, oldest, data };
        let until = deadline.min(inner.handle.now() + inner.config.path_timeout);
        if inner.endpoint.send(path.vi, &capsule.encode()).await.is_err() {
            self.give_up(path.vi);
            return Attempt::Lost;
        }
        match inner.handle.timeout_at(until, pending).await {
            Ok(Some(answer)) => Attempt::Answered(answer),
            Ok(None) => Attempt::Lost,
            Err(_) => Attempt::Silent,
        }
    }

    async fn wait_for_path(&self, deadline: Time) -> Result<Path, VolumeError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.path_changed.generation();
            if let Some(path) = inner.path.get() {
                return Ok(path);
            }
            inner
                .handle
                .timeout_at(deadline, inner.path_changed.changed_since(seen))
                .await
                .map_err(|_| VolumeError::TimedOut)?;
        }
    }

    async fn wait_until_left(&self, path: Path, deadline: Time) -> Result<(), VolumeError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.path_changed.generation();
            if inner.path.get() != Some(path) {
                return Ok(());
            }
            inner
                .handle
                .timeout_at(deadline, inner.path_changed.changed_since(seen))
                .await
                .map_err(|_| VolumeError::TimedOut)?;
        }
    }

    fn give_up(&self, vi: ViId) {
        // A full inbox already holds this VI: there are four at most.
        let _ = self.inner.bad.try_push(vi);
    }

    async fn run_receive(self) {
        let inner = &*self.inner;
        loop {
            let (vi, message) = inner.endpoint.receive().await;
            let Ok(bytes) = <[u8; CompletionEntry::BYTES]>::try_from(message.as_slice()) else { continue };
            let answer = CompletionEntry::from_bytes(bytes);
            let done = match inner.in_flight.borrow_mut().get_mut(usize::from(answer.command().0)) {
                Some(entry) => entry.take_if(|entry| entry.vi == vi),
                None => None,
            };
            if let Some(done) = done {
                inner.served.set(inner.served.get() || answer.status().is_success());
                // Nobody waits any more if the command timed out: its frames are free now.
                let _ = inner.replies.complete(done.ticket, Some(answer));
            }
        }
    }

    async fn run_events(self) {
        let inner = &*self.inner;
        loop {
            let event = poll_fn(|cx| inner.endpoint.provider().poll_event(cx)).await;
            if let Event::Broken { vi, why } = event
                && let Some(path) = inner.path.get().filter(|path| path.vi == vi)
            {
                self.leave(path, why == BrokenReason::PeerGone);
                self.give_up(vi);
            } else {
                inner.connections.push(event).await;
            }
        }
    }

    /// The path is no more: whoever waits on it is told; what it may still touch is put aside.
    fn leave(&self, path: Path, process_dead: bool) {
        let inner = &*self.inner;
        inner.path.set(None);
        for entry in inner.in_flight.borrow_mut().iter_mut() {
            let Some(lost) = entry.take_if(|entry| entry.vi == path.vi) else { continue };
            if let Some(frames) = lost.frames.filter(|_| !process_dead && !is_active(Mutation::LentBuffersAreReused)) {
                inner.quarantine.borrow_mut().push(Quarantined { path, frames });
            }
            let _ = inner.replies.complete(lost.ticket, None);
        }
        inner.path_changed.notify_all();
    }

    /// Finds a path, keeps it until it is bad, and goes on to the next.
    async fn run_paths(self) {
        let inner = &*self.inner;
        let mut generation = inner.config.first_generation;
        // Paths tried since one was of use. When all were, it is time to rest: a director that accepts sessions and is not the home
        // answers so fast that trying on would be a storm.
        let mut useless = 0;
        for index in (0..inner.config.paths.len()).cycle() {
            if useless == inner.config.paths.len() {
                useless = 0;
                inner.handle.sleep(inner.config.retry_delay).await;
            }
            generation += 1;
            useless += 1;
            let Some(path) = self.connect(index, generation).await else { continue };
            // The same incarnation has drained the older session; another one means that the process of the older one is no more.
            inner.quarantine.borrow_mut().retain(|old| old.path.index != path.index);
            self.count(|counters| counters.sessions += 1);
            inner.served.set(false);
            inner.path.set(Some(path));
            inner.path_changed.notify_all();
            while inner.bad.next().await != path.vi {}
            if inner.path.get() == Some(path) {
                self.leave(path, false);
            }
            if inner.served.get() {
                useless = 0;
            }
            inner.endpoint.close(path.vi).await;
            // Nobody has our memory any more, not even a director that was stopped in the middle of a write.
            if !inner.endpoint.provider().is_reachable(inner.pool.memory()) {
                inner.quarantine.borrow_mut().clear();
            }
        }
    }

    async fn connect(&self, index: usize, generation: u64) -> Option<Path> {
        let inner = &*self.inner;
        let config = &inner.config;
        let request =
            ConnectRequest { host: config.host, generation, region: inner.region.to_key(), depth: config.depth }
                .encode();
        let connecting = inner.endpoint.connect(
            &inner.handle,
            &inner.connections,
            &config.paths[index],
            &request,
            config.connect_timeout,
        );
        let (vi, said) = connecting.await?;
        let Some(answer) = ConnectAnswer::decode(&said) else {
            inner.endpoint.close(vi).await;
            return None;
        };
        Some(Path { vi, index, incarnation: answer.incarnation })
    }

    fn count(&self, change: impl FnOnce(&mut InitiatorCounters)) {
        let mut counters = self.inner.counters.get();
        change(&mut counters);
        self.inner.counters.set(counters);
    }
}

enum Attempt {
    Answered(CompletionEntry),
    /// The path ended before the answer.
    Lost,
    /// No answer in time.
    Silent,
}

/// A command's number, outstanding for as long as this lives.
struct Number<'a, P>(u64, &'a Inner<P>);

impl<'a, P> Number<'a, P> {
    /// The next number, as soon as it is not too far from the oldest one outstanding: directors remember that many.
    async fn take(inner: &'a Inner<P>, deadline: Time) -> Result<Self, VolumeError> {
        let window = u64::from(inner.config.depth) * 4;
        loop {
            let seen = inner.answered.generation();
            let number = inner.sequence.get() + 1;
            let oldest = inner.outstanding.borrow().iter().copied().min().unwrap_or(number);
            if number - oldest < window {
                inner.sequence.set(number);
                inner.outstanding.borrow_mut().push(number);
                return Ok(Self(number, inner));
            }
            inner
                .handle
                .timeout_at(deadline, inner.answered.changed_since(seen))
                .await
                .map_err(|_| VolumeError::TimedOut)?;
        }
    }
}

impl<P> Drop for Number<'_, P> {
    fn drop(&mut self) {
        self.1.outstanding.borrow_mut().retain(|number| *number != self.0);
        self.1.answered.notify_all();
    }
}

impl<P: Provider> Volume for Initiator<P> {
    fn blocks(&self) -> BlockCount {
        self.inner.blocks.get()
    }

    fn pool(&self) -> &FramePool {
        &self.inner.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        if frames.is_empty() {
            return Ok(frames);
        }
        let command = SubmissionEntry::read(self.inner.config.namespace, at, BlockCount(frames.len() as u64));
        self.execute(command, frames, true).await
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, false).await
    }

    /// With Force Unit Access.
    async fn write_durable(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, true).await
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        let nothing = self.inner.pool.pin(std::iter::empty());
        self.execute(SubmissionEntry::flush(self.inner.config.namespace), nothing, false).await.map(|_| ())
    }
}
