//! Volumes that lose power. What was written and not flushed is lost or not, block by block; a block is never torn, a page may be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use dyad_host::{Volume, VolumeError};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{Rng, SeededRng};

type Block = Box<[u8; FRAME_BYTES]>;

/// Counts writes and flushes over all volumes of a machine, and cuts the power in the middle of one.
#[derive(Default)]
pub(crate) struct Power {
    steps: Cell<u64>,
    cut: Cell<Option<u64>>,
}

impl Power {
    /// The power goes in the middle of this step, counted from now on.
    pub(crate) fn cut_at(&self, cut: Option<u64>) {
        self.steps.set(0);
        self.cut.set(cut);
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(crate) fn is_off(&self) -> bool {
        self.cut.get().is_some_and(|cut| self.steps.get() > cut)
    }

    /// One more step; whether it is the last one, which is not completed.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        self.is_off()
    }
}

/// What a volume is made of. It survives the machine.
#[derive(Default)]
pub(crate) struct Medium {
    durable: RefCell<BTreeMap<u64, Block>>,
    /// Writes that a loss of power may undo, in order.
    cached: RefCell<Vec<(u64, Block)>>,
    pub(crate) reads: Cell<u64>,
    pub(crate) writes: Cell<u64>,
    /// Frames of the commands that read, the last one last.
    pub(crate) read_frames: RefCell<Vec<usize>>,
    /// Writes fail from now on.
    pub(crate) broken: Cell<bool>,
}

impl Medium {
    /// Power is lost: each write that was not flushed is there afterwards, or not.
    pub(crate) fn lose_power(&self, rng: &mut SeededRng, survive_one_in: Option<u64>) {
        for (at, block) in self.cached.take() {
            if survive_one_in.is_some_and(|chance| rng.one_in(chance)) {
                self.durable.borrow_mut().insert(at, block);
            }
        }
    }

    fn flush(&self) {
        self.durable.borrow_mut().extend(self.cached.take());
    }

    fn block(&self, at: u64) -> Block {
        let cached = self.cached.borrow().iter().rev().find(|(block, _)| *block == at).map(|(_, bytes)| bytes.clone());
        let durable = || self.durable.borrow().get(&at).cloned();
        cached.or_else(durable).unwrap_or_else(|| Box::new([0; FRAME_BYTES]))
    }

    #[cfg(not(feature = "mutations"))]
    /// Changes a byte behind everybody's back.
    pub(crate) fn damage(&self, at: u64) {
        self.flush();
        let mut block = self.block(at);
        block[1000] ^= 1;
        self.durable.borrow_mut().insert(at, block);
    }

    /// A copy, as it is.
    pub(crate) fn copy(&self) -> Rc<Self> {
        let copy = Self::default();
        *copy.durable.borrow_mut() = self.durable.borrow().clone();
        *copy.cached.borrow_mut() = self.cached.borrow().clone();
        Rc::new(copy)
    }
}

/// A medium in a machine.
#[derive(Clone)]
pub(crate) struct Disk {
    pool: FramePool,
    blocks: u64,
    medium: Rc<Medium>,
    power: Rc<Power>,
    /// Reads come back in other frames than they were given, as after a lost path.
    pub(crate) elsewhere: bool,
}

impl Disk {
    pub(crate) fn new(medium: &Rc<Medium>, power: &Rc<Power>, blocks: u64, frames: usize) -> Self {
        let pool = FramePool::new(Memory::anonymous(frames * FRAME_BYTES));
        Self { pool, blocks, medium: Rc::clone(medium), power: Rc::clone(power), elsewhere: false }
    }

    pub(crate) fn memory(&self) -> Memory {
        self.pool.memory().clone()
    }

    async fn turn(&self) {
        let mut first = true;
        poll_fn(|context| {
            if std::mem::take(&mut first) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        if self.power.is_off() {
            pending::<()>().await;
        }
    }

    async fn write(&self, at: Lba, frames: &Pinned, durable: bool) -> Result<(), VolumeError> {
        self.check(at, frames.len())?;
        self.turn().await;
        if self.medium.broken.get() {
            return Err(VolumeError::TimedOut);
        }
        self.medium.writes.set(self.medium.writes.get() + 1);
        let off = self.power.step();
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            let mut bytes = Box::new([0; FRAME_BYTES]);
            frames.read(index, &mut *bytes);
            if durable && !off {
                self.medium.cached.borrow_mut().retain(|(at, _)| *at != block);
                self.medium.durable.borrow_mut().insert(block, bytes);
            } else {
                self.medium.cached.borrow_mut().push((block, bytes));
            }
        }
        self.turn().await;
        Ok(())
    }
}

impl Volume for Disk {
    fn blocks(&self) -> BlockCount {
        BlockCount(self.blocks)
    }

    fn pool(&self) -> &FramePool {
        &self.pool
    }

    async fn read_scatter(&self, at: Lba, frames: Pinned) -> Result<Pinned, VolumeError> {
        self.check(at, frames.len())?;
        self.turn().await;
        self.medium.reads.set(self.medium.reads.get() + 1);
        self.medium.read_frames.borrow_mut().push(frames.len());
        let others = if self.elsewhere { self.pool.try_take(frames.len()) } else { None };
        let frames = others.unwrap_or(frames);
        for (index, block) in (at.0..).enumerate().take(frames.len()) {
            frames.write(index, &self.medium.block(block)[..]);
        }
        self.turn().await;
        Ok(frames)
    }

    async fn write_gather(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, false).await
    }

    async fn write_durable(&self, at: Lba, frames: &Pinned) -> Result<(), VolumeError> {
        self.write(at, frames, true).await
    }

    async fn flush(&self) -> Result<(), VolumeError> {
        self.turn().await;
        if self.medium.broken.get() {
            return Err(VolumeError::TimedOut);
        }
        if !self.power.step() {
            self.medium.flush();
        }
        self.turn().await;
        Ok(())
    }
}
