//! Hosts: several workers each, which write and read blocks of one volume, any of them at any time, and check every byte.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_host::{Initiator, Volume, VolumeError};
use dyad_matrix::frames::{FRAME_BYTES, Pinned, RUN_FRAMES_MAX};
use dyad_matrix::sim::SimProvider;
use dyad_nvme::types::Lba;
use dyad_reactor::executor::Handle;
use dyad_reactor::{Clock, Rng, SeededRng, VirtualTime};

use crate::chance::{one_of, up_to};
use crate::checker::{Model, Violation, contents};
use crate::trap::Trap;

/// Runs of frames that a host watches at a time: most of what it has.
const WATCHED_RUNS: usize = 40;
/// Bytes at the start of each that it looks at: enough lines that a write that is torn between lines does not miss them all.
const WATCHED_BYTES: usize = 512;

/// What went wrong at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFailure {
    /// The array returned what it must not.
    Violation(Violation),
    /// An operation failed although the array could have done it.
    Failed(VolumeError),
}

/// What the workers of a run do.
#[derive(Debug, Copy, Clone)]
pub struct Load {
    /// They rest up to this long between operations.
    pub think: Duration,
    /// Most of them happen in the first so many blocks.
    pub busy_blocks: u64,
    /// Blocks of one operation, at most.
    pub longest: u64,
    /// Of a hundred operations so many are writes.
    pub writes: u64,
    /// And so many flushes.
    pub flushes: u64,
    /// One write in so many is to survive loss of power by itself.
    pub forced_one_in: u64,
}

impl Load {
    /// As the seed has it.
    #[must_use]
    pub fn draw(rng: &mut SeededRng, blocks: u64) -> Self {
        Self {
            think: Duration::from_millis(1 + rng.below(200)),
            busy_blocks: one_of(rng, &[8, 32, blocks, blocks]),
            longest: one_of(rng, &[1, 4, 16, 16]),
            writes: 20 + rng.below(60),
            flushes: rng.below(6),
            forced_one_in: one_of(rng, &[2, 16, 64]),
        }
    }
}

/// What the hosts of a volume have in common. Clones are the same.
#[derive(Clone)]
pub struct Workload {
    inner: Rc<Inner>,
}

struct Inner {
    time: VirtualTime,
    load: Load,
    model: Model,
    trap: Trap,
    blocks: u64,
    operations: Cell<u64>,
    stopping: Cell<bool>,
    /// Tasks that have not ended, by host.
    running: RefCell<Vec<usize>>,
    failure: RefCell<Option<HostFailure>>,
}

impl Workload {
    /// Work on the first `blocks` blocks of a volume, by `hosts` hosts.
    #[must_use]
    pub fn new(time: &VirtualTime, load: Load, model: Model, trap: Trap, blocks: u64, hosts: usize) -> Self {
        Self {
            inner: Rc::new(Inner {
                time: time.clone(),
                load,
                model,
                trap,
                blocks,
                operations: Cell::new(0),
                stopping: Cell::new(false),
                running: RefCell::new(vec![0; hosts]),
                failure: RefCell::new(None),
            }),
        }
    }

    /// What is known about the volume.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.inner.model
    }

    /// What its operations spring.
    #[must_use]
    pub fn trap(&self) -> &Trap {
        &self.inner.trap
    }

    /// Operations done.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.inner.operations.get()
    }

    /// What went wrong, if anything.
    #[must_use]
    pub fn failure(&self) -> Option<HostFailure> {
        self.inner.failure.borrow().clone()
    }

    /// No worker begins another operation.
    pub fn stop(&self) {
        self.inner.stopping.set(true);
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.running.borrow().iter().sum()
    }

    /// Counts a task of a host that is about to be spawned.
    pub fn enlist(&self, host: usize) {
        self.inner.running.borrow_mut()[host] += 1;
    }

    /// The host's workers are no more.
    pub fn host_died(&self, host: usize) {
        self.inner.running.borrow_mut()[host] = 0;
    }

    /// Watches memory that the host has lent to nobody: what was given back last is what an old path may still reach.
    pub async fn watch_memory(self, host: usize, handle: Handle, volume: Initiator<SimProvider>, mut rng: SeededRng) {
        let (own, mut found) = ([0x5a; WATCHED_BYTES], [0; WATCHED_BYTES]);
        while !self.inner.stopping.get() {
            handle.sleep(up_to(&mut rng, Duration::from_millis(5))).await;
            let watched: Vec<Pinned> = (0..WATCHED_RUNS).filter_map(|_| take(&volume, RUN_FRAMES_MAX as u64)).collect();
            let frames = || watched.iter().flat_map(|run| (0..run.len()).map(move |index| (run, index)));
            frames().for_each(|(run, index)| run.write(index, &own));
            handle.sleep(up_to(&mut rng, Duration::from_millis(400))).await;
            for (run, index) in frames() {
                run.read(index, &mut found);
                if found != own {
                    self.fail(HostFailure::Violation(Violation::HostMemory));
                }
            }
        }
        self.ended(host);
    }

    fn ended(&self, host: usize) {
        self.inner.running.borrow_mut()[host] -= 1;
    }

    fn fail(&self, failure: HostFailure) {
        self.inner.failure.borrow_mut().get_or_insert(failure);
    }

    /// One worker of a host: it works as `rng` has it until it is to stop, or without one reads everything once.
    pub async fn run(self, host: usize, handle: Handle, volume: Initiator<SimProvider>, rng: Option<SeededRng>) {
        let result = match volume.attach().await {
            Err(error) => Err(HostFailure::Failed(error)),
            Ok(()) => match rng {
                Some(rng) => self.work(&handle, &volume, rng).await,
                None => self.read_all(&volume).await,
            },
        };
        if let Err(failure) = result {
            self.fail(failure);
        }
        self.ended(host);
    }

    async fn work(&self, handle: &Handle, volume: &impl Volume, mut rng: SeededRng) -> Result<(), HostFailure> {
        let inner = &*self.inner;
        let load = inner.load;
        while !inner.stopping.get() {
            handle.sleep(up_to(&mut rng, load.think)).await;
            let blocks = if rng.one_in(8) { inner.blocks } else { load.busy_blocks };
            let at = rng.below(blocks);
            let count = 1 + rng.below(load.longest.min(blocks - at));
            inner.trap.operation_begins(&mut rng);
            match rng.below(100) {
                dice if dice < load.writes => self.write(volume, at, count, rng.one_in(load.forced_one_in)).await?,
                dice if dice < load.writes + load.flushes => self.flush(volume).await?,
                _ => self.read(volume, at, count).await?,
            }
            inner.operations.set(inner.operations.get() + 1);
        }
        Ok(())
    }

    async fn read_all(&self, volume: &impl Volume) -> Result<(), HostFailure> {
        let blocks = self.inner.blocks;
        for at in (0..blocks).step_by(16) {
            self.read(volume, at, 16.min(blocks - at)).await?;
        }
        Ok(())
    }

    async fn write(&self, volume: &impl Volume, at: u64, count: u64, forced: bool) -> Result<(), HostFailure> {
        let inner = &*self.inner;
        let Some(frames) = take(volume, count) else { return Ok(()) };
        let begun = inner.time.now();
        let writes: Vec<(u64, u64)> = (at..at + count).map(|block| (block, inner.model.issue(block, begun))).collect();
        for (index, (block, write)) in writes.iter().enumerate() {
            frames.write(index, &contents(*block, *write)[..]);
        }
        let written = if forced {
            volume.write_durable(Lba(at), &frames).await
        } else {
            volume.write_gather(Lba(at), &frames).await
        };
        written.map_err(HostFailure::Failed)?;
        let mut bytes = Box::new([0; FRAME_BYTES]);
        for (index, (block, write)) in writes.iter().enumerate() {
            inner.model.acknowledge(*block, *write, inner.time.now()).map_err(HostFailure::Violation)?;
            if forced {
                inner.model.forced(*block, *write);
            }
            frames.read(index, &mut bytes[..]);
            if bytes != contents(*block, *write) {
                return Err(HostFailure::Violation(Violation::HostMemory));
            }
        }
        Ok(())
    }

    async fn flush(&self, volume: &impl Volume) -> Result<(), HostFailure> {
        let begun = self.inner.time.now();
        volume.flush().await.map_err(HostFailure::Failed)?;
        self.inner.model.flushed(begun);
        Ok(())
    }

    async fn read(&self, volume: &impl Volume, at: u64, count: u64) -> Result<(), HostFailure> {
        let inner = &*self.inner;
        let Some(frames) = take(volume, count) else { return Ok(()) };
        let from = inner.time.now();
        let frames = volume.read_scatter(Lba(at), frames).await.map_err(HostFailure::Failed)?;
        let to = inner.time.now();
        let mut bytes = Box::new([0; FRAME_BYTES]);
        for (index, block) in (at..at + count).enumerate() {
            frames.read(index, &mut bytes[..]);
            inner.model.check(block, &bytes, from, to).map_err(HostFailure::Violation)?;
        }
        Ok(())
    }
}

/// Frames for an operation. `None`: all are in use or in quarantine.
fn take(volume: &impl Volume, count: u64) -> Option<Pinned> {
    volume.pool().try_take(usize::try_from(count).expect("operations are short"))
}
