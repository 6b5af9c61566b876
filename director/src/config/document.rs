//! The file as it is written: every key that there is, with its place.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::{ByteSize, SizeError};

/// A size in quotes.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) ByteSize);

impl TryFrom<String> for Size {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) array: Array,
    pub(super) registry: Spanned<Registry>,
    #[serde(default)]
    pub(super) control: Control,
    #[serde(default)]
    pub(super) matrix: Matrix,
    #[serde(default)]
    pub(super) pairs: Vec<Spanned<Pair>>,
    #[serde(default)]
    pub(super) directors: Vec<Spanned<Director>>,
    pub(super) shelf: Option<Shelf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Array {
    pub(super) name: Spanned<String>,
    pub(super) uuid: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    pub(super) directory: Option<Spanned<PathBuf>>,
    pub(super) etcd: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    pub(super) token: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Matrix {
    pub(super) secret: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) trusted_network: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    pub(super) id: Spanned<u8>,
    #[serde(default = "default_cache")]
    pub(super) cache: Size,
    #[serde(default = "default_mirror")]
    pub(super) mirror: Size,
    #[serde(default = "default_heartbeat_ms")]
    pub(super) heartbeat_ms: u32,
    #[serde(default = "default_lease_ms")]
    pub(super) lease_ms: u32,
}

fn default_cache() -> Size {
    Size("64MiB".parse().expect("a size"))
}

fn default_mirror() -> Size {
    Size("16MiB".parse().expect("a size"))
}

const fn default_heartbeat_ms() -> u32 {
    100
}

const fn default_lease_ms() -> u32 {
    600
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Director {
    pub(super) id: Spanned<u8>,
    pub(super) pair: Spanned<u8>,
    #[serde(default = "default_host")]
    pub(super) host: Spanned<String>,
    pub(super) matrix: Spanned<String>,
    pub(super) devices: Spanned<Vec<Spanned<String>>>,
    pub(super) control: Spanned<SocketAddr>,
    pub(super) nvme_tcp: Option<Spanned<SocketAddr>>,
    pub(super) advertise: Option<Spanned<SocketAddr>>,
    pub(super) core: Option<usize>,
}

fn default_host() -> Spanned<String> {
    Spanned::new(0..0, "localhost".to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shelf {
    pub(super) directory: PathBuf,
    pub(super) devices: Spanned<u8>,
    pub(super) size: Size,
    #[serde(default)]
    pub(super) files: bool,
    #[serde(default = "default_cache_blocks")]
    pub(super) cache_blocks: u32,
}

const fn default_cache_blocks() -> u32 {
    1024
}
