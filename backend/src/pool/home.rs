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

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::sync::{Permits, Signal};

use super::description::{Allocation, Description, ShareSpec, State};
use super::entries::Entry;
use super::grace::{Grace, Pin};
use super::ground::{Facts, Ground};
use super::log::{Log, LogError, Totals};
use super::table::{Share, Standing, Table};
use super::{Generation, PoolError, SliceNumber};
use crate::format::VolumeUuid;
use crate::format::share::{Change, RECORDS, Record};
use crate::raid::GroupError;

/// Slices that are kept zeroed ahead of need, where any are free.
const READY: usize = 8;
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

    // What requests need.

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

    // What the director asks for.

    /// Makes a volume's share, or makes it longer. With full allocation everything has its slices when this is done.
    ///
    /// # Errors
    /// [`PoolError`]; nothing changed, but with [`PoolError::Group`].
    pub async fn ensure(&self, spec: ShareSpec) -> Result<ShareId, PoolError> {
        let id = {
            let _turn = self.0.turn.acquire(1).await;
            self.alive()?;
            let held = self.hold_for(spec)?;
            let made = match held {
                Some(_) => self.commit(&[spec.record()]).await,
                None => Ok(()),
            };
            let mut table = self.0.table.borrow_mut();
            table.release(held.unwrap_or(0));
            made?;
            let at = table.find(spec.volume).expect("it was made");
            if spec.allocation == Allocation::Full {
                let len = table.share(at).expect("it was made").len();
                table.reserve(at, 0..len)?;
            }
            ShareId { at, volume: spec.volume, generation: spec.generation }
        };
        if spec.allocation == Allocation::Full && spec.positions > 0 {
            self.settle(id, 0..spec.positions).await?;
        }
        Ok(id)
    }

    /// Checks what [`Self::ensure`] is asked for, and keeps the slices that it will need. `None` if there is nothing to do.
    fn hold_for(&self, spec: ShareSpec) -> Result<Option<u32>, PoolError> {
        let mut table = self.0.table.borrow_mut();
        let entries = table.entries_for(spec.extent, spec.positions)?;
        let had = match table.find(spec.volume).and_then(|at| table.share(at)) {
            None if table.records_max() >= self.0.log.capacity() => return Err(PoolError::TooManyShares),
            None => 0,
            Some(share) => {
                let now = share.spec();
                refusal(share, spec.generation)?;
                let same = now.extent == spec.extent && now.allocation == spec.allocation;
                if !same || now.positions > spec.positions || share.standing != Standing::Serving {
                    return Err(PoolError::Contradiction);
                }
                if now.positions == spec.positions {
                    return Ok(None);
                }
                share.len()
            }
        };
        let needed = if spec.allocation == Allocation::Full { entries - had } else { 0 };
        let needed = u32::try_from(needed).map_err(|_| PoolError::Full)?;
        table.hold(needed)?;
        Ok(Some(needed))
    }

    /// Shrinks a volume's share to this, which has a higher generation: older ones are refused from now on, what they have in flight ends, what is
    /// beyond the new end is freed, and what is left of the last slice behind it becomes zeros.
    ///
    /// # Errors
    /// [`PoolError`]. With [`PoolError::Group`] the old generation may be refused already; try again.
    pub async fn cut(&self, spec: ShareSpec) -> Result<(), PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        let tail = {
            let mut table = self.0.table.borrow_mut();
            let at = table.find(spec.volume).ok_or(PoolError::UnknownVolume)?;
            let share = table.share_mut(at).expect("it was found");
            let now = *share.spec();
            let like = ShareSpec { generation: spec.generation, positions: spec.positions, ..now };
            match share.standing {
                Standing::Ending => return Err(PoolError::UnknownVolume),
                _ if now.generation > spec.generation => return Err(PoolError::OldGeneration(now.generation)),
                Standing::Serving if now == spec => return Ok(()),
                Standing::Cutting(before) if before == spec => {}
                Standing::Serving if now.generation < spec.generation && like == spec => {
                    if now.positions < spec.positions {
                        return Err(PoolError::Contradiction);
                    }
                }
                Standing::Serving | Standing::Cutting(_) => return Err(PoolError::Contradiction),
            }
            share.standing = Standing::Cutting(spec);
            let extent = spec.extent.blocks();
            let (entry, place) = share.place_of(spec.positions);
            match share.entry(entry) {
                Entry::Mapped(slice) if place > 0 => Some((first_block(&table, slice).0, place * extent)),
                _ => None,
            }
        };
        self.0.grace.pass().await;
        if let Some((first, kept)) = tail {
            let blocks = BlockCount(self.slice_blocks() - kept);
            self.0.ground.zero(Lba(first + kept), blocks).await?;
        }
        self.commit(&[spec.record()]).await
    }

    /// Ends a volume's share: nobody gets in from now on, what is in flight ends, all slices are freed. `generation` is the volume's last one.
    ///
    /// # Errors
    /// [`PoolError::OldGeneration`] if the share is newer than that; [`PoolError::Group`]. A volume without a share is no error.
    pub async fn delete(&self, volume: VolumeUuid, generation: Generation) -> Result<(), PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        {
            let mut table = self.0.table.borrow_mut();
            let Some(at) = table.find(volume) else { return Ok(()) };
            let share = table.share_mut(at).expect("it was found");
            if share.spec().generation >= generation {
                return Err(PoolError::OldGeneration(share.spec().generation));
            }
            share.standing = Standing::Ending;
        }
        self.0.grace.pass().await;
        self.commit(&[Record { volume, change: Change::Gone }]).await
    }

    /// Frees the slices that lie whole in these positions (Dataset Management); they read as zeros from now on. The rest stays as it is, and so do volumes
    /// with full allocation. Says how many slices were freed. The caller has nothing acknowledged there that is not in the group.
    ///
    /// # Errors
    /// Those of [`Self::locate`]; [`PoolError::Group`]: some may have been freed.
    pub async fn trim(&self, id: ShareId, positions: Range<u64>) -> Result<u64, PoolError> {
        let _turn = self.0.turn.acquire(1).await;
        self.alive()?;
        let entries = {
            let mut table = self.0.table.borrow_mut();
            let share = serving(&table, id)?;
            if share.spec().allocation == Allocation::Full || positions.is_empty() {
                return Ok(0);
            }
            let entries = share.whole_entries(positions);
            table.forgo(id.at, entries.clone());
            entries
        };
        let (mut from, mut freed) = (entries.start, 0);
        while from < entries.end {
            let mut records = Vec::with_capacity(RECORDS);
            {
                let table = self.0.table.borrow();
                let share = table.share(id.at).expect("only whoever has the turn ends shares");
                while from < entries.end && records.len() < RECORDS {
                    let run = (from..entries.end).take_while(|at| matches!(share.entry(*at), Entry::Mapped(_)));
                    let count = run.count();
                    if count > 0 {
                        let index = |at: usize| u32::try_from(at).expect("at most ENTRIES_MAX");
                        let change = Change::Unmapped { first: index(from), entries: index(count) };
                        records.push(Record { volume: id.volume, change });
                        freed += count as u64;
                    }
                    from += count.max(1);
                }
            }
            if !records.is_empty() {
                self.commit(&records).await?;
            }
        }
        Ok(freed)
    }

    /// After opening: goes on with whatever a crash cut short. The descriptions are all that the registry has with a share in this group.
    ///
    /// # Errors
    /// [`PoolError`]; [`PoolError::Contradiction`] and generations if the registry is not the one that this pool grew up with. Some may have been done.
    pub async fn reconcile(&self, descriptions: &[Description]) -> Result<Reconciled, PoolError> {
        let group = self.0.facts.group;
        let here: Vec<_> = self.volumes();
        let mut done = Reconciled::default();
        for volume in here.iter().map(|spec| spec.volume) {
            if !descriptions.iter().any(|d| d.uuid() == volume) {
                done.strangers.push(volume);
            }
        }
        for description in descriptions {
            let volume = description.uuid();
            let now = here.iter().find(|spec| spec.volume == volume);
            let ending = match description.state() {
                State::Deleting => true,
                State::Shrinking { retiring } => retiring.contains(&group),
                State::Active => false,
            };
            match (now, description.share(group)) {
                (None, None) => {}
                (Some(_), None) if ending => self.delete(volume, description.generation()).await?,
                (Some(_), None) => done.strangers.push(volume),
                (Some(now), Some(spec)) if now.generation < spec.generation => match description.state() {
                    State::Shrinking { .. } => self.cut(spec).await?,
                    State::Active | State::Deleting => return Err(PoolError::Contradiction),
                },
                (Some(_) | None, Some(spec)) => drop(self.ensure(spec).await?),
            }
        }
        Ok(done)
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

    // Slices that were let go.

    /// Makes slices that were let go fit for use, and passes their deallocation to the devices, as long as the pool is open. A service task.
    ///
    /// # Errors
    /// Only ever returns [`PoolError::Group`], when the group is lost.
    pub async fn serve(&self) -> PoolError {
        loop {
            let seen = self.0.work.generation();
            let due = {
                let table = self.0.table.borrow();
                let freed = !(table.limbo.is_empty() && table.dirty.is_empty());
                freed || (table.ready() < READY && !table.stale.is_empty())
            };
            let outcome = match due {
                true => {
                    let _turn = self.0.recycler.acquire(1).await;
                    self.recycle().await
                }
                false => Ok(()),
            };
            match outcome {
                Err(error @ (GroupError::Fenced | GroupError::Lost)) => return error.into(),
                Ok(()) if due => {}
                // A slice that cannot be zeroed now waits until something else happens.
                Ok(()) | Err(GroupError::Media | GroupError::Unrecorded | GroupError::Invalid) => {
                    self.0.work.changed_since(seen).await;
                }
            }
        }
    }

    /// Takes one slice a step nearer to being clean. The caller has the recycler's turn.
    async fn recycle(&self) -> Result<(), GroupError> {
        let leaving = self.0.table.borrow().limbo.len();
        if leaving > 0 {
            self.0.grace.pass().await;
            let mut table = self.0.table.borrow_mut();
            let table = &mut *table;
            table.dirty.extend(table.limbo.drain(..leaving));
        }
        let Some(slice) = self.0.table.borrow().next_dirty() else { return Ok(()) };
        let first = first_block(&self.0.table.borrow(), slice);
        let zeroed = self.0.ground.zero(first, BlockCount(self.slice_blocks())).await;
        self.0.table.borrow_mut().zeroed(zeroed.is_ok());
        self.count(|c| c.zeroed += u64::from(zeroed.is_ok()));
        zeroed
    }

    // How changes are made.

    /// Gives slices to entries that somebody waits for. The caller has the turn.
    async fn map_wanted(&self) -> Result<(), PoolError> {
        self.alive()?;
        let unfinished = Unfinished(&self.0.failed);
        let mut records = Vec::<Record>::with_capacity(RECORDS);
        let mut failed = None;
        while records.len() < RECORDS {
            let Some((at, entry)) = self.0.wanted.borrow_mut().pop_front() else { break };
            let Some(volume) = self.waiting(at, entry, &records) else { continue };
            match self.clean_slice().await {
                Ok(slice) => add_mapped(&mut records, volume, entry, slice),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if !records.is_empty() {
            self.commit(&records).await?;
            self.0.work.notify_all();
        }
        std::mem::forget(unfinished);
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whose entry that is, if it has a slice kept for it and gets none from `records`.
    fn waiting(&self, at: usize, entry: u32, records: &[Record]) -> Option<VolumeUuid> {
        let table = self.0.table.borrow();
        let share = table.share(at)?;
        let volume = share.spec().volume;
        let covers = |record: &Record| match record.change {
            Change::Mapped { first, entries, .. } => {
                record.volume == volume && entry.checked_sub(first).is_some_and(|i| i < entries)
            }
            Change::Share { .. } | Change::Unmapped { .. } | Change::Gone => false,
        };
        let waits = share.entry(usize::try_from(entry).ok()?) == Entry::Reserved && !records.iter().any(covers);
        waits.then_some(volume)
    }

    async fn clean_slice(&self) -> Result<SliceNumber, GroupError> {
        loop {
            if let Some(slice) = self.0.table.borrow_mut().take_clean() {
                return Ok(slice);
            }
            let _turn = self.0.recycler.acquire(1).await;
            if self.0.table.borrow().ready() == 0 {
                self.recycle().await?;
                assert!(self.0.table.borrow().ready() > 0, "a slice is kept for every entry that waits for one");
            }
        }
    }

    /// Makes changes durable, then true. The caller has the turn.
    async fn commit(&self, records: &[Record]) -> Result<(), PoolError> {
        self.alive()?;
        let unfinished = Unfinished(&self.0.failed);
        let (slice_stripes, log) = (self.0.slice_stripes, &self.0.log);
        let totals = || Totals { slice_stripes, fresh: self.0.table.borrow().fresh() };
        let written = async {
            if log.is_full() {
                let snapshot = self.0.table.borrow().snapshot();
                log.begin(totals(), &snapshot).await?;
                self.count(|c| c.logs += 1);
            }
            log.append(totals(), records).await
        };
        let written = written.await;
        std::mem::forget(unfinished);
        if let Err(error) = written {
            self.0.failed.set(Some(error));
            return Err(error.into());
        }
        self.count(|c| c.appends += 1);
        let mut table = self.0.table.borrow_mut();
        for record in records {
            table.apply(record).expect("a change that was checked");
        }
        if !table.limbo.is_empty() {
            self.0.work.notify_all();
        }
        Ok(())
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

/// Closes the pool if it is dropped.
struct Unfinished<'a>(&'a Cell<Option<GroupError>>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.0.get().is_none() {
            self.0.set(Some(GroupError::Invalid));
        }
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

/// Adds an entry to the changes, to the last one if it goes on there.
fn add_mapped(records: &mut Vec<Record>, volume: VolumeUuid, entry: u32, slice: SliceNumber) {
    if let Some(Record { volume: of, change: Change::Mapped { first, entries, slice: from } }) = records.last_mut()
        && (*of, *first + *entries, from.0 + *entries) == (volume, entry, slice.0)
    {
        *entries += 1;
    } else {
        records.push(Record { volume, change: Change::Mapped { first: entry, entries: 1, slice } });
    }
}
