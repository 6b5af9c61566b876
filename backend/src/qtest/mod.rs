//! QEMU's own NVMe controller as a PCI function, without a guest: its registers through QEMU's qtest socket, its DMA to memory of this
//! process. Devices that we did not write, in tenths of a second; for conformance, not for work.
//!
//! - [`Machine`] is one QEMU process without a running CPU. Register accesses are lines over a socket (`docs/devel/qtest` of QEMU: `readl`,
//!   `writel`, `outl`); devices come and go by QMP.
//! - Memory is a file that both processes map: each memory that is mapped becomes a DIMM, plugged in while the machine is up, and so lies at
//!   an address that every controller reaches.
//! - [`QtestFunction`] waits for QEMU, at most [`PATIENCE`] each time: unlike other functions it may hold a reactor, and none is to run on it.
//!
//! What QEMU's controller (7.2) answers otherwise than ours, found by the suite and by what Linux sends at attach (module `linux`), and what the
//! driver makes of it:
//!
//! | QEMU 7.2 | here |
//! |---|---|
//! | no reservations (ONCS bit 5, RESCAP), no 128-bit Host Identifier (CTRATT bit 0) | it can be in no pair; `reserve` is `Rejected` |
//! | a namespace has no UUID, NGUID or EUI64 unless it is given one | the driver makes a name of serial number, model and number |
//! | no Verify (ONCS bit 7) | not used |
//! | Identify of a namespace independent of command sets (CNS 08h): Invalid Field | not asked; ours has it |
//! | a log page that is not there: Invalid Field, where ours says Invalid Log Page | not asked |
//! | 256 namespaces may be (NN): those that are not read as zeros | the driver goes by the list of active ones |
//! | memory of a function that was pulled out reads as zeros; a bus would give ones | [`QtestFunction`] asks the configuration space then |
//!
//! A fault of ours that it showed: the driver asked for checks of protection information with Write Zeroes (NVM 3.2.8).

mod function;
mod line;
#[cfg(test)]
mod linux;
mod machine;

use std::time::Duration;

pub use self::function::QtestFunction;
pub use self::machine::Machine;

/// Longest wait for QEMU.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no machine, or it does nothing any more.
#[derive(Debug, thiserror::Error)]
pub enum QtestError {
    /// The program is not installed, or does not start.
    #[error("cannot start qemu-system-x86_64 (Debian: apt-get install qemu-system-x86): {0}")]
    Start(std::io::Error),
    /// It has ended, or says nothing.
    #[error("QEMU does not answer: {0}")]
    Silent(#[from] std::io::Error),
    /// It refused what it was asked to do.
    #[error("QEMU refuses: {0}")]
    Refused(String),
    /// There is no device at that place.
    #[error("there is no device at bus {bus}, slot {slot}")]
    NoDevice {
        /// Bus.
        bus: u8,
        /// Slot on it.
        slot: u8,
    },
}
