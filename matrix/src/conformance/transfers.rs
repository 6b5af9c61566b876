//! Messages, RDMA and immediate data: order, completion points, credits.

use super::{
    BOTH, Bed, Case, DEPTH, End, LEN, RELIABLE, TAG, bytes, levels, memory, pair, pattern, settle, sibling, wait,
};
use crate::memory::{HugePages, Memory, Segment};
use crate::provider::{
    BrokenReason, Descriptor, DescriptorError, PostError, Provider, Reliability, RemoteAccess, RemoteAddress,
    SendOperation, WorkQueue,
};

/// The tests of this room.
pub(super) fn cases<B: Bed>() -> Vec<Case<B>> {
    cases![
        messages_arrive_once_in_order_and_whole,
        a_message_waits_for_a_receive,
        a_completion_waits_for_no_receive,
        early_levels_complete_early,
        an_unreliable_message_without_a_receive_is_lost,
        credits_are_bounded_by_the_queue,
        rdma_moves_scattered_bytes_both_ways,
        messages_are_gathered_and_scattered,
        a_message_behind_a_write_comes_after_it,
        a_message_behind_a_read_comes_after_it,
        immediate_data_arrives,
        regions_registered_later_are_reached,
        vis_are_independent,
    ]
}

fn messages_arrive_once_in_order_and_whole<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for level in levels(&first.0.provider) {
        let (a, b) = sibling(bed, &first, level, BOTH);
        let lens = [0, 1, 63, 64, 111, 112, 113, 128, 4096, 5000, 20_000, 65_536, 99_999, 7, 112, 300];
        for round in 0..3_u32 {
            for (cookie, &len) in (0..).zip(&lens) {
                b.receive(0, LEN, cookie);
                a.memory.write(0, &pattern(len, round)).expect("in range");
                a.send(len, cookie).expect("room in the queue");
                let mut ends = [false; 2];
                while ends != [true; 2] {
                    if let Some(done) = a.try_completion() {
                        assert_eq!((done.queue, done.cookie, done.result), (WorkQueue::Send, cookie, Ok(len)));
                        ends[0] = true;
                    } else if let Some(done) = b.try_completion() {
                        assert_eq!((done.queue, done.cookie, done.result), (WorkQueue::Receive, cookie, Ok(len)));
                        assert!(bytes(&b.memory, 0, len) == pattern(len, round), "{len} bytes came wrong");
                        ends[1] = true;
                    } else {
                        assert!(bed.step(), "a message of {len} bytes does not arrive");
                    }
                }
            }
        }
        // Many at once.
        for cookie in 0..u64::from(DEPTH) {
            b.receive(cookie * 64, 64, cookie);
            let len = u32::try_from(cookie).expect("small");
            a.post(SendOperation::Send, &[a.segment(cookie, len)], 100 + cookie).expect("room in the queue");
        }
        for cookie in 0..u64::from(DEPTH) {
            let len = u32::try_from(cookie).expect("small");
            assert_eq!(b.completion(bed), (WorkQueue::Receive, cookie, Ok(len)));
            assert_eq!(a.completion(bed), (WorkQueue::Send, 100 + cookie, Ok(len)));
            assert_eq!(bytes(&b.memory, cookie * 64, len), bytes(&a.memory, cookie, len));
        }
    }
}

fn a_message_waits_for_a_receive<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, b"patience").expect("in range");
    a.send(8, 1).expect("room in the queue");
    settle(bed);
    assert_eq!((a.try_completion(), b.try_completion()), (None, None));
    b.receive(0, 64, 2);
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 2, Ok(8)));
    assert_eq!(bytes(&b.memory, 0, 8), b"patience");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(8)));
}

fn a_completion_waits_for_no_receive<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.send(1, 1).expect("room in the queue");
    a.receive(0, 8, 2);
    b.send(3, 3).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Receive, 2, Ok(3)));
    // What goes back to b now is behind a message that b has no receive for.
    a.send(1, 4).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Send, 3, Ok(3)));
}

fn early_levels_complete_early<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let early = |level: &Reliability| *level != Reliability::ReliableReception;
    for level in levels(&first.0.provider).into_iter().filter(early) {
        let (a, b) = sibling(bed, &first, level, BOTH);
        a.memory.write(0, b"once").expect("in range");
        a.send(4, 1).expect("room in the queue");
        assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(4)), "{level:?}");
        // The memory is ours again.
        a.memory.write(0, b"over").expect("in range");
        if level == Reliability::ReliableDelivery {
            settle(bed);
            b.receive(0, 64, 2);
            assert_eq!(b.completion(bed), (WorkQueue::Receive, 2, Ok(4)));
            assert_eq!(bytes(&b.memory, 0, 4), b"once");
        }
    }
}

fn an_unreliable_message_without_a_receive_is_lost<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    if !levels(&first.0.provider).contains(&Reliability::UnreliableDelivery) {
        return;
    }
    let (a, b) = sibling(bed, &first, Reliability::UnreliableDelivery, BOTH);
    // A long one, a short one; then one that is too long for its receive.
    a.send(50_000, 1).expect("room in the queue");
    a.send(3, 2).expect("room in the queue");
    for cookie in 1..=2 {
        assert!(matches!(a.completion(bed), (WorkQueue::Send, done, Ok(_)) if done == cookie));
    }
    settle(bed);
    b.receive(0, 64, 3);
    a.send(50_000, 4).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 3, Err(DescriptorError::Length)));
    assert_eq!(a.completion(bed), (WorkQueue::Send, 4, Ok(50_000)));
    settle(bed);
    b.receive(0, 64, 5);
    a.memory.write(0, b"found").expect("in range");
    a.send(5, 6).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 5, Ok(5)));
    assert_eq!(bytes(&b.memory, 0, 5), b"found");
    assert_eq!((a.try_event(), b.try_event()), (None, None), "the connection is still there");
}

fn credits_are_bounded_by_the_queue<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for cookie in 0..u64::from(DEPTH) {
        a.send(30_000, cookie).expect("room in the queue");
    }
    assert_eq!(a.send(1, 99), Err(PostError::Full));
    settle(bed);
    assert_eq!(a.send(1, 99), Err(PostError::Full));
    for cookie in 0..u64::from(DEPTH) {
        b.receive(0, LEN, cookie);
    }
    let receive = b.provider.post_receive(b.vi, &[b.segment(0, 1)], 99);
    assert_eq!(receive, Err(PostError::Full));
    for cookie in 0..u64::from(DEPTH) {
        assert_eq!(b.completion(bed), (WorkQueue::Receive, cookie, Ok(30_000)));
    }
    settle(bed);
    assert_eq!(a.send(1, 99), Err(PostError::Full), "a completion that nobody took still fills the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 0, Ok(30_000)));
    b.receive(0, 1, 100);
    a.send(1, 99).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 100, Ok(1)));
}

fn rdma_moves_scattered_bytes_both_ways<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, &pattern(LEN, 3)).expect("in range");
    let scattered: Vec<Segment> = (0..64_u32).map(|i| a.segment(u64::from(63 - i) * 1024, 1 + i * 16 % 1000)).collect();
    let total: u32 = scattered.iter().map(|segment| segment.len).sum();
    a.write(&scattered, b.at(77), 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Ok(total)));
    let flat: Vec<u8> = scattered.iter().flat_map(|segment| bytes(&a.memory, segment.offset, segment.len)).collect();
    assert_eq!(bytes(&b.memory, 77, total), flat);
    let landed = bytes(&b.memory, 0, LEN).iter().filter(|&&byte| byte != 0).count();
    assert_eq!(landed, flat.len(), "nothing else was touched");

    b.memory.write(0, &pattern(LEN, 4)).expect("in range");
    a.post(SendOperation::RdmaRead(b.at(5)), &scattered, 2).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 2, Ok(total)));
    let flat: Vec<u8> = scattered.iter().flat_map(|segment| bytes(&a.memory, segment.offset, segment.len)).collect();
    assert_eq!(bytes(&b.memory, 5, total), flat);
    assert_eq!(b.try_completion(), None, "the target of an RDMA hears nothing");
}

fn messages_are_gathered_and_scattered<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for level in levels(&first.0.provider) {
        let (a, b) = sibling(bed, &first, level, BOTH);
        a.memory.write(0, &pattern(LEN, 7)).expect("in range");
        // As many pieces as there may be, of other lengths at the two ends, some empty; longer than an entry of a ring.
        let pieces = |end: &End<B::Provider>, len: u32| -> Vec<Segment> {
            (0..64_u32).map(|i| end.segment(u64::from(63 - i) * 2000, i * len % 1777)).collect()
        };
        let (from, to) = (pieces(&a, 601), pieces(&b, 997));
        let [sent, room] = [&from, &to].map(|list| list.iter().map(|segment| segment.len).sum::<u32>());
        assert!(sent <= room, "the message fits");
        b.provider.post_receive(b.vi, &to, 1).expect("room for a receive");
        a.post(SendOperation::Send, &from, 2).expect("room in the queue");
        assert_eq!(b.completion(bed), (WorkQueue::Receive, 1, Ok(sent)));
        assert_eq!(a.completion(bed), (WorkQueue::Send, 2, Ok(sent)));
        let flat = |end: &End<B::Provider>, list: &[Segment]| -> Vec<u8> {
            list.iter().flat_map(|segment| bytes(&end.memory, segment.offset, segment.len)).collect()
        };
        let (wanted, landed) = (flat(&a, &from), flat(&b, &to));
        assert!(landed[..wanted.len()] == wanted[..], "{level:?}");
        assert!(landed[wanted.len()..].iter().all(|&byte| byte == 0), "{level:?}: nothing else was touched");
    }
}

fn a_message_behind_a_write_comes_after_it<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for round in 1..=20 {
        b.receive(0, 8, round);
        a.memory.write(0, &pattern(LEN, u32::try_from(round).expect("small"))).expect("in range");
        a.write(&[a.segment(64, LEN - 64)], b.at(64), round).expect("room in the queue");
        a.send(8, 100 + round).expect("room in the queue");
        assert_eq!(b.completion(bed), (WorkQueue::Receive, round, Ok(8)));
        assert!(bytes(&b.memory, 64, LEN - 64) == bytes(&a.memory, 64, LEN - 64), "round {round}");
        assert_eq!(a.completion(bed), (WorkQueue::Send, round, Ok(LEN - 64)));
        assert_eq!(a.completion(bed), (WorkQueue::Send, 100 + round, Ok(8)));
    }
}

/// Who hears of the message may reuse what was read, however long that is.
fn a_message_behind_a_read_comes_after_it<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let len = a.provider.capabilities().transfer_bytes_max.min(4 << 20);
    let long = || {
        let bytes = usize::try_from(len).expect("it is small");
        Memory::shared("dyad-conformance", bytes, HugePages::No).expect("some memory")
    };
    let (target, source) = (long(), long());
    a.provider.register(&target, TAG, RemoteAccess::default()).expect("room for a region");
    let region = b.provider.register(&source, TAG, BOTH).expect("room for a region");
    for round in 1..=3 {
        let seed = u32::try_from(round).expect("small");
        source.write(0, &pattern(len, seed)).expect("in range");
        b.receive(0, 8, round);
        let read = SendOperation::RdmaRead(RemoteAddress { region, offset: 0 });
        a.post(read, &[target.segment(0, len).expect("in range")], round).expect("room in the queue");
        a.send(8, 100 + round).expect("room in the queue");
        assert_eq!(b.completion(bed), (WorkQueue::Receive, round, Ok(8)));
        source.fill_zero(0, u64::from(len)).expect("in range");
        assert_eq!(a.completion(bed), (WorkQueue::Send, round, Ok(len)));
        assert!(bytes(&target, 0, len) == pattern(len, seed), "round {round}");
        assert_eq!(a.completion(bed), (WorkQueue::Send, 100 + round, Ok(8)));
    }
}

fn immediate_data_arrives<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let operations = [
        (SendOperation::Send, 3, Some(0)),
        (SendOperation::RdmaWrite(b.at(9)), 0, Some(u32::MAX)),
        (SendOperation::Send, 3, None),
    ];
    for (operation, len, immediate) in operations {
        b.receive(0, 8, 1);
        let segments = [a.segment(0, 3)];
        let descriptor = Descriptor { operation, segments: &segments, immediate, cookie: 2 };
        a.provider.post_send(a.vi, &descriptor).expect("room in the queue");
        let received = wait(bed, || b.try_completion());
        assert_eq!((received.cookie, received.result, received.immediate), (1, Ok(len), immediate));
        let sent = wait(bed, || a.try_completion());
        assert_eq!((sent.cookie, sent.result, sent.immediate), (2, Ok(3), None));
    }
}

fn regions_registered_later_are_reached<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    for round in 1..=20_u64 {
        // No step between registering and writing: the handle may be faster than the memory.
        let later = memory();
        let region = b.provider.register(&later, TAG, BOTH).expect("room for a region");
        a.memory.write(0, &round.to_le_bytes()).expect("in range");
        a.write(&[a.segment(0, 8)], RemoteAddress { region, offset: 16 }, round).expect("room in the queue");
        assert_eq!(a.completion(bed), (WorkQueue::Send, round, Ok(8)));
        assert_eq!(bytes(&later, 16, 8), round.to_le_bytes());
        b.provider.deregister(region).expect("it is there");
    }
}

fn vis_are_independent<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
    // One waits for a receive; the other goes on.
    first.0.send(5, 1).expect("room in the queue");
    for round in 0..10 {
        y.receive(0, 8, round);
        x.send(5, round).expect("room in the queue");
        assert_eq!(y.completion(bed), (WorkQueue::Receive, round, Ok(5)));
        assert_eq!(x.completion(bed), (WorkQueue::Send, round, Ok(5)));
    }
    x.provider.destroy_vi(x.vi).expect("it is there");
    y.expect_broken(bed, BrokenReason::Disconnected);
    assert_eq!(x.try_event(), None, "who destroys needs no telling");
    first.1.receive(0, 8, 2);
    assert_eq!(first.1.completion(bed), (WorkQueue::Receive, 2, Ok(5)));
}
