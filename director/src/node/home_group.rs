//! The pair's RAID group as a director sees it: closed until it is the home, and then opened once.
//!
//! Opening replays the intents that a lost home left (PROTOCOLS 7.4), so it comes after fencing and before anything else that this director does
//! with the devices. The registry says whether the group was ever made; the first home makes it, of devices on which no group is.

use std::cell::RefCell;
use std::rc::Rc;

use dyad_backend::Device;
use dyad_backend::device::{DeviceError, DeviceId, Io};
use dyad_backend::format::{Expected, GroupId, Layout, Superblock};
use dyad_backend::raid::geometry::{Geometry, Level};
use dyad_backend::raid::group::{CreateError, MemorySource, OpenError, create_in};
use dyad_backend::raid::{Group, GroupError};
use dyad_cache::{Epoch, Store};
use dyad_matrix::{Memory, Segment};
use dyad_nvme::types::{BLOCK_BYTES, BlockCount, Lba};
use dyad_reactor::executor::Handle;
use dyad_reactor::sync::Signal;

use super::vault::vault_blocks;

/// Why the group cannot be opened now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HomeGroupError {
    /// A device does not answer.
    #[error("{0:?} failed: {1}")]
    Device(DeviceId, DeviceError),
    /// It cannot be assembled, or replayed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its devices do not reach the cache's memory.
    #[error("the devices cannot reach the cache's memory: {0}")]
    Map(GroupError),
    /// The registry knows of no group, and there is one on a device.
    #[error("{0:?} has a group on it that the registry does not know: nothing was changed")]
    Occupied(DeviceId),
}

struct Inner<D: Device> {
    handle: Handle,
    devices: Vec<D>,
    level: Level,
    id: GroupId,
    source: MemorySource,
    memories: RefCell<Vec<Memory>>,
    open: RefCell<Option<Group<D>>>,
    opened: Signal,
}

/// The group. Clones are the same.
pub struct HomeGroup<D: Device>(Rc<Inner<D>>);

impl<D: Device> Clone for HomeGroup<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// The level that so many devices make for a pair: two are mirrors, more have one parity.
#[must_use]
pub const fn level_of(devices: usize) -> Level {
    if devices <= 2 { Level::Raid1 } else { Level::Raid5 }
}

/// Blocks of a group on devices of which the smallest has so many; zero if they cannot make one.
#[must_use]
pub fn group_blocks(devices: usize, smallest: BlockCount) -> BlockCount {
    let geometry = Geometry::new(level_of(devices), devices).ok();
    let layout = geometry.and_then(|g| Some((g, Layout::new(g, smallest, vault_blocks(smallest)).ok()?)));
    layout.map_or(BlockCount(0), |(geometry, layout)| geometry.blocks(layout.chunks()))
}

impl<D: Device> HomeGroup<D> {
    /// The closed group of these devices.
    pub fn new(handle: Handle, devices: Vec<D>, id: GroupId, source: MemorySource) -> Self {
        let level = level_of(devices.len());
        let inner = Inner {
            handle,
            devices,
            level,
            id,
            source,
            memories: RefCell::default(),
            open: RefCell::default(),
            opened: Signal::new(),
        };
        Self(Rc::new(inner))
    }

    /// Memory that commands will name.
    pub fn map(&self, memory: &Memory) {
        self.0.memories.borrow_mut().push(memory.clone());
    }

    /// The group, if it is open.
    #[must_use]
    pub fn group(&self) -> Option<Group<D>> {
        self.0.open.borrow().clone()
    }

    /// Waits until it is open.
    pub async fn opened(&self) -> Group<D> {
        loop {
            let seen = self.0.opened.generation();
            if let Some(group) = self.group() {
                return group;
            }
            self.0.opened.changed_since(seen).await;
        }
    }

    /// Opens it, unless it is open, without the devices that are on record as failed.
    ///
    /// # Errors
    /// [`HomeGroupError`].
    pub async fn open(&self, epoch: Epoch, out: &[DeviceId]) -> Result<(), HomeGroupError> {
        if self.0.open.borrow().is_some() {
            return Ok(());
        }
        let expected = Expected { group: self.0.id, sequence: 1 };
        let (handle, devices) = (self.0.handle.clone(), self.0.devices.clone());
        let group = Group::open_in(&self.0.source, handle, devices, expected, epoch.0, out).await?;
        for memory in self.0.memories.borrow().iter() {
            group.map(memory).map_err(HomeGroupError::Map)?;
        }
        *self.0.open.borrow_mut() = Some(group);
        self.0.opened.notify_all();
        Ok(())
    }

    /// Makes the group without the devices that are on record as failed, whatever an earlier attempt has left: it is
    /// on record that this was begun, and nobody has used it yet.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(&self, epoch: Epoch, out: &[DeviceId]) -> Result<(), CreateError> {
        let (source, devices) = (&self.0.source, &self.0.devices);
        let smallest = devices.iter().map(|device| device.info().blocks).min().unwrap_or(BlockCount(0));
        create_in(source, devices, self.0.level, self.0.id, epoch.0, vault_blocks(smallest), out).await.map(drop)
    }

    /// Nothing is on record of any group: then there must be none on the devices.
    ///
    /// # Errors
    /// [`HomeGroupError::Occupied`]: the registry was lost, or the devices are another array's.
    pub async fn refuse_occupied(&self, out: &[DeviceId]) -> Result<(), HomeGroupError> {
        let memory = (self.0.source)(BLOCK_BYTES);
        let len = u32::try_from(BLOCK_BYTES).expect("4096");
        let segments = [memory.segment(0, len).expect("a block")];
        for device in self.0.devices.iter().filter(|device| !out.contains(&device.info().id)) {
            let id = device.info().id;
            let mut block = [0; BLOCK_BYTES];
            device.map(&memory).map_err(|_| HomeGroupError::Device(id, DeviceError::Gone))?;
            if let Ok(completion) = device.submit(Io::Read { lba: Lba(0), segments: &segments })
                && completion.await.is_ok()
            {
                memory.read(0, &mut block).expect("a block");
            }
            if Superblock::decode(&block, 0).is_ok() {
                return Err(HomeGroupError::Occupied(id));
            }
        }
        Ok(())
    }

    fn current(&self) -> Result<Group<D>, GroupError> {
        self.group().ok_or(GroupError::Lost)
    }
}

impl<D: Device> Store for HomeGroup<D> {
    type Device = D;

    async fn read(&self, lba: Lba, segments: &[Segment]) -> Result<(), GroupError> {
        self.current()?.read(lba, segments).await
    }

    async fn write(&self, lba: Lba, segments: &[Segment], _fua: bool) -> Result<(), GroupError> {
        self.current()?.write(lba, segments).await
    }
}
