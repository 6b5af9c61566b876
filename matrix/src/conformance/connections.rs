//! Connections from request to end, and the names of what is gone.

use std::time::Duration;

use super::{
    BOTH, Bed, Case, DEPTH, End, RELIABLE, SERVICE, TIMEOUT, attributes, call, join, levels, pair, requested, settle,
    wait,
};
use crate::provider::{
    BrokenReason, CqId, Discriminator, Event, NetAddress, PostError, Provider, RefusedReason, Reliability, RequestId,
    ResourceError, Revocable, SendOperation, WorkQueue,
};

/// The tests of this room.
pub(super) fn cases<B: Bed>() -> Vec<Case<B>> {
    cases![
        nobody_listens,
        a_server_rejects,
        a_server_does_not_answer,
        levels_must_match,
        a_connection_ends_at_both_ends,
        a_client_gives_up,
        completion_queues_cannot_overflow,
        names_of_what_is_gone_name_nothing,
    ]
}

fn nobody_listens<B: Bed>(bed: &mut B) {
    let a = End::new(bed.node("a"), RELIABLE, BOTH);
    let refused = |bed: &mut B, server: &str| {
        call(bed, &a, server, TIMEOUT, b"");
        match wait(bed, || a.try_event()) {
            Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::NoListener)),
            other => panic!("{other:?}"),
        }
    };
    refused(bed, "nobody");
    let b = End::new(bed.node("b"), RELIABLE, BOTH);
    b.provider.listen(Discriminator(77)).expect("nobody listens yet");
    refused(bed, "b");
    // It can be connected again.
    b.provider.listen(SERVICE).expect("nobody listens yet");
    assert!(matches!(b.provider.listen(SERVICE), Err(ResourceError::State(_))));
    join(bed, &a, &b);
}

fn a_server_rejects<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), bed.node("b"));
    b.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"please");
    let request = requested(bed, &b, b"please");
    b.reject(request, b"no").expect("the request is there");
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, private_data } => {
            assert_eq!((vi, why, &private_data[..]), (a.vi, RefusedReason::Rejected, &b"no"[..]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(b.reject(request, b""), Err(ResourceError::Unknown("request")));
    let too_long =
        a.provider.connect(a.vi, &NetAddress { host: bed.host("b"), discriminator: SERVICE }, &[0; 57], TIMEOUT);
    assert!(matches!(too_long, Err(ResourceError::State(_))));
}

fn a_server_does_not_answer<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), End::new(bed.node("b"), RELIABLE, BOTH));
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", Duration::from_millis(100), b"");
    let request = requested(bed, &b.provider, b"");
    assert_eq!(a.provider.accept(request, a.vi, b""), Err(ResourceError::Unknown("request")));
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::TimedOut)),
        other => panic!("{other:?}"),
    }
    // By and by the server notices as well: the request is gone, or what it accepts comes to nothing.
    settle(bed);
    if b.provider.accept(request, b.vi, b"").is_ok() {
        assert!(matches!(wait(bed, || b.try_event()), Event::Broken { .. }));
    }
    let c = End::new(b.provider.clone(), RELIABLE, BOTH);
    join(bed, &a, &c);
}

fn levels_must_match<B: Bed>(bed: &mut B) {
    let client = bed.node("a");
    let Some(&other) = levels(&client).iter().find(|&&level| level != RELIABLE) else { return };
    let a = End::new(client, other, BOTH);
    let b = End::new(bed.node("b"), RELIABLE, BOTH);
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"");
    let request = requested(bed, &b.provider, b"");
    assert!(matches!(b.provider.accept(request, b.vi, b""), Err(ResourceError::State(_))));
    match wait(bed, || a.try_event()) {
        Event::Refused { vi, why, .. } => assert_eq!((vi, why), (a.vi, RefusedReason::Mismatch)),
        other => panic!("{other:?}"),
    }
    // The server's VI is still idle.
    let c = End::new(a.provider.clone(), RELIABLE, BOTH);
    join(bed, &c, &b);
}

fn a_connection_ends_at_both_ends<B: Bed>(bed: &mut B) {
    let (a, b) = pair(bed);
    b.receive(0, 8, 1);
    a.receive(0, 8, 2);
    for cookie in 3..6 {
        a.post(SendOperation::Send, &[a.segment(0, 50_000)], cookie).expect("room in the queue");
    }
    b.provider.disconnect(b.vi).expect("it is there");
    let events = (wait(bed, || a.try_event()), wait(bed, || b.try_event()));
    // The first message is too long for its receive; it may have met it before b went.
    let why = if events.1 == (Event::Broken { vi: b.vi, why: BrokenReason::Protocol }) {
        BrokenReason::Protocol
    } else {
        BrokenReason::Disconnected
    };
    assert_eq!(events, (Event::Broken { vi: a.vi, why }, Event::Broken { vi: b.vi, why }));
    assert!(matches!(b.completion(bed), (WorkQueue::Receive, 1, Err(_))));
    let mut seen = [0; 4];
    for slot in &mut seen {
        let (_, cookie, result) = a.completion(bed);
        assert!(result.is_err(), "{cookie}");
        *slot = cookie;
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 3, 4, 5], "each completes once");
    assert_eq!(a.send(1, 9), Err(PostError::NotConnected));
    assert_eq!(b.provider.post_receive(b.vi, &[], 9), Err(PostError::NotConnected));
    assert_eq!(a.provider.disconnect(a.vi), Ok(()), "again is nothing new");
    settle(bed);
    let nothing = (a.try_event(), b.try_event(), a.try_completion(), b.try_completion());
    assert_eq!(nothing, (None, None, None, None));
}

fn a_client_gives_up<B: Bed>(bed: &mut B) {
    let (a, b) = (End::new(bed.node("a"), RELIABLE, BOTH), End::new(bed.node("b"), RELIABLE, BOTH));
    b.provider.listen(SERVICE).expect("nobody listens yet");
    call(bed, &a, "b", TIMEOUT, b"");
    let request = requested(bed, &b.provider, b"");
    a.provider.disconnect(a.vi).expect("it is there");
    a.expect_broken(bed, BrokenReason::Disconnected);
    if b.provider.accept(request, b.vi, b"").is_ok() {
        assert!(matches!(wait(bed, || b.try_event()), Event::Broken { .. }));
    }
    assert_eq!(a.try_event(), None, "a connect ends once");
}

fn completion_queues_cannot_overflow<B: Bed>(bed: &mut B) {
    let a = bed.node("a");
    let cq = a.create_cq(2 * u32::from(DEPTH)).expect("room for a queue");
    let vi = a.create_vi(&attributes(cq, RELIABLE, BOTH)).expect("room on the queue");
    assert!(matches!(a.create_vi(&attributes(cq, RELIABLE, BOTH)), Err(ResourceError::Exhausted(_))));
    assert_eq!(a.create_vi(&attributes(CqId(0xffff), RELIABLE, BOTH)), Err(ResourceError::Unknown("completion queue")));
    a.destroy_vi(vi).expect("it is there");
    a.create_vi(&attributes(cq, RELIABLE, BOTH)).expect("room on the queue again");
}

fn names_of_what_is_gone_name_nothing<B: Bed>(bed: &mut B) {
    let a = End::new(bed.node("a"), RELIABLE, BOTH);
    a.provider.deregister(a.region).expect("it is there");
    assert_eq!(a.provider.deregister(a.region), Err(ResourceError::Unknown("region")));
    a.provider.destroy_vi(a.vi).expect("it is there");
    let unknown = ResourceError::Unknown("VI");
    assert_eq!(a.provider.destroy_vi(a.vi), Err(unknown.clone()));
    assert_eq!(a.provider.disconnect(a.vi), Err(unknown.clone()));
    assert_eq!(a.provider.revoke(Revocable::Vi(a.vi)), Err(unknown.clone()));
    let to = NetAddress { host: bed.host("b"), discriminator: SERVICE };
    assert_eq!(a.provider.connect(a.vi, &to, b"", TIMEOUT), Err(unknown));
    assert_eq!(a.provider.reject(RequestId(3), b""), Err(ResourceError::Unknown("request")));
    for level in [Reliability::UnreliableDelivery, Reliability::ReliableDelivery] {
        let made = a.provider.create_vi(&attributes(a.cq, level, BOTH));
        if !levels(&a.provider).contains(&level) {
            assert!(matches!(made, Err(ResourceError::State(_))), "{level:?} is not offered");
        }
    }
}
