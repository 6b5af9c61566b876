//! The [`Provider`] trait over [`State`].

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use dyad_reactor::{BootClock, Clock};

use super::connection::Stage;
use super::flow::{Progress, ReceiveItem, SendItem};
use super::frame::{End, Packet};
use super::state::{State, Vi};
use super::{CAPABILITIES, Security, TcpProvider};
use crate::completion::{CompletionQueue, give_room, remember, take_room};
use crate::descriptor::{self, admit_receive, admit_send, offered, transfer_len};
use crate::memory::{Memory, Segment};
use crate::provider::{
    BrokenReason, Capabilities, Completion, CqId, Descriptor, Discriminator, Event, NetAddress, PostError, PrivateData,
    ProtectionTag, Provider, RefusedReason, RegionHandle, RemoteAccess, RequestId, ResourceError, Revocable,
    ViAttributes, ViId, WorkQueue,
};
use crate::regions::{LocalUse, Region};
use crate::vi_state::{ViEvent, ViState};

impl TcpProvider {
    fn with<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        action(&mut self.0.state.borrow_mut())
    }
}

impl Provider for TcpProvider {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn register(
        &self,
        memory: &Memory,
        tag: ProtectionTag,
        access: RemoteAccess,
    ) -> Result<RegionHandle, ResourceError> {
        self.with(|state| state.regions.register(Region { memory: memory.clone(), tag, access }))
    }

    fn deregister(&self, region: RegionHandle) -> Result<(), ResourceError> {
        self.with(|state| state.regions.remove(region).map(drop))
    }

    fn create_cq(&self, depth: u32) -> Result<CqId, ResourceError> {
        let queue = CompletionQueue::new(depth);
        self.with(|state| state.cqs.insert(queue)).map(CqId).ok_or(ResourceError::Exhausted("completion queue"))
    }

    fn create_vi(&self, attributes: &ViAttributes) -> Result<ViId, ResourceError> {
        offered(&CAPABILITIES, attributes.reliability)?;
        self.with(|state| {
            let State { cqs, vis, .. } = state;
            take_room(cqs, attributes, |vi| vis.get(vi.0).is_some())?;
            let vi = vis.insert(Vi::new(attributes)).ok_or(ResourceError::Exhausted("VI"));
            vi.map(ViId).inspect_err(|_| give_room(cqs, attributes))
        })
    }

    fn destroy_vi(&self, vi: ViId) -> Result<(), ResourceError> {
        self.with(|state| {
            let there = state.vis.get_mut(vi.0).ok_or(ResourceError::Unknown("VI"))?;
            while there.sends.pop().is_some() {}
            while there.receives.pop().is_some() {}
            let events_before = state.events.len();
            state.break_vi(vi, BrokenReason::Disconnected, Some(End::Disconnected));
            state.events.truncate(events_before);
            let gone = state.vis.remove(vi.0).expect("it was just there");
            give_room(&mut state.cqs, &gone.attributes);
            Ok(())
        })
    }

    fn listen(&self, discriminator: Discriminator) -> Result<(), ResourceError> {
        let fresh = self.with(|state| state.listeners.insert(discriminator));
        if fresh { Ok(()) } else { Err(ResourceError::State("somebody listens on the discriminator")) }
    }

    fn connect(&self, vi: ViId, to: &NetAddress, private_data: &[u8], timeout: Duration) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|state| {
            let reliability = state.vis.get(vi.0).ok_or(ResourceError::Unknown("VI"))?.attributes.reliability;
            let address = to.host.parse::<SocketAddr>();
            if matches!(state.security, Security::Loopback) && address.as_ref().is_ok_and(|to| !to.ip().is_loopback()) {
                return Err(ResourceError::State("beyond this host a connection needs a key, or a trusted network"));
            }
            state.prepare(vi)?;
            let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            let discriminator = to.discriminator;
            let request = Packet::Request { discriminator, timeout_ms, reliability, private_data };
            let called = match address {
                Ok(address) => state.call(vi, address, &request, BootClock.now() + timeout),
                Err(_) => Err(RefusedReason::NoListener),
            };
            match called {
                Ok(name) => state.vis.get_mut(vi.0).expect("it was just there").connection = Some(name),
                Err(why) => state.refused(vi, why, PrivateData::new()),
            }
            Ok(())
        })
    }

    fn accept(&self, request: RequestId, vi: ViId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|state| {
            if !state.is_asked(request) {
                return Err(ResourceError::Unknown("request"));
            }
            state.prepare(vi)?.connection = Some(request.0);
            if !state.answer(request.0, &Packet::Accept { private_data }, Stage::Accepted { vi }) {
                state.break_vi(vi, BrokenReason::Protocol, None);
            }
            Ok(())
        })
    }

    fn reject(&self, request: RequestId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|state| {
            if !state.is_asked(request) {
                return Err(ResourceError::Unknown("request"));
            }
            let packet = Packet::Refuse { why: RefusedReason::Rejected, private_data };
            // If the client is gone there is nobody to be told.
            state.answer(request.0, &packet, Stage::Farewell);
            Ok(())
        })
    }

    fn disconnect(&self, vi: ViId) -> Result<(), ResourceError> {
        self.with(|state| {
            state.vis.get(vi.0).ok_or(ResourceError::Unknown("VI"))?;
            state.break_vi(vi, BrokenReason::Disconnected, Some(End::Disconnected));
            Ok(())
        })
    }

    fn post_send(&self, vi: ViId, descriptor: &Descriptor<'_>) -> Result<(), PostError> {
        self.with(|state| {
            let State { vis, regions, .. } = state;
            let there = vis.get_mut(vi.0).ok_or(PostError::NoSuchVi)?;
            let (how, len) = admit_send(descriptor, &there.attributes, &CAPABILITIES, there.state)?;
            if there.sends.is_full() {
                return Err(PostError::Full);
            }
            let tag = there.attributes.tag;
            let mut checks =
                descriptor.segments.iter().map(|segment| regions.local_memory(segment, tag, how).map(drop));
            let len = checks.try_for_each(|check| check).and_then(|()| transfer_len(len, &CAPABILITIES));
            let progress = len.map_or_else(|error| Progress::Done(Err(error)), |_| Progress::Framed(0));
            let immediate = descriptor.immediate.filter(|_| how == LocalUse::Source);
            let Descriptor { operation, cookie, .. } = *descriptor;
            let item = SendItem { cookie, operation, immediate, len: len.unwrap_or(0), progress };
            there.sends.push(item, descriptor.segments);
            // With whatever else is posted until the next turn, in one call.
            if let Some(name) = there.connection {
                state.wake(name);
            }
            Ok(())
        })
    }

    fn post_receive(&self, vi: ViId, segments: &[Segment], cookie: u64) -> Result<(), PostError> {
        self.with(|state| {
            let there = state.vis.get_mut(vi.0).ok_or(PostError::NoSuchVi)?;
            admit_receive(segments, there.state)?;
            if there.receives.is_full() {
                return Err(PostError::Full);
            }
            there.receives.push(ReceiveItem { cookie }, segments);
            if let (Some(flow), Some(name)) = (&mut there.flow, there.connection) {
                flow.receiving.grant();
                state.wake(name);
            }
            Ok(())
        })
    }

    fn poll_completion(&self, cq: CqId, cx: &mut Context<'_>) -> Poll<Completion> {
        self.with(|state| {
            let queue = state.cqs.get_mut(cq.0).expect("poll_completion names a completion queue of this provider");
            let polled = queue.poll(cx);
            if let Poll::Ready(completion) = &polled
                && let Some(vi) = state.vis.get_mut(completion.vi.0)
            {
                match completion.queue {
                    WorkQueue::Send => vi.sends.used -= 1,
                    WorkQueue::Receive => vi.receives.used -= 1,
                }
            }
            polled
        })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.with(|state| match state.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                remember(&mut state.event_waiter, cx);
                Poll::Pending
            }
        })
    }

    fn revoke(&self, what: Revocable) -> Result<(), ResourceError> {
        self.with(|state| match what {
            Revocable::Vi(vi) => {
                state.vis.get(vi.0).ok_or(ResourceError::Unknown("VI"))?;
                state.break_vi(vi, BrokenReason::Revoked, Some(End::Disconnected));
                Ok(())
            }
            Revocable::Region(region) => state.regions.remove(region).map(drop),
        })
    }

    fn is_reachable(&self, memory: &Memory) -> bool {
        self.with(|state| {
            let writes = |tag| {
                let reaches = |vi: &Vi| vi.attributes.tag == tag && vi.attributes.remote_access.write;
                state.vis.iter().any(|(_, vi)| reaches(vi) && vi.state == ViState::Connected)
            };
            state.regions.of_memory(memory.id()).any(|region| region.access.write && writes(region.tag))
        })
    }
}

impl State {
    /// Makes an idle VI ready to be connected.
    fn prepare(&mut self, vi: ViId) -> Result<&mut Vi, ResourceError> {
        let there = self.vis.get_mut(vi.0).ok_or(ResourceError::Unknown("VI"))?;
        there.state = there.state.step(ViEvent::Connect).ok_or(ResourceError::State("the VI is not idle"))?;
        Ok(there)
    }
}
