//! The members of a group and commands on several of them at once.
//!
//! What becomes of a member is said by this table ([`MemberState::after`]) and nothing else:
//!
//! | state | event | next |
//! |---|---|---|
//! | `Live`, `Rebuilding` | `Failed`: gone, a write failed for good, slow, errs too often, retired by command | `Failing` |
//! | `Failing` | `Recorded`: the group's record says that it is out, and the caller's | `Out` |
//! | `Out` | `Replaced`: a spare is in its place | `Preparing` |
//! | `Preparing` | `Failed` | `Out`: no record knows the spare |
//! | `Preparing` | `Prepared`: it has all that is not data | `Rebuilding` |
//! | `Rebuilding` | `Rebuilt`: it has all data | `Live` |
//!
//! When a group is opened, members that are not used are `Out` if the caller has them on record, and `Failing` if not.
//!
//! `Live` members are read and written; a `Rebuilding` one in the stripes that it has; a `Preparing` one gets guards; the others nothing. The last ones
//! that the group's data needs stay `Live`, whatever they do.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::Segment;
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::Permits;

use super::pool::{Pool, Pooled};
use crate::device::{Device, DeviceError, DeviceId, Io, SubmitError};

/// Most commands of one batch.
pub(super) const BATCH_MAX: usize = 18;
/// Most segments of one command.
pub(super) const SEGMENTS_MAX: usize = 18;

/// How often a command is tried on a device that aborts it (a controller reset does).
const ATTEMPTS_MAX: u32 = 3;
/// A queue that is full although this group has room in it holds commands that somebody abandoned. Nothing tells us when they end.
const FULL_LOOK_AGAIN: Duration = Duration::from_millis(1);
/// And a device must end them in bounded time.
const FULL_LOOKS_MAX: u32 = 10_000;

/// What a member is now.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum MemberState {
    /// It has everything.
    Live,
    /// It failed, and that is not on record yet. Writes that it missed are not acknowledged.
    Failing,
    /// It is not used.
    Out,
    /// A spare gets what is not data.
    Preparing,
    /// A spare gets the data, stripe by stripe.
    Rebuilding,
}

/// What happens to a member.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum MemberEvent {
    Failed,
    Recorded,
    Replaced,
    Prepared,
    Rebuilt,
}

impl MemberState {
    /// The table. `None`: nothing changes.
    pub(super) const fn after(self, event: MemberEvent) -> Option<Self> {
        match (self, event) {
            (Self::Live | Self::Rebuilding, MemberEvent::Failed) => Some(Self::Failing),
            (Self::Failing, MemberEvent::Recorded) | (Self::Preparing, MemberEvent::Failed) => Some(Self::Out),
            (Self::Out, MemberEvent::Replaced) => Some(Self::Preparing),
            (Self::Preparing, MemberEvent::Prepared) => Some(Self::Rebuilding),
            (Self::Rebuilding, MemberEvent::Rebuilt) => Some(Self::Live),
            _ => None,
        }
    }
}

/// A member; its device may not be there.
#[derive(Debug)]
pub(super) struct Member<D> {
    pub(super) device: RefCell<Option<D>>,
    /// As the group's record knows it.
    pub(super) id: Cell<DeviceId>,
    pub(super) state: Cell<MemberState>,
    /// Of a member that is being rebuilt: so many stripes.
    pub(super) rebuilt: Cell<u64>,
    /// Room in the device's queue, which is this group's alone.
    pub(super) room: RefCell<Permits>,
}

impl<D: Device> Member<D> {
    pub(super) fn new(device: Option<D>, id: DeviceId, state: MemberState, rebuilt: u64) -> Self {
        let room = RefCell::new(room_of(device.as_ref()));
        Self {
            device: RefCell::new(device),
            id: Cell::new(id),
            state: Cell::new(state),
            rebuilt: Cell::new(rebuilt),
            room,
        }
    }

    /// Goes where the table says; true if that is somewhere else.
    pub(super) fn event(&self, event: MemberEvent) -> bool {
        let next = self.state.get().after(event);
        self.state.set(next.unwrap_or(self.state.get()));
        next.is_some()
    }

    /// Puts a spare in its place. Nothing of the old device is outstanding.
    pub(super) fn replace(&self, spare: D) {
        assert!(self.event(MemberEvent::Replaced), "only a member that is out is replaced");
        *self.room.borrow_mut() = room_of(Some(&spare));
        *self.device.borrow_mut() = Some(spare);
    }

    pub(super) fn device(&self) -> Option<D> {
        self.device.borrow().clone()
    }
}

fn room_of<D: Device>(device: Option<&D>) -> Permits {
    Permits::new(device.map_or(0, |device| usize::from(device.info().queue_depth)))
}

/// One command on one member. Where its blocks lie in memory is said when it is submitted.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) lba: Lba,
    from: u16,
    blocks: u8,
    member: u8,
    kind: Kind,
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero,
    Flush,
}

const _: () = assert!(size_of::<Op>() <= 16);

impl Op {
    /// Reads blocks; `from` is the first one as the caller of the batch counts them.
    pub(super) fn read(member: usize, lba: Lba, blocks: u64, from: u64) -> Self {
        let small = |n: u64| u8::try_from(n).expect("at most a chunk");
        let member = u8::try_from(member).expect("at most 18 members");
        Self {
            lba,
            from: u16::try_from(from).expect("a command is short"),
            blocks: small(blocks),
            member,
            kind: Kind::Read,
        }
    }

    /// Writes blocks, through to media.
    pub(super) fn write(member: usize, lba: Lba, blocks: u64, from: u64) -> Self {
        Self { kind: Kind::Write, ..Self::read(member, lba, blocks, from) }
    }

    /// Makes blocks zeros; on media after a flush.
    pub(super) fn zero(member: usize, lba: Lba, blocks: u64) -> Self {
        Self { kind: Kind::Zero, ..Self::read(member, lba, blocks, 0) }
    }

    pub(super) fn flush(member: usize) -> Self {
        Self { kind: Kind::Flush, ..Self::read(member, Lba(0), 0, 0) }
    }

    pub(super) fn member(&self) -> usize {
        usize::from(self.member)
    }

    pub(super) fn blocks(&self) -> u64 {
        u64::from(self.blocks)
    }

    pub(super) fn from(&self) -> u64 {
        u64::from(self.from)
    }

    /// It is no read.
    pub(super) fn writes(&self) -> bool {
        self.kind != Kind::Read
    }

    /// The blocks as the caller counts them.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.from()..self.from() + self.blocks()
    }
}

pub(super) type Ops = Pooled<Op, BATCH_MAX>;
/// Where completions are while they are waited for.
pub(super) type Slots<D> = Pool<Option<<D as Device>::Completion>, BATCH_MAX>;
pub(super) type Outcomes = heapless::Vec<Result<(), DeviceError>, BATCH_MAX>;
pub(super) type SegmentList = heapless::Vec<Segment, SEGMENTS_MAX>;

/// Commands under way. Whoever abandons them gives their room back: the devices' queues tell how full they are.
struct Running<'a, D: Device> {
    members: &'a [Member<D>],
    ops: &'a [Op],
    slots: Pooled<Option<D::Completion>, BATCH_MAX>,
}

impl<D: Device> Drop for Running<'_, D> {
    fn drop(&mut self) {
        for (op, _) in self.ops.iter().zip(self.slots.iter()).filter(|(_, slot)| slot.is_some()) {
            self.members[op.member()].room.borrow().add(1);
        }
    }
}

/// Runs commands at the same time to their ends, those that are aborted again. `ops` are in the order of their members, so that whoever waits for room
/// at one member holds room only at lower ones. `segments` tells where blocks lie; `ended` hears how each attempt went, and how long it took. Writes are done
/// when they are on media.
pub(super) async fn run<D: Device>(
    handle: &Handle,
    members: &[Member<D>],
    slots: &Slots<D>,
    ops: &[Op],
    segments: impl Fn(&Op) -> SegmentList,
    ended: impl Fn(&Op, Result<(), DeviceError>, Duration),
) -> Outcomes {
    debug_assert!(ops.is_sorted_by_key(|op| op.member));
    let mut outcomes: Outcomes = ops.iter().map(|_| Err(DeviceError::Aborted)).collect();
    for _ in 0..ATTEMPTS_MAX {
        let mut running = Running { members, ops, slots: slots.take() };
        for (op, outcome) in ops.iter().zip(&mut outcomes) {
            let mut started = None;
            if *outcome == Err(DeviceError::Aborted) {
                let room = members[op.member()].room.borrow().clone();
                let permit = room.acquire(1).await;
                match submit(handle, &members[op.member()], op, &segments).await {
                    Ok(completion) => {
                        permit.forget();
                        started = Some(completion);
                    }
                    Err(error) => *outcome = Err(error),
                }
            }
            assert!(running.slots.push(started).is_ok(), "as many as commands");
        }
        let start = handle.now();
        poll_fn(|cx| {
            for ((slot, outcome), op) in running.slots.iter_mut().zip(&mut outcomes).zip(ops) {
                let polled = match slot {
                    Some(completion) => Pin::new(completion).poll(cx),
                    None => continue,
                };
                if let Poll::Ready(result) = polled {
                    *outcome = result;
                    *slot = None;
                    members[op.member()].room.borrow().add(1);
                    ended(op, result, handle.now().since(start));
                }
            }
            if running.slots.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if !outcomes.contains(&Err(DeviceError::Aborted)) {
            break;
        }
    }
    outcomes
}

async fn submit<D: Device>(
    handle: &Handle,
    member: &Member<D>,
    op: &Op,
    segments: &impl Fn(&Op) -> SegmentList,
) -> Result<D::Completion, DeviceError> {
    for _ in 0..FULL_LOOKS_MAX {
        let submitted = match &*member.device.borrow() {
            None => Err(SubmitError::Gone),
            Some(device) => {
                let segments = segments(op);
                let bytes = segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
                debug_assert!(matches!(op.kind, Kind::Zero | Kind::Flush) || bytes == op.blocks() * BLOCK_BYTES as u64);
                device.submit(match op.kind {
                    Kind::Read => Io::Read { lba: op.lba, segments: &segments },
                    Kind::Write => {
                        let fua = !is_active(Mutation::CleanInDeviceCache);
                        Io::Write { lba: op.lba, segments: &segments, fua }
                    }
                    Kind::Zero => Io::WriteZeroes { lba: op.lba, blocks: BlockCount(op.blocks()) },
                    Kind::Flush => Io::Flush,
                })
            }
        };
        match submitted {
            Ok(completion) => return Ok(completion),
            Err(SubmitError::Full) => handle.sleep(FULL_LOOK_AGAIN).await,
            Err(SubmitError::Invalid) => return Err(DeviceError::Rejected),
            Err(SubmitError::Gone) => return Err(DeviceError::Gone),
        }
    }
    Err(DeviceError::Aborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_go_by_the_table_and_no_other_way() {
        use MemberEvent::{Failed, Prepared, Rebuilt, Recorded, Replaced};
        use MemberState::{Failing, Live, Out, Preparing, Rebuilding};
        let table = [
            (Live, Failed, Failing),
            (Rebuilding, Failed, Failing),
            (Failing, Recorded, Out),
            (Out, Replaced, Preparing),
            (Preparing, Failed, Out),
            (Preparing, Prepared, Rebuilding),
            (Rebuilding, Rebuilt, Live),
        ];
        for state in [Live, Failing, Out, Preparing, Rebuilding] {
            for event in [Failed, Recorded, Replaced, Prepared, Rebuilt] {
                let expected = table.iter().find(|(from, by, _)| (*from, *by) == (state, event)).map(|(_, _, to)| *to);
                assert_eq!(state.after(event), expected, "{state:?} {event:?}");
            }
        }
    }
}
