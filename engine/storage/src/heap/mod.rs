//! Heaps: rows in no order, each found by its name.
//!
//! - A deleted row stays as a *ghost* until its place is wanted and its transaction has ended: so undoing a delete needs no room. For the same
//!   reason an update never makes a row shorter in its place.
//! - A row that outgrows its page moves to another one, and leaves a stub. It keeps its name; it never moves further than one stub away.

pub(crate) mod long;
pub(crate) mod scan;

use std::cell::{Cell, RefCell};
use std::sync::Mutex;

use crate::allocation::iam::Owned;
use crate::allocation::maps::{free_at_least, fullness};
use crate::buffer::{Pin, Use};
use crate::change::{Change, row_in};
use crate::error::StorageError;
use crate::ids::{ObjectId, PageId, RowId, TransactionId};
use crate::page::{Page, PageKind};
use crate::row::{self, MOVED_BYTES, RowKind};
use crate::store::{Author, Plan, Store};
use crate::sync::{Gate, lock};
use crate::transaction::Work;

/// Pages that an insert tries before the heap is given a new one.
const TRIES: usize = 4;

/// A heap of a database.
#[derive(Debug)]
pub(crate) struct Heap {
    pub(crate) object: ObjectId,
    pub(crate) kind: PageKind,
    pub(crate) first: PageId,
    /// Where the last insert found room.
    target: Mutex<Option<PageId>>,
    /// What it owns, once somebody has looked.
    owned: Mutex<Option<Owned>>,
    /// One at a time looks for room.
    gate: Gate,
}

/// How an attempt to put a row somewhere ended.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Put {
    Done(RowId),
    NoRoom,
}

impl Heap {
    pub(crate) fn new(object: ObjectId, kind: PageKind, first: PageId) -> Self {
        Self { object, kind, first, target: Mutex::default(), owned: Mutex::default(), gate: Gate::default() }
    }

    /// Whether the page is one of this heap's.
    fn check(&self, page: Page<'_>, name: PageId) -> Result<(), StorageError> {
        let ours = page.kind() == Some(self.kind) && page.owner() == self.object;
        if ours { Ok(()) } else { Err(StorageError::Inconsistent(name)) }
    }

    /// What the heap owns: whoever has it puts it back with [`Self::put_back`], or it is read again.
    pub(crate) async fn take_owned(&self, store: &Store) -> Result<Owned, StorageError> {
        let known = lock(&self.owned).take();
        match known {
            Some(owned) => Ok(owned),
            None => store.open_object(self.object, self.kind, self.first).await,
        }
    }

    pub(crate) fn put_back(&self, owned: Owned) {
        *lock(&self.owned) = Some(owned);
    }

    /// Somebody may find room there.
    fn has_room(&self, page: PageId) {
        if let Some(owned) = lock(&self.owned).as_mut() {
            owned.has_room(page);
        }
    }

    /// Puts a row somewhere; it belongs to the transaction.
    pub(crate) async fn insert(&self, store: &Store, work: &mut Work, row: &[u8]) -> Result<RowId, StorageError> {
        let target = *lock(&self.target);
        if let Some(page) = target
            && let Put::Done(row) = self.insert_on(store, work, page, row).await?
        {
            return Ok(row);
        }
        let _gate = self.gate.enter().await;
        // Somebody else may have found room meanwhile.
        let now = *lock(&self.target);
        if now != target
            && let Some(page) = now
            && let Put::Done(row) = self.insert_on(store, work, page, row).await?
        {
            return Ok(row);
        }
        let mut owned = self.take_owned(store).await?;
        let found = self.search(store, work, &mut owned, row).await;
        self.put_back(owned);
        if let Ok(row) = found {
            *lock(&self.target) = Some(row.page);
        }
        found
    }

    /// Finds room on a page that may have some, on a new one, and, when there are none, anywhere.
    async fn search(
        &self,
        store: &Store,
        work: &mut Work,
        owned: &mut Owned,
        row: &[u8],
    ) -> Result<RowId, StorageError> {
        for _ in 0..TRIES {
            let Some(page) = owned.roomy.pop_front() else { break };
            if let Put::Done(row) = self.insert_on(store, work, page, row).await? {
                return Ok(row);
            }
        }
        match store.extend(owned).await {
            Ok(page) => match self.insert_on(store, work, page, row).await? {
                Put::Done(row) => Ok(row),
                Put::NoRoom => Err(StorageError::Inconsistent(page)),
            },
            Err(StorageError::Full) => {
                for (page, _) in store.pages_of_object(owned, false).await? {
                    if let Put::Done(row) = self.insert_on(store, work, page, row).await? {
                        return Ok(row);
                    }
                }
                Err(StorageError::Full)
            }
            Err(error) => Err(error),
        }
    }

    async fn insert_on(&self, store: &Store, work: &mut Work, page: PageId, row: &[u8]) -> Result<Put, StorageError> {
        let pin = store.pool.fetch(page, Use::Point).await?;
        let first = self.put(store, work, &pin, row, false).await?;
        if first == Put::NoRoom && self.purge(store, &pin).await? {
            return self.put(store, work, &pin, row, true).await;
        }
        Ok(first)
    }

    /// Puts a row into a new slot, or (`again`) into one that is empty.
    async fn put(
        &self,
        store: &Store,
        work: &mut Work,
        pin: &Pin<'_>,
        row: &[u8],
        again: bool,
    ) -> Result<Put, StorageError> {
        let name = pin.name();
        let (id, chosen, level) = (work.id, Cell::new(None), Cell::new(None));
        let taken = RefCell::new(Vec::new());
        let changed = store
            .change(Author::Transaction(work), &[pin], |pages| {
                let page = pages[0];
                self.check(page, name)?;
                // The plan may be made again: what an earlier one chose was not done.
                chosen.set(None);
                level.set(None);
                let from = if again { 0 } else { page.slot_count() };
                let fits = |slot: &u16| page.row_place(*slot).is_none() && page.has_room(*slot, row.len());
                let slot = (from..=page.slot_count())
                    .find(|slot| fits(slot) && take(store, id, RowId { page: name, slot: *slot }));
                let Some(slot) = slot else { return Ok(Plan::new()) };
                chosen.set(Some(RowId { page: name, slot }));
                taken.borrow_mut().push(RowId { page: name, slot });
                let free = page.free();
                let left = free - row.len() - if slot == page.slot_count() { crate::page::SLOT_BYTES } else { 0 };
                level.set((fullness(free) != fullness(left)).then_some(left));
                Ok(vec![(0, Change::Insert { slot, row: row.to_vec() })])
            })
            .await;
        work.locks.extend(taken.into_inner());
        changed?;
        if let Some(left) = level.get() {
            store.note_fullness(name, left).await?;
        }
        Ok(chosen.get().map_or(Put::NoRoom, Put::Done))
    }

    /// Takes ghosts whose transactions have ended off the page; whether there is more room now.
    async fn purge(&self, store: &Store, pin: &Pin<'_>) -> Result<bool, StorageError> {
        let name = pin.name();
        let left = Cell::new(None);
        store
            .change(Author::Engine, &[pin], |pages| {
                let page = pages[0];
                self.check(page, name)?;
                let slots = 0..page.slot_count();
                let gone: Plan = slots
                    .filter(|slot| is_gone(store, page, RowId { page: name, slot: *slot }))
                    .map(|slot| (0, Change::Remove { slot }))
                    .collect();
                left.set((!gone.is_empty()).then_some(page.free()));
                Ok(gone)
            })
            .await?;
        if left.get().is_some() {
            let free = pin.read().free();
            store.note_fullness(name, free).await?;
            // It is worth another look only if it promises what small rows need.
            return Ok(free > free_at_least(4));
        }
        // Slots may have been emptied by a rollback.
        let page = pin.read();
        let empty = (0..page.slot_count()).any(|slot| page.row_place(slot).is_none());
        Ok(empty)
    }

    /// The bytes of a row that was not deleted, wherever they are.
    pub(crate) async fn read(&self, store: &Store, id: RowId) -> Result<(Vec<u8>, RowKind), StorageError> {
        // Somebody may move it while we are on the way from the stub.
        for _ in 0..16 {
            let (bytes, kind) = self.look(store, id).await?;
            if kind != RowKind::Stub {
                return Ok((bytes, kind));
            }
            let target = row::pointed_to(&bytes).ok_or(StorageError::Inconsistent(id.page))?;
            if let Ok((moved, RowKind::Moved)) = self.look(store, target).await
                && row::pointed_to(&moved) == Some(id)
            {
                return Ok((moved[MOVED_BYTES..].to_vec(), RowKind::Data));
            }
        }
        Err(StorageError::Inconsistent(id.page))
    }

    /// What is in the slot.
    async fn look(&self, store: &Store, id: RowId) -> Result<(Vec<u8>, RowKind), StorageError> {
        let pin = store.pool.fetch(id.page, Use::Point).await?;
        let page = pin.read();
        self.check(*page, id.page)?;
        match row_in(*page, id.slot) {
            Some((kind, false)) => Ok((page.row(id.slot).expect("it is there"), kind)),
            _ => Err(StorageError::NoRow(id)),
        }
    }

    /// Marks a row as deleted; it belongs to the transaction.
    pub(crate) async fn delete(&self, store: &Store, work: &mut Work, id: RowId) -> Result<(), StorageError> {
        store.lock_row(work, id)?;
        let (bytes, kind) = self.look(store, id).await?;
        let target = match kind {
            RowKind::Stub => Some(row::pointed_to(&bytes).ok_or(StorageError::Inconsistent(id.page))?),
            RowKind::Moved => return Err(StorageError::NoRow(id)),
            RowKind::Data | RowKind::Fragment | RowKind::Root => None,
        };
        let home = store.pool.fetch(id.page, Use::Point).await?;
        match target {
            Some(target) if target.page != id.page => {
                let there = store.pool.fetch(target.page, Use::Point).await?;
                let plan = vec![mark(0, id), mark(1, target)];
                store.change(Author::Transaction(work), &[&home, &there], |_| Ok(plan.clone())).await?;
                self.has_room(target.page);
            }
            target => {
                let plan: Plan = [Some(id), target].into_iter().flatten().map(|row| mark(0, row)).collect();
                store.change(Author::Transaction(work), &[&home], |_| Ok(plan.clone())).await?;
            }
        }
        self.has_room(id.page);
        Ok(())
    }

    /// Changes a row; it belongs to the transaction.
    pub(crate) async fn update(
        &self,
        store: &Store,
        work: &mut Work,
        id: RowId,
        new: &[u8],
    ) -> Result<(), StorageError> {
        store.lock_row(work, id)?;
        let (bytes, kind) = self.look(store, id).await?;
        let target = match kind {
            RowKind::Data => None,
            RowKind::Stub => Some(row::pointed_to(&bytes).ok_or(StorageError::Inconsistent(id.page))?),
            RowKind::Moved | RowKind::Fragment | RowKind::Root => return Err(StorageError::NoRow(id)),
        };
        let in_place = match target {
            None => self.replace(store, work, id, new).await?,
            Some(target) => self.replace(store, work, target, &row::moved(id, new)).await?,
        };
        if in_place {
            return Ok(());
        }
        let moved = self.insert(store, work, &row::moved(id, new)).await?;
        let stub = row::stub(moved);
        let home = store.pool.fetch(id.page, Use::Point).await?;
        let old = match target.filter(|target| target.page != id.page) {
            Some(target) => Some(store.pool.fetch(target.page, Use::Point).await?),
            None => None,
        };
        let pins: Vec<&Pin<'_>> = [Some(&home), old.as_ref()].into_iter().flatten().collect();
        store
            .change(Author::Transaction(work), &pins, |pages| {
                let old = pages[0].row(id.slot).ok_or(StorageError::NoRow(id))?;
                let mut new = stub.to_vec();
                new.resize(old.len(), 0);
                let mut plan = vec![(0, Change::Replace { slot: id.slot, old, new })];
                plan.extend(target.map(|target| mark(pages.len() - 1, target)));
                Ok(plan)
            })
            .await
    }

    /// Changes the bytes in a slot, if the page has room.
    async fn replace(&self, store: &Store, work: &mut Work, at: RowId, new: &[u8]) -> Result<bool, StorageError> {
        let pin = store.pool.fetch(at.page, Use::Point).await?;
        for purged in [false, true] {
            let done = Cell::new(false);
            store
                .change(Author::Transaction(work), &[&pin], |pages| {
                    let old = pages[0].row(at.slot).ok_or(StorageError::NoRow(at))?;
                    let mut new = new.to_vec();
                    new.resize(new.len().max(old.len()), 0);
                    done.set(new.len() - old.len() <= pages[0].free());
                    let change = Change::Replace { slot: at.slot, old, new };
                    Ok(if done.get() { vec![(0, change)] } else { Plan::new() })
                })
                .await?;
            if done.get() {
                return Ok(true);
            }
            if purged || !self.purge(store, &pin).await? {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

fn mark(place: usize, row: RowId) -> (usize, Change) {
    (place, Change::Mark { slot: row.slot, ghost: true })
}

/// Takes a slot for a transaction.
fn take(store: &Store, id: TransactionId, row: RowId) -> bool {
    *lock(&store.locks).entry(row).or_insert(id) == id
}

/// Whether a row was deleted by a transaction that has happened.
fn is_gone(store: &Store, page: Page<'_>, id: RowId) -> bool {
    let Some((kind, true)) = row_in(page, id.slot) else { return false };
    // A row that was moved belongs to whoever has its stub.
    let home = if kind == RowKind::Moved { page.row(id.slot).and_then(|row| row::pointed_to(&row)) } else { None };
    !store.is_locked(id) && home.is_none_or(|home| !store.is_locked(home))
}
