//! The way to a volume. The engine puts requests into a [`Port`] from any thread; the lanes of a [`Server`] take them, on the thread
//! that the volume belongs to.
//!
//! As many lanes as a server has, so many commands are outstanding at its volume: the limit per volume. A request is carried out
//! whether or not anybody still waits for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dyad_host::{Volume, VolumeError};
use dyad_matrix::frames::{FRAME_BYTES, Pinned, RUN_FRAMES_MAX};
use dyad_nvme::types::Lba;

use crate::allocation::EXTENTS_MIN;
use crate::buffer::{BUFFERS_MIN, FilePool};
use crate::error::OpenError;
use crate::ids::FileId;
use crate::log::LOG_BLOCKS_MIN;
use crate::page::PAGE_BYTES;
use crate::sync::{Event, Reply, lock};

/// Blocks of a page.
pub(crate) const PAGE_BLOCKS: u64 = 2;
/// Pages of an extent, which is also the most that one command moves.
pub(crate) const EXTENT_PAGES: u32 = 8;
/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = FRAME_BYTES;

/// Pages' worth of frames that a volume keeps for everything else: writes of the log, and what is lent to paths that were lost.
const SPARE_PAGES: usize = 16;

const _: () = assert!(PAGE_BYTES == 2 * FRAME_BYTES && RUN_FRAMES_MAX == 16);

/// What became of a request.
pub(crate) type Done<T> = Result<T, VolumeError>;

/// Where the pages of a read go, and who is told.
pub(crate) trait Sink: Send + Sync {
    /// Buffer `buffer` has its bytes at these offsets of the memory now.
    fn moved(&self, buffer: u32, halves: [u64; 2]);
    /// The read of these buffers is over.
    fn read(&self, buffers: &[u32], done: Done<()>);
    /// The write of these buffers is over.
    fn written(&self, buffers: &[u32], done: Done<()>);
}

/// What is asked of a volume.
pub(crate) enum Request {
    /// Fills buffers from consecutive pages.
    ReadPages { first: u32, buffers: Vec<u32> },
    /// Writes buffers to consecutive pages.
    WritePages { first: u32, buffers: Vec<u32>, reply: Reply<Done<()>> },
    /// Reads at most [`RUN_FRAMES_MAX`] blocks.
    ReadBlocks { at: u64, count: usize, reply: Reply<Done<Vec<u8>>> },
    /// Writes whole blocks, at most [`RUN_FRAMES_MAX`]; `durable`: they are on media when it is over.
    WriteBlocks { at: u64, bytes: Vec<u8>, durable: bool, reply: Reply<Done<()>> },
    /// Makes what was written durable.
    Flush { reply: Reply<Done<()>> },
}

/// How often what was asked of a volume.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
}

/// The engine's end.
pub(crate) struct Port {
    queue: Mutex<VecDeque<Request>>,
    arrived: Event,
    pub(crate) blocks: u64,
    pub(crate) commands: Commands,
}

impl Port {
    pub(crate) fn new(blocks: u64) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::default(), arrived: Event::default(), blocks, commands: Commands::default() })
    }

    pub(crate) fn ask(&self, request: Request) {
        lock(&self.queue).push_back(request);
        self.arrived.wake_one();
    }

    async fn next(&self) -> Request {
        self.arrived.until(|| lock(&self.queue).pop_front()).await
    }

    pub(crate) async fn read_blocks(&self, at: u64, count: usize) -> Done<Vec<u8>> {
        let reply = Reply::new();
        self.ask(Request::ReadBlocks { at, count, reply: reply.clone() });
        reply.take().await
    }

    /// Starts a write; the answer comes through what is returned.
    pub(crate) fn start_write(&self, at: u64, bytes: Vec<u8>, durable: bool) -> Reply<Done<()>> {
        let reply = Reply::new();
        self.ask(Request::WriteBlocks { at, bytes, durable, reply: reply.clone() });
        reply
    }

    pub(crate) async fn write_blocks(&self, at: u64, bytes: Vec<u8>) -> Done<()> {
        self.start_write(at, bytes, true).take().await
    }

    pub(crate) async fn flush(&self) -> Done<()> {
        let reply = Reply::new();
        self.ask(Request::Flush { reply: reply.clone() });
        reply.take().await
    }
}

/// The volume's end: one for each volume that the engine uses. [`Self::lane`] must be run, best several times at once.
pub struct Server<V> {
    volume: V,
    port: Arc<Port>,
    /// The frames of each buffer.
    frames: RefCell<Vec<Pinned>>,
    sink: Option<Arc<dyn Sink>>,
}

/// A data file, for [`Database`](crate::Database).
pub struct DataFile(pub(crate) Arc<FilePool>);

/// The log's volume, for [`Database`](crate::Database).
pub struct LogFile(pub(crate) Arc<Port>);

impl<V: Volume> Server<V> {
    /// A server for file `number` of a database, with `buffers` pages of the volume's frames for its buffer pool.
    ///
    /// # Errors
    /// [`OpenError::TooLittleMemory`], [`OpenError::TooSmall`].
    pub fn of_file(volume: V, number: u16, buffers: usize) -> Result<(Rc<Self>, DataFile), OpenError> {
        let (have, blocks) = (volume.pool().free_count() / 2, volume.blocks().0);
        let least = u64::from(EXTENTS_MIN * EXTENT_PAGES) * PAGE_BLOCKS;
        if blocks < least {
            return Err(OpenError::TooSmall { blocks, least });
        }
        if buffers < BUFFERS_MIN || have < buffers + SPARE_PAGES {
            return Err(OpenError::TooLittleMemory {
                have: have.saturating_sub(SPARE_PAGES).min(buffers),
                least: BUFFERS_MIN,
            });
        }
        let taken = (0..buffers).map(|_| volume.pool().try_take(2).expect("so many are free"));
        let frames: Vec<Pinned> = taken.collect();
        let port = Port::new(blocks);
        let halves = frames.iter().map(halves).collect();
        let memory = volume.pool().memory().clone();
        let pool = FilePool::new(FileId(number), Arc::clone(&port), memory, halves);
        let sink: Arc<dyn Sink> = Arc::clone(&pool) as Arc<dyn Sink>;
        Ok((Rc::new(Self { volume, port, frames: RefCell::new(frames), sink: Some(sink) }), DataFile(pool)))
    }

    /// A server for the log of a database.
    ///
    /// # Errors
    /// [`OpenError::TooLittleMemory`], [`OpenError::TooSmall`].
    pub fn of_log(volume: V) -> Result<(Rc<Self>, LogFile), OpenError> {
        let (have, blocks) = (volume.pool().free_count() / 2, volume.blocks().0);
        if blocks < LOG_BLOCKS_MIN {
            return Err(OpenError::TooSmall { blocks, least: LOG_BLOCKS_MIN });
        }
        if have < SPARE_PAGES {
            return Err(OpenError::TooLittleMemory { have: 0, least: BUFFERS_MIN });
        }
        let port = Port::new(blocks);
        let server = Rc::new(Self { volume, port: Arc::clone(&port), frames: RefCell::default(), sink: None });
        Ok((server, LogFile(port)))
    }

    fn sink(&self) -> &dyn Sink {
        &**self.sink.as_ref().expect("nobody asks a log for pages")
    }

    /// Carries out one request after the other, for ever.
    pub async fn lane(self: Rc<Self>) {
        loop {
            match self.port.next().await {
                Request::ReadPages { first, buffers } => {
                    count(&self.port.commands.reads);
                    let done = self.read_pages(first, &buffers).await;
                    self.sink().read(&buffers, done);
                }
                Request::WritePages { first, buffers, reply } => {
                    count(&self.port.commands.writes);
                    let at = Lba(u64::from(first) * PAGE_BLOCKS);
                    let run = self.run_of(&buffers);
                    let done = self.volume.write_gather(at, &run).await;
                    self.sink().written(&buffers, done);
                    reply.put(done);
                }
                Request::ReadBlocks { at, count, reply } => reply.put(self.read_blocks(at, count).await),
                Request::WriteBlocks { at, bytes, durable, reply } => {
                    count(&self.port.commands.writes);
                    reply.put(self.write_blocks(at, &bytes, durable).await);
                }
                Request::Flush { reply } => {
                    count(&self.port.commands.flushes);
                    reply.put(self.volume.flush().await);
                }
            }
        }
    }

    /// The frames of these buffers, in order.
    fn run_of(&self, buffers: &[u32]) -> Pinned {
        let frames = self.frames.borrow();
        let of = |buffer: &u32| frames[place(*buffer)].frames().to_vec();
        self.volume.pool().pin(buffers.iter().flat_map(of))
    }

    async fn read_pages(&self, first: u32, buffers: &[u32]) -> Done<()> {
        let given = self.run_of(buffers);
        let run = self.volume.read_scatter(Lba(u64::from(first) * PAGE_BLOCKS), given).await?;
        // It may have come back in other frames: the given ones may be lent to a path that was lost.
        for (buffer, pair) in buffers.iter().zip(run.frames().chunks(2)) {
            let mut frames = self.frames.borrow_mut();
            let held = &mut frames[place(*buffer)];
            if held.frames() != pair {
                *held = self.volume.pool().pin(pair.iter().copied());
                self.sink().moved(*buffer, halves(held));
            }
        }
        Ok(())
    }

    async fn frames(&self, count: usize) -> Pinned {
        loop {
            let seen = self.volume.pool().freed().generation();
            if let Some(frames) = self.volume.pool().try_take(count) {
                return frames;
            }
            self.volume.pool().freed().changed_since(seen).await;
        }
    }

    async fn read_blocks(&self, at: u64, count: usize) -> Done<Vec<u8>> {
        let frames = self.frames(count).await;
        let frames = self.volume.read_scatter(Lba(at), frames).await?;
        let mut bytes = vec![0; count * BLOCK_BYTES];
        bytes.chunks_mut(BLOCK_BYTES).enumerate().for_each(|(index, block)| frames.read(index, block));
        Ok(bytes)
    }

    async fn write_blocks(&self, at: u64, bytes: &[u8], durable: bool) -> Done<()> {
        let frames = self.frames(bytes.len() / BLOCK_BYTES).await;
        bytes.chunks(BLOCK_BYTES).enumerate().for_each(|(index, block)| frames.write(index, block));
        if durable {
            self.volume.write_durable(Lba(at), &frames).await
        } else {
            self.volume.write_gather(Lba(at), &frames).await
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn place(buffer: u32) -> usize {
    usize::try_from(buffer).expect("32 bits fit")
}

fn halves(frames: &Pinned) -> [u64; 2] {
    let [low, high] = frames.frames() else { unreachable!("a buffer has two frames") };
    [low.offset(), high.offset()]
}
