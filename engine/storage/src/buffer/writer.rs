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

impl FilePool {
    /// Pins the buffer of a page that is dirty and may be written when the log is on media up to what is returned.
    fn pin_dirty(&self, page: u32) -> Option<(u32, Lsn)> {
        let buffer = self.pin(page)?;
        let of = self.buffer(buffer);
        if of.hold() == Hold::Ready && of.is_dirty() && !of.is_writing() {
            let latch = of.shared();
            let lsn = self.view(buffer).lsn();
            drop(latch);
            return Some((buffer, lsn));
        }
        self.unpin(buffer);
        None
    }

    /// From now on the page does not change until it is written; false if it is not to be written now.
    fn begin_write(&self, buffer: u32, media: Lsn) -> bool {
        let of = self.buffer(buffer);
        let latch = of.exclusive();
        let page = self.view(buffer);
        let ahead = page.lsn() < media || is_active(Mutation::PageBeforeLog);
        let now = of.hold() == Hold::Ready && of.is_dirty() && !of.is_writing() && ahead;
        if now {
            page.seal();
            of.set_writing(true);
        }
        drop(latch);
        now
    }
}

impl BufferPool {
    /// Starts writing the dirty page and those next to it in its extent, as one command; `None` if there is nothing to write.
    async fn write_run(&self, file: &FilePool, page: u32) -> Result<Option<Written>, StorageError> {
        let start = page - page % EXTENT_PAGES;
        let mut run: Vec<(u32, u32, Lsn)> = Vec::new();
        for number in start..start + EXTENT_PAGES {
            match file.pin_dirty(number) {
                Some((buffer, lsn)) => run.push((number, buffer, lsn)),
                None if number > page => break,
                None => run.drain(..).for_each(|(_, buffer, _)| file.unpin(buffer)),
            }
        }
        let Some(last) = run.iter().map(|(_, _, lsn)| *lsn).max() else { return Ok(None) };
        // The record of the last change begins there; it ends at most where the log ends now.
        let end = self.log.end();
        debug_assert!(last < end, "pages name records that were appended");
        if !is_active(Mutation::PageBeforeLog)
            && let Err(error) = self.log.durable(end, Durability::Media).await
        {
            run.into_iter().for_each(|(_, buffer, _)| file.unpin(buffer));
            return Err(error);
        }
        // Whatever was changed meanwhile may be too new; what is left of the run must be contiguous.
        let media = self.log.media();
        let mut writing: Vec<u32> = Vec::new();
        let mut first = 0;
        let mut over = false;
        for (number, buffer, _) in run {
            let next = !over && file.begin_write(buffer, media);
            if next {
                if writing.is_empty() {
                    first = number;
                }
                writing.push(buffer);
            } else {
                over = !writing.is_empty();
                file.unpin(buffer);
            }
        }
        if writing.is_empty() {
            return Ok(None);
        }
        let reply = Reply::new();
        // The pins go when the write is over.
        file.port.ask(Request::WritePages { first, buffers: writing, reply: reply.clone() });
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
