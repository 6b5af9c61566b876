//! The buffer pool: pages of all files in the frames that volumes read into and write from.
//!
//! - **Page table**: in shards, each with a lock that is held for a look-up.
//! - **Pending**: a page is in the table before it is read; whoever wants it meanwhile waits for the same read. It is the lane of the
//!   volume that finishes a read, so nobody's giving up leaves a page pending.
//! - **Clock**: each reference counts; a sweep divides the count by four, and a clean buffer that comes to zero goes to the free list. Sweeps
//!   are done by whoever has a read in flight, and by the lazy writer, which also writes dirty buffers that nobody refers to.
//! - **Write-ahead**: a page is written only when media have the log up to its last change. It does not change while it is written.
//! - **Scans**: pages that only a scan has looked at are the first to go when free buffers are few.

mod file;
mod frame;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use self::file::FilePool;
use self::frame::Hold;
use crate::database::PoolTally;
use crate::error::StorageError;
use crate::ids::{FileId, Lsn, PageId};
use crate::log::Log;
use crate::page::Page;
use crate::port::EXTENT_PAGES;

/// Least buffers of a file: what operations that run at once hold, read-ahead, and some to choose from.
pub const BUFFERS_MIN: usize = 64;

/// Why a page is wanted.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    /// It may well be wanted again.
    Point,
    /// A scan comes by.
    Scan,
}

/// The pool.
pub(crate) struct BufferPool {
    pub(crate) files: Vec<Arc<FilePool>>,
    log: Arc<Log>,
}

/// A page that stays in its buffer for as long as this lives.
pub(crate) struct Pin<'a> {
    file: &'a FilePool,
    buffer: u32,
    name: PageId,
    how: Use,
}

/// A page that nobody changes for as long as this lives; never kept across an await.
pub(crate) struct PageRead<'a> {
    page: Page<'a>,
    _latch: RwLockReadGuard<'a, ()>,
}

/// A page that nobody else looks at for as long as this lives; never kept across an await.
pub(crate) struct PageWrite<'a> {
    pub(crate) page: Page<'a>,
    pin: &'a Pin<'a>,
    _latch: RwLockWriteGuard<'a, ()>,
}

impl<'a> std::ops::Deref for PageRead<'a> {
    type Target = Page<'a>;

    fn deref(&self) -> &Page<'a> {
        &self.page
    }
}

impl Pin<'_> {
    pub(crate) fn name(&self) -> PageId {
        self.name
    }

    /// The page, to be looked at.
    #[inline]
    pub(crate) fn read(&self) -> PageRead<'_> {
        let latch = self.file.buffer(self.buffer).shared();
        PageRead { page: self.file.view(self.buffer), _latch: latch }
    }

    /// The page, to be changed; `None` while it is being written to the volume.
    pub(crate) fn try_write(&self) -> Option<PageWrite<'_>> {
        let buffer = self.file.buffer(self.buffer);
        let latch = buffer.exclusive();
        if buffer.is_writing() {
            return None;
        }
        Some(PageWrite { page: self.file.view(self.buffer), pin: self, _latch: latch })
    }

    /// Waits until it is not being written to the volume.
    pub(crate) async fn writable(&self) {
        let buffer = self.file.buffer(self.buffer);
        buffer.changed.until(|| (!buffer.is_writing()).then_some(())).await;
    }
}

impl PageWrite<'_> {
    pub(crate) fn name(&self) -> PageId {
        self.pin.name
    }

    /// Records from `lsn` on will change the page; says whether it was clean until now.
    pub(crate) fn soil(&self, lsn: Lsn) -> bool {
        self.pin.file.buffer(self.pin.buffer).soil(lsn)
    }

    /// Nothing was changed after all, and it had been clean.
    pub(crate) fn unsoil(&self) {
        self.pin.file.buffer(self.pin.buffer).clean();
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let buffer = self.file.buffer(self.buffer);
        let leaves = self.how == Use::Scan && self.file.is_tight() && buffer.uses() == 0;
        self.file.unpin(self.buffer);
        if leaves {
            self.file.evict(self.buffer);
        }
    }
}

impl BufferPool {
    pub(crate) fn new(files: Vec<Arc<FilePool>>, log: Arc<Log>) -> Self {
        Self { files, log }
    }

    pub(crate) fn file(&self, file: FileId) -> Result<&FilePool, StorageError> {
        self.files.get(usize::from(file.0)).map(|file| &**file).ok_or(StorageError::NoFile(file))
    }

    /// The page, read if it must be.
    pub(crate) async fn fetch(&self, name: PageId, how: Use) -> Result<Pin<'_>, StorageError> {
        let file = self.file(name.file)?;
        loop {
            if let Some(buffer) = file.pin(name.number) {
                file.tally.hits.fetch_add(1, Ordering::Relaxed);
                return self.wait(file, buffer, name, how).await;
            }
            let buffer = self.free(file).await?;
            if file.install(name.number, buffer, Hold::Pending, 1) {
                file.read(name.number, vec![buffer]);
                file.sweep_some();
                return self.wait(file, buffer, name, how).await;
            }
        }
    }

    /// The page, if it is in the pool and ready; it will be looked at soon.
    #[inline]
    pub(crate) fn find(&self, name: PageId, how: Use) -> Result<Option<Pin<'_>>, StorageError> {
        let file = self.file(name.file)?;
        let Some(buffer) = file.pin(name.number) else { return Ok(None) };
        let pin = Pin { file, buffer, name, how };
        if file.buffer(buffer).hold() != Hold::Ready {
            return Ok(None);
        }
        file.view(buffer).prefetch();
        Ok(Some(pin))
    }

    async fn wait<'a>(&self, file: &'a FilePool, buffer: u32, name: PageId, how: Use) -> Result<Pin<'a>, StorageError> {
        let pin = Pin { file, buffer, name, how };
        let of = file.buffer(buffer);
        if of.hold() != Hold::Ready {
            of.changed.until(|| (of.hold() != Hold::Pending).then_some(())).await;
        }
        if how == Use::Point {
            of.refer();
        }
        match of.hold() {
            Hold::Ready => Ok(pin),
            _ => Err(of.failure().unwrap_or(StorageError::Inconsistent(name))),
        }
    }

    /// The page without what is on the volume: empty, to be made anew.
    pub(crate) async fn fetch_new(&self, name: PageId) -> Result<Pin<'_>, StorageError> {
        let file = self.file(name.file)?;
        loop {
            if file.has(name.number) {
                // It may have been read ahead; whether that went well does not matter.
                match self.fetch(name, Use::Point).await {
                    Err(StorageError::Corrupt { .. } | StorageError::Unreadable { .. }) => continue,
                    other => return other,
                }
            }
            let buffer = self.free(file).await?;
            file.view(buffer).clear();
            if file.install(name.number, buffer, Hold::Ready, 1) {
                file.buffer(buffer).refer();
                return Ok(Pin { file, buffer, name, how: Use::Point });
            }
        }
    }

    /// A free buffer, as soon as there is one.
    async fn free(&self, file: &FilePool) -> Result<u32, StorageError> {
        loop {
            let seen = file.freed.turn();
            self.check(file)?;
            if let Some(buffer) = file.try_free() {
                return Ok(buffer);
            }
            // Four sweeps bring every count to zero.
            let all = u32::MAX;
            if (0..5).map(|_| file.sweep(all)).any(|freed| freed > 0) {
                continue;
            }
            let someone_works = file.buffers.iter().any(|buffer| {
                buffer.is_writing() || buffer.hold() == Hold::Pending || buffer.pins.load(Ordering::Acquire) == 0
            });
            if !someone_works {
                return Err(StorageError::NoBuffers);
            }
            file.scarce.wake_all();
            file.freed.after(seen).await;
        }
    }

    fn check(&self, file: &FilePool) -> Result<(), StorageError> {
        match file.failure().or_else(|| self.log.failure()) {
            Some(error) => Err(StorageError::Down(error)),
            None => Ok(()),
        }
    }

    /// Starts reading those of `pages`, in ascending order, that are not in the pool, as far as buffers are free; contiguous ones with
    /// one command. How many commands that took.
    pub(crate) fn read_ahead(&self, file: FileId, pages: impl Iterator<Item = u32>) -> Result<usize, StorageError> {
        let file = self.file(file)?;
        let mut commands = 0;
        let mut run: Vec<u32> = Vec::new();
        let mut first = 0;
        let most = usize::try_from(EXTENT_PAGES).expect("eight");
        for page in pages {
            let next = first + u32::try_from(run.len()).expect("eight at most");
            if !run.is_empty() && (page != next || run.len() == most) {
                file.read(first, std::mem::take(&mut run));
                commands += 1;
            }
            if file.has(page) {
                continue;
            }
            if file.spares_none() {
                break;
            }
            let Some(buffer) = file.try_free() else { break };
            if file.install(page, buffer, Hold::Pending, 0) {
                if run.is_empty() {
                    first = page;
                }
                run.push(buffer);
            }
        }
        if !run.is_empty() {
            file.read(first, run);
            commands += 1;
        }
        Ok(commands)
    }

    /// Pages that media may not have.
    pub(crate) fn dirty(&self) -> Vec<(PageId, Lsn)> {
        let mut dirty = Vec::new();
        for file in &self.files {
            for buffer in &file.buffers {
                if let Some(lsn) = buffer.recovery() {
                    dirty.push((file.name(buffer.page.load(Ordering::Relaxed)), lsn));
                }
            }
        }
        dirty
    }

    pub(crate) fn tally(&self) -> PoolTally {
        let sum =
            |of: fn(&FilePool) -> &AtomicU64| self.files.iter().map(|file| of(file).load(Ordering::Relaxed)).sum();
        PoolTally {
            hits: sum(|file| &file.tally.hits),
            misses: sum(|file| &file.tally.misses),
            evicted: sum(|file| &file.tally.evicted),
            reads: sum(|file| &file.port.commands.reads),
            writes: sum(|file| &file.port.commands.writes),
        }
    }
}
