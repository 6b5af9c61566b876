//! What is found in a vault when it is opened: the live records, and whether all that must be there is.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use dyad_backend::Device;
use dyad_backend::device::{DeviceError, Io, SubmitError};
use dyad_backend::format::{Block, FormatError, GroupId, Region};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FrameIndex, FramePool};
use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{KeyedLocks, Signal};

use super::ledger::Ledger;
use super::marks::MarkTable;
use super::record::{CELL_BLOCKS, CELLS_MIN, Head, Marks, WINDOW, WINDOW_RECORDS};
use super::{FULL_LOOK_AGAIN, Inner, KEEPERS_MAX, Keeper, KeeperState, Vault, VaultError};
use crate::address::Epoch;

/// What a vault had in it when it was opened.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The live records, oldest first.
    pub records: Vec<Head>,
    /// The marks of the newest record.
    pub marks: Marks,
    /// Starts of openings, and the number after the newest record: what is missing in the window before one of them was never durable.
    ends: BTreeSet<u64>,
}

impl Found {
    /// Whether the record may be missing or torn: it was under way when its opening ended.
    fn may_miss(&self, sequence: u64) -> bool {
        self.ends.range(sequence + 1..).next().is_some_and(|end| end - sequence <= WINDOW)
    }
}

impl<D: Device> Vault<D> {
    /// Opens the vault of `group` in the same region of each of `members`, for the home of `epoch`, after fencing. `memory` has a frame for each
    /// record that may be under way, [`WINDOW`] of them.
    ///
    /// # Errors
    /// [`VaultError`]: nothing was changed.
    pub async fn open(
        handle: &Handle,
        group: GroupId,
        epoch: Epoch,
        members: Vec<(D, Region)>,
        memory: Memory,
    ) -> Result<(Self, Found), VaultError> {
        let region = members.first().ok_or(VaultError::Keepers)?.1;
        if members.len() > KEEPERS_MAX || members.iter().any(|(_, other)| *other != region) {
            return Err(VaultError::Keepers);
        }
        let cells = region.blocks.0 / CELL_BLOCKS;
        if cells < CELLS_MIN {
            return Err(VaultError::TooSmall);
        }
        let heads = FramePool::new(memory);
        for (device, _) in &members {
            let takes = device.info().transfer_blocks_max.0 >= CELL_BLOCKS
                && device.map(heads.memory()) != Err(SubmitError::Invalid);
            if !takes || (heads.free_count() as u64) < WINDOW {
                return Err(VaultError::Unfit);
            }
        }
        let keeper = |(device, _): (D, Region)| {
            let id = device.info().id;
            Keeper { device, id, state: Cell::new(KeeperState::Live) }
        };
        let keepers: Vec<_> = members.into_iter().map(keeper).collect();
        let found = scan(handle, group, region, cells, &keepers, &heads).await?;
        let next = found.ends.last().copied().unwrap_or(1);
        let oldest = found.records.first().map_or(next, |record| record.sequence);
        let mut ledger = Ledger::new(cells, oldest, next);
        for record in &found.records {
            let blocks = record.blocks.iter().enumerate();
            let versions = blocks.filter_map(|(index, block)| Some((index, block.as_ref()?.version)));
            ledger.add(record.sequence, record.track, versions);
        }
        let inner = Inner {
            handle: handle.clone(),
            group,
            epoch,
            region,
            cells,
            base: next,
            keepers,
            heads,
            turns: KeyedLocks::new(WINDOW_RECORDS),
            pages: RefCell::new((0..WINDOW_RECORDS).map(|_| Box::default()).collect()),
            ledger: RefCell::new(ledger),
            marks: RefCell::new(MarkTable::new(found.marks.clone())),
            changed: Signal::new(),
            closed: Cell::new(None),
            counters: Cell::default(),
        };
        Ok((Self { inner: Rc::new(inner) }, found))
    }

    /// Fills `frame` of `pool` with the `nth` block of a record's contents.
    ///
    /// # Errors
    /// [`VaultError::Damaged`]: no keeper has it. [`VaultError::Fenced`].
    pub async fn fetch(
        &self,
        record: &Head,
        nth: usize,
        pool: &FramePool,
        frame: FrameIndex,
    ) -> Result<(), VaultError> {
        let inner = &*self.inner;
        let entry = record.blocks.iter().flatten().nth(nth).expect("a block that the record has");
        let lba = Lba(inner.region.start.0 + record.sequence % inner.cells * CELL_BLOCKS + 1 + nth as u64);
        for keeper in self.keepers_in(KeeperState::Live) {
            let read = read_block(&inner.handle, &keeper.device, lba, pool, frame).await;
            if read.is_ok() && pool.crc(frame) == entry.crc {
                return Ok(());
            }
        }
        Err(VaultError::Damaged(record.sequence))
    }

    /// Checks that all contents are there, and leaves out records that were under way when an opening ended and are torn.
    ///
    /// # Errors
    /// [`VaultError::Damaged`].
    pub async fn check_contents(&self, found: &mut Found) -> Result<(), VaultError> {
        let pool = &self.inner.heads;
        let frame = pool.try_take(1).expect("nothing is written before the contents were checked");
        let mut whole = Vec::with_capacity(found.records.len());
        for record in std::mem::take(&mut found.records) {
            let mut result = Ok(());
            for nth in 0..record.count() {
                result = result.and(self.fetch(&record, nth, pool, frame.frames()[0]).await);
            }
            match result {
                Ok(()) => whole.push(record),
                Err(VaultError::Damaged(_)) if found.may_miss(record.sequence) => {}
                Err(error) => return Err(error),
            }
        }
        found.records = whole;
        Ok(())
    }
}

/// Reads the heads of all cells from all keepers.
async fn scan<D: Device>(
    handle: &Handle,
    group: GroupId,
    region: Region,
    cells: u64,
    keepers: &[Keeper<D>],
    pool: &FramePool,
) -> Result<Found, VaultError> {
    let mut heads: BTreeMap<u64, Head> = BTreeMap::new();
    let frames = pool.try_take(1).expect("frames for the heads");
    let mut readable = false;
    for keeper in keepers {
        for cell in 0..cells {
            let lba = Lba(region.start.0 + cell * CELL_BLOCKS);
            match read_block(handle, &keeper.device, lba, pool, frames.frames()[0]).await {
                Ok(()) => readable = true,
                Err(DeviceError::Gone) => break,
                Err(_) => continue,
            }
            let mut block: Block = [0; BLOCK_BYTES];
            frames.read(0, &mut block);
            match Head::decode(&block, group, cell, cells) {
                Ok(head) => {
                    let known = heads.get(&head.sequence);
                    if known.is_none_or(|known| known.epoch < head.epoch) {
                        heads.insert(head.sequence, head);
                    }
                }
                Err(FormatError::Version(version)) => return Err(VaultError::Version(version)),
                // Blank, torn, or of a group that had these devices before.
                Err(_) => {}
            }
        }
    }
    if !readable {
        return Err(VaultError::Lost);
    }
    let oldest = heads.values().map(|head| head.oldest).max().unwrap_or(0);
    let newest = heads.keys().next_back().copied().unwrap_or(0);
    let mut found = Found { ends: heads.values().map(|head| head.base).collect(), ..Found::default() };
    found.ends.insert(newest + 1);
    if let Some(head) = heads.get(&newest) {
        found.marks = head.marks.clone();
    }
    // Numbers begin with 1.
    for sequence in oldest.max(1)..=newest {
        match heads.remove(&sequence) {
            Some(head) if head.count() > 0 => found.records.push(head),
            Some(_) => {}
            None if found.may_miss(sequence) => {}
            None => return Err(VaultError::Damaged(sequence)),
        }
    }
    Ok(found)
}

async fn read_block<D: Device>(
    handle: &Handle,
    device: &D,
    lba: Lba,
    pool: &FramePool,
    frame: FrameIndex,
) -> Result<(), DeviceError> {
    let segments = [pool.segment(frame)];
    loop {
        match device.submit(Io::Read { lba, segments: &segments }) {
            Ok(completion) => return completion.await,
            Err(SubmitError::Full) => handle.sleep(FULL_LOOK_AGAIN).await,
            Err(SubmitError::Gone) => return Err(DeviceError::Gone),
            Err(SubmitError::Invalid) => return Err(DeviceError::Rejected),
        }
    }
}
