//! Records of the vault, byte by byte: `cache/VAULT.md` has the table. What is decoded here has been checked whole.

use dyad_backend::format::seal::{self, Kind, Seal};
use dyad_backend::format::{Block, FormatError, GroupId};
use dyad_nvme::types::BLOCK_BYTES;

use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, Version, VolumeId};

/// Blocks of a cell: a head and the contents of a track.
pub const CELL_BLOCKS: u64 = 1 + TRACK_BLOCKS as u64;

/// Records that may be under way at once.
pub const WINDOW: u64 = WINDOW_RECORDS as u64;

/// The same, as a size.
pub const WINDOW_RECORDS: usize = 16;

/// Fewest cells of a vault: a window of records may be missing, a window of them may be new, and some have something in them.
pub const CELLS_MIN: u64 = 2 * WINDOW + 4;

/// Most marks of a vault.
pub const MARKS_MAX: usize = 32;

const FIELDS: usize = 48;
const BLOCKS: usize = 104;
const BLOCK_ENTRY: usize = 24;
const MARKS: usize = BLOCKS + TRACK_BLOCKS * BLOCK_ENTRY;
const MARK_ENTRY: usize = 24;

const _: () = assert!(seal::HEADER == FIELDS && MARKS == 488 && MARKS + MARKS_MAX * MARK_ENTRY == 1256);
const _: () = assert!(MARKS + MARKS_MAX * MARK_ENTRY <= BLOCK_BYTES && CELL_BLOCKS == 17);

/// One block of a record.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Which contents these are.
    pub version: Version,
    /// Their CRC-32C.
    pub crc: u32,
}

/// What the pair knows about an `unmirrored` volume (PROTOCOLS 12.1).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MarkState {
    /// It has acknowledged writes that one memory has, and nothing else.
    Dirty,
    /// Some of them may be lost.
    Lost,
}

/// An `unmirrored` volume that is not clean.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Which volume.
    pub volume: VolumeId,
    /// What about it.
    pub state: MarkState,
}

/// All marks of a vault.
pub type Marks = heapless::Vec<Mark, MARKS_MAX>;

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub sequence: u64,
    /// Records before this one are retired.
    pub oldest: u64,
    /// The first record of this opening of the vault.
    pub base: u64,
    /// The home's epoch.
    pub epoch: Epoch,
    /// Which track it has blocks of, if it has any.
    pub track: TrackAddress,
    /// Its blocks, by their index in the track.
    pub blocks: [Option<BlockEntry>; TRACK_BLOCKS],
    /// The marks.
    pub marks: Marks,
}

impl Head {
    /// Blocks of contents behind the head.
    #[must_use]
    pub fn count(&self) -> usize {
        self.blocks.iter().flatten().count()
    }

    /// Encodes the head for a vault of `cells` cells.
    #[must_use]
    pub fn encode(&self, group: GroupId, cells: u64) -> Block {
        let mut block = [0; BLOCK_BYTES];
        let mut out = Cursor { block: &mut block, at: FIELDS };
        out.put(&self.oldest.to_le_bytes());
        out.put(&self.base.to_le_bytes());
        out.put(&self.epoch.0.to_le_bytes());
        out.put(&self.track.volume.uuid);
        out.put(&self.track.volume.generation.to_le_bytes());
        out.put(&self.mask().to_le_bytes());
        let marks = u16::try_from(self.marks.len()).expect("few marks");
        out.put(&marks.to_le_bytes());
        out.put(&self.track.track.to_le_bytes());
        for entry in self.blocks.iter().flatten() {
            out.put(&entry.version.epoch.0.to_le_bytes());
            out.put(&entry.version.sequence.to_le_bytes());
            out.put(&entry.crc.to_le_bytes());
            out.put(&[0; 4]);
        }
        out.at = MARKS;
        for mark in &self.marks {
            out.put(&mark.volume.uuid);
            out.put(&mark.volume.generation.to_le_bytes());
            out.put(&[mark.state.to_byte(), 0, 0, 0]);
        }
        let seal = Seal { group, sequence: self.sequence, place: self.sequence % cells };
        seal::close(&mut block, Kind::Vault, &seal);
        block
    }

    /// The head in cell `cell` of `cells`.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(block: &Block, group: GroupId, cell: u64, cells: u64) -> Result<Self, FormatError> {
        let sequence = seal::open_at(block, Kind::Vault, group, cell)?;
        let mut from = Reader { block, at: FIELDS };
        let (oldest, base, epoch) = (from.u64(), from.u64(), Epoch(from.u64()));
        let volume = VolumeId { uuid: from.take(), generation: u32::from_le_bytes(from.take()) };
        let (mask, marked) = (u16::from_le_bytes(from.take()), u16::from_le_bytes(from.take()));
        let track = TrackAddress { volume, track: from.u64() };
        if sequence % cells != cell || oldest > sequence || sequence - oldest >= cells || base > sequence {
            return Err(FormatError::Invalid);
        }
        let mut blocks = [None; TRACK_BLOCKS];
        for (_, entry) in blocks.iter_mut().enumerate().filter(|(index, _)| mask >> index & 1 == 1) {
            let version = Version { epoch: Epoch(from.u64()), sequence: from.u64() };
            *entry = Some(BlockEntry { version, crc: u32::from_le_bytes(from.take()) });
            from.at += 4;
        }
        from.at = MARKS;
        let mut marks = Marks::new();
        for _ in 0..marked {
            let volume = VolumeId { uuid: from.take(), generation: u32::from_le_bytes(from.take()) };
            let state = MarkState::from_byte(from.take::<4>()[0]).ok_or(FormatError::Invalid)?;
            marks.push(Mark { volume, state }).map_err(|_| FormatError::Invalid)?;
        }
        Ok(Self { sequence, oldest, base, epoch, track, blocks, marks })
    }

    fn mask(&self) -> u16 {
        (0..).zip(&self.blocks).filter(|(_, block)| block.is_some()).fold(0, |mask, (index, _)| mask | 1 << index)
    }
}

impl MarkState {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Dirty => 1,
            Self::Lost => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Dirty),
            2 => Some(Self::Lost),
            _ => None,
        }
    }
}

struct Cursor<'a> {
    block: &'a mut Block,
    at: usize,
}

impl Cursor<'_> {
    fn put(&mut self, field: &[u8]) {
        // copy: fields of a head
        self.block[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

struct Reader<'a> {
    block: &'a Block,
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let field = self.block[self.at..self.at + N].try_into().expect("N bytes");
        self.at += N;
        field
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: GroupId = GroupId([0x67; 16]);
    const CELLS: u64 = 40;

    fn head() -> Head {
        let volume = VolumeId { uuid: [0x76; 16], generation: 3 };
        let mut blocks = [None; TRACK_BLOCKS];
        blocks[1] = Some(BlockEntry { version: Version { epoch: Epoch(5), sequence: 70 }, crc: 0x1122_3344 });
        blocks[15] = Some(BlockEntry { version: Version { epoch: Epoch(4), sequence: 9 }, crc: 0x5566_7788 });
        let lost = Mark { volume: VolumeId { uuid: [0x6c; 16], generation: 1 }, state: MarkState::Lost };
        let dirty = Mark { volume: VolumeId { uuid: [0x64; 16], generation: 2 }, state: MarkState::Dirty };
        Head {
            sequence: 85,
            oldest: 50,
            base: 60,
            epoch: Epoch(5),
            track: TrackAddress { volume, track: 0x0102_0304 },
            blocks,
            marks: [lost, dirty].into_iter().collect(),
        }
    }

    /// The lines of `golden/*.hex`: an offset and bytes, both in hexadecimal; what is not named is zero.
    fn image(text: &str) -> Block {
        let mut block = [0; BLOCK_BYTES];
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (offset, bytes) = line.split_once(": ").unwrap();
            let offset = usize::from_str_radix(offset, 16).unwrap();
            let bytes = bytes.split('#').next().unwrap().split_whitespace();
            for (at, byte) in bytes.enumerate() {
                block[offset + at] = u8::from_str_radix(byte, 16).unwrap();
            }
        }
        block
    }

    #[test]
    fn the_images_are_what_the_code_writes_and_reads() {
        let data = image(include_str!("golden/data.hex"));
        assert!(head().encode(GROUP, CELLS) == data);
        assert_eq!(Head::decode(&data, GROUP, 85 % CELLS, CELLS), Ok(head()));
        let empty = image(include_str!("golden/retire.hex"));
        let volume = VolumeId { uuid: [0; 16], generation: 0 };
        let retire = Head {
            sequence: 1,
            oldest: 1,
            base: 1,
            epoch: Epoch(7),
            track: TrackAddress { volume, track: 0 },
            blocks: [None; TRACK_BLOCKS],
            marks: Marks::new(),
        };
        assert!(retire.encode(GROUP, CELLS) == empty);
        assert_eq!(Head::decode(&empty, GROUP, 1, CELLS), Ok(retire));
    }

    #[test]
    fn what_is_not_a_head_of_this_cell_is_told() {
        let block = head().encode(GROUP, CELLS);
        assert_eq!(Head::decode(&block, GROUP, 6, CELLS), Err(FormatError::Misplaced(5)));
        assert_eq!(Head::decode(&block, GroupId([1; 16]), 5, CELLS), Err(FormatError::Foreign));
        assert_eq!(Head::decode(&[0; BLOCK_BYTES], GROUP, 5, CELLS), Err(FormatError::Blank));
        for at in (0..BLOCK_BYTES).step_by(7) {
            let mut damaged = block;
            damaged[at] ^= 0x10;
            assert!(Head::decode(&damaged, GROUP, 5, CELLS).is_err(), "byte {at}");
        }
        let mut other = head();
        other.oldest = 86;
        assert_eq!(Head::decode(&other.encode(GROUP, CELLS), GROUP, 5, CELLS), Err(FormatError::Invalid));
        other.oldest = 45;
        assert_eq!(Head::decode(&other.encode(GROUP, CELLS), GROUP, 5, CELLS), Err(FormatError::Invalid));
    }

    proptest! {
        #[test]
        fn heads_return(
            sequence in 40_u64..1 << 60, back in 0_u64..40, mask in any::<u16>(), track in any::<u64>(), marks in 0_usize..=32,
            numbers in any::<[u64; 3]>(),
        ) {
            let [epoch, version, crc] = numbers;
            let mut head = Head { sequence, oldest: sequence - back, base: sequence - back, epoch: Epoch(epoch), ..head() };
            head.track.track = track;
            let entry = |index: usize| BlockEntry {
                version: Version { epoch: Epoch(epoch), sequence: version.wrapping_add(index as u64) },
                crc: u32::try_from(crc >> 32).unwrap(),
            };
            head.blocks = std::array::from_fn(|index| (mask >> index & 1 == 1).then(|| entry(index)));
            let mark = |n: usize| Mark {
                volume: VolumeId { uuid: [u8::try_from(n).unwrap(); 16], generation: 1 },
                state: if n.is_multiple_of(2) { MarkState::Dirty } else { MarkState::Lost },
            };
            head.marks = (0..marks).map(mark).collect();
            prop_assert_eq!(head.count(), mask.count_ones() as usize);
            prop_assert_eq!(Head::decode(&head.encode(GROUP, CELLS), GROUP, sequence % CELLS, CELLS), Ok(head));
        }
    }
}
