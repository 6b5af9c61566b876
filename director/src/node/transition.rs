//! The slow steps of membership: the registry, fencing, welcome, takeover.
//!
//! They run one at a time, each in its own task beside the machine, and answer with an event. A step may find that the
//! machine has gone on meanwhile; the machine then ignores its event.

use dyad_backend::Device;
use dyad_backend::device::{DeviceError, DeviceId};
use dyad_backend::fence::{self, FenceError, FenceFailure, FenceKey};
use dyad_backend::raid::group::{CreateError, GroupRecord};
use dyad_cache::Epoch;
use dyad_cache::home::Replay;
use dyad_matrix::Provider;
use dyad_reactor::mutation::{Mutation, is_active};

use super::Node;
use super::home_group::HomeGroupError;
use crate::membership::{Action, Event, PairRecord};
use crate::registry::{Cas, Key, Registry, RegistryError, Revision};

/// Key of the pair's record.
#[must_use]
pub fn pair_key() -> Key {
    Key::new("pair").expect("a valid key")
}

/// Key of the list of failed devices: 16 bytes each.
#[must_use]
pub fn failed_key() -> Key {
    Key::new("group-failed").expect("a valid key")
}

/// Key that says how far the making of the group has come: [`MAKING`], then [`MADE`].
#[must_use]
pub fn group_key() -> Key {
    Key::new("group").expect("a valid key")
}

/// It was begun: what is on the devices is nobody's.
const MAKING: &[u8] = b"making";
/// It was made: what is on the devices is the hosts'.
const MADE: &[u8] = b"made";

/// A step that takes time.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Transition {
    Register(Epoch),
    Welcome(Epoch),
    TakeOver(Epoch),
    Quiesce(Epoch),
}

impl Transition {
    fn epoch(self) -> Epoch {
        match self {
            Self::Register(epoch) | Self::Welcome(epoch) | Self::TakeOver(epoch) | Self::Quiesce(epoch) => epoch,
        }
    }
}

/// The record as this director last saw it.
#[derive(Debug, Default)]
pub(super) struct KnownRecord {
    record: Option<PairRecord>,
    revision: Option<Revision>,
}

/// Reads which devices are on record as failed.
///
/// # Errors
/// When the registry does not answer.
pub async fn failed_devices<R: Registry>(registry: &R) -> Result<Vec<DeviceId>, RegistryError> {
    Ok(registry.get(&failed_key()).await?.map_or(Vec::new(), |versioned| devices_of(&versioned.value)))
}

/// The devices in that list.
#[must_use]
pub fn devices_of(value: &[u8]) -> Vec<DeviceId> {
    value.as_chunks::<16>().0.iter().map(|id| DeviceId(*id)).collect()
}

impl<D: Device, P: Provider, R: Registry> Node<D, P, R> {
    pub(super) async fn run_registry(self) {
        let inner = &*self.inner;
        loop {
            let event = match inner.registry_work.next().await {
                Action::ReadRecord => self.read_record().await.map_or(Event::ReadFailed, Event::Read),
                Action::Cas { expected, proposal } => self.change_record(expected, proposal).await,
                other => unreachable!("{other:?} is no work for the registry"),
            };
            if matches!(event, Event::ReadFailed | Event::CasUnknown) {
                inner.handle.sleep(inner.config.timing.heartbeat).await;
            }
            self.event(event);
        }
    }

    async fn read_record(&self) -> Option<PairRecord> {
        let inner = &*self.inner;
        let versioned = inner.world.registry.get(&pair_key()).await.ok()?;
        let revision = versioned.as_ref().map(|versioned| versioned.revision);
        // A damaged record is as good as none that answers: nothing is served.
        let record =
            versioned.map_or(Ok(PairRecord::initial()), |versioned| PairRecord::decode(&versioned.value)).ok()?;
        *inner.known.borrow_mut() = KnownRecord { record: Some(record), revision };
        Some(record)
    }

    async fn change_record(&self, expected: PairRecord, proposal: PairRecord) -> Event {
        let inner = &*self.inner;
        let revision = {
            let known = inner.known.borrow();
            if known.record != Some(expected) {
                return Event::CasLost;
            }
            known.revision
        };
        match inner.world.registry.compare_and_swap(&pair_key(), revision, &proposal.encode()).await {
            Ok(Cas::Won(revision)) => {
                *inner.known.borrow_mut() = KnownRecord { record: Some(proposal), revision: Some(revision) };
                Event::CasWon
            }
            Ok(Cas::Lost(_)) => Event::CasLost,
            Err(_) if is_active(Mutation::UnknownIsWon) => Event::CasWon,
            Err(_) => Event::CasUnknown,
        }
    }

    pub(super) async fn run_transitions(self) {
        let inner = &*self.inner;
        loop {
            let transition = inner.transitions.next().await;
            let epoch = transition.epoch();
            let (done, event) = match transition {
                Transition::Register(_) => (self.register(epoch).await, Event::Registered(epoch)),
                Transition::Welcome(_) => (self.welcome(epoch).await, Event::Welcomed(epoch)),
                Transition::TakeOver(_) => (self.take_over(epoch).await, Event::TookOver(epoch)),
                Transition::Quiesce(_) => (self.quiesce(epoch).await, Event::Quiesced(epoch)),
            };
            if done {
                self.event(event);
            } else {
                inner.handle.sleep(inner.config.timing.heartbeat).await;
                self.event(Event::ActionFailed(epoch));
            }
        }
    }

    async fn register(&self, epoch: Epoch) -> bool {
        let result = fence::join_both(&self.live_devices().await, self.key(epoch)).await;
        self.judge(result).await
    }

    /// Writes are stopped: what was applied stays what it is until the partner knows all of it.
    async fn quiesce(&self, epoch: Epoch) -> bool {
        let inner = &*self.inner;
        if !is_active(Mutation::JoinWithoutQuiescing) && inner.cache.quiesce().await.is_err() {
            return false;
        }
        let Some(link) = self.mirror_link() else { return false };
        let taught = {
            // Its answers come to the link that the cache has.
            inner.cache.set_link(link.clone());
            is_active(Mutation::JoinWithoutOutcomes) || inner.cache.teach_outcomes(&link, epoch).await.is_ok()
        };
        if !taught {
            self.close_peer();
        }
        taught
    }

    async fn welcome(&self, epoch: Epoch) -> bool {
        let inner = &*self.inner;
        // Of whoever was home before nothing is left but media and vault.
        if !self.open_group(epoch).await || self.open_vault(epoch, Replay::All).await.is_none() {
            return false;
        }
        if inner.machine.borrow().epoch() != epoch {
            return false;
        }
        let Some(link) = self.mirror_link() else { return false };
        // Its answers come to the link that the cache has.
        inner.cache.set_link(link.clone());
        let whole = link.whole(epoch).await.is_ok();
        if !whole {
            self.close_peer();
        }
        whole
    }

    async fn take_over(&self, epoch: Epoch) -> bool {
        let inner = &*self.inner;
        let mut devices = self.live_devices().await;
        if is_active(Mutation::TakeOverWithoutFencing) || is_active(Mutation::FenceOneDevice) {
            devices.truncate(usize::from(is_active(Mutation::FenceOneDevice)));
        }
        if is_active(Mutation::WriteBeforeFencing) && !self.open_group(epoch).await {
            return false;
        }
        let result = fence::take_over(&devices, self.key(epoch)).await;
        // Only now can the lost home no longer put a member on record and acknowledge without it.
        if !self.judge(result).await || !self.open_group(epoch).await {
            return false;
        }
        inner.cache.drop_link();
        let what =
            if self.revoke_area() && !is_active(Mutation::ReplayOverMirror) { Replay::Unmirrored } else { Replay::All };
        let Some(found) = self.open_vault(epoch, what).await else { return false };
        let area = inner.area.borrow_mut().take();
        if let Some(area) = area.filter(|_| !is_active(Mutation::TakeOverWithoutAdopting)) {
            // A block whose bytes were damaged in memory is lost in this copy; vault or media has an older one (PROTOCOLS 3.5).
            inner.cache.adopt(&area.mirror, &found).await;
        }
        true
    }

    /// A device that is gone is first failed out of its group, durably (PROTOCOLS 5.4); one that belongs to somebody else means stop.
    async fn judge(&self, result: Result<(), FenceError>) -> bool {
        match result {
            Ok(()) => true,
            Err(FenceError { why: FenceFailure::Superseded { .. }, .. }) => {
                self.inner.authority.report_fenced();
                false
            }
            Err(FenceError { device, why: FenceFailure::Device(DeviceError::Gone), .. }) => {
                if self.record_failed(device).await
                    && let Some(group) = self.inner.group.group()
                {
                    // It may be out already.
                    let _ = group.retire(device);
                }
                false
            }
            Err(_) => false,
        }
    }

    /// The group as its home: replayed, without what any home has put on record as failed.
    async fn open_group(&self, epoch: Epoch) -> bool {
        let inner = &*self.inner;
        let registry = &inner.world.registry;
        let (Ok(out), Ok(known)) = (failed_devices(registry).await, registry.get(&group_key()).await) else {
            return false;
        };
        match known {
            Some(versioned) if versioned.value == MADE => inner.group.open(epoch, &out).await.is_ok(),
            Some(versioned) => {
                match inner.group.create(epoch, &out).await {
                    Ok(()) => drop(registry.compare_and_swap(&group_key(), Some(versioned.revision), MADE).await),
                    Err(CreateError::Device(device, DeviceError::Gone)) => drop(self.record_failed(device).await),
                    Err(_) => {}
                }
                // It is opened when the record says that it was made.
                false
            }
            None => {
                let vacant = match inner.group.refuse_occupied(&out).await {
                    Err(HomeGroupError::Device(device, _)) => self.record_failed(device).await,
                    other => other.is_ok(),
                };
                if vacant {
                    drop(registry.compare_and_swap(&group_key(), None, MAKING).await);
                }
                false
            }
        }
    }

    /// Devices that are not on record as failed.
    async fn live_devices(&self) -> Vec<D> {
        let inner = &*self.inner;
        // Without the registry's answer all are fenced; one that cannot be is reported again.
        let failed = failed_devices(&inner.world.registry).await.unwrap_or_default();
        inner.world.devices.iter().filter(|device| !failed.contains(&device.info().id)).cloned().collect()
    }

    /// Puts members on record that failed under I/O, so that the group can go on without them.
    pub(super) async fn run_record(self) {
        let group = self.inner.group.opened().await;
        let all = async |record: &GroupRecord| {
            for device in &record.out {
                if !self.record_failed(*device).await {
                    return false;
                }
                if let Some(vault) = &*self.inner.vault.borrow() {
                    vault.recorded(*device);
                }
            }
            true
        };
        group.run_record(all).await;
    }

    /// Patrol, and whatever else the group does for itself.
    pub(super) async fn run_background(self) {
        let group = self.inner.group.opened().await;
        group.run_background(self.inner.config.background).await;
    }

    /// Adds the device to the list, unless the group has lost as many as it may.
    pub(super) async fn record_failed(&self, device: DeviceId) -> bool {
        let inner = &*self.inner;
        let Ok(versioned) = inner.world.registry.get(&failed_key()).await else { return false };
        let revision = versioned.as_ref().map(|versioned| versioned.revision);
        let mut value = versioned.map_or(Vec::new(), |versioned| versioned.value);
        let failed = devices_of(&value);
        if failed.contains(&device) || is_active(Mutation::GoOnUnrecorded) {
            return true;
        }
        // A director that is not the home may have lost no more than its own way to the device.
        if !inner.machine.borrow().is_or_becomes_home() {
            return false;
        }
        if !failed.is_empty() {
            return false;
        }
        value.extend_from_slice(&device.0);
        matches!(inner.world.registry.compare_and_swap(&failed_key(), revision, &value).await, Ok(Cas::Won(_)))
    }

    fn key(&self, epoch: Epoch) -> FenceKey {
        let epoch = fence::Epoch::new(epoch.0).expect("epochs stay below 2^48");
        FenceKey { epoch, director: fence::DirectorId(self.inner.config.me.index()) }
    }
}
