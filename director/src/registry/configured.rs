//! The registry that a configuration names, whichever kind it is.

use std::time::Duration;

use super::{
    Cas, EtcdConfig, EtcdRegistry, FileRegistry, Key, OpenError, Registry, RegistryError, Revision, StartError,
    Versioned,
};
use crate::config::PairRegistry;

/// How long one member of an etcd cluster may take for one answer. A member that hangs is noticed, another one is asked, all within a few leases.
const ETCD_TIMEOUT: Duration = Duration::from_secs(1);

/// A client of either kind. Clones are the same client.
#[derive(Debug, Clone)]
pub enum ConfiguredRegistry {
    /// A directory.
    Embedded(FileRegistry),
    /// A cluster.
    Etcd(EtcdRegistry),
}

/// There is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfiguredError {
    /// The directory.
    #[error(transparent)]
    Embedded(#[from] OpenError),
    /// The cluster's client.
    #[error(transparent)]
    Etcd(#[from] StartError),
}

impl ConfiguredRegistry {
    /// A client. Whether an etcd cluster answers shows with the first request.
    ///
    /// # Errors
    /// [`ConfiguredError`].
    pub fn open(place: &PairRegistry) -> Result<Self, ConfiguredError> {
        match place {
            PairRegistry::Embedded(directory) => Ok(Self::Embedded(FileRegistry::open(directory)?)),
            PairRegistry::Etcd { endpoints, array } => {
                let config = EtcdConfig { endpoints: endpoints.clone(), array: array.clone(), timeout: ETCD_TIMEOUT };
                Ok(Self::Etcd(EtcdRegistry::start(&config)?))
            }
        }
    }
}

impl Registry for ConfiguredRegistry {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        match self {
            Self::Embedded(registry) => registry.get(key).await,
            Self::Etcd(registry) => registry.get(key).await,
        }
    }

    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> Result<Cas, RegistryError> {
        match self {
            Self::Embedded(registry) => registry.compare_and_swap(key, expected, value).await,
            Self::Etcd(registry) => registry.compare_and_swap(key, expected, value).await,
        }
    }
}
