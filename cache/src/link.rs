//! The home's side of the mirror: puts bytes into the partner's memory, commits them, releases them.
//!
//! A link belongs to one connection between two incarnations. When that ends, the link is closed for good and
//! everything that waits on it fails; what was committed is then for membership to decide.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_matrix::Provider;
use dyad_matrix::endpoint::{Endpoint, Posted};
use dyad_matrix::frames::{Pinned, joined};
use dyad_matrix::provider::{RegionHandle, RemoteAddress, ViId};
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{Pending, Replies, Signal, Ticket};

use crate::address::{Epoch, TRACK_BLOCKS, TrackRange, Version};
use crate::mirror;
use crate::record::{
    Answer, AnswerStatus, Applied, CommandId, Commit, CommitBlock, Encoded, MirrorFrame, Outcomes, Release, Whole,
};

/// The link is closed: the partner did not (and will not) say that it has the data.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the link to the partner is closed")]
pub struct LinkClosed;

/// A write whose bytes have arrived and are committed nowhere yet.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// Where to.
    pub range: TrackRange,
    /// The command it belongs to.
    pub command: CommandId,
    /// Every command of the origin before this one has been answered.
    pub oldest: u64,
    /// Its bytes.
    pub frames: &'a Pinned,
    /// Their CRC-32C, block by block.
    pub crcs: &'a [u32],
}

/// Mirror frames of one track piece, in block order.
pub type MirrorFrames = heapless::Vec<MirrorFrame, TRACK_BLOCKS>;

struct Inner<P> {
    endpoint: Endpoint<P>,
    vi: ViId,
    region: RegionHandle,
    free: RefCell<Vec<MirrorFrame>>,
    freed: Signal,
    answers: Replies<Option<Answer>>,
    closed: Cell<bool>,
}

/// The way to the partner's mirror. Clones are the same link.
pub struct MirrorLink<P> {
    inner: Rc<Inner<P>>,
}

impl<P> Clone for MirrorLink<P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<P: Provider> MirrorLink<P> {
    /// A link over the connected `vi` to the partner's empty mirror `region` of `frames` frames; at most `requests` outstanding.
    pub fn new(endpoint: Endpoint<P>, vi: ViId, region: RegionHandle, frames: u32, requests: usize) -> Self {
        Self {
            inner: Rc::new(Inner {
                endpoint,
                vi,
                region,
                free: RefCell::new((0..frames).rev().map(MirrorFrame).collect()),
                freed: Signal::new(),
                answers: Replies::new(requests),
                closed: Cell::new(false),
            }),
        }
    }

    /// The VI below.
    #[must_use]
    pub fn vi(&self) -> ViId {
        self.inner.vi
    }

    /// Ends the link: whoever waits on it fails now, whoever comes later fails at once.
    pub fn close(&self) {
        self.inner.closed.set(true);
        let _ = self.inner.answers.fail_all(|| None);
        self.inner.freed.notify_all();
    }

    /// An answer of the partner arrived.
    pub fn answered(&self, answer: Answer, tag: u64) {
        // An answer to a question that nobody asked, or asked no more, says nothing.
        let _ = self.inner.answers.complete(Ticket::from_u64(tag), Some(answer));
    }

    /// Mirrors one track piece into the frames `mirror`: returns when the partner has answered that it has the bytes (PROTOCOLS 3.2).
    ///
    /// # Errors
    /// [`LinkClosed`]: the partner may have them or not. The link is closed then, and its frames with it.
    pub async fn commit(&self, write: &Write<'_>, version: Version, mirror: &[MirrorFrame]) -> Result<(), LinkClosed> {
        let blocks =
            mirror.iter().zip(write.crcs).map(|(frame, crc)| CommitBlock { frame: *frame, crc: *crc }).collect();
        let commit = Commit { range: write.range, version, command: write.command, oldest: write.oldest, blocks };

        let mut posted: heapless::Vec<Posted, TRACK_BLOCKS> = heapless::Vec::new();
        let sent = self.put_and_ask(write.frames, mirror, &mut posted, &commit).await;
        // The frames are in use until every transfer is done, whatever became of the commit.
        for transfer in posted {
            let _ = transfer.await;
        }
        if sent.is_err() {
            self.close();
        }
        sent
    }

    async fn put_and_ask(
        &self,
        frames: &Pinned,
        mirror: &[MirrorFrame],
        posted: &mut heapless::Vec<Posted, TRACK_BLOCKS>,
        commit: &Commit,
    ) -> Result<(), LinkClosed> {
        let mut done = 0;
        for run in mirror.chunk_by(|a, b| a.0 + 1 == b.0) {
            let run_frames = &frames.frames()[done..done + run.len()];
            let segments = joined(run_frames.iter().map(|frame| frames.pool().segment(*frame)));
            done += run.len();
            let to = RemoteAddress { region: self.inner.region, offset: mirror::offset(run[0]) };
            let transfer =
                self.inner.endpoint.rdma_write(self.inner.vi, &segments, to).await.map_err(|_| LinkClosed)?;
            assert!(posted.push(transfer).is_ok(), "a track has at most {TRACK_BLOCKS} runs");
        }
        self.ask(|tag| commit.encode(tag), commit.version.epoch).await
    }

    /// Tells the partner that these blocks are durable; returns when it has forgotten them.
    ///
    /// # Errors
    /// [`LinkClosed`]: it may have forgotten them or not.
    pub async fn release(&self, release: &Release) -> Result<(), LinkClosed> {
        self.ask(|tag| release.encode(tag), release.epoch).await
    }

    /// Tells a partner that just joined which commands were applied.
    ///
    /// # Errors
    /// [`LinkClosed`]: it may know or not.
    pub async fn teach(&self, outcomes: &Outcomes) -> Result<(), LinkClosed> {
        self.ask(|tag| outcomes.encode(tag), outcomes.epoch).await
    }

    /// Tells the partner that a command was applied without being mirrored; returns when it remembers.
    ///
    /// # Errors
    /// [`LinkClosed`]: it may remember or not.
    pub async fn applied(&self, epoch: Epoch, command: CommandId, oldest: u64) -> Result<(), LinkClosed> {
        let applied = Applied { epoch, command, oldest };
        self.ask(|tag| applied.encode(tag), epoch).await
    }

    /// Tells the partner that its mirror and media have everything from here on; returns when it remembers.
    ///
    /// # Errors
    /// [`LinkClosed`]: it may know or not.
    pub async fn whole(&self, epoch: Epoch) -> Result<(), LinkClosed> {
        self.ask(|tag| Whole { epoch }.encode(tag), epoch).await
    }

    /// The home does not use this mirror frame any more, and the partner's index does not name it.
    pub fn give_back(&self, frame: MirrorFrame) {
        self.inner.free.borrow_mut().push(frame);
        self.inner.freed.notify_all();
    }

    async fn ask(&self, encode: impl FnOnce(u64) -> Encoded, epoch: Epoch) -> Result<(), LinkClosed> {
        let pending: Pending<Option<Answer>> = loop {
            let seen = self.inner.freed.generation();
            if self.inner.closed.get() {
                return Err(LinkClosed);
            }
            if let Some(pending) = self.inner.answers.reserve() {
                break pending;
            }
            self.inner.freed.changed_since(seen).await;
        };
        let message = encode(pending.ticket().to_u64());
        let sent = self.inner.endpoint.send(self.inner.vi, &message).await;
        if is_active(Mutation::AcknowledgeBeforeAnswer) && sent.is_ok() {
            return Ok(());
        }
        let answer = if sent.is_ok() { pending.await } else { None };
        self.inner.freed.notify_all();
        match answer {
            Some(Answer { status: AnswerStatus::Done, epoch: theirs }) if theirs == epoch => Ok(()),
            // Any other answer means that the two ends no longer agree: the link is of no use (membership sees it closed).
            _ => {
                self.close();
                Err(LinkClosed)
            }
        }
    }

    /// Mirror frames that the home does not use.
    #[must_use]
    pub fn free_frames(&self) -> usize {
        self.inner.free.borrow().len()
    }

    /// Whether the link was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.closed.get()
    }

    /// Waits for frames of the partner's mirror that the home may write to. They are the caller's until it gives them back.
    ///
    /// # Errors
    /// [`LinkClosed`].
    pub async fn take_frames(&self, count: usize) -> Result<MirrorFrames, LinkClosed> {
        loop {
            let seen = self.inner.freed.generation();
            if self.inner.closed.get() {
                return Err(LinkClosed);
            }
            {
                let mut free = self.inner.free.borrow_mut();
                if free.len() >= count {
                    let at = free.len() - count;
                    return Ok(free.drain(at..).rev().collect());
                }
            }
            self.inner.freed.changed_since(seen).await;
        }
    }
}
