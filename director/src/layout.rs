//! Where a trial's array keeps its things: one directory.
//!
//! | path | what |
//! |---|---|
//! | `dyad.toml` | the configuration: registry and shelf are where it says |
//! | `director0.sock`, `director1.sock` | the directors' ends of the matrix |
//! | `host.sock` | a host's end |

use std::path::{Path, PathBuf};

use crate::membership::DirectorId;
use crate::up::configuration_in;

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

    /// The configuration's file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        configuration_in(&self.0)
    }

    /// The matrix address of a director.
    #[must_use]
    pub fn director(&self, director: DirectorId) -> PathBuf {
        self.0.join(match director {
            DirectorId::A => "director0.sock",
            DirectorId::B => "director1.sock",
        })
    }

    /// The matrix address of a host.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.0.join("host.sock")
    }
}
