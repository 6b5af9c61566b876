//! The provider of the simulator: a fabric in virtual time, with faults on demand.
//!
//! What it models: nodes (one per reactor of a process), links between them with latency, jitter and bandwidth, one
//! direction at a time; connections whose messages, landings and acknowledgements are events of [`VirtualTime`], so that
//! one seed gives one run. Large RDMA writes are sometimes torn: 64-byte lines land in two steps at different times, and
//! what was posted behind them waits for the second.
//!
//! Faults ([`Fabric`]):
//! - [`kill`](Fabric::kill): nothing more leaves the node; of what is in flight a random prefix lands, the last write of
//!   it maybe torn; peers see `Broken(PeerGone)` after a random detection time.
//! - [`cut`](Fabric::cut): one direction of a link holds what it carries; if it stays cut for longer than a bound, each
//!   reliable connection breaks at each end at its own time (`Protocol`, because nobody knows that the peer is gone).
//! - [`pause`](Fabric::pause): the node's tasks stop (the simulator sees to that), the network does not: others' transfers
//!   still land in its memory. In half of the pauses its own posted transfers stop too, at whatever point, and go on at
//!   [`resume`](Fabric::resume): as if its processor had been moving the bytes. They land late unless they were revoked.
//!
//! What it cannot see: memory ordering between processors, back-pressure of kernels (the `shm` provider's tests do that).
//!
//! Completion points: `UnreliableDelivery` and `ReliableDelivery` take the bytes out of the sender's memory a moment after
//! posting and complete there; `ReliableReception` moves them straight from memory to memory when they land, so a buffer
//! that is reused too early is caught, and completes when the acknowledgement has come back.

mod fault;
mod flow;
mod handshake;
mod late;
mod provider;
mod state;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dyad_reactor::{Clock, VirtualTime};

use crate::provider::Capabilities;
pub use provider::SimProvider;
use state::{Node, State};

/// Giganet's cLAN as SQL Server 2000 knew it: Reliable Reception only, RDMA read made from the peer's RDMA write (so it
/// needs the peer's processor).
pub const CLAN: Profile = Profile {
    capabilities: Capabilities {
        name: "clan",
        unreliable_delivery: false,
        reliable_delivery: false,
        reliable_reception: true,
        rdma_read: true,
        transfer_bytes_max: 1 << 20,
    },
    read_needs_peer: true,
};

/// Compaq's ServerNet II: everything.
pub const SERVERNET2: Profile = Profile {
    capabilities: Capabilities {
        name: "servernet2",
        unreliable_delivery: true,
        reliable_delivery: true,
        reliable_reception: true,
        rdma_read: true,
        transfer_bytes_max: 16 << 20,
    },
    read_needs_peer: false,
};

/// What kind of hardware a fabric is made of.
#[derive(Debug, Copy, Clone)]
pub struct Profile {
    /// What providers say of themselves.
    pub capabilities: Capabilities,
    /// An RDMA read waits while the peer is paused.
    pub read_needs_peer: bool,
}

/// One direction of a link.
#[derive(Debug, Copy, Clone)]
pub struct LinkProfile {
    /// Time from posting to landing, at least.
    pub latency: Duration,
    /// Up to this much more, at random for each message.
    pub jitter: Duration,
    /// Nanoseconds that 1 KiB occupies the link; 0 for a link of boundless bandwidth.
    pub nanos_per_kib: u64,
}

/// What a fabric is made with.
#[derive(Debug, Copy, Clone)]
pub struct FabricConfig {
    /// The hardware.
    pub profile: Profile,
    /// Links that were not given a profile of their own.
    pub link: LinkProfile,
    /// One RDMA write in so many is torn; 0 for none.
    pub torn_one_in: u64,
    /// A stopped node that goes on lands the rest of a write that was revoked meanwhile, without success, as a process on
    /// shared memory would; its target says so ([`Provider::is_reachable`](crate::Provider::is_reachable)).
    pub late_writes: bool,
    /// A peer's death is noticed after a random time up to this.
    pub detection_max: Duration,
    /// A cut link breaks reliable connections after this time, and before twice this time.
    pub cut_bound: Duration,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            profile: SERVERNET2,
            link: LinkProfile {
                latency: Duration::from_micros(2),
                jitter: Duration::from_micros(3),
                nanos_per_kib: 80, // 12.5 GB/s
            },
            torn_one_in: 4,
            late_writes: false,
            detection_max: Duration::from_millis(20),
            cut_bound: Duration::from_millis(50),
        }
    }
}

/// Reads one line of the fabric's story.
type Trace = Box<dyn Fn(&str)>;

struct Inner {
    time: VirtualTime,
    config: FabricConfig,
    state: RefCell<State>,
    trace: RefCell<Option<Trace>>,
    /// Events hold the fabric weakly, or a run that is given up would never be freed.
    this: Weak<Inner>,
}

/// All nodes and links. Clones are the same fabric.
#[derive(Clone)]
pub struct Fabric(Rc<Inner>);

impl Fabric {
    /// A fabric without nodes. Its chance is drawn from `time`'s seed.
    #[must_use]
    pub fn new(time: &VirtualTime, config: FabricConfig) -> Self {
        let state = RefCell::new(State::new(time.rng()));
        let time = time.clone();
        Self(Rc::new_cyclic(|this| Inner { time, config, state, trace: RefCell::new(None), this: this.clone() }))
    }

    /// Starts a node: a process (or one reactor of it) that others reach as `name`.
    ///
    /// # Panics
    /// If a node of that name is running.
    #[must_use]
    pub fn node(&self, name: &str, incarnation: u64) -> SimProvider {
        let mut state = self.0.state.borrow_mut();
        let place = state.place(name);
        let running = state.places[place].node.is_some_and(|node| state.nodes[node].alive);
        assert!(!running, "node {name} is running");
        let node = state.nodes.len();
        state.nodes.push(Node::new(place, incarnation));
        state.places[place].node = Some(node);
        drop(state);
        self.0.trace(|| format!("{name} starts as incarnation {incarnation}"));
        SimProvider { fabric: Rc::clone(&self.0), node }
    }

    /// Gives the direction `from` -> `to` a profile of its own.
    pub fn set_link(&self, from: &str, to: &str, profile: LinkProfile) {
        let mut state = self.0.state.borrow_mut();
        let (from, to) = (state.place(from), state.place(to));
        state.link(from, to).profile = Some(profile);
    }

    /// Has `trace` called with a line about everything that happens.
    pub fn on_trace(&self, trace: impl Fn(&str) + 'static) {
        *self.0.trace.borrow_mut() = Some(Box::new(trace));
    }
}

impl Inner {
    fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &*self.trace.borrow() {
            trace(&format!("{:?} matrix: {}", self.time.now(), line()));
        }
    }

    /// Has `action` run after `delay`, if the fabric is still there.
    fn after(&self, delay: Duration, action: impl FnOnce(&Self, &mut State) + 'static) {
        let this = self.this.clone();
        self.time.schedule_in(delay, move || {
            if let Some(this) = this.upgrade() {
                action(&this, &mut this.state.borrow_mut());
            }
        });
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("config", &self.0.config).finish_non_exhaustive()
    }
}
