//! What the unit tests of this crate share: a medium, its hosts, bytes, and a way to run a future in virtual time.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, NamespaceId};
use dyad_reactor::virtual_time::VirtualTime;

use crate::device::{DeviceId, DeviceInfo};
use crate::fake::FakeMedium;

pub(crate) const HOST_A: [u8; 16] = [0xa; 16];
pub(crate) const HOST_B: [u8; 16] = [0xb; 16];

/// A small device with everything.
pub(crate) fn info(name: u8) -> DeviceInfo {
    DeviceInfo {
        id: DeviceId([name; 16]),
        namespace: NamespaceId(1),
        blocks: BlockCount(1024),
        transfer_blocks_max: BlockCount(32),
        queue_depth: 8,
        volatile_cache: true,
        reservations: true,
    }
}

pub(crate) fn medium(name: u8, time: &VirtualTime, seed: u64) -> FakeMedium {
    FakeMedium::new(info(name), time.clone(), seed.wrapping_mul(31).wrapping_add(u64::from(name)))
}

/// Runs a future that waits only for virtual time.
pub(crate) fn run<F: Future>(time: &VirtualTime, future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        assert!(step(time), "the future waits for something that will never happen");
    }
}

/// Goes to the next event and runs what is due; false if there is none.
pub(crate) fn step(time: &VirtualTime) -> bool {
    let Some(next) = time.next_event() else { return false };
    time.advance_to(next);
    time.run_due();
    true
}

/// Memory of so many blocks.
pub(crate) fn memory(blocks: usize) -> Memory {
    Memory::anonymous(blocks * BLOCK_BYTES)
}

/// A segment of whole blocks.
pub(crate) fn segment(memory: &Memory, first: u64, blocks: u64) -> Segment {
    let len = u32::try_from(BlockCount(blocks).bytes()).expect("a small segment");
    memory.segment(BlockCount(first).bytes(), len).expect("inside the memory")
}

/// Sets every byte of these blocks.
pub(crate) fn fill(memory: &Memory, first: u64, blocks: u64, byte: u8) {
    for block in first..first + blocks {
        memory.write(BlockCount(block).bytes(), &[byte; BLOCK_BYTES]).expect("inside the memory");
    }
}

/// The byte that fills this block; a panic if it is torn.
pub(crate) fn byte_of(memory: &Memory, block: u64) -> u8 {
    let mut bytes = [0; BLOCK_BYTES];
    memory.read(BlockCount(block).bytes(), &mut bytes).expect("inside the memory");
    uniform(&bytes)
}

/// The byte that fills this block; a panic if it is torn.
pub(crate) fn uniform(bytes: &[u8; BLOCK_BYTES]) -> u8 {
    assert!(bytes.iter().all(|b| *b == bytes[0]), "a block is torn");
    bytes[0]
}
