//! Making a group, and opening it: superblocks, guard table, intents, in this order, before anything else is done.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::sync::{KeyedLocks, Permits, Signal};

use super::log::Log;
use super::members::{Member, MemberState, Op, Ops};
use super::stripe::{Area, Rows, Runs, Terms, area_chunks, bit, factor};
use super::table::Table;
use super::{AREAS, BLOCK_LEN, Group, GroupError, Inner, TAIL_BLOCKS, joined, push};
use crate::device::{Device, DeviceError, DeviceId, Io, SubmitError};
use crate::format::MemberState as Recorded;
use crate::format::guard::{self, GUARDS, Guard};
use crate::format::intent::{self, Decoded, RunKind};
use crate::format::{
    Assembly, AssemblyError, Block, Candidate, Expected, GroupId, Layout, LayoutError, MemberRecord, Superblock,
    assemble,
};
use crate::parity::{Gf, Member as Part, Recipe};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry, GeometryError, Level};

/// Blocks that one Write Zeroes may name.
const ZEROES_BLOCKS: u64 = 1 << 16;

/// Why a group could not be made. Devices may have been written to, but none has a superblock of the group on all of its members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// So many devices cannot make the level.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The devices are too small.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// One device twice.
    #[error("{0:?} is there twice")]
    SameDevice(DeviceId),
    /// They would waste space, and hide a mistake.
    #[error("{0:?} has another size than the others")]
    MixedSizes(DeviceId),
    /// A chunk must be one command.
    #[error("{0:?} takes less than a chunk at once")]
    ShortTransfers(DeviceId),
    /// A device failed.
    #[error("{0:?} failed: {1}")]
    Device(DeviceId, DeviceError),
}

/// Why a group could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The devices that are there do not make it.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// It could not be brought to a state in which it may be used.
    #[error("the group cannot be replayed: {0}")]
    Group(#[from] GroupError),
}

async fn done<D: Device>(device: &D, io: Io<'_>) -> Result<(), DeviceError> {
    let completion = device.submit(io).map_err(|error| match error {
        SubmitError::Gone => DeviceError::Gone,
        SubmitError::Full | SubmitError::Invalid => DeviceError::Rejected,
    })?;
    completion.await
}

/// Makes a group of devices whose contents nobody needs: everything becomes zeros.
///
/// # Errors
/// [`CreateError`].
pub async fn create<D: Device>(
    devices: &[D],
    level: Level,
    group: GroupId,
    epoch: u64,
    vault: BlockCount,
) -> Result<Superblock, CreateError> {
    let geometry = Geometry::new(level, devices.len())?;
    let infos: Vec<_> = devices.iter().map(Device::info).collect();
    for (at, info) in infos.iter().enumerate() {
        if infos[..at].iter().any(|other| other.id == info.id) {
            return Err(CreateError::SameDevice(info.id));
        }
        if info.blocks != infos[0].blocks {
            return Err(CreateError::MixedSizes(info.id));
        }
        if info.transfer_blocks_max.0 < CHUNK_BLOCKS {
            return Err(CreateError::ShortTransfers(info.id));
        }
    }
    let layout = Layout::new(geometry, infos[0].blocks, vault)?;
    let members = infos.iter().map(|info| MemberRecord { device: info.id, state: Recorded::InSync }).collect();
    let superblock = Superblock { group, sequence: 1, epoch, geometry, layout, members };
    for (device, info) in devices.iter().zip(&infos) {
        let failed = |error| CreateError::Device(info.id, error);
        let end = layout.last.0 + 1;
        for from in (0..end).step_by(1 << 16) {
            let blocks = BlockCount(ZEROES_BLOCKS.min(end - from));
            done(device, Io::WriteZeroes { lba: Lba(from), blocks }).await.map_err(failed)?;
        }
        done(device, Io::Flush).await.map_err(failed)?;
    }
    let memory = Memory::anonymous(BLOCK_BYTES);
    for (member, (device, info)) in devices.iter().zip(&infos).enumerate() {
        let failed = |error| CreateError::Device(info.id, error);
        device.map(&memory).map_err(|_| failed(DeviceError::Rejected))?;
        write_superblock(device, &memory, &superblock, member).await.map_err(failed)?;
    }
    Ok(superblock)
}

async fn write_superblock<D: Device>(
    device: &D,
    memory: &Memory,
    superblock: &Superblock,
    member: usize,
) -> Result<(), DeviceError> {
    let segments = [memory.segment(0, BLOCK_LEN).expect("a block")];
    for (copy, lba) in (0..).zip(superblock.places()) {
        memory.write(0, &superblock.encode(member, copy)).expect("a block");
        done(device, Io::Write { lba, segments: &segments, fua: true }).await?;
    }
    Ok(())
}

async fn read_block<D: Device>(device: &D, memory: &Memory, lba: Lba) -> Option<Block> {
    let segments = [memory.segment(0, BLOCK_LEN).expect("a block")];
    done(device, Io::Read { lba, segments: &segments }).await.ok()?;
    let mut block = [0; BLOCK_BYTES];
    memory.read(0, &mut block).expect("a block");
    Some(block)
}

/// A record with its payload.
struct Whole {
    record: Decoded,
    payload: Vec<Block>,
}

impl<D: Device> Group<D> {
    /// Opens the group that `expected` names, as its home in `epoch`. The devices are fenced and the group's alone. `out` are the devices that are on
    /// record as failed. Interrupted writes are brought to an end.
    ///
    /// # Errors
    /// [`OpenError`]: the group may not be used.
    pub async fn open(
        handle: Handle,
        devices: Vec<D>,
        expected: Expected,
        epoch: u64,
        out: &[DeviceId],
    ) -> Result<Self, OpenError> {
        let memory = Memory::anonymous(BLOCK_BYTES);
        let mut copies: Vec<[Option<Box<Block>>; 2]> = Vec::with_capacity(devices.len());
        for device in &devices {
            copies.push(match device.map(&memory) {
                Ok(()) => read_superblocks(device, &memory).await,
                Err(_) => [None, None],
            });
        }
        let candidates = devices.iter().zip(&copies).map(|(device, [first, last])| {
            let info = device.info();
            Candidate { device: info.id, blocks: info.blocks, copies: [first.as_deref(), last.as_deref()] }
        });
        let candidates: Vec<_> = candidates.collect();
        let assembly = assemble(&candidates, expected)?;
        let group = Self::assembled(handle, &devices, &assembly, epoch, out)?;
        let next = group.load_tables_and_replay().await?;
        group.settle_replay(next).await?;
        group.write_superblocks(&assembly.superblock, &memory).await?;
        Ok(group)
    }

    fn assembled(
        handle: Handle,
        devices: &[D],
        assembly: &Assembly,
        epoch: u64,
        out: &[DeviceId],
    ) -> Result<Self, OpenError> {
        let superblock = &assembly.superblock;
        let (geometry, layout) = (superblock.geometry, superblock.layout);
        let n = geometry.members();
        let area_blocks = area_chunks(n) * CHUNK_BLOCKS;
        let blocks = AREAS as u64 * area_blocks + TAIL_BLOCKS;
        let work = Memory::anonymous(usize::try_from(BlockCount(blocks).bytes()).expect("a few MiB"));
        let member = |m: usize| {
            let record = superblock.members[m];
            let device = assembly.members[m].map(|at| devices[at].clone());
            let usable = record.state == Recorded::InSync && !out.contains(&record.device);
            let mapped = device.as_ref().is_some_and(|device| device.map(&work).is_ok());
            let state = if usable && mapped { MemberState::Live } else { MemberState::Out };
            let room = device.as_ref().map_or(0, |device| usize::from(device.info().queue_depth));
            Member { device, id: record.device, state: Cell::new(state), room: Permits::new(room) }
        };
        let members: Vec<_> = (0..n).map(member).collect();
        let lost = !geometry.survives(|m| members[m].state.get() != MemberState::Live);
        if lost {
            return Err(OpenError::Group(GroupError::Lost));
        }
        Ok(Self(Rc::new(Inner {
            handle,
            id: superblock.group,
            epoch,
            geometry,
            layout,
            members,
            table: RefCell::new(Table::new(geometry, layout.chunks())),
            log: RefCell::new(Log::new(0, layout.intent.blocks.0, AREAS)),
            log_changed: Signal::new(),
            locks: KeyedLocks::new(4 * AREAS),
            work,
            areas: Permits::new(AREAS),
            free_areas: RefCell::new((0..AREAS).collect()),
            runs: (0..AREAS).map(|_| RefCell::new(Runs::new())).collect(),
            memories: RefCell::new(Vec::with_capacity(8)),
            lost: Cell::new(lost),
            turn: Cell::new(0),
            aborted: Cell::new(0),
            counters: Cell::default(),
            changes: Signal::new(),
        })))
    }

    /// Returns the first sequence that is free.
    async fn load_tables_and_replay(&self) -> Result<u64, GroupError> {
        self.load_tables().await?;
        let (records, next) = self.read_log().await?;
        let mut stripes: BTreeMap<u64, Vec<&Whole>> = BTreeMap::new();
        for whole in &records {
            for run in &whole.record.runs {
                let touching = stripes.entry(run.stripe).or_default();
                if touching.last().is_none_or(|last| last.record.sequence != whole.record.sequence) {
                    touching.push(whole);
                }
            }
        }
        let area = self.area().await;
        for (stripe, records) in stripes {
            self.replay(&area, stripe, &records).await?;
        }
        self.count(|c| c.replayed += records.len() as u64);
        Ok(next)
    }

    /// What was replayed is on media, and so are its guards: no intent is needed any more.
    async fn settle_replay(&self, next: u64) -> Result<(), GroupError> {
        self.settle().await?;
        *self.0.log.borrow_mut() = Log::new(next, self.0.layout.intent.blocks.0, AREAS);
        // An empty record says so: else the next life would take old blocks for what an interrupted write left.
        let empty = self.intend(&RefCell::new(Runs::new()), &[]).await?;
        self.end(empty);
        Ok(())
    }

    /// Puts on record who is a member now, if that has changed.
    async fn write_superblocks(&self, old: &Superblock, memory: &Memory) -> Result<(), GroupError> {
        let mut newer = old.clone();
        newer.epoch = self.0.epoch;
        for (m, record) in newer.members.iter_mut().enumerate() {
            if record.state == Recorded::InSync && !self.is_live(m) {
                record.state = Recorded::Out;
            }
        }
        newer.sequence += 1;
        for m in self.live() {
            let device = self.0.members[m].device.as_ref().expect("live members have devices");
            match write_superblock(device, memory, &newer, m).await {
                Ok(()) => {}
                Err(DeviceError::ReservationConflict) => return Err(GroupError::Fenced),
                Err(error) => self.fail(m, error),
            }
        }
        if self.0.lost.get() { Err(GroupError::Lost) } else { Ok(()) }
    }

    async fn read_one(&self, member: usize, lba: Lba) -> Result<Option<Block>, GroupError> {
        let mut ops = Ops::new();
        push(&mut ops, Op { member, lba, write: false, blocks: 1, from: 0 });
        let outcome = self.run(&ops, |_| joined([self.tail(0)].into_iter())).await[0];
        if !self.judge_read(member, outcome)? {
            return Ok(None);
        }
        Ok(Some(self.bytes(self.tail(0))))
    }

    fn bytes(&self, place: Segment) -> Block {
        let mut block = [0; BLOCK_BYTES];
        self.0.work.read(place.offset, &mut block).expect("our own memory");
        block
    }

    /// Blocks of the log, one by one where a device cannot read them together.
    async fn read_run(
        &self,
        area: &Area<'_, D>,
        member: usize,
        place: u64,
        blocks: u64,
        found: &mut Vec<Option<Block>>,
    ) -> Result<(), GroupError> {
        let lba = Lba(self.0.layout.intent.start.0 + place);
        let mut ops = Ops::new();
        push(&mut ops, Op { member, lba, write: false, blocks, from: 0 });
        let outcome = self.run(&ops, |_| joined((0..blocks).map(|row| area.held(0, row)))).await[0];
        let together = self.judge_read(member, outcome)?;
        for at in 0..blocks {
            found.push(match together {
                true => Some(self.bytes(area.held(0, at))),
                false => self.read_one(member, Lba(lba.0 + at)).await?,
            });
        }
        Ok(())
    }

    async fn load_tables(&self) -> Result<(), GroupError> {
        let tables = self.0.table.borrow().tables();
        for member in 0..self.0.geometry.members() {
            for table in 0..tables {
                let mut best: Option<(u64, Box<[Guard; GUARDS]>)> = None;
                let mut guards = Box::new([Guard::OF_ZEROS; GUARDS]);
                for place in guard::copies(self.0.geometry, self.0.layout, member, table as u64) {
                    if !self.is_live(place.member) {
                        continue;
                    }
                    let Some(block) = self.read_one(place.member, place.lba).await? else { continue };
                    if let Ok(sequence) = guard::decode(&block, self.0.id, place.place, member, &mut guards)
                        && best.as_ref().is_none_or(|(newest, _)| sequence > *newest)
                    {
                        best = Some((sequence, guards.clone()));
                    }
                }
                let mut all = self.0.table.borrow_mut();
                match best {
                    Some((sequence, guards)) => all.load(member, table, sequence, &guards),
                    None => all.forget(member, table),
                }
            }
        }
        Ok(())
    }

    /// The records that must be replayed, oldest first, and the first sequence that is free.
    async fn read_log(&self) -> Result<(Vec<Whole>, u64), GroupError> {
        let area = self.area().await;
        let ring = self.0.layout.intent.blocks.0;
        let (mut found, mut next) = (Vec::new(), 0);
        for member in 0..self.0.geometry.members() {
            if !self.is_live(member) {
                continue;
            }
            let mut blocks: Vec<Option<Block>> = Vec::new();
            for place in (0..ring).step_by(16) {
                self.read_run(&area, member, place, CHUNK_BLOCKS.min(ring - place), &mut blocks).await?;
            }
            for (place, block) in (0..).zip(&blocks) {
                let Some(block) = block else { continue };
                let chunks = self.0.layout.chunks();
                let Ok(record) = intent::decode(block, self.0.id, place, ring, self.0.geometry, chunks) else {
                    continue;
                };
                let behind = blocks.iter().skip(usize::try_from(place).expect("a ring in memory") + 1);
                let payload: Vec<Block> = record
                    .payload()
                    .zip(behind)
                    .map_while(|(guard, block)| block.filter(|block| Guard::of(block) == guard))
                    .collect();
                next = next.max(record.sequence + 1 + record.payload().count() as u64);
                if payload.len() == record.payload().count() {
                    found.push(Whole { record, payload });
                }
            }
        }
        let live = intent::live(found.iter().map(|whole| whole.record.clone()).collect());
        found.sort_by_key(|whole| whole.record.sequence);
        found.dedup_by_key(|whole| whole.record.sequence);
        let oldest = live.first().map_or(0, |record| record.sequence);
        found.retain(|whole| whole.record.sequence >= oldest);
        Ok((found, next))
    }

    /// Brings one stripe to where every block is old or new, and parity or mirrors agree. Writes of one stripe follow one another, so all but the
    /// last one were done; of them only the guards may be missing.
    async fn replay(&self, area: &Area<'_, D>, stripe: u64, records: &[&Whole]) -> Result<(), GroupError> {
        let n = self.0.geometry.members();
        let (last, done) = records.split_last().expect("a stripe that a record names");
        for run in done.iter().flat_map(|whole| &whole.record.runs) {
            if run.kind == RunKind::Written && run.stripe == stripe {
                for (row, guard) in (run.first as u64..).zip(&run.guards) {
                    self.0.table.borrow_mut().set(run.member, stripe, row, *guard);
                }
            }
        }
        let mut missing: Rows = [u16::MAX; 18];
        self.read_members(area, stripe, 0..CHUNK_BLOCKS, &mut missing).await?;
        for row in 0..CHUNK_BLOCKS {
            if !(0..n).any(|m| last.writes(stripe, m, row).is_some()) {
                continue;
            }
            for (member, missing) in missing.iter_mut().enumerate().take(n) {
                if *missing & bit(row) == 0 && !self.accept(area, stripe, member, row, last) {
                    *missing |= bit(row);
                    self.count(|c| c.mismatches += 1);
                }
            }
            let mut wrong: heapless::Vec<usize, 18> =
                (0..n).filter(|m| self.is_live(*m) && missing[*m] & bit(row) != 0).collect();
            let bad = wrong.clone();
            if self.parities().is_empty() {
                self.equalise_mirrors(area, stripe, row, last, &missing, &mut wrong);
            } else {
                self.bring_forward(area, stripe, row, last, &missing, &mut wrong);
                self.make_again(area, stripe, row, last, &mut missing);
                self.give_up(stripe, row, last, &missing);
                wrong.retain(|m| missing[*m] & bit(row) == 0);
                self.make_parity_again(area, stripe, row, &missing, &mut wrong);
            }
            wrong.sort_unstable();
            for member in wrong {
                let mut ops = Ops::new();
                push(&mut ops, Op { member, lba: self.lba(stripe, row), write: true, blocks: 1, from: row });
                let outcomes = self.run(&ops, |_| joined([area.held(member, row)].into_iter())).await;
                self.count(|c| c.repaired += u64::from(bad.contains(&member)));
                match self.judge_writes(&ops, &outcomes) {
                    Err(error @ (GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) => return Err(error),
                    Ok(()) | Err(GroupError::Media | GroupError::Unrecorded) => {}
                }
            }
        }
        Ok(())
    }

    /// True if what was read of a block is one of the things that it may be; then that is its guard.
    fn accept(&self, area: &Area<'_, D>, stripe: u64, member: usize, row: u64, last: &Whole) -> bool {
        let found = self.guard_of(area.held(member, row));
        let mut table = self.0.table.borrow_mut();
        let old = table.get(member, stripe, row);
        let good = old.is_none_or(|old| old == found) || last.writes(stripe, member, row) == Some(found);
        if good {
            table.set(member, stripe, row, found);
        }
        good
    }

    fn equalise_mirrors(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        last: &Whole,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        wrong.clear();
        for data in 0..self.0.geometry.data() {
            let part = Part::Data(data);
            let good = |m: &usize| missing[*m] & bit(row) == 0;
            let new = |m: &usize| last.writes(stripe, *m, row) == Some(self.guard_of(area.held(*m, row)));
            let holders = || self.0.geometry.holders(stripe, part).filter(good);
            // The new bytes, if any leg has them: an old one may have lost a write that had ended.
            let Some(source) = holders().find(new).or_else(|| holders().next()) else { continue };
            let guard = self.guard_of(area.held(source, row));
            for leg in self.0.geometry.holders(stripe, part).filter(|leg| *leg != source) {
                let same = missing[leg] & bit(row) == 0 && self.guard_of(area.held(leg, row)) == guard;
                if !same && self.is_live(leg) {
                    self.copy(area.held(source, row), area.held(leg, row));
                    assert!(wrong.push(leg).is_ok(), "at most all members");
                }
                self.0.table.borrow_mut().set(leg, stripe, row, guard);
            }
        }
    }

    /// One block of a row is old, and with the others it would be new: the write had ended, and the device lost it.
    fn bring_forward(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        last: &Whole,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        let geometry = self.0.geometry;
        let old = |m: &usize| {
            let new = last.writes(stripe, *m, row);
            new.is_some_and(|new| missing[*m] & bit(row) == 0 && new != self.guard_of(area.held(*m, row)))
        };
        let mut olds = (0..geometry.members()).filter(old);
        let (Some(member), None) = (olds.next(), olds.next()) else { return };
        let Some(recipe) = Recipe::new(geometry.data(), self.parities().end, geometry.role(stripe, member), None)
        else {
            return;
        };
        let mut terms = Terms::new();
        for m in (0..geometry.members()).filter(|m| *m != member) {
            let factor = recipe.factor(geometry.role(stripe, m));
            if factor != Gf::ZERO && missing[m] & bit(row) != 0 {
                return;
            }
            assert!(terms.push((area.held(m, row), [factor, Gf::ZERO])).is_ok(), "at most all members");
        }
        let made = area.parity(0, row);
        self.sum(&[made], &terms);
        let guard = self.guard_of(made);
        if last.writes(stripe, member, row) == Some(guard) {
            self.copy(made, area.held(member, row));
            self.0.table.borrow_mut().set(member, stripe, row, guard);
            assert!(wrong.push(member).is_ok(), "at most all members");
        }
    }

    /// Makes missing data of a row: with partial parity what a write left alone, else with parity if that gives something that it may be.
    fn make_again(&self, area: &Area<'_, D>, stripe: u64, row: u64, last: &Whole, missing: &mut Rows) {
        let geometry = self.0.geometry;
        let lacks = |missing: &Rows, m: usize| missing[m] & bit(row) != 0;
        let data_of = |m: usize| match geometry.role(stripe, m) {
            Part::Data(data) => Some(data),
            Part::P | Part::Q => None,
        };
        // None: the parity on the devices, of all data.
        for source in [Some(last), None] {
            let covered =
                |m: usize| data_of(m).is_some() && source.is_none_or(|whole| whole.writes(stripe, m, row).is_none());
            let lost: heapless::Vec<usize, 18> =
                (0..geometry.members()).filter(|m| covered(*m) && lacks(missing, *m)).collect();
            let mut parity: heapless::Vec<(Part, Segment), 2> = heapless::Vec::new();
            for k in self.parities() {
                let part = if k == 0 { Part::P } else { Part::Q };
                let holder = geometry.holders(stripe, part).next().expect("parity has a holder");
                let place = match source {
                    Some(whole) => whole.partial(stripe, holder, row).map(|block| {
                        self.0.work.write(area.partial(k, row).offset, block).expect("our own memory");
                        area.partial(k, row)
                    }),
                    None => (!lacks(missing, holder)).then(|| area.held(holder, row)),
                };
                if let Some(place) = place {
                    assert!(parity.push((part, place)).is_ok(), "P and Q");
                }
            }
            for member in &lost {
                let part = geometry.role(stripe, *member);
                let other_data = lost.iter().find(|m| *m != member).map(|m| geometry.role(stripe, *m));
                // With one lost and both parities there are two ways; what is stale shows in the guard.
                let without = [Some(Part::P), Some(Part::Q)];
                let ways: &[Option<Part>] = match (lost.len(), parity.len()) {
                    (1, _) => &without,
                    (2, 2) => &[other_data],
                    _ => &[],
                };
                for other in ways {
                    let Some(recipe) = Recipe::new(geometry.data(), self.parities().end, part, *other)
                        .or_else(|| Recipe::new(geometry.data(), self.parities().end, part, None))
                    else {
                        continue;
                    };
                    let mut terms = Terms::new();
                    for m in (0..geometry.members()).filter(|m| covered(*m) && !lost.contains(m)) {
                        let factor = recipe.factor(geometry.role(stripe, m));
                        assert!(terms.push((area.held(m, row), [factor, Gf::ZERO])).is_ok(), "at most all members");
                    }
                    let has = |p: Part| parity.iter().any(|(part, _)| *part == p);
                    let needs = [Part::P, Part::Q].into_iter().filter(|p| recipe.factor(*p) != Gf::ZERO);
                    if !needs.clone().all(has) {
                        continue;
                    }
                    for (part, place) in &parity {
                        let added = terms.push((*place, [recipe.factor(*part), Gf::ZERO]));
                        assert!(added.is_ok(), "at most all members");
                    }
                    self.sum(&[area.held(*member, row)], &terms);
                    if self.accept(area, stripe, *member, row, last) {
                        missing[*member] &= !bit(row);
                        break;
                    }
                }
            }
        }
    }

    /// Data of the interrupted write that is neither old nor new any more: nothing but the new bytes will have its guard.
    fn give_up(&self, stripe: u64, row: u64, last: &Whole, missing: &Rows) {
        for member in (0..self.0.geometry.members()).filter(|m| missing[*m] & bit(row) != 0) {
            if let Some(guard) = last.writes(stripe, member, row) {
                self.0.table.borrow_mut().set(member, stripe, row, guard);
            }
        }
    }

    /// Makes the parity of a row of the data that there is. Data that is lost counts as zeros: its guard tells that it is not.
    fn make_parity_again(
        &self,
        area: &Area<'_, D>,
        stripe: u64,
        row: u64,
        missing: &Rows,
        wrong: &mut heapless::Vec<usize, 18>,
    ) {
        let geometry = self.0.geometry;
        let mut terms = Terms::new();
        for (member, missing) in missing.iter().enumerate().take(geometry.members()) {
            if let Part::Data(data) = geometry.role(stripe, member)
                && missing & bit(row) == 0
            {
                let added = terms.push((area.held(member, row), [factor(0, data), factor(1, data)]));
                assert!(added.is_ok(), "at most all members");
            }
        }
        let targets = [area.parity(0, row), area.parity(1, row)];
        self.sum(&targets[..self.parities().end], &terms);
        for k in self.parities() {
            let part = if k == 0 { Part::P } else { Part::Q };
            let holder = geometry.holders(stripe, part).next().expect("parity has a holder");
            let guard = self.guard_of(area.parity(k, row));
            let same = missing[holder] & bit(row) == 0 && self.guard_of(area.held(holder, row)) == guard;
            if !same && self.is_live(holder) {
                self.copy(area.parity(k, row), area.held(holder, row));
                if !wrong.contains(&holder) {
                    assert!(wrong.push(holder).is_ok(), "at most all members");
                }
            }
            self.0.table.borrow_mut().set(holder, stripe, row, guard);
        }
    }
}

impl Whole {
    /// The guard that a block will have, if this record writes it.
    fn writes(&self, stripe: u64, member: usize, row: u64) -> Option<Guard> {
        let mut runs = self.record.runs.iter().filter(|run| run.kind == RunKind::Written);
        runs.find_map(|run| run.guard(stripe, member, row))
    }

    /// The partial parity of a row.
    fn partial(&self, stripe: u64, member: usize, row: u64) -> Option<&Block> {
        let mut at = 0;
        for run in self.record.runs.iter().filter(|run| run.kind == RunKind::PartialParity) {
            if run.guard(stripe, member, row).is_some() {
                let row = usize::try_from(row).expect("below 16");
                return self.payload.get(at + row - run.first);
            }
            at += run.guards.len();
        }
        None
    }
}

async fn read_superblocks<D: Device>(device: &D, memory: &Memory) -> [Option<Box<Block>>; 2] {
    let first = read_block(device, memory, Lba(0)).await;
    let blocks = device.info().blocks.0;
    let last =
        first.as_ref().and_then(|block| Superblock::decode(block, 0).ok()).map(|found| found.superblock.layout.last);
    let last = last.unwrap_or(Lba(blocks.saturating_sub(1)));
    let last = if last.0 < blocks { read_block(device, memory, last).await } else { None };
    [first.map(Box::new), last.map(Box::new)]
}
