//! What the pool of volumes needs of a group besides data: its share region, and slices that become zeros.
//!
//! The share region is the same on all members, so that a member more or less changes nothing; writes of it go to all of them, through to media, and one
//! that is rebuilt gets it before it counts.

use dyad_nvme::types::{BlockCount, Lba};

use super::log::nowhere;
use super::members::{Member, Op};
use super::{Group, GroupError, joined, push};
use crate::device::Device;
use crate::format::guard::Guard;
use crate::format::intent::{Run, RunKind};
use crate::format::{Block, GroupId, Region};
use crate::raid::geometry::CHUNK_BLOCKS;

/// The lock of the share region: no stripe has this number.
const SHARES: u64 = u64::MAX;

impl<D: Device> Group<D> {
    /// Which group it is.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// Who keeps the vault, and where: the first members in sync, one more than the level tolerates failures (PROTOCOLS 6.3).
    #[must_use]
    pub fn vault_keepers(&self) -> Vec<(D, Region)> {
        let devices = self.live().filter_map(|m| Member::device(&self.0.members[m]));
        devices.take(self.0.geometry.tolerated() + 1).map(|device| (device, self.0.layout.vault)).collect()
    }

    /// Reads blocks of the share region from a member, at most 16. False if they cannot be had from there: it is out, or cannot read them.
    ///
    /// # Errors
    /// `Lost`, `Fenced`, and `Invalid` if there are no such blocks or is no such member.
    pub async fn read_share(&self, member: usize, place: u64, blocks: &mut [Block]) -> Result<bool, GroupError> {
        let count = self.check_share(place, blocks.len())?;
        let _section = self.0.sections.enter();
        if member >= self.0.members.len() {
            return Err(GroupError::Invalid);
        }
        if !self.is_live(member) {
            return Ok(false);
        }
        let area = self.area().await;
        let ops = [Op::read(member, self.share_lba(place), count, 0)];
        let outcome = self.run(&ops, |op| joined(op.range().map(|row| area.held(0, row)))).await[0];
        let read = self.judge_read(member, outcome)?;
        for (row, block) in (0..).zip(blocks) {
            self.0.work.read(area.held(0, row).offset, block).expect("our own memory");
        }
        Ok(read)
    }

    /// Writes blocks of the share region, at most 16, on all members, through to media.
    ///
    /// # Errors
    /// [`GroupError`]: some members may have them, or parts of them.
    pub async fn write_share(&self, place: u64, blocks: &[Block]) -> Result<(), GroupError> {
        let count = self.check_share(place, blocks.len())?;
        let _section = self.0.sections.enter();
        let _lock = self.0.locks.lock(SHARES).await;
        let area = self.area().await;
        for (row, block) in (0..).zip(blocks) {
            self.0.work.write(area.held(0, row).offset, block).expect("our own memory");
        }
        let mut ops = self.batch();
        for member in (0..self.0.members.len()).filter(|m| self.keeps_guards(*m)) {
            push(&mut ops, Op::write(member, self.share_lba(place), count, 0));
        }
        let outcomes = self.run(&ops, |op| joined(op.range().map(|row| area.held(0, row)))).await;
        self.judge_writes(&ops, &outcomes)?;
        self.on_record().await
    }

    /// Gives a member the share region of one that has it; nobody writes it meanwhile.
    pub(super) async fn copy_shares(&self, member: usize) -> Result<(), GroupError> {
        let _section = self.0.sections.enter();
        let _lock = self.0.locks.lock(SHARES).await;
        let area = self.area().await;
        let shares = self.0.layout.shares;
        for from in (0..shares.blocks.0).step_by(16) {
            let (lba, count) = (self.share_lba(from), (shares.blocks.0 - from).min(CHUNK_BLOCKS));
            let place = |op: &Op| joined(op.range().map(|row| area.held(0, row)));
            let mut copied = false;
            for source in 0..self.0.members.len() {
                if !copied && self.is_live(source) {
                    let read = [Op::read(source, lba, count, 0)];
                    let outcome = self.run(&read, place).await[0];
                    copied = self.judge_read(source, outcome)?;
                }
            }
            if !copied {
                return Err(GroupError::Media);
            }
            let write = [Op::write(member, lba, count, 0)];
            let outcomes = self.run(&write, place).await;
            self.judge_writes(&write, &outcomes)?;
        }
        Ok(())
    }

    /// Makes whole stripes zeros, durably; where that reads as zeros the devices have their room back. Each stripe is old or zeros after a crash.
    ///
    /// # Errors
    /// [`GroupError`], and `Invalid` if it is not whole stripes.
    pub async fn zero(&self, lba: Lba, blocks: BlockCount) -> Result<(), GroupError> {
        self.going_on()?;
        let of_stripe = self.stripe_blocks();
        let end = lba.0.checked_add(blocks.0).filter(|end| *end <= self.blocks().0).ok_or(GroupError::Invalid)?;
        if !lba.0.is_multiple_of(of_stripe) || !end.is_multiple_of(of_stripe) {
            return Err(GroupError::Invalid);
        }
        let _section = self.0.sections.enter();
        for stripe in lba.0 / of_stripe..end / of_stripe {
            self.zero_stripe(stripe).await?;
        }
        self.on_record().await
    }

    async fn zero_stripe(&self, stripe: u64) -> Result<(), GroupError> {
        let _lock = self.0.locks.lock(stripe).await;
        let area = self.area().await;
        let runs = &self.0.runs[area.index()];
        let zeros = || (0..CHUNK_BLOCKS).map(|_| Guard::OF_ZEROS).collect();
        *runs.borrow_mut() = (0..self.0.geometry.members())
            .map(|member| Run { kind: RunKind::Written, stripe, member, first: 0, guards: zeros() })
            .collect();
        let intent = self.intend(runs, nowhere).await?;
        let mut ops = self.batch();
        for member in (0..self.0.geometry.members()).filter(|m| self.holds(*m, stripe)) {
            push(&mut ops, Op::zero(member, self.lba(stripe, 0), CHUNK_BLOCKS));
        }
        let outcomes = self.run(&ops, |_| super::SegmentList::new()).await;
        let judged = self.judge_writes(&ops, &outcomes);
        if matches!(judged, Err(GroupError::Fenced | GroupError::Lost | GroupError::Invalid)) {
            self.end(judged.expect_err("an error"));
            return judged;
        }
        // Zeroes have no way through to media of their own: the intent is needed until they are there.
        let mut flushes = self.batch();
        flushes.extend(ops.iter().map(|op| Op::flush(op.member())));
        let outcomes = self.run(&flushes, |_| super::SegmentList::new()).await;
        let flushed = self.judge_writes(&flushes, &outcomes);
        self.note_guards(runs);
        self.retire_intent(intent);
        judged.and(flushed)
    }

    fn check_share(&self, place: u64, blocks: usize) -> Result<u64, GroupError> {
        self.going_on()?;
        let inside = place.checked_add(blocks as u64).is_some_and(|end| end <= self.0.layout.shares.blocks.0);
        if inside && (1..=CHUNK_BLOCKS).contains(&(blocks as u64)) {
            Ok(blocks as u64)
        } else {
            Err(GroupError::Invalid)
        }
    }

    fn share_lba(&self, place: u64) -> Lba {
        Lba(self.0.layout.shares.start.0 + place)
    }
}
