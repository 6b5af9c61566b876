//! Two directors' caches, the link between them, their devices, in virtual time, without membership: the test decides who is home.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_backend::device::{DeviceId, DeviceInfo};
use dyad_backend::fake::{FakeDevice, FakeMedium};
use dyad_backend::format::{GroupId, Region};
use dyad_backend::raid::Raid1;
use dyad_cache::home::{Replay, Transfer};
use dyad_cache::outcomes::OutcomeTable;
use dyad_cache::record::{Answer, AnswerStatus, CommandId, Record};
use dyad_cache::vault::{Found, VaultError};
use dyad_cache::{
    Authority, Cache, CacheConfig, CacheError, Epoch, MirrorArea, MirrorLink, Policy, Regime, TrackRange, Vault,
    VolumeId, VolumePlace, WriteCommand,
};
use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::provider::{
    Discriminator, Event, NetAddress, ProtectionTag, Provider, RegionHandle, RemoteAccess, Revocable,
};
use dyad_matrix::sim::{Fabric, FabricConfig, SimProvider};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba, NamespaceId};
use dyad_reactor::executor::{Executor, Handle, Limits};
use dyad_reactor::{Clock, SeededRng, Shuffled, Time, VirtualTime};

pub(crate) type TestCache = Cache<Raid1<FakeDevice>, SimProvider>;

/// What the volumes are in every world: one of each policy.
pub(crate) const MIRRORED: VolumeId = VolumeId { uuid: [1; 16], generation: 1 };
pub(crate) const UNMIRRORED: VolumeId = VolumeId { uuid: [2; 16], generation: 1 };
pub(crate) const THROUGH: VolumeId = VolumeId { uuid: [3; 16], generation: 1 };
pub(crate) const GROUP: GroupId = GroupId([7; 16]);

pub(crate) const PLACES: [VolumePlace; 3] = [
    VolumePlace { id: MIRRORED, base: Lba(0), blocks: 128, policy: Policy::Mirrored },
    VolumePlace { id: UNMIRRORED, base: Lba(128), blocks: 32, policy: Policy::Unmirrored },
    VolumePlace { id: THROUGH, base: Lba(160), blocks: 32, policy: Policy::Through },
];

/// The vault: `cells` cells from here on, on both media.
pub(crate) const VAULT_START: Lba = Lba(256);
pub(crate) const HOSTS: usize = 8;
const SERVICE: Discriminator = Discriminator(1);
const TAG: ProtectionTag = ProtectionTag(1);
const NAMES: [&str; 2] = ["a", "b"];
const LANES: usize = 12;
const DESTAGERS: usize = 2;
const READERS_AHEAD: usize = 2;

/// How a world is made.
#[derive(Debug, Copy, Clone)]
pub(crate) struct Settings {
    pub(crate) nvcache: bool,
    /// Zero for no vault.
    pub(crate) vault_cells: u64,
    pub(crate) frames: usize,
    pub(crate) mirror_frames: u32,
    pub(crate) stripe_tracks: u64,
    pub(crate) idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nvcache: false,
            vault_cells: 40,
            frames: 16 * LANES + 64 + 96,
            mirror_frames: 64,
            stripe_tracks: 1,
            idle: Duration::from_millis(1),
        }
    }
}

/// One director that runs.
pub(crate) struct Director {
    pub(crate) executor: Executor,
    pub(crate) handle: Handle,
    pub(crate) authority: Authority,
    pub(crate) cache: TestCache,
    pub(crate) provider: SimProvider,
    endpoint: Endpoint<SimProvider>,
    ports: Vec<FakeDevice>,
    area: Rc<RefCell<Option<MirrorArea>>>,
    region: Cell<Option<RegionHandle>>,
    /// As a mirror, in which epoch it answers.
    mirror_epoch: Rc<Cell<Option<Epoch>>>,
    /// Messages that the partner sent, by kind.
    pub(crate) messages: Rc<Cell<u64>>,
}

/// When something is cut short.
#[derive(Debug, Copy, Clone)]
pub(crate) enum End {
    /// At a moment.
    At(Time),
    /// After so many moments at which something happened.
    Steps(u64),
}

/// An operation under way.
pub(crate) type Operation = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct World {
    pub(crate) time: VirtualTime,
    pub(crate) settings: Settings,
    pub(crate) media: [FakeMedium; 2],
    pub(crate) directors: [Option<Director>; 2],
    pub(crate) epoch: Epoch,
    /// Who is home.
    pub(crate) home: usize,
    pub(crate) operations: Vec<Operation>,
    pub(crate) fabric: Fabric,
    /// Moments so far at which something happened while [`World::run_until`] ran.
    pub(crate) steps: u64,
    order: Shuffled<SeededRng>,
    starts: u64,
}

fn info(name: u8) -> DeviceInfo {
    DeviceInfo {
        id: DeviceId([name; 16]),
        namespace: NamespaceId(1),
        blocks: BlockCount(2048),
        transfer_blocks_max: BlockCount(64),
        queue_depth: 64,
        volatile_cache: true,
        reservations: true,
    }
}

impl World {
    /// Both media empty, nobody runs.
    pub(crate) fn new(seed: u64, settings: Settings) -> Self {
        let time = VirtualTime::new(seed);
        let fabric = Fabric::new(&time, FabricConfig { torn_one_in: 16, ..FabricConfig::default() });
        Self {
            media: [1, 2].map(|name| FakeMedium::new(info(name), time.clone(), seed ^ u64::from(name))),
            directors: [None, None],
            epoch: Epoch(1),
            home: 0,
            operations: Vec::new(),
            order: Shuffled(time.rng()),
            starts: 0,
            steps: 0,
            fabric,
            time,
            settings,
        }
    }

    /// Both run, the first is home, everything is mirrored.
    pub(crate) fn whole(seed: u64, settings: Settings) -> Self {
        let mut world = Self::new(seed, settings);
        world.start(0);
        world.recover().expect("an empty vault");
        world.join();
        world
    }

    /// Starts a director that serves nobody yet.
    pub(crate) fn start(&mut self, me: usize) {
        assert!(self.directors[me].is_none(), "it runs");
        self.starts += 1;
        let limits = Limits { tasks: 2 + DESTAGERS + READERS_AHEAD, timers: 128 };
        let executor = Executor::new(limits, Rc::new(self.time.clone()));
        let handle = executor.handle();
        let provider = self.fabric.node(NAMES[me], self.starts);
        let host = u8::try_from(me).expect("two");
        let ports: Vec<_> = self.media.iter().map(|medium| medium.port([host + 1; 16])).collect();
        // One leg: legs that a crash left different are the group's to see to.
        let group = Raid1::new(handle.clone(), vec![ports[0].clone()], &[]).expect("a group");
        let memory = Memory::anonymous(self.settings.frames * BLOCK_BYTES);
        for port in &ports {
            dyad_backend::Device::map(port, &memory).expect("mapped");
        }
        provider.register(&memory, TAG, RemoteAccess::default()).expect("room");
        let mirror_frames = usize::try_from(self.settings.mirror_frames).expect("few");
        let config = CacheConfig {
            takeover_frames: mirror_frames,
            destage_above: mirror_frames / 2,
            write_pending_limit: mirror_frames,
            stripe_tracks: self.settings.stripe_tracks,
            nvcache: self.settings.nvcache,
            commands: LANES,
            hosts: HOSTS,
            outcomes_per_host: 64,
        };
        let authority = Authority::default();
        let cache = Cache::new(handle.clone(), config, authority.clone(), memory, group, &PLACES);
        let endpoint = Endpoint::new(
            provider.clone(),
            EndpointConfig {
                vis_max: 4,
                depth: 64,
                tag: TAG,
                remote_access: RemoteAccess { write: true, read: false },
            },
        )
        .expect("room");
        provider.listen(SERVICE).expect("room");
        let director = Director {
            executor,
            authority,
            cache,
            provider,
            endpoint,
            ports,
            area: Rc::default(),
            region: Cell::default(),
            mirror_epoch: Rc::default(),
            messages: Rc::default(),
            handle: handle.clone(),
        };
        handle.spawn("completions", director.endpoint.clone().run());
        handle.spawn("receive", director.receive());
        for _ in 0..DESTAGERS {
            handle.spawn("destage", director.cache.clone().run_destage(self.settings.idle));
        }
        for _ in 0..READERS_AHEAD {
            handle.spawn("read ahead", director.cache.clone().run_read_ahead());
        }
        director.authority.set_lease(Time::FAR_FUTURE);
        director.executor.seal();
        self.directors[me] = Some(director);
    }

    /// Ends a director at once, with everything that it was doing; nothing of its commands reaches media any more, as if it had been fenced.
    pub(crate) fn kill(&mut self, me: usize) {
        let Some(director) = self.directors[me].take() else { return };
        if me == self.home {
            self.operations.clear();
        }
        self.fabric.kill(NAMES[me]);
        for port in &director.ports {
            port.kill();
            port.remove();
        }
    }

    /// Power is lost, and there again.
    pub(crate) fn lose_power(&mut self) {
        self.kill(0);
        self.kill(1);
        for medium in &self.media {
            medium.power_loss();
        }
    }

    pub(crate) fn director(&self, me: usize) -> &Director {
        self.directors[me].as_ref().expect("it runs")
    }

    pub(crate) fn cache(&self) -> TestCache {
        self.director(self.home).cache.clone()
    }

    /// The home, which runs alone, opens and replays the vault, and serves.
    pub(crate) fn recover(&mut self) -> Result<(), CacheError> {
        self.home = usize::from(self.directors[0].is_none());
        self.epoch = Epoch(self.epoch.0 + 1);
        match self.open_vault() {
            Ok(Some((vault, mut found))) => {
                let cache = self.cache();
                self.run(async move {
                    cache.replay(&vault, &mut found, Replay::All).await?;
                    cache.attach_vault(vault).await
                })?;
            }
            // There is nothing to lose yet.
            Ok(None) if self.starts == 1 => {}
            Ok(None) => self.cache().lose_unmirrored(),
            Err(error) => return Err(CacheError::Vault(error)),
        }
        self.director(self.home).authority.set_regime(Regime::Solo(self.epoch));
        Ok(())
    }

    /// The same, as far as it comes. Whether it was done.
    pub(crate) fn recover_until(&mut self, end: End, what: Replay) -> bool {
        self.home = usize::from(self.directors[0].is_none());
        self.epoch = Epoch(self.epoch.0 + 1);
        let opening = self.opening();
        let cache = self.cache();
        let recovering = self.run_until(
            async move {
                if let Some(opening) = opening
                    && let Ok((vault, mut found)) = opening.await
                {
                    let _ = cache.replay(&vault, &mut found, what).await;
                    let _ = cache.attach_vault(vault).await;
                }
            },
            end,
        );
        recovering.is_some()
    }

    /// The mirror takes over from a home that is gone, and serves; what it adopted is journalled meanwhile.
    pub(crate) fn take_over(&mut self) -> Result<(), CacheError> {
        self.home = usize::from(self.directors[0].is_none());
        self.epoch = Epoch(self.epoch.0 + 1);
        let area = {
            let director = self.director(self.home);
            director.mirror_epoch.set(None);
            let region = director.region.take().expect("it was a mirror");
            director.provider.revoke(Revocable::Region(region)).expect("registered");
            director.area.borrow_mut().take().expect("it was a mirror")
        };
        let cache = self.cache();
        let found = match self.open_vault().map_err(CacheError::Vault)? {
            Some((vault, mut found)) => {
                let cache = cache.clone();
                self.run(async move {
                    cache.replay(&vault, &mut found, Replay::Unmirrored).await?;
                    cache.attach_vault(vault).await?;
                    Ok(found)
                })?
            }
            None => {
                cache.lose_unmirrored();
                Found::default()
            }
        };
        let adopting = cache.clone();
        self.run(async move { adopting.adopt(&area, &found).await });
        self.director(self.home).authority.set_regime(Regime::Solo(self.epoch));
        self.operations.push(Box::pin(async move {
            // If it fails, the director stays unsettled: whoever looks will see.
            let _ = cache.journal().await;
        }));
        Ok(())
    }

    /// The home goes on without its partner.
    pub(crate) fn go_on_alone(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let director = self.director(self.home);
        director.authority.set_regime(Regime::Undecided);
        let (endpoint, vi) = (director.endpoint.clone(), director.cache.link().expect("there was a partner").vi());
        director.cache.drop_link();
        director.authority.set_regime(Regime::Solo(self.epoch));
        self.operations.push(Box::pin(async move { endpoint.close(vi).await }));
        let cache = self.cache();
        // What was mirrored is in one memory now.
        self.operations.push(Box::pin(async move {
            let _ = cache.journal().await;
        }));
    }

    /// A fresh partner joins the home, which is alone.
    pub(crate) fn join(&mut self) {
        let partner = 1 - self.home;
        self.start(partner);
        self.epoch = Epoch(self.epoch.0 + 1);
        self.director(self.home).authority.set_regime(Regime::Undecided);
        let cache = self.cache();
        self.run(async move { cache.quiesce().await }).expect("media is there");
        self.connect(partner);
        let (cache, epoch) = (self.cache(), self.epoch);
        let link = cache.link().expect("connected");
        self.run(async move { cache.teach_outcomes(&link, epoch).await }).expect("the partner is there");
        self.director(self.home).authority.set_lease(Time::FAR_FUTURE);
        self.director(self.home).authority.set_regime(Regime::Mirrored(self.epoch));
    }

    fn connect(&mut self, partner: usize) {
        let frames = self.settings.mirror_frames;
        let (home, mirror) = (self.director(self.home), self.director(partner));
        let memory = Memory::anonymous(usize::try_from(frames).expect("few") * BLOCK_BYTES);
        let region = mirror.provider.register(&memory, TAG, RemoteAccess { write: true, read: false }).expect("room");
        mirror.region.set(Some(region));
        *mirror.area.borrow_mut() = Some(MirrorArea::new(memory));
        mirror.mirror_epoch.set(Some(self.epoch));
        let vi = home.endpoint.open().expect("room");
        let to = NetAddress { host: NAMES[partner].into(), discriminator: SERVICE };
        home.provider.connect(vi, &to, b"", Duration::from_secs(1)).expect("room");
        let mut established = 0;
        let mut context = Context::from_waker(Waker::noop());
        while established < 2 {
            for me in [self.home, partner] {
                let director = self.director(me);
                while let Poll::Ready(event) = director.provider.poll_event(&mut context) {
                    match event {
                        Event::Requested { request, .. } => {
                            let vi = director.endpoint.open().expect("room");
                            director.provider.accept(request, vi, b"").expect("asked for");
                        }
                        Event::Established { .. } => established += 1,
                        Event::Broken { .. } | Event::Refused { .. } => {}
                    }
                }
            }
            assert!(self.step(), "they connect");
        }
        let home = self.director(self.home);
        let link = MirrorLink::new(home.endpoint.clone(), vi, region, frames, LANES + DESTAGERS + 1);
        home.cache.set_link(link);
    }

    fn open_vault(&mut self) -> Result<Option<(Vault<FakeDevice>, Found)>, VaultError> {
        self.opening().map(|opening| self.run(opening)).transpose()
    }

    /// Opens the vault for the home; none if there is none.
    pub(crate) fn opening(
        &self,
    ) -> Option<impl Future<Output = Result<(Vault<FakeDevice>, Found), VaultError>> + use<>> {
        let director = self.director(self.home);
        let region = Region { start: VAULT_START, blocks: BlockCount(self.settings.vault_cells * 17) };
        let members: Vec<_> = director.ports.iter().map(|port| (port.clone(), region)).collect();
        let (handle, epoch) = (director.handle.clone(), self.epoch);
        let heads = Memory::anonymous(16 * BLOCK_BYTES);
        (self.settings.vault_cells > 0)
            .then_some(async move { Vault::open(&handle, GROUP, epoch, members, heads).await })
    }

    /// Runs a future, and everything beside it, until it is done.
    pub(crate) fn run<F: Future>(&mut self, future: F) -> F::Output {
        self.run_until(future, End::At(Time::FAR_FUTURE)).expect("it ends")
    }

    /// Runs a future until it is done, or until an end.
    pub(crate) fn run_until<F: Future>(&mut self, future: F, end: End) -> Option<F::Output> {
        let mut steps = 0;
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            self.run_ready();
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            if self.run_ready() {
                continue;
            }
            let over = match end {
                End::At(end) => self.next_moment() > end,
                End::Steps(end) => steps == end,
            };
            if over {
                return None;
            }
            steps += 1;
            self.steps += 1;
            assert!(self.step(), "the future waits for something that will never happen");
        }
    }

    /// Runs tasks and operations until none can go on; whether anything did.
    fn run_ready(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut any = false;
        loop {
            let mut more = false;
            for director in self.directors.iter().flatten() {
                more |= director.executor.run_until_idle(&mut self.order) > 0;
            }
            let before = self.operations.len();
            self.operations.retain_mut(|operation| operation.as_mut().poll(&mut context).is_pending());
            more |= self.operations.len() < before;
            more |= self.directors.iter().flatten().any(|director| director.executor.has_ready());
            if !more {
                return any;
            }
            any = true;
        }
    }

    fn next_moment(&self) -> Time {
        let timers = self.directors.iter().flatten().filter_map(|director| director.executor.next_deadline());
        timers.chain(self.time.next_event()).min().unwrap_or(Time::FAR_FUTURE)
    }

    /// Runs what can run, then goes to the next moment. `false`: nothing will ever happen.
    pub(crate) fn step(&mut self) -> bool {
        self.run_ready();
        let next = self.next_moment();
        if next == Time::FAR_FUTURE {
            return false;
        }
        self.time.advance_to(next.max(self.time.now()));
        self.time.run_due();
        for director in self.directors.iter().flatten() {
            director.executor.fire_timers();
        }
        true
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.time.now() + time;
        self.run_ready();
        while self.next_moment() <= end && self.step() {
            self.run_ready();
        }
        self.time.advance_to(end.max(self.time.now()));
    }

    /// Runs until all operations are done.
    pub(crate) fn finish(&mut self) {
        self.run_ready();
        while !self.operations.is_empty() {
            assert!(self.step(), "operations wait for something that will never happen");
            self.run_ready();
        }
    }
}

impl Director {
    /// Takes what the partner says.
    fn receive(&self) -> impl Future<Output = ()> + 'static {
        let (endpoint, area, cache) = (self.endpoint.clone(), Rc::clone(&self.area), self.cache.clone());
        let (mirror_epoch, messages) = (Rc::clone(&self.mirror_epoch), Rc::clone(&self.messages));
        async move {
            loop {
                let (vi, message) = endpoint.receive().await;
                messages.set(messages.get() + 1);
                let (record, tag) = Record::decode(&message).expect("partners are of one version");
                if let Record::Answer(answer) = record {
                    if let Some(link) = cache.link() {
                        link.answered(answer, tag);
                    }
                    continue;
                }
                let outcomes: &OutcomeTable = cache.outcomes();
                let answer = match (mirror_epoch.get(), area.borrow_mut().as_mut()) {
                    (Some(epoch), Some(area)) => area.serve(&record, epoch, outcomes),
                    _ => Some(Answer { status: AnswerStatus::WrongEpoch, epoch: Epoch(0) }),
                };
                if let Some(answer) = answer {
                    let _ = endpoint.try_send(vi, &Record::Answer(answer).encode(tag));
                }
            }
        }
    }
}

impl Director {
    /// Blocks that it holds for its partner.
    pub(crate) fn mirrored(&self) -> usize {
        self.area.borrow().as_ref().map_or(0, MirrorArea::block_count)
    }

    /// Bytes that landed in its mirror.
    pub(crate) fn mirror_bytes(&self) -> u64 {
        self.area.borrow().as_ref().map_or(0, |area| area.memory().copied_bytes())
    }
}

/// A host's buffer of blocks, each of which is one value all over.
pub(crate) struct Buffer {
    memory: Memory,
    frames: Memory,
}

impl Buffer {
    /// A buffer for transfers from and to the frames of `cache`.
    pub(crate) fn new(cache: &TestCache, blocks: usize) -> Self {
        Self { memory: Memory::anonymous(blocks * BLOCK_BYTES), frames: cache.pool().memory().clone() }
    }

    pub(crate) fn fill(&self, block: usize, value: u64) {
        let mut bytes = [0; BLOCK_BYTES];
        bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|chunk| *chunk = value.to_le_bytes());
        self.memory.write(offset(block), &bytes).expect("inside");
    }

    /// The value of a block; `None` if it is torn.
    pub(crate) fn value(&self, block: usize) -> Option<u64> {
        let mut bytes = [0; BLOCK_BYTES];
        self.memory.read(offset(block), &mut bytes).expect("inside");
        let chunks = bytes.as_chunks::<8>().0;
        chunks.iter().all(|chunk| *chunk == chunks[0]).then(|| u64::from_le_bytes(chunks[0]))
    }

    fn each(&self, segments: &[Segment], mut copy: impl FnMut(u64, u64, u64)) {
        let mut at = 0;
        for segment in segments {
            copy(segment.offset, at, u64::from(segment.len));
            at += u64::from(segment.len);
        }
    }
}

fn offset(block: usize) -> u64 {
    (block * BLOCK_BYTES) as u64
}

impl Transfer for Buffer {
    async fn fetch(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.each(segments, |frame, at, len| {
            dyad_matrix::memory::copy(&self.memory, at, &self.frames, frame, len).expect("inside");
        });
        Ok(())
    }

    async fn deliver(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.each(segments, |frame, at, len| {
            dyad_matrix::memory::copy(&self.frames, frame, &self.memory, at, len).expect("inside");
        });
        Ok(())
    }
}

/// Blocks of one track.
pub(crate) fn range(volume: VolumeId, lba: u64, blocks: usize) -> TrackRange {
    TrackRange::split(volume, Lba(lba), blocks as u64).next().expect("some blocks")
}

/// Whole blocks of one value each: `value`, `value + 1`, and so on.
pub(crate) async fn write(
    cache: &TestCache,
    range: TrackRange,
    value: u64,
    (host, sequence): (u8, u64),
    fua: bool,
) -> Result<(), CacheError> {
    let buffer = Buffer::new(cache, range.count());
    (0..range.count()).for_each(|block| buffer.fill(block, value + block as u64));
    let command = CommandId { origin: [host; 16], sequence, part: 0 };
    let write = WriteCommand { range, command, oldest: sequence, fua };
    cache.write(write, Time::FAR_FUTURE, &buffer).await
}

/// The values of the blocks.
pub(crate) async fn read(cache: &TestCache, range: TrackRange) -> Result<Vec<u64>, CacheError> {
    let buffer = Buffer::new(cache, range.count());
    cache.read(range, Time::FAR_FUTURE, &buffer).await?;
    Ok((0..range.count()).map(|block| buffer.value(block).expect("a block that is not torn")).collect())
}
