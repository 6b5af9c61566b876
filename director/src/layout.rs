//! Where an array on one host keeps its things: one directory, made by whoever starts the array.
//!
//! | path | what |
//! |---|---|
//! | `registry/` | the embedded registry |
//! | `shelf/` | the sockets of the emulated shelf's devices |
//! | `a.sock`, `b.sock` | the directors' ends of the matrix |
//! | `host.sock` | a host's end |

use std::path::{Path, PathBuf};

use dyad_backend::shelf::socket_path;

use crate::membership::DirectorId;

/// Devices of the one RAID 1 group.
pub const DEVICES: [&str; 2] = ["disk0", "disk1"];

/// A directory with an array in it.
#[derive(Debug, Clone)]
pub struct ArrayDir(PathBuf);

impl ArrayDir {
    /// The array in `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The registry's directory.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }

    /// The shelf's directory.
    #[must_use]
    pub fn shelf(&self) -> PathBuf {
        self.0.join("shelf")
    }

    /// The matrix address of a director.
    #[must_use]
    pub fn director(&self, director: DirectorId) -> PathBuf {
        self.0.join(match director {
            DirectorId::A => "a.sock",
            DirectorId::B => "b.sock",
        })
    }

    /// The matrix address of a host.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.0.join("host.sock")
    }

    /// The port of a device that belongs to a director.
    #[must_use]
    pub fn port(&self, device: &str, director: DirectorId) -> PathBuf {
        socket_path(&self.shelf(), device, usize::from(director.index()))
    }
}
