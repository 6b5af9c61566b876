//! The [`Provider`] trait over [`State`].

use std::task::{Context, Poll};
use std::time::Duration;

use super::agent::Command;
use super::connection::{Progress, ReceiveItem, SendItem};
use super::state::{State, Vi};
use super::{CAPABILITIES, ShmProvider};
use crate::completion::{CompletionQueue, give_room, remember, take_room};
use crate::descriptor::{self, admit_receive, admit_send, offered, transfer_len};
use crate::memory::{Memory, Segment};
use crate::provider::{
    BrokenReason, Capabilities, Completion, CqId, Descriptor, Discriminator, Event, NetAddress, PostError, PrivateData,
    ProtectionTag, Provider, RefusedReason, RegionHandle, RemoteAccess, RequestId, ResourceError, Revocable,
    SendOperation, ViAttributes, ViId, WorkQueue,
};
use crate::regions::{LocalUse, Region};
use crate::vi_state::{ViEvent, ViState};

impl ShmProvider {
    fn with<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        action(&mut self.0.state.borrow_mut())
    }
}

impl Provider for ShmProvider {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn register(
        &self,
        memory: &Memory,
        tag: ProtectionTag,
        access: RemoteAccess,
    ) -> Result<RegionHandle, ResourceError> {
        if access.any() && memory.fd().is_none() {
            return Err(ResourceError::State("private memory cannot be shared"));
        }
        if access.any() && memory.huge_pages() {
            return Err(ResourceError::State("peers could take huge pages back"));
        }
        self.with(|state| {
            let handle = state.regions.register(Region { memory: memory.clone(), tag, access })?;
            state.status.open_region(handle);
            for vi in state.linked.all().to_vec() {
                let attributes = &state.vis.get(vi.0).expect("a linked VI is there").attributes;
                let allowed = access.and(attributes.remote_access);
                if attributes.tag == tag && allowed.any() {
                    state.announce(vi, &[(handle, memory.clone(), allowed)]);
                }
            }
            Ok(handle)
        })
    }

    fn deregister(&self, region: RegionHandle) -> Result<(), ResourceError> {
        self.with(|state| state.deregister(region).map(drop))
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
            state.break_vi(vi, BrokenReason::Disconnected);
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
            let reliability = state.prepare(vi)?.attributes.reliability;
            state.command(Command::Connect { vi, to: to.clone(), private_data, timeout, reliability });
            Ok(())
        })
    }

    fn accept(&self, request: RequestId, vi: ViId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|state| {
            let connection = request.0;
            let wanted = *state.requests.get(&connection).ok_or(ResourceError::Unknown("request"))?;
            let there = state.vis.get(vi.0).ok_or(ResourceError::Unknown("VI"))?;
            if there.state == ViState::Idle && there.attributes.reliability != wanted {
                state.requests.remove(&connection);
                let (why, private_data) = (RefusedReason::Mismatch, PrivateData::new());
                state.command(Command::Refuse { connection, why, private_data });
                return Err(ResourceError::State("the request asks for another reliability level"));
            }
            state.prepare(vi)?.connection = Some(connection);
            state.requests.remove(&connection);
            state.command(Command::Accept { connection, vi, private_data });
            Ok(())
        })
    }

    fn reject(&self, request: RequestId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|state| {
            let connection = request.0;
            state.requests.remove(&connection).ok_or(ResourceError::Unknown("request"))?;
            state.command(Command::Refuse { connection, why: RefusedReason::Rejected, private_data });
            Ok(())
        })
    }

    fn disconnect(&self, vi: ViId) -> Result<(), ResourceError> {
        self.with(|state| {
            state.vis.get(vi.0).ok_or(ResourceError::Unknown("VI"))?;
            state.break_vi(vi, BrokenReason::Disconnected);
            Ok(())
        })
    }

    fn post_send(&self, vi: ViId, descriptor: &Descriptor<'_>) -> Result<(), PostError> {
        self.with(|state| {
            let State { vis, regions, cqs, .. } = state;
            let there = vis.get_mut(vi.0).ok_or(PostError::NoSuchVi)?;
            if let (Some(link), SendOperation::Send) = (&there.link, descriptor.operation) {
                link.prepare();
            }
            let (how, len) = admit_send(descriptor, &there.attributes, &CAPABILITIES, there.state)?;
            if there.sends.is_full() {
                return Err(PostError::Full);
            }
            let tag = there.attributes.tag;
            let mut checks =
                descriptor.segments.iter().map(|segment| regions.local_memory(segment, tag, how).map(drop));
            let len = checks.try_for_each(|check| check).and_then(|()| transfer_len(len, &CAPABILITIES));
            let progress = len.map_or_else(|error| Progress::Done(Err(error)), |_| Progress::Begun(0));
            let immediate = descriptor.immediate.filter(|_| how == LocalUse::Source);
            let Descriptor { operation, cookie, .. } = *descriptor;
            let item = SendItem { cookie, operation, immediate, len: len.unwrap_or(0), progress };
            there.sends.push(item, descriptor.segments);
            // What can be done is done at once.
            match there.send(vi, cqs, regions, false) {
                Ok(_) => state.wake(vi),
                Err(why) => state.break_vi(vi, why),
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
            // A message may be waiting for it, and nobody would ring for that.
            state.wake(vi);
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
                state.break_vi(vi, BrokenReason::Revoked);
                Ok(())
            }
            Revocable::Region(region) => {
                let tag = state.deregister(region)?.tag;
                // As when a VI is revoked: what was posted before a write that may still be going on is taken.
                for vi in state.linked.all().to_vec() {
                    if state.vis.get(vi.0).is_some_and(|vi| vi.attributes.tag == tag)
                        && let Err(why) = state.drain(vi)
                    {
                        state.break_vi(vi, why);
                    }
                }
                Ok(())
            }
        })
    }

    fn is_reachable(&self, memory: &Memory) -> bool {
        self.with(|state| state.exports.iter().any(|export| export.memory == memory.id() && export.writable))
    }
}

impl State {
    /// Makes an idle VI ready to be connected.
    fn prepare(&mut self, vi: ViId) -> Result<&mut Vi, ResourceError> {
        let there = self.vis.get_mut(vi.0).ok_or(ResourceError::Unknown("VI"))?;
        there.state = there.state.step(ViEvent::Connect).ok_or(ResourceError::State("the VI is not idle"))?;
        // From the first byte on: the peer may be connected before we hear of it.
        self.status.open_vi(vi);
        Ok(there)
    }

    fn deregister(&mut self, region: RegionHandle) -> Result<Region, ResourceError> {
        let removed = self.regions.remove(region)?;
        self.status.close_region(region);
        let holders = self.exports.iter().filter(|export| export.region == region).map(|export| export.connection);
        for connection in holders.collect::<Vec<_>>() {
            self.command(Command::Unexport { connection, region });
        }
        Ok(removed)
    }
}
