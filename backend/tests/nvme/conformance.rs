//! What every device must do, whichever way it is reached: the promises of [`Device`], one by one.

use dyad_backend::device::{Device, DeviceError, Io, ReservationKey, ReservationOp, ReservationType, SubmitError};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{Rng, SeededRng};

/// A device and what it needs to run.
pub(crate) trait Way {
    type Device: Device;

    /// The device itself is in this process, so what it copies counts here.
    const EMULATED_HERE: bool = false;

    fn device(&self) -> &Self::Device;

    /// Memory that the device can reach.
    fn memory(&self, bytes: usize) -> Memory;

    /// Runs a future, and the device.
    fn run<T>(&self, future: impl Future<Output = T>) -> T;
}

/// Everything that needs no reservation.
pub(crate) fn blocks(way: &impl Way) {
    it_says_what_it_is(way);
    every_shape_of_memory_moves_the_right_bytes(way);
    zeroes_are_zeros_and_nothing_else(way);
    flush_and_fua_complete(way);
    what_does_not_fit_is_refused(way);
    a_full_queue_says_so_and_abandoned_commands_are_done(way);
    many_commands_at_once_agree_with_a_model(way);
}

fn it_says_what_it_is(way: &impl Way) {
    let info = way.device().info();
    assert!(info.blocks.0 >= 4096, "the suite needs 16 MiB");
    assert!(info.transfer_blocks_max.0 >= 16 && info.queue_depth >= 32);
    assert_ne!(info.id.0, [0; 16]);
}

fn fill(memory: &Memory, block: u64, byte: u8) {
    memory.write(block * 4096, &[byte; 4096]).unwrap();
}

fn byte(memory: &Memory, block: u64) -> u8 {
    let mut data = [0; 4096];
    memory.read(block * 4096, &mut data).unwrap();
    assert!(data.iter().all(|b| *b == data[0]), "block {block} is torn");
    data[0]
}

fn piece(memory: &Memory, first: u64, blocks: u32) -> Segment {
    memory.segment(first * 4096, blocks * 4096).unwrap()
}

fn pattern(index: u64, salt: u64) -> u8 {
    u8::try_from((index * 7 + salt * 13 + 1) % 255).unwrap() + 1
}

fn write<W: Way>(way: &W, lba: u64, segments: &[Segment]) -> Result<(), DeviceError> {
    way.run(way.device().submit(Io::Write { lba: Lba(lba), segments, fua: false }).unwrap())
}

fn read<W: Way>(way: &W, lba: u64, segments: &[Segment]) -> Result<(), DeviceError> {
    way.run(way.device().submit(Io::Read { lba: Lba(lba), segments }).unwrap())
}

fn every_shape_of_memory_moves_the_right_bytes<W: Way>(way: &W) {
    let longest = u32::try_from(way.device().info().transfer_blocks_max.0.min(64)).unwrap();
    let (from, to) = (way.memory(256 * 4096), way.memory(256 * 4096));
    let shapes: Vec<Vec<(u64, u32)>> = vec![
        vec![(0, 1)],
        vec![(5, 2)],
        vec![(9, 1), (4, 1)],
        vec![(0, longest)],
        vec![(200, 1), (100, 1), (50, 1)],
        vec![(10, longest / 2), (120, longest / 2)],
        vec![(10, 1), (20, 2), (30, 3), (40, 5), (60, 1)],
        (0..16).map(|i| (i * 3, 1)).collect(),
    ];
    let copied = from.copied_bytes() + to.copied_bytes();
    let mut looked = 0;
    for (round, shape) in shapes.iter().enumerate() {
        let (round, lba) = (round as u64, round as u64 * 100);
        let list: Vec<_> = shape.iter().map(|(first, len)| piece(&from, *first, *len)).collect();
        let blocks: Vec<u64> = shape.iter().flat_map(|(first, len)| *first..*first + u64::from(*len)).collect();
        blocks.iter().enumerate().for_each(|(i, block)| fill(&from, *block, pattern(i as u64, round)));
        write(way, lba, &list).unwrap();
        let reversed: Vec<_> = shape.iter().rev().map(|(first, len)| piece(&to, *first, *len)).collect();
        read(way, lba, &reversed).unwrap();
        let order = shape.iter().rev().flat_map(|(first, len)| *first..*first + u64::from(*len));
        for (i, block) in order.enumerate() {
            assert_eq!(byte(&to, block), pattern(i as u64, round), "shape {shape:?}, block {i}");
        }
        looked += 2 * blocks.len() as u64 * 4096;
    }
    let moved = from.copied_bytes() + to.copied_bytes() - copied - looked;
    assert!(moved == 0 || W::EMULATED_HERE, "the way to the device copies nothing");
}

fn zeroes_are_zeros_and_nothing_else(way: &impl Way) {
    let memory = way.memory(32 * 4096);
    (0..32).for_each(|block| fill(&memory, block, 9));
    write(way, 1000, &[piece(&memory, 0, 16)]).unwrap();
    let zeroes = Io::WriteZeroes { lba: Lba(1004), blocks: BlockCount(7) };
    way.run(way.device().submit(zeroes).unwrap()).unwrap();
    read(way, 1000, &[piece(&memory, 16, 16)]).unwrap();
    for block in 0..16 {
        assert_eq!(byte(&memory, 16 + block), if (4..11).contains(&block) { 0 } else { 9 });
    }
}

fn flush_and_fua_complete(way: &impl Way) {
    let memory = way.memory(4096);
    fill(&memory, 0, 3);
    let segments = [piece(&memory, 0, 1)];
    way.run(way.device().submit(Io::Write { lba: Lba(1), segments: &segments, fua: true }).unwrap()).unwrap();
    way.run(way.device().submit(Io::Flush).unwrap()).unwrap();
}

fn what_does_not_fit_is_refused(way: &impl Way) {
    let memory = way.memory(1024 * 4096);
    let foreign = Memory::anonymous(4096);
    let info = way.device().info();
    let end = info.blocks.0;
    let one = piece(&memory, 0, 1);
    let too_long = u32::try_from(info.transfer_blocks_max.0 + 1).unwrap();
    for io in [
        Io::Read { lba: Lba(end), segments: &[one] },
        Io::Read { lba: Lba(end - 1), segments: &[piece(&memory, 0, 2)] },
        Io::Read { lba: Lba(u64::MAX), segments: &[one] },
        Io::Read { lba: Lba(0), segments: &[] },
        Io::Read { lba: Lba(0), segments: &[piece(&foreign, 0, 1)] },
        Io::Read { lba: Lba(0), segments: &[Segment { len: 512, ..one }] },
        Io::Write { lba: Lba(0), segments: &[Segment { offset: 512, ..one }], fua: true },
        Io::Write { lba: Lba(0), segments: &[Segment { offset: memory.len(), ..one }], fua: false },
        Io::Write { lba: Lba(0), segments: &[piece(&memory, 0, too_long)], fua: false },
        Io::WriteZeroes { lba: Lba(0), blocks: BlockCount(0) },
        Io::WriteZeroes { lba: Lba(end - 1), blocks: BlockCount(2) },
    ] {
        assert_eq!(way.device().submit(io).err(), Some(SubmitError::Invalid), "{io:?}");
    }
}

fn a_full_queue_says_so_and_abandoned_commands_are_done(way: &impl Way) {
    let depth = u64::from(way.device().info().queue_depth);
    let memory = way.memory(usize::try_from(depth + 2).unwrap() * 4096);
    (0..=depth).for_each(|block| fill(&memory, block, 0x5a));
    let submit = |index: u64| {
        let segments = [piece(&memory, index, 1)];
        way.device().submit(Io::Write { lba: Lba(2000 + index), segments: &segments, fua: false })
    };
    let commands: Vec<_> = (0..depth).map(|index| submit(index).unwrap()).collect();
    assert_eq!(submit(depth).err(), Some(SubmitError::Full));
    drop(commands);
    assert_eq!(submit(depth).err(), Some(SubmitError::Full), "the device still has them");
    let last = loop {
        match submit(depth) {
            Ok(command) => break command,
            Err(SubmitError::Full) => way.run(turn()),
            Err(error) => panic!("{error}"),
        }
    };
    way.run(last).unwrap();
    for index in 0..=depth {
        loop {
            read(way, 2000 + index, &[piece(&memory, depth + 1, 1)]).unwrap();
            if byte(&memory, depth + 1) == 0x5a {
                break;
            }
        }
    }
}

/// Lets everything have a turn.
async fn turn() {
    let mut again = true;
    std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if std::mem::take(&mut again) { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
}

fn many_commands_at_once_agree_with_a_model(way: &impl Way) {
    const LANES: u64 = 24;
    const BLOCKS: u64 = 16;
    let memory = way.memory(usize::try_from(LANES * BLOCKS).unwrap() * 4096);
    let mut rng = SeededRng::new(7);
    // Each lane has blocks of its own, so the order between lanes does not matter.
    let mut model = vec![0_u8; usize::try_from(LANES * BLOCKS).unwrap()];
    let zeroes = Io::WriteZeroes { lba: Lba(3000), blocks: BlockCount(LANES * BLOCKS) };
    way.run(way.device().submit(zeroes).unwrap()).unwrap();
    for round in 0..20 {
        let mut commands = Vec::new();
        for lane in 0..LANES {
            let first = rng.below(BLOCKS);
            let blocks = 1 + rng.below(BLOCKS - first);
            let at = lane * BLOCKS + first;
            for block in at..at + blocks {
                let value = pattern(block, round);
                fill(&memory, block, value);
                model[usize::try_from(block).unwrap()] = value;
            }
            let segments = [piece(&memory, at, u32::try_from(blocks).unwrap())];
            let io = Io::Write { lba: Lba(3000 + at), segments: &segments, fua: rng.one_in(4) };
            commands.push(way.device().submit(io).unwrap());
        }
        for command in commands {
            way.run(command).unwrap();
        }
        let commands: Vec<_> = (0..LANES)
            .map(|lane| {
                let segments = [piece(&memory, lane * BLOCKS, u32::try_from(BLOCKS).unwrap())];
                way.device().submit(Io::Read { lba: Lba(3000 + lane * BLOCKS), segments: &segments }).unwrap()
            })
            .collect();
        for command in commands {
            way.run(command).unwrap();
        }
        for (block, expected) in model.iter().enumerate() {
            assert_eq!(byte(&memory, block as u64), *expected, "round {round}, block {block}");
        }
    }
}

/// Two hosts of one device: PROTOCOLS 5 as directors use it.
pub(crate) fn reservations(a: &impl Way, b: &impl Way, hosts: [[u8; 16]; 2]) {
    let (key_a, key_b, all) = (ReservationKey(0xa), ReservationKey(0xb), ReservationKey(0));
    let (exclusive, registrants) = (ReservationType::WriteExclusive, ReservationType::WriteExclusiveAllRegistrants);
    let ok = |result: Result<(), DeviceError>| result.unwrap();
    let memory = [a.memory(4096), b.memory(4096)];
    let write_a = || write(a, 7, &[piece(&memory[0], 0, 1)]);
    let write_b = || write(b, 7, &[piece(&memory[1], 0, 1)]);
    let conflict = Err(DeviceError::ReservationConflict);
    assert!(a.device().info().reservations && a.device().info().id == b.device().info().id);
    // As in `both`.
    ok(a.run(a.device().reserve(ReservationOp::Register { key: key_a })));
    ok(a.run(a.device().reserve(ReservationOp::Acquire { key: key_a, rtype: registrants })));
    assert_eq!(write_b(), conflict, "not registered");
    assert_eq!(read(b, 7, &[piece(&memory[1], 0, 1)]), Ok(()), "reading is free");
    ok(b.run(b.device().reserve(ReservationOp::Register { key: key_b })));
    ok(b.run(b.device().reserve(ReservationOp::Acquire { key: key_b, rtype: registrants })));
    assert_eq!((write_a(), write_b()), (Ok(()), Ok(())));
    // B takes over.
    let take = ReservationOp::PreemptAndAbort { key: key_b, victim: all, rtype: exclusive };
    ok(b.run(b.device().reserve(take)));
    assert_eq!((write_a(), write_b()), (conflict, Ok(())));
    let report = b.run(b.device().reservation_report()).unwrap();
    assert_eq!((report.rtype, report.persistent), (Some(1), true));
    assert_eq!(
        report.registrants.iter().map(|r| (r.host, r.key, r.holder)).collect::<Vec<_>>(),
        [(hosts[1], key_b, true)]
    );
    assert_eq!(a.run(a.device().reserve(ReservationOp::Acquire { key: key_a, rtype: exclusive })), conflict);
    // A comes back: registering is not enough, the holder has to change back.
    ok(a.run(a.device().reserve(ReservationOp::Register { key: key_a })));
    assert_eq!(write_a(), conflict);
    let back = ReservationOp::PreemptAndAbort { key: key_b, victim: key_b, rtype: registrants };
    ok(b.run(b.device().reserve(back)));
    assert_eq!((write_a(), write_b()), (Ok(()), Ok(())));
    ok(a.run(a.device().reserve(ReservationOp::Unregister { key: key_a })));
    assert_eq!(write_a(), conflict);
    ok(b.run(b.device().reserve(ReservationOp::Release { key: key_b, rtype: registrants })));
    assert_eq!((write_a(), write_b()), (Ok(()), Ok(())));
}
