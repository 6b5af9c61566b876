//! What is judged in guests: each case is one boot. Its upper half runs on the host, its lower half in the guest, where a
//! panic is a failure.

mod array;
mod devices;
mod director;
mod fenced;
mod iommu;
mod tcp;
mod unplug;
mod vfio;

use std::path::Path;
use std::process::ExitCode;

use dyad_guest::{GuestError, Qmp};

/// One boot.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) modules: &'static [&'static str],
    /// Programs that were built beside this one, or of this machine; in the guest they are in `/bin`.
    pub(crate) programs: &'static [&'static str],
    /// Debian packages that these are from, if this machine has them not.
    pub(crate) packages: &'static [&'static str],
    pub(crate) memory_mib: u32,
    pub(crate) kernel_arguments: &'static str,
    /// Makes what QEMU needs in a directory, and says how QEMU is told.
    pub(crate) qemu_arguments: fn(&Path) -> Result<Vec<String>, GuestError>,
    /// Does what the guest asks for.
    pub(crate) asked: fn(&str, &mut Qmp) -> Result<(), GuestError>,
    /// What runs in the guest.
    pub(crate) inside: fn(),
}

/// The table.
pub(crate) const CASES: &[Case] = &[
    devices::CASE,
    iommu::NARROW,
    iommu::NO_REMAPPING,
    iommu::NONE,
    unplug::CASE,
    director::CASE,
    tcp::CASE,
    array::CASE,
];

/// What cases start in processes of their own.
const ROLES: &[(&str, fn())] = &[devices::UNPRIVILEGED];

/// Blocks of 4 KiB, as Dyad wants them.
const BLOCKS: &str = "logical_block_size=4096,physical_block_size=4096";

/// Runs the lower half of a case.
pub(crate) fn run_inside(what: &str) -> ExitCode {
    let cases = CASES.iter().map(|case| (case.name, case.inside));
    let Some((_, run)) = cases.chain(ROLES.iter().copied()).find(|(name, _)| *name == what) else {
        eprintln!("no case {what:?}");
        return ExitCode::from(2);
    };
    run();
    ExitCode::SUCCESS
}

/// The guest asks for nothing.
fn nothing(words: &str, _qmp: &mut Qmp) -> Result<(), GuestError> {
    Err(GuestError::Qmp(format!("nobody does {words:?}")))
}

/// A sparse image.
fn image(directory: &Path, name: &str, bytes: u64) -> Result<String, GuestError> {
    let path = directory.join(format!("{name}.img"));
    let made = std::fs::File::create(&path).and_then(|file| file.set_len(bytes));
    made.map_err(|source| GuestError::Io { path: path.clone(), source })?;
    Ok(format!("file={},if=none,id={name},format=raw", path.display()))
}

/// The words of QEMU's command line.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(str::to_owned)
}
