//! Writing dirty pages: the lazy writer, and what checkpoints ask for.

use std::sync::atomic::Ordering;

use dyad_reactor::mutation::{Mutation, is_active};

use super::BufferPool;
use super::file::FilePool;
use super::frame::Hold;
use crate::error::StorageError;
use crate::ids::{Lsn, PageId};
use crate::log::Durability;
use crate::port::{EXTENT_PAGES, Request};
use crate::sync::Reply;

/// Commands that the lazy writer and checkpoints have under way at once in one file.
const WRITES: usize = 8;

type Written = Reply<Result<(), dyad_host::VolumeError>>;

/// Buffers of consecutive pages that do not change until they are written, or this is dropped.
struct Claimed<'a> {
    file: &'a FilePool,
    buffers: Vec<u32>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        for buffer in &self.buffers {
            self.file.disclaim(*buffer);
        }
    }
}

impl FilePool {
    /// Pins the buffer of a dirty page, and keeps everybody from changing it.
    fn claim(&self, page: u32) -> Option<u32> {
        let buffer = self.pin(page)?;
        let of = self.buffer(buffer);
        let latch = of.exclusive();
        let now = of.hold() == Hold::Ready && of.is_dirty() && !of.is_writing();
        if now {
            of.set_writing(true);
        }
        drop(latch);
        if !now {
            self.unpin(buffer);
        }
        now.then_some(buffer)
    }

    /// It is not written after all.
    fn disclaim(&self, buffer: u32) {
        let of = self.buffer(buffer);
        of.set_writing(false);
        of.changed.wake_all();
        self.unpin(buffer);
    }
}

impl BufferPool {
    /// Starts writing the dirty page and those next to it in its extent, as one command; `None` if there is nothing to write.
    async fn write_run(&self, file: &FilePool, page: u32) -> Result<Option<Written>, StorageError> {
        let Some(own) = file.claim(page) else { return Ok(None) };
        let mut run = Claimed { file, buffers: vec![own] };
        let start = page - page % EXTENT_PAGES;
        let mut first = page;
        while first > start
            && let Some(buffer) = file.claim(first - 1)
        {
            run.buffers.insert(0, buffer);
            first -= 1;
        }
        for number in page + 1..start + EXTENT_PAGES {
            let Some(buffer) = file.claim(number) else { break };
            run.buffers.push(buffer);
        }
        // Their last changes are in the log by now; they go no further before media have it.
        if !is_active(Mutation::PageBeforeLog) {
            self.log.durable(self.log.end(), Durability::Media).await?;
        }
        run.buffers.iter().for_each(|buffer| file.view(*buffer).seal());
        let reply = Reply::new();
        // The claim goes when the write is over.
        let buffers = std::mem::take(&mut run.buffers);
        file.port.ask(Request::WritePages { first, buffers, reply: reply.clone() });
        Ok(Some(reply))
    }

    async fn drain(&self, under_way: &mut Vec<Written>, to: usize) -> Result<(), StorageError> {
        while under_way.len() > to {
            under_way.remove(0).take().await.map_err(StorageError::Down)?;
        }
        Ok(())
    }

    /// Writes those of the pages that are dirty because of a record before `before`, and waits for it.
    pub(crate) async fn write(&self, pages: Vec<(PageId, Lsn)>, before: Lsn) -> Result<(), StorageError> {
        let mut under_way = Vec::new();
        for (page, _) in pages {
            let file = self.file(page.file)?;
            let Some(buffer) = file.pin(page.number) else { continue };
            loop {
                let of = file.buffer(buffer);
                if of.recovery().is_none_or(|lsn| lsn >= before) {
                    break;
                }
                if of.is_writing() {
                    of.changed.until(|| (!of.is_writing()).then_some(())).await;
                } else {
                    match self.write_run(file, page.number).await {
                        Ok(Some(written)) => under_way.push(written),
                        Ok(None) => {}
                        Err(error) => {
                            file.unpin(buffer);
                            return Err(error);
                        }
                    }
                    break;
                }
            }
            file.unpin(buffer);
            self.drain(&mut under_way, WRITES).await?;
        }
        self.drain(&mut under_way, 0).await
    }

    /// The lazy writer of one file: when free buffers are few, frees what is clean and writes what is dirty and not used, for ever.
    pub(crate) async fn lazy_writer(&self, file: usize) {
        let file = &*self.files[file];
        loop {
            file.scarce.until(|| (file.is_scarce() && self.check(file).is_ok()).then_some(())).await;
            let seen = file.freed.turn();
            let freed = file.sweep(u32::MAX);
            let mut under_way = Vec::new();
            for of in &file.buffers {
                let idle = of.uses() == 0 && of.is_dirty() && !of.is_writing() && of.pins.load(Ordering::Acquire) == 0;
                if !idle || under_way.len() >= 4 * WRITES {
                    continue;
                }
                match self.write_run(file, of.page.load(Ordering::Relaxed)).await {
                    Ok(Some(written)) => under_way.push(written),
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            let wrote = !under_way.is_empty();
            // A failure stops whoever needs a buffer; it is remembered.
            let _ = self.drain(&mut under_way, 0).await;
            if freed == 0 && !wrote && file.is_scarce() {
                let ages = file.buffers.iter().any(|of| of.uses() > 0 && of.pins.load(Ordering::Acquire) == 0);
                if !ages {
                    // Everything is pinned, or being read: until something comes of that there is nothing to do.
                    file.freed.after(seen).await;
                }
            }
        }
    }
}
