//! Endpoints and classes over the provider: what async code sees of it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;

use dyad_reactor::executor::Handle;
use dyad_reactor::sync::Inbox;
use dyad_reactor::time::ManualClock;
use dyad_reactor::{Executor, Fifo, Limits};

use super::{BOTH, Bed, Case, SERVICE, TAG, TIMEOUT, bytes, pattern};
use crate::class::{Class, PerClass};
use crate::crossover::{Crossover, Way};
use crate::endpoint::{Endpoint, EndpointConfig, MESSAGE_BYTES_MAX, TransferError};
use crate::exchange::{Exchange, ExchangeConfig, Payload, Peer};
use crate::memory::{HugePages, Memory};
use crate::provider::{DescriptorError, Event, NetAddress, PostError, Provider, RegionHandle, RemoteAddress, ViId};

/// The tests of this room.
pub(super) fn cases<B: Bed>() -> Vec<Case<B>> {
    cases![
        an_endpoint_sends_more_than_it_has_room_for,
        who_waits_for_one_vi_keeps_nobody_from_another,
        payload_is_in_its_place_whichever_way_it_went,
        payload_that_may_not_go_there_ends_the_connection,
        no_class_waits_for_a_lower_one,
        every_answer_has_room_when_all_credits_are_taken,
        a_request_that_nobody_waits_for_keeps_its_credit,
        who_asks_a_peer_that_goes_hears_of_it,
    ]
}

const DEPTH: u16 = 4;

/// An executor whose tasks run while the bed steps.
struct Stage {
    executor: Executor,
}

impl Stage {
    fn new() -> Self {
        let limits = Limits { tasks: 256, timers: 64 };
        Self { executor: Executor::new(limits, Rc::new(ManualClock::default())) }
    }

    fn handle(&self) -> Handle {
        self.executor.handle()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.handle().spawn("test", task);
    }

    /// Runs until `task` has ended.
    fn play<T: 'static>(&self, bed: &mut impl Bed, task: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let out = Rc::clone(&result);
        self.spawn(async move { *out.borrow_mut() = Some(task.await) });
        loop {
            self.executor.run_until_idle(&mut Fifo);
            if let Some(result) = result.borrow_mut().take() {
                return result;
            }
            assert!(bed.step(), "nothing happens any more");
        }
    }

    /// Lets happen what is under way.
    fn settle(&self, bed: &mut impl Bed) {
        for _ in 0..1000 {
            self.executor.run_until_idle(&mut Fifo);
            if !bed.step() {
                return;
            }
        }
    }
}

async fn event<P: Provider>(provider: &P) -> Event {
    poll_fn(|cx| provider.poll_event(cx)).await
}

fn memory() -> Memory {
    Memory::shared("dyad-conformance", 8192, HugePages::No).expect("a little memory")
}

/// Two endpoints, and VIs between them.
struct Ends<P> {
    a: Endpoint<P>,
    b: Endpoint<P>,
    vis: Vec<(ViId, ViId)>,
}

fn endpoints<B: Bed>(bed: &mut B, stage: &Stage, vis: u16) -> Ends<B::Provider> {
    let config = EndpointConfig { vis_max: vis, depth: DEPTH, tag: TAG, remote_access: BOTH };
    let [a, b] = ["a", "b"].map(|name| {
        let endpoint = Endpoint::new(bed.node(name), config).expect("room for an endpoint");
        stage.spawn(endpoint.clone().run());
        endpoint
    });
    b.provider().listen(SERVICE).expect("nobody listens yet");
    let to = NetAddress { host: bed.host("b"), discriminator: SERVICE };
    let (client, server) = (a.clone(), b.clone());
    let vis = stage.play(bed, async move {
        let mut joined = Vec::new();
        for _ in 0..vis {
            let ours = client.open().expect("room for a VI");
            client.provider().connect(ours, &to, b"", TIMEOUT).expect("an idle VI connects");
            let Event::Requested { request, .. } = event(server.provider()).await else { panic!("a request") };
            let theirs = server.open().expect("room for a VI");
            server.provider().accept(request, theirs, b"").expect("an idle VI accepts");
            assert!(matches!(event(client.provider()).await, Event::Established { .. }));
            assert!(matches!(event(server.provider()).await, Event::Established { .. }));
            joined.push((ours, theirs));
        }
        joined
    });
    Ends { a, b, vis }
}

fn an_endpoint_sends_more_than_it_has_room_for<B: Bed>(bed: &mut B) {
    const MESSAGES: u32 = 100;
    let stage = Stage::new();
    let Ends { a, b, vis } = endpoints(bed, &stage, 1);
    let (from, to) = vis[0];
    let (sender, end) = (a.clone(), Rc::new(Cell::new(0)));
    let arrived = Rc::clone(&end);
    stage.spawn(async move {
        for number in 0..MESSAGES {
            let posted = sender.send(from, &number.to_le_bytes()).await.expect("it is connected");
            let arrived = Rc::clone(&arrived);
            assert_eq!(posted.await, Ok(4));
            arrived.set(arrived.get() + 1);
        }
    });
    let receiver = b.clone();
    stage.play(bed, async move {
        for number in 0..MESSAGES {
            let (vi, message) = receiver.receive().await;
            assert_eq!((vi, &message[..]), (to, &number.to_le_bytes()[..]));
        }
    });
    stage.settle(bed);
    assert_eq!(end.get(), MESSAGES);
    // Nobody takes: after a while there is no room, and it says so.
    let refused = (0..4 * DEPTH).find_map(|_| {
        stage.settle(bed);
        a.try_send(from, &[0; MESSAGE_BYTES_MAX]).err()
    });
    assert_eq!(refused, Some(TransferError::Refused(PostError::Full)));
    stage.play(bed, async move { a.close(from).await });
    let closed = b.clone();
    stage.play(bed, async move { closed.close(to).await });
    assert_eq!(b.try_send(to, b"gone"), Err(TransferError::NotConnected));
}

fn who_waits_for_one_vi_keeps_nobody_from_another<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Ends { a, b, vis } = endpoints(bed, &stage, 2);
    let ((stuck, _), (free, free_there)) = (vis[0], vis[1]);
    // The peer takes nothing, so all these wait, more than there are buffers for all VIs together.
    for _ in 0..8 * DEPTH {
        let sender = a.clone();
        stage.spawn(async move {
            let _ = sender.send(stuck, &[7; 8]).await.expect("it is connected").await;
        });
    }
    stage.settle(bed);
    a.try_send(free, b"through").expect("its own room is free");
    stage.settle(bed);
    let came = stage.play(bed, async move {
        loop {
            let (vi, message) = b.receive().await;
            if vi == free_there {
                return message;
            }
        }
    });
    assert_eq!(&came[..], b"through");
}

fn payload_is_in_its_place_whichever_way_it_went<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Ends { a, b, vis } = endpoints(bed, &stage, 1);
    let (from, target) = (memory(), memory());
    a.export(&from, BOTH).expect("room for a region");
    let region = b.export(&target, BOTH).expect("room for a region");
    from.write(0, &pattern(8192, 5)).expect("in range");
    assert_eq!(a.way(1, 0), Way::Rdma, "nothing was measured");
    a.choose_by(Crossover::at(300));
    let ways = [(1, 0), (299, 100), (300, 0), (299, 250), (4096, 5)].map(|(bytes, message)| a.way(bytes, message));
    assert_eq!(ways, [Way::Message, Way::Message, Way::Rdma, Way::Rdma, Way::Rdma], "the fourth has no room");
    for (round, len) in (0_u32..).zip([0, 1, 299, 300, 4000]) {
        target.fill_zero(0, 8192).expect("in range");
        let (sender, receiver, ours) = (a.clone(), b.clone(), vis[0]);
        // In two pieces, out of order.
        let (head, tail) = (from.segment(5000, len / 2), from.segment(100, len - len / 2));
        let pieces = [head.expect("in range"), tail.expect("in range")];
        let to = RemoteAddress { region, offset: 77 };
        let message = stage.play(bed, async move {
            let posted = sender.transfer(ours.0, &pieces, to, &round.to_le_bytes()).await.expect("it is connected");
            let (_, message) = receiver.receive().await;
            posted.await.expect("it arrives");
            message
        });
        assert_eq!(&message[..], &round.to_le_bytes());
        let wanted = [bytes(&from, 5000, len / 2), bytes(&from, 100, len - len / 2)].concat();
        assert_eq!(bytes(&target, 77, len), wanted, "{len} bytes");
        let landed = bytes(&target, 0, 8192).iter().filter(|&&byte| byte != 0).count();
        assert_eq!(landed, wanted.len(), "nothing else was touched");
    }
}

fn payload_that_may_not_go_there_ends_the_connection<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Ends { a, b, vis } = endpoints(bed, &stage, 6);
    let (from, target) = (memory(), memory());
    a.export(&from, BOTH).expect("room for a region");
    from.write(0, &pattern(8192, 5)).expect("in range");
    let export = |access| b.export(&target, access).expect("room for a region");
    let good = export(BOTH);
    let withdrawn = export(BOTH);
    b.withdraw(withdrawn).expect("it is there");
    let readable = export(super::RemoteAccess { write: false, read: true });
    let wrong = [(good, 8192 - 7), (good, u64::MAX - 3), (withdrawn, 0), (readable, 0), (RegionHandle::from_key(9), 0)];
    // Whichever way it goes, and however the two ends hear of it: nothing lands and nobody hears of it.
    for (round, (region, offset)) in wrong.into_iter().enumerate() {
        a.choose_by(Crossover::at(if round % 2 == 0 { 100 } else { 0 }));
        let (sender, to, vi) = (a.clone(), RemoteAddress { region, offset }, vis[round]);
        let pieces = [from.segment(0, 8).expect("in range")];
        stage.play(bed, async move {
            if let Ok(posted) = sender.transfer(vi.0, &pieces, to, b"here").await {
                let _ = posted.await;
            }
        });
        // The other endpoint must look at what came to refuse it.
        let (last, receiver) = (vis[5], b.clone());
        let sender = a.clone();
        let heard = stage.play(bed, async move {
            sender.try_send(last.0, b"last").expect("this one is connected");
            receiver.receive().await
        });
        assert_eq!((heard.0, &heard.1[..]), (last.1, &b"last"[..]), "case {round} was heard");
        let provider = a.provider().clone();
        let ended = stage.play(bed, async move { event(&provider).await });
        assert!(matches!(ended, Event::Broken { vi: ours, .. } if ours == vi.0), "case {round}: {ended:?}");
    }
    assert!(bytes(&target, 0, 8192).iter().all(|&byte| byte == 0), "a byte moved");
}

/// Two nodes with an exchange each, connected.
struct Nodes<P> {
    a: Exchange<P>,
    b: Exchange<P>,
    to_b: Peer<P>,
    to_a: Peer<P>,
}

/// Requests of each class that may be outstanding; different, so that no class's room passes for another's.
fn outstanding(class: Class) -> u16 {
    match class {
        Class::Membership => 1,
        Class::Reply => 3,
        Class::Mirror => 4,
        Class::Flush => 2,
        Class::Forward => 2,
        Class::Host => 5,
    }
}

fn nodes<B: Bed>(bed: &mut B, stage: &Stage) -> Nodes<B::Provider> {
    let (handle, outstanding) = (stage.handle(), PerClass::new(outstanding));
    let config = ExchangeConfig { peers: 1, outstanding, tag: TAG, remote_access: BOTH };
    let [a, b] = ["a", "b"].map(|name| Exchange::new(&handle, &bed.node(name), config).expect("room for an exchange"));
    b.listen(SERVICE).expect("nobody listens yet");
    let events = Rc::new(Inbox::new(16));
    let (heard, provider) = (Rc::clone(&events), a.provider().clone());
    stage.spawn(async move {
        loop {
            heard.push(event(&provider).await).await;
        }
    });
    let (server, joined) = (b.clone(), Rc::new(RefCell::new(None)));
    let out = Rc::clone(&joined);
    stage.spawn(async move {
        let provider = server.provider().clone();
        let mut vis = Vec::new();
        loop {
            let Event::Requested { request, discriminator, .. } = event(&provider).await else { continue };
            let class = Class::at(SERVICE, discriminator).expect("one of ours");
            assert_eq!(class, Class::ALL[vis.len()], "most urgent first");
            vis.push(server.accept(request, class, b"welcome").await.expect("room for a VI"));
            if vis.len() == Class::ALL.len() {
                *out.borrow_mut() = server.join(PerClass::of(&vis));
            }
        }
    });
    let (client, host) = (a.clone(), bed.host("b"));
    let to_b = stage.play(bed, async move {
        let connected = client.connect(&handle, &events, &host, SERVICE, b"hello", TIMEOUT).await;
        let (peer, said) = connected.expect("it is accepted");
        assert_eq!(&said[..], b"welcome");
        peer
    });
    stage.settle(bed);
    let to_a = joined.borrow_mut().take().expect("the last was accepted");
    Nodes { a, b, to_b, to_a }
}

/// As many tasks as twice the credits ask in `class`; how many got their answer.
fn flood<P: Provider>(stage: &Stage, peer: &Peer<P>, class: Class) -> Rc<Cell<u16>> {
    let answered = Rc::new(Cell::new(0));
    for number in 0..2 * outstanding(class) {
        let (peer, answered) = (peer.clone(), Rc::clone(&answered));
        stage.spawn(async move {
            let said = peer.request(class, None, &number.to_le_bytes()).await.expect("it is answered");
            assert_eq!(&said[..], &number.to_le_bytes(), "each its own");
            answered.set(answered.get() + 1);
        });
    }
    answered
}

/// Answers `count` requests of `class` with what they say.
async fn serve<P: Provider>(exchange: Exchange<P>, class: Class, count: u16) {
    for _ in 0..count {
        let asked = exchange.next(class).await;
        let body = asked.body.clone();
        asked.answer(&body).await.expect("it is connected");
    }
}

fn no_class_waits_for_a_lower_one<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Nodes { a, b, to_b, to_a } = nodes(bed, &stage);
    let mut floods = Vec::new();
    // From the lowest on: each class is served, and then stuck with all that its credits allow, in both directions.
    for class in Class::ALL.into_iter().rev() {
        for (asks, serves) in [(&to_b, &b), (&to_a, &a)] {
            stage.spawn(serve(serves.clone(), class, 1));
            let peer = asks.clone();
            let answer = stage.play(bed, async move { peer.request(class, None, b"urgent").await });
            assert_eq!(answer.as_deref(), Ok(&b"urgent"[..]), "{class:?} waits for a lower class");
        }
        floods.push((class, flood(&stage, &to_b, class), flood(&stage, &to_a, class)));
        stage.settle(bed);
    }
    assert!(floods.iter().all(|(_, there, back)| (there.get(), back.get()) == (0, 0)), "nobody serves yet");
    for (class, ..) in &floods {
        stage.spawn(serve(a.clone(), *class, 2 * outstanding(*class)));
        stage.spawn(serve(b.clone(), *class, 2 * outstanding(*class)));
    }
    stage.settle(bed);
    for (class, there, back) in floods {
        assert_eq!((there.get(), back.get()), (2 * outstanding(class), 2 * outstanding(class)), "{class:?}");
    }
    assert!(!to_a.is_gone() && !to_b.is_gone());
}

fn every_answer_has_room_when_all_credits_are_taken<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Nodes { a, b, to_b, to_a } = nodes(bed, &stage);
    let floods = Class::ALL.map(|class| (class, flood(&stage, &to_b, class), flood(&stage, &to_a, class)));
    stage.settle(bed);
    for exchange in [a, b] {
        stage.play(bed, async move {
            let mut asked = Vec::new();
            for class in Class::ALL {
                for _ in 0..outstanding(class) {
                    asked.push(exchange.next(class).await);
                }
            }
            // All answers at once, without a look at what comes back.
            for asked in asked {
                let body = asked.body.clone();
                let mut answer = std::pin::pin!(asked.answer(&body));
                let at_once = poll_fn(|cx| std::task::Poll::Ready(answer.as_mut().poll(cx))).await;
                assert!(matches!(at_once, std::task::Poll::Ready(Ok(()))), "an answer waits: {at_once:?}");
            }
        });
    }
    stage.settle(bed);
    for (class, there, back) in floods {
        assert_eq!((there.get(), back.get()), (outstanding(class), outstanding(class)), "{class:?}");
    }
}

fn a_request_that_nobody_waits_for_keeps_its_credit<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Nodes { b, to_b, .. } = nodes(bed, &stage);
    let class = Class::Membership;
    let given_up = to_b.clone();
    stage.play(bed, async move {
        let mut request = std::pin::pin!(given_up.request(class, None, b"never mind"));
        let polled = poll_fn(|cx| std::task::Poll::Ready(request.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    });
    let (next, answered) = (to_b.clone(), Rc::new(Cell::new(false)));
    let out = Rc::clone(&answered);
    stage.spawn(async move {
        let said = next.request(class, None, b"next").await.expect("it is answered");
        assert_eq!(&said[..], b"next", "not the answer to what was given up");
        out.set(true);
    });
    stage.settle(bed);
    let server = b.clone();
    let first = stage.play(bed, async move { server.next(class).await });
    assert_eq!(&first.body[..], b"never mind");
    stage.play(bed, async move { first.answer(b"too late").await.expect("it is connected") });
    stage.play(bed, serve(b, class, 1));
    stage.settle(bed);
    assert!(answered.get() && !to_b.is_gone());
}

fn who_asks_a_peer_that_goes_hears_of_it<B: Bed>(bed: &mut B) {
    let stage = Stage::new();
    let Nodes { a, b, to_b, to_a } = nodes(bed, &stage);
    // With payload, for once: it is there when the request is.
    let (from, target) = (memory(), memory());
    from.write(0, b"payload").expect("in range");
    a.export(&from, BOTH).expect("room for a region");
    let region = b.export(&target, BOTH).expect("room for a region");
    a.choose_by(Crossover::at(8));
    let (asker, segment) = (to_b.clone(), from.segment(0, 7).expect("in range"));
    let heard = Rc::new(RefCell::new(None));
    let out = Rc::clone(&heard);
    stage.spawn(async move {
        let payload = Payload { from: &[segment], to: RemoteAddress { region, offset: 1000 } };
        *out.borrow_mut() = Some(asker.request(Class::Mirror, Some(payload), b"commit").await);
    });
    let server = b.clone();
    let asked = stage.play(bed, async move { server.next(Class::Mirror).await });
    assert_eq!((&asked.body[..], bytes(&target, 1000, 7)), (&b"commit"[..], b"payload".to_vec()));
    b.withdraw(region).expect("it is there");
    stage.play(bed, async move { to_a.part().await });
    stage.settle(bed);
    // Whoever takes the provider's events sees that one of the peer's VIs is gone, and parts too.
    let parting = to_b.clone();
    stage.play(bed, async move { parting.part().await });
    stage.settle(bed);
    let lost = heard.borrow_mut().take().expect("it heard");
    let fitting = [TransferError::NotConnected, TransferError::Failed(DescriptorError::Flushed)];
    assert!(lost.as_ref().is_err_and(|error| fitting.contains(error)), "{lost:?}");
    let late = stage.play(bed, async move { asked.answer(b"done").await });
    assert_eq!(late, Err(TransferError::NotConnected));
    let again = to_b.clone();
    let again = stage.play(bed, async move { again.request(Class::Host, None, b"").await });
    assert_eq!(again, Err(TransferError::NotConnected));
}
