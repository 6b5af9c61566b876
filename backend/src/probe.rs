//! `dyad device probe`: what is behind an address, in words.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;

use dyad_nvme::bytes::text;
use dyad_nvme::identify::IdentifyController;
use dyad_nvme::log::{ErrorEntry, SmartLog};
use dyad_reactor::Executor;

use crate::block::{BlockDevice, OpenError};
use crate::device::{Device, DeviceError, DeviceInfo, ReservationReport};
use crate::driver::{AttachError, Driver, block_on};
use crate::vfio_user::{ConnectError, VfioUserFunction};

/// Where a device is: `vfio-user:SOCKET`, `block:FILE`, or a path, which says by its kind which of them it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A function in another process.
    VfioUser(PathBuf),
    /// A file or a block device.
    Block(PathBuf),
}

/// An address that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No such file, or no right to look at it.
    #[error("{0}: there is no such file")]
    Missing(PathBuf),
    /// A way that is not there.
    #[error("{0:?} is not a way to a device; use vfio-user:SOCKET, block:FILE or a path")]
    UnknownWay(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("vfio-user", path)) => Ok(Self::VfioUser(path.into())),
            Some(("block", path)) => Ok(Self::Block(path.into())),
            Some((way, _)) if !way.contains('/') => Err(AddressError::UnknownWay(way.to_owned())),
            _ => {
                let path = PathBuf::from(text);
                match std::fs::metadata(&path) {
                    Ok(metadata) if metadata.file_type().is_socket() => Ok(Self::VfioUser(path)),
                    Ok(_) => Ok(Self::Block(path)),
                    Err(_) => Err(AddressError::Missing(path)),
                }
            }
        }
    }
}

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No device at the socket.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It could not be attached, or does not answer.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The file cannot be a device.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A command failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A device that was attached by its address.
#[derive(Debug)]
pub enum Attached {
    /// Behind a socket.
    VfioUser(Driver<VfioUserFunction>),
    /// A file or block device.
    Block(BlockDevice),
}

/// Who looks: no director, and registered nowhere.
const PROBE: [u8; 16] = *b"dyad-probe\0\0\0\0\0\0";

impl Address {
    /// Attaches the device, on an executor that nobody runs yet. An NVMe controller is reset by this.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn attach(&self, executor: &Executor) -> Result<Attached, ProbeError> {
        Ok(match self {
            Self::VfioUser(path) => {
                let function = VfioUserFunction::connect(path)?;
                let handle = executor.handle();
                Attached::VfioUser(block_on(executor, || 0, Driver::attach(function, &handle, PROBE))?)
            }
            Self::Block(path) => Attached::Block(BlockDevice::open(path)?),
        })
    }
}

/// What a device says about itself.
#[derive(Debug, Clone)]
pub struct Probe {
    /// As every device.
    pub info: DeviceInfo,
    /// As an NVMe device.
    pub nvme: Option<NvmeProbe>,
}

/// What an NVMe controller says besides.
#[derive(Debug, Clone)]
pub struct NvmeProbe {
    /// Identify Controller.
    pub controller: IdentifyController,
    /// Health.
    pub smart: SmartLog,
    /// The newest errors first.
    pub errors: Vec<ErrorEntry>,
    /// Who holds the reservation, if the device has any.
    pub reservation: Option<ReservationReport>,
}

/// Asks the device at `address` everything.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(address: &Address) -> Result<Probe, ProbeError> {
    let limits = dyad_reactor::Limits { tasks: 2, timers: 16 };
    let executor = Executor::new(limits, std::rc::Rc::new(dyad_reactor::BootClock));
    let driver = match address.attach(&executor)? {
        Attached::Block(device) => return Ok(Probe { info: device.info(), nvme: None }),
        Attached::VfioUser(driver) => driver,
    };
    let questions = async {
        let reservation = match driver.info().reservations {
            true => Some(driver.reservation_report().await?),
            false => None,
        };
        let (smart, errors) = (driver.smart_log().await?, driver.error_log().await?);
        Ok::<_, ProbeError>(NvmeProbe { controller: driver.controller(), smart, errors, reservation })
    };
    let nvme = block_on(&executor, || driver.poll(), questions)?;
    Ok(Probe { info: driver.info(), nvme: Some(nvme) })
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceInfo { id, namespace, blocks, transfer_blocks_max, queue_depth, volatile_cache, reservations } =
            self.info;
        if let Some(NvmeProbe { controller, .. }) = &self.nvme {
            let field = |bytes| text(bytes).unwrap_or("?").to_owned();
            writeln!(f, "controller    {} {}", field(&controller.model), field(&controller.firmware))?;
            writeln!(f, "serial        {}, controller {}", field(&controller.serial), controller.controller.0)?;
            writeln!(f, "subsystem     {}", field(&controller.nqn))?;
        }
        let hex: String = id.0.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(f, "medium        {hex}, namespace {}", namespace.0)?;
        writeln!(f, "size          {} blocks of 4096 bytes ({} MiB)", blocks.0, blocks.bytes() >> 20)?;
        writeln!(f, "commands      {queue_depth} outstanding, {} KiB each", transfer_blocks_max.bytes() >> 10)?;
        writeln!(f, "write cache   {}", if volatile_cache { "volatile: flush and FUA count" } else { "none" })?;
        let pair = if reservations { "yes: it can be fenced" } else { "no: it cannot be fenced" };
        write!(f, "in a pair     {pair}")?;
        let Some(NvmeProbe { smart, errors, reservation, .. }) = &self.nvme else { return Ok(()) };
        if let Some(report) = reservation {
            let rtype = report.rtype.map_or("none".to_owned(), |t| format!("type {t}"));
            write!(f, "\nreservation   {rtype}, {} registrants", report.registrants.len())?;
        }
        write!(f, "\nhealth        {}% spare, {} media errors", smart.spare_percent, smart.media_errors)?;
        write!(f, ", {} unsafe shutdowns", smart.unsafe_shutdowns)?;
        for error in errors.iter().take(5) {
            write!(f, "\nerror {:<7} {} at block {}", error.count, error.status, error.lba)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_their_way_or_have_one() {
        assert_eq!("vfio-user:/run/a.sock".parse(), Ok(Address::VfioUser("/run/a.sock".into())));
        assert_eq!("block:/dev/sda".parse(), Ok(Address::Block("/dev/sda".into())));
        assert_eq!("vfio:0000:01:00.0".parse::<Address>(), Err(AddressError::UnknownWay("vfio".to_owned())));
        assert_eq!("/none/such".parse::<Address>(), Err(AddressError::Missing("/none/such".into())));
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("a:b");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        assert_eq!(socket.to_str().expect("text").parse(), Ok(Address::VfioUser(socket.clone())));
    }
}
