//! The catalog: which groups and volumes there are, as the registry knows it (PROTOCOLS 8.2). Commands change it, homes carry it out.
//!
//! It is one record under the key `catalog`, JSON, at most 64 KiB: some two hundred volumes. A change reads the record and replaces it by one
//! compare-and-swap; each change can be asked for again and then does nothing, so an answer that does not come costs nothing but another look.
//!
//! A volume goes through the states of its [`Description`]. What a command asked for is true when every home of a group in [`Volume::pending`] has
//! done its part and has taken its group from the list ([`done`]); whoever takes the last one ends the change:
//!
//! | the description is | and nobody is pending |
//! |---|---|
//! | `Active` | hosts see all of its extents ([`Volume::served`]) |
//! | `Shrinking` | it is `Active` |
//! | `Deleting` | the volume is gone from the catalog |
//!
//! Namespace numbers are never used twice: a host that knows an old one is told that it is invalid, and does not find another volume there.

use dyad_backend::format::{GroupId, VolumeUuid};
use dyad_backend::pool::{Allocation, Description, DescriptionError, Extent, Name, State};
use dyad_cache::{Policy, VolumeId};
use dyad_nvme::types::NamespaceId;
use serde::{Deserialize, Serialize};

use crate::registry::{Cas, Key, Registry, RegistryError, Revision};

/// Which form the record has.
const FORMAT: u32 = 1;

/// How often a change is tried again because others change the catalog, or the registry does not answer.
const ATTEMPTS_MAX: u32 = 16;

/// Everything that is known about groups and volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    format: u32,
    /// The number of the next namespace.
    next_namespace: u32,
    /// The groups that have been made.
    pub groups: Vec<Group>,
    /// In the order in which they were made.
    pub volumes: Vec<Volume>,
}

/// A RAID group, as its home has made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Which.
    #[serde(with = "hex_group")]
    pub id: GroupId,
    /// The pair that serves it.
    pub pair: u32,
    /// Tracks (64 KiB) of data in a stripe: the extent of volumes that do not ask for another.
    pub stripe_tracks: u16,
    /// Tracks of a slice: what volumes get at once, and what an extent must divide.
    pub slice_tracks: u64,
    /// Slices.
    pub slices: u32,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What all homes must agree on.
    pub description: Description,
    /// How hosts name it.
    pub namespace: u32,
    /// How its writes are acknowledged.
    #[serde(with = "PlainPolicy")]
    pub policy: Policy,
    /// Extents that hosts may use.
    pub served: u64,
    /// Groups whose homes have not done yet what the description asks for.
    #[serde(with = "hex_groups")]
    pub pending: Vec<GroupId>,
    /// Why a home could not do it so far, in words. It goes on trying; deleting the volume, or shrinking it to what it was, ends that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Volume {
    /// Hosts may use it, and nothing is being changed.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// How it is named in the cache and between directors.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        VolumeId { uuid: self.description.uuid().0, generation: self.description.generation().0 }
    }

    /// How hosts name it.
    #[must_use]
    pub fn namespace_id(&self) -> NamespaceId {
        NamespaceId(self.namespace)
    }
}

/// What a new volume is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Not used by another one.
    pub name: Name,
    /// Never used before: asking for the same volume again makes no second one.
    pub uuid: VolumeUuid,
    /// Its size in bytes, rounded up to whole extents.
    pub bytes: u64,
    /// When it gets its slices.
    pub allocation: Allocation,
    /// How its writes are acknowledged.
    pub policy: Policy,
    /// The groups that it is striped over; none: all of them.
    pub groups: Vec<GroupId>,
    /// Its striping unit; `None`: the data of one stripe.
    pub extent: Option<Extent>,
}

/// Why the catalog was not changed, or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Another volume has that name.
    #[error("there is a volume named {0} already")]
    NameTaken(Name),
    /// No volume has that name.
    #[error("there is no volume named {0}")]
    NoSuchVolume(Name),
    /// A group that no home has made, or none at all.
    #[error("there is no such RAID group: the directors have not made it yet")]
    NoSuchGroup,
    /// The volume cannot be so.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// What was asked for last is still being done.
    #[error("volume {0} is still being changed: try again when that is done")]
    Busy(Name),
    /// It has no room for another volume.
    #[error("the catalog is full: delete a volume first")]
    Full,
    /// What is stored is no catalog of this version.
    #[error("the catalog in the registry is damaged or of another version: {0}")]
    Damaged(String),
    /// Others kept changing it.
    #[error("others kept changing the catalog: try again")]
    Contended,
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Default for Catalog {
    fn default() -> Self {
        Self { format: FORMAT, next_namespace: 1, groups: Vec::new(), volumes: Vec::new() }
    }
}

/// The key of the record.
#[must_use]
pub fn catalog_key() -> Key {
    Key::new("catalog").expect("a valid key")
}

/// The catalog as it is now.
///
/// # Errors
/// [`CatalogError::Damaged`], [`CatalogError::Registry`].
pub async fn read<R: Registry>(registry: &R) -> Result<Catalog, CatalogError> {
    Ok(versioned(registry).await?.0)
}

/// The volume of this name.
///
/// # Errors
/// [`CatalogError::NoSuchVolume`], and those of [`read`].
pub async fn get<R: Registry>(registry: &R, name: &Name) -> Result<Volume, CatalogError> {
    let catalog = read(registry).await?;
    catalog.volume(name).cloned().ok_or_else(|| CatalogError::NoSuchVolume(name.clone()))
}

/// Asks for a volume. Hosts see it when its homes have made their shares.
///
/// # Errors
/// [`CatalogError`].
pub async fn create<R: Registry>(registry: &R, new: &NewVolume) -> Result<Volume, CatalogError> {
    change(registry, |catalog| catalog.create(new)).await?;
    get(registry, &new.name).await
}

/// Asks for another size in bytes, rounded up to whole extents. What is beyond a smaller one is gone.
///
/// # Errors
/// [`CatalogError`].
pub async fn resize<R: Registry>(registry: &R, name: &Name, bytes: u64) -> Result<Volume, CatalogError> {
    change(registry, |catalog| catalog.resize(name, bytes)).await?;
    get(registry, name).await
}

/// Asks for the end of a volume: it is gone for hosts as soon as its homes see this.
///
/// # Errors
/// [`CatalogError`].
pub async fn delete<R: Registry>(registry: &R, name: &Name) -> Result<(), CatalogError> {
    change(registry, |catalog| catalog.delete(name)).await
}

/// A home has made a group.
///
/// # Errors
/// [`CatalogError`].
pub async fn enroll<R: Registry>(registry: &R, group: &Group) -> Result<(), CatalogError> {
    change(registry, |catalog| Ok(catalog.enroll(group))).await
}

/// The home of `group` has done what this description asks for.
///
/// # Errors
/// [`CatalogError`].
pub async fn done<R: Registry>(registry: &R, of: &Description, group: GroupId) -> Result<(), CatalogError> {
    change(registry, |catalog| catalog.done(of, group)).await
}

/// The home of a group cannot do what this description asks for, and why.
///
/// # Errors
/// [`CatalogError`].
pub async fn refuse<R: Registry>(registry: &R, of: &Description, why: &str) -> Result<(), CatalogError> {
    change(registry, |catalog| Ok(catalog.refuse(of, why))).await
}

async fn versioned<R: Registry>(registry: &R) -> Result<(Catalog, Option<Revision>), CatalogError> {
    let mut attempts = 1;
    let versioned = loop {
        match registry.get(&catalog_key()).await {
            Err(RegistryError::Unknown) if attempts < ATTEMPTS_MAX => attempts += 1,
            answer => break answer?,
        }
    };
    let Some(versioned) = versioned else { return Ok((Catalog::default(), None)) };
    Ok((Catalog::decode(&versioned.value)?, Some(versioned.revision)))
}

/// Replaces the catalog, unless `edit` says that there is nothing to do (any more).
async fn change<R: Registry>(
    registry: &R,
    edit: impl Fn(&mut Catalog) -> Result<bool, CatalogError>,
) -> Result<(), CatalogError> {
    let mut last = CatalogError::Contended;
    for _ in 0..ATTEMPTS_MAX {
        let (mut catalog, revision) = versioned(registry).await?;
        if !edit(&mut catalog)? {
            return Ok(());
        }
        match registry.compare_and_swap(&catalog_key(), revision, &catalog.encode()).await {
            Ok(Cas::Won(_)) => return Ok(()),
            Ok(Cas::Lost(_)) => last = CatalogError::Contended,
            // Made or not: the next look tells.
            Err(RegistryError::Unknown) => last = RegistryError::Unknown.into(),
            Err(RegistryError::TooLarge) => return Err(CatalogError::Full),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

impl Catalog {
    /// The bytes to store.
    ///
    /// # Panics
    /// Never: plain data can be written down.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// The catalog in `bytes`.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CatalogError> {
        let catalog: Self = serde_json::from_slice(bytes).map_err(|error| CatalogError::Damaged(error.to_string()))?;
        if catalog.format == FORMAT {
            Ok(catalog)
        } else {
            Err(CatalogError::Damaged(format!("it has format {}, and this version knows {FORMAT}", catalog.format)))
        }
    }

    /// The volume of this name.
    #[must_use]
    pub fn volume(&self, name: &Name) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.description.name() == name)
    }

    fn volume_mut(&mut self, name: &Name) -> Result<&mut Volume, CatalogError> {
        let found = self.volumes.iter_mut().find(|volume| volume.description.name() == name);
        found.ok_or_else(|| CatalogError::NoSuchVolume(name.clone()))
    }

    fn create(&mut self, new: &NewVolume) -> Result<bool, CatalogError> {
        if let Some(volume) = self.volume(&new.name) {
            let same = volume.description.uuid() == new.uuid;
            return if same { Ok(false) } else { Err(CatalogError::NameTaken(new.name.clone())) };
        }
        let known = || self.groups.iter().map(|group| group.id);
        let groups = if new.groups.is_empty() { known().collect() } else { new.groups.clone() };
        if groups.is_empty() || !groups.iter().all(|group| known().any(|other| other == *group)) {
            return Err(CatalogError::NoSuchGroup);
        }
        let stripe = self.groups.iter().find(|group| group.id == groups[0]).map_or(1, |group| group.stripe_tracks);
        let extent = new.extent.map_or_else(|| Extent::of_tracks(stripe), Ok)?;
        let extents = new.bytes.div_ceil(extent.bytes());
        let description = Description::new(new.name.clone(), new.uuid, extent, extents, new.allocation, groups)?;
        let namespace = self.next_namespace;
        self.next_namespace += 1;
        let pending = description.groups();
        let policy = new.policy;
        self.volumes.push(Volume { description, namespace, policy, served: 0, pending, refused: None });
        Ok(true)
    }

    fn resize(&mut self, name: &Name, bytes: u64) -> Result<bool, CatalogError> {
        let volume = self.volume_mut(name)?;
        let now = &volume.description;
        let extents = bytes.div_ceil(now.extent().bytes());
        if extents == now.extents() && now.state() != &State::Deleting {
            return Ok(false);
        }
        // What could not be done so far may be taken back.
        if !volume.is_settled() && (volume.refused.is_none() || extents > now.extents()) {
            return Err(CatalogError::Busy(name.clone()));
        }
        let next = if extents > now.extents() { now.grown(extents)? } else { now.shrunk(extents)? };
        volume.ask_for(next);
        Ok(true)
    }

    fn delete(&mut self, name: &Name) -> Result<bool, CatalogError> {
        let volume = self.volume_mut(name)?;
        if volume.description.state() == &State::Deleting {
            return Ok(false);
        }
        volume.ask_for(volume.description.deleted()?);
        Ok(true)
    }

    fn enroll(&mut self, group: &Group) -> bool {
        if self.groups.contains(group) {
            return false;
        }
        self.groups.retain(|known| known.id != group.id);
        self.groups.push(group.clone());
        true
    }

    fn done(&mut self, of: &Description, group: GroupId) -> Result<bool, CatalogError> {
        let Some(at) = self.volumes.iter().position(|volume| volume.description == *of) else { return Ok(false) };
        let volume = &mut self.volumes[at];
        if !volume.pending.contains(&group) {
            return Ok(false);
        }
        volume.pending.retain(|pending| *pending != group);
        volume.refused = None;
        if volume.pending.is_empty() {
            match of.state() {
                State::Active => volume.served = of.extents(),
                State::Shrinking { .. } => {
                    volume.description = of.settled()?;
                    volume.served = of.extents();
                }
                State::Deleting => drop(self.volumes.remove(at)),
            }
        }
        Ok(true)
    }

    fn refuse(&mut self, of: &Description, why: &str) -> bool {
        let Some(volume) = self.volumes.iter_mut().find(|volume| volume.description == *of) else { return false };
        let news = !volume.pending.is_empty() && volume.refused.as_deref() != Some(why);
        if news {
            volume.refused = Some(why.to_owned());
        }
        news
    }
}

impl Volume {
    /// Every home has to do something for this.
    fn ask_for(&mut self, next: Description) {
        self.pending = next.groups();
        self.served = match next.state() {
            State::Active | State::Shrinking { .. } => self.served.min(next.extents()),
            State::Deleting => 0,
        };
        self.description = next;
        self.refused = None;
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Policy", rename_all = "snake_case")]
enum PlainPolicy {
    Mirrored,
    Unmirrored,
    Through,
}

/// Identities of groups as 32 hexadecimal digits.
mod hex_group {
    use dyad_backend::format::GroupId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn to_text(group: GroupId) -> String {
        format!("{:032x}", u128::from_be_bytes(group.0))
    }

    pub(super) fn from_text<E: Error>(text: &str) -> Result<GroupId, E> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number
            .map(|number| GroupId(number.to_be_bytes()))
            .ok_or_else(|| E::custom("an identity has 32 hexadecimal digits"))
    }

    pub(super) fn serialize<S: Serializer>(group: &GroupId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&to_text(*group))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GroupId, D::Error> {
        from_text(&String::deserialize(from)?)
    }
}

/// Lists of them.
mod hex_groups {
    use dyad_backend::format::GroupId;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::hex_group;

    pub(super) fn serialize<S: Serializer>(groups: &[GroupId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(groups.iter().map(|group| hex_group::to_text(*group)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<GroupId>, D::Error> {
        Vec::<String>::deserialize(from)?.iter().map(|text| hex_group::from_text(text)).collect()
    }
}

#[cfg(test)]
mod tests;
