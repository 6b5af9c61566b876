//! What the reactor knows, and what it does in each turn: VIs with their queues, regions, and who holds what of ours.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;

use nix::sys::epoll::Epoll;

use super::ShmLimits;
use super::agent::{AgentHandle, Command, ConnectionName};
use super::attention::{Attention, PATIENCE};
use super::connection::{Incoming, Link, Progress, ReceiveItem, SendItem, Step};
use super::ring::Garbage;
use super::socket;
use super::status::OwnStatus;
use crate::completion::CompletionQueue;
use crate::memory::MemoryId;
use crate::provider::{
    BrokenReason, Completion, DescriptorError, Discriminator, Event, RegionHandle, Reliability, SendOperation,
    ViAttributes, ViId, WorkQueue,
};
use crate::regions::Regions;
use crate::slots::Slots;
use crate::vi_state::{ViEvent, ViState};
use crate::work_items::WorkItems;

/// Notices of the agent, and entries of one ring, that one turn takes.
const TURN: usize = 64;

pub(super) struct State {
    pub(super) status: OwnStatus,
    pub(super) agent: AgentHandle,
    /// Commands that the agent had no room for.
    waiting_commands: VecDeque<Command>,
    pub(super) regions: Regions,
    pub(super) cqs: Queues,
    pub(super) vis: Slots<Vi>,
    pub(super) listeners: BTreeSet<Discriminator>,
    pub(super) requests: BTreeMap<ConnectionName, Reliability>,
    pub(super) events: VecDeque<Event>,
    pub(super) event_waiter: Option<Waker>,
    /// VIs with a link.
    pub(super) linked: Attention,
    /// Which peers map which of our regions.
    pub(super) exports: Vec<Export>,
    /// Payload bytes copied to peers over connections that have ended.
    copied_before: u64,
}

/// A region of ours in the hands of a peer.
pub(super) struct Export {
    pub(super) connection: ConnectionName,
    pub(super) region: RegionHandle,
    pub(super) memory: MemoryId,
    pub(super) writable: bool,
}

pub(super) struct Vi {
    pub(super) attributes: ViAttributes,
    pub(super) state: ViState,
    /// The agent's name for its connection: a client's only once that is there.
    pub(super) connection: Option<ConnectionName>,
    pub(super) link: Option<Box<Link>>,
    pub(super) sends: WorkItems<SendItem>,
    pub(super) receives: WorkItems<ReceiveItem>,
    /// How many of the sends, from the front, have nothing left to do but complete.
    pub(super) begun: usize,
    /// A send failed; what was posted behind it will be flushed.
    pub(super) poisoned: bool,
    pub(super) expecting: Expecting,
    /// Turns since something happened.
    idle: u16,
}

/// Whether a send waits for a region that the peer has announced.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Expecting {
    No,
    Yes,
    /// And the agent watches that it arrives.
    Told,
}

type Queues = Slots<CompletionQueue>;

impl Vi {
    pub(super) fn new(attributes: &ViAttributes) -> Self {
        Self {
            attributes: *attributes,
            state: ViState::Idle,
            connection: None,
            link: None,
            sends: WorkItems::new(attributes.send_depth),
            receives: WorkItems::new(attributes.receive_depth),
            begun: 0,
            poisoned: false,
            expecting: Expecting::No,
            idle: 0,
        }
    }

    fn is_reliable(&self) -> bool {
        self.attributes.reliability != Reliability::UnreliableDelivery
    }

    /// Whether the agent is to be told that a region is waited for.
    fn expects(&self) -> bool {
        self.expecting == Expecting::Yes
    }

    /// Takes up to `most` entries from the peer.
    pub(super) fn receive(
        &mut self,
        vi: ViId,
        cqs: &mut Queues,
        regions: &Regions,
        most: usize,
    ) -> Result<usize, BrokenReason> {
        let reliable = self.is_reliable();
        let Self { link: Some(link), receives, attributes, .. } = self else { return Ok(0) };
        for taken in 0..most {
            match link.take_incoming(receives, regions) {
                Err(Garbage) => return Err(BrokenReason::Protocol),
                Ok(Incoming::Nothing) => return Ok(taken),
                Ok(Incoming::Part | Incoming::Dropped) => {}
                Ok(Incoming::Complete(result, immediate)) => {
                    let cookie = receives.pop().expect("it was just filled").cookie;
                    let cq = cqs.get_mut(attributes.receive_cq.0).expect("queues outlive VIs");
                    cq.push(Completion { vi, queue: WorkQueue::Receive, cookie, result, immediate });
                    if result.is_err() && reliable {
                        return Err(BrokenReason::Protocol);
                    }
                }
            }
        }
        Ok(most)
    }

    /// Moves the sends on as far as they go, and completes those that are done; `look`s first how far the peer is.
    pub(super) fn send(
        &mut self,
        vi: ViId,
        cqs: &mut Queues,
        regions: &Regions,
        look: bool,
    ) -> Result<usize, BrokenReason> {
        let reliable = self.is_reliable();
        let Self { link: Some(link), sends, begun, poisoned, attributes, expecting, .. } = self else { return Ok(0) };
        if sends.front().is_none() {
            return Ok(0);
        }
        let mut work = 0;
        if look {
            work += usize::from(link.refresh().map_err(|Garbage| BrokenReason::Protocol)?);
        }
        while !*poisoned && let Some((item, segments)) = sends.get_mut(*begun) {
            match link.advance(item, segments, regions) {
                Step::Done => {
                    *poisoned = reliable && matches!(item.progress, Progress::Done(Err(_)));
                    *begun += 1;
                    work += 1;
                }
                Step::Again => {
                    work += 1;
                    if work >= TURN || !matches!(item.operation, SendOperation::Send) {
                        break;
                    }
                }
                Step::NoRoom => break,
                Step::NoRegion => {
                    if *expecting == Expecting::No {
                        *expecting = Expecting::Yes;
                    }
                    break;
                }
            }
        }
        while let Some(item) = sends.front() {
            let result = match item.progress {
                Progress::Done(result) => result,
                Progress::InRing(end) if link.is_consumed(end) && link.is_peer_open() => Ok(item.len),
                Progress::InRing(_) | Progress::Begun(_) => break,
            };
            let cq = cqs.get_mut(attributes.send_cq.0).expect("queues outlive VIs");
            cq.push(Completion { vi, queue: WorkQueue::Send, cookie: item.cookie, result, immediate: None });
            sends.pop();
            *begun -= 1;
            work += 1;
            if result.is_err() && reliable {
                return Err(BrokenReason::Protocol);
            }
        }
        Ok(work)
    }
}

impl State {
    pub(super) fn new(status: OwnStatus, agent: AgentHandle, incarnation: u64, limits: &ShmLimits) -> Self {
        let vis = usize::from(limits.vis);
        Self {
            status,
            agent,
            waiting_commands: VecDeque::new(),
            regions: Regions::new(incarnation, limits.regions),
            cqs: Slots::new(limits.completion_queues),
            vis: Slots::new(limits.vis),
            listeners: BTreeSet::new(),
            requests: BTreeMap::new(),
            events: VecDeque::with_capacity(2 * vis),
            event_waiter: None,
            linked: Attention::new(limits.vis),
            exports: Vec::new(),
            copied_before: 0,
        }
    }

    /// One turn: what the agent has to say, then every connection.
    pub(super) fn poll(&mut self, epoll: &Epoll) -> usize {
        let mut work = 0;
        while let Some(notice) = self.agent.next_notice() {
            self.notice(notice, epoll);
            work += 1;
            if work == TURN {
                break;
            }
        }
        while let Some(command) = self.waiting_commands.pop_front() {
            if let Err(command) = self.agent.command(command) {
                self.waiting_commands.push_front(command);
                break;
            }
        }
        let mut at = 0;
        while let Some(vi) = self.linked.lively(at) {
            let done = self.poll_vi(vi);
            work += done;
            if done == 0 {
                self.grow_quiet(vi);
            }
            // If it broke or grew quiet, another has its place.
            at += usize::from(self.linked.lively(at) == Some(vi));
        }
        for _ in 0..self.linked.glances() {
            let Some(vi) = self.linked.glance() else { break };
            let done = self.poll_vi(vi);
            work += done;
            if done > 0 {
                self.wake(vi);
            }
        }
        work
    }

    /// Nothing happened on a VI in this turn.
    fn grow_quiet(&mut self, vi: ViId) {
        let crowded = self.linked.is_crowded();
        let Some(there) = self.vis.get_mut(vi.0) else { return };
        there.idle = there.idle.saturating_add(1);
        let Some(link) = &there.link else { return };
        if crowded && there.idle > PATIENCE && there.sends.front().is_none() && link.is_settled() {
            link.say_quiet(true);
            self.linked.hush(vi);
            // Whoever published before saw that is not going to ring.
            if self.poll_vi(vi) > 0 {
                self.wake(vi);
            }
        }
    }

    /// Something happens on a VI, or will.
    pub(super) fn wake(&mut self, vi: ViId) {
        if self.linked.wake(vi)
            && let Some(there) = self.vis.get_mut(vi.0)
        {
            there.idle = 0;
            if let Some(link) = &there.link {
                link.say_quiet(false);
            }
        }
    }

    /// The doorbell of a VI was rung.
    pub(super) fn rung(&mut self, vi: ViId, epoll: &Epoll) {
        self.wake(vi);
        if let Some(link) = self.vis.get(vi.0).and_then(|vi| vi.link.as_ref())
            && !socket::quieten(link.doorbell())
        {
            // The peer is gone; the agent will tell how.
            let _ = epoll.delete(link.doorbell());
        }
    }

    /// Sends, completes and receives on one VI; returns how much.
    fn poll_vi(&mut self, vi: ViId) -> usize {
        let asleep = self.status.asleep;
        let Self { vis, cqs, regions, .. } = self;
        let Some(there) = vis.get_mut(vi.0) else { return 0 };
        if let Some(link) = &mut there.link {
            // For what this turn's poll and tasks do there is the next turn: a reactor polls before it sleeps.
            link.stir(asleep);
        }
        // Receiving comes last: whoever waits for a message waits for nothing else.
        let work =
            there.send(vi, cqs, regions, true).and_then(|sent| Ok(sent + there.receive(vi, cqs, regions, TURN)?));
        let expects = there.expects();
        match work {
            Ok(work) => {
                if work > 0 {
                    there.idle = 0;
                }
                if expects {
                    self.expect_region(vi);
                }
                work
            }
            Err(why) => {
                self.break_vi(vi, why);
                1
            }
        }
    }

    /// Takes all that the peer has sent until now, as far as receives are posted.
    pub(super) fn drain(&mut self, vi: ViId) -> Result<(), BrokenReason> {
        let Self { vis, cqs, regions, .. } = self;
        let Some(there) = vis.get_mut(vi.0) else { return Ok(()) };
        let published = there.link.as_ref().map_or(0, |link| link.published_max());
        there.receive(vi, cqs, regions, published).map(drop)
    }

    /// Has the agent watch that a region arrives which was announced.
    fn expect_region(&mut self, vi: ViId) {
        let there = self.vis.get_mut(vi.0).expect("it was just there");
        there.expecting = Expecting::Told;
        let connection = there.connection.expect("a linked VI has a connection");
        self.command(Command::Expect { connection });
    }

    /// Ends the connection of a VI: closes it to the peer, takes what had arrived, completes the rest, and tells.
    pub(super) fn break_vi(&mut self, vi: ViId, why: BrokenReason) {
        let Some(there) = self.vis.get_mut(vi.0) else { return };
        let Some(broken) = there.state.step(ViEvent::Broken) else { return };
        there.state = broken;
        self.status.close_vi(vi);
        // Every message that was published before a write which may still be going on is there by now.
        let _ = self.drain(vi);
        self.linked.remove(vi);
        let Self { vis, cqs, .. } = self;
        let there = vis.get_mut(vi.0).expect("it was just there");
        while let Some(item) = there.sends.pop() {
            let result = match item.progress {
                Progress::Done(result) => result,
                Progress::Begun(_) | Progress::InRing(_) => Err(DescriptorError::Flushed),
            };
            let cq = cqs.get_mut(there.attributes.send_cq.0).expect("queues outlive VIs");
            cq.push(Completion { vi, queue: WorkQueue::Send, cookie: item.cookie, result, immediate: None });
        }
        while let Some(item) = there.receives.pop() {
            let (cookie, result) = (item.cookie, Err(DescriptorError::Flushed));
            let cq = cqs.get_mut(there.attributes.receive_cq.0).expect("queues outlive VIs");
            cq.push(Completion { vi, queue: WorkQueue::Receive, cookie, result, immediate: None });
        }
        let link = there.link.take();
        self.copied_before += link.as_ref().map_or(0, |link| link.copied_bytes());
        let memories = link.map_or_else(Vec::new, |link| link.into_memories());
        let there = self.vis.get(vi.0).expect("it was just there");
        let command = match there.connection {
            Some(connection) => Command::Close { connection, why, memories },
            None => Command::Abandon { vi },
        };
        self.command(command);
        self.event(Event::Broken { vi, why });
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push_back(event);
        if let Some(waiter) = self.event_waiter.take() {
            waiter.wake();
        }
    }

    /// Asks the agent for something; in order, and never in vain: what does not fit waits here.
    pub(super) fn command(&mut self, command: Command) {
        if !self.waiting_commands.is_empty() {
            self.waiting_commands.push_back(command);
        } else if let Err(command) = self.agent.command(command) {
            self.waiting_commands.push_back(command);
        }
    }

    pub(super) fn copied_bytes(&self) -> u64 {
        let links = self.linked.all().iter().filter_map(|vi| self.vis.get(vi.0)?.link.as_ref());
        self.copied_before + links.map(|link| link.copied_bytes()).sum::<u64>()
    }
}
