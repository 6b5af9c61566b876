//! Hosts: several workers each, which write and read blocks of one volume and check every byte.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_host::{Volume, VolumeError};
use dyad_matrix::frames::FRAME_BYTES;
use dyad_nvme::types::Lba;
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::KeyedLocks;
use dyad_reactor::{Clock, Rng, SeededRng, VirtualTime};

use crate::checker::{Model, Violation, contents};

/// What went wrong at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFailure {
    /// The array returned what it must not.
    Violation(Violation),
    /// An operation failed although the array could have done it.
    Failed(VolumeError),
}

/// What the hosts of a run have in common. Clones are the same.
#[derive(Clone)]
pub struct Workload {
    inner: Rc<Inner>,
}

struct Inner {
    time: VirtualTime,
    model: Model,
    /// One writer per block at a time.
    writers: KeyedLocks<u64>,
    blocks: u64,
    operations: Cell<u64>,
    stopping: Cell<bool>,
    running: Cell<usize>,
    failure: RefCell<Option<HostFailure>>,
    think: Duration,
}

impl Workload {
    /// Work on the first `blocks` blocks of a volume, by at most `workers` workers that rest up to `think` between operations.
    #[must_use]
    pub fn new(time: &VirtualTime, blocks: u64, workers: usize, think: Duration) -> Self {
        Self {
            inner: Rc::new(Inner {
                time: time.clone(),
                model: Model::new(usize::try_from(blocks).expect("small")),
                writers: KeyedLocks::new(workers * 16),
                blocks,
                operations: Cell::new(0),
                stopping: Cell::new(false),
                running: Cell::new(0),
                failure: RefCell::new(None),
                think,
            }),
        }
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

    /// Workers that have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.running.get()
    }

    /// Counts a worker that is about to be spawned.
    pub fn enlist(&self) {
        self.inner.running.set(self.inner.running.get() + 1);
    }

    fn fail(&self, failure: HostFailure) {
        self.inner.failure.borrow_mut().get_or_insert(failure);
    }

    /// One worker.
    pub async fn work(self, handle: Handle, volume: impl Volume, mut rng: SeededRng) {
        let inner = &*self.inner;
        while !inner.stopping.get() && inner.failure.borrow().is_none() {
            let think = u64::try_from(inner.think.as_nanos()).expect("short");
            handle.sleep(Duration::from_nanos(rng.below(think + 1))).await;
            let result = match rng.below(100) {
                0..50 => self.write(&volume, &mut rng).await,
                50..98 => {
                    let at = rng.below(inner.blocks);
                    let count = 1 + rng.below(16.min(inner.blocks - at));
                    self.read(&volume, at, count).await
                }
                _ => volume.flush().await.map_err(HostFailure::Failed),
            };
            match result {
                Ok(()) => inner.operations.set(inner.operations.get() + 1),
                Err(failure) => self.fail(failure),
            }
        }
        inner.running.set(inner.running.get() - 1);
    }

    /// Reads everything once: for the end of a run, when nothing is being written.
    pub async fn read_all(self, volume: impl Volume) {
        let blocks = self.inner.blocks;
        for at in (0..blocks).step_by(16) {
            if let Err(failure) = self.read(&volume, at, 16.min(blocks - at)).await {
                self.fail(failure);
            }
        }
        self.inner.running.set(self.inner.running.get() - 1);
    }

    async fn write(&self, volume: &impl Volume, rng: &mut SeededRng) -> Result<(), HostFailure> {
        let inner = &*self.inner;
        let at = rng.below(inner.blocks);
        let longest = if rng.one_in(4) { 16 } else { 2 };
        let count = (1 + rng.below(longest)).min(inner.blocks - at);
        // Locks are taken in address order by everybody, so nobody waits in a circle.
        let mut turns = Vec::new();
        for block in at..at + count {
            turns.push(inner.writers.lock(block).await);
        }
        let Some(frames) = volume.pool().try_take(usize::try_from(count).expect("small"), 0) else { return Ok(()) };
        let writes: Vec<u64> = (at..at + count).map(|block| inner.model.issue(block)).collect();
        for (index, (block, write)) in (at..).zip(&writes).enumerate() {
            frames.write(index, &contents(block, *write)[..]);
        }
        volume.write_gather(Lba(at), &frames).await.map_err(HostFailure::Failed)?;
        for (block, write) in (at..).zip(&writes) {
            inner.model.acknowledge(block, *write, inner.time.now());
        }
        Ok(())
    }

    async fn read(&self, volume: &impl Volume, at: u64, count: u64) -> Result<(), HostFailure> {
        let inner = &*self.inner;
        let Some(frames) = volume.pool().try_take(usize::try_from(count).expect("small"), 0) else { return Ok(()) };
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
