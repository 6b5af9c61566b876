//! Our own initiator against our own target: the promises of a volume, over a socket.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dyad_host::tcp::AttachError;
use dyad_host::{TcpInitiator, TcpInitiatorConfig, Volume, VolumeError};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::Status;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::Reactor;
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::Options;

use crate::client::{HOST, HOST_ID, NQN, VOLUME};
use crate::{BLOCKS, Target};

fn config(target: &Target) -> TcpInitiatorConfig {
    TcpInitiatorConfig {
        addresses: vec![target.address],
        subsystem_nqn: NQN.into(),
        host_nqn: HOST.into(),
        host: HOST_ID,
        namespace: VOLUME,
        depth: 16,
        header_digest: false,
        data_digest: false,
        keep_alive: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(20),
        path_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        retry_delay: Duration::from_millis(10),
    }
}

/// Runs a host until `host` is done.
fn run<F: Future<Output = ()> + 'static>(config: TcpInitiatorConfig, host: impl FnOnce(TcpInitiator) -> F) {
    let limits = Limits { tasks: TcpInitiator::tasks(config.addresses.len()) + 1, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let pool = FramePool::new(Memory::anonymous(256 * FRAME_BYTES));
    let volume = TcpInitiator::attach(&reactor.handle(), config, pool).expect("attached");
    reactor.add_source(volume.source()).unwrap();
    let (done, stopper) = (Rc::new(Cell::new(false)), reactor.stopper());
    let work = host(volume);
    let ended = Rc::clone(&done);
    reactor.handle().spawn("host", async move {
        work.await;
        ended.set(true);
        stopper.stop();
    });
    reactor.run().unwrap();
    assert!(done.get());
}

fn filled(volume: &impl Volume, count: usize, salt: u8) -> Pinned {
    let frames = volume.pool().try_take(count).unwrap();
    for (index, byte) in (0..count).zip(salt..) {
        frames.write(index, &[byte; FRAME_BYTES]);
    }
    frames
}

fn bytes(frames: &Pinned) -> Vec<u8> {
    let mut bytes = [0; FRAME_BYTES];
    (0..frames.len())
        .map(|index| {
            frames.read(index, &mut bytes);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            bytes[0]
        })
        .collect()
}

async fn conforms(volume: TcpInitiator) {
    let read = async |at, count| {
        let frames = volume.pool().try_take(count).unwrap();
        volume.read_scatter(Lba(at), frames).await.map(|frames| bytes(&frames))
    };
    assert_eq!(volume.blocks(), BlockCount(BLOCKS));
    for (at, count, salt) in [(3, 1, 7), (10, 2, 20), (100, 16, 40)] {
        volume.write_gather(Lba(at), &filled(&volume, count, salt)).await.unwrap();
        let expected: Vec<u8> = (salt..).take(count).collect();
        assert_eq!(read(at, count).await, Ok(expected));
    }
    volume.write_durable(Lba(3), &filled(&volume, 1, 99)).await.unwrap();
    assert_eq!(read(2, 3).await, Ok(vec![0, 99, 0]));
    volume.flush().await.unwrap();
    let beyond = Err(VolumeError::EndOfVolume);
    assert_eq!(volume.write_gather(Lba(BLOCKS - 1), &filled(&volume, 2, 1)).await, beyond);
    assert_eq!(read(BLOCKS - 1, 1).await, Ok(vec![0]));
    assert_eq!(volume.pool().free_count(), 256, "no frame is held any more");
}

#[test]
fn a_volume_over_tcp_keeps_the_promises_of_volumes() {
    let target = Target::new();
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        run(TcpInitiatorConfig { header_digest, data_digest, ..config(&target) }, conforms);
        run(config(&target), async |volume: TcpInitiator| {
            let zeros = volume.pool().try_take(16).unwrap();
            (0..16).for_each(|index| zeros.write(index, &[0; FRAME_BYTES]));
            for at in [0, 16, 100] {
                volume.write_gather(Lba(at), &zeros).await.unwrap();
            }
        });
    }
}

#[test]
fn operations_fail_in_time_when_the_target_is_gone_and_give_their_frames_back() {
    let target = Target::new();
    let config = TcpInitiatorConfig { command_timeout: Duration::from_secs(2), ..config(&target) };
    let kept = Cell::new(Some(target));
    run(config, async move |volume: TcpInitiator| {
        volume.write_gather(Lba(0), &filled(&volume, 1, 1)).await.unwrap();
        drop(kept.take());
        assert_eq!(volume.write_gather(Lba(0), &filled(&volume, 1, 1)).await, Err(VolumeError::TimedOut));
        assert_eq!(volume.live_paths(), 0);
        assert_eq!(volume.flush().await, Err(VolumeError::TimedOut));
        assert_eq!(volume.pool().free_count(), 256);
    });
}

#[test]
fn operations_go_on_when_the_target_comes_back() {
    let target = Target::new();
    let (config, address) = (config(&target), target.address);
    let kept = Cell::new(Some(target));
    run(config, async move |volume: TcpInitiator| {
        volume.write_gather(Lba(0), &filled(&volume, 1, 1)).await.unwrap();
        drop(kept.take());
        kept.set(Some(Target::at(address, |_| {})));
        let frames = filled(&volume, 3, 5);
        assert_eq!(volume.write_gather(Lba(0), &frames).await, Ok(()));
        let frames = volume.read_scatter(Lba(0), frames).await.expect("read");
        assert_eq!(bytes(&frames), [5, 6, 7]);
        drop(frames);
        let counters = volume.counters();
        assert_eq!(counters.attached, 2);
        assert!(counters.retries > 0, "{counters:?}");
        assert_eq!(volume.pool().free_count(), 256);
    });
}

#[test]
fn operations_go_on_over_the_other_controller() {
    let targets = [Target::new(), Target::new()];
    let mut config = config(&targets[0]);
    config.addresses.push(targets[1].address);
    let [first, second] = targets;
    let kept = Cell::new(Some(first));
    run(config, async move |volume: TcpInitiator| {
        volume.write_gather(Lba(0), &filled(&volume, 1, 1)).await.unwrap();
        drop(kept.take());
        let frames = filled(&volume, 3, 5);
        assert_eq!(volume.write_gather(Lba(0), &frames).await, Ok(()));
        let frames = volume.read_scatter(Lba(0), frames).await.expect("read");
        assert_eq!(bytes(&frames), [5, 6, 7]);
        assert_eq!(volume.live_paths(), 1);
        drop(second);
    });
}

#[test]
fn a_host_that_is_not_known_is_told_so() {
    let target = Target::new();
    let reactor =
        Reactor::new(Options { limits: Limits { tasks: 1, timers: 1 }, max_spin: Duration::ZERO, core: None });
    let handle = reactor.as_ref().unwrap().handle();
    let pool = FramePool::new(Memory::anonymous(4 * FRAME_BYTES));
    let stranger = TcpInitiatorConfig { host_nqn: "nqn.stranger".into(), ..config(&target) };
    let refused = TcpInitiator::attach(&handle, stranger, pool).err().unwrap();
    assert!(
        matches!(refused, AttachError::Status { step: "Connect", status } if status.code() == Status::CONNECT_INVALID_HOST),
        "{refused}"
    );
}
