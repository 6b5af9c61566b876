//! Does a valid I/O command on whatever holds the blocks.

use std::cell::Cell;

use dyad_cache::CacheError;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::Status;
use dyad_nvme::types::BlockCount;
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;

use super::backing::{Backing, HostData, pieces, take_frames};
use super::command::{IoCommand, Operation, RANGE_BYTES, Run, parse_range, range_list_bytes};
use crate::command::failure_status;

/// Does `command` on a namespace of `size` blocks.
///
/// # Errors
/// The status to answer with; `None` if there is nobody to answer, because the host's data could not be moved.
pub async fn execute<B: Backing>(
    handle: &Handle,
    backing: &B,
    command: &IoCommand,
    size: BlockCount,
    deadline: Time,
    host: &impl HostData,
) -> Result<(), Option<Status>> {
    let namespace = command.namespace;
    let done = match command.operation {
        Operation::Read(run) => backing.read(namespace, run, deadline, host).await,
        Operation::Write { run, fua } => backing.write(namespace, run, fua, deadline, host).await,
        Operation::Verify(run) => backing.read(namespace, run, deadline, &Nowhere).await,
        Operation::WriteZeroes { run, deallocate, fua } => {
            backing.zero(namespace, run, deallocate, fua, deadline).await
        }
        Operation::Flush => backing.flush(namespace, deadline).await,
        Operation::Compare(run) => return compare(handle, backing, command, run, deadline, host).await,
        Operation::DatasetManagement { ranges, deallocate } => {
            let list = RangeList { ranges, deallocate, size };
            return manage(handle, backing, command, list, deadline, host).await;
        }
    };
    done.map_err(|error| failure_status(error, command.operation.writes()))
}

/// Where blocks go that are only to be readable.
struct Nowhere;

impl HostData for Nowhere {
    async fn fetch(&self, _: u64, _: &[Segment]) -> Result<(), CacheError> {
        Err(CacheError::Host)
    }

    async fn deliver(&self, _: u64, _: &[Segment]) -> Result<(), CacheError> {
        Ok(())
    }
}

/// Compares what is delivered with frames.
struct Compared<'a> {
    frames: &'a Pinned,
    same: Cell<bool>,
}

impl HostData for Compared<'_> {
    async fn fetch(&self, _: u64, _: &[Segment]) -> Result<(), CacheError> {
        Err(CacheError::Host)
    }

    async fn deliver(&self, at: u64, segments: &[Segment]) -> Result<(), CacheError> {
        let first = usize::try_from(at).expect("a piece is short") / FRAME_BYTES;
        let memory = self.frames.pool().memory();
        self.same.set(self.same.get() && same(memory, segments, self.frames, first));
        Ok(())
    }
}

/// Whether the segments, whole frames, hold what the frames from `first` on hold.
fn same(memory: &Memory, segments: &[Segment], frames: &Pinned, first: usize) -> bool {
    let (mut ours, mut theirs) = ([0; FRAME_BYTES], [0; FRAME_BYTES]);
    let starts = segments
        .iter()
        .flat_map(|segment| (segment.offset..segment.offset + u64::from(segment.len)).step_by(FRAME_BYTES));
    starts.zip(first..).all(|(offset, index)| {
        memory.read(offset, &mut ours).expect("segments lie in their memory");
        frames.read(index, &mut theirs);
        ours == theirs
    })
}

async fn compare<B: Backing>(
    handle: &Handle,
    backing: &B,
    command: &IoCommand,
    run: Run,
    deadline: Time,
    host: &impl HostData,
) -> Result<(), Option<Status>> {
    let failed = |error| failure_status(error, false);
    let mut same = true;
    // All of the host's data is fetched, whatever comes of it: transports expect that.
    for (at, piece) in pieces(run) {
        let count = usize::try_from(piece.blocks.0).expect("a piece is short");
        let frames = take_frames(handle, backing.pool(), count, deadline).await.map_err(failed)?;
        host.fetch(at, &frames.segments()).await.map_err(failed)?;
        let compared = Compared { frames: &frames, same: Cell::new(true) };
        backing.read(command.namespace, piece, deadline, &compared).await.map_err(failed)?;
        same &= compared.same.get();
    }
    if same { Ok(()) } else { Err(Some(Status::COMPARE_FAILURE)) }
}

/// What a Dataset Management command asks for.
#[derive(Debug, Copy, Clone)]
struct RangeList {
    ranges: u16,
    deallocate: bool,
    size: BlockCount,
}

async fn manage<B: Backing>(
    handle: &Handle,
    backing: &B,
    command: &IoCommand,
    list: RangeList,
    deadline: Time,
    host: &impl HostData,
) -> Result<(), Option<Status>> {
    let failed = |error| failure_status(error, true);
    let frame = take_frames(handle, backing.pool(), 1, deadline).await.map_err(failed)?;
    let segment = Segment { len: range_list_bytes(list.ranges), ..backing.pool().segment(frame.frames()[0]) };
    host.fetch(0, &[segment]).await.map_err(failed)?;
    // A range that does not fit is an error of the whole command, before anything is done.
    for index in 0..list.ranges {
        range_at(backing.pool(), segment, index, list.size).map_err(Some)?;
    }
    for index in (0..list.ranges).filter(|_| list.deallocate) {
        if let Some(run) = range_at(backing.pool(), segment, index, list.size).map_err(Some)? {
            backing.discard(command.namespace, run, deadline).await.map_err(failed)?;
        }
    }
    Ok(())
}

fn range_at(pool: &FramePool, list: Segment, index: u16, size: BlockCount) -> Result<Option<Run>, Status> {
    let mut range = [0; RANGE_BYTES];
    let offset = list.offset + u64::from(index) * RANGE_BYTES as u64;
    pool.memory().read(offset, &mut range).expect("the list lies in its frame");
    parse_range(&range, size)
}
