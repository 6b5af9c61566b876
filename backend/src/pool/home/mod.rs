//! One group's pool, at the group's home: who may use which slice, and the order in which that becomes true.
//!
//! - **Reading**: [`Pool::pin`], [`Pool::locate`], the group's read, drop the pin.
//! - **Writing**: [`Pool::admit`] before the host is told anything; before the data goes to the group [`Pool::settle`]; then as for reading.
//! - **Changing** ([`Pool::ensure`], [`Pool::cut`], [`Pool::delete`], [`Pool::trim`], [`Pool::settle`]): one at a time; each is first durable in the log and
//!   then true in the table. All of them can be repeated, and have to be after a crash: [`Pool::reconcile`] does that from the registry's descriptions.
//! - **Slices that were let go** wait until nobody can be using them, are zeroed, and are free: [`Pool::serve`] does it ahead of need, [`Pool::settle`]
//!   when there is none ahead.
//!
//! When the log cannot be written, or a change is dropped before its end, the pool is closed: what is durable only opening it again can tell.

mod changes;
mod commit;
mod recycle;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::sync::{Permits, Signal};

use super::description::ShareSpec;
use super::entries::Entry;
use super::grace::{Grace, Pin};
use super::ground::{Facts, Ground};
use super::log::{Log, LogError, Totals};
use super::table::{Share, Standing, Table};
use super::{Generation, PoolError, SliceNumber};
use crate::format::VolumeUuid;
use crate::format::share::RECORDS;
use crate::raid::GroupError;

/// A slice has so many stripes, if the group has enough of them...
const SLICE_STRIPES: u64 = 16;
/// ...and more, if there would be more slices than this.
const SLICES_MAX: u64 = 1 << 18;

/// A share, as requests name it. It stops working when the volume's generation changes.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ShareId {
    at: usize,
    volume: VolumeUuid,
    generation: Generation,
}

impl ShareId {
    /// No volume's.
    pub(super) const NONE: Self = Self { at: usize::MAX, volume: VolumeUuid([0; 16]), generation: Generation(0) };
}

/// How full the pool is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Space {
    /// Blocks of a slice.
    pub slice_blocks: BlockCount,
    /// All slices.
    pub slices: u32,
    /// Those that volumes have.
    pub in_use: u32,
    /// Those that are kept for writes that were admitted, and for full allocation.
    pub reserved: u32,
}

/// What happened so far.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Changes that were made durable.
    pub appends: u64,
    /// Logs that were begun.
    pub logs: u64,
    /// Slices that were zeroed.
    pub zeroed: u64,
}

/// What [`Pool::reconcile`] did not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// Volumes that have a share here and that the registry does not know, or knows without one: somebody must look into it.
    pub strangers: Vec<VolumeUuid>,
}

/// Why there is no pool.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its share log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A pool is there already.
    #[error("the group has a pool already")]
    Exists,
    /// Slices of so many stripes would be none, or too many for the share region.
    #[error("slices of {0} stripes do not suit the group")]
    SliceSize(u32),
}

impl From<GroupError> for OpenError {
    fn from(error: GroupError) -> Self {
        Self::Log(LogError::Group(error))
    }
}

#[derive(Debug)]
struct Inner<G> {
    ground: G,
    facts: Facts,
    slice_stripes: u32,
    table: RefCell<Table>,
    log: Log<G>,
    /// For changes.
    turn: Permits,
    grace: Grace,
    /// For using slices again.
    recycler: Permits,
    /// Entries that somebody waits for.
    wanted: RefCell<VecDeque<(usize, u32)>>,
    work: Signal,
    failed: Cell<Option<GroupError>>,
    counters: Cell<Counters>,
}

/// A group's pool. Clones are the same pool.
#[derive(Debug)]
pub struct Pool<G>(Rc<Inner<G>>);

impl<G> Clone for Pool<G> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<G: Ground> Pool<G> {
    /// Makes the pool of a group that never had one and that is all zeros: slices of so many stripes, or of as many as suit the group.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn format(ground: G, slice_stripes: Option<u32>) -> Result<Self, OpenError> {
        let log = Log::new(ground.clone())?;
        match log.read().await {
            Err(LogError::Blank) => {}
            Err(error @ (LogError::TooSmall | LogError::Group(_))) => return Err(error.into()),
            Ok(_) | Err(LogError::Damaged | LogError::Version(_)) => return Err(OpenError::Exists),
        }
        let facts = ground.facts();
        // Half of a snapshot is for slices, the other half for shares.
        let most = SLICES_MAX.min(log.capacity() / 2);
        let slice_stripes = slice_stripes.unwrap_or_else(|| suitable(facts.stripes, most));
        let slices = facts.stripes.checked_div(slice_stripes.into()).filter(|slices| (1..=most).contains(slices));
        let slices = slices.and_then(|slices| u32::try_from(slices).ok());
        let slices = slices.ok_or(OpenError::SliceSize(slice_stripes))?;
        let table = Table::new(u64::from(slice_stripes) * facts.stripe_blocks, slices);
        Self::begin(ground, log, table, slice_stripes).await
    }

    /// Opens the pool of a group that this director is the home of. Changes that were cut short are there or not: [`Self::reconcile`] comes next. Then the
    /// writes are admitted that the home before had acknowledged and not settled, and only then those of hosts: so all of them find space.
    ///
    /// # Errors
    /// [`OpenError`]: nothing changed.
    pub async fn open(ground: G) -> Result<Self, OpenError> {
        let log = Log::new(ground.clone())?;
        let replay = log.read().await?;
        let damaged = OpenError::Log(LogError::Damaged);
        let facts = ground.facts();
        let slices = u32::try_from(facts.stripes / u64::from(replay.slice_stripes)).map_err(|_| damaged)?;
        if slices == 0 || u64::from(slices) > log.capacity() {
            return Err(damaged);
        }
        let mut table = Table::new(u64::from(replay.slice_stripes) * facts.stripe_blocks, slices);
        replay.records.iter().try_for_each(|record| table.apply(record)).map_err(|_| damaged)?;
        table.settle(replay.fresh).map_err(|_| damaged)?;
        Self::begin(ground, log, table, replay.slice_stripes).await
    }

    async fn begin(ground: G, log: Log<G>, table: Table, slice_stripes: u32) -> Result<Self, OpenError> {
        let facts = ground.facts();
        log.begin(Totals { slice_stripes, fresh: table.fresh() }, &table.snapshot()).await?;
        let counters = Cell::new(Counters { logs: 1, ..Counters::default() });
        Ok(Self(Rc::new(Inner {
            ground,
            facts,
            slice_stripes,
            table: RefCell::new(table),
            log,
            turn: Permits::new(1),
            grace: Grace::new(),
            recycler: Permits::new(1),
            wanted: RefCell::new(VecDeque::with_capacity(256)),
            work: Signal::new(),
            failed: Cell::new(None),
            counters,
        })))
    }

    /// The group that it stands on.
    #[must_use]
    pub fn ground(&self) -> &G {
        &self.0.ground
    }

    /// Which group.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.0.facts
    }

    /// Finds a volume's share, once for many requests.
    ///
    /// # Errors
    /// [`PoolError::UnknownVolume`], [`PoolError::OldGeneration`], [`PoolError::UnknownGeneration`].
    pub fn share(&self, volume: VolumeUuid, generation: Generation) -> Result<ShareId, PoolError> {
        let table = self.0.table.borrow();
        let at = table.find(volume).ok_or(PoolError::UnknownVolume)?;
        let id = ShareId { at, volume, generation };
        serving(&table, id).map(|_| id)
    }

    /// Keeps slices from being used for something else.
    pub fn pin(&self) -> Pin {
        self.0.grace.pin()
    }

    /// Where a block of the share is in the group; `None` if it is zeros. True until the pin is dropped that the caller holds.
    ///
    /// # Errors
    /// Those of [`Self::share`], [`PoolError::OutOfRange`].
    pub fn locate(&self, id: ShareId, position: u64, block: u64) -> Result<Option<Lba>, PoolError> {
        let table = self.0.table.borrow();
        let share = serving(&table, id)?;
        let (entry, place) = share.entry_of(position).ok_or(PoolError::OutOfRange(position))?;
        let extent = share.spec().extent.blocks();
        debug_assert!(block < extent);
        Ok(match share.entry(entry) {
            Entry::Mapped(slice) => Some(Lba(first_block(&table, slice).0 + place * extent + block)),
            Entry::Empty | Entry::Reserved => None,
        })
    }

    /// Sees to it that a write there will find space, whatever else happens. True if that took a slice from the free ones.
    ///
    /// # Errors
    /// Those of [`Self::locate`]; [`PoolError::Full`]; [`PoolError::Group`] if the pool is closed.
    pub fn admit(&self, id: ShareId, position: u64) -> Result<bool, PoolError> {
        self.alive()?;
        let mut table = self.0.table.borrow_mut();
        let share = serving(&table, id)?;
        let (entry, _) = share.entry_of(position).ok_or(PoolError::OutOfRange(position))?;
        if share.entry(entry) != Entry::Empty {
            return Ok(false);
        }
        table.reserve(id.at, entry..entry + 1)?;
        Ok(true)
    }

    /// Takes back an [`Self::admit`] that was true, for a command that is refused for another reason. Nothing may have happened in between.
    pub fn retract(&self, id: ShareId, position: u64) {
        let mut table = self.0.table.borrow_mut();
        let Ok(share) = serving(&table, id) else { return };
        let Some((entry, _)) = share.entry_of(position) else { return };
        table.forgo(id.at, entry..entry + 1);
    }

    /// Sees to it that what was admitted at these positions has slices, durably.
    ///
    /// # Errors
    /// Those of [`Self::locate`]; [`PoolError::NotAdmitted`]; [`PoolError::Group`]: some may have theirs; try again.
    pub async fn settle(&self, id: ShareId, positions: Range<u64>) -> Result<(), PoolError> {
        let (mut from, last) = {
            let table = self.0.table.borrow();
            let share = serving(&table, id)?;
            let last = positions.end.saturating_sub(1).max(positions.start);
            let entry = |position| share.entry_of(position).ok_or(PoolError::OutOfRange(position));
            (entry(positions.start)?.0, entry(last)?.0)
        };
        loop {
            let waits = {
                let table = self.0.table.borrow();
                let share = serving(&table, id)?;
                let mut wanted = self.0.wanted.borrow_mut();
                let mut waits = 0;
                from += (from..=last).take_while(|entry| matches!(share.entry(*entry), Entry::Mapped(_))).count();
                for entry in from..=last {
                    match share.entry(entry) {
                        Entry::Mapped(_) => {}
                        Entry::Empty => return Err(PoolError::NotAdmitted),
                        Entry::Reserved if waits == RECORDS => break,
                        Entry::Reserved => {
                            wanted.push_back((id.at, u32::try_from(entry).expect("at most ENTRIES_MAX")));
                            waits += 1;
                        }
                    }
                }
                waits > 0
            };
            if !waits {
                return Ok(());
            }
            // Whoever has the turn does it for everybody who waits.
            let _turn = self.0.turn.acquire(1).await;
            self.map_wanted().await?;
        }
    }

    /// The shares that there are.
    #[must_use]
    pub fn volumes(&self) -> Vec<ShareSpec> {
        self.0.table.borrow().volumes().map(|share| *share.spec()).collect()
    }

    /// How full it is.
    #[must_use]
    pub fn space(&self) -> Space {
        let table = self.0.table.borrow();
        let slice_blocks = BlockCount(table.slice_blocks());
        Space { slice_blocks, slices: table.slices(), in_use: table.in_use(), reserved: table.reserved() }
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    /// The slices that are free and count as zeros.
    #[cfg(test)]
    pub(super) fn zeroed(&self) -> Vec<SliceNumber> {
        self.0.table.borrow().zeroed_slices()
    }

    fn alive(&self) -> Result<(), PoolError> {
        self.0.failed.get().map_or(Ok(()), |error| Err(error.into()))
    }

    fn slice_blocks(&self) -> u64 {
        self.0.table.borrow().slice_blocks()
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }
}

/// Stripes of a slice for a group of so many, of which there may be so many slices at most.
pub(super) fn suitable(stripes: u64, most: u64) -> u32 {
    let mut each = SLICE_STRIPES;
    while each > 1 && stripes / each < SLICE_STRIPES {
        each /= 2;
    }
    while stripes / each > most {
        each *= 2;
    }
    u32::try_from(each).unwrap_or(u32::MAX)
}

fn first_block(table: &Table, slice: SliceNumber) -> Lba {
    Lba(u64::from(slice.0) * table.slice_blocks())
}

fn serving(table: &Table, id: ShareId) -> Result<&Share, PoolError> {
    match table.share(id.at).filter(|share| share.spec().volume == id.volume) {
        Some(share) => refusal(share, id.generation).map(|()| share),
        None => Err(PoolError::UnknownVolume),
    }
}

/// Why a request that means this generation is refused.
fn refusal(share: &Share, generation: Generation) -> Result<(), PoolError> {
    let now = share.spec().generation;
    match share.standing {
        Standing::Ending => Err(PoolError::UnknownVolume),
        Standing::Serving | Standing::Cutting(_) => match generation.cmp(&now) {
            std::cmp::Ordering::Less => Err(PoolError::OldGeneration(now)),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(PoolError::UnknownGeneration(now)),
        },
    }
}
