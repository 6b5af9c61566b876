//! The two VIs to the partner: membership (heartbeats, grants) and mirror (RDMA, commits, releases, answers).
//!
//! Director A connects both, director B accepts. A link is both of them, between two incarnations; it is never mended:
//! when either VI ends, both do, and what becomes of the epoch is the machine's to decide. The mirror memory is made anew
//! for each link (see `dyad_cache::mirror`) and outlives it until it is adopted or another link is made.

use dyad_backend::Device;
use dyad_cache::record::{Answer, AnswerStatus, Record};
use dyad_cache::{Epoch, MirrorArea, MirrorLink};
use dyad_matrix::Provider;
use dyad_matrix::endpoint::TransferError;
use dyad_matrix::provider::{self, Discriminator, RegionHandle, RequestId, Revocable, ViId};
use dyad_reactor::mutation::{Mutation, is_active};

use super::hello::Hello;
use super::{MEMBERSHIP_SERVICE, MIRROR_SERVICE, Node, bytes_of, register_area};
use crate::membership::{DirectorId, Event, Incarnation, PeerMessage};
use crate::registry::Registry;

/// More frames than any partner has: 64 GiB.
const MIRROR_FRAMES_MAX: u32 = 1 << 24;

/// The other end, as far as it is connected.
#[derive(Debug, Copy, Clone)]
pub(super) struct Peer {
    hello: Hello,
    membership: ViId,
    membership_up: bool,
    mirror: Option<ViId>,
    mirror_up: bool,
    up: bool,
}

/// The partner's mirror in our memory.
pub(super) struct Area {
    pub(super) mirror: MirrorArea,
    region: RegionHandle,
    /// The partner has been told of it.
    exported: bool,
    revoked: bool,
}

impl<D: Device, P: Provider, R: Registry> Node<D, P, R> {
    /// Says something to the partner; what cannot be said now is not worth saying later.
    pub(super) fn say(&self, message: PeerMessage) {
        let peer = *self.inner.peer.borrow();
        if let Some(peer) = peer.filter(|peer| peer.up)
            && self.inner.endpoint.try_send(peer.membership, &message.encode()) == Err(TransferError::NotConnected)
        {
            self.close_peer();
        }
    }

    pub(super) fn is_peer(&self, vi: ViId) -> bool {
        self.inner.peer.borrow().is_some_and(|peer| peer.membership == vi || peer.mirror == Some(vi))
    }

    /// Takes both VIs from the partner.
    pub(super) fn close_peer(&self) {
        let Some(peer) = self.inner.peer.borrow_mut().take() else { return };
        if let Some(link) = self.inner.cache.link() {
            link.close();
        }
        for vi in [Some(peer.membership), peer.mirror].into_iter().flatten() {
            // At once, not when the closing task comes to it: nothing of the partner lands from here on.
            if !is_active(Mutation::MirrorIsNotRevoked) {
                let _ = self.inner.world.provider.revoke(Revocable::Vi(vi));
            }
            assert!(self.inner.closing.try_push(vi).is_ok(), "a link has two VIs");
        }
        if peer.up {
            self.event(Event::LinkDown);
        }
    }

    /// The mirror link failed though its VI did not: the two ends no longer agree.
    pub(super) fn close_failed_link(&self) {
        if self.inner.cache.link().is_some_and(|link| link.is_closed()) {
            self.close_peer();
        }
    }

    /// A link to the mirror of the connected partner.
    pub(super) fn mirror_link(&self) -> Option<MirrorLink<P>> {
        let inner = &*self.inner;
        let peer = (*inner.peer.borrow()).filter(|peer| peer.up && peer.hello.frames <= MIRROR_FRAMES_MAX)?;
        let requests = usize::from(inner.config.lanes + inner.config.destagers + 1);
        Some(MirrorLink::new(inner.endpoint.clone(), peer.mirror?, peer.hello.region, peer.hello.frames, requests))
    }

    /// Takes the mirror memory from the partner for good. Whether what is in it, with media, is everything.
    pub(super) fn revoke_area(&self) -> bool {
        let mut area = self.inner.area.borrow_mut();
        area.as_mut().is_some_and(|area| {
            self.revoke_region(area);
            area.mirror.is_whole()
        })
    }

    fn revoke_region(&self, area: &mut Area) {
        if !std::mem::replace(&mut area.revoked, true) && !is_active(Mutation::MirrorIsNotRevoked) {
            self.inner
                .world
                .provider
                .revoke(Revocable::Region(area.region))
                .expect("a region that was not revoked is registered");
        }
    }

    /// Our side of a new link: with mirror memory that no earlier link knew.
    fn hello(&self) -> Option<Hello> {
        let inner = &*self.inner;
        let mut place = inner.area.borrow_mut();
        if place.as_ref().is_none_or(|area| area.exported) {
            if let Some(mut old) = place.take() {
                self.revoke_region(&mut old);
            }
            let memory = (inner.world.memory)(bytes_of(inner.config.mirror_frames));
            let (mirror, region) = register_area(&inner.world.provider, memory).ok()?;
            *place = Some(Area { mirror, region, exported: false, revoked: false });
        }
        let config = &inner.config;
        let region = place.as_ref()?.region;
        Some(Hello {
            director: config.me,
            incarnation: config.incarnation,
            array: config.array,
            region,
            frames: config.mirror_frames,
        })
    }

    /// Somebody asks for one of the partner's services.
    pub(super) fn peer_requested(&self, request: RequestId, service: Discriminator, private_data: &[u8]) {
        let accepted = Hello::decode(private_data).is_some_and(|hello| match service {
            MEMBERSHIP_SERVICE => self.accept_membership(request, hello),
            MIRROR_SERVICE => self.accept_mirror(request, hello),
            _ => false,
        });
        if !accepted {
            let _ = self.inner.world.provider.reject(request, &[]);
        }
    }

    fn accept_membership(&self, request: RequestId, hello: Hello) -> bool {
        let inner = &*self.inner;
        if hello.array != inner.config.array
            || hello.director != inner.config.me.partner()
            || inner.config.me == DirectorId::A
        {
            return false;
        }
        self.event(Event::PartnerSeen(hello.incarnation));
        let busy = inner.peer.borrow().is_some();
        if busy || !inner.machine.borrow().wants_link(Some(hello.incarnation)) {
            return false;
        }
        let Some(ours) = self.hello() else { return false };
        let Ok(vi) = inner.endpoint.open() else { return false };
        *inner.peer.borrow_mut() =
            Some(Peer { hello, membership: vi, membership_up: false, mirror: None, mirror_up: false, up: false });
        self.accept(request, vi, ours)
    }

    fn accept_mirror(&self, request: RequestId, hello: Hello) -> bool {
        let inner = &*self.inner;
        // Only whoever has the membership VI: asking for a mirror must not touch the one that somebody else has.
        let expected = inner.peer.borrow().is_some_and(|peer| peer.hello == hello && peer.mirror.is_none());
        if !expected {
            return false;
        }
        let Some(ours) = self.hello() else { return false };
        let Ok(vi) = inner.endpoint.open() else { return false };
        if let Some(peer) = inner.peer.borrow_mut().as_mut() {
            peer.mirror = Some(vi);
        }
        self.accept(request, vi, ours)
    }

    fn accept(&self, request: RequestId, vi: ViId, ours: Hello) -> bool {
        if self.inner.world.provider.accept(request, vi, &ours.encode()).is_err() {
            self.close_peer();
        }
        // If the client is gone there is nobody to reject.
        true
    }

    /// Director B: a VI that we accepted is connected. `true` if it was one.
    pub(super) fn peer_established(&self, event: &provider::Event) -> bool {
        let provider::Event::Established { vi, .. } = event else { return false };
        if self.inner.config.me == DirectorId::A {
            return false;
        }
        let mut place = self.inner.peer.borrow_mut();
        let Some(peer) = place.as_mut() else { return false };
        let ours = peer.membership == *vi || peer.mirror == Some(*vi);
        peer.membership_up |= peer.membership == *vi;
        peer.mirror_up |= peer.mirror == Some(*vi);
        if peer.membership_up && peer.mirror_up && !std::mem::replace(&mut peer.up, true) {
            let incarnation = peer.hello.incarnation;
            drop(place);
            self.link_up(incarnation);
        }
        ours
    }

    fn link_up(&self, partner: Incarnation) {
        if let Some(area) = self.inner.area.borrow_mut().as_mut() {
            area.exported = true;
        }
        self.event(Event::LinkUp(partner));
    }

    /// Director A: connects whenever a link would be of use.
    pub(super) async fn run_peer_connect(self) {
        let inner = &*self.inner;
        if inner.config.me == DirectorId::B {
            return;
        }
        loop {
            let wanted = inner.peer.borrow().is_none() && inner.machine.borrow().wants_link(None);
            if !wanted || !self.connect_peer().await {
                inner.handle.sleep(inner.config.timing.heartbeat).await;
            }
        }
    }

    async fn connect_peer(&self) -> bool {
        let inner = &*self.inner;
        let Some(ours) = self.hello() else { return false };
        let Some((membership, hello)) = self.connect(MEMBERSHIP_SERVICE, ours).await else { return false };
        let valid = hello.array == inner.config.array && hello.director == DirectorId::B;
        if !valid || !inner.machine.borrow().wants_link(Some(hello.incarnation)) {
            self.start_close(membership);
            return false;
        }
        let Some((mirror, again)) = self.connect(MIRROR_SERVICE, ours).await else {
            self.start_close(membership);
            return false;
        };
        if again != hello {
            self.start_close(membership);
            self.start_close(mirror);
            return false;
        }
        *inner.peer.borrow_mut() =
            Some(Peer { hello, membership, membership_up: true, mirror: Some(mirror), mirror_up: true, up: true });
        self.link_up(hello.incarnation);
        true
    }

    async fn connect(&self, service: Discriminator, ours: Hello) -> Option<(ViId, Hello)> {
        let inner = &*self.inner;
        let (to, hello) = (self.partner_address(service), ours.encode());
        let connecting =
            inner.endpoint.connect(&inner.handle, &inner.connections, &to, &hello, inner.config.timing.lease);
        let (vi, said) = connecting.await?;
        let hello = Hello::decode(&said);
        if hello.is_none() {
            self.start_close(vi);
        }
        Some((vi, hello?))
    }

    fn start_close(&self, vi: ViId) {
        assert!(self.inner.closing.try_push(vi).is_ok(), "a VI is closed once, and there are few");
    }

    pub(super) async fn run_peer_close(self) {
        loop {
            let vi = self.inner.closing.next().await;
            self.inner.endpoint.close(vi).await;
        }
    }

    /// Takes what the partner says.
    pub(super) async fn run_peer_receive(self) {
        let inner = &*self.inner;
        loop {
            let (vi, message) = inner.endpoint.receive().await;
            let Some(peer) = *inner.peer.borrow() else { continue };
            let understood = if vi == peer.membership {
                PeerMessage::decode(&message).map(|message| self.event(Event::Message(message))).is_some()
            } else if Some(vi) == peer.mirror {
                self.mirror_message(vi, &message)
            } else {
                true
            };
            if !understood {
                self.close_peer();
            }
        }
    }

    fn mirror_message(&self, vi: ViId, message: &[u8]) -> bool {
        let inner = &*self.inner;
        let Ok((record, tag)) = Record::decode(message) else { return false };
        if let Record::Answer(answer) = record {
            if let Some(link) = inner.cache.link() {
                link.answered(answer, tag);
            }
            return true;
        }
        let epoch = match &record {
            // Before it becomes a member: afterwards it could be the home before it knew.
            Record::Outcomes(outcomes) if inner.machine.borrow().is_joining() => Some(outcomes.epoch),
            _ => inner.machine.borrow().mirror_epoch(),
        };
        let mut area = inner.area.borrow_mut();
        let answer = match (epoch, area.as_mut()) {
            (Some(epoch), Some(area)) => area.mirror.serve(&record, epoch, inner.cache.outcomes()),
            _ => Some(Answer { status: AnswerStatus::WrongEpoch, epoch: Epoch(0) }),
        };
        let Some(answer) = answer else { return true };
        // Room for the answer was reserved before the question was asked (PROTOCOLS 11): none left is a fault of the partner.
        inner.endpoint.try_send(vi, &Record::Answer(answer).encode(tag)).is_ok()
    }
}
