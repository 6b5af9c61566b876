//! Neither end waits for ever, and nothing is lost.

use super::super::check;
use super::ends::{Gone, ring};
use loom::future::block_on;
use loom::thread;

#[test]
fn everything_sent_arrives_through_a_ring_that_is_too_small() {
    check(|| {
        let (mut sender, mut receiver) = ring(1);
        let other = thread::spawn(move || {
            block_on(async move {
                for item in 0..2 {
                    sender.send(item).await.unwrap();
                }
            });
        });
        let received =
            block_on(async { [receiver.receive().await, receiver.receive().await, receiver.receive().await] });
        assert_eq!(received, [Some(0), Some(1), None]);
        other.join().unwrap();
    });
}

#[test]
fn a_sender_without_room_learns_that_the_receiver_is_gone() {
    check(|| {
        let (mut sender, receiver) = ring(1);
        sender.try_send(0).unwrap();
        let other = thread::spawn(move || drop(receiver));
        assert_eq!(block_on(sender.send(1)), Err(Gone(1)));
        other.join().unwrap();
    });
}
