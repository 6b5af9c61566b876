//! The messages between a home and its partner, byte by byte. All numbers are little-endian.
//!
//! They travel on the pair's mirror VI. That VI was made between two incarnations that the handshake named, so sender
//! and incarnation of a message are those of its VI; the epoch stands in the message (PROTOCOLS 2.2).
//!
//! | bytes | commit (kind 1) | release (kind 2) | answer (kind 3) | outcomes (kind 4) |
//! |---|---|---|---|---|
//! | 0 | kind | kind | kind | kind |
//! | 1 | number of blocks | number of blocks | status | number of outcomes |
//! | 2 | first block in the track | 0 | 0 | 0 |
//! | 3 | part of the command | 0 | 0 | 0 |
//! | 4..8 | volume generation | volume generation | 0 | 0 |
//! | 8..16 | epoch | epoch | epoch | epoch |
//! | 16..24 | tag for the answer | tag for the answer | tag | tag for the answer |
//! | 24..40 | volume UUID | volume UUID | | per outcome 28: origin 16, |
//! | 40..48 | track | track | | command sequence 8, part 4 |
//! | 48..56 | version: sequence | per block 24: index 8, | | |
//! | 56..72 | command: origin | version epoch 8, version sequence 8 | | |
//! | 72..80 | command: sequence | | | |
//! | 80..88 | command: oldest outstanding | | | |
//! | 88.. | per block 8: mirror frame 4, CRC-32C 4 | | | |
//!
//! Applied (kind 5): 0 kind, 1 and 2 zero, 3 part of the command, 4..8 zero, 8..16 epoch, 16..24 tag for the answer, 24..40 command: origin, 40..48 command:
//! sequence, 48..56 command: oldest outstanding.
//!
//! Whole (kind 6): 0 kind, 1..8 zero, 8..16 epoch, 16..24 tag for the answer.

use heapless::Vec;

use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, TrackRange, Version, VolumeId};

/// Longest encoded message.
pub const RECORD_BYTES_MAX: usize = 480;

/// Outcomes in one message.
pub const OUTCOMES_PER_MESSAGE: usize = 16;

/// An encoded message.
pub type Encoded = Vec<u8, RECORD_BYTES_MAX>;

/// Which command of which host a write belongs to (PROTOCOLS 9.1). The same command sent again has the same id.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct CommandId {
    /// The host that issued it.
    pub origin: [u8; 16],
    /// Grows with every command of that host, over all its sessions.
    pub sequence: u64,
    /// The command's part, when it was split at track boundaries.
    pub part: u8,
}

/// A place in the partner's mirror area.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct MirrorFrame(pub u32);

/// One block of a commit: where its bytes were put, and their CRC-32C.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct CommitBlock {
    /// Where the home's RDMA write put the block.
    pub frame: MirrorFrame,
    /// CRC-32C of the block.
    pub crc: u32,
}

/// Commits a write: its bytes are already in the partner's memory (PROTOCOLS 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The blocks.
    pub range: TrackRange,
    /// The version of all of them; its epoch is the message's.
    pub version: Version,
    /// The command.
    pub command: CommandId,
    /// Every command of the origin before this one has been answered.
    pub oldest: u64,
    /// One per block.
    pub blocks: Vec<CommitBlock, TRACK_BLOCKS>,
}

/// A block that is durable on media in this version: the partner may forget it (PROTOCOLS 3.4).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct ReleasedBlock {
    /// Index in the track.
    pub index: u8,
    /// The version that is durable.
    pub version: Version,
}

/// Releases blocks of a track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The home's epoch.
    pub epoch: Epoch,
    /// The track.
    pub track: TrackAddress,
    /// Its durable blocks.
    pub blocks: Vec<ReleasedBlock, TRACK_BLOCKS>,
}

/// What the partner says to a message.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum AnswerStatus {
    /// Done.
    Done,
    /// Not in this epoch.
    WrongEpoch,
    /// The bytes in the mirror frame do not have the CRC of the record.
    CrcMismatch,
    /// The record names places that do not exist.
    Malformed,
    /// The index of the mirror has no room.
    Full,
}

/// The partner's answer.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub status: AnswerStatus,
    /// The partner's epoch.
    pub epoch: Epoch,
}

/// Outcomes that a joining director must know before it serves (PROTOCOLS 9.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// The epoch it joins.
    pub epoch: Epoch,
    /// Commands that were applied.
    pub applied: Vec<CommandId, OUTCOMES_PER_MESSAGE>,
}

/// A command that was applied on media and not mirrored (policy `through`): the partner remembers its outcome.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The home's epoch.
    pub epoch: Epoch,
    /// The command.
    pub command: CommandId,
    /// Every command of the origin before this one has been answered.
    pub oldest: u64,
}

/// From here on the partner's mirror, with media, has everything that is acknowledged: the home has replayed the vault, and begins to serve.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Whole {
    /// The home's epoch.
    pub epoch: Epoch,
}

/// Any message of the mirror VI.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // lives on the stack of one task; boxing would allocate on the I/O path
pub enum Record {
    /// Home to partner.
    Commit(Commit),
    /// Home to partner.
    Release(Release),
    /// Partner to home.
    Answer(Answer),
    /// Home to partner, once after it joined.
    Outcomes(Outcomes),
    /// Home to partner.
    Applied(Applied),
    /// Home to partner, once, before it serves.
    Whole(Whole),
}

/// The message is not one of these.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a malformed message on the mirror VI")]
pub struct Malformed;

const COMMIT: u8 = 1;
const RELEASE: u8 = 2;
const ANSWER: u8 = 3;
const OUTCOMES: u8 = 4;
const APPLIED: u8 = 5;
const WHOLE: u8 = 6;

impl AnswerStatus {
    const ALL: [Self; 5] = [Self::Done, Self::WrongEpoch, Self::CrcMismatch, Self::Malformed, Self::Full];

    fn to_byte(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::WrongEpoch => 1,
            Self::CrcMismatch => 2,
            Self::Malformed => 3,
            Self::Full => 4,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|status| status.to_byte() == byte).ok_or(Malformed)
    }
}

impl Commit {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let range = self.range;
        let mut out = Writer::new([COMMIT, byte(self.blocks.len()), byte(range.first()), self.command.part]);
        out.put(&range.track.volume.generation.to_le_bytes());
        out.put_u64(self.version.epoch.0);
        out.put_u64(tag);
        out.put(&range.track.volume.uuid);
        out.put_u64(range.track.track);
        out.put_u64(self.version.sequence);
        out.put(&self.command.origin);
        out.put_u64(self.command.sequence);
        out.put_u64(self.oldest);
        for block in &self.blocks {
            out.put(&block.frame.0.to_le_bytes());
            out.put(&block.crc.to_le_bytes());
        }
        out.0
    }
}

impl Release {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let mut out = Writer::new([RELEASE, byte(self.blocks.len()), 0, 0]);
        out.put(&self.track.volume.generation.to_le_bytes());
        out.put_u64(self.epoch.0);
        out.put_u64(tag);
        out.put(&self.track.volume.uuid);
        out.put_u64(self.track.track);
        for block in &self.blocks {
            out.put_u64(u64::from(block.index));
            out.put_u64(block.version.epoch.0);
            out.put_u64(block.version.sequence);
        }
        out.0
    }
}

impl Answer {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let mut out = Writer::new([ANSWER, self.status.to_byte(), 0, 0]);
        out.put(&[0; 4]);
        out.put_u64(self.epoch.0);
        out.put_u64(tag);
        out.0
    }
}

impl Outcomes {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let mut out = Writer::new([OUTCOMES, byte(self.applied.len()), 0, 0]);
        out.put(&[0; 4]);
        out.put_u64(self.epoch.0);
        out.put_u64(tag);
        for id in &self.applied {
            out.put(&id.origin);
            out.put_u64(id.sequence);
            out.put(&u32::from(id.part).to_le_bytes());
        }
        out.0
    }
}

impl Applied {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let mut out = Writer::new([APPLIED, 0, 0, self.command.part]);
        out.put(&[0; 4]);
        out.put_u64(self.epoch.0);
        out.put_u64(tag);
        out.put(&self.command.origin);
        out.put_u64(self.command.sequence);
        out.put_u64(self.oldest);
        out.0
    }
}

impl Whole {
    /// See [`Record::encode`].
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        let mut out = Writer::new([WHOLE, 0, 0, 0]);
        out.put(&[0; 4]);
        out.put_u64(self.epoch.0);
        out.put_u64(tag);
        out.0
    }
}

impl Record {
    /// The bytes, with `tag` for whoever waits for the answer.
    #[must_use]
    pub fn encode(&self, tag: u64) -> Encoded {
        match self {
            Self::Commit(commit) => commit.encode(tag),
            Self::Release(release) => release.encode(tag),
            Self::Answer(answer) => answer.encode(tag),
            Self::Outcomes(outcomes) => outcomes.encode(tag),
            Self::Applied(applied) => applied.encode(tag),
            Self::Whole(whole) => whole.encode(tag),
        }
    }

    /// The message and its tag.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u64), Malformed> {
        let mut input = Reader(bytes);
        let [kind, count, first, part] = input.take()?;
        let generation = u32::from_le_bytes(input.take()?);
        let epoch = Epoch(input.u64()?);
        let tag = input.u64()?;
        let record = match kind {
            COMMIT => {
                let track = TrackAddress { volume: VolumeId { uuid: input.take()?, generation }, track: input.u64()? };
                let range = TrackRange::new(track, first.into(), count.into()).ok_or(Malformed)?;
                let version = Version { epoch, sequence: input.u64()? };
                let command = CommandId { origin: input.take()?, sequence: input.u64()?, part };
                let oldest = input.u64()?;
                let mut blocks = Vec::new();
                for _ in 0..count {
                    let block = CommitBlock {
                        frame: MirrorFrame(u32::from_le_bytes(input.take()?)),
                        crc: u32::from_le_bytes(input.take()?),
                    };
                    blocks.push(block).map_err(|_| Malformed)?;
                }
                Self::Commit(Commit { range, version, command, oldest, blocks })
            }
            RELEASE => {
                let track = TrackAddress { volume: VolumeId { uuid: input.take()?, generation }, track: input.u64()? };
                let mut blocks = Vec::new();
                for _ in 0..count {
                    let index = u8::try_from(input.u64()?)
                        .ok()
                        .filter(|index| usize::from(*index) < TRACK_BLOCKS)
                        .ok_or(Malformed)?;
                    let version = Version { epoch: Epoch(input.u64()?), sequence: input.u64()? };
                    blocks.push(ReleasedBlock { index, version }).map_err(|_| Malformed)?;
                }
                Self::Release(Release { epoch, track, blocks })
            }
            ANSWER => Self::Answer(Answer { status: AnswerStatus::from_byte(count)?, epoch }),
            OUTCOMES => {
                let mut applied = Vec::new();
                for _ in 0..count {
                    let (origin, sequence) = (input.take()?, input.u64()?);
                    let part = u8::try_from(u32::from_le_bytes(input.take()?)).map_err(|_| Malformed)?;
                    applied.push(CommandId { origin, sequence, part }).map_err(|_| Malformed)?;
                }
                Self::Outcomes(Outcomes { epoch, applied })
            }
            APPLIED => {
                let command = CommandId { origin: input.take()?, sequence: input.u64()?, part };
                Self::Applied(Applied { epoch, command, oldest: input.u64()? })
            }
            WHOLE => Self::Whole(Whole { epoch }),
            _ => return Err(Malformed),
        };
        if input.0.is_empty() { Ok((record, tag)) } else { Err(Malformed) }
    }
}

struct Writer(Encoded);

impl Writer {
    fn new(head: [u8; 4]) -> Self {
        let mut out = Self(Encoded::new());
        out.put(&head);
        out
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes).expect("RECORD_BYTES_MAX holds the longest message");
    }

    fn put_u64(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}

fn byte(count: usize) -> u8 {
    u8::try_from(count).expect("counts in records are at most a track's blocks")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commit(count: usize) -> Record {
        let track = TrackAddress { volume: VolumeId { uuid: [7; 16], generation: 3 }, track: 99 };
        Record::Commit(Commit {
            range: TrackRange::new(track, 16 - count, count).unwrap(),
            version: Version { epoch: Epoch(5), sequence: 6 },
            command: CommandId { origin: [9; 16], sequence: 10, part: 1 },
            oldest: 8,
            blocks: (0..16).take(count).map(|i| CommitBlock { frame: MirrorFrame(i), crc: i * 3 }).collect(),
        })
    }

    #[test]
    fn the_longest_messages_fit_and_return() {
        let track = TrackAddress { volume: VolumeId { uuid: [7; 16], generation: 3 }, track: 99 };
        let version = Version { epoch: Epoch(1), sequence: 2 };
        let release = Record::Release(Release {
            epoch: Epoch(4),
            track,
            blocks: (0..16).map(|index| ReleasedBlock { index, version }).collect(),
        });
        let id = CommandId { origin: [1; 16], sequence: 2, part: 3 };
        let outcomes = Record::Outcomes(Outcomes { epoch: Epoch(4), applied: (0..16).map(|_| id).collect() });
        let answer = Record::Answer(Answer { status: AnswerStatus::CrcMismatch, epoch: Epoch(9) });
        let applied = Record::Applied(Applied { epoch: Epoch(4), command: id, oldest: 1 });
        let whole = Record::Whole(Whole { epoch: Epoch(4) });
        for record in [commit(16), commit(1), release, outcomes, answer, applied, whole] {
            assert_eq!(Record::decode(&record.encode(77)), Ok((record, 77)));
        }
    }

    #[test]
    fn a_truncated_or_longer_message_is_refused() {
        let bytes = commit(4).encode(1);
        for len in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..len]), Err(Malformed), "{len} bytes");
        }
        let mut longer = bytes;
        longer.push(0).unwrap();
        assert_eq!(Record::decode(&longer), Err(Malformed));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..RECORD_BYTES_MAX), kind in 0u8..8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            if let Ok((record, tag)) = Record::decode(&bytes) {
                prop_assert_eq!(Record::decode(&record.encode(tag)), Ok((record, tag)));
            }
        }
    }
}
