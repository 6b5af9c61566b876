//! The configuration of an array: one TOML file, the same on all its machines, read whole and checked before anything is started.
//!
//! What is in it is what a start needs. Volumes are not: they come and go while the array runs, and live in the registry.
//! `director/dist/example.toml` is a commented example of every key.
//!
//! Rooms: `document` is the file as it is written, with the place of everything; `check` makes a [`Config`] of it or says which line is wrong and why;
//! `size` reads sizes.

mod check;
mod document;
mod error;
mod size;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_backend::vfio::PciAddress;

pub use self::error::{ConfigError, Reason};
pub use self::size::{ByteSize, SizeError};
use crate::membership::{DirectorId, Timing};
use crate::registry::{Endpoint, Key};

/// An array's name: it names its records in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayName(String);

impl ArrayName {
    /// Most characters.
    pub const LEN_MAX: usize = 32;

    /// The name, if it is one: lower-case letters, digits and `-`, beginning with a letter or digit.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let begins = name.starts_with(|c: char| c != '-');
        (plain && begins && name.len() <= Self::LEN_MAX).then(|| Self(name.to_owned()))
    }
}

impl fmt::Display for ArrayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A director's number in the array.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectorNumber(pub u8);

/// A pair's number in the array.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairNumber(pub u8);

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryPlace {
    /// A directory on the one host of all directors.
    Embedded(PathBuf),
    /// The members of an etcd cluster.
    Etcd(Vec<Endpoint>),
}

/// A director's end of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatrixAddress {
    /// Shared memory, met through a socket: for processes of one host.
    Socket(PathBuf),
    /// TCP: for any.
    Tcp(SocketAddr),
}

impl fmt::Display for MatrixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// With whom a matrix over TCP speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatrixSecurity {
    /// With processes of this host.
    Loopback,
    /// With whoever has the secret; all is encrypted.
    Secret(Token),
    /// With anybody: the operator says that nobody else reaches the network.
    TrustedNetwork,
}

/// Where a director reaches a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAddress {
    /// A port of a shelf: a vfio-user socket.
    Socket(PathBuf),
    /// A controller that VFIO lends to this process.
    Pci(PciAddress),
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Pci(address) => address.fmt(f),
        }
    }
}

/// Two directors that mirror each other, and what they must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its number.
    pub id: PairNumber,
    /// Cache memory of each director.
    pub cache: ByteSize,
    /// How much of it may hold what the partner has not destaged, and as much again that the partner writes to.
    pub mirror: ByteSize,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// How long a grant lets the grantee read.
    pub lease: Duration,
}

impl Pair {
    /// For the membership machine.
    #[must_use]
    pub const fn timing(&self) -> Timing {
        Timing { heartbeat: self.heartbeat, lease: self.lease }
    }
}

/// One director.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Director {
    /// Its number.
    pub id: DirectorNumber,
    /// Its pair.
    pub pair: PairNumber,
    /// Which of the pair: the one with the lower number is A.
    pub role: DirectorId,
    /// The machine that it runs on.
    pub host: String,
    /// Its end of the matrix, where its partner and hosts connect.
    pub matrix: MatrixAddress,
    /// Its ways to the devices of the pair.
    pub devices: Vec<DeviceAddress>,
    /// Where its control plane listens.
    pub control: SocketAddr,
    /// Where it listens for hosts' NVMe/TCP, if it does.
    pub nvme_tcp: Option<SocketAddr>,
    /// Where hosts find that port, if not there.
    pub advertise: Option<SocketAddr>,
    /// The core that its reactor stays on.
    pub core: Option<usize>,
}

/// Emulated devices in a process of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf {
    /// Where its sockets are made.
    pub directory: PathBuf,
    /// disk0, disk1, ...
    pub devices: u8,
    /// Size of each.
    pub size: ByteSize,
    /// Blocks are kept in sparse files in the directory; otherwise they are gone with the shelf.
    pub files: bool,
    /// 4 KiB blocks that each device's volatile write cache holds; 0 is write-through.
    pub cache_blocks: u32,
}

/// A secret: what clients of the control plane beyond loopback must show, or what directors know each other by.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Fewest characters.
    pub const LEN_MIN: usize = 16;

    /// The token, if it is long enough and can stand in a header.
    #[must_use]
    pub fn new(token: &str) -> Option<Self> {
        let plain = token.chars().all(|c| c.is_ascii_graphic());
        (plain && token.len() >= Self::LEN_MIN).then(|| Self(token.to_owned()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A secret is not printed.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// An array, as it was configured. Everything in it fits together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub array: ArrayName,
    /// What devices and directors know it by.
    pub uuid: [u8; 16],
    /// Where the registry is.
    pub registry: RegistryPlace,
    /// With whom the matrix speaks.
    pub security: MatrixSecurity,
    /// For the control planes.
    pub token: Option<Token>,
    /// In order of their numbers.
    pub pairs: Vec<Pair>,
    /// In order of their numbers.
    pub directors: Vec<Director>,
    /// Emulated devices, if there are any.
    pub shelf: Option<Shelf>,
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), kind: source.kind() })?;
        Self::parse(&text, path)
    }

    /// Checks the text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        check::config(text, path)
    }

    /// The director with this number.
    #[must_use]
    pub fn director(&self, id: DirectorNumber) -> Option<&Director> {
        self.directors.iter().find(|director| director.id == id)
    }

    /// A director's pair.
    ///
    /// # Panics
    /// If the director is of another configuration.
    #[must_use]
    pub fn pair(&self, director: &Director) -> &Pair {
        self.pairs.iter().find(|pair| pair.id == director.pair).expect("checked: every director has its pair")
    }

    /// A director's partner.
    ///
    /// # Panics
    /// If the director is of another configuration.
    #[must_use]
    pub fn partner(&self, director: &Director) -> &Director {
        let partner = |other: &&Director| other.pair == director.pair && other.id != director.id;
        self.directors.iter().find(partner).expect("checked: a pair has two directors")
    }

    /// Where the records of a pair are. Pairs do not share volumes yet, so each has records of its own.
    #[must_use]
    pub fn registry_of(&self, pair: PairNumber) -> PairRegistry {
        match &self.registry {
            RegistryPlace::Embedded(directory) => PairRegistry::Embedded(directory.join(format!("pair{}", pair.0))),
            RegistryPlace::Etcd(endpoints) => PairRegistry::Etcd {
                endpoints: endpoints.clone(),
                array: Key::new(&format!("{}.pair{}", self.array, pair.0)).expect("short, and of good characters"),
            },
        }
    }

    /// What a pair's group and directors know their part of the array by: the array's, with the pair's number in it.
    #[must_use]
    pub fn uuid_of(&self, pair: PairNumber) -> [u8; 16] {
        let mut uuid = self.uuid;
        uuid[15] ^= pair.0;
        uuid
    }
}

/// Where the records of one pair are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairRegistry {
    /// A directory.
    Embedded(PathBuf),
    /// In an etcd cluster.
    Etcd {
        /// Its members.
        endpoints: Vec<Endpoint>,
        /// What the records' names begin with.
        array: Key,
    },
}
