//! Futures that wait for a time.

use super::Handle;
use crate::Time;
use crate::wheel::TimerKey;
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Waits until its deadline: never completes early; dropping it frees its timer.
///
/// # Panics
/// When polled first, if the executor has no timer left ([`Limits::timers`](super::Limits)).
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct Sleep {
    handle: Handle,
    deadline: Time,
    timer: Option<TimerKey>,
}

impl Sleep {
    pub(super) fn new(handle: Handle, deadline: Time) -> Self {
        Self { handle, deadline, timer: None }
    }

    /// When this completes.
    #[must_use]
    pub fn deadline(&self) -> Time {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut wheel = this.handle.core.wheel.borrow_mut();
        if this.deadline <= wheel.position() {
            if let Some(timer) = this.timer.take() {
                wheel.free(timer);
            }
            return Poll::Ready(());
        }
        match &this.timer {
            Some(timer) => {
                let waker = wheel.get_mut(timer);
                if !waker.will_wake(cx.waker()) {
                    waker.clone_from(cx.waker());
                }
            }
            None => match wheel.insert(this.deadline, cx.waker().clone()) {
                Some(timer) => this.timer = Some(timer),
                None => panic!("all {} timers of this executor are in use", wheel.capacity()),
            },
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.handle.core.wheel.borrow_mut().free(timer);
        }
    }
}

/// The deadline passed before the future completed.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

pin_project! {
    /// Waits for a future, but not longer than its deadline.
    #[must_use = "futures do nothing unless awaited"]
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

impl<F> Timeout<F> {
    pub(super) fn new(future: F, sleep: Sleep) -> Self {
        Self { future, sleep }
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    /// If both are ready the future's answer counts.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(this.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}
