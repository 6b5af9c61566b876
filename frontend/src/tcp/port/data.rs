//! The data of a command that a lane has: where it goes or comes from, while the connection moves it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::Poll;

use dyad_cache::CacheError;
use dyad_matrix::Segment;
use dyad_matrix::frames::{Pinned, Segments};

use super::super::session::{Phase, Session, Transfer, cut};
use super::{SessionKey, TcpPort};
use crate::subsystem::backing::{Backing, HostData};

/// The data of a command that a lane has.
pub(super) struct CommandData<'a, B: Backing> {
    port: &'a TcpPort<B>,
    session: SessionKey,
    slot: u16,
    total: u32,
    /// In-capsule data with a digest that is fetched in parts: all of it is checked before a part is handed on.
    staged: RefCell<Option<Pinned>>,
}

/// A transfer whose frames are about to go: if it is not complete, the connection must not touch them any more.
struct UnderWay<'a, 'b, B: Backing>(&'a CommandData<'b, B>, bool);

impl<B: Backing> Drop for UnderWay<'_, '_, B> {
    fn drop(&mut self) {
        if self.1 {
            return;
        }
        self.0.with(|session| {
            if matches!(session.phase, Phase::Running(_)) {
                self.0.port.lost(session);
                session.end();
            }
        });
    }
}

impl<'a, B: Backing> CommandData<'a, B> {
    pub(super) fn new(port: &'a TcpPort<B>, session: SessionKey, slot: u16, total: u32) -> Self {
        Self { port, session, slot, total, staged: RefCell::new(None) }
    }

    /// Waits until the data is where it was placed, if it was.
    pub(super) async fn placed(&self) -> Result<(), CacheError> {
        let placed = self.with(|session| session.slot(self.slot).placed.is_some());
        if placed { self.transfer(|_| {}).await } else { Ok(()) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Session) -> R) -> R {
        let mut sessions = self.port.inner.sessions.borrow_mut();
        let session = sessions[usize::from(self.session.index)].as_mut().expect("a connection waits for its lanes");
        assert_eq!(session.generation, self.session.generation, "a connection waits for its lanes");
        act(session)
    }

    /// Has a transfer begun, and waits until it is done.
    async fn transfer(&self, begin: impl FnOnce(&mut Session)) -> Result<(), CacheError> {
        let begun = self.with(|session| {
            let running = matches!(session.phase, Phase::Running(_));
            if running {
                begin(session);
                self.port.notice(self.session.index, session);
            }
            running
        });
        if !begun {
            return Err(CacheError::Host);
        }
        let mut under_way = UnderWay(self, false);
        let done = poll_fn(|cx| {
            self.with(|session| {
                let running = matches!(session.phase, Phase::Running(_));
                let slot = session.slot(self.slot);
                match slot.transfer {
                    Transfer::Done => Poll::Ready(!slot.damaged),
                    _ if !running => Poll::Ready(false),
                    _ => {
                        slot.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await;
        // After the end of the connection nothing touches the frames; a digest that did not match ends nothing.
        under_way.1 = true;
        if done { Ok(()) } else { Err(CacheError::Host) }
    }

    async fn fetch_into(&self, at: u32, segments: &[Segment]) -> Result<(), CacheError> {
        let len = segments.iter().map(|segment| segment.len).sum();
        let segments = Segments::from_slice(segments).expect("a run of frames");
        self.transfer(|session| {
            let slot = session.slot(self.slot);
            slot.transfer = Transfer::Fetch { segments, at, len, got: 0 };
            if slot.in_capsule == 0 {
                session.request(self.slot, at, len);
            }
        })
        .await
    }

    /// Fetches all of the in-capsule data, checks it, and hands parts on.
    async fn fetch_staged(&self, at: u32, segments: &[Segment]) -> Result<(), CacheError> {
        let pool = self.port.inner.backing.pool();
        if self.staged.borrow().is_none() {
            let frames = usize::try_from(self.total).expect("32 bits fit").div_ceil(dyad_matrix::frames::FRAME_BYTES);
            // No frames: the host tries again.
            let staging = pool.try_take(frames).ok_or(CacheError::Undecided)?;
            let mut all = staging.segments();
            let mut left = self.total;
            for segment in &mut all {
                segment.len = segment.len.min(left);
                left -= segment.len;
            }
            self.fetch_into(0, &all).await?;
            *self.staged.borrow_mut() = Some(staging);
        }
        let staged = self.staged.borrow();
        let staging = staged.as_ref().expect("it was just put there").segments();
        let memory = pool.memory();
        let mut from = at;
        for segment in segments {
            let mut to = segment.offset;
            for piece in cut(&staging, from, segment.len) {
                dyad_matrix::memory::copy(memory, piece.offset, memory, to, u64::from(piece.len))
                    .expect("segments lie in their memory");
                to += u64::from(piece.len);
            }
            from += segment.len;
        }
        Ok(())
    }
}

impl<B: Backing> HostData for CommandData<'_, B> {
    async fn fetch(&self, at: u64, segments: &[Segment]) -> Result<(), CacheError> {
        let at = u32::try_from(at).expect("within one transfer");
        let len: u32 = segments.iter().map(|segment| segment.len).sum();
        let staged = self.staged.borrow().is_some()
            || self.with(|session| {
                let in_capsule = session.slot(self.slot).in_capsule;
                session.params.data_digest && in_capsule > len
            });
        if staged { self.fetch_staged(at, segments).await } else { self.fetch_into(at, segments).await }
    }

    fn received(&self) -> Option<Pinned> {
        self.with(|session| session.slot(self.slot).placed.take())
    }

    async fn deliver(&self, at: u64, segments: &[Segment]) -> Result<(), CacheError> {
        let at = u32::try_from(at).expect("within one transfer");
        let segments = Segments::from_slice(segments).expect("a run of frames");
        let memory = self.port.inner.backing.pool().memory();
        self.transfer(|session| session.deliver(self.slot, segments, at, memory)).await
    }
}
