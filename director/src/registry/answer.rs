//! One answer on its way to the future that waits for it, from another thread or from a later event.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::RegistryError;

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Answered(Result<T, RegistryError>),
    Taken,
}

#[derive(Debug)]
struct Shared<T>(Arc<Mutex<State<T>>>);

impl<T> Shared<T> {
    /// The lock is held for a few instructions that cannot panic.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Whoever finds the answer holds this. The first answer counts. Dropping the last clone without one answers that the outcome is unknown.
#[derive(Debug)]
pub(super) struct Promise<T>(Arc<Keeper<T>>);

#[derive(Debug)]
struct Keeper<T>(Shared<T>);

/// Completes with the answer. Dropping it abandons the answer.
#[derive(Debug)]
pub(super) struct Answer<T>(Shared<T>);

/// The two ends.
pub(super) fn answer<T>() -> (Promise<T>, Answer<T>) {
    let shared = Shared(Arc::new(Mutex::new(State::Waiting(None))));
    (Promise(Arc::new(Keeper(shared.clone()))), Answer(shared))
}

impl<T> Keeper<T> {
    fn keep(&self, answer: Result<T, RegistryError>) {
        let mut state = self.0.lock();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Answered(answer);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Promise<T> {
    pub(super) fn keep(&self, answer: Result<T, RegistryError>) {
        self.0.keep(answer);
    }
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Keeper<T> {
    fn drop(&mut self) {
        self.keep(Err(RegistryError::Unknown));
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, RegistryError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Answered(_) => {
                let State::Answered(answer) = std::mem::replace(&mut *state, State::Taken) else {
                    unreachable!("it was answered just now")
                };
                Poll::Ready(answer)
            }
            State::Taken => panic!("polled after it completed"),
        }
    }
}
