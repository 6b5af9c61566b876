//! Byte streams over the provider, against a plain model: a queue of bytes for each direction.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use dyad_reactor::{Rng, SeededRng};
use futures_io::{AsyncRead, AsyncWrite};

use super::{Bed, Case, SERVICE, TAG, TIMEOUT, settle, try_event, wait};
use crate::provider::{Event, NetAddress, Provider};
use crate::stream::{Stream, StreamConfig};

/// The tests of this room.
pub(super) fn cases<B: Bed>() -> Vec<Case<B>> {
    cases![
        a_stream_is_a_queue_of_bytes,
        who_does_not_read_stops_who_writes,
        an_end_is_not_a_break,
        a_stream_that_is_dropped_is_a_reset,
        buffers_are_filled_and_emptied_in_place,
    ]
}

const CONFIG: StreamConfig = StreamConfig { tag: TAG, buffer_bytes: 1000, buffers: 3 };
/// What can be under way in one direction: the buffers of both ends.
const UNDER_WAY: usize = 2 * 3 * 1000;

fn connected<B: Bed>(bed: &mut B) -> [Stream<B::Provider>; 2] {
    let (a, b) = (bed.node("a"), bed.node("b"));
    b.listen(SERVICE).expect("nobody listens yet");
    let [client, server] = [&a, &b].map(|node| Stream::new(node.clone(), CONFIG).expect("room for a stream"));
    let early = Pin::new(&mut client.clone()).poll_write(&mut context(), b"early");
    assert!(matches!(early, Poll::Ready(Err(error)) if error.kind() == ErrorKind::NotConnected));
    let to = NetAddress { host: bed.host("b"), discriminator: SERVICE };
    a.connect(client.vi(), &to, b"", TIMEOUT).expect("an idle VI connects");
    let Event::Requested { request, .. } = wait(bed, || try_event(&b)) else { panic!("a request") };
    b.accept(request, server.vi(), b"").expect("an idle VI accepts");
    for node in [&a, &b] {
        assert!(matches!(wait(bed, || try_event(node)), Event::Established { .. }));
    }
    [client, server]
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn read<P: Provider>(stream: &Stream<P>, len: usize) -> Poll<Result<Vec<u8>>> {
    let mut bytes = vec![0; len];
    let polled = Pin::new(&mut stream.clone()).poll_read(&mut context(), &mut bytes);
    polled.map_ok(|len| bytes[..len].to_vec())
}

fn write<P: Provider>(stream: &Stream<P>, bytes: &[u8]) -> Poll<Result<usize>> {
    Pin::new(&mut stream.clone()).poll_write(&mut context(), bytes)
}

fn close<P: Provider>(stream: &Stream<P>) -> Poll<Result<()>> {
    Pin::new(&mut stream.clone()).poll_close(&mut context())
}

fn done<T>(polled: Poll<T>) -> Option<T> {
    match polled {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// One direction as it must be.
#[derive(Default)]
struct Model {
    under_way: VecDeque<u8>,
    written: usize,
    closed: bool,
}

/// Plays `story`, three bytes for each step, on a fresh pair of ends.
///
/// # Panics
/// If a stream is not what the model is.
pub fn story<B: Bed>(bed: &mut B, story: &[u8]) {
    let ends = connected(bed);
    let mut models = [Model::default(), Model::default()];
    for step in story.chunks_exact(3) {
        let (end, what) = (usize::from(step[0] % 2), step[0] / 2 % 16);
        let len = 1 + usize::from(step[1]) * usize::from(step[2] % 12);
        match what {
            0..7 => write_some(&ends[end], &mut models[end], len),
            7..13 => drop(read_some(&ends[end], &mut models[1 - end], len)),
            13 if step[2] > 200 => {
                drop(close(&ends[end]));
                models[end].closed = true;
            }
            _ => (0..step[2] % 8).for_each(|_| {
                bed.step();
            }),
        }
    }
    // Both say that they are done, and everything comes out.
    for (end, model) in models.iter_mut().enumerate() {
        model.closed = true;
        let mut ended = false;
        while !ended {
            drop(close(&ends[end]));
            ended = wait(bed, || {
                drop(close(&ends[end]));
                read_some(&ends[1 - end], model, 700)
            });
        }
        wait(bed, || done(close(&ends[end]))).expect("the peer has everything");
    }
}

fn write_some<P: Provider>(stream: &Stream<P>, model: &mut Model, len: usize) {
    let bytes: Vec<u8> = (0..len).map(|at| (model.written + at).to_le_bytes()[0] ^ 0x5a).collect();
    match write(stream, &bytes) {
        Poll::Ready(Ok(taken)) => {
            assert!(!model.closed && (1..=len).contains(&taken));
            model.under_way.extend(&bytes[..taken]);
            model.written += taken;
            assert!(model.under_way.len() <= UNDER_WAY, "what is under way is bounded");
        }
        Poll::Ready(Err(error)) => assert!(model.closed && error.kind() == ErrorKind::BrokenPipe, "{error}"),
        // What was read may not be known to the writer yet.
        Poll::Pending => assert!(model.written > 0, "it waits for nothing"),
    }
}

/// Whether the end was reached; `None` if there is nothing now.
fn read_some<P: Provider>(stream: &Stream<P>, model: &mut Model, len: usize) -> Option<bool> {
    let bytes = done(read(stream, len))?.expect("nobody broke it");
    let wanted: Vec<u8> = model.under_way.drain(..bytes.len().min(model.under_way.len())).collect();
    assert_eq!(bytes, wanted, "not what was written");
    if bytes.is_empty() {
        assert!(model.closed && model.under_way.is_empty(), "an end before the end");
    }
    Some(bytes.is_empty())
}

fn a_stream_is_a_queue_of_bytes<B: Bed>(bed: &mut B) {
    let mut rng = SeededRng::new(7);
    let bytes: Vec<u8> = (0..3000).map(|_| rng.next_u64().to_le_bytes()[0]).collect();
    story(bed, &bytes);
}

fn who_does_not_read_stops_who_writes<B: Bed>(bed: &mut B) {
    let [a, b] = connected(bed);
    let mut taken = 0;
    loop {
        match write(&a, &[7; 300]) {
            Poll::Ready(len) => taken += len.expect("it is connected"),
            Poll::Pending => {
                let before = taken;
                settle(bed);
                if let Poll::Ready(len) = write(&a, &[7; 300]) {
                    taken += len.expect("it is connected");
                }
                if taken == before {
                    break;
                }
            }
        }
        assert!(taken <= UNDER_WAY, "{taken} bytes and no reader");
    }
    // The other direction does not care; and each byte read makes room again.
    write(&b, b"back").map(|len| assert_eq!(len.expect("it is connected"), 4)).is_ready().then_some(()).expect("room");
    assert_eq!(wait(bed, || done(read(&a, 100))).expect("it is connected"), b"back");
    let mut came = 0;
    while came < taken {
        came += wait(bed, || done(read(&b, 5000))).expect("it is connected").len();
    }
    assert_eq!(wait(bed, || done(write(&a, b"more"))).expect("there is room again"), 4);
}

fn an_end_is_not_a_break<B: Bed>(bed: &mut B) {
    let [a, b] = connected(bed);
    assert_eq!(wait(bed, || done(write(&a, b"question"))).expect("it is connected"), 8);
    wait(bed, || done(close(&a))).expect("the peer has it");
    assert_eq!(close(&a).map(|closed| closed.is_ok()), Poll::Ready(true), "again is nothing new");
    assert!(matches!(write(&a, b"x"), Poll::Ready(Err(error)) if error.kind() == ErrorKind::BrokenPipe));
    assert_eq!(wait(bed, || done(read(&b, 100))).expect("it is there"), b"question");
    for _ in 0..2 {
        assert_eq!(wait(bed, || done(read(&b, 100))).expect("an end is no error"), b"");
    }
    // The half that is open works, and the end arrives although the connection goes right behind it.
    assert_eq!(wait(bed, || done(write(&b, b"answer"))).expect("this half is open"), 6);
    wait(bed, || done(close(&b))).expect("the peer has it");
    drop(b);
    settle(bed);
    assert_eq!(wait(bed, || done(read(&a, 100))).expect("it was sent before"), b"answer");
    assert_eq!(wait(bed, || done(read(&a, 100))).expect("an end is no error"), b"");
}

fn a_stream_that_is_dropped_is_a_reset<B: Bed>(bed: &mut B) {
    let [a, b] = connected(bed);
    assert_eq!(wait(bed, || done(write(&a, b"last words"))).expect("it is connected"), 10);
    // Until they have arrived: what is under way when an end is dropped may be lost.
    assert_eq!(wait(bed, || done(read(&b, 4))).expect("it is there"), b"last");
    drop(a);
    assert_eq!(wait(bed, || done(read(&b, 100))).expect("it was here before"), b" words");
    let reset = wait(bed, || done(read(&b, 100)));
    assert!(matches!(&reset, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{reset:?}");
    let broken = wait(bed, || done(write(&b, b"x")).filter(Result::is_err));
    assert!(matches!(&broken, Err(error) if error.kind() == ErrorKind::BrokenPipe), "{broken:?}");
}

fn buffers_are_filled_and_emptied_in_place<B: Bed>(bed: &mut B) {
    let [a, b] = connected(bed);
    let (from, to) = (a.memory(), b.memory());
    for round in 0..20_u8 {
        let buffer = wait(bed, || done(a.poll_buffer(&mut context()))).expect("it is connected");
        from.write(buffer.offset, &[round; 1000]).expect("in range");
        a.send(1000).expect("it is connected");
        let mut left = 1000;
        while left > 0 {
            let here = wait(bed, || done(b.poll_fill(&mut context()))).expect("it is connected").expect("no end");
            assert_eq!((here.memory, here.len), (to.id(), left));
            let part = left.min(600);
            let mut bytes = vec![0; usize::try_from(part).expect("it is small")];
            to.read(here.offset, &mut bytes).expect("in range");
            assert!(bytes.iter().all(|&byte| byte == round));
            b.consume(part);
            left -= part;
        }
    }
}
