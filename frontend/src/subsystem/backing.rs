//! What holds the blocks of namespaces, and where the bytes of one command are: the two sides between which data moves.

use std::future::Future;

use dyad_cache::CacheError;
use dyad_cache::home::Transfer;
use dyad_matrix::Segment;
use dyad_matrix::frames::{FramePool, Pinned, RUN_FRAMES_MAX};
use dyad_nvme::types::{BlockCount, Lba, NamespaceId};
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;

use super::command::Run;

/// The host's side of one command's data. Segments are of the memory of [`Backing::pool`].
pub trait HostData {
    /// Fills `segments` with the command's bytes from byte `at` on. Parts are fetched in order, each once.
    fn fetch(&self, at: u64, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;

    /// The frames of [`Backing::frames_for`], if the command's data is in them: then nothing is to be fetched. Once.
    fn received(&self) -> Option<Pinned> {
        None
    }

    /// Gives `segments` to the host, as the command's bytes from `at` on; complete when they are not needed any more. Parts are
    /// delivered in order, each once; the last one may complete the command with success.
    fn deliver(&self, at: u64, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;
}

/// The part of a command's data from a byte on, as a [`Transfer`].
pub struct Part<'a, H> {
    /// The command's data.
    pub host: &'a H,
    /// Where the part begins.
    pub at: u64,
}

impl<H: HostData> Transfer for Part<'_, H> {
    async fn fetch(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.host.fetch(self.at, segments).await
    }

    fn received(&self) -> Option<Pinned> {
        self.host.received()
    }

    async fn deliver(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.host.deliver(self.at, segments).await
    }
}

/// Holds the blocks of namespaces. Runs were checked against the namespace's size; blocks are atomic, runs are not.
///
/// What a command may cost is bounded: by `deadline`, and by the host's connection, which ends what waits for the host.
pub trait Backing: 'static {
    /// The frames through which all data moves.
    fn pool(&self) -> &FramePool;

    /// Frames for the data of a write, so that it can be received before the write begins; some if it is of one piece, and there
    /// are free ones now.
    fn frames_for(&self, run: Run) -> Option<Pinned>;

    /// Delivers a run.
    fn read(
        &self,
        namespace: NamespaceId,
        run: Run,
        deadline: Time,
        host: &impl HostData,
    ) -> impl Future<Output = Result<(), CacheError>>;

    /// Fetches a run and keeps it; on media if `fua`.
    fn write(
        &self,
        namespace: NamespaceId,
        run: Run,
        fua: bool,
        deadline: Time,
        host: &impl HostData,
    ) -> impl Future<Output = Result<(), CacheError>>;

    /// Makes a run read as zeros; may deallocate it if `deallocate`.
    fn zero(
        &self,
        namespace: NamespaceId,
        run: Run,
        deallocate: bool,
        fua: bool,
        deadline: Time,
    ) -> impl Future<Output = Result<(), CacheError>>;

    /// The host needs a run's contents no more: a hint.
    fn discard(&self, namespace: NamespaceId, run: Run, deadline: Time)
    -> impl Future<Output = Result<(), CacheError>>;

    /// Makes durable what was answered before; all namespaces if it is [`NamespaceId::ALL`].
    fn flush(&self, namespace: NamespaceId, deadline: Time) -> impl Future<Output = Result<(), CacheError>>;
}

/// Takes `count` frames, waiting for free ones.
///
/// # Errors
/// [`CacheError::Undecided`] if there are none by the deadline.
pub(super) async fn take_frames(
    handle: &Handle,
    pool: &FramePool,
    count: usize,
    deadline: Time,
) -> Result<Pinned, CacheError> {
    loop {
        let seen = pool.freed().generation();
        if let Some(frames) = pool.try_take(count) {
            return Ok(frames);
        }
        handle.timeout_at(deadline, pool.freed().changed_since(seen)).await.map_err(|_| CacheError::Undecided)?;
    }
}

/// Cuts a run into pieces that one run of frames holds, with the byte at which each begins.
pub(super) fn pieces(run: Run) -> impl Iterator<Item = (u64, Run)> {
    const PIECE: u64 = RUN_FRAMES_MAX as u64;
    (0..run.blocks.0).step_by(RUN_FRAMES_MAX).map(move |from| {
        let blocks = BlockCount((run.blocks.0 - from).min(PIECE));
        (BlockCount(from).bytes(), Run { lba: Lba(run.lba.0 + from), blocks })
    })
}
