//! What every [`Volume`] promises, over those that need no array. The initiator is judged by the simulator and the demo.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_host::blocking::{Page, StartError};
use dyad_host::{FakeVolume, FileVolume, Volume, VolumeError, VolumeThread};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::Reactor;
use dyad_reactor::executor::Limits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const BLOCKS: u64 = 8;

/// These volumes are done at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a volume without an array waits for nothing"),
    }
}

fn frames(volume: &impl Volume, count: usize) -> Pinned {
    volume.pool().try_take(count).expect("free frames")
}

fn filled(volume: &impl Volume, bytes: &[u8]) -> Pinned {
    let frames = frames(volume, bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        frames.write(index, &[*byte; FRAME_BYTES]);
    }
    frames
}

fn read(volume: &impl Volume, at: u64, count: usize) -> Result<Vec<u8>, VolumeError> {
    let frames = now(volume.read_scatter(Lba(at), frames(volume, count)))?;
    let mut bytes = [0; FRAME_BYTES];
    Ok((0..count)
        .map(|index| {
            frames.read(index, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is one write's");
            bytes[0]
        })
        .collect())
}

fn conforms(volume: &impl Volume) {
    assert_eq!(volume.blocks(), BlockCount(BLOCKS));
    assert_eq!(read(volume, 0, 8), Ok(vec![0; 8]), "never written");
    assert_eq!(now(volume.write_gather(Lba(2), &filled(volume, &[1, 2, 3]))), Ok(()));
    assert_eq!(now(volume.write_gather(Lba(3), &filled(volume, &[4]))), Ok(()));
    assert_eq!(read(volume, 1, 5), Ok(vec![0, 1, 4, 3, 0]));
    assert_eq!(now(volume.flush()), Ok(()));
    assert_eq!(now(volume.write_durable(Lba(5), &filled(volume, &[5]))), Ok(()));
    assert_eq!(read(volume, 4, 2), Ok(vec![3, 5]));

    let beyond = Err(VolumeError::EndOfVolume);
    assert_eq!(now(volume.write_gather(Lba(7), &filled(volume, &[9, 9]))), beyond, "half of it would fit");
    assert_eq!(read(volume, 7, 1), Ok(vec![0]), "and nothing of it was done");
    assert_eq!(now(volume.write_gather(Lba(u64::MAX), &filled(volume, &[9]))), beyond);
    assert_eq!(now(volume.write_durable(Lba(8), &filled(volume, &[9]))), beyond);
    assert_eq!(read(volume, 8, 1), Err(VolumeError::EndOfVolume));
    assert_eq!(now(volume.write_gather(Lba(8), &frames(volume, 0))), Ok(()), "nothing at the end is no operation");
}

fn pool() -> FramePool {
    FramePool::new(Memory::anonymous(32 * FRAME_BYTES))
}

#[test]
fn the_fake_conforms() {
    conforms(&FakeVolume::new(pool(), BlockCount(BLOCKS)));
}

#[test]
fn a_file_conforms_and_keeps_its_blocks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BLOCKS * 4096 + 100).unwrap();
    conforms(&FileVolume::new(pool(), file.reopen().unwrap()).unwrap());
    let again = FileVolume::new(pool(), file.reopen().unwrap()).unwrap();
    assert_eq!(read(&again, 2, 3), Ok(vec![1, 4, 3]));
}

#[test]
fn a_file_that_shrinks_says_so() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BLOCKS * 4096).unwrap();
    let volume = FileVolume::new(pool(), file.reopen().unwrap()).unwrap();
    file.as_file().set_len(4096).unwrap();
    assert_eq!(read(&volume, 1, 1), Err(VolumeError::File(std::io::ErrorKind::UnexpectedEof)));
}

/// Every byte of block `n` in round `round`.
fn page(n: u64, round: u8) -> Box<Page> {
    Box::new([u8::try_from(n % 100).unwrap() + round * 100; FRAME_BYTES])
}

fn on_a_thread(depth: usize) -> VolumeThread {
    let make = move |_: &mut Reactor| {
        let pool = FramePool::new(Memory::anonymous(depth * 16 * FRAME_BYTES));
        Ok::<_, std::convert::Infallible>(FakeVolume::new(pool, BlockCount(100)))
    };
    VolumeThread::start(Limits { tasks: 0, timers: 16 }, Duration::ZERO, depth, make).expect("a thread")
}

#[test]
fn pages_go_to_and_come_from_wherever_they_are() {
    let volume = on_a_thread(4);
    assert_eq!(volume.blocks(), BlockCount(100));
    let pages: Vec<_> = (0..40).map(|n| page(n, 1)).collect();
    let mut gathered: Vec<&Page> = pages.iter().map(|page| &**page).collect();
    gathered.reverse();
    assert_eq!(volume.write_gather(Lba(10), &gathered), Ok(()), "more than one command holds");
    let mut found: Vec<_> = (0..40).map(|_| page(0, 2)).collect();
    // Scattered in any order: here the last page gets the first block.
    let mut scattered: Vec<&mut Page> = found.iter_mut().map(|page| &mut **page).rev().collect();
    assert_eq!(volume.read_scatter(Lba(10), &mut scattered), Ok(()));
    assert!(found == pages);
    assert_eq!(volume.flush().wait(), Ok(Vec::new()));
    assert_eq!(volume.write_gather(Lba(10), &[]), Ok(()), "nothing is to be done");
    assert_eq!(volume.write_gather(Lba(99), &gathered[..2]), Err(VolumeError::EndOfVolume));
    assert_eq!(volume.read(Lba(u64::MAX), 2).wait(), Err(VolumeError::EndOfVolume));
    assert_eq!(volume.read(Lba(99), 1).wait(), Ok(vec![[0; FRAME_BYTES]]), "nothing of it was done");
}

#[test]
fn operations_are_waited_for_by_looking_by_awaiting_and_by_an_eventfd() {
    let volume = on_a_thread(4);
    let completions = volume.completions();
    let writes: Vec<_> = (0..3).map(|n| volume.write(Lba(n), vec![*page(n, 1)], true)).collect();
    let mut counted = 0;
    while counted < 3 {
        let mut fds = [PollFd::new(completions, PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)), Ok(1), "in time");
        let mut number = [0; 8];
        assert_eq!(nix::unistd::read(completions, &mut number), Ok(8));
        counted += u64::from_ne_bytes(number);
    }
    for write in &writes {
        assert_eq!(write.poll_now(), Some(Ok(Vec::new())), "the eventfd has said so");
        assert_eq!(write.poll_now(), None, "once");
    }
    let mut read = pin!(volume.read(Lba(2), 1));
    let found = loop {
        match read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(found) => break found,
            Poll::Pending => std::thread::yield_now(),
        }
    };
    assert_eq!(found, Ok(vec![*page(2, 1)]));
}

#[test]
fn threads_that_submit_more_than_may_be_outstanding_wait_for_each_other() {
    let volume = on_a_thread(2);
    std::thread::scope(|scope| {
        for first in 0..8 {
            let volume = &volume;
            scope.spawn(move || {
                for n in (first..96).step_by(8) {
                    // Three at once on two places: whoever is third waits for the first two.
                    let writes = [(); 3].map(|()| volume.write(Lba(n), vec![*page(n, 1)], false));
                    for write in writes {
                        assert_eq!(write.wait(), Ok(Vec::new()));
                    }
                }
            });
        }
    });
    let found = volume.read(Lba(0), 96).wait().unwrap();
    assert!((0..).zip(&found).all(|(n, found)| *found == *page(n, 1)));
    let last = volume.read(Lba(0), 1);
    drop(volume);
    assert!(last.poll_now().is_some(), "it has ended, one way or the other");
}

#[test]
fn a_volume_that_cannot_be_made_says_why() {
    let make = |_: &mut Reactor| Err::<FakeVolume, _>(VolumeError::TimedOut);
    let failed = VolumeThread::start(Limits { tasks: 0, timers: 16 }, Duration::ZERO, 2, make).err();
    assert!(matches!(failed, Some(StartError::Volume(VolumeError::TimedOut))));
}
