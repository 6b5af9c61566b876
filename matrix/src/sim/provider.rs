//! One node's handle to the fabric.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Inner;
use super::flow::flush;
use super::state::{
    Body, EndState, Landing, Node, NodeIndex, Operation, Outstanding, Receive, Source, State, Transfer, Vi, other,
};
use crate::completion::{CompletionQueue, give_room, remember, take_room};
use crate::descriptor::{self, admit_receive, admit_send, offered, transfer_len};
use crate::memory::{Memory, Segment};
use crate::pieces::Piece;
use crate::provider::{
    BrokenReason, Capabilities, Completion, CqId, Descriptor, Discriminator, Event, NetAddress, PostError,
    ProtectionTag, Provider, RegionHandle, Reliability, RemoteAccess, RequestId, ResourceError, Revocable,
    SendOperation, ViAttributes, ViId, WorkQueue,
};
use crate::regions::{LocalUse, Region};
use crate::vi_state::ViState;

/// The matrix as one simulated node sees it.
#[derive(Clone)]
pub struct SimProvider {
    pub(super) fabric: Rc<Inner>,
    pub(super) node: NodeIndex,
}

impl SimProvider {
    fn with<R>(&self, action: impl FnOnce(&Inner, &mut State) -> R) -> R {
        action(&self.fabric, &mut self.fabric.state.borrow_mut())
    }

    fn with_node<R>(&self, action: impl FnOnce(&mut Node) -> R) -> R {
        action(&mut self.fabric.state.borrow_mut().nodes[self.node])
    }
}

impl Provider for SimProvider {
    fn capabilities(&self) -> Capabilities {
        self.fabric.config.profile.capabilities
    }

    fn register(
        &self,
        memory: &Memory,
        tag: ProtectionTag,
        access: RemoteAccess,
    ) -> Result<RegionHandle, ResourceError> {
        self.with_node(|node| node.regions.register(Region { memory: memory.clone(), tag, access }))
    }

    fn deregister(&self, region: RegionHandle) -> Result<(), ResourceError> {
        self.with_node(|node| node.regions.remove(region).map(drop))
    }

    fn create_cq(&self, depth: u32) -> Result<CqId, ResourceError> {
        let queue = CompletionQueue::new(depth);
        self.with_node(|node| node.cqs.insert(queue)).map(CqId).ok_or(ResourceError::Exhausted("completion queue"))
    }

    fn create_vi(&self, attributes: &ViAttributes) -> Result<ViId, ResourceError> {
        offered(&self.capabilities(), attributes.reliability)?;
        self.with_node(|node| {
            let Node { cqs, vis, .. } = node;
            take_room(cqs, attributes, |vi| vis.get(vi.0).is_some())?;
            let vi = vis.insert(Vi::new(attributes)).ok_or(ResourceError::Exhausted("VI"));
            vi.map(ViId).inspect_err(|_| give_room(cqs, attributes))
        })
    }

    fn destroy_vi(&self, vi: ViId) -> Result<(), ResourceError> {
        self.with(|fabric, state| {
            let node = &mut state.nodes[self.node];
            let there = node.vi_mut(vi).ok_or(ResourceError::Unknown("VI"))?;
            there.sends.clear();
            there.receives.clear();
            let events_before = node.events.len();
            fabric.break_vi(state, self.node, vi, BrokenReason::Disconnected);
            let node = &mut state.nodes[self.node];
            node.events.truncate(events_before);
            let gone = node.vis.remove(vi.0).expect("it was just there").attributes;
            give_room(&mut node.cqs, &gone);
            Ok(())
        })
    }

    fn listen(&self, discriminator: Discriminator) -> Result<(), ResourceError> {
        let fresh = self.with_node(|node| node.listeners.insert(discriminator));
        if fresh { Ok(()) } else { Err(ResourceError::State("somebody listens on the discriminator")) }
    }

    fn connect(&self, vi: ViId, to: &NetAddress, private_data: &[u8], timeout: Duration) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|fabric, state| fabric.connect(state, self.node, vi, to, private_data, timeout))
    }

    fn accept(&self, request: RequestId, vi: ViId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|fabric, state| fabric.accept(state, self.node, request, vi, private_data))
    }

    fn reject(&self, request: RequestId, private_data: &[u8]) -> Result<(), ResourceError> {
        let private_data = descriptor::private_data(private_data)?;
        self.with(|fabric, state| fabric.reject(state, self.node, request, private_data))
    }

    fn disconnect(&self, vi: ViId) -> Result<(), ResourceError> {
        self.with(|fabric, state| fabric.disconnect(state, self.node, vi, BrokenReason::Disconnected))
    }

    fn post_send(&self, vi: ViId, descriptor: &Descriptor<'_>) -> Result<(), PostError> {
        let capabilities = self.capabilities();
        self.with(|fabric, state| fabric.post_send(state, self.node, vi, descriptor, &capabilities))
    }

    fn post_receive(&self, vi: ViId, segments: &[Segment], cookie: u64) -> Result<(), PostError> {
        self.with(|fabric, state| {
            let Node { vis, regions, .. } = &mut state.nodes[self.node];
            let there = vis.get_mut(vi.0).ok_or(PostError::NoSuchVi)?;
            admit_receive(segments, there.state)?;
            if there.receives_used == there.attributes.receive_depth {
                return Err(PostError::Full);
            }
            there.receives_used += 1;
            let tag = there.attributes.tag;
            let target = segments.iter().map(|segment| regions.local(segment, tag, LocalUse::Target)).collect();
            there.receives.push_back(Receive { cookie, target });
            // A message may be waiting for it.
            if let Some((id, side)) = there.connection {
                fabric.schedule_packet(state, id, other(side), Duration::ZERO);
            }
            Ok(())
        })
    }

    fn poll_completion(&self, cq: CqId, cx: &mut Context<'_>) -> Poll<Completion> {
        self.with_node(|node| {
            let queue = node.cqs.get_mut(cq.0).expect("poll_completion names a completion queue of this provider");
            let polled = queue.poll(cx);
            if let Poll::Ready(completion) = &polled
                && let Some(vi) = node.vis.get_mut(completion.vi.0)
            {
                match completion.queue {
                    WorkQueue::Send => vi.sends_used -= 1,
                    WorkQueue::Receive => vi.receives_used -= 1,
                }
            }
            polled
        })
    }

    fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.with_node(|node| match node.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                remember(&mut node.event_waiter, cx);
                Poll::Pending
            }
        })
    }

    fn revoke(&self, what: Revocable) -> Result<(), ResourceError> {
        self.with(|fabric, state| {
            fabric.keep_late_writes(state, self.node, what);
            fabric.revoke(state, self.node, what)
        })
    }

    fn is_reachable(&self, memory: &Memory) -> bool {
        self.with(|_, state| {
            let node = &state.nodes[self.node];
            let writes = |tag| {
                let reaches = |vi: &Vi| vi.attributes.tag == tag && vi.attributes.remote_access.write;
                node.vis.iter().any(|(_, vi)| reaches(vi) && vi.state == ViState::Connected)
            };
            let open = node.regions.of_memory(memory.id()).any(|region| region.access.write && writes(region.tag));
            open || state.awaits_late_write(memory.id())
        })
    }
}

impl Inner {
    fn disconnect(&self, state: &mut State, node: NodeIndex, vi: ViId, why: BrokenReason) -> Result<(), ResourceError> {
        let there = state.nodes[node].vi(vi).ok_or(ResourceError::Unknown("VI"))?;
        match (there.state, there.connection) {
            (ViState::Idle | ViState::Broken, _) => {}
            (ViState::Connecting | ViState::Connected, Some((id, side))) => self.break_end(state, id, side, why),
            // A client whose request is on its way: an accept will find nobody.
            (ViState::Connecting | ViState::Connected, None) => {
                flush(&mut state.nodes[node], vi, why);
            }
        }
        Ok(())
    }

    fn revoke(&self, state: &mut State, node: NodeIndex, what: Revocable) -> Result<(), ResourceError> {
        match what {
            Revocable::Vi(vi) => self.disconnect(state, node, vi, BrokenReason::Revoked),
            Revocable::Region(region) => {
                state.nodes[node].regions.remove(region)?;
                self.fail_acks_of(state, node, region);
                Ok(())
            }
        }
    }

    fn post_send(
        &self,
        state: &mut State,
        node: NodeIndex,
        vi: ViId,
        descriptor: &Descriptor<'_>,
        capabilities: &Capabilities,
    ) -> Result<(), PostError> {
        let Node { vis, regions, .. } = &mut state.nodes[node];
        let there = vis.get_mut(vi.0).ok_or(PostError::NoSuchVi)?;
        let (how, len) = admit_send(descriptor, &there.attributes, capabilities, there.state)?;
        let (operation, wrote) = match descriptor.operation {
            SendOperation::Send => (Operation::Send, None),
            SendOperation::RdmaWrite(to) => (Operation::Write(to), Some(to)),
            SendOperation::RdmaRead(from) => (Operation::Read(from), None),
        };
        let is_read = how == LocalUse::Target;
        let unreliable = there.attributes.reliability == Reliability::UnreliableDelivery;
        if there.sends_used == there.attributes.send_depth {
            return Err(PostError::Full);
        }
        there.sends_used += 1;
        let number = there.next_number;
        there.next_number += 1;
        let tag = there.attributes.tag;
        let local: Result<Vec<Piece>, _> =
            descriptor.segments.iter().map(|segment| regions.local(segment, tag, how)).collect();
        let local = local.and_then(|pieces| transfer_len(len, capabilities).map(|_| pieces));
        let cookie = descriptor.cookie;
        let pieces = match local {
            Ok(pieces) => pieces,
            Err(error) => {
                there.sends.push_back(Outstanding {
                    number,
                    cookie,
                    local: Vec::new(),
                    wrote,
                    result: Some(Err(error)),
                });
                there.poisoned |= !unreliable;
                if state.nodes[node].complete_sends(vi) {
                    self.break_vi(state, node, vi, BrokenReason::Protocol);
                }
                return Ok(());
            }
        };
        there.sends.push_back(Outstanding { number, cookie, local: pieces.clone(), wrote, result: None });
        if there.poisoned {
            return Ok(());
        }
        let early = !is_read && there.attributes.reliability != Reliability::ReliableReception;
        let (id, side) = there.connection.expect("a connected VI has a connection");
        let immediate = descriptor.immediate.filter(|_| !is_read);
        let (source, landing) = (Source::Memory(pieces), Landing::NotBegun);
        let transfer = Transfer { number, operation, len, immediate, source, landing, truncated: false };
        debug_assert!(state.connections[&id].ends[side].state == EndState::Open);
        self.enqueue(state, id, side, Body::Transfer(transfer));
        if early {
            // Strictly before it can arrive.
            let wait = state.random(self.config.link.latency / 2);
            self.after(wait, move |this, state| this.depart(state, id, side, number));
        }
        Ok(())
    }
}

impl Vi {
    fn new(attributes: &ViAttributes) -> Self {
        Self {
            attributes: *attributes,
            state: ViState::Idle,
            attempt: 0,
            connection: None,
            sends_used: 0,
            receives_used: 0,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            next_number: 0,
            poisoned: false,
        }
    }
}

impl fmt::Debug for SimProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimProvider").field("node", &self.node).finish_non_exhaustive()
    }
}
