//! The `vi` port: sessions of hosts over matrix VIs, and the lanes that serve their commands.
//!
//! A host has one session. A newer one (by its generation) is accepted only when the older is closed and none of its
//! commands is admitted or transferring (PROTOCOLS 9.3): whatever the host sends again cannot be overtaken by itself.
//! A host that sends more than its credits, or garbage, or takes no answers, loses its session.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dyad_cache::home::Transfer;
use dyad_cache::record::CommandId;
use dyad_cache::{Cache, CacheError, Store, TrackRange, VolumeId, WriteCommand};
use dyad_matrix::Provider;
use dyad_matrix::endpoint::{Endpoint, EndpointConfig, Message};
use dyad_matrix::provider::{ProtectionTag, RegionHandle, RemoteAccess, RequestId, ResourceError, Revocable, ViId};
use dyad_nvme::capsule::{CommandCapsule, ConnectAnswer, ConnectRequest};
use dyad_nvme::identify::{IDENTIFY_BYTES, IdentifyNamespace};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_nvme::{CompletionEntry, Status};
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::{Inbox, Signal};

use crate::command::{HostCommand, failure_status};
use crate::transfer::HostMemory;

/// The protection tag of the hosts' VIs.
pub const HOST_TAG: ProtectionTag = ProtectionTag(2);

/// What a [`Target`] is made with.
#[derive(Debug, Copy, Clone)]
pub struct TargetConfig {
    /// Which director, for the hosts to know.
    pub director: u8,
    /// Which run of it.
    pub incarnation: u32,
    /// Sessions at once.
    pub sessions: u16,
    /// Commands outstanding per session.
    pub depth: u16,
    /// Commands served at once.
    pub lanes: u16,
    /// How long a command may wait for a decision about who serves (ANATT).
    pub command_deadline: Duration,
    /// The volume behind the namespace.
    pub volume: VolumeId,
    /// Its size.
    pub blocks: BlockCount,
}

#[derive(Debug, Copy, Clone)]
struct Session {
    vi: ViId,
    request: ConnectRequest,
    region: RegionHandle,
    /// Commands admitted and not answered.
    active: u16,
    /// When a command was last admitted to an idle session, or answered.
    progress: Time,
    closed: bool,
    /// Its VI is closed and free.
    freed: bool,
}

/// A command that waits for a lane.
struct Work {
    vi: ViId,
    message: Message,
}

struct Inner<S: Store, P> {
    handle: Handle,
    config: TargetConfig,
    endpoint: Endpoint<P>,
    cache: Cache<S, P>,
    sessions: RefCell<Vec<Session>>,
    work: Inbox<Work>,
    closing: Inbox<ViId>,
    requests: Inbox<(RequestId, ConnectRequest)>,
    changed: Signal,
    served: Cell<u64>,
}

/// The hosts' port of a director. Clones are the same port.
pub struct Target<S: Store, P> {
    inner: Rc<Inner<S, P>>,
}

impl<S: Store, P> Clone for Target<S, P> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<S: Store, P: Provider> Target<S, P> {
    /// The port of `cache`; spawns its lanes and service tasks. The frames' memory must be registered with [`HOST_TAG`].
    ///
    /// # Errors
    /// When the provider has no room.
    pub fn new(handle: &Handle, provider: P, config: TargetConfig, cache: Cache<S, P>) -> Result<Self, ResourceError> {
        // Sessions that are being closed hold their VI a while longer.
        let vis_max = config.sessions * 2;
        let endpoint = Endpoint::new(
            provider,
            EndpointConfig { vis_max, depth: config.depth * 2, tag: HOST_TAG, remote_access: RemoteAccess::default() },
        )?;
        let target = Self {
            inner: Rc::new(Inner {
                handle: handle.clone(),
                endpoint,
                cache,
                sessions: RefCell::new(Vec::with_capacity(usize::from(vis_max))),
                work: Inbox::new(usize::from(config.sessions) * usize::from(config.depth)),
                closing: Inbox::new(usize::from(vis_max)),
                requests: Inbox::new(usize::from(vis_max)),
                changed: Signal::new(),
                served: Cell::new(0),
                config,
            }),
        };
        handle.spawn("target completions", target.inner.endpoint.clone().run());
        handle.spawn("target receive", target.clone().run_receive());
        handle.spawn("target close", target.clone().run_close());
        handle.spawn("target admit", target.clone().run_admit());
        handle.spawn("target watch", target.clone().run_watch());
        for _ in 0..config.lanes {
            handle.spawn("lane", target.clone().run_lane());
        }
        Ok(target)
    }

    /// A host asks for a session.
    pub fn requested(&self, request: RequestId, private_data: &[u8]) {
        let asked = ConnectRequest::decode(private_data).map(|asked| self.inner.requests.try_push((request, asked)));
        if !matches!(asked, Some(Ok(()))) {
            // The host gave up meanwhile: so much the better.
            let _ = self.inner.endpoint.provider().reject(request, &[]);
        }
    }

    /// A VI ended; `true` if it was one of ours.
    pub fn broken(&self, vi: ViId) -> bool {
        let ours = self.inner.sessions.borrow().iter().any(|session| session.vi == vi);
        if ours {
            self.close(vi);
        }
        ours
    }

    /// Commands answered so far.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.inner.served.get()
    }

    /// Sessions of hosts that are open.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        self.inner.sessions.borrow().iter().filter(|session| !session.closed).count()
    }

    fn close(&self, vi: ViId) {
        let inner = &*self.inner;
        for session in inner.sessions.borrow_mut().iter_mut().filter(|session| session.vi == vi && !session.closed) {
            session.closed = true;
            // At once, so that lanes that wait for the host end. It is gone from the provider only if it never was there.
            let _ = inner.endpoint.provider().revoke(Revocable::Vi(vi));
            assert!(inner.closing.try_push(vi).is_ok(), "each session is closed once");
        }
        inner.changed.notify_all();
    }

    async fn run_close(self) {
        let inner = &*self.inner;
        loop {
            let vi = inner.closing.next().await;
            inner.endpoint.close(vi).await;
            for session in inner.sessions.borrow_mut().iter_mut().filter(|session| session.vi == vi) {
                session.freed = true;
            }
            self.forget_ended();
        }
    }

    /// A session has ended when its VI is free and its last command is answered.
    fn forget_ended(&self) {
        self.inner.sessions.borrow_mut().retain(|session| !session.freed || session.active > 0);
        self.inner.changed.notify_all();
    }

    /// Ends sessions whose host takes neither data nor answers: they would hold lanes for ever.
    async fn run_watch(self) {
        let inner = &*self.inner;
        let patience = inner.config.command_deadline * 4;
        loop {
            inner.handle.sleep(patience).await;
            let now = inner.handle.now();
            let stuck =
                |session: &Session| session.active > 0 && !session.closed && now.since(session.progress) > patience;
            while let Some(vi) =
                { inner.sessions.borrow().iter().find(|session| stuck(session)).map(|session| session.vi) }
            {
                self.close(vi);
            }
        }
    }

    async fn run_admit(self) {
        let inner = &*self.inner;
        loop {
            let (request, asked) = inner.requests.next().await;
            let older: heapless::Vec<ViId, 8> = {
                let sessions = inner.sessions.borrow();
                let of_host = sessions.iter().filter(|session| session.request.host == asked.host);
                if of_host.clone().any(|session| session.request.generation >= asked.generation) {
                    heapless::Vec::new()
                } else {
                    of_host.map(|session| session.vi).take(8).collect()
                }
            };
            for vi in &older {
                self.close(*vi);
            }
            // Bounded: lanes end at the command deadline. Meanwhile the host may give up and ask again.
            let deadline = inner.handle.now() + inner.config.command_deadline * 2;
            let mut drained = true;
            while drained && inner.sessions.borrow().iter().any(|session| session.request.host == asked.host) {
                let seen = inner.changed.generation();
                drained = !older.is_empty()
                    && inner.handle.timeout_at(deadline, inner.changed.changed_since(seen)).await.is_ok();
            }
            if !drained || !self.accept(request, asked) {
                let _ = inner.endpoint.provider().reject(request, &[]);
            }
        }
    }

    fn accept(&self, request: RequestId, asked: ConnectRequest) -> bool {
        let inner = &*self.inner;
        if inner.sessions.borrow().len() >= usize::from(inner.config.sessions) || asked.depth > inner.config.depth {
            return false;
        }
        let Ok(vi) = inner.endpoint.open() else { return false };
        let session = Session {
            vi,
            request: asked,
            region: RegionHandle::from_key(asked.region),
            active: 0,
            progress: Time::ZERO,
            closed: false,
            freed: false,
        };
        inner.sessions.borrow_mut().push(session);
        let answer = ConnectAnswer {
            director: inner.config.director,
            depth: inner.config.depth,
            incarnation: inner.config.incarnation,
        };
        let accepted = inner.endpoint.provider().accept(request, vi, &answer.encode()).is_ok();
        if !accepted {
            self.close(vi);
        }
        // The VI is closed and the client is gone: there is nobody to reject.
        true
    }

    async fn run_receive(self) {
        let inner = &*self.inner;
        loop {
            let (vi, message) = inner.endpoint.receive().await;
            let admitted = {
                let mut sessions = inner.sessions.borrow_mut();
                let session = sessions.iter_mut().find(|session| session.vi == vi && !session.closed);
                match session {
                    Some(session) if session.active < session.request.depth * 2 => {
                        let admitted = inner.work.try_push(Work { vi, message }).is_ok();
                        if session.active == 0 {
                            session.progress = inner.handle.now();
                        }
                        session.active += u16::from(admitted);
                        admitted
                    }
                    Some(_) => false,
                    None => continue,
                }
            };
            if !admitted {
                self.close(vi);
            }
        }
    }

    async fn run_lane(self) {
        let inner = &*self.inner;
        loop {
            // The message is not kept beside the capsule: a lane is made for each command that may be outstanding.
            let (vi, capsule) = {
                let work = inner.work.next().await;
                (work.vi, CommandCapsule::decode(&work.message))
            };
            // By reference: moved out of the result it would be in the lane's future twice.
            match &capsule {
                Ok(capsule) => self.serve(vi, capsule).await,
                Err(_) => self.close(vi),
            }
            for session in inner.sessions.borrow_mut().iter_mut().filter(|session| session.vi == vi) {
                session.active -= 1;
                session.progress = inner.handle.now();
            }
            inner.served.set(inner.served.get() + 1);
            self.forget_ended();
        }
    }

    async fn serve(&self, vi: ViId, capsule: &CommandCapsule) {
        let inner = &*self.inner;
        let Some(session) = self.open_session(vi) else { return };
        let status = match HostCommand::parse(capsule, inner.config.blocks) {
            Ok(command) => match self.perform(&session, capsule, command).await {
                Ok(()) => Status::SUCCESS,
                Err(error) => {
                    let write = matches!(command, HostCommand::Write { .. });
                    let Some(status) = failure_status(error, write) else { return self.close(vi) };
                    status
                }
            },
            Err(status) => status,
        };
        let answer = CompletionEntry::new(0, capsule.command.command(), status);
        if inner.endpoint.send(vi, &answer.to_bytes()).await.is_err() {
            self.close(vi);
        }
    }

    async fn perform(
        &self,
        session: &Session,
        capsule: &CommandCapsule,
        command: HostCommand,
    ) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let deadline = inner.handle.now() + inner.config.command_deadline;
        match command {
            HostCommand::Read { lba, blocks } => self.each_part(session, capsule, lba, blocks, deadline, None).await,
            HostCommand::Write { lba, blocks, fua } => {
                let origin = session.request.host.0;
                // More distance than the host library keeps: it would outgrow what is remembered about it.
                if capsule.oldest > capsule.sequence
                    || capsule.sequence - capsule.oldest >= u64::from(session.request.depth) * 4
                {
                    return Err(CacheError::Credits);
                }
                self.each_part(session, capsule, lba, blocks, deadline, Some((origin, fua))).await
            }
            HostCommand::Flush => inner.cache.flush(inner.config.volume, deadline).await,
            HostCommand::IdentifyNamespace => self.identify(session, capsule, deadline).await,
        }
    }

    async fn each_part(
        &self,
        session: &Session,
        capsule: &CommandCapsule,
        lba: Lba,
        blocks: BlockCount,
        deadline: Time,
        writer: Option<([u8; 16], bool)>,
    ) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let mut skip = 0;
        for (part, range) in (0..).zip(TrackRange::split(inner.config.volume, lba, blocks.0)) {
            let host = HostMemory::new(&inner.endpoint, session.vi, session.region, &capsule.data, skip);
            skip += BlockCount(range.count() as u64).bytes();
            match writer {
                Some((origin, fua)) => {
                    let command = CommandId { origin, sequence: capsule.sequence, part };
                    let write = WriteCommand { range, command, oldest: capsule.oldest, fua };
                    inner.cache.write(write, deadline, &host).await?;
                }
                None => inner.cache.read(range, deadline, &host).await?,
            }
        }
        Ok(())
    }

    async fn identify(&self, session: &Session, capsule: &CommandCapsule, deadline: Time) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let frame = inner.cache.take_frames(1, deadline).await?;
        let size = inner.config.blocks.0;
        let namespace = IdentifyNamespace { size, capacity: size, used: size, ..IdentifyNamespace::default() };
        let bytes = namespace.to_bytes();
        assert_eq!(bytes.len(), IDENTIFY_BYTES, "Identify data fills a frame");
        frame.write(0, &bytes[..]);
        HostMemory::new(&inner.endpoint, session.vi, session.region, &capsule.data, 0).deliver(&frame.segments()).await
    }

    fn open_session(&self, vi: ViId) -> Option<Session> {
        self.inner.sessions.borrow().iter().find(|session| session.vi == vi && !session.closed).copied()
    }
}
