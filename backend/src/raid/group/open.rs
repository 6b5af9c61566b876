//! Making a group, and opening it: superblocks, guard table, intents, in this order, before anything else is done.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::sync::{KeyedLocks, Permits, Signal};

use super::health::Watch;
use super::log::Log;
use super::members::{Member, MemberState, Op};
use super::pool::Pool;
use super::record::{done, write_superblock};
use super::sections::Sections;
use super::stripe::{Area, Runs, area_chunks};
use super::table::Table;
use super::{AREAS, BLOCK_LEN, Group, GroupError, Inner, MemorySource, TAIL_BLOCKS, joined};
use crate::device::{Device, DeviceError, DeviceId, DeviceInfo, Io};
use crate::format::MemberState as Recorded;
use crate::format::guard::{self, GUARDS, Guard};
use crate::format::{
    Assembly, AssemblyError, Block, Candidate, Expected, GroupId, Layout, LayoutError, MemberRecord, Superblock,
    assemble,
};
use crate::raid::geometry::{CHUNK_BLOCKS, Geometry, GeometryError, Level};

/// Blocks that are made zeros by one command: few enough that a slow device ends it long before the driver would abort it.
pub(super) const ZEROES_BLOCKS: u64 = 1 << 11;

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
    /// Without the failed ones it would not have all its data.
    #[error("too many of the devices have failed")]
    TooFew,
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
    /// The group has been written in a later epoch (PROTOCOLS 2.3): the registry was restored, or belongs to another array.
    #[error(
        "the group was written in epoch {found}, which is later than {own}: the registry is older than the devices"
    )]
    Epoch {
        /// In the superblocks.
        found: u64,
        /// Of whoever opens it.
        own: u64,
    },
    /// It could not be brought to a state in which it may be used.
    #[error("the group cannot be replayed: {0}")]
    Group(#[from] GroupError),
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
    create_in(&anonymous(), devices, level, group, epoch, vault, &[]).await
}

/// [`create`], with memory that the devices reach, and without the devices that are on record as failed: the group begins degraded.
///
/// # Errors
/// [`CreateError`].
pub async fn create_in<D: Device>(
    source: &MemorySource,
    devices: &[D],
    level: Level,
    group: GroupId,
    epoch: u64,
    vault: BlockCount,
    out: &[DeviceId],
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
    let state = |id: &DeviceId| if out.contains(id) { Recorded::Out } else { Recorded::InSync };
    if !geometry.survives(|m| out.contains(&infos[m].id)) {
        return Err(CreateError::TooFew);
    }
    let members = infos.iter().map(|info| MemberRecord { device: info.id, state: state(&info.id) }).collect();
    let used = |info: &DeviceInfo| !out.contains(&info.id);
    let superblock = Superblock { group, sequence: 1, epoch, geometry, layout, members };
    for (device, info) in devices.iter().zip(&infos).filter(|(_, info)| used(info)) {
        let failed = |error| CreateError::Device(info.id, error);
        let end = layout.last.0 + 1;
        for from in (0..end).step_by(1 << 11) {
            let blocks = BlockCount(ZEROES_BLOCKS.min(end - from));
            done(device, Io::WriteZeroes { lba: Lba(from), blocks }).await.map_err(failed)?;
        }
        done(device, Io::Flush).await.map_err(failed)?;
    }
    let memory = source(BLOCK_BYTES);
    for (member, (device, info)) in devices.iter().zip(&infos).enumerate().filter(|(_, (_, info))| used(info)) {
        let failed = |error| CreateError::Device(info.id, error);
        write_superblock(device, &memory, &superblock, member).await.map_err(failed)?;
    }
    Ok(superblock)
}

/// For devices in this process.
fn anonymous() -> MemorySource {
    Rc::new(Memory::anonymous)
}

async fn read_block<D: Device>(device: &D, memory: &Memory, lba: Lba) -> Option<Block> {
    let segments = [memory.segment(0, BLOCK_LEN).expect("a block")];
    done(device, Io::Read { lba, segments: &segments }).await.ok()?;
    let mut block = [0; BLOCK_BYTES];
    memory.read(0, &mut block).expect("a block");
    Some(block)
}

impl<D: Device> Group<D> {
    /// Opens the group that `expected` names, as its home in `epoch`. The devices are fenced and the group's alone. `out` are the devices that the caller
    /// has on record as failed; others that are not used are `Failing` until [`Self::recorded`]. Interrupted writes are brought to an end.
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
        Self::open_in(&anonymous(), handle, devices, expected, epoch, out).await
    }

    /// [`Self::open`], with memory that the devices reach.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_in(
        source: &MemorySource,
        handle: Handle,
        devices: Vec<D>,
        expected: Expected,
        epoch: u64,
        out: &[DeviceId],
    ) -> Result<Self, OpenError> {
        let memory = source(BLOCK_BYTES);
        let copies = read_superblocks(&devices, &memory, expected.group).await;
        let candidates = devices.iter().zip(&copies).map(|(device, [first, last])| {
            let info = device.info();
            Candidate { device: info.id, blocks: info.blocks, copies: [first.as_deref(), last.as_deref()] }
        });
        let candidates: Vec<_> = candidates.collect();
        let assembly = assemble(&candidates, expected)?;
        let found = assembly.superblock.epoch;
        if found > epoch {
            return Err(OpenError::Epoch { found, own: epoch });
        }
        let uneven = assembly.uneven;
        let group = Self::assembled(source, handle, &devices, assembly, epoch, out)?;
        if uneven {
            // Else the next change, should it be interrupted too, would leave members two changes behind, which are believed stale.
            let newest = group.0.superblock.borrow().clone();
            group.write_superblocks(&newest).await?;
        }
        group.load_tables().await?;
        let next = group.replay_log().await?;
        group.settle().await?;
        // Who is out is on record before the intent is gone that could bring him up to date.
        group.put_on_record().await?;
        group.begin_log(next).await?;
        Ok(group)
    }

    fn assembled(
        source: &MemorySource,
        handle: Handle,
        devices: &[D],
        assembly: Assembly,
        epoch: u64,
        out: &[DeviceId],
    ) -> Result<Self, OpenError> {
        let superblock = assembly.superblock;
        let (geometry, layout) = (superblock.geometry, superblock.layout);
        let n = geometry.members();
        let area_blocks = area_chunks(n) * CHUNK_BLOCKS;
        let blocks = AREAS as u64 * area_blocks + TAIL_BLOCKS;
        let work = source(usize::try_from(BlockCount(blocks).bytes()).expect("a few MiB"));
        let member = |m: usize| {
            let record = superblock.members[m];
            let device = assembly.members[m].map(|at| devices[at].clone());
            let mapped = device.as_ref().is_some_and(|device| device.map(&work).is_ok());
            let (state, rebuilt) = match record.state {
                _ if out.contains(&record.device) => (MemberState::Out, 0),
                Recorded::InSync if mapped => (MemberState::Live, 0),
                Recorded::Rebuilding { done } if mapped => (MemberState::Rebuilding, done),
                // The home before us may have died between the superblocks and the caller's record.
                Recorded::InSync | Recorded::Rebuilding { .. } | Recorded::Out => (MemberState::Failing, 0),
            };
            Member::new(device, record.device, state, rebuilt)
        };
        let members: Vec<_> = (0..n).map(member).collect();
        if !geometry.survives(|m| members[m].state.get() != MemberState::Live) {
            return Err(OpenError::Group(GroupError::Lost));
        }
        let watch = Watch::new(n, handle.now());
        Ok(Self(Rc::new(Inner {
            handle,
            id: superblock.group,
            epoch,
            geometry,
            layout,
            members,
            batches: Pool::new(),
            slots: Pool::new(),
            excluded: assembly.excluded,
            watch: RefCell::new(watch),
            superblock: RefCell::new(superblock),
            recorder: Permits::new(1),
            table: RefCell::new(Table::new(geometry, layout.chunks())),
            log: RefCell::new(Log::new(0, layout.intent.blocks.0, AREAS)),
            log_changed: Signal::new(),
            locks: KeyedLocks::new(4 * AREAS),
            sections: Sections::new(),
            work,
            areas: Permits::new(AREAS),
            free_areas: RefCell::new((0..AREAS).collect()),
            runs: (0..AREAS).map(|_| RefCell::new(Runs::new())).collect(),
            source: Rc::clone(source),
            memories: RefCell::new(Vec::with_capacity(8)),
            spares: RefCell::new(Vec::new()),
            ended: Cell::new(None),
            turn: Cell::new(0),
            commands: Cell::new(0),
            counters: Cell::default(),
            changes: Signal::new(),
        })))
    }

    pub(super) async fn read_one(&self, member: usize, lba: Lba) -> Result<Option<Block>, GroupError> {
        let ops = [Op::read(member, lba, 1, 0)];
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

    /// Blocks that are not data, one by one where a device cannot read them together.
    pub(super) async fn read_run(
        &self,
        area: &Area<'_, D>,
        member: usize,
        lba: Lba,
        blocks: u64,
        found: &mut Vec<Option<Block>>,
    ) -> Result<(), GroupError> {
        let ops = [Op::read(member, lba, blocks, 0)];
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

    /// All guards that any member can tell, the newest copy of each table block.
    async fn load_tables(&self) -> Result<(), GroupError> {
        let tables = self.0.table.borrow().tables() as u64;
        let area = self.area().await;
        let mut found = Vec::new();
        let mut guards = Box::new([Guard::OF_ZEROS; GUARDS]);
        for member in 0..self.0.geometry.members() {
            for first in (0..tables).step_by(16) {
                let count = CHUNK_BLOCKS.min(tables - first);
                for place in guard::copies(self.0.geometry, self.0.layout, member, first) {
                    if !self.keeps_guards(place.member) {
                        continue;
                    }
                    found.clear();
                    self.read_run(&area, place.member, place.lba, count, &mut found).await?;
                    for (at, block) in (0..).zip(&found) {
                        let Some(block) = block else { continue };
                        if let Ok(sequence) = guard::decode(block, self.0.id, place.place + at, member, &mut guards) {
                            let table = usize::try_from(first + at).expect("a table in memory");
                            self.0.table.borrow_mut().load(member, table, sequence, &guards);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Both copies of all devices. Where copy 1 is, copy 0 says; where that is torn, those of the other members say; else it is the last block.
async fn read_superblocks<D: Device>(devices: &[D], memory: &Memory, group: GroupId) -> Vec<[Option<Box<Block>>; 2]> {
    let mut firsts = Vec::with_capacity(devices.len());
    for device in devices {
        let reached = device.map(memory).is_ok();
        firsts.push(if reached { read_block(device, memory, Lba(0)).await.map(Box::new) } else { None });
    }
    let decode = |block: &Option<Box<Block>>| {
        let found = Superblock::decode(block.as_deref()?, 0).ok()?.superblock;
        Some((found.group, found.layout.last))
    };
    let of_group = firsts.iter().filter_map(decode).find(|(of, _)| *of == group).map(|(_, last)| last);
    let mut copies = Vec::with_capacity(devices.len());
    for (device, first) in devices.iter().zip(firsts) {
        let blocks = device.info().blocks.0;
        let own = decode(&first).map(|(_, last)| last);
        let last = own.or(of_group).unwrap_or(Lba(blocks.saturating_sub(1)));
        let last = if last.0 < blocks { read_block(device, memory, last).await.map(Box::new) } else { None };
        copies.push([first, last]);
    }
    copies
}
