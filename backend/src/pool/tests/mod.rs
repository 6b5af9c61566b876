//! The pool against everything that can happen to it. `ground` is the group underneath, `array` a small array over it with its registry and a flat model.

mod arithmetic;
mod array;
mod changes;
mod crashes;
mod ground;
mod model;
mod on_group;
mod sharing;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::format::{GroupId, VolumeUuid};

/// Runs a future that is always ready to go on.
fn run<F: Future>(future: F) -> F::Output {
    run_for(future, 1_000_000).expect("it never ends")
}

/// Polls a future at most so often, then drops it.
fn run_for<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(output);
        }
    }
    None
}

fn group(name: u8) -> GroupId {
    GroupId([name; 16])
}

fn uuid(name: u8) -> VolumeUuid {
    VolumeUuid([name; 16])
}
