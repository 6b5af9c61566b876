//! A virtual machine with a stock kernel, for what only a kernel can judge: VFIO on controllers that somebody else wrote,
//! the kernel's initiators against our target.
//!
//! QEMU runs it (TCG: no KVM, no privileges). The kernel is Debian's, from its package; the initial RAM file system is
//! made here: kernel modules, programs with their libraries, and as `/init` the program that makes it, which runs on both
//! sides. Everything about a machine is a parameter: [`Kernel`], [`Contents`], [`Guest`].
//!
//! | on the host | in the guest |
//! |---|---|
//! | [`packages`], [`kernel`]: fetch and unpack | [`inside`]: mount, load modules, run what is asked for, say how it ended |
//! | [`initramfs`]: modules, programs, files | |
//! | [`machine`]: start, listen to the serial line, bound the time | a line `@@host WORDS` asks the host for something |
//! | [`qmp`]: plug and unplug | |

pub mod initramfs;
pub mod inside;
pub mod kernel;
pub mod machine;
pub mod packages;
pub mod qmp;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use initramfs::Contents;
pub use kernel::Kernel;
pub use machine::{Ended, Guest};
pub use packages::Packages;
pub use qmp::Qmp;

/// Why a guest could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// This machine lacks something, so there is nothing to judge.
    #[error("{0}")]
    Missing(String),
    /// A program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        said: String,
    },
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel has no such module.
    #[error("the kernel has no module {0}")]
    NoModule(String),
    /// QEMU answers a command with an error, or not at all.
    #[error("QEMU does not do it: {0}")]
    Qmp(String),
}

/// Names the file in an error.
fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T, GuestError> {
    result.map_err(|source| GuestError::Io { path: path.to_owned(), source })
}

/// Runs a program to its end; its standard output.
fn output(command: &mut Command) -> Result<Vec<u8>, GuestError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |said: String| GuestError::Program { program: program.clone(), said };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// Looks for programs: `(program, its Debian package)`.
///
/// # Errors
/// [`GuestError::Missing`] names those that are not there.
pub fn need_programs(needed: &[(&str, &str)]) -> Result<(), GuestError> {
    let lacking = || needed.iter().filter(|(program, _)| find_program(program).is_none());
    if lacking().next().is_none() {
        return Ok(());
    }
    let programs: Vec<&str> = lacking().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = lacking().map(|(_, package)| *package).collect();
    let (programs, packages) = (programs.join(", "), packages.join(" "));
    Err(GuestError::Missing(format!("{programs} not found; on Debian: apt-get install {packages}")))
}

/// Where a program is, if it can be started by name, also by those who administer this machine.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|directory| directory.join(name)).find(|file| file.is_file())
}
