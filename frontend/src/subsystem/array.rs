//! What the core is told about the array: volumes, who serves them, where the ports of all directors are, and who may
//! use what. Data, handed in whole whenever it changes; the core compares and tells the hosts.

use dyad_nvme::discovery::{AddressFamily, Transport};
use dyad_nvme::geometry::Geometry;
use dyad_nvme::log::AnaState;
use dyad_nvme::types::{BlockCount, NamespaceId};

/// A front-end port, unique in the array.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// An ANA group (Base 8.1): volumes that change hands together. From 1.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnaGroupId(pub u32);

/// Which director of the array, from 0.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectorIndex(pub u8);

/// A volume as hosts see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceView {
    /// Its identifier, the same at every director.
    pub id: NamespaceId,
    /// Its UUID: also the NGUID.
    pub uuid: [u8; 16],
    /// Size.
    pub blocks: BlockCount,
    /// Its ANA group.
    pub group: AnaGroupId,
    /// Acknowledged writes survive loss of power only after Flush or with FUA (PROTOCOLS 6.1).
    pub volatile_cache: bool,
    /// Deallocated blocks read as zeros.
    pub deallocated_zeros: bool,
    /// Blocks that are best written at once: a stripe's data. At least 1.
    pub optimal_write: BlockCount,
}

/// How this director reaches the volumes of a group now.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct AnaGroupView {
    /// Which.
    pub id: AnaGroupId,
    /// How.
    pub state: AnaState,
}

/// Where hosts can connect, at this or another director.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// Which.
    pub id: PortId,
    /// How.
    pub transport: Transport,
    /// Kind of address.
    pub family: AddressFamily,
    /// Address, as the transport writes it.
    pub address: String,
    /// Service: the TCP port in decimal.
    pub service: String,
}

/// The array.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Array {
    namespaces: Vec<NamespaceView>,
    groups: Vec<AnaGroupView>,
    ports: Vec<PortView>,
    geometries: Vec<Geometry>,
}

/// The parts of an [`Array`] do not fit.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// An identifier is used twice, or is none.
    #[error("namespace identifier {0} is not one of its own")]
    Namespace(u32),
    /// A volume names a group that is not there.
    #[error("namespace {namespace} is of ANA group {group}, which there is not")]
    Group {
        /// The volume.
        namespace: u32,
        /// Its group.
        group: u32,
    },
}

impl Array {
    /// An array of these parts.
    ///
    /// # Errors
    /// [`ArrayError`].
    pub fn new(
        mut namespaces: Vec<NamespaceView>,
        mut groups: Vec<AnaGroupView>,
        ports: Vec<PortView>,
    ) -> Result<Self, ArrayError> {
        namespaces.sort_by_key(|namespace| namespace.id);
        groups.sort_by_key(|group| group.id);
        for (index, namespace) in namespaces.iter().enumerate() {
            let twice = index > 0 && namespaces[index - 1].id == namespace.id;
            if twice || matches!(namespace.id, NamespaceId::NONE | NamespaceId::ALL) {
                return Err(ArrayError::Namespace(namespace.id.0));
            }
            if !groups.iter().any(|group| group.id == namespace.group) {
                return Err(ArrayError::Group { namespace: namespace.id.0, group: namespace.group.0 });
            }
        }
        Ok(Self { namespaces, groups, ports, geometries: Vec::new() })
    }

    /// The same with what lies behind its volumes, as far as that is known.
    #[must_use]
    pub fn with_geometries(self, geometries: Vec<Geometry>) -> Self {
        Self { geometries, ..self }
    }

    /// What lies behind the volumes.
    #[must_use]
    pub fn geometries(&self) -> &[Geometry] {
        &self.geometries
    }

    /// The volumes, in order of their identifiers.
    #[must_use]
    pub fn namespaces(&self) -> &[NamespaceView] {
        &self.namespaces
    }

    /// The ANA groups, in order of their identifiers.
    #[must_use]
    pub fn groups(&self) -> &[AnaGroupView] {
        &self.groups
    }

    /// The ports.
    #[must_use]
    pub fn ports(&self) -> &[PortView] {
        &self.ports
    }

    /// The volume with this identifier.
    #[must_use]
    pub fn namespace(&self, id: NamespaceId) -> Option<&NamespaceView> {
        self.namespaces.binary_search_by_key(&id, |namespace| namespace.id).ok().map(|at| &self.namespaces[at])
    }

    /// How this director reaches a group.
    #[must_use]
    pub fn state(&self, group: AnaGroupId) -> Option<AnaState> {
        self.groups.binary_search_by_key(&group, |view| view.id).ok().map(|at| self.groups[at].state)
    }
}

/// Which volumes a row allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volumes {
    /// All that there are.
    All,
    /// These.
    These(Vec<NamespaceId>),
}

/// One row of the table: a host, at a port or any, may use these volumes with so many credits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRow {
    /// The port, or any.
    pub port: Option<PortId>,
    /// The host's NQN, or any. A name is not authentication.
    pub host: Option<String>,
    /// What it sees.
    pub volumes: Volumes,
    /// Commands that it may have outstanding per queue: its buffer-to-buffer credits.
    pub credits: u16,
}

/// Who may use what (DESIGN 6): zoning, LUN masking and credits in one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessTable {
    rows: Vec<AccessRow>,
}

/// What a host may do at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    volumes: Volumes,
    /// See [`AccessRow::credits`].
    pub credits: u16,
}

impl AccessTable {
    /// A table of these rows; several rows for one host add up.
    #[must_use]
    pub fn new(rows: Vec<AccessRow>) -> Self {
        Self { rows }
    }

    /// What `host` may do at `port`; `None` if it is not known there.
    #[must_use]
    pub fn find(&self, port: PortId, host: &str) -> Option<Access> {
        let matches = |row: &&AccessRow| {
            row.port.is_none_or(|named| named == port) && row.host.as_ref().is_none_or(|named| named == host)
        };
        self.rows.iter().filter(matches).fold(None, |found: Option<Access>, row| {
            let Some(found) = found else {
                return Some(Access { volumes: row.volumes.clone(), credits: row.credits });
            };
            let volumes = match (found.volumes, &row.volumes) {
                (Volumes::These(mut these), Volumes::These(more)) => {
                    these.extend(more);
                    Volumes::These(these)
                }
                _ => Volumes::All,
            };
            Some(Access { volumes, credits: found.credits.max(row.credits) })
        })
    }
}

impl Access {
    /// No volume, for hosts that are not (any more) in the table.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { volumes: Volumes::These(Vec::new()), credits: 2 }
    }

    /// It sees this volume.
    #[must_use]
    pub fn allows(&self, id: NamespaceId) -> bool {
        match &self.volumes {
            Volumes::All => true,
            Volumes::These(these) => these.contains(&id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(port: Option<u16>, host: Option<&str>, volumes: Volumes, credits: u16) -> AccessRow {
        AccessRow { port: port.map(PortId), host: host.map(str::to_owned), volumes, credits }
    }

    #[test]
    fn rows_of_a_host_add_up_and_strangers_have_none() {
        let table = AccessTable::new(vec![
            row(None, Some("a"), Volumes::These(vec![NamespaceId(1)]), 8),
            row(Some(2), Some("a"), Volumes::These(vec![NamespaceId(3)]), 32),
            row(Some(3), None, Volumes::All, 4),
        ]);
        assert_eq!(table.find(PortId(1), "b"), None);
        let at_one = table.find(PortId(1), "a").unwrap();
        assert!(at_one.allows(NamespaceId(1)) && !at_one.allows(NamespaceId(3)));
        let at_two = table.find(PortId(2), "a").unwrap();
        assert!(at_two.allows(NamespaceId(1)) && at_two.allows(NamespaceId(3)) && at_two.credits == 32);
        assert!(table.find(PortId(3), "b").unwrap().allows(NamespaceId(9)));
    }

    #[test]
    fn an_array_whose_parts_do_not_fit_is_refused() {
        let namespace = |id, group| NamespaceView {
            id: NamespaceId(id),
            uuid: [1; 16],
            blocks: BlockCount(8),
            group: AnaGroupId(group),
            volatile_cache: true,
            deallocated_zeros: false,
            optimal_write: BlockCount(1),
        };
        let groups = vec![AnaGroupView { id: AnaGroupId(1), state: AnaState::Optimized }];
        let new = |namespaces| Array::new(namespaces, groups.clone(), Vec::new());
        assert_eq!(new(vec![namespace(2, 1), namespace(2, 1)]), Err(ArrayError::Namespace(2)));
        assert_eq!(new(vec![namespace(u32::MAX, 1)]), Err(ArrayError::Namespace(u32::MAX)));
        assert_eq!(new(vec![namespace(1, 7)]), Err(ArrayError::Group { namespace: 1, group: 7 }));
        let array = new(vec![namespace(5, 1), namespace(2, 1)]).unwrap();
        assert_eq!(array.namespace(NamespaceId(5)).map(|found| found.id), Some(NamespaceId(5)));
        assert_eq!(array.namespace(NamespaceId(3)), None);
        assert_eq!(array.state(AnaGroupId(1)), Some(AnaState::Optimized));
    }
}
