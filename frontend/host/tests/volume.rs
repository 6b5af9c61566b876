//! What every [`Volume`] promises, over those that need no array. The initiator is judged by the simulator and the demo.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dyad_host::{FakeVolume, FileVolume, Volume, VolumeError};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{BlockCount, Lba};

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
