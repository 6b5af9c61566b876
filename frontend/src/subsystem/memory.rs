//! Namespaces in memory, for tests and benches: blocks are frames, and writes land in free ones that replace the old when
//! they are complete (PROTOCOLS 3.1). So a block is never torn, and reads go from the frames to the host without a copy.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_cache::CacheError;
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FrameIndex, FramePool, Pinned, RUN_FRAMES_MAX};
use dyad_nvme::types::{BlockCount, NamespaceId};
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;

use super::backing::{Backing, HostData, pieces, take_frames};
use super::command::Run;

/// Namespaces in memory. Clones are the same.
#[derive(Clone)]
pub struct MemoryBacking {
    inner: Rc<Inner>,
}

struct Inner {
    handle: Handle,
    pool: FramePool,
    /// What blocks that were never written read as.
    zeros: Pinned,
    namespaces: Vec<(NamespaceId, RefCell<Vec<Option<FrameIndex>>>)>,
}

impl MemoryBacking {
    /// Namespaces of these sizes, all zeros, in `memory`: it needs a frame per block that is written, and some for what is under way.
    ///
    /// # Panics
    /// If the memory has not a single frame, or a namespace is larger than the address space.
    #[must_use]
    pub fn new(handle: &Handle, memory: Memory, namespaces: &[(NamespaceId, BlockCount)]) -> Self {
        let pool = FramePool::new(memory);
        let zeros = pool.try_take(1).expect("memory of one frame at least");
        zeros.write(0, &[0; FRAME_BYTES]);
        let table = |(id, blocks): &(NamespaceId, BlockCount)| {
            (*id, RefCell::new(vec![None; usize::try_from(blocks.0).expect("it fits in memory")]))
        };
        let namespaces = namespaces.iter().map(table).collect();
        Self { inner: Rc::new(Inner { handle: handle.clone(), pool, zeros, namespaces }) }
    }

    fn blocks(&self, namespace: NamespaceId) -> Result<&RefCell<Vec<Option<FrameIndex>>>, CacheError> {
        let found = self.inner.namespaces.iter().find(|(id, _)| *id == namespace);
        found.map(|(_, blocks)| blocks).ok_or(CacheError::OutOfRange)
    }

    /// Puts frames, or nothing, in the place of blocks.
    fn replace(&self, namespace: NamespaceId, run: Run, frames: Option<&Pinned>) -> Result<(), CacheError> {
        let mut blocks = self.blocks(namespace)?.borrow_mut();
        let range = place(run, blocks.len())?;
        for (index, block) in blocks[range].iter_mut().enumerate() {
            let new = frames.map(|frames| frames.frames()[index]);
            if let Some(frame) = new {
                self.inner.pool.hold(frame);
            }
            if let Some(old) = std::mem::replace(block, new) {
                self.inner.pool.let_go(old);
            }
        }
        Ok(())
    }

    fn pin(&self, namespace: NamespaceId, run: Run) -> Result<Pinned, CacheError> {
        let blocks = self.blocks(namespace)?.borrow();
        let range = place(run, blocks.len())?;
        let zeros = self.inner.zeros.frames()[0];
        Ok(self.inner.pool.pin(blocks[range].iter().map(|block| block.unwrap_or(zeros))))
    }
}

fn place(run: Run, blocks: usize) -> Result<std::ops::Range<usize>, CacheError> {
    let end = run.lba.0.checked_add(run.blocks.0).ok_or(CacheError::OutOfRange)?;
    let range = usize::try_from(run.lba.0).ok().zip(usize::try_from(end).ok());
    range.filter(|(_, end)| *end <= blocks).map(|(from, end)| from..end).ok_or(CacheError::OutOfRange)
}

impl Backing for MemoryBacking {
    fn pool(&self) -> &FramePool {
        &self.inner.pool
    }

    fn frames_for(&self, run: Run) -> Option<Pinned> {
        let count = usize::try_from(run.blocks.0).ok().filter(|count| *count <= RUN_FRAMES_MAX)?;
        self.inner.pool.try_take(count)
    }

    async fn read(&self, namespace: NamespaceId, run: Run, _: Time, host: &impl HostData) -> Result<(), CacheError> {
        for (at, piece) in pieces(run) {
            let pinned = self.pin(namespace, piece)?;
            host.deliver(at, &pinned.segments()).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        namespace: NamespaceId,
        run: Run,
        _: bool,
        deadline: Time,
        host: &impl HostData,
    ) -> Result<(), CacheError> {
        for (at, piece) in pieces(run) {
            let frames = match host.received() {
                Some(frames) => frames,
                None => {
                    let count = usize::try_from(piece.blocks.0).expect("a piece is short");
                    let frames = take_frames(&self.inner.handle, &self.inner.pool, count, deadline).await?;
                    host.fetch(at, &frames.segments()).await?;
                    frames
                }
            };
            self.replace(namespace, piece, Some(&frames))?;
        }
        Ok(())
    }

    async fn zero(&self, namespace: NamespaceId, run: Run, _: bool, _: bool, _: Time) -> Result<(), CacheError> {
        self.replace(namespace, run, None)
    }

    async fn discard(&self, namespace: NamespaceId, run: Run, _: Time) -> Result<(), CacheError> {
        self.replace(namespace, run, None)
    }

    async fn flush(&self, _: NamespaceId, _: Time) -> Result<(), CacheError> {
        Ok(())
    }
}
