//! One emulated namespace: its blocks with what may go wrong with them, its volatile write cache, its reservation.
//!
//! **Volatile write cache.** The media always holds the newest bytes. For each block written since it was last durable, `undo` holds the durable bytes; power
//! loss puts back any subset of them, block by block. Flush and FUA forget them. A full cache is destaged as a whole, as a device would.

use std::collections::{BTreeMap, BTreeSet};

use dyad_nvme::command::rw;
use dyad_nvme::identify::{self, IdentifyNamespace, LbaFormat, NamespaceDescriptors};
use dyad_nvme::protection::{self, Protection};
use dyad_nvme::reservation::capabilities;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba, NamespaceId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::{Rng, SeededRng};

use super::dma::DmaMap;
use super::media::{Media, MediaError};
use super::reservation::Reservations;

/// Bytes of data in a block.
const BLOCK: u64 = BLOCK_BYTES as u64;

/// LBA formats that every namespace offers: 0 is bare, 1 has eight bytes of metadata, for protection information.
const FORMATS: [LbaFormat; 2] = [LbaFormat { metadata: 0, data_log2: 12 }, LbaFormat { metadata: 8, data_log2: 12 }];

/// How blocks are formatted.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub enum BlockFormat {
    /// 4096 bytes of data.
    #[default]
    Bare,
    /// 4096 bytes of data, eight of metadata in a separate buffer, without meaning to the device.
    Metadata,
    /// 4096 bytes of data, eight of protection information, type 1.
    Protected,
}

/// What a namespace is made with.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// Names the medium.
    pub uuid: [u8; 16],
    /// Size.
    pub blocks: BlockCount,
    /// Blocks that the volatile write cache holds; none is write-through.
    pub cache_blocks: Option<usize>,
    /// How it is formatted at first.
    pub format: BlockFormat,
}

/// How a block is bad.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BadBlock {
    /// Reads fail until it is written.
    UntilWritten,
    /// Reads and writes fail.
    Forever,
}

/// What may happen to blocks.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BlockFault {
    /// Media errors.
    Bad(BadBlock),
    /// One bit of the block changes now, unnoticed.
    Corrupt,
    /// The next write of the block is acknowledged and not done.
    LoseNextWrite,
    /// The next write of the block is done to another block.
    MisdirectNextWrite(Lba),
}

#[derive(Debug, Default)]
struct Faults {
    bad: BTreeMap<u64, BadBlock>,
    lost: BTreeSet<u64>,
    misdirected: BTreeMap<u64, u64>,
}

impl Faults {
    fn none(&self) -> bool {
        self.bad.is_empty() && self.lost.is_empty() && self.misdirected.is_empty()
    }
}

/// Data and metadata of a block.
type Contents = (Box<[u8; BLOCK_BYTES]>, [u8; Protection::BYTES]);

pub(super) struct Namespace {
    pub(super) id: NamespaceId,
    config: NamespaceConfig,
    format: BlockFormat,
    media: Box<dyn Media>,
    undo: BTreeMap<u64, Contents>,
    faults: Faults,
    pub(super) reservations: Reservations,
}

impl BlockFormat {
    /// Bytes of metadata per block.
    #[must_use]
    pub const fn metadata(self) -> u64 {
        match self {
            Self::Bare => 0,
            Self::Metadata | Self::Protected => Protection::BYTES as u64,
        }
    }
}

impl NamespaceConfig {
    /// Bytes of media that the namespace needs: all blocks' data, then all blocks' metadata.
    #[must_use]
    pub const fn media_bytes(&self) -> u64 {
        self.blocks.0 * (BLOCK + Protection::BYTES as u64)
    }
}

impl From<MediaError> for Status {
    fn from(_: MediaError) -> Self {
        Self::INTERNAL_ERROR
    }
}

impl Namespace {
    pub(super) fn new(id: NamespaceId, config: NamespaceConfig, media: Box<dyn Media>) -> Self {
        let reservations = Reservations::from_bytes(&media.kept()).unwrap_or(Reservations::new());
        let format = config.format;
        Self { id, config, format, media, undo: BTreeMap::new(), faults: Faults::default(), reservations }
    }

    pub(super) const fn volatile_cache(&self) -> bool {
        self.config.cache_blocks.is_some()
    }

    pub(super) const fn blocks(&self) -> BlockCount {
        self.config.blocks
    }

    /// Identify Namespace.
    pub(super) fn identify(&self) -> IdentifyNamespace {
        let mut formats = [LbaFormat::default(); identify::LBA_FORMATS];
        formats[..FORMATS.len()].copy_from_slice(&FORMATS);
        let BlockCount(blocks) = self.config.blocks;
        IdentifyNamespace {
            size: blocks,
            capacity: blocks,
            used: blocks,
            features: identify::NSFEAT_ATOMICITY,
            formats_max: 1,
            format: u8::from(self.format != BlockFormat::Bare),
            metadata_capabilities: 1 << 1,
            protection_capabilities: 1 | 1 << 3,
            protection: if self.format == BlockFormat::Protected { 1 | 1 << 3 } else { 0 },
            sharing: identify::NMIC_SHARED,
            reservations: capabilities::ALL,
            deallocate: identify::DLFEAT_ZEROS,
            media: u128::from(blocks) * u128::from(BLOCK),
            nguid: self.config.uuid,
            formats,
            ..IdentifyNamespace::default()
        }
    }

    /// Namespace Identification Descriptors.
    pub(super) fn descriptors(&self) -> NamespaceDescriptors {
        let uuid = Some(self.config.uuid);
        NamespaceDescriptors { eui64: None, nguid: uuid, uuid, command_set: Some(0) }
    }

    /// The first block and the number of blocks of a command, if they are there.
    #[inline]
    pub(super) fn range(&self, entry: &SubmissionEntry) -> Result<(u64, u64), Status> {
        let (Lba(first), BlockCount(count)) = (entry.lba(), entry.block_count());
        match first.checked_add(count) {
            Some(end) if end <= self.config.blocks.0 => Ok((first, count)),
            _ => Err(Status::LBA_OUT_OF_RANGE.with_do_not_retry()),
        }
    }

    /// The block may be read soon.
    #[inline]
    pub(super) fn prefetch(&self, block: u64) {
        self.media.prefetch(block.wrapping_mul(BLOCK));
    }

    /// Read.
    #[inline]
    pub(super) fn read(&mut self, entry: &SubmissionEntry, dma: &DmaMap) -> Result<(), Status> {
        let (first, count) = self.range(entry)?;
        self.check_readable(first, count)?;
        if self.format != BlockFormat::Bare {
            return self.read_with_metadata(entry, first, count, dma);
        }
        let mut at = first * BLOCK;
        let media = &mut self.media;
        dma.walk(entry, count * BLOCK, &mut |memory, offset, len| {
            media.read(at, memory, offset, len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            at += len;
            Ok(())
        })
    }

    /// Write.
    #[inline]
    pub(super) fn write(&mut self, entry: &SubmissionEntry, dma: &DmaMap) -> Result<(), Status> {
        let (first, count) = self.range(entry)?;
        if self.format != BlockFormat::Bare || !self.faults.none() {
            return self.write_by_block(entry, first, count, dma, |_| true);
        }
        // All of the host's memory is looked up before the first byte moves, so that a bad list tears no block.
        if count > 1 || !entry.prp1().is_multiple_of(BLOCK) {
            dma.walk(entry, count * BLOCK, &mut |_, _, _| Ok(()))?;
        }
        if self.volatile_cache() && !entry.fua() {
            (first..first + count).try_for_each(|block| self.remember(block))?;
        }
        let mut at = first * BLOCK;
        let media = &mut self.media;
        dma.walk(entry, count * BLOCK, &mut |memory, offset, len| {
            media.write(at, memory, offset, len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            at += len;
            Ok(())
        })?;
        self.settle(entry, first, count)
    }

    /// Write, torn between blocks: of the command's blocks those that chance picks.
    pub(super) fn write_torn(&mut self, entry: &SubmissionEntry, dma: &DmaMap, rng: &mut SeededRng) {
        if let Ok((first, count)) = self.range(entry) {
            let _ = self.write_by_block(entry, first, count, dma, |_| rng.one_in(2));
        }
    }

    /// Compare.
    pub(super) fn compare(&mut self, entry: &SubmissionEntry, dma: &DmaMap) -> Result<(), Status> {
        let (first, count) = self.range(entry)?;
        self.check_readable(first, count)?;
        let mut theirs = vec![0; usize_of(count * BLOCK)];
        let mut ours = vec![0; theirs.len()];
        dma.read(entry, &mut theirs)?;
        self.media.load(first * BLOCK, &mut ours)?;
        if ours == theirs { Ok(()) } else { Err(Status::COMPARE_FAILURE) }
    }

    /// Verify: reads without giving data.
    pub(super) fn verify(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (first, count) = self.range(entry)?;
        self.check_readable(first, count)?;
        (first..first + count).try_for_each(|block| {
            let (data, metadata) = self.contents(block)?;
            self.check_protection(entry, first, block, &data[..], metadata)
        })
    }

    /// Write Zeroes. Protection information may be made but not checked (NVM 3.2.8, PRINFO).
    pub(super) fn write_zeroes(&mut self, entry: &SubmissionEntry) -> Result<(), Status> {
        let (first, count) = self.range(entry)?;
        let checks = rw::CHECK_GUARD | rw::CHECK_APPLICATION_TAG | rw::CHECK_REFERENCE_TAG;
        if self.format == BlockFormat::Protected && entry.dword(12) & checks != 0 {
            return Err(Status::INVALID_PROTECTION.with_do_not_retry());
        }
        self.check_writable(first, count)?;
        self.zero(first, count, entry.fua())?;
        if self.format == BlockFormat::Protected && entry.dword(12) & rw::PRACT != 0 {
            for block in first..first + count {
                self.store_metadata(block, self.generate(entry, first, block, &[0; BLOCK_BYTES]).to_bytes())?;
            }
        }
        self.settle(entry, first, count)
    }

    /// Dataset Management with the attribute Deallocate (NVM 3.2.3): `ranges` are the data, 16 bytes each: attributes
    /// (0..4), blocks (4..8), first block (8..16).
    pub(super) fn deallocate(&mut self, ranges: &[u8]) -> Result<(), Status> {
        use dyad_nvme::bytes::{u32_at, u64_at};
        let ranges: Vec<(u64, u64)> =
            ranges.chunks_exact(16).map(|r| (u64_at(r, 8), u64::from(u32_at(r, 4)))).collect();
        let fits =
            |(first, count): &(u64, u64)| first.checked_add(*count).is_some_and(|end| end <= self.config.blocks.0);
        if !ranges.iter().all(fits) {
            return Err(Status::LBA_OUT_OF_RANGE.with_do_not_retry());
        }
        ranges.into_iter().try_for_each(|(first, count)| {
            self.check_writable(first, count)?;
            self.zero(first, count, false)
        })
    }

    /// Flush.
    pub(super) fn flush(&mut self) -> Result<(), Status> {
        self.media.flush()?;
        self.undo.clear();
        Ok(())
    }

    /// Format NVM: all blocks are zeros, in the new format.
    pub(super) fn format(&mut self, format: BlockFormat) -> Result<(), Status> {
        self.media.zero(0, self.config.media_bytes())?;
        self.undo.clear();
        self.faults.bad.retain(|_, bad| *bad == BadBlock::Forever);
        self.format = format;
        Ok(())
    }

    /// Power is lost: of what was not durable, chance decides block by block. Reservations survive if they were to.
    pub(super) fn power_loss(&mut self, rng: &mut SeededRng) {
        for (block, (data, metadata)) in std::mem::take(&mut self.undo) {
            if rng.one_in(2) {
                // Media that fails now is media that failed.
                let _ = self.media.store(block * BLOCK, &data[..]);
                let _ = self.store_metadata(block, metadata);
            }
        }
        self.reservations.power_loss();
    }

    /// Keeps the reservations where power loss does not reach.
    pub(super) fn keep_reservations(&mut self) -> Result<(), Status> {
        Ok(self.media.keep(&self.reservations.to_bytes())?)
    }

    pub(super) fn inject(&mut self, Lba(block): Lba, fault: BlockFault) {
        match fault {
            BlockFault::Bad(bad) => {
                self.faults.bad.insert(block, bad);
            }
            BlockFault::Corrupt => {
                let mut byte = [0];
                let at = block * BLOCK + block % BLOCK;
                if self.media.load(at, &mut byte).is_ok() {
                    let _ = self.media.store(at, &[byte[0] ^ 0x10]);
                }
            }
            BlockFault::LoseNextWrite => {
                self.faults.lost.insert(block);
            }
            BlockFault::MisdirectNextWrite(Lba(to)) => {
                self.faults.misdirected.insert(block, to.min(self.config.blocks.0 - 1));
            }
        }
    }

    /// What the media holds of a block now.
    pub(super) fn peek(&mut self, Lba(block): Lba) -> Result<Box<[u8; BLOCK_BYTES]>, MediaError> {
        Ok(self.contents(block)?.0)
    }

    #[inline]
    fn check_readable(&self, first: u64, count: u64) -> Result<(), Status> {
        if self.faults.bad.is_empty() || self.faults.bad.range(first..first + count).next().is_none() {
            Ok(())
        } else {
            Err(Status::UNRECOVERED_READ.with_more())
        }
    }

    fn check_writable(&mut self, first: u64, count: u64) -> Result<(), Status> {
        if self.faults.bad.range(first..first + count).any(|(_, bad)| *bad == BadBlock::Forever) {
            return Err(Status::WRITE_FAULT.with_more());
        }
        self.faults.bad.retain(|block, _| !(first..first + count).contains(block));
        Ok(())
    }

    /// Before a block changes in the volatile cache, its durable contents are remembered.
    fn remember(&mut self, block: u64) -> Result<(), Status> {
        if self.undo.contains_key(&block) {
            return Ok(());
        }
        if self.undo.len() >= self.config.cache_blocks.unwrap_or(0) {
            self.flush()?;
        }
        let contents = self.contents(block)?;
        self.undo.insert(block, contents);
        Ok(())
    }

    /// After a write: FUA means that the blocks are durable now.
    #[inline]
    fn settle(&mut self, entry: &SubmissionEntry, first: u64, count: u64) -> Result<(), Status> {
        if entry.fua() || !self.volatile_cache() {
            self.media.flush()?;
            if !self.undo.is_empty() {
                (first..first + count).for_each(|block| drop(self.undo.remove(&block)));
            }
        }
        Ok(())
    }

    fn zero(&mut self, first: u64, count: u64, fua: bool) -> Result<(), Status> {
        // What is more than the cache holds goes past it, however much it is.
        let past = self.config.cache_blocks.is_some_and(|held| count > held as u64);
        if past {
            self.flush()?;
        } else if self.volatile_cache() && !fua {
            (first..first + count).try_for_each(|block| self.remember(block))?;
        }
        self.media.zero(first * BLOCK, count * BLOCK)?;
        if self.format != BlockFormat::Bare {
            self.media.zero(self.metadata_at(first), count * Protection::BYTES as u64)?;
        }
        if past { Ok(self.media.flush()?) } else { Ok(()) }
    }

    fn contents(&mut self, block: u64) -> Result<Contents, MediaError> {
        let mut data = Box::new([0; BLOCK_BYTES]);
        self.media.load(block * BLOCK, &mut data[..])?;
        let metadata = self.load_metadata(block)?;
        Ok((data, metadata))
    }

    const fn metadata_at(&self, block: u64) -> u64 {
        self.config.blocks.0 * BLOCK + block * Protection::BYTES as u64
    }

    /// Metadata is kept inverted: never written reads as FFh, which is what protection information of deallocated blocks reads as (NVM 3.2.3.2.1).
    fn load_metadata(&mut self, block: u64) -> Result<[u8; Protection::BYTES], MediaError> {
        let mut metadata = [0; Protection::BYTES];
        if self.format != BlockFormat::Bare {
            self.media.load(self.metadata_at(block), &mut metadata)?;
        }
        Ok(metadata.map(|b| !b))
    }

    fn store_metadata(&mut self, block: u64, metadata: [u8; Protection::BYTES]) -> Result<(), MediaError> {
        if self.format == BlockFormat::Bare {
            return Ok(());
        }
        self.media.store(self.metadata_at(block), &metadata.map(|b| !b))
    }

    fn generate(&self, entry: &SubmissionEntry, first: u64, block: u64, data: &[u8]) -> Protection {
        let [tag_low, tag_high, ..] = entry.dword(15).to_le_bytes();
        Protection {
            guard: protection::guard(data),
            application_tag: u16::from_le_bytes([tag_low, tag_high]),
            reference_tag: reference_tag(entry, first, block),
        }
    }

    /// Checks what PRCHK asks for (NVM 5.2.2).
    fn check_protection(
        &self,
        entry: &SubmissionEntry,
        first: u64,
        block: u64,
        data: &[u8],
        metadata: [u8; Protection::BYTES],
    ) -> Result<(), Status> {
        let found = Protection::from_bytes(&metadata);
        let flags = entry.dword(12);
        if self.format != BlockFormat::Protected || found.application_tag == protection::UNCHECKED {
            return Ok(());
        }
        if flags & rw::CHECK_GUARD != 0 && found.guard != protection::guard(data) {
            return Err(Status::GUARD_CHECK.with_more());
        }
        let mask = entry.dword(15) >> 16;
        let tags = (u32::from(found.application_tag) ^ entry.dword(15)) & mask;
        if flags & rw::CHECK_APPLICATION_TAG != 0 && tags != 0 {
            return Err(Status::APPLICATION_TAG_CHECK.with_more());
        }
        if flags & rw::CHECK_REFERENCE_TAG != 0 && found.reference_tag != reference_tag(entry, first, block) {
            return Err(Status::REFERENCE_TAG_CHECK.with_more());
        }
        Ok(())
    }

    /// Type 1: the initial reference tag is the low half of the address, or the command makes no sense (NVM 5.2.2).
    fn check_initial_tag(&self, entry: &SubmissionEntry) -> Result<(), Status> {
        let checked = entry.dword(12) & rw::CHECK_REFERENCE_TAG != 0;
        let [a, b, c, d, ..] = entry.lba().0.to_le_bytes();
        if self.format == BlockFormat::Protected && checked && entry.dword(14) != u32::from_le_bytes([a, b, c, d]) {
            return Err(Status::INVALID_PROTECTION.with_do_not_retry());
        }
        Ok(())
    }

    /// With protection information the controller moves the metadata itself if PRACT says so; otherwise the host gives a buffer for it.
    fn host_metadata(&self, entry: &SubmissionEntry) -> bool {
        match self.format {
            BlockFormat::Bare => false,
            BlockFormat::Metadata => true,
            BlockFormat::Protected => entry.dword(12) & rw::PRACT == 0,
        }
    }

    fn read_with_metadata(
        &mut self,
        entry: &SubmissionEntry,
        first: u64,
        count: u64,
        dma: &DmaMap,
    ) -> Result<(), Status> {
        self.check_initial_tag(entry)?;
        let mut all = Vec::with_capacity(usize_of(count * BLOCK));
        for block in first..first + count {
            let (data, metadata) = self.contents(block)?;
            self.check_protection(entry, first, block, &data[..], metadata)?;
            if self.host_metadata(entry) {
                let at = entry.metadata() + (block - first) * Protection::BYTES as u64;
                let (memory, offset) = dma.resolve(at, Protection::BYTES as u64).ok_or(Status::DATA_TRANSFER_ERROR)?;
                memory.write(offset, &metadata).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            }
            all.extend_from_slice(&data[..]);
        }
        dma.write(entry, &all)
    }

    /// The slow way to write: with metadata, with faults, or only some of the blocks.
    fn write_by_block(
        &mut self,
        entry: &SubmissionEntry,
        first: u64,
        count: u64,
        dma: &DmaMap,
        mut picked: impl FnMut(u64) -> bool,
    ) -> Result<(), Status> {
        self.check_initial_tag(entry)?;
        let mut all = vec![0; usize_of(count * BLOCK)];
        dma.read(entry, &mut all)?;
        self.check_writable(first, count)?;
        let blocks = (first..first + count).zip(all.chunks_exact(BLOCK_BYTES));
        let mut metadata = Vec::with_capacity(usize_of(count));
        for (block, data) in blocks.clone() {
            metadata.push(if self.host_metadata(entry) {
                let mut bytes = [0; Protection::BYTES];
                let at = entry.metadata() + (block - first) * Protection::BYTES as u64;
                let (memory, offset) = dma.resolve(at, Protection::BYTES as u64).ok_or(Status::DATA_TRANSFER_ERROR)?;
                memory.read(offset, &mut bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                self.check_protection(entry, first, block, data, bytes)?;
                bytes
            } else {
                self.generate(entry, first, block, data).to_bytes()
            });
        }
        for ((block, data), metadata) in blocks.zip(metadata) {
            let target = self.faults.misdirected.remove(&block).unwrap_or(block);
            if self.faults.lost.remove(&block) || !picked(block) {
                continue;
            }
            if self.volatile_cache() && !entry.fua() {
                self.remember(target)?;
            }
            self.media.store(target * BLOCK, data)?;
            self.store_metadata(target, metadata)?;
        }
        self.settle(entry, first, count)
    }
}

/// Type 1: the command's initial reference tag counts up with the blocks.
fn reference_tag(entry: &SubmissionEntry, first: u64, block: u64) -> u32 {
    let ahead = u32::try_from(block - first).expect("a command has at most 65536 blocks");
    entry.dword(14).wrapping_add(ahead)
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("a command's data fits in memory")
}
