//! Waiting for a fixed number of futures at once, without allocation.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use super::raid1::LEGS_MAX;

/// Runs one future per leg to its end. They are made in place: as arguments each would take its room twice.
pub(super) async fn join<F: Future>(of_leg: impl Fn(usize) -> F) -> [F::Output; LEGS_MAX] {
    let (mut a, mut b, mut c, mut d) = (pin!(of_leg(0)), pin!(of_leg(1)), pin!(of_leg(2)), pin!(of_leg(3)));
    let mut running: [Pin<&mut F>; LEGS_MAX] = [a.as_mut(), b.as_mut(), c.as_mut(), d.as_mut()];
    let mut outputs = [const { None }; LEGS_MAX];
    poll_fn(|cx| {
        for (future, output) in running.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.map(|output| output.expect("all of them have ended"))
}
