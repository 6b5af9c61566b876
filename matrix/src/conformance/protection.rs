//! What a descriptor may not do, and what a peer may no longer: no byte moves.

use super::{
    BOTH, Bed, Case, LEN, NONE, OTHER_TAG, RELIABLE, TAG, attributes, bytes, levels, memory, pair, pattern, settle,
    sibling, wait,
};
use crate::memory::{Memory, Segment};
use crate::provider::{
    BrokenReason, Descriptor, DescriptorError, Event, PostError, Provider, RegionHandle, Reliability, RemoteAccess,
    RemoteAddress, ResourceError, Revocable, SEGMENTS_MAX, SendOperation, WorkQueue,
};

/// The tests of this room.
pub(super) fn cases<B: Bed>() -> Vec<Case<B>> {
    cases![
        remote_protection_moves_no_byte,
        local_protection_moves_no_byte,
        a_vi_without_the_bit_refuses,
        malformed_descriptors_are_not_taken,
        a_message_longer_than_its_receive_is_an_error,
        a_transfer_longer_than_the_most_is_an_error,
        a_revoked_region_is_left_alone,
        a_revoked_vi_is_broken_at_both_ends,
    ]
}

fn remote_protection_moves_no_byte<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let b = &first.1;
    let register = |tag, access| b.provider.register(&memory(), tag, access).expect("room for a region");
    let gone = register(TAG, BOTH);
    b.provider.deregister(gone).expect("it is there");
    let wrong: [(&str, RegionHandle, u64, bool); 9] = [
        ("outside", b.region, u64::from(LEN) - 9, true),
        ("outside, to read", b.region, u64::from(LEN) - 9, false),
        ("outside and around", b.region, u64::MAX - 3, true),
        ("another tag", register(OTHER_TAG, BOTH), 0, true),
        ("only to be read", register(TAG, RemoteAccess { write: false, read: true }), 0, true),
        ("only to be written", register(TAG, RemoteAccess { write: true, read: false }), 0, false),
        ("deregistered", gone, 0, true),
        ("of another incarnation", RegionHandle { incarnation: b.region.incarnation + 1, ..b.region }, 0, true),
        ("never there", RegionHandle { index: 0x1234, ..b.region }, 0, true),
    ];
    for (what, region, offset, write) in wrong {
        let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
        x.memory.write(0, &pattern(LEN, 1)).expect("in range");
        let at = RemoteAddress { region, offset };
        let operation = if write { SendOperation::RdmaWrite(at) } else { SendOperation::RdmaRead(at) };
        x.post(operation, &[x.segment(0, 10)], 1).expect("room in the queue");
        let behind = x.post(SendOperation::Send, &[x.segment(0, 10)], 2);
        let failed = (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection));
        assert_eq!(x.completion(bed), failed, "{what}");
        // The failure may have ended the connection before the next was posted.
        match behind {
            Ok(()) => {
                assert_eq!(x.completion(bed), (WorkQueue::Send, 2, Err(DescriptorError::Flushed)), "{what}");
            }
            Err(error) => assert_eq!(error, PostError::NotConnected, "{what}"),
        }
        x.expect_broken(bed, BrokenReason::Protocol);
        y.expect_broken(bed, BrokenReason::Protocol);
        assert_eq!(bytes(&x.memory, 0, LEN), pattern(LEN, 1), "{what}");
        for end in [&x, &y] {
            end.provider.destroy_vi(end.vi).expect("it is there");
        }
    }
    assert!(bytes(&b.memory, 0, LEN).iter().all(|&byte| byte == 0), "a byte moved");
}

fn local_protection_moves_no_byte<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    let a = &first.0;
    let (private, foreign) = (Memory::anonymous(4096), Memory::anonymous(4096));
    a.provider.register(&foreign, OTHER_TAG, NONE).expect("room for a region");
    let gone = Memory::anonymous(4096);
    let handle = a.provider.register(&gone, TAG, NONE).expect("room for a region");
    a.provider.deregister(handle).expect("it is there");
    let wrong = [
        ("not registered", private.segment(0, 8).expect("in range")),
        ("another tag", foreign.segment(0, 8).expect("in range")),
        ("deregistered", gone.segment(0, 8).expect("in range")),
        ("outside", Segment { len: LEN + 1, ..a.segment(0, 8) }),
        ("outside and around", Segment { offset: u64::MAX, ..a.segment(0, 8) }),
    ];
    for (what, segment) in wrong {
        let (x, y) = sibling(bed, &first, RELIABLE, BOTH);
        let operations = [SendOperation::Send, SendOperation::RdmaWrite(y.at(0)), SendOperation::RdmaRead(y.at(0))];
        // A good segment in front of it does not move either.
        x.memory.write(0, b"good").expect("in range");
        y.receive(0, 64, 9);
        let operation = operations[what.len() % 3];
        x.post(operation, &[x.segment(0, 4), segment], 1).expect("room in the queue");
        assert_eq!(x.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::LocalProtection)), "{what}");
        x.expect_broken(bed, BrokenReason::Protocol);
        y.expect_broken(bed, BrokenReason::Protocol);
        assert_eq!(y.completion(bed), (WorkQueue::Receive, 9, Err(DescriptorError::Flushed)), "{what}");
        assert!(bytes(&y.memory, 0, LEN).iter().all(|&byte| byte == 0), "{what}: a byte moved");
        assert_eq!(bytes(&x.memory, 0, 4), b"good");
    }
}

fn a_vi_without_the_bit_refuses<B: Bed>(bed: &mut B) {
    let first = pair(bed);
    for (enabled, write) in
        [(RemoteAccess { write: false, read: true }, true), (RemoteAccess { write: true, read: false }, false)]
    {
        let (x, y) = sibling(bed, &first, RELIABLE, enabled);
        // The region of the first pair enables both; the VI does not.
        let at = first.1.at(0);
        let operation = if write { SendOperation::RdmaWrite(at) } else { SendOperation::RdmaRead(at) };
        x.post(operation, &[x.segment(0, 10)], 1).expect("room in the queue");
        assert_eq!(x.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection)));
        y.expect_broken(bed, BrokenReason::Protocol);
        x.expect_broken(bed, BrokenReason::Protocol);
    }
}

fn malformed_descriptors_are_not_taken<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let many = vec![a.segment(0, 1); SEGMENTS_MAX + 1];
    assert_eq!(a.post(SendOperation::Send, &many, 1), Err(PostError::TooManySegments));
    assert_eq!(a.provider.post_receive(a.vi, &many, 1), Err(PostError::TooManySegments));
    assert_eq!(a.write(&[], b.at(0), 1), Err(PostError::Empty));
    assert_eq!(a.write(&[a.segment(5, 0)], b.at(0), 1), Err(PostError::Empty));
    assert_eq!(a.post(SendOperation::RdmaRead(b.at(0)), &[], 1), Err(PostError::Empty));
    let idle = a.provider.create_vi(&attributes(a.cq, RELIABLE, BOTH)).expect("room for a VI");
    let descriptor = Descriptor { operation: SendOperation::Send, segments: &[], immediate: None, cookie: 1 };
    assert_eq!(a.provider.post_send(idle, &descriptor), Err(PostError::NotConnected));
    a.provider.destroy_vi(idle).expect("it is there");
    assert_eq!(a.provider.post_send(idle, &descriptor), Err(PostError::NoSuchVi));
    assert_eq!(a.provider.post_receive(idle, &[], 1), Err(PostError::NoSuchVi));
    if !levels(&a.provider).contains(&Reliability::UnreliableDelivery) {
        return;
    }
    let (x, y) = sibling(bed, &(a, b), Reliability::UnreliableDelivery, BOTH);
    assert_eq!(x.post(SendOperation::RdmaRead(y.at(0)), &[x.segment(0, 1)], 1), Err(PostError::Unsupported));
    settle(bed);
    assert_eq!((x.try_completion(), x.try_event()), (None, None), "nothing was taken");
}

fn a_message_longer_than_its_receive_is_an_error<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    b.receive(0, 10, 1);
    a.send(11, 2).expect("room in the queue");
    assert_eq!(b.completion(bed), (WorkQueue::Receive, 1, Err(DescriptorError::Length)));
    let (_, cookie, result) = a.completion(bed);
    // Whether the sender learns the reason or just that the connection ended is the provider's.
    assert!(cookie == 2 && matches!(result, Err(DescriptorError::Length | DescriptorError::Flushed)), "{result:?}");
    a.expect_broken(bed, BrokenReason::Protocol);
    b.expect_broken(bed, BrokenReason::Protocol);
}

fn a_transfer_longer_than_the_most_is_an_error<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    let big = Memory::anonymous(1 << 20);
    a.provider.register(&big, TAG, NONE).expect("room for a region");
    let segments = [big.segment(0, 1 << 20).expect("in range"); SEGMENTS_MAX];
    assert!(a.provider.capabilities().transfer_bytes_max < 64 << 20, "the test's descriptor is longer");
    a.post(SendOperation::Send, &segments, 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::Length)));
    b.expect_broken(bed, BrokenReason::Protocol);
}

fn a_revoked_region_is_left_alone<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    assert!(b.provider.is_reachable(&b.memory));
    a.memory.write(0, &pattern(LEN, 1)).expect("in range");
    b.provider.revoke(Revocable::Region(b.region)).expect("it is there");
    assert_eq!(b.provider.revoke(Revocable::Region(b.region)), Err(ResourceError::Unknown("region")));
    a.write(&[a.segment(0, LEN)], b.at(0), 1).expect("room in the queue");
    assert_eq!(a.completion(bed), (WorkQueue::Send, 1, Err(DescriptorError::RemoteProtection)));
    a.expect_broken(bed, BrokenReason::Protocol);
    b.expect_broken(bed, BrokenReason::Protocol);
    assert!(bytes(&b.memory, 0, LEN).iter().all(|&byte| byte == 0));
    wait(bed, || (!b.provider.is_reachable(&b.memory)).then_some(()));
    // It can be registered anew; the old handle does not name the new region.
    let again = b.provider.register(&b.memory, TAG, BOTH).expect("room for a region");
    assert_ne!(again, b.region);
}

fn a_revoked_vi_is_broken_at_both_ends<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    a.memory.write(0, &pattern(LEN, 1)).expect("in range");
    b.provider.revoke(Revocable::Vi(b.vi)).expect("it is there");
    let before = bytes(&b.memory, 0, LEN);
    // a may not know yet.
    if a.write(&[a.segment(0, LEN)], b.at(0), 1).is_ok() {
        assert!(matches!(a.completion(bed), (WorkQueue::Send, 1, Err(_))));
    }
    b.expect_broken(bed, BrokenReason::Revoked);
    assert!(matches!(wait(bed, || a.try_event()), Event::Broken { .. }));
    assert_eq!(bytes(&b.memory, 0, LEN), before);
    wait(bed, || (!b.provider.is_reachable(&b.memory)).then_some(()));
}
