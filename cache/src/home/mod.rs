//! The home's cache: reads, writes, destage.
//!
//! A write: bytes land in free frames; CRC; commit at the partner (or in the vault or on media, when solo); only then the slot names the
//! new frames and the host is answered (PROTOCOLS 3). Writes and misses of one track take turns; hits wait for nobody.
//!
//! - `read.rs`, `write.rs`: what a lane does for a host;
//! - `durable.rs`: FLUSH, FUA, and everything that goes to the vault;
//! - `destage.rs`: from slots to media, and when;
//! - `frames.rs`: frames taken, pinned, installed;
//! - `takeover.rs`: what a change of the pair does to the cache;
//! - `pace.rs`: how hosts are slowed when they write faster than media does.

mod destage;
mod durable;
mod frames;
mod pace;
mod read;
mod takeover;
mod write;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_backend::raid::GroupError;
use dyad_matrix::frames::{FramePool, Pinned};
use dyad_matrix::{Memory, Provider, Segment};
use dyad_nvme::types::Lba;
use dyad_reactor::Time;
use dyad_reactor::collections::FixedMap;
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{Inbox, KeyGuard, KeyedLocks, Signal};

use self::pace::Pace;
pub use self::takeover::Replay;
pub use self::write::WriteCommand;
use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, TrackRange, Version, VolumeId};
use crate::authority::{Authority, Regime};
use crate::counters::CacheCounters;
use crate::link::MirrorLink;
use crate::outcomes::OutcomeTable;
use crate::slots::{DirtyBlock, SlotCounts, SlotTable};
use crate::store::Store;
use crate::streams::Streams;
use crate::vault::{Vault, VaultError};

/// Sizes of a [`Cache`], fixed for its life.
#[derive(Debug, Copy, Clone)]
pub struct CacheConfig {
    /// Most dirty frames of the partner that this director may have to adopt (PROTOCOLS 3.6). A director is a home or a mirror, not both
    /// yet: until it takes over it has no dirty frames of its own, and clean ones are given up.
    pub takeover_frames: usize,
    /// Dirty blocks above which destage does not wait for idleness, and hosts are slowed.
    pub destage_above: usize,
    /// Dirty blocks at which hosts are slowed most: see [`Pace`].
    pub write_pending_limit: usize,
    /// Tracks of one stripe of the group below: what destage writes at once where it can.
    pub stripe_tracks: u64,
    /// Every acknowledged write survives total loss of power, because somebody will call [`Cache::power_warning`] in time (PROTOCOLS 6.1).
    pub nvcache: bool,
    /// Commands in progress at once.
    pub commands: usize,
    /// Hosts, and outstanding command parts of each, whose outcomes are remembered.
    pub hosts: usize,
    /// See `hosts`.
    pub outcomes_per_host: usize,
}

/// Why a cache cannot be made so.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// What a takeover and the commands under way need is reserved (PROTOCOLS 3.6).
    #[error("the cache has {frames} frames of 4 KiB and needs more than {reserved}, which are reserved")]
    Memory {
        /// Frames that there are.
        frames: usize,
        /// Frames that must not be all.
        reserved: usize,
    },
    /// Hosts are slowed from the threshold of destage on to the limit of write pending.
    #[error("the limit of write pending must be above the threshold of destage")]
    Pending,
    /// Longer than what a group writes at once.
    #[error("a stripe of {0} tracks: 1 to 16 are possible")]
    Stripe(u64),
}

impl CacheConfig {
    /// Whether a cache of so many frames can be made.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self, frames: usize) -> Result<(), ConfigError> {
        let reserved = self.takeover_frames + TRACK_BLOCKS * self.commands;
        if frames <= reserved {
            return Err(ConfigError::Memory { frames, reserved });
        }
        if self.destage_above >= self.write_pending_limit {
            return Err(ConfigError::Pending);
        }
        if !(1..=destage::STRIPE_TRACKS_MAX).contains(&self.stripe_tracks) {
            return Err(ConfigError::Stripe(self.stripe_tracks));
        }
        Ok(())
    }
}

/// Tracks that wait to be read ahead.
const READ_AHEAD_TRACKS: usize = 64;

/// Why a read or write was not done.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// This director is not the home (any more): ask the other one. A write may have been done or not.
    #[error("this director is not the home")]
    NotHome,
    /// It was not decided in time who is the home. A write may have been done or not.
    #[error("no decision in time")]
    Undecided,
    /// The data could not be moved from or to the host.
    #[error("the host is gone")]
    Host,
    /// The group could not read or write the blocks.
    #[error("the group failed: {0}")]
    Group(GroupError),
    /// The vault could not save or retire what had to be.
    #[error("the vault failed: {0}")]
    Vault(VaultError),
    /// The host has more commands outstanding than its credits.
    #[error("the host exceeds its credits")]
    Credits,
    /// The volume is unknown, deleted, or does not reach that far.
    #[error("the volume has no such blocks")]
    OutOfRange,
    /// An `unmirrored` volume that may have lost acknowledged writes: nothing of it is good until somebody resets it (PROTOCOLS 12.1).
    #[error("the volume may have lost data and has not been reset")]
    PersistentLoss,
}

/// How the writes of a volume are acknowledged (DESIGN 5). For life: another policy is another generation.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Policy {
    /// When they are in the memory of both directors.
    Mirrored,
    /// When they are in the memory of one: scratch data. Nothing goes to the partner.
    Unmirrored,
    /// When they are on media.
    Through,
}

/// Where a volume lies in the group.
#[derive(Debug, Copy, Clone)]
pub struct VolumePlace {
    /// The volume.
    pub id: VolumeId,
    /// Its first block in the group: a multiple of a track.
    pub base: Lba,
    /// Its size in blocks: a multiple of a track.
    pub blocks: u64,
    /// How its writes are acknowledged.
    pub policy: Policy,
}

/// Moves the bytes of a command between frames and host.
pub trait Transfer {
    /// Fills `segments` with the host's bytes (a write).
    fn fetch(&self, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;
    /// The frames that all of a write's bytes are in already, if somebody took them before: see [`Cache::try_take`]. Once.
    fn received(&self) -> Option<Pinned> {
        None
    }
    /// Gives `segments` to the host (a read).
    fn deliver(&self, segments: &[Segment]) -> impl Future<Output = Result<(), CacheError>>;
}

struct Inner<S: Store, P> {
    handle: Handle,
    config: CacheConfig,
    authority: Authority,
    pool: FramePool,
    slots: RefCell<SlotTable>,
    locks: KeyedLocks<TrackAddress>,
    store: S,
    volumes: FixedMap<VolumeId, VolumePlace>,
    link: RefCell<Option<MirrorLink<P>>>,
    vault: RefCell<Option<Vault<S::Device>>>,
    /// Adopted blocks are not all in the vault yet, or it still has what they replace.
    journalling: Cell<bool>,
    /// Power will fail: nothing is acknowledged any more that is not durable.
    on_battery: Cell<bool>,
    /// `unmirrored` volumes that answer with [`CacheError::PersistentLoss`].
    lost: RefCell<Vec<VolumeId>>,
    outcomes: OutcomeTable,
    sequence: Cell<u64>,
    /// Writes on their way to media before they are acknowledged.
    media_writes: Cell<usize>,
    /// Where the next batch of destage begins.
    destage_from: Cell<Option<TrackAddress>>,
    /// What destages by lanes work in; one for each command.
    #[expect(clippy::vec_box, reason = "a lane holds the box, and not what is in it")]
    pages: RefCell<Vec<Box<destage::Page>>>,
    streams: RefCell<Streams>,
    /// Tracks that are to be read ahead.
    read_ahead: Inbox<TrackAddress>,
    pace: Pace,
    /// Fires when something became dirty, clean, or stopped destaging.
    moved: Signal,
    /// Fires when something became dirty and too much is.
    pressure: Signal,
    counters: RefCell<CacheCounters>,
}

/// The cache of a director. Clones are the same cache.
pub struct Cache<S: Store, P> {
    inner: Rc<Inner<S, P>>,
}

impl<S: Store, P> Clone for Cache<S, P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<S: Store, P: Provider> Cache<S, P> {
    /// A cache in `memory` over `store`, which holds `volumes`; the memory is mapped at the store's devices.
    ///
    /// # Panics
    /// If [`CacheConfig::check`] refuses the configuration for that many frames.
    pub fn new(
        handle: Handle,
        config: CacheConfig,
        authority: Authority,
        memory: Memory,
        store: S,
        volumes: &[VolumePlace],
    ) -> Self {
        let pool = FramePool::new(memory);
        let frames = pool.free_count();
        config.check(frames).expect("a configuration that was checked");
        let lost = Vec::with_capacity(volumes.len());
        let volumes = volumes.iter().map(|place| (place.id, *place)).collect();
        Self {
            inner: Rc::new(Inner {
                handle,
                authority,
                pool,
                // A track without blocks has a slot while media is written.
                slots: RefCell::new(SlotTable::new(frames + config.commands)),
                locks: KeyedLocks::new(config.commands),
                store,
                volumes,
                link: RefCell::new(None),
                vault: RefCell::new(None),
                journalling: Cell::new(false),
                on_battery: Cell::new(false),
                lost: RefCell::new(lost),
                outcomes: OutcomeTable::new(config.hosts, config.outcomes_per_host),
                sequence: Cell::new(0),
                media_writes: Cell::new(0),
                destage_from: Cell::new(None),
                pages: RefCell::new((0..config.commands).map(|_| Box::default()).collect()),
                streams: RefCell::default(),
                read_ahead: Inbox::new(READ_AHEAD_TRACKS),
                pace: Pace::new(config.destage_above, config.write_pending_limit),
                moved: Signal::new(),
                pressure: Signal::new(),
                counters: RefCell::default(),
                config,
            }),
        }
    }

    /// The frames.
    #[must_use]
    pub fn pool(&self) -> &FramePool {
        &self.inner.pool
    }

    /// What was applied.
    #[must_use]
    pub fn outcomes(&self) -> &OutcomeTable {
        &self.inner.outcomes
    }

    /// What was done.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        self.inner.counters.borrow().clone()
    }

    /// The vault, if it is open here.
    #[must_use]
    pub fn vault(&self) -> Option<Vault<S::Device>> {
        self.inner.vault.borrow().clone()
    }

    /// Slots by their states.
    #[must_use]
    pub fn slot_counts(&self) -> SlotCounts {
        self.inner.slots.borrow().counts()
    }

    /// Blocks that media does not have yet: write pending.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.inner.slots.borrow().dirty_blocks()
    }

    /// The blocks that media does not have yet, in address order.
    #[must_use]
    pub fn dirty(&self) -> Vec<DirtyBlock> {
        self.inner.slots.borrow().dirty()
    }

    /// A write of this track to media is under way.
    #[must_use]
    pub fn is_destaging(&self, track: TrackAddress) -> bool {
        self.inner.slots.borrow().get(track).is_some_and(|slot| slot.destaging)
    }

    /// Blocks that are in the cache.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.inner.slots.borrow().cached_blocks()
    }

    /// Fires when blocks became dirty or clean.
    #[must_use]
    pub fn moved(&self) -> &Signal {
        &self.inner.moved
    }

    /// The caller's turn at the track.
    async fn turn(&self, track: TrackAddress, deadline: Time) -> Result<KeyGuard<TrackAddress>, CacheError> {
        self.inner.handle.timeout_at(deadline, self.inner.locks.lock(track)).await.map_err(|_| CacheError::Undecided)
    }

    async fn wait_until_readable(&self, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.authority.changes().generation();
            if inner.authority.may_read(inner.handle.now()) {
                return Ok(());
            }
            if inner.authority.regime() == Regime::Elsewhere {
                return Err(CacheError::NotHome);
            }
            self.wait_for_change(seen, deadline).await?;
        }
    }

    async fn wait_for_change(&self, seen: u64, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        inner
            .handle
            .timeout_at(deadline, inner.authority.changes().changed_since(seen))
            .await
            .map_err(|_| CacheError::Undecided)?;
        Ok(())
    }

    /// The volume of a range that lies in it and can be read and written.
    fn volume(&self, range: TrackRange) -> Result<VolumePlace, CacheError> {
        let place = *self.inner.volumes.get(&range.track.volume).ok_or(CacheError::OutOfRange)?;
        if range.lba().0 + range.count() as u64 > place.blocks {
            return Err(CacheError::OutOfRange);
        }
        if self.is_lost(place.id) {
            return Err(CacheError::PersistentLoss);
        }
        Ok(place)
    }

    fn policy(&self, volume: VolumeId) -> Option<Policy> {
        self.inner.volumes.get(&volume).map(|place| place.policy)
    }

    fn group_lba(&self, range: TrackRange) -> Result<Lba, CacheError> {
        let place = self.inner.volumes.get(&range.track.volume).ok_or(CacheError::OutOfRange)?;
        Ok(Lba(place.base.0 + range.lba().0))
    }

    fn group_failed(&self, error: GroupError) -> CacheError {
        if error == GroupError::Fenced {
            self.inner.authority.report_fenced();
            return CacheError::NotHome;
        }
        CacheError::Group(error)
    }

    fn next_version(&self, epoch: Epoch) -> Version {
        let sequence = self.inner.sequence.get() + 1;
        self.inner.sequence.set(sequence);
        Version { epoch, sequence }
    }

    fn count(&self, change: impl FnOnce(&mut CacheCounters)) {
        change(&mut self.inner.counters.borrow_mut());
    }
}
