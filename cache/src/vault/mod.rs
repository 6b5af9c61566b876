//! The vault: dirty cache that survives total loss of power (PROTOCOLS 6.3, 6.4), in a ring of records on the members of the group.
//!
//! - `record.rs`: a record byte by byte (`cache/VAULT.md`);
//! - `ledger.rs`: which blocks the records have, and which records can be retired;
//! - `marks.rs`: what is known about `unmirrored` volumes;
//! - `open.rs`: what is found in a vault, and whether all of it is there.
//!
//! A record goes to all keepers at once, FUA; it is durable when every keeper that is not on record as failed has it. A keeper that fails goes the
//! way of a leg of a group: it is reported ([`Vault::failing`]), and the record waits until that is recorded, so that nobody later takes it for a
//! whole one. Nothing allocates after [`Vault::open`].

mod ledger;
mod marks;
mod open;
pub mod record;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::device::{DeviceError, DeviceId, Io, SubmitError};
use dyad_backend::format::{GroupId, Region};
use dyad_matrix::Segment;
use dyad_matrix::frames::{FramePool, Pinned};
use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::executor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{KeyGuard, KeyedLocks, Signal};

use self::ledger::Ledger;
use self::marks::MarkTable;
pub use self::open::Found;
pub use self::record::{BlockEntry, MarkState};
use self::record::{CELL_BLOCKS, Head};
use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, Version, VolumeId};

/// Most members that keep one vault.
pub const KEEPERS_MAX: usize = 4;

/// How often a write is tried on a keeper that aborts it.
const ATTEMPTS_MAX: u32 = 3;

/// A device whose queue is full is looked at again after this.
const FULL_LOOK_AGAIN: Duration = Duration::from_micros(200);
/// And must have room after so many looks.
const FULL_LOOKS_MAX: u32 = 50_000;

/// How long a record waits for a keeper's failure to be put on record.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why the vault did not do it.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// There are no keepers, or more than [`KEEPERS_MAX`], or their regions differ.
    #[error("these devices cannot keep a vault")]
    Keepers,
    /// Fewer cells than [`record::CELLS_MIN`].
    #[error("the vault's region is too small")]
    TooSmall,
    /// A keeper cannot write a whole cell with one command, or cannot reach the memory.
    #[error("a device cannot take a record of the vault")]
    Unfit,
    /// More `unmirrored` volumes than a record has room for.
    #[error("too many unmirrored volumes")]
    Marks,
    /// There is no room: something must be destaged first.
    #[error("the vault is full")]
    Full,
    /// A reservation conflict: this director is not the home any more.
    #[error("this director is fenced")]
    Fenced,
    /// No keeper is left.
    #[error("no device of the vault answers")]
    Lost,
    /// A keeper failed and that is not on record yet.
    #[error("a device of the vault failed and that is not on record yet")]
    Unrecorded,
    /// Record `0` was durable, and no keeper has it whole: nothing was replayed and nothing retired.
    #[error("record {0} of the vault is damaged on every device: nothing was replayed")]
    Damaged(u64),
    /// Records of another format: made by another version of Dyad.
    #[error("the vault has format version {0}")]
    Version(u32),
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum KeeperState {
    Live,
    /// It missed something, and that is not on record.
    Failing,
    Out,
}

struct Keeper<D> {
    device: D,
    id: DeviceId,
    state: Cell<KeeperState>,
}

/// What the vault has done.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct VaultCounters {
    /// Records with contents.
    pub records: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Records that only retire, or mark.
    pub bare_records: u64,
}

/// One block that is to be saved: its index in the track, what it is, and where its bytes are.
#[derive(Debug, Copy, Clone)]
pub struct Saved {
    /// Index in the track.
    pub index: usize,
    /// Version and CRC.
    pub entry: BlockEntry,
    /// Its bytes, in memory that is mapped at the keepers.
    pub segment: Segment,
}

/// Blocks of one track that are to be saved. Whoever has it is the only one who saves blocks of that track.
pub struct Batch {
    track: TrackAddress,
    _turn: KeyGuard<TrackAddress>,
    page: Box<Page>,
}

/// Room for what is in a record. There is one for each batch, made once: lanes are small.
#[derive(Default)]
struct Page {
    blocks: heapless::Vec<Saved, TRACK_BLOCKS>,
    segments: heapless::Vec<Segment, CELL_SEGMENTS>,
}

impl Batch {
    /// Adds a block; in ascending order of their indices.
    ///
    /// # Panics
    /// If the track has no more.
    pub fn add(&mut self, block: Saved) {
        assert!(self.page.blocks.push(block).is_ok(), "a track has at most {TRACK_BLOCKS} blocks");
    }

    /// Blocks in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.page.blocks.len()
    }

    /// There is nothing to save.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.page.blocks.is_empty()
    }
}

struct Inner<D> {
    handle: Handle,
    group: GroupId,
    epoch: Epoch,
    region: Region,
    cells: u64,
    base: u64,
    keepers: Vec<Keeper<D>>,
    /// Where heads are written from: one for each record under way.
    heads: FramePool,
    turns: KeyedLocks<TrackAddress>,
    /// As many as there are turns.
    #[expect(clippy::vec_box, reason = "a lane holds the box, and not what is in it")]
    pages: RefCell<Vec<Box<Page>>>,
    ledger: RefCell<Ledger>,
    marks: RefCell<MarkTable>,
    changed: Signal,
    /// Why nothing is written any more.
    closed: Cell<Option<VaultError>>,
    counters: Cell<VaultCounters>,
}

/// The head of a record that is being written.
struct HeadFrame {
    sequence: u64,
    oldest: u64,
    frame: Pinned,
}

/// What room is asked for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Room {
    /// For a record that must leave one cell for a note.
    Contents,
    /// For a record without contents.
    Note,
}

/// An open vault. Clones are the same vault.
pub struct Vault<D> {
    inner: Rc<Inner<D>>,
}

impl<D> Clone for Vault<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Device> Vault<D> {
    /// Waits until nobody saves blocks of the track. What is to be saved is looked up after that: of two records of one block the later one has the
    /// greater version, so the one that counts is never retired first.
    pub async fn batch(&self, track: TrackAddress) -> Batch {
        // Broken on purpose: as many keys as batches keep nobody out.
        let others = if is_active(Mutation::SavesOvertake) { self.inner.pages.borrow().len() as u64 } else { 0 };
        let turn = self.inner.turns.lock(TrackAddress { track: track.track ^ (others << 48), ..track }).await;
        let page = self.inner.pages.borrow_mut().pop().expect("as many pages as turns");
        self.inner.ledger.borrow_mut().watch(track);
        Batch { track, _turn: turn, page }
    }

    /// Saves blocks of one track. When it returns they survive total loss of power.
    ///
    /// # Errors
    /// [`VaultError`]. If it is not `Full`, they may or may not survive.
    pub async fn save(&self, mut batch: Batch) -> Result<(), VaultError> {
        let saved = self.save_page(batch.track, &mut batch.page).await;
        self.give_up(batch);
        saved
    }

    /// Nothing of it is to be saved after all.
    pub fn give_up(&self, batch: Batch) {
        let Batch { track, mut page, _turn: turn } = batch;
        {
            let mut ledger = self.inner.ledger.borrow_mut();
            let settled = ledger.unwatch(track);
            for (index, version) in
                settled.into_iter().enumerate().filter_map(|(index, version)| Some((index, version?)))
            {
                ledger.settle(track, index, version);
            }
        }
        page.blocks.clear();
        page.segments.clear();
        self.inner.pages.borrow_mut().push(page);
        drop(turn);
    }

    async fn save_page(&self, track: TrackAddress, page: &mut Page) -> Result<(), VaultError> {
        let sequence = self.begin(Room::Contents).await?;
        let head = self.head(sequence, track, &page.blocks);
        let segments = head.frame.segments().into_iter().chain(page.blocks.iter().map(|block| block.segment));
        page.segments.extend(segments);
        let written = self.write(&head, &page.segments).await;
        let versions = page.blocks.iter().map(|block| (block.index, block.entry.version));
        self.inner.ledger.borrow_mut().add(sequence, track, versions);
        self.count(|counters| {
            counters.records += 1;
            counters.blocks += page.blocks.len() as u64;
        });
        self.inner.changed.notify_all();
        written
    }

    /// A durable record has this version of the block, or a newer one.
    #[must_use]
    pub fn covers(&self, track: TrackAddress, index: usize, version: Version) -> bool {
        self.inner.closed.get().is_none() && self.inner.ledger.borrow().covers(track, index, version)
    }

    /// Media has `version` of the block, durably.
    pub fn settle(&self, track: TrackAddress, index: usize, version: Version) {
        self.inner.ledger.borrow_mut().settle(track, index, version);
    }

    /// Media has everything of the track but the blocks for which `dirty` is true.
    pub fn settle_others(&self, track: TrackAddress, dirty: impl Fn(usize) -> bool) {
        self.inner.ledger.borrow_mut().settle_others(track, dirty);
    }

    /// Something that a replay would bring back is older than media: no promise may be made before it is retired (PROTOCOLS 6.4).
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.inner.ledger.borrow().is_stale()
    }

    /// Retires what is stale, durably. `Some(track)`: the track must be destaged first, then ask again.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn retire_stale(&self) -> Result<Option<TrackAddress>, VaultError> {
        loop {
            let seen = self.inner.changed.generation();
            self.check_open()?;
            {
                let mut ledger = self.inner.ledger.borrow_mut();
                if !ledger.is_stale() {
                    return Ok(None);
                }
                let in_the_way = ledger.advance();
                if !ledger.can_retire_stale() && in_the_way.is_some() {
                    return Ok(in_the_way);
                }
            }
            if self.inner.ledger.borrow().can_retire_stale() {
                self.note_retired().await?;
            } else {
                // A record under way is in the way.
                self.inner.changed.changed_since(seen).await;
            }
        }
    }

    /// Retires all records of former openings durably: media, or newer records, have what they have.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn retire_former(&self) -> Result<(), VaultError> {
        let sequence = self.inner.base;
        self.inner.ledger.borrow_mut().settle_before(sequence);
        while self.inner.ledger.borrow().durable() < sequence {
            let seen = self.inner.changed.generation();
            self.check_open()?;
            self.inner.ledger.borrow_mut().advance();
            if self.inner.ledger.borrow().oldest() >= sequence {
                self.note_retired().await?;
            } else {
                self.inner.changed.changed_since(seen).await;
            }
        }
        Ok(())
    }

    /// Writes a record without contents: it retires what can be, and has the marks.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn note(&self) -> Result<(), VaultError> {
        let sequence = self.begin(Room::Note).await?;
        self.write_note(sequence).await
    }

    /// Makes what is retired durable, unless somebody else does: then there may be no room for another record, and no need.
    async fn note_retired(&self) -> Result<(), VaultError> {
        match self.note().await {
            Err(VaultError::Full) => Ok(()),
            noted => noted,
        }
    }

    /// The track that keeps the oldest record from being retired, if one does.
    #[must_use]
    pub fn in_the_way(&self) -> Option<TrackAddress> {
        self.inner.ledger.borrow_mut().advance()
    }

    async fn write_note(&self, sequence: u64) -> Result<(), VaultError> {
        self.count(|counters| counters.bare_records += 1);
        let nothing = TrackAddress { volume: VolumeId { uuid: [0; 16], generation: 0 }, track: 0 };
        let head = self.head(sequence, nothing, &[]);
        self.write(&head, &head.frame.segments()).await
    }

    /// What is known about an `unmirrored` volume that is not clean.
    #[must_use]
    pub fn mark(&self, volume: VolumeId) -> Option<MarkState> {
        self.inner.marks.borrow().get(volume)
    }

    /// Sets the mark of a volume: every later record says so. `false`: there are too many.
    #[must_use]
    pub fn set_mark(&self, volume: VolumeId, state: MarkState) -> bool {
        self.inner.marks.borrow_mut().set(volume, state)
    }

    /// Takes the mark of a volume away: every later record is without it.
    pub fn clear_mark(&self, volume: VolumeId) {
        self.inner.marks.borrow_mut().clear(volume);
    }

    /// When this returns, whoever opens the vault finds the volume marked, until [`Vault::clear_mark`].
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn mark_dirty(&self, volume: VolumeId) -> Result<(), VaultError> {
        loop {
            let cleared = {
                let mut marks = self.inner.marks.borrow_mut();
                if marks.is_noted(volume) {
                    return Ok(());
                }
                if marks.get(volume).is_none() && !marks.set(volume, MarkState::Dirty) {
                    return Err(VaultError::Marks);
                }
                marks.cleared()
            };
            self.note().await?;
            if self.inner.marks.borrow_mut().note(volume, cleared) {
                return Ok(());
            }
        }
    }

    /// Keepers whose failure has to be put on record; then tell [`Vault::recorded`]. Records wait for it.
    pub fn failing(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.keepers_in(KeeperState::Failing).map(|keeper| keeper.id)
    }

    /// The failure of this device is on record: it keeps the vault no more.
    pub fn recorded(&self, failed: DeviceId) {
        for keeper in self.inner.keepers.iter().filter(|keeper| keeper.id == failed) {
            keeper.state.set(KeeperState::Out);
        }
        self.inner.changed.notify_all();
    }

    /// Fires when a record is done, or a keeper failed.
    #[must_use]
    pub fn changes(&self) -> &Signal {
        &self.inner.changed
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> VaultCounters {
        self.inner.counters.get()
    }

    /// Records with contents that are not retired.
    #[must_use]
    pub fn live_records(&self) -> usize {
        self.inner.ledger.borrow().live()
    }

    /// A number for a record, when there is room for it.
    async fn begin(&self, what: Room) -> Result<u64, VaultError> {
        let inner = &*self.inner;
        loop {
            let seen = inner.changed.generation();
            self.check_open()?;
            let note = {
                let mut ledger = inner.ledger.borrow_mut();
                ledger.advance();
                // The last cell is for the record that makes what is retired durable: one that does not would be the last for ever.
                let retires = ledger.oldest() > ledger.durable();
                let enough = match what {
                    Room::Note if retires => ledger.room() > 0,
                    Room::Contents | Room::Note => ledger.room() > 1,
                };
                if enough && ledger.has_window() {
                    return Ok(ledger.begin());
                }
                if !enough && retires && ledger.room() > 0 && ledger.has_window() {
                    Some(ledger.begin())
                } else if !enough && ledger.under_way() == 0 {
                    return Err(VaultError::Full);
                } else {
                    None
                }
            };
            match note {
                Some(sequence) => self.write_note(sequence).await?,
                None => {
                    inner.changed.changed_since(seen).await;
                }
            }
        }
    }

    /// The head of a record that was begun.
    fn head(&self, sequence: u64, track: TrackAddress, contents: &[Saved]) -> HeadFrame {
        let inner = &*self.inner;
        let mut blocks = [None; TRACK_BLOCKS];
        for block in contents {
            blocks[block.index] = Some(block.entry);
        }
        let oldest = inner.ledger.borrow().oldest();
        let marks = inner.marks.borrow().marks().clone();
        let head = Head { sequence, oldest, base: inner.base, epoch: inner.epoch, track, blocks, marks };
        let frame = inner.heads.try_take(1).expect("a head for each record of the window");
        frame.write(0, &head.encode(inner.group, inner.cells));
        HeadFrame { sequence, oldest, frame }
    }

    /// Writes a record to all live keepers, and waits until all failures are on record. A record that may be missing must be the last one: an error
    /// closes the vault.
    async fn write(&self, head: &HeadFrame, segments: &[Segment]) -> Result<(), VaultError> {
        let inner = &*self.inner;
        let lba = Lba(inner.region.start.0 + head.sequence % inner.cells * CELL_BLOCKS);
        let written = self.write_everywhere(lba, segments).await;
        match written {
            Ok(()) => inner.ledger.borrow_mut().finish(head.sequence, head.oldest),
            Err(error) => inner.closed.set(Some(error)),
        }
        inner.changed.notify_all();
        written
    }

    async fn write_everywhere(&self, lba: Lba, segments: &[Segment]) -> Result<(), VaultError> {
        if is_active(Mutation::SavedBeforeDurable) {
            return Ok(());
        }
        let io = Io::Write { lba, segments, fua: true };
        let mut under_way: heapless::Vec<(usize, D::Completion), KEEPERS_MAX> = heapless::Vec::new();
        for (index, keeper) in self.inner.keepers.iter().enumerate() {
            if keeper.state.get() != KeeperState::Live {
                continue;
            }
            match self.submit(keeper, io).await {
                Ok(completion) => assert!(under_way.push((index, completion)).is_ok(), "at most {KEEPERS_MAX} keepers"),
                Err(_) => self.fail(keeper),
            }
        }
        let (mut written, mut fenced) = (false, false);
        for (index, completion) in under_way {
            let keeper = &self.inner.keepers[index];
            let mut outcome = completion.await;
            for _ in 1..ATTEMPTS_MAX {
                if outcome != Err(DeviceError::Aborted) {
                    break;
                }
                outcome = match self.submit(keeper, io).await {
                    Ok(completion) => completion.await,
                    Err(error) => Err(error),
                };
            }
            match outcome {
                Ok(()) => written = true,
                Err(DeviceError::ReservationConflict) => fenced = true,
                Err(_) => self.fail(keeper),
            }
        }
        if fenced {
            return Err(VaultError::Fenced);
        }
        if !written {
            return Err(VaultError::Lost);
        }
        self.all_on_record().await
    }

    async fn submit(&self, keeper: &Keeper<D>, io: Io<'_>) -> Result<D::Completion, DeviceError> {
        for _ in 0..FULL_LOOKS_MAX {
            match keeper.device.submit(io) {
                Ok(completion) => return Ok(completion),
                Err(SubmitError::Full) => self.inner.handle.sleep(FULL_LOOK_AGAIN).await,
                Err(SubmitError::Invalid) => return Err(DeviceError::Rejected),
                Err(SubmitError::Gone) => return Err(DeviceError::Gone),
            }
        }
        Err(DeviceError::Aborted)
    }

    /// A keeper missed a record. The last one stays: it is all there is.
    fn fail(&self, keeper: &Keeper<D>) {
        if keeper.state.get() == KeeperState::Live && self.keepers_in(KeeperState::Live).count() > 1 {
            keeper.state.set(KeeperState::Failing);
        }
        self.inner.changed.notify_all();
    }

    async fn all_on_record(&self) -> Result<(), VaultError> {
        let deadline = self.inner.handle.now() + RECORD_WAIT_MAX;
        loop {
            let seen = self.inner.changed.generation();
            if self.keepers_in(KeeperState::Failing).next().is_none() {
                return Ok(());
            }
            let change = self.inner.changed.changed_since(seen);
            if self.inner.handle.timeout_at(deadline, change).await.is_err() {
                return Err(VaultError::Unrecorded);
            }
        }
    }

    fn check_open(&self) -> Result<(), VaultError> {
        self.inner.closed.get().map_or(Ok(()), Err)
    }

    fn keepers_in(&self, state: KeeperState) -> impl Iterator<Item = &Keeper<D>> {
        self.inner.keepers.iter().filter(move |keeper| keeper.state.get() == state)
    }

    fn count(&self, change: impl FnOnce(&mut VaultCounters)) {
        let mut counters = self.inner.counters.get();
        change(&mut counters);
        self.inner.counters.set(counters);
    }
}

/// A head and the contents.
const CELL_SEGMENTS: usize = 1 + TRACK_BLOCKS;
const _: () = assert!(CELL_SEGMENTS as u64 == CELL_BLOCKS);
const _: () = assert!(BLOCK_BYTES == dyad_matrix::frames::FRAME_BYTES);
