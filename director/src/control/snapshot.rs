//! What a director's reactor says of itself when the control thread asks: a copy of its numbers at one moment.
//!
//! Questions go to the reactor over a bounded ring; one task there answers them, between I/O. Answering allocates and costs a system call, so
//! it happens only when somebody asks. What happens by itself, changes of state, goes the other way over a ring of its own.

use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::device::{DeviceId, DeviceInfo};
use dyad_backend::raid::GroupState;
use dyad_backend::raid::geometry::Level;
use dyad_backend::raid::group::{GroupCounters, MemberState};
use dyad_cache::counters::CacheCounters;
use dyad_matrix::Provider;
use dyad_nvme::types::BlockCount;
use dyad_reactor::Time;
use dyad_reactor::executor::Handle;
use dyad_reactor::ring::{self, Receiver, Sender};
use dyad_reactor::sync::Full;
use tokio::sync::oneshot;

use crate::node::Node;
use crate::registry::Registry;

/// Questions on their way; more are told that the director is busy.
const QUESTIONS: usize = 16;
/// Events on their way to the control thread.
const EVENTS: usize = 256;
/// How long the reactor may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A director's numbers at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) state: &'static str,
    pub(super) serves: bool,
    pub(super) epoch: u64,
    /// Everything that was acknowledged is on media.
    pub(super) settled: bool,
    /// Commands that the `vi` port has answered.
    pub(super) commands: u64,
    pub(super) cache: CacheCounters,
    /// Blocks that media does not have yet.
    pub(super) write_pending: usize,
    pub(super) cached: usize,
    pub(super) frames_free: usize,
    /// Blocks held for the partner.
    pub(super) mirrored: usize,
    /// The pair's group, at its home.
    pub(super) group: Option<GroupSnapshot>,
    /// The ports for hosts.
    pub(super) ports: Vec<PortNumbers>,
    /// In the order of the configuration; without those that could not be reached.
    pub(super) devices: Vec<DeviceInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupSnapshot {
    pub(super) level: Level,
    pub(super) blocks: BlockCount,
    pub(super) state: GroupState,
    pub(super) members: Vec<(DeviceId, MemberState)>,
    pub(super) counters: GroupCounters,
}

/// What a port for hosts has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortNumbers {
    /// `vi` or `nvme-tcp`.
    pub kind: &'static str,
    /// Where hosts find it.
    pub address: String,
    /// Connections that are open.
    pub connections: usize,
    /// I/O commands answered.
    pub commands: u64,
    /// Connections turned away, or ended for what the host sent or did not take.
    pub ended: u64,
}

/// Asks the ports.
pub(crate) type Ports = Rc<dyn Fn() -> Vec<PortNumbers>>;

fn take<D: Device, P: Provider, R: Registry>(node: &Node<D, P, R>, devices: &[D], ports: &Ports) -> Snapshot {
    let cache = node.cache();
    let group = node.group().group().map(|group| GroupSnapshot {
        level: group.geometry().level(),
        blocks: group.blocks(),
        state: group.state(),
        members: group.members().collect(),
        counters: group.counters(),
    });
    Snapshot {
        state: node.state_name(),
        serves: node.serves(),
        epoch: node.epoch().0,
        settled: cache.is_settled(),
        commands: node.target().served(),
        cache: cache.counters(),
        write_pending: cache.dirty_blocks(),
        cached: cache.cached_blocks(),
        frames_free: cache.pool().free_count(),
        mirrored: node.mirrored_blocks(),
        group,
        ports: ports(),
        devices: devices.iter().map(Device::info).collect(),
    }
}

type Question = oneshot::Sender<Snapshot>;

/// Asks the reactor.
pub(super) struct Asker(Mutex<Sender<Question>>);

/// Why there is no snapshot.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Too many ask.
    Busy,
    /// The reactor does not turn.
    Silent,
}

impl Asker {
    /// # Errors
    /// [`NoAnswer`].
    pub(super) async fn ask(&self) -> Result<Snapshot, NoAnswer> {
        let (question, answer) = oneshot::channel();
        // Held for a few instructions, by the control thread alone.
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).try_send(question);
        if let Err(Full(_)) = asked {
            return Err(NoAnswer::Busy);
        }
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Silent),
        }
    }
}

/// Something that happened on the reactor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) at: Time,
    pub(super) what: Happening,
}

/// What can happen there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happening {
    /// Membership: the state, whether it serves, and in which epoch.
    Membership(&'static str, bool, u64),
    /// The group.
    Group(GroupState),
    /// One of its members.
    Member(DeviceId, MemberState),
}

/// The reactor's ends.
#[derive(Debug)]
pub struct Reporter {
    questions: Receiver<Question>,
    events: Sender<Happened>,
}

/// Both sides: the control thread's, and the reactor's.
pub(super) fn wire() -> (Asker, Receiver<Happened>, Reporter) {
    let (asker, questions) = ring::ring(QUESTIONS);
    let (events, happened) = ring::ring(EVENTS);
    (Asker(Mutex::new(asker)), happened, Reporter { questions, events })
}

/// Tasks that a [`Reporter`] needs.
pub const TASKS: usize = 2;

impl Reporter {
    #[cfg(test)]
    pub(super) fn questions(&mut self) -> &mut Receiver<Question> {
        &mut self.questions
    }

    /// Spawns the tasks on the reactor: one answers, one says what happens.
    pub fn spawn<D: Device, P: Provider, R: Registry>(
        self,
        handle: &Handle,
        node: &Node<D, P, R>,
        devices: Vec<D>,
        ports: Ports,
    ) {
        let Self { questions, events } = self;
        handle.spawn("control answers", answer(node.clone(), devices, ports, questions));
        handle.spawn("control events", tell(node.clone(), events, handle.clone()));
    }
}

async fn answer<D: Device, P: Provider, R: Registry>(
    node: Node<D, P, R>,
    devices: Vec<D>,
    ports: Ports,
    mut questions: Receiver<Question>,
) {
    while let Some(question) = questions.receive().await {
        // Whoever asked may have given up.
        let _ = question.send(take(&node, &devices, &ports));
    }
}

async fn tell<D: Device, P: Provider, R: Registry>(node: Node<D, P, R>, mut events: Sender<Happened>, handle: Handle) {
    let mut membership = None;
    let mut group = None;
    let mut members: Vec<(DeviceId, MemberState)> = Vec::new();
    loop {
        let seen = node.changed().generation();
        let mut say = |what| {
            // A control thread that does not listen loses what it could not keep anyway.
            let _ = events.try_send(Happened { at: handle.now(), what });
        };
        let current = (node.state_name(), node.serves(), node.epoch().0);
        if membership.replace(current) != Some(current) {
            say(Happening::Membership(current.0, current.1, current.2));
        }
        if let Some(open) = node.group().group() {
            let state = open.state();
            if group.replace(state) != Some(state) {
                say(Happening::Group(state));
            }
            for (place, member) in open.members().enumerate() {
                match members.get_mut(place) {
                    Some(known) if *known == member => {}
                    Some(known) => {
                        *known = member;
                        say(Happening::Member(member.0, member.1));
                    }
                    None => members.push(member),
                }
            }
        }
        node.changed().changed_since(seen).await;
    }
}
