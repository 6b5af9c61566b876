//! The partner's side of the mirror: what the home has committed into our memory, to be adopted if the home is lost.
//!
//! Invariants (PROTOCOLS 3.2-3.5):
//! - the index names only frames whose bytes had the CRC of their commit record when it was checked, by this reactor;
//! - a frame that the index names is not named twice, and the home does not write to it until it was released;
//! - adoption happens after the memory was revoked, and checks every CRC again on its own copy.
//!
//! The memory is made anew for each incarnation of the home: a process that was cut off may still be writing to the old
//! one, and nothing of ours is there any more.

use dyad_matrix::Memory;
use dyad_nvme::types::BLOCK_BYTES;
use dyad_reactor::collections::{FixedMap, fixed_map};
use dyad_reactor::mutation::{Mutation, is_active};

use crate::address::{Epoch, TRACK_BLOCKS, TrackAddress, Version};
use crate::outcomes::OutcomeTable;
use crate::record::{Answer, AnswerStatus, Applied, Commit, MirrorFrame, Outcomes, Record, Release};

#[derive(Debug, Copy, Clone)]
struct Entry {
    frame: MirrorFrame,
    crc: u32,
    version: Version,
}

/// One block that the home had committed and not released.
#[derive(Debug, Copy, Clone)]
pub struct Adoptable {
    /// Which track.
    pub track: TrackAddress,
    /// Which block of it.
    pub index: usize,
    /// Where its bytes are in the mirror memory.
    pub offset: u64,
    /// Their CRC-32C.
    pub crc: u32,
    /// Their version.
    pub version: Version,
}

/// The mirror of one incarnation of the home.
pub struct MirrorArea {
    memory: Memory,
    index: FixedMap<TrackAddress, [Option<Entry>; TRACK_BLOCKS]>,
    /// Which frames the index names.
    used: Vec<bool>,
    /// See [`Self::is_whole`].
    whole: bool,
}

impl MirrorArea {
    /// An empty mirror in `memory`, all of which the home may write.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        let frames = usize::try_from(memory.len() / BLOCK_BYTES as u64).expect("memory fits the address space");
        Self { memory, index: fixed_map(2 * frames), used: vec![false; frames], whole: false }
    }

    /// The memory that the home writes to.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The home has served with this mirror, or could have: what the vault has and media has not is here, in a version that is not older. Until then
    /// whatever was acknowledged before is in the vault.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Blocks that the home has committed and not released.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// Frames that no commit record names: quarantined, whatever is in them, until the home's process is known dead (PROTOCOLS 3.5).
    #[must_use]
    pub fn unnamed_frames(&self) -> u64 {
        (self.used.len() - self.block_count()) as u64
    }

    /// Does what the home's message says and returns the answer to it. `epoch` is ours; answers are not messages for us.
    pub fn serve(&mut self, record: &Record, epoch: Epoch, outcomes: &OutcomeTable) -> Option<Answer> {
        let (theirs, status) = match record {
            Record::Commit(commit) => (commit.version.epoch, self.commit(commit, epoch, outcomes)),
            Record::Release(release) => (release.epoch, self.release(release, epoch)),
            Record::Outcomes(joined) => (joined.epoch, Self::remember(joined, outcomes)),
            Record::Applied(applied) => (applied.epoch, Self::applied(applied, outcomes)),
            Record::Whole(whole) => (whole.epoch, self.begin(whole.epoch == epoch)),
            Record::Answer(_) => return None,
        };
        let status = if theirs == epoch { status } else { AnswerStatus::WrongEpoch };
        Some(Answer { status, epoch })
    }

    fn commit(&mut self, commit: &Commit, epoch: Epoch, outcomes: &OutcomeTable) -> AnswerStatus {
        if commit.version.epoch != epoch {
            return AnswerStatus::WrongEpoch;
        }
        if commit.blocks.len() != commit.range.count() {
            return AnswerStatus::Malformed;
        }
        let named = self.index.get(&commit.range.track).copied().unwrap_or_default();
        let twice = |at: usize| commit.blocks[..at].iter().any(|block| block.frame == commit.blocks[at].frame);
        if (0..commit.blocks.len()).any(twice) {
            return AnswerStatus::Malformed;
        }
        for (index, block) in commit.range.indices().zip(&commit.blocks) {
            let Some(place) = self.place(block.frame) else { return AnswerStatus::Malformed };
            if named[index].is_some_and(|entry| entry.version >= commit.version) || self.used[place] {
                return AnswerStatus::Malformed;
            }
            if self.memory.crc32c(offset(block.frame), BLOCK_BYTES as u64) != Ok(block.crc) {
                return AnswerStatus::CrcMismatch;
            }
        }
        if !is_active(Mutation::PartnerForgetsOutcomes) && !outcomes.insert(commit.command, commit.oldest) {
            return AnswerStatus::Full;
        }
        let entries = self.index.entry(commit.range.track).or_default();
        for (index, block) in commit.range.indices().zip(&commit.blocks) {
            let entry = Entry { frame: block.frame, crc: block.crc, version: commit.version };
            if let Some(before) = entries[index].replace(entry) {
                self.used[place(before.frame)] = false;
            }
            self.used[place(block.frame)] = true;
        }
        AnswerStatus::Done
    }

    fn release(&mut self, release: &Release, epoch: Epoch) -> AnswerStatus {
        if release.epoch != epoch {
            return AnswerStatus::WrongEpoch;
        }
        let Some(entries) = self.index.get_mut(&release.track) else { return AnswerStatus::Done };
        for block in &release.blocks {
            let durable = entries[usize::from(block.index)]
                .take_if(|entry| entry.version <= block.version || is_active(Mutation::ReleaseAnyVersion));
            if let Some(durable) = durable {
                self.used[place(durable.frame)] = false;
            }
        }
        if entries.iter().all(Option::is_none) {
            self.index.remove(&release.track);
        }
        AnswerStatus::Done
    }

    fn remember(joined: &Outcomes, outcomes: &OutcomeTable) -> AnswerStatus {
        if joined.applied.iter().all(|id| outcomes.insert(*id, 0)) { AnswerStatus::Done } else { AnswerStatus::Full }
    }

    fn begin(&mut self, same_epoch: bool) -> AnswerStatus {
        self.whole |= same_epoch;
        AnswerStatus::Done
    }

    fn applied(applied: &Applied, outcomes: &OutcomeTable) -> AnswerStatus {
        if outcomes.insert(applied.command, applied.oldest) { AnswerStatus::Done } else { AnswerStatus::Full }
    }

    /// Everything to be adopted, in address order. The memory must have been revoked.
    #[must_use]
    pub fn adoptable(&self) -> Vec<Adoptable> {
        let blocks = self.index.iter().flat_map(|(track, entries)| {
            entries.iter().enumerate().filter_map(|(index, entry)| {
                let Entry { frame, crc, version } = (*entry)?;
                Some(Adoptable { track: *track, index, offset: offset(frame), crc, version })
            })
        });
        let mut blocks: Vec<_> = blocks.collect();
        blocks.sort_unstable_by_key(|block| (block.track, block.index));
        blocks
    }

    fn place(&self, frame: MirrorFrame) -> Option<usize> {
        usize::try_from(frame.0).ok().filter(|place| *place < self.used.len())
    }
}

fn place(frame: MirrorFrame) -> usize {
    usize::try_from(frame.0).expect("the frame was checked when it entered the index")
}

/// Bytes of `frame` from the start of the mirror memory.
#[must_use]
pub fn offset(frame: MirrorFrame) -> u64 {
    u64::from(frame.0) * BLOCK_BYTES as u64
}
