//! What a command of a volume costs above the group: no allocation, however many extents and slices it touches.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use dyad_backend::format::{Block, GroupId};
use dyad_backend::pool::{Allocation, Description, Extent, Facts, Ground, Name, Pool, Volume, VolumeUuid};
use dyad_backend::raid::GroupError;
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};

/// A group that keeps its share region and takes data for granted.
#[derive(Clone)]
struct Null {
    group: GroupId,
    shares: Rc<RefCell<Vec<Block>>>,
}

impl Ground for Null {
    fn facts(&self) -> Facts {
        Facts { group: self.group, stripe_blocks: 64, stripes: 1 << 10, share_blocks: 64, copies: 1 }
    }

    async fn read_share(&self, _copy: usize, place: u64, blocks: &mut [Block]) -> Result<bool, GroupError> {
        let from = usize::try_from(place).expect("small");
        blocks.copy_from_slice(&self.shares.borrow()[from..from + blocks.len()]);
        Ok(true)
    }

    async fn write_share(&self, place: u64, blocks: &[Block]) -> Result<(), GroupError> {
        let from = usize::try_from(place).expect("small");
        self.shares.borrow_mut()[from..from + blocks.len()].copy_from_slice(blocks);
        Ok(())
    }

    async fn zero(&self, _lba: Lba, _blocks: BlockCount) -> Result<(), GroupError> {
        Ok(())
    }

    async fn read(&self, _lba: Lba, _segments: &[Segment]) -> Result<(), GroupError> {
        Ok(())
    }

    async fn write(&self, _lba: Lba, _segments: &[Segment]) -> Result<(), GroupError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), GroupError> {
        Ok(())
    }
}

/// Nothing here ever waits.
fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn commands_of_volumes_allocate_nothing() {
    let ids = [GroupId([1; 16]), GroupId([2; 16]), GroupId([3; 16])];
    let shares = || Rc::new(RefCell::new(vec![[0; BLOCK_BYTES]; 64]));
    let pools = ids.map(|group| run(Pool::format(Null { group, shares: shares() }, None)).expect("a pool"));
    let (name, extent) = (Name::new("v").expect("a name"), Extent::of_blocks(BlockCount(64)).expect("an extent"));
    let description = Description::new(name, VolumeUuid([9; 16]), extent, 300, Allocation::Thin, ids[..2].to_vec())
        .and_then(|volume| volume.with_groups(ids.to_vec(), 600))
        .expect("a volume");
    for (pool, group) in pools.iter().zip(ids) {
        run(pool.ensure(description.share(group).expect("a share"))).expect("room");
    }
    let memory = Memory::anonymous(256 * BLOCK_BYTES);
    let mut volume = Volume::new(&description, &pools).expect("the volume");
    volume.map(&memory);
    let segments: Vec<Segment> = (0..16).map(|at| memory.segment(at * 16 * 4096, 16 * 4096).expect("inside")).collect();
    let blocks = volume.blocks().0;
    // Warm-up: every slice of the first two thirds is there, the rest reads as zeros.
    for lba in (0..blocks * 2 / 3).step_by(64) {
        run(volume.write(Lba(lba), &segments[..1])).expect("room");
    }
    let before = crate::allocations::of_this_thread();
    for lba in (0..blocks * 2 / 3 - 256).step_by(331) {
        run(volume.write(Lba(lba), &segments)).expect("a write");
    }
    for lba in (0..blocks - 256).step_by(97) {
        run(volume.read(Lba(lba), &segments)).expect("a read");
    }
    run(volume.flush()).expect("a flush");
    assert_eq!(crate::allocations::of_this_thread() - before, 0);
}
