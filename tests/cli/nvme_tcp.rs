//! Two real directors behind NVMe/TCP ports: a host sees one volume through both, and goes on when the home is killed.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use dyad_director::layout::ArrayDir;
use dyad_director::membership::DirectorId;
use dyad_director::node::port::array_nqn;
use dyad_director::trial::processes::{ARRAY, Processes};
use dyad_host::{TcpInitiator, TcpInitiatorConfig, Volume};
use dyad_matrix::Memory;
use dyad_matrix::frames::{FRAME_BYTES, FramePool, Pinned};
use dyad_nvme::types::{HostId, Lba, NamespaceId};
use dyad_reactor::Reactor;
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::Options;

const BOTH: [DirectorId; 2] = [DirectorId::A, DirectorId::B];
const BLOCKS: u64 = 64;

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The directors meet over TCP, with a secret.
fn meet_over_tcp(array: &ArrayDir) {
    let path = array.configuration();
    let text = std::fs::read_to_string(&path).unwrap();
    let text =
        (0..2).fold(text, |text, n| text.replace(&format!("director{n}.sock"), &format!("127.0.0.1:{}", free_port())));
    std::fs::write(&path, format!("{text}\n[matrix]\nsecret = \"0123456789abcdef0123456789abcdef\"\n")).unwrap();
}

fn start(array: &ArrayDir, addresses: [SocketAddr; 2], tcp: bool) -> Processes {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_dyad"));
    let processes = Processes::new(array.clone()).unwrap().with_program(program);
    if tcp {
        meet_over_tcp(array);
    }
    let mut processes = BOTH
        .into_iter()
        .zip(addresses)
        .fold(processes, |processes, (me, address)| processes.with_arguments(me, [format!("--nvme-tcp={address}")]));
    processes.start_whole().unwrap();
    processes
}

fn filled(volume: &impl Volume, byte: u8) -> Pinned {
    let frames = volume.pool().try_take(1).unwrap();
    frames.write(0, &[byte; FRAME_BYTES]);
    frames
}

/// What write number `round` puts into a block.
fn contents(block: u64, round: u8) -> u8 {
    u8::try_from(block % 50).unwrap() + round * 50
}

async fn write_all(volume: &impl Volume, round: u8) {
    for block in 0..BLOCKS {
        let frames = filled(volume, contents(block, round));
        volume.write_gather(Lba(block), &frames).await.unwrap_or_else(|error| panic!("block {block}: {error}"));
    }
}

async fn check_all(volume: &impl Volume, round: u8) {
    let mut bytes = [0; FRAME_BYTES];
    for block in 0..BLOCKS {
        let frames = volume.read_scatter(Lba(block), filled(volume, 0)).await;
        let frames = frames.unwrap_or_else(|error| panic!("block {block}: {error}"));
        frames.read(0, &mut bytes);
        assert_eq!(bytes, [contents(block, round); FRAME_BYTES], "block {block}");
    }
}

#[test]
fn a_host_goes_on_over_the_other_director_when_the_home_is_killed() {
    a_host_goes_on(false);
}

#[test]
fn a_host_goes_on_with_directors_that_meet_over_tcp() {
    a_host_goes_on(true);
}

fn a_host_goes_on(tcp: bool) {
    let directory = tempfile::tempdir().unwrap();
    let addresses = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let mut processes = start(&ArrayDir::new(directory.path()), addresses, tcp);
    let config = TcpInitiatorConfig {
        addresses: addresses.to_vec(),
        subsystem_nqn: array_nqn(ARRAY),
        host_nqn: "nqn.2026-01.org.dyad:test".into(),
        host: HostId([7; 16]),
        namespace: NamespaceId(1),
        depth: 16,
        header_digest: true,
        data_digest: true,
        keep_alive: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(20),
        path_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(60),
        retry_delay: Duration::from_millis(20),
    };
    let limits = Limits { tasks: TcpInitiator::tasks(2) + 1, timers: 64 };
    let mut reactor = Reactor::new(Options { limits, max_spin: Duration::ZERO, core: None }).unwrap();
    let pool = FramePool::new(Memory::anonymous(64 * FRAME_BYTES));
    let volume = TcpInitiator::attach(&reactor.handle(), config, pool).expect("attached");
    reactor.add_source(volume.source()).unwrap();
    let (stopper, done) = (reactor.stopper(), Rc::new(Cell::new(false)));
    let ended = Rc::clone(&done);
    reactor.handle().spawn("host", async move {
        // One of the two is not the home, and says so.
        write_all(&volume, 1).await;
        check_all(&volume, 1).await;
        volume.flush().await.unwrap();
        let home = async || volume.geometry().await.unwrap().and_then(|found| found.group_of(Lba(0))?.home);
        let served_by = home().await;
        assert!(served_by.is_some(), "the geometry names the home");
        let lost = processes.home().expect("somebody serves");
        processes.kill(lost).unwrap();
        write_all(&volume, 2).await;
        check_all(&volume, 2).await;
        assert_ne!(home().await, served_by, "and the new one");
        assert!(volume.counters().retries > 0);
        processes.start(lost).unwrap();
        while volume.live_paths() < 2 {
            volume.flush().await.unwrap();
        }
        ended.set(true);
        stopper.stop();
    });
    reactor.run().unwrap();
    assert!(done.get());
}
