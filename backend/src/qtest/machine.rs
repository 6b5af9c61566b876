//! One QEMU process: its devices, its memory, and the way to both.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use dyad_matrix::{Memory, MemoryId};

use super::line::Lines;
use super::{QtestError, QtestFunction};
use crate::pci::{BusAddress, DmaError};

/// Where DIMMs are plugged in: above the first 4 GiB, in which the machine has all its own memory (QEMU, `hw/i386/pc.c`).
const DIMMS: u64 = 4 << 30;

/// DIMMs that the machine has room for, and their bytes altogether.
const SLOTS: usize = 250;
const DIMM_BYTES: u64 = 64 << 30;

/// Ports of PCI configuration access (PCI 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Where BARs are put: a MiB for each slot of bus 0, and behind them one for each bus behind a root port.
const BARS: u32 = 0xe000_0000;
const BAR_BYTES: u32 = 1 << 20;

/// A machine with devices and without a running CPU. It ends with this value.
#[derive(Debug)]
pub struct Machine {
    child: RefCell<Child>,
    qtest: RefCell<Lines>,
    monitor: RefCell<Lines>,
    mapped: RefCell<Vec<Mapped>>,
    next_address: Cell<u64>,
}

/// A DIMM. The machine may use the memory as long as it runs.
#[derive(Debug)]
struct Mapped {
    id: MemoryId,
    address: u64,
    _memory: Memory,
}

impl Machine {
    /// Starts a machine with these arguments besides its own: drives and devices.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn start(arguments: &[&str]) -> Result<Rc<Self>, QtestError> {
        let pair = || UnixStream::pair().map_err(QtestError::Start);
        let ((qtest, qtest_end), (monitor, monitor_end)) = (pair()?, pair()?);
        let memory = format!("64,slots={SLOTS},maxmem={}G", DIMM_BYTES >> 30);
        let child = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-m", &memory])
            .args(["-chardev", "socket,id=qtest,fd=0", "-qtest", "chardev:qtest", "-qtest-log", "/dev/null"])
            .args(["-chardev", "socket,id=monitor,fd=1", "-mon", "chardev=monitor,mode=control"])
            // A slot behind a root port is switched off by the port's own registers.
            .args(["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"])
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(qtest_end)))
            .stdout(Stdio::from(OwnedFd::from(monitor_end)))
            .spawn()
            .map_err(QtestError::Start)?;
        let machine = Self {
            child: RefCell::new(child),
            qtest: RefCell::new(Lines::new(qtest)?),
            monitor: RefCell::new(Lines::new(monitor)?),
            mapped: RefCell::new(Vec::new()),
            next_address: Cell::new(DIMMS),
        };
        // The first line of a monitor is a greeting, passed over like events.
        machine.monitor("qmp_capabilities", "{}")?;
        Ok(Rc::new(machine))
    }

    /// The NVMe controller in a slot of bus 0.
    ///
    /// # Errors
    /// [`QtestError::NoDevice`], or the machine is gone.
    pub fn function(self: &Rc<Self>, slot: u8) -> Result<QtestFunction, QtestError> {
        QtestFunction::new(Rc::clone(self), Place { bus: 0, slot }, BARS + u32::from(slot) * BAR_BYTES)
    }

    /// The NVMe controller behind the root port in a slot of bus 0; the port is set up, and switched on.
    ///
    /// # Errors
    /// [`QtestError::NoDevice`], or the machine is gone.
    pub fn function_behind(self: &Rc<Self>, port: u8) -> Result<QtestFunction, QtestError> {
        let at = Place { bus: 0, slot: port };
        let bus = port;
        let bar = BARS + (32 + u32::from(bus)) * BAR_BYTES;
        // Primary, secondary and last bus; first and last MiB of memory behind it (PCI-to-PCI Bridge 1.2, 3.2.5).
        self.config_write(at, 0x18, u32::from(bus) << 16 | u32::from(bus) << 8)?;
        self.config_write(at, 0x20, (bar & 0xfff0_0000) | bar >> 16)?;
        self.config_write(at, 0x04, 6)?;
        self.switch_port(port, true)?;
        QtestFunction::new(Rc::clone(self), Place { bus, slot: 0 }, bar)
    }

    /// Pulls the device with this QEMU identifier out of the root port in a slot of bus 0.
    ///
    /// # Errors
    /// [`QtestError`].
    pub fn unplug(&self, id: &str, port: u8) -> Result<(), QtestError> {
        self.monitor("device_del", &format!(r#"{{"id": "{id}"}}"#))?;
        // QEMU waits for the guest to let go of it; here that is us.
        self.switch_port(port, false)
    }

    /// Plugs in a device: driver and properties as a JSON object, as QMP's `device_add` wants it.
    ///
    /// # Errors
    /// [`QtestError::Refused`].
    pub fn plug(&self, device: &str) -> Result<(), QtestError> {
        self.monitor("device_add", device)
    }

    /// Switches power and indicator of a root port's slot (PCIe 4.0, 7.5.3.10: Slot Control, bits 10 and 9:8).
    fn switch_port(&self, port: u8, on: bool) -> Result<(), QtestError> {
        const PCI_EXPRESS: u32 = 0x10;
        let at = Place { bus: 0, slot: port };
        let mut capability = self.config_read(at, 0x34)? & 0xfc;
        while capability != 0 {
            let head = self.config_read(at, capability)?;
            if head & 0xff == PCI_EXPRESS {
                let control = self.config_read(at, capability + 0x18)? & 0xf8ff;
                return self.config_write(at, capability + 0x18, control | if on { 0x100 } else { 0x700 });
            }
            capability = head >> 8 & 0xfc;
        }
        Err(QtestError::NoDevice { bus: 0, slot: port })
    }

    fn monitor(&self, command: &str, arguments: &str) -> Result<(), QtestError> {
        self.monitor.borrow_mut().monitor(command, arguments)
    }

    fn qtest(&self, command: &str) -> Result<u64, QtestError> {
        self.qtest.borrow_mut().qtest(command)
    }

    pub(super) fn config_read(&self, place: Place, offset: u32) -> Result<u32, QtestError> {
        self.qtest(&format!("outl {CONFIG_ADDRESS:#x} {:#x}", place.config(offset)))?;
        Ok(low(self.qtest(&format!("inl {CONFIG_DATA:#x}"))?))
    }

    pub(super) fn config_write(&self, place: Place, offset: u32, value: u32) -> Result<(), QtestError> {
        self.qtest(&format!("outl {CONFIG_ADDRESS:#x} {:#x}", place.config(offset)))?;
        self.qtest(&format!("outl {CONFIG_DATA:#x} {value:#x}")).map(|_| ())
    }

    pub(super) fn read32(&self, address: u32) -> Result<u32, QtestError> {
        self.qtest(&format!("readl {address:#x}")).map(low)
    }

    pub(super) fn read64(&self, address: u32) -> Result<u64, QtestError> {
        self.qtest(&format!("readq {address:#x}"))
    }

    pub(super) fn write32(&self, address: u32, value: u32) -> Result<(), QtestError> {
        self.qtest(&format!("writel {address:#x} {value:#x}")).map(|_| ())
    }

    /// Where `memory` is for every device: plugged in as a DIMM, once.
    pub(super) fn map(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        let mut mapped = self.mapped.borrow_mut();
        if let Some(found) = mapped.iter().find(|m| m.id == memory.id()) {
            return Ok(BusAddress(found.address));
        }
        let fd = memory.fd().ok_or(DmaError::Unreachable)?;
        let (index, address) = (mapped.len(), self.next_address.get());
        let size = memory.len().next_multiple_of(4096);
        if index == SLOTS || address + size > DIMMS + DIMM_BYTES {
            return Err(DmaError::Full);
        }
        // QEMU opens the file by itself, and keeps it.
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let backend = format!(
            r#"{{"qom-type": "memory-backend-file", "id": "memory{index}", "size": {size}, "mem-path": "{path}", "share": true}}"#
        );
        let dimm =
            format!(r#"{{"driver": "pc-dimm", "id": "dimm{index}", "memdev": "memory{index}", "addr": {address}}}"#);
        self.monitor("object-add", &backend).and_then(|()| self.plug(&dimm)).map_err(|error| match error {
            QtestError::Refused(_) => DmaError::Unreachable,
            _ => DmaError::Gone,
        })?;
        self.next_address.set(address + size);
        mapped.push(Mapped { id: memory.id(), address, _memory: memory.clone() });
        Ok(BusAddress(address))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Where a function is.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bus: u8,
    pub(super) slot: u8,
}

impl Place {
    fn config(self, offset: u32) -> u32 {
        1 << 31 | u32::from(self.bus) << 16 | u32::from(self.slot) << 11 | offset
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("half of it")
}
