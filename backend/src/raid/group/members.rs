//! The members of a group and commands on several of them at once.
//!
//! A member goes one way: `Live`, then `Failing` when it cannot do its part, then `Out` when that is on record. `Failing` and `Out` members are
//! neither read nor written. The last ones that the group's data needs stay `Live`, whatever they do.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use dyad_matrix::Segment;
use dyad_nvme::types::{BLOCK_BYTES, Lba};
use dyad_reactor::Handle;
use dyad_reactor::sync::{Permit, Permits};

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

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum MemberState {
    Live,
    Failing,
    Out,
}

/// A member; its device may not be there.
#[derive(Debug)]
pub(super) struct Member<D> {
    pub(super) device: Option<D>,
    pub(super) id: DeviceId,
    pub(super) state: Cell<MemberState>,
    /// Room in the device's queue, which is this group's alone.
    pub(super) room: Permits,
}

/// One command on one member. Where its blocks lie in memory is said when it is submitted.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) member: usize,
    pub(super) lba: Lba,
    pub(super) write: bool,
    /// Blocks.
    pub(super) blocks: u64,
    /// The first block, as the caller of the batch counts them.
    pub(super) from: u64,
}

pub(super) type Ops = heapless::Vec<Op, BATCH_MAX>;
pub(super) type Outcomes = heapless::Vec<Result<(), DeviceError>, BATCH_MAX>;
pub(super) type SegmentList = heapless::Vec<Segment, SEGMENTS_MAX>;

/// Runs commands at the same time to their ends, those that are aborted again. `ops` are in the order of their members, so that whoever waits for room
/// at one member holds room only at lower ones. `segments` tells where blocks lie. Writes are done when they are on media.
pub(super) async fn run<D: Device>(
    handle: &Handle,
    members: &[Member<D>],
    ops: &[Op],
    segments: impl Fn(&Op) -> SegmentList,
    aborted: &Cell<u64>,
) -> Outcomes {
    debug_assert!(ops.is_sorted_by_key(|op| op.member));
    let mut outcomes: Outcomes = ops.iter().map(|_| Err(DeviceError::Aborted)).collect();
    for _ in 0..ATTEMPTS_MAX {
        let mut running = heapless::Vec::<Option<(D::Completion, Permit)>, BATCH_MAX>::new();
        for (op, outcome) in ops.iter().zip(&mut outcomes) {
            let mut started = None;
            if *outcome == Err(DeviceError::Aborted) {
                let permit = members[op.member].room.acquire(1).await;
                match submit(handle, &members[op.member], op, &segments).await {
                    Ok(completion) => started = Some((completion, permit)),
                    Err(error) => *outcome = Err(error),
                }
            }
            assert!(running.push(started).is_ok(), "as many as commands");
        }
        poll_fn(|cx| {
            for (slot, outcome) in running.iter_mut().zip(&mut outcomes) {
                let ended = match slot {
                    Some((completion, _)) => Pin::new(completion).poll(cx),
                    None => continue,
                };
                if let Poll::Ready(result) = ended {
                    *outcome = result;
                    *slot = None;
                }
            }
            if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let again = outcomes.iter().filter(|outcome| **outcome == Err(DeviceError::Aborted)).count();
        if again == 0 {
            break;
        }
        aborted.set(aborted.get() + again as u64);
    }
    outcomes
}

async fn submit<D: Device>(
    handle: &Handle,
    member: &Member<D>,
    op: &Op,
    segments: &impl Fn(&Op) -> SegmentList,
) -> Result<D::Completion, DeviceError> {
    let Some(device) = &member.device else { return Err(DeviceError::Gone) };
    for _ in 0..FULL_LOOKS_MAX {
        let submitted = {
            let segments = segments(op);
            debug_assert_eq!(segments.iter().map(|s| u64::from(s.len)).sum::<u64>(), op.blocks * BLOCK_BYTES as u64);
            device.submit(match op.write {
                true => Io::Write { lba: op.lba, segments: &segments, fua: true },
                false => Io::Read { lba: op.lba, segments: &segments },
            })
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
