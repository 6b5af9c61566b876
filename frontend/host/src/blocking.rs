//! Volumes for programs that have no reactor: a thread runs one, and whoever likes hands it operations, from any thread.
//!
//! An operation is waited for as the caller likes: [`Pending::wait`] blocks, [`Pending::poll_now`] looks, `await` works under any
//! executor, and [`VolumeThread::completions`] is an eventfd that counts operations that have ended. Pages are copied between the
//! caller's memory and the volume's frames: programs that want no copy keep their pages in frames and use [`Volume`] itself.
//!
//! At most `depth` operations are outstanding; who submits another one waits until one has ended, which every operation does in
//! the time that its volume allows.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use dyad_matrix::frames::{FRAME_BYTES, RUN_FRAMES_MAX};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::executor::Limits;
use dyad_reactor::reactor::{Options, ReactorError};
use dyad_reactor::ring::{Receiver, Sender, ring};
use dyad_reactor::sync::Inbox;
use dyad_reactor::{Reactor, Stopper};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::volume::{Volume, VolumeError};

/// A block of a volume.
pub type Page = [u8; FRAME_BYTES];

/// What comes of an operation: the pages that were read.
pub type Outcome = Result<Vec<Page>, VolumeError>;

/// Why there is no thread.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    /// The volume could not be made.
    #[error(transparent)]
    Volume(E),
    /// No reactor.
    #[error("no reactor: {0}")]
    Reactor(ReactorError),
    /// The kernel gives no eventfd.
    #[error("no eventfd: {0}")]
    EventFd(Errno),
    /// The thread ended before the volume was made.
    #[error("the volume's thread ended")]
    Ended,
}

/// What is to be done.
enum Work {
    Read { at: Lba, pages: usize },
    Write { at: Lba, pages: Vec<Page>, durable: bool },
    Flush,
}

#[derive(Default)]
struct State {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

/// One operation, seen from both sides.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    ended: Condvar,
}

/// What all operations share.
struct Shared {
    requests: Mutex<Sender<Request>>,
    outstanding: Mutex<usize>,
    fewer: Condvar,
    depth: usize,
    completions: EventFd,
    /// Somebody looks at `completions`.
    watched: AtomicBool,
}

/// The duty to answer an operation: if it is dropped, the operation has ended without an answer.
struct Duty {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    outcome: Outcome,
}

struct Request {
    work: Work,
    duty: Duty,
}

/// Nobody panics while holding these locks: what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Duty {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Err(VolumeError::TimedOut));
        let waker = {
            let mut state = lock(&self.slot.state);
            state.outcome = Some(outcome);
            state.waker.take()
        };
        self.slot.ended.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
        *lock(&self.shared.outstanding) -= 1;
        self.shared.fewer.notify_one();
        if self.shared.watched.load(Ordering::Acquire) {
            // It is full only if nobody has looked for 2^64 operations.
            let _ = self.shared.completions.write(1);
        }
    }
}

/// An operation that was submitted. If it is dropped, the operation goes on.
#[must_use = "an operation may fail"]
pub struct Pending(Arc<Slot>);

impl Pending {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn wait(self) -> Outcome {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            state = self.0.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What came of it, if it has ended; once.
    #[must_use]
    pub fn poll_now(&self) -> Option<Outcome> {
        lock(&self.0.state).outcome.take()
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = lock(&self.0.state);
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A volume on a thread of its own, which ends with this.
pub struct VolumeThread {
    shared: Arc<Shared>,
    blocks: BlockCount,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl VolumeThread {
    /// Starts a thread whose reactor has the tasks and timers of `limits` for the volume that `make` makes there. At most `depth` operations are
    /// outstanding; the reactor spins for `max_spin` before it sleeps.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<V: Volume + Clone + 'static, E: Send + 'static>(
        limits: Limits,
        max_spin: Duration,
        depth: usize,
        make: impl FnOnce(&mut Reactor) -> Result<V, E> + Send + 'static,
    ) -> Result<Self, StartError<E>> {
        let completions = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let (sender, receiver) = ring(depth);
        let shared = Arc::new(Shared {
            requests: Mutex::new(sender),
            outstanding: Mutex::new(0),
            fewer: Condvar::new(),
            depth,
            completions: completions.map_err(StartError::EventFd)?,
            watched: AtomicBool::new(false),
        });
        let (tell, told) = mpsc::channel();
        let limits = Limits { tasks: limits.tasks + depth + 1, ..limits };
        let end = End(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            // Goes last, after the reactor and its tasks.
            let _end = end;
            let reactor = Reactor::new(Options { limits, max_spin, core: None }).map_err(StartError::Reactor);
            let made = reactor.and_then(|mut reactor| {
                let volume = make(&mut reactor).map_err(StartError::Volume)?;
                Ok((reactor, volume))
            });
            let (mut reactor, volume) = match made {
                Ok(made) => made,
                Err(error) => {
                    // Whoever asked waits for it.
                    let _ = tell.send(Err(error));
                    return;
                }
            };
            let (handle, inbox) = (reactor.handle(), Inbox::new(depth));
            for _ in 0..depth {
                handle.spawn("operation", lane(volume.clone(), inbox.clone()));
            }
            handle.spawn("operations", take(receiver, inbox));
            let _ = tell.send(Ok((reactor.stopper(), volume.blocks())));
            if let Err(error) = reactor.run() {
                eprintln!("volume: {error}");
            }
        });
        let (stopper, blocks) = told.recv().map_err(|_| StartError::Ended)??;
        Ok(Self { shared, blocks, stopper, thread: Some(thread) })
    }

    /// Size, when the volume was attached.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.blocks
    }

    /// Counts the operations that have ended since it was last read (eventfd(2)), from the first call of this on.
    #[must_use]
    pub fn completions(&self) -> BorrowedFd<'_> {
        self.shared.watched.store(true, Ordering::Release);
        self.shared.completions.as_fd()
    }

    /// Reads consecutive blocks.
    pub fn read(&self, at: Lba, pages: usize) -> Pending {
        self.submit(Work::Read { at, pages })
    }

    /// Writes consecutive blocks; they survive loss of power when it has ended, if `durable`.
    pub fn write(&self, at: Lba, pages: Vec<Page>, durable: bool) -> Pending {
        self.submit(Work::Write { at, pages, durable })
    }

    /// Makes completed writes durable.
    pub fn flush(&self) -> Pending {
        self.submit(Work::Flush)
    }

    /// Fills pages, wherever they are, from consecutive blocks, and waits for it.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn read_scatter(&self, at: Lba, pages: &mut [&mut Page]) -> Result<(), VolumeError> {
        let found = self.read(at, pages.len()).wait()?;
        for (page, found) in pages.iter_mut().zip(&found) {
            page.copy_from_slice(found);
        }
        Ok(())
    }

    /// Writes pages, wherever they are, to consecutive blocks, and waits for it.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn write_gather(&self, at: Lba, pages: &[&Page]) -> Result<(), VolumeError> {
        self.write(at, pages.iter().map(|page| **page).collect(), false).wait().map(|_| ())
    }

    fn submit(&self, work: Work) -> Pending {
        let shared = &self.shared;
        {
            let mut outstanding = lock(&shared.outstanding);
            while *outstanding >= shared.depth {
                outstanding = shared.fewer.wait(outstanding).unwrap_or_else(PoisonError::into_inner);
            }
            *outstanding += 1;
        }
        let slot = Arc::<Slot>::default();
        // Until it is answered: what is dropped unanswered has timed out.
        let outcome = Err(VolumeError::TimedOut);
        let duty = Duty { slot: Arc::clone(&slot), shared: Arc::clone(shared), outcome };
        let refused = {
            let mut requests = lock(&shared.requests);
            if requests.is_gone() {
                Some(duty)
            } else {
                requests.try_send(Request { work, duty }).err().map(|full| full.0.duty)
            }
        };
        // Outside of the lock: it wakes people.
        drop(refused);
        Pending(slot)
    }
}

impl Drop for VolumeThread {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The end of the thread, however it comes: what was submitted and not taken ends, and so does what comes later.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let (gone, _) = ring(1);
        let waiting = std::mem::replace(&mut *lock(&self.0.requests), gone);
        // Outside of the lock: it wakes people.
        drop(waiting);
    }
}

async fn take(mut requests: Receiver<Request>, inbox: Inbox<Request>) {
    while let Some(request) = requests.receive().await {
        inbox.push(request).await;
    }
}

async fn lane<V: Volume>(volume: V, inbox: Inbox<Request>) {
    loop {
        let Request { work, mut duty } = inbox.next().await;
        duty.outcome = perform(&volume, work).await;
    }
}

async fn perform<V: Volume>(volume: &V, work: Work) -> Outcome {
    // No frames: more is outstanding than the pool was made for.
    let take = |count| volume.pool().try_take(count).ok_or(VolumeError::TimedOut);
    match work {
        Work::Read { at, pages } => {
            volume.check(at, pages)?;
            let mut found = vec![[0; FRAME_BYTES]; pages];
            for (at, run) in (at.0..).step_by(RUN_FRAMES_MAX).zip(found.chunks_mut(RUN_FRAMES_MAX)) {
                let frames = volume.read_scatter(Lba(at), take(run.len())?).await?;
                for (index, page) in run.iter_mut().enumerate() {
                    frames.read(index, page);
                }
            }
            Ok(found)
        }
        Work::Write { at, pages, durable } => {
            volume.check(at, pages.len())?;
            for (at, run) in (at.0..).step_by(RUN_FRAMES_MAX).zip(pages.chunks(RUN_FRAMES_MAX)) {
                let frames = take(run.len())?;
                for (index, page) in run.iter().enumerate() {
                    frames.write(index, page);
                }
                if durable {
                    volume.write_durable(Lba(at), &frames).await?;
                } else {
                    volume.write_gather(Lba(at), &frames).await?;
                }
            }
            Ok(Vec::new())
        }
        Work::Flush => volume.flush().await.map(|()| Vec::new()),
    }
}
