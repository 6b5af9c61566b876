//! A director: cache, pair membership, link to the partner, port for hosts, on one reactor.
//!
//! Everything here runs in production and in the simulator alike; what differs is handed in: provider, devices,
//! registry, clock and memory.
//!
//! - `mod.rs`: what a node is made of, and the task that feeds the membership machine;
//! - `home_group.rs`: the RAID group, which only the home opens;
//! - `peer.rs`: the VIs to the partner and what arrives on them;
//! - `port.rs`: the NVMe/TCP port, where a process opens one;
//! - `transition.rs`: the slow steps that the machine asks for: fencing, welcome, takeover, and the registry;
//! - `vault.rs`: the vault, which the home opens and replays after that, and the journal of whoever is alone.

mod hello;
pub mod home_group;
mod peer;
pub mod port;
pub mod transition;
pub mod vault;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use dyad_backend::Device;
use dyad_backend::format::GroupId;
use dyad_backend::raid::group::{Background, MemorySource};
use dyad_cache::mirror::Adoptable;
use dyad_cache::{Authority, Cache, CacheConfig, ConfigError, MirrorArea, Policy, Regime, Vault, VolumePlace};
use dyad_frontend::vi::HOST_TAG;
use dyad_frontend::{Target, TargetConfig};
use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::provider::{
    self, Discriminator, NetAddress, ProtectionTag, RegionHandle, RemoteAccess, ResourceError,
};
use dyad_matrix::{Memory, Provider};
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::executor::Handle;
use dyad_reactor::mutation::{Mutation, is_active};
use dyad_reactor::sync::{Inbox, Signal};

use crate::membership::machine::Actions;
use crate::membership::{Action, DirectorId, Event, Incarnation, Machine, Timing};
use crate::registry::Registry;
use home_group::HomeGroup;
use peer::{Area, Peer};
use transition::Transition;

/// Where hosts connect.
pub const HOST_SERVICE: Discriminator = Discriminator(1);
/// Where the partner connects its membership VI.
pub const MEMBERSHIP_SERVICE: Discriminator = Discriminator(2);
/// Where the partner connects its mirror VI.
pub const MIRROR_SERVICE: Discriminator = Discriminator(3);

/// The protection tag of the VIs to the partner.
const PEER_TAG: ProtectionTag = ProtectionTag(1);

/// Tracks that are read ahead at once.
const READERS_AHEAD: usize = 2;

/// Tasks that a node spawns besides the lanes.
pub const SERVICE_TASKS: usize = 24;

/// What a node is told about itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Which director of the pair.
    pub me: DirectorId,
    /// Which run of it: never used before.
    pub incarnation: Incarnation,
    /// The array's UUID.
    pub array: [u8; 16],
    /// Heartbeats and leases.
    pub timing: Timing,
    /// The provider's address of the partner.
    pub partner_host: String,
    /// The volume behind the namespace.
    pub volume: VolumePlace,
    /// Frames of the cache.
    pub cache_frames: u32,
    /// Frames that the partner may have dirty here, and we there.
    pub mirror_frames: u32,
    /// Hosts at once.
    pub hosts: u16,
    /// Commands outstanding per host.
    pub host_depth: u16,
    /// Commands of the `vi` port served at once.
    pub lanes: u16,
    /// Commands that ports of other kinds serve at once.
    pub port_lanes: u16,
    /// Tracks destaged at once.
    pub destagers: u16,
    /// How long dirty data may rest when there is no need to destage.
    pub idle_destage: Duration,
    /// How much the group does for itself.
    pub background: Background,
}

/// What a node reaches the world through.
pub struct World<D, P, R> {
    /// Its end of the matrix.
    pub provider: P,
    /// The devices of its group.
    pub devices: Vec<D>,
    /// The pair's registry.
    pub registry: R,
    /// Memory of that many bytes that peers may be given.
    pub memory: Rc<dyn Fn(usize) -> Memory>,
    /// Memory of that many bytes that the devices reach, and nobody else.
    pub device_memory: MemorySource,
}

/// Why a node could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewNodeError {
    /// The cache cannot be made so.
    #[error("the cache cannot be made: {0}")]
    Cache(#[from] ConfigError),
    /// The provider has no room.
    #[error("the matrix has no room: {0}")]
    Matrix(#[from] ResourceError),
}

struct Inner<D: Device, P: Provider, R> {
    handle: Handle,
    config: NodeConfig,
    world: World<D, P, R>,
    machine: RefCell<Machine>,
    events: Inbox<Event>,
    transitions: Inbox<Transition>,
    registry_work: Inbox<Action>,
    /// The record as last read or written, with its revision.
    known: RefCell<transition::KnownRecord>,
    authority: Authority,
    cache: Cache<HomeGroup<D>, P>,
    group: HomeGroup<D>,
    /// Of this life, from when it was opened.
    vault: RefCell<Option<Vault<D>>>,
    vault_opened: Signal,
    target: Target<HomeGroup<D>, P>,
    endpoint: Endpoint<P>,
    peer: RefCell<Option<Peer>>,
    /// The mirror of the partner of the last link, until it is adopted or another partner comes.
    area: RefCell<Option<Area>>,
    closing: Inbox<provider::ViId>,
    connections: Inbox<provider::Event>,
    ended: Cell<bool>,
    needs_operator: Cell<bool>,
    changed: Signal,
}

/// A director. Clones are the same one.
pub struct Node<D: Device, P: Provider, R> {
    inner: Rc<Inner<D, P, R>>,
}

impl<D: Device, P: Provider, R> Clone for Node<D, P, R> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Device, P: Provider, R: Registry> Node<D, P, R> {
    /// Makes a director and spawns its tasks; it begins when the executor runs.
    ///
    /// # Errors
    /// [`NewNodeError`].
    pub fn new(handle: &Handle, config: NodeConfig, world: World<D, P, R>) -> Result<Self, NewNodeError> {
        let authority = Authority::default();
        let source = Rc::clone(&world.device_memory);
        let group = HomeGroup::new(handle.clone(), world.devices.clone(), GroupId(config.array), source);
        let frames = (world.memory)(bytes_of(config.cache_frames));
        group.map(&frames);
        world.provider.register(&frames, PEER_TAG, RemoteAccess::default())?;
        world.provider.register(&frames, HOST_TAG, RemoteAccess::default())?;

        let cache_config = CacheConfig {
            takeover_frames: usize::try_from(config.mirror_frames).expect("32 bits fit"),
            destage_above: usize::try_from(config.mirror_frames / 2).expect("32 bits fit"),
            write_pending_limit: usize::try_from(config.mirror_frames).expect("32 bits fit"),
            stripe_tracks: 1,
            nvcache: false,
            commands: usize::from(config.lanes + config.port_lanes),
            // Each director's port is one, too, in this run of it and the last.
            hosts: usize::from(config.hosts) * 2 + 4,
            // A host keeps its numbers within four times its depth, and a command has at most two parts.
            outcomes_per_host: usize::from(config.host_depth) * 4 * 2,
        };
        cache_config.check(usize::try_from(config.cache_frames).expect("32 bits fit"))?;
        let cache =
            Cache::new(handle.clone(), cache_config, authority.clone(), frames, group.clone(), &[config.volume]);
        let target_config = TargetConfig {
            director: config.me.index(),
            incarnation: config.incarnation.0,
            sessions: config.hosts * 2,
            depth: config.host_depth,
            lanes: config.lanes,
            command_deadline: config.timing.lease * 2,
            volume: config.volume.id,
            blocks: BlockCount(config.volume.blocks),
        };
        let target = Target::new(handle, world.provider.clone(), target_config, cache.clone())?;
        // Commits, releases and their answers in both directions, and one membership VI; as many again while old ones are closed.
        let endpoint_config = EndpointConfig {
            vis_max: 8,
            depth: (config.lanes + config.port_lanes) * 4 + config.destagers * 2 + 16,
            tag: PEER_TAG,
            remote_access: RemoteAccess { write: true, read: false },
        };
        let endpoint = Endpoint::new(world.provider.clone(), endpoint_config)?;
        for service in [HOST_SERVICE, MEMBERSHIP_SERVICE, MIRROR_SERVICE] {
            world.provider.listen(service)?;
        }
        let node = Self {
            inner: Rc::new(Inner {
                handle: handle.clone(),
                machine: RefCell::new(Machine::new(config.me, config.incarnation, config.timing)),
                events: Inbox::new(256),
                transitions: Inbox::new(2),
                registry_work: Inbox::new(16),
                known: RefCell::default(),
                authority,
                cache,
                group,
                vault: RefCell::new(None),
                vault_opened: Signal::new(),
                target,
                endpoint,
                peer: RefCell::new(None),
                area: RefCell::new(None),
                closing: Inbox::new(16),
                connections: Inbox::new(16),
                ended: Cell::new(false),
                needs_operator: Cell::new(false),
                changed: Signal::new(),
                config,
                world,
            }),
        };
        node.spawn(handle);
        Ok(node)
    }

    fn spawn(&self, handle: &Handle) {
        handle.spawn("membership", self.clone().run_membership());
        handle.spawn("matrix events", self.clone().run_matrix_events());
        handle.spawn("registry", self.clone().run_registry());
        handle.spawn("transitions", self.clone().run_transitions());
        handle.spawn("record", self.clone().run_record());
        handle.spawn("background", self.clone().run_background());
        handle.spawn("keepers", self.clone().run_keepers());
        handle.spawn("journal", self.clone().run_journal());
        handle.spawn("watch", self.clone().run_watch());
        handle.spawn("peer completions", self.inner.endpoint.clone().run());
        handle.spawn("peer receive", self.clone().run_peer_receive());
        handle.spawn("peer connect", self.clone().run_peer_connect());
        handle.spawn("peer close", self.clone().run_peer_close());
        for _ in 0..READERS_AHEAD {
            handle.spawn("read ahead", self.inner.cache.clone().run_read_ahead());
        }
        for _ in 0..self.inner.config.destagers {
            handle.spawn("destage", self.inner.cache.clone().run_destage(self.inner.config.idle_destage));
        }
    }

    /// What it is doing, for humans.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        if self.inner.needs_operator.get() { "needs an operator" } else { self.inner.machine.borrow().state_name() }
    }

    /// The membership machine in full, for a timeline.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{:?}", self.inner.machine.borrow())
    }

    /// It serves hosts now.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.inner.machine.borrow().serves()
            && !matches!(self.inner.authority.regime(), Regime::Elsewhere | Regime::Undecided)
    }

    /// How it serves.
    #[must_use]
    pub fn regime(&self) -> Regime {
        self.inner.authority.regime()
    }

    /// Data may be looked up for a read that arrived.
    #[must_use]
    pub fn may_read(&self) -> bool {
        self.inner.authority.may_read(self.inner.handle.now())
    }

    /// Its epoch; zero when it is no member.
    #[must_use]
    pub fn epoch(&self) -> dyad_cache::Epoch {
        self.inner.machine.borrow().epoch()
    }

    /// Its cache.
    #[must_use]
    pub fn cache(&self) -> &Cache<HomeGroup<D>, P> {
        &self.inner.cache
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> &HomeGroup<D> {
        &self.inner.group
    }

    /// Its port.
    #[must_use]
    pub fn target(&self) -> &Target<HomeGroup<D>, P> {
        &self.inner.target
    }

    /// Blocks that it holds for its partner.
    #[must_use]
    pub fn mirrored_blocks(&self) -> usize {
        self.inner.area.borrow().as_ref().map_or(0, |area| area.mirror.block_count())
    }

    /// The blocks that it holds for its partner, in address order.
    #[must_use]
    pub fn mirrored(&self) -> Vec<Adoptable> {
        self.inner.area.borrow().as_ref().map_or(Vec::new(), |area| area.mirror.adoptable())
    }

    /// It lost its epoch and wants to begin anew as a fresh incarnation.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inner.ended.get()
    }

    /// Fires when the state changes.
    #[must_use]
    pub fn changed(&self) -> &Signal {
        &self.inner.changed
    }

    fn event(&self, event: Event) {
        assert!(self.inner.events.try_push(event).is_ok(), "events come from few sources, and are taken at once");
    }

    /// Feeds the machine with events and time, and has its actions done.
    async fn run_membership(self) {
        let inner = &*self.inner;
        let between = inner.config.timing.heartbeat / 4;
        let mut next_tick = inner.handle.now();
        loop {
            let event = inner.handle.timeout_at(next_tick, inner.events.next()).await;
            let now = inner.handle.now();
            let event = event.unwrap_or_else(|_| {
                next_tick = now + between;
                Event::Tick
            });
            if event == Event::Tick {
                self.close_failed_link();
            }
            let mut actions = Actions::new();
            inner.machine.borrow_mut().step(now, event, &mut actions);
            for action in actions {
                self.perform(action);
            }
            inner.changed.notify_all();
        }
    }

    fn perform(&self, action: Action) {
        let inner = &*self.inner;
        match action {
            Action::ReadRecord | Action::Cas { .. } => {
                assert!(inner.registry_work.try_push(action).is_ok(), "the machine has one request outstanding");
            }
            Action::Send(message) => self.say(message),
            Action::SetRegime(regime) => {
                inner.authority.set_regime(regime);
                inner.needs_operator.set(false);
            }
            Action::SetLease(until) => inner.authority.set_lease(until),
            Action::CloseLink => {
                inner.cache.drop_link();
                self.close_peer();
            }
            Action::Register(epoch) => self.start(Transition::Register(epoch)),
            Action::Welcome(epoch) => self.start(Transition::Welcome(epoch)),
            Action::TakeOver(epoch) => self.start(Transition::TakeOver(epoch)),
            Action::Quiesce(epoch) => self.start(Transition::Quiesce(epoch)),
            Action::Restart => inner.ended.set(true),
            Action::NeedOperator => inner.needs_operator.set(true),
        }
    }

    /// Has it done after the one that is being done. One that has not begun is of a state that the machine has left: what would come of it
    /// is not asked for any more, and a partner that comes and goes while a device is slow would fill any queue with them.
    fn start(&self, transition: Transition) {
        while self.inner.transitions.try_next().is_some() {}
        assert!(self.inner.transitions.try_push(transition).is_ok(), "one at most is on its way to its task");
    }

    /// Tells connection events apart: ours, the partner's, the hosts'.
    async fn run_matrix_events(self) {
        let inner = &*self.inner;
        loop {
            let event = poll_fn(|cx| inner.world.provider.poll_event(cx)).await;
            match event {
                provider::Event::Requested { request, discriminator: HOST_SERVICE, private_data } => {
                    inner.target.requested(request, &private_data)
                }
                provider::Event::Requested { request, discriminator, private_data } => {
                    self.peer_requested(request, discriminator, &private_data)
                }
                provider::Event::Broken { vi, .. } if inner.target.broken(vi) => {}
                provider::Event::Broken { vi, .. } if self.is_peer(vi) => self.close_peer(),
                provider::Event::Established { .. }
                | provider::Event::Refused { .. }
                | provider::Event::Broken { .. } => {
                    if self.peer_established(&event) {
                        continue;
                    }
                    // Of a connection that nobody waits for any more: a full inbox loses nothing.
                    let _ = inner.connections.try_push(event);
                }
            }
        }
    }

    /// Says when everything is on media or in the vault, and when a device has fenced us out.
    async fn run_watch(self) {
        let inner = &*self.inner;
        let mut fenced = false;
        loop {
            if inner.machine.borrow().awaits_settling()
                && (inner.cache.is_settled() || is_active(Mutation::SettledWhileDirty))
            {
                self.event(Event::Settled);
            }
            if inner.authority.is_fenced() && !std::mem::replace(&mut fenced, true) {
                self.event(Event::Fenced);
            }
            let deadline = inner.handle.now() + inner.config.timing.heartbeat;
            let seen = inner.authority.changes().generation();
            let _ = inner.handle.timeout_at(deadline, inner.authority.changes().changed_since(seen)).await;
        }
    }
}

/// The one volume of a group, as large as it can be.
#[must_use]
pub fn whole_group(id: dyad_cache::VolumeId, blocks: BlockCount) -> VolumePlace {
    VolumePlace {
        id,
        base: Lba(0),
        blocks: blocks.0 - blocks.0 % dyad_cache::address::TRACK_BLOCKS as u64,
        policy: Policy::Mirrored,
    }
}

fn bytes_of(frames: u32) -> usize {
    usize::try_from(frames).expect("32 bits fit") * dyad_matrix::frames::FRAME_BYTES
}

fn register_area<P: Provider>(provider: &P, memory: Memory) -> Result<(MirrorArea, RegionHandle), ResourceError> {
    let region = provider.register(&memory, PEER_TAG, RemoteAccess { write: true, read: false })?;
    Ok((MirrorArea::new(memory), region))
}

impl<D: Device, P: Provider, R> Node<D, P, R> {
    fn partner_address(&self, discriminator: Discriminator) -> NetAddress {
        NetAddress { host: self.inner.config.partner_host.clone(), discriminator }
    }
}
