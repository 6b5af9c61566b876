//! The first process of a guest.
//!
//! It mounts what programs expect, loads the modules that it was given, and starts this program again with `inside` and
//! the value of `dyad.run` on the kernel's command line. When that has ended it says with which status and ends the machine.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;

use crate::machine::{ASK, EXIT_PORT, STATUS};

/// Status of a guest in which nothing could be run.
const NOT_RUN: u8 = 125;

/// The kernel argument that says what to run.
pub const RUN: &str = "dyad.run=";

/// Whether this process is the first of a guest.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Asks the host for something; it does it in its own time.
pub fn ask_host(words: &str) {
    println!("{ASK}{words}");
}

/// What the first process does. Returns only if the machine cannot be ended.
pub fn init() {
    let status = run().unwrap_or_else(|error| {
        println!("init: {error}");
        NOT_RUN
    });
    println!("{STATUS}{status}");
    // The serial line is slower than the end of the machine.
    let _ = tcdrain(std::io::stdout());
    // QEMU ends at once; a machine without that port is switched off.
    if let Ok(ports) = fs::OpenOptions::new().write(true).open("/dev/port") {
        let _ = ports.write_at(&[status], u64::from(EXIT_PORT));
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<u8, std::io::Error> {
    for (kind, place) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")]
    {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    let mut modules: Vec<_> =
        fs::read_dir("/modules").into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    modules.sort();
    for module in &modules {
        load(module).map_err(|error| std::io::Error::other(format!("{}: {error}", module.display())))?;
    }
    let line = fs::read_to_string("/proc/cmdline")?;
    let what = line.split_whitespace().find_map(|word| word.strip_prefix(RUN)).unwrap_or_default();
    let status = Command::new("/init").args(["inside", what]).env("RUST_BACKTRACE", "1").status()?;
    // A signal is as bad as any status.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_RUN))
}

fn load(module: &Path) -> Result<(), std::io::Error> {
    let file = fs::File::open(module)?;
    finit_module(&file, c"", ModuleInitFlags::empty())?;
    Ok(())
}
