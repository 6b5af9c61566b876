//! The home: lanes that read and write one block at a time, as deep as asked for.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_backend::driver::Driver;
use dyad_backend::emulator::EmulatedFunction;
use dyad_backend::raid::Raid1;
use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::memory::{HugePages, copy};
use dyad_matrix::provider::{Event, NetAddress, Provider, RefusedReason, RegionHandle, RemoteAccess};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::executor::{Executor, Fifo, Handle, Limits};
use dyad_reactor::sync::Signal;
use dyad_reactor::{BootClock, Clock, Source, Time};

use super::BenchError;
use super::media::Medium;
use super::mirror::{DEPTH, EPOCH, FRAMES, OUTCOMES, SERVICE, TAG};
use crate::address::{TRACK_BYTES, TrackAddress, TrackRange, VolumeId};
use crate::authority::{Authority, Regime};
use crate::home::{Cache, CacheConfig, CacheError, Policy, Transfer, VolumePlace, WriteCommand};
use crate::link::MirrorLink;
use crate::record::{CommandId, Record};

/// Lanes: the deepest queue.
const LANES: u64 = 32;
const DESTAGERS: usize = 4;
/// Tracks of each volume.
const TRACKS: u64 = 2048;
/// Blocks that the lanes work on: what is dirty stays below the mirror's size, so that nothing is destaged meanwhile.
const WORKING_SET: u64 = 1024;
/// Longer than a measurement.
const IDLE: Duration = Duration::from_secs(3600);

const MIRRORED: VolumeId = VolumeId { uuid: [1; 16], generation: 1 };
const UNMIRRORED: VolumeId = VolumeId { uuid: [2; 16], generation: 1 };

type Group = Raid1<Driver<EmulatedFunction>>;

/// What lanes do.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Work {
    /// Read blocks that are in the cache.
    ReadHit,
    /// Write blocks of a mirrored volume.
    MirroredWrite,
    /// Write blocks of an unmirrored volume.
    UnmirroredWrite,
    /// Write whole tracks of the mirrored volume, one after the other: more than the cache holds, so that media sets the pace.
    Stream,
}

/// What they did.
#[derive(Debug, Clone)]
pub struct Performed {
    /// How long each operation took, in nanoseconds.
    pub nanos: Vec<u64>,
    /// How long all of them took.
    pub took: Duration,
    /// What was counted meanwhile.
    pub counted: u64,
}

struct State {
    work: Cell<Work>,
    depth: Cell<u64>,
    left: Cell<u64>,
    running: Cell<u64>,
    sequence: Cell<u64>,
    nanos: RefCell<Vec<u64>>,
    failure: Cell<Option<CacheError>>,
    more: Signal,
}

/// The home's side, turned by hand.
pub struct Home {
    executor: Executor,
    provider: ShmProvider,
    cache: Cache<Group, ShmProvider>,
    frames: Memory,
    host: Memory,
    media: [Medium; 2],
    state: Rc<State>,
}

/// A track's worth of host memory, beside the frames.
struct HostBlock<'a> {
    memory: &'a Memory,
    frames: &'a Memory,
    offset: u64,
}

impl HostBlock<'_> {
    fn each(&self, segments: &[Segment], copy: impl Fn(u64, u64, u64) -> bool) -> Result<(), CacheError> {
        let mut at = self.offset;
        for segment in segments {
            if !copy(segment.offset, at, u64::from(segment.len)) {
                return Err(CacheError::Host);
            }
            at += u64::from(segment.len);
        }
        Ok(())
    }
}

impl Transfer for HostBlock<'_> {
    async fn fetch(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.each(segments, |frame, at, len| copy(self.memory, at, self.frames, frame, len).is_ok())
    }

    async fn deliver(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.each(segments, |frame, at, len| copy(self.frames, frame, self.memory, at, len).is_ok())
    }
}

impl Home {
    /// Connects to the mirror that listens in `directory`, or will.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn connect(directory: &Path) -> Result<Self, BenchError> {
        Self::connect_beside(directory, || {})
    }

    /// The same; `turn` turns whatever else is in this thread.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn connect_beside(directory: &Path, turn: impl FnMut()) -> Result<Self, BenchError> {
        let lanes = usize::try_from(LANES).expect("few lanes");
        let executor = Executor::new(Limits { tasks: 64 + lanes, timers: 256 }, Rc::new(BootClock));
        let handle = executor.handle();
        let provider = ShmProvider::new(&directory.join("home"), 2, ShmLimits::default())?;
        let endpoint = Endpoint::new(
            provider.clone(),
            EndpointConfig { vis_max: 2, depth: DEPTH, tag: TAG, remote_access: RemoteAccess::default() },
        )?;
        let media = [1, 2].map(|name| Medium::new(&executor, name, 2 * TRACKS * 16));
        let [one, two] = media;
        let media = [one?, two?];
        let drivers = media.iter().map(|medium| medium.driver.clone()).collect();
        let group = Raid1::new(handle.clone(), drivers, &[]).expect("two devices make a group");
        let mirror_frames = usize::try_from(FRAMES).expect("32 bits fit");
        let frames = Memory::shared("dyad-bench", (2 * mirror_frames + 1024) * BLOCK_BYTES, HugePages::IfAvailable)?;
        frames.fill_zero(0, frames.len()).expect("inside");
        group.map(&frames).map_err(|_| BenchError::Peer("cannot reach the frames"))?;
        provider.register(&frames, TAG, RemoteAccess::default())?;
        let config = CacheConfig {
            takeover_frames: mirror_frames,
            destage_above: mirror_frames - 64,
            write_pending_limit: mirror_frames,
            stripe_tracks: 1,
            nvcache: false,
            commands: lanes,
            hosts: 2,
            outcomes_per_host: OUTCOMES,
        };
        let place = |id, base, policy| VolumePlace { id, base: Lba(base), blocks: TRACKS * 16, policy };
        let volumes = [place(MIRRORED, 0, Policy::Mirrored), place(UNMIRRORED, TRACKS * 16, Policy::Unmirrored)];
        let authority = Authority::default();
        let cache = Cache::new(handle.clone(), config, authority.clone(), frames.clone(), group, &volumes);
        let host = Memory::anonymous(lanes * TRACK_BYTES);
        host.fill_zero(0, host.len()).expect("inside");
        let state = Rc::new(State {
            work: Cell::new(Work::ReadHit),
            depth: Cell::new(0),
            left: Cell::new(0),
            running: Cell::new(0),
            sequence: Cell::new(0),
            nanos: RefCell::new(Vec::new()),
            failure: Cell::new(None),
            more: Signal::new(),
        });
        handle.spawn("completions", endpoint.clone().run());
        handle.spawn("receive", receive(endpoint.clone(), cache.clone()));
        for _ in 0..DESTAGERS {
            handle.spawn("destage", cache.clone().run_destage(IDLE));
        }
        for lane in 0..LANES {
            handle.spawn("lane", run_lane(handle.clone(), Rc::clone(&state), cache.clone(), host.clone(), lane));
        }
        executor.seal();
        let mut home = Self { executor, provider, cache, frames, host, media, state };
        home.join(directory, &endpoint, turn)?;
        authority.set_lease(Time::FAR_FUTURE);
        authority.set_regime(Regime::Mirrored(EPOCH));
        Ok(home)
    }

    fn join(
        &mut self,
        directory: &Path,
        endpoint: &Endpoint<ShmProvider>,
        mut turn: impl FnMut(),
    ) -> Result<(), BenchError> {
        let host = directory.join("mirror").to_string_lossy().into_owned();
        let to = NetAddress { host, discriminator: SERVICE };
        let patience = BootClock.now() + Duration::from_secs(10);
        let vi = endpoint.open()?;
        self.provider.connect(vi, &to, b"", Duration::from_secs(5))?;
        loop {
            turn();
            self.turn();
            match self.provider.poll_event(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Event::Established { private_data, .. }) => {
                    let key = private_data[..].try_into().map_err(|_| BenchError::Peer("said no region"))?;
                    let region = RegionHandle::from_key(u64::from_le_bytes(key));
                    let requests = usize::try_from(LANES).expect("few lanes") + DESTAGERS + 1;
                    self.cache.set_link(MirrorLink::new(endpoint.clone(), vi, region, FRAMES, requests));
                    return Ok(());
                }
                Poll::Ready(Event::Refused { why: RefusedReason::NoListener, .. }) if BootClock.now() < patience => {
                    std::thread::yield_now();
                    self.provider.connect(vi, &to, b"", Duration::from_secs(5))?;
                }
                Poll::Ready(_) => return Err(BenchError::Peer("did not accept")),
                Poll::Pending if BootClock.now() > patience => return Err(BenchError::Peer("does not answer")),
                Poll::Pending => {}
            }
        }
    }

    /// Does what there is to do; how much that was.
    pub fn turn(&mut self) -> usize {
        let devices: usize = self.media.iter().map(Medium::turn).sum();
        devices + self.provider.poll() + self.executor.fire_timers() + self.executor.run_until_idle(&mut Fifo)
    }

    /// Has the lanes do so many operations, `depth` at a time.
    ///
    /// # Panics
    /// If one of them fails.
    pub fn perform(&mut self, work: Work, depth: u64, operations: u64, count: impl Fn() -> u64) -> Performed {
        self.perform_beside(work, depth, operations, count, || {})
    }

    /// The same; `turn` turns whatever else is in this thread.
    ///
    /// # Panics
    /// If one of them fails.
    pub fn perform_beside(
        &mut self,
        work: Work,
        depth: u64,
        operations: u64,
        count: impl Fn() -> u64,
        mut turn: impl FnMut(),
    ) -> Performed {
        let state = Rc::clone(&self.state);
        let room = usize::try_from(operations).expect("it fits memory");
        // Made before anything is counted.
        *state.nanos.borrow_mut() = Vec::with_capacity(room);
        state.work.set(work);
        state.depth.set(depth.min(LANES));
        state.left.set(operations);
        let (begun, counted) = (BootClock.now(), count());
        state.more.notify_all();
        while state.left.get() + state.running.get() > 0 {
            turn();
            self.turn();
        }
        let (took, counted) = (BootClock.now().since(begun), count() - counted);
        assert_eq!(state.failure.get(), None, "an operation failed");
        Performed { nanos: state.nanos.take(), took, counted }
    }

    /// Bytes that this process copied: into frames, to its host, to its partner.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.frames.copied_bytes() + self.host.copied_bytes() + self.provider.copied_bytes()
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache<Group, ShmProvider> {
        &self.cache
    }
}

async fn receive(endpoint: Endpoint<ShmProvider>, cache: Cache<Group, ShmProvider>) {
    loop {
        let (_, message) = endpoint.receive().await;
        if let (Ok((Record::Answer(answer), tag)), Some(link)) = (Record::decode(&message), cache.link()) {
            link.answered(answer, tag);
        }
    }
}

async fn run_lane(handle: Handle, state: Rc<State>, cache: Cache<Group, ShmProvider>, host: Memory, lane: u64) {
    let frames = cache.pool().memory().clone();
    let buffer = HostBlock { memory: &host, frames: &frames, offset: lane * TRACK_BYTES as u64 };
    loop {
        let seen = state.more.generation();
        if lane >= state.depth.get() || state.left.get() == 0 {
            state.more.changed_since(seen).await;
            continue;
        }
        state.left.set(state.left.get() - 1);
        state.running.set(state.running.get() + 1);
        let sequence = state.sequence.get() + 1;
        state.sequence.set(sequence);
        // Scattered, and the same blocks over and over: an odd factor visits each once in a round.
        let lba = Lba(sequence.wrapping_mul(389) % WORKING_SET);
        let begun = handle.now();
        let done = perform_one(&cache, &buffer, state.work.get(), lba, sequence).await;
        let nanos = u64::try_from(handle.now().since(begun).as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = done {
            state.failure.set(Some(error));
        }
        state.nanos.borrow_mut().push(nanos);
        state.running.set(state.running.get() - 1);
    }
}

async fn perform_one(
    cache: &Cache<Group, ShmProvider>,
    buffer: &HostBlock<'_>,
    work: Work,
    lba: Lba,
    sequence: u64,
) -> Result<(), CacheError> {
    let volume = if work == Work::UnmirroredWrite { UNMIRRORED } else { MIRRORED };
    let range = if work == Work::Stream {
        TrackRange::whole(TrackAddress { volume, track: sequence % TRACKS })
    } else {
        TrackRange::split(volume, lba, 1).next().expect("one block")
    };
    if work == Work::ReadHit {
        return cache.read(range, Time::FAR_FUTURE, buffer).await;
    }
    let command = CommandId { origin: [1; 16], sequence, part: 0 };
    let oldest = sequence.saturating_sub(LANES);
    cache.write(WriteCommand { range, command, oldest, fua: false }, Time::FAR_FUTURE, buffer).await
}
