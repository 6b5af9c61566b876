//! RAID 1: every block on every leg.
//!
//! A leg goes one way, by this table:
//!
//! | state | event | next |
//! |---|---|---|
//! | `Live` | gone; a write or flush failed for good; and another leg is live | `Failing` |
//! | `Live` | the same, and it is the last one | `Live`: the command fails, and the group is lost if the leg is gone |
//! | `Live`, `Failing` | its failure is on record | `Out`; if none is live any more, the group is lost |
//!
//! `Failing` and `Out` legs are neither read nor written. While a leg is `Failing`, writes and flushes that it missed do not succeed: the partner, or
//! our next life, would still take the leg for a whole one. A leg that is `Out` comes back only by a rebuild (a later issue).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::sync::{Permits, Signal};

use super::join::join;
use super::{GroupError, GroupState};
use crate::device::{Device, DeviceError, DeviceId, Io, SubmitError};

/// Most legs of a group.
pub const LEGS_MAX: usize = 4;

/// How often a command is tried on a leg that aborts it (a controller reset does) before the leg counts as failed.
const ATTEMPTS_MAX: u32 = 3;

/// A queue that is full although this group has room in it holds commands that somebody abandoned. Nothing tells us when they end.
const FULL_LOOK_AGAIN: Duration = Duration::from_millis(1);
/// And a device must end them in bounded time.
const FULL_LOOKS_MAX: u32 = 10_000;

/// How long a write waits for a failure to be put on record.
const RECORD_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a group cannot be assembled.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewGroupError {
    /// All legs are on record as failed, or there are none.
    #[error("no leg is left")]
    NoLegs,
    /// More than [`LEGS_MAX`].
    #[error("more than {LEGS_MAX} legs")]
    TooManyLegs,
    /// One device as two legs protects against nothing.
    #[error("{0:?} is there twice")]
    SameDevice(DeviceId),
}

/// What happened so far.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Reads of one leg that met a media error (and were served by another, if that could).
    pub read_media_errors: u64,
    /// Commands that a leg aborted and that were tried again.
    pub aborted: u64,
    /// Legs that failed.
    pub legs_failed: u64,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum LegState {
    Live,
    Failing,
    Out,
}

#[derive(Debug)]
struct Leg<D> {
    device: D,
    id: DeviceId,
    state: Cell<LegState>,
    /// Room in the device's queue, which is this group's alone.
    room: Permits,
}

#[derive(Debug)]
struct Inner<D> {
    handle: Handle,
    /// At most [`LEGS_MAX`].
    legs: Vec<Leg<D>>,
    blocks: BlockCount,
    transfer_blocks_max: BlockCount,
    /// Legs that were on record as failed when the group was assembled.
    missing: usize,
    lost: Cell<bool>,
    /// Where the next read goes when the legs are equally busy.
    turn: Cell<usize>,
    counters: Cell<Counters>,
    changes: Signal,
}

/// A group of equal legs. Clones are the same group.
#[derive(Debug)]
pub struct Raid1<D>(Rc<Inner<D>>);

impl<D> Clone for Raid1<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// How a write or flush went on one leg.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum OnLeg {
    Done,
    /// There is no such leg, or it is on record as failed.
    NotThere,
    /// It missed this command and that is not on record.
    Missed,
    /// It is the last one.
    Failed(GroupError),
}

impl<D: Device> Raid1<D> {
    /// Assembles the group from its devices, whose queues it uses alone. `out` are the devices that are on record as failed: they are left alone.
    ///
    /// # Errors
    /// [`NewGroupError`].
    pub fn new(handle: Handle, devices: Vec<D>, out: &[DeviceId]) -> Result<Self, NewGroupError> {
        if devices.len() > LEGS_MAX {
            return Err(NewGroupError::TooManyLegs);
        }
        let mut legs: Vec<Leg<D>> = Vec::with_capacity(devices.len());
        for device in devices {
            let info = device.info();
            if legs.iter().any(|leg| leg.id == info.id) {
                return Err(NewGroupError::SameDevice(info.id));
            }
            let state = if out.contains(&info.id) { LegState::Out } else { LegState::Live };
            let room = Permits::new(usize::from(info.queue_depth));
            legs.push(Leg { device, id: info.id, state: Cell::new(state), room });
        }
        let live = |leg: &&Leg<D>| leg.state.get() == LegState::Live;
        let infos = || legs.iter().filter(live).map(|leg| leg.device.info());
        let blocks = infos().map(|info| info.blocks).min().ok_or(NewGroupError::NoLegs)?;
        let transfer_blocks_max = infos().map(|info| info.transfer_blocks_max).min().ok_or(NewGroupError::NoLegs)?;
        Ok(Self(Rc::new(Inner {
            handle,
            legs,
            blocks,
            transfer_blocks_max,
            missing: out.len(),
            lost: Cell::new(false),
            turn: Cell::new(0),
            counters: Cell::default(),
            changes: Signal::new(),
        })))
    }

    /// Its size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.0.blocks
    }

    /// Most blocks that one read or write may name.
    #[must_use]
    pub fn transfer_blocks_max(&self) -> BlockCount {
        self.0.transfer_blocks_max
    }

    /// Lets commands name `memory`. Done at start.
    ///
    /// # Errors
    /// [`GroupError::Invalid`] if a device cannot reach it, [`GroupError::Lost`] if no device is there. A device that is gone fails out when it is used.
    pub fn map(&self, memory: &Memory) -> Result<(), GroupError> {
        let mut mapped = false;
        for leg in self.legs_in(LegState::Live) {
            match leg.device.map(memory) {
                Ok(()) => mapped = true,
                Err(SubmitError::Gone) => {}
                Err(SubmitError::Invalid | SubmitError::Full) => return Err(GroupError::Invalid),
            }
        }
        if mapped { Ok(()) } else { Err(GroupError::Lost) }
    }

    /// Reads blocks from the leg that is least busy; from another one if that fails. Segments as in [`Io::Read`].
    ///
    /// # Errors
    /// [`GroupError`], but not `Unrecorded`. The memory may have been written to.
    pub async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.check(lba, segments)?;
        let turn = self.0.turn.get();
        self.0.turn.set((turn + 1) % self.0.legs.len());
        let mut tried = [false; LEGS_MAX];
        let mut error = GroupError::Lost;
        while let Some(index) = self.least_busy(turn, &tried) {
            tried[index] = true;
            let leg = &self.0.legs[index];
            match self.on_device(leg, &Io::Read { lba, segments }).await {
                Ok(()) => return Ok(()),
                Err(DeviceError::Media) => {
                    self.count(|c| c.read_media_errors += 1);
                    error = GroupError::Media;
                }
                Err(DeviceError::Aborted) => {}
                Err(DeviceError::Gone) => self.fail(leg, DeviceError::Gone),
                Err(DeviceError::ReservationConflict) => return Err(GroupError::Fenced),
                Err(DeviceError::Rejected) => return Err(GroupError::Invalid),
            }
        }
        Err(error)
    }

    /// Writes blocks to all legs in parallel; with `fua` onto their media. Segments as in [`Io::Write`].
    ///
    /// # Errors
    /// [`GroupError`]. Any part of it may have been done, on any leg.
    pub async fn write(&self, lba: Lba, segments: &[Segment], fua: bool) -> Result<(), GroupError> {
        self.check(lba, segments)?;
        self.on_all(&Io::Write { lba, segments, fua }).await
    }

    /// What was written before is on the media of all legs when this is done.
    ///
    /// # Errors
    /// [`GroupError`]: nothing is known to be durable that was not before.
    pub async fn flush(&self) -> Result<(), GroupError> {
        self.on_all(&Io::Flush).await
    }

    /// What it can do now.
    #[must_use]
    pub fn state(&self) -> GroupState {
        if self.0.lost.get() {
            GroupState::Lost
        } else if self.0.missing > 0 || self.0.legs.iter().any(|leg| leg.state.get() != LegState::Live) {
            GroupState::Degraded
        } else {
            GroupState::Optimal
        }
    }

    /// Fires when a leg changes its state, or the group.
    #[must_use]
    pub fn changes(&self) -> &Signal {
        &self.0.changes
    }

    /// The legs whose failure has to be put on record, durably and where the partner will see it; then tell [`Raid1::recorded`]. Writes wait for it.
    /// Nobody, once the group is lost: which of its devices is the newest must not be decided by a director that reaches none.
    pub fn failing(&self) -> impl Iterator<Item = DeviceId> + '_ {
        let lost = self.0.lost.get();
        self.legs_in(LegState::Failing).filter(move |_| !lost).map(|leg| leg.id)
    }

    /// The failure of this device is on record: it is not used any more, whether or not this group has noticed. To be told for the whole
    /// record whenever this director becomes the home, **read after fencing**: until then the former home may have gone on without a leg.
    pub fn recorded(&self, failed: DeviceId) {
        for leg in self.0.legs.iter().filter(|leg| leg.id == failed) {
            leg.state.set(LegState::Out);
        }
        if self.legs_in(LegState::Live).next().is_none() {
            self.0.lost.set(true);
        }
        self.0.changes.notify_all();
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    fn check(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let blocks = bytes / BLOCK_BYTES as u64;
        let inside = lba.0.checked_add(blocks).is_some_and(|end| end <= self.0.blocks.0);
        if inside && (1..=self.0.transfer_blocks_max.0).contains(&blocks) { Ok(()) } else { Err(GroupError::Invalid) }
    }

    async fn on_all(&self, io: &Io<'_>) -> Result<(), GroupError> {
        let outcomes = join(|index| self.on_leg(index, io)).await;
        let (mut done, mut missed, mut failed) = (false, false, None);
        for outcome in outcomes {
            match outcome {
                OnLeg::Done => done = true,
                OnLeg::NotThere => {}
                OnLeg::Missed => missed = true,
                // To be fenced outweighs everything else.
                OnLeg::Failed(GroupError::Fenced) => return Err(GroupError::Fenced),
                OnLeg::Failed(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None if !done => Err(GroupError::Lost),
            None if missed => self.on_record().await,
            None => Ok(()),
        }
    }

    async fn on_leg(&self, index: usize, io: &Io<'_>) -> OnLeg {
        let Some(leg) = self.0.legs.get(index) else { return OnLeg::NotThere };
        match leg.state.get() {
            LegState::Live => {}
            LegState::Failing => return OnLeg::Missed,
            LegState::Out => return OnLeg::NotThere,
        }
        match self.on_device(leg, io).await {
            Ok(()) => OnLeg::Done,
            Err(DeviceError::ReservationConflict) => OnLeg::Failed(GroupError::Fenced),
            Err(DeviceError::Rejected) => OnLeg::Failed(GroupError::Invalid),
            Err(error @ (DeviceError::Media | DeviceError::Aborted | DeviceError::Gone)) => {
                self.fail(leg, error);
                match (leg.state.get(), error) {
                    (LegState::Failing | LegState::Out, _) => OnLeg::Missed,
                    (LegState::Live, DeviceError::Media) => OnLeg::Failed(GroupError::Media),
                    (LegState::Live, _) => OnLeg::Failed(GroupError::Lost),
                }
            }
        }
    }

    /// One command on one device, when there is room, again if it is aborted.
    async fn on_device(&self, leg: &Leg<D>, io: &Io<'_>) -> Result<(), DeviceError> {
        for _ in 0..ATTEMPTS_MAX {
            let _room = leg.room.acquire(1).await;
            match self.submit(leg, io).await?.await {
                Err(DeviceError::Aborted) => self.count(|c| c.aborted += 1),
                outcome => return outcome,
            }
        }
        Err(DeviceError::Aborted)
    }

    async fn submit(&self, leg: &Leg<D>, io: &Io<'_>) -> Result<D::Completion, DeviceError> {
        for _ in 0..FULL_LOOKS_MAX {
            match leg.device.submit(*io) {
                Ok(completion) => return Ok(completion),
                Err(SubmitError::Full) => self.0.handle.sleep(FULL_LOOK_AGAIN).await,
                Err(SubmitError::Invalid) => return Err(DeviceError::Rejected),
                Err(SubmitError::Gone) => return Err(DeviceError::Gone),
            }
        }
        Err(DeviceError::Aborted)
    }

    /// Waits until no failure is missing in the record.
    async fn on_record(&self) -> Result<(), GroupError> {
        let deadline = self.0.handle.now() + RECORD_WAIT_MAX;
        loop {
            let seen = self.0.changes.generation();
            if self.legs_in(LegState::Failing).next().is_none() {
                return Ok(());
            }
            if self.0.lost.get() {
                return Err(GroupError::Lost);
            }
            let change = self.0.changes.changed_since(seen);
            if self.0.handle.timeout_at(deadline, change).await.is_err() {
                return Err(GroupError::Unrecorded);
            }
        }
    }

    /// A leg cannot do its part any more. The last one stays: it is all there is.
    fn fail(&self, leg: &Leg<D>, why: DeviceError) {
        if leg.state.get() != LegState::Live {
            return;
        }
        if self.legs_in(LegState::Live).count() > 1 {
            leg.state.set(LegState::Failing);
            self.count(|c| c.legs_failed += 1);
        } else if why != DeviceError::Media {
            self.0.lost.set(true);
        }
        self.0.changes.notify_all();
    }

    fn least_busy(&self, turn: usize, tried: &[bool; LEGS_MAX]) -> Option<usize> {
        let count = self.0.legs.len();
        let candidates = (0..count).map(|i| (turn + i) % count);
        let live = candidates.filter(|i| !tried[*i] && self.0.legs[*i].state.get() == LegState::Live);
        live.min_by_key(|i| std::cmp::Reverse(self.0.legs[*i].room.available()))
    }

    fn legs_in(&self, state: LegState) -> impl Iterator<Item = &Leg<D>> {
        self.0.legs.iter().filter(move |leg| leg.state.get() == state)
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }
}
