//! The two ends of a ring, over `super::parts`, so that loom can run the same lines over parts of its own.

use super::parts::{AtomicBool, AtomicWaker, Consumer, Ordering, Producer, queue};
use crate::sync::Full;
use crossbeam_utils::CachePadded;
use rtrb::PushError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A ring for at most `capacity` items. All its memory is taken here.
///
/// # Panics
/// If `capacity` is zero.
#[must_use]
pub fn ring<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a ring without room");
    let (producer, consumer) = queue(capacity);
    let ends = Arc::new(Ends {
        sender: CachePadded::new(AtomicWaker::new()),
        receiver: CachePadded::new(AtomicWaker::new()),
        broken: AtomicBool::new(false),
    });
    (Sender { queue: producer, ends: Arc::clone(&ends) }, Receiver { queue: consumer, ends })
}

struct Ends {
    /// Waits for room.
    sender: CachePadded<AtomicWaker>,
    /// Waits for items.
    receiver: CachePadded<AtomicWaker>,
    /// One end is gone.
    broken: AtomicBool,
}

impl Ends {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
        self.sender.wake();
        self.receiver.wake();
    }
}

/// The receiver is gone; gives the item back.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the receiver is gone")]
pub struct Gone<T>(pub T);

/// The end that sends.
pub struct Sender<T> {
    queue: Producer<T>,
    ends: Arc<Ends>,
}

/// The end that receives.
pub struct Receiver<T> {
    queue: Consumer<T>,
    ends: Arc<Ends>,
}

impl<T: Send> Sender<T> {
    /// Sends an item if there is room. To a receiver that is gone it sends until the ring is full; see [`is_gone`](Self::is_gone).
    ///
    /// # Errors
    /// [`Full`] with the item.
    pub fn try_send(&mut self, item: T) -> Result<(), Full<T>> {
        match self.queue.push(item) {
            Ok(()) => {
                self.ends.receiver.wake();
                Ok(())
            }
            Err(PushError::Full(item)) => Err(Full(item)),
        }
    }

    /// Sends an item as soon as there is room; completes with [`Gone`] and the item if the receiver is.
    pub fn send(&mut self, item: T) -> Sending<'_, T> {
        Sending { sender: self, item: Some(item) }
    }

    /// True if nobody will receive what is sent.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.ends.is_broken()
    }
}

impl<T: Send> Receiver<T> {
    /// The next item, if there is one.
    pub fn try_receive(&mut self) -> Option<T> {
        let item = self.queue.pop().ok()?;
        self.ends.sender.wake();
        Some(item)
    }

    /// Waits for the next item; completes with `None` if the sender is gone and all it sent was received.
    pub fn receive(&mut self) -> Receiving<'_, T> {
        Receiving { receiver: self }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.ends.break_off();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.ends.break_off();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("broken", &self.ends.is_broken()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("broken", &self.ends.is_broken()).finish_non_exhaustive()
    }
}

/// Completes when its item is in the ring.
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct Sending<'a, T> {
    sender: &'a mut Sender<T>,
    item: Option<T>,
}

/// The item is never pinned; it only passes through.
impl<T> Unpin for Sending<'_, T> {}

impl<T: Send> Future for Sending<'_, T> {
    type Output = Result<(), Gone<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let item = this.item.take().expect("polled after it completed");
        if this.sender.is_gone() {
            return Poll::Ready(Err(Gone(item)));
        }
        let Err(Full(item)) = this.sender.try_send(item) else { return Poll::Ready(Ok(())) };
        this.sender.ends.sender.register(cx.waker());
        // Room, or the end of the receiver, that came before the waker was left is seen here.
        if this.sender.is_gone() {
            return Poll::Ready(Err(Gone(item)));
        }
        let Err(Full(item)) = this.sender.try_send(item) else { return Poll::Ready(Ok(())) };
        this.item = Some(item);
        Poll::Pending
    }
}

/// Completes with the next item of a ring.
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct Receiving<'a, T> {
    receiver: &'a mut Receiver<T>,
}

impl<T: Send> Future for Receiving<'_, T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let receiver = &mut *self.get_mut().receiver;
        if let Some(item) = receiver.try_receive() {
            return Poll::Ready(Some(item));
        }
        receiver.ends.receiver.register(cx.waker());
        // An item, or the end of the sender, that came before the waker was left is seen here. In this order: what was sent
        // before the end is in the queue once the end is seen.
        let broken = receiver.ends.is_broken();
        match receiver.try_receive() {
            None if !broken => Poll::Pending,
            last => Poll::Ready(last),
        }
    }
}
