//! The ends polled by hand; `tests/reactor.rs` has them in two threads, and loom in all interleavings.

use super::*;
use crate::sync::Full;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn items_arrive_in_order_within_the_bound() {
    let (mut sender, mut receiver) = ring(2);
    assert_eq!(sender.try_send(1), Ok(()));
    assert_eq!(sender.try_send(2), Ok(()));
    assert_eq!(sender.try_send(3), Err(Full(3)));
    {
        let mut sending = pin!(sender.send(3));
        assert!(poll(sending.as_mut()).is_pending());
        assert_eq!(receiver.try_receive(), Some(1));
        assert_eq!(poll(sending), Poll::Ready(Ok(())));
    }
    assert_eq!((receiver.try_receive(), receiver.try_receive(), receiver.try_receive()), (Some(2), Some(3), None));
    assert!(poll(pin!(receiver.receive())).is_pending());
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let (mut sender, mut receiver) = ring(2);
    sender.try_send(1).expect("room");
    drop(sender);
    assert_eq!(poll(pin!(receiver.receive())), Poll::Ready(Some(1)));
    assert_eq!(poll(pin!(receiver.receive())), Poll::Ready(None));
}

#[test]
fn a_sender_learns_that_the_receiver_is_gone() {
    let (mut sender, receiver) = ring(1);
    sender.try_send(1).expect("room");
    drop(receiver);
    assert_eq!(poll(pin!(sender.send(2))), Poll::Ready(Err(Gone(2))));
}
