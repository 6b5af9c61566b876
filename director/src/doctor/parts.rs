//! What one configuration needs: its registry, and for each director its end of the matrix, its control plane's port and its devices.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dyad_backend::Device;
use dyad_backend::driver::{Driver, block_on};
use dyad_reactor::BootClock;
use dyad_reactor::executor::{Executor, Limits};
use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::config::{Config, DeviceAddress, Director, MatrixAddress, PairRegistry};
use crate::control::client::Client;
use crate::control::view::Status;
use crate::function::Function;
use crate::node::transition::pair_key;
use crate::registry::{ConfiguredRegistry, Registry};

/// Bytes of a socket's path (unix(7)), with the zero behind it.
const SOCKET_PATH_MAX: usize = 108;
/// A record is small; this is for the file system's own needs.
const FREE_LEAST: u64 = 16 << 20;

/// The registry answers, and has room.
pub(super) fn registry(config: &Config) -> Finding {
    let mut found = String::new();
    for pair in &config.pairs {
        let place = config.registry_of(pair.id);
        if let PairRegistry::Embedded(directory) = &place {
            match free_bytes(directory) {
                Some(free) if free < FREE_LEAST => {
                    let found = format!("{} KiB free under {}", free >> 10, directory.display());
                    return Finding::bad("registry", found, "make room: without it no director can become the home");
                }
                Some(free) => found = format!("{}, {} MiB free", directory.display(), free >> 20),
                None => found = directory.display().to_string(),
            }
            // Looking makes nothing.
            if !directory.exists() {
                found.push_str(", not made yet");
                continue;
            }
        }
        let executor = executor();
        let asked = ConfiguredRegistry::open(&place).map_err(|error| error.to_string()).and_then(|registry| {
            block_on(&executor, || 0, registry.get(&pair_key())).map_err(|error| error.to_string())
        });
        match (asked, &place) {
            (Ok(_), PairRegistry::Etcd { endpoints, .. }) => {
                found = format!("etcd answers at one of {} endpoints", endpoints.len())
            }
            (Ok(_), PairRegistry::Embedded(_)) => {}
            (Err(error), PairRegistry::Etcd { endpoints, .. }) => {
                let names: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                let mend = format!(
                    "start etcd, or mend the way to it: `etcdctl --endpoints {} endpoint health`",
                    names.join(",")
                );
                return Finding::bad("registry", error, mend);
            }
            (Err(error), PairRegistry::Embedded(directory)) => {
                let mend = format!(
                    "see that {} is a directory that this user may write to, and restore what is damaged",
                    directory.display()
                );
                return Finding::bad("registry", error, mend);
            }
        }
    }
    Finding::good("registry", found)
}

/// Everything of one director.
pub(super) fn director(config: &Config, director: &Director) -> Vec<Finding> {
    let running = is_running(director);
    let mut findings = vec![matrix(director), control(config, director)];
    if running {
        let found = format!("{} devices, in use by the running director", director.devices.len());
        findings.push(Finding::good(point(director, "devices"), found));
    } else {
        findings.extend(director.devices.iter().map(|address| device(director, address)));
    }
    findings
}

fn point(director: &Director, what: &str) -> String {
    format!("director {} {what}", director.id.0)
}

/// Somebody listens at its end of the matrix: for packets, so a stream is refused as the wrong kind (unix(7)) and disturbs nobody.
fn is_running(director: &Director) -> bool {
    match &director.matrix {
        MatrixAddress::Socket(path) => {
            let refused = UnixStream::connect(path).map_err(|error| error.raw_os_error());
            matches!(refused, Ok(_) | Err(Some(EPROTOTYPE)))
        }
        MatrixAddress::Tcp(address) => {
            TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        }
    }
}

const EPROTOTYPE: i32 = nix::errno::Errno::EPROTOTYPE as i32;

/// Its end of the matrix can be made.
pub(super) fn matrix(director: &Director) -> Finding {
    let point = point(director, "matrix");
    let path = match &director.matrix {
        MatrixAddress::Socket(path) => path,
        MatrixAddress::Tcp(address) => return listens(point, address),
    };
    let shown = path.display().to_string();
    if OsStr::as_bytes(path.as_os_str()).len() >= SOCKET_PATH_MAX {
        let mend = format!(
            "a socket's path has less than {SOCKET_PATH_MAX} bytes: use a directory with a shorter name, like /run/dyad"
        );
        return Finding::bad(point, shown, mend);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Finding::bad(
            point,
            format!("{} is no directory", parent.display()),
            format!("`mkdir -p {}`", parent.display()),
        );
    }
    if nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).is_err() {
        let found = format!("this user may not write to {}", parent.display());
        return Finding::bad(point, found, "run as the user that owns the directory, or name another one");
    }
    Finding::good(point, shown)
}

/// It can listen there, or a director does already.
fn listens(point: String, address: &SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(point, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let mend = format!(
                "unless it is the director itself, end what listens there (`ss -ltnp 'sport = :{}'`)",
                address.port()
            );
            Finding::warning(point, format!("{address} is in use"), mend)
        }
        Err(error) => Finding::bad(
            point,
            format!("{address}: {error}"),
            "name an address of this machine, that the other directors reach",
        ),
    }
}

/// Its control plane can listen, or is itself the one that does.
fn control(config: &Config, director: &Director) -> Finding {
    let point = point(director, "control");
    let address = director.control;
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(point, format!("{address} is free")),
        Err(error) => {
            let client = Client::new(&address.to_string(), config.token.as_ref().map(|token| token.as_str()));
            match client.get::<Status>("/v1/status") {
                Ok(status) if status.director == director.id.0 && status.array == config.array.to_string() => {
                    Finding::good(point, format!("{address}, where the running director listens"))
                }
                _ => Finding::bad(
                    point,
                    format!("{address}: {error}"),
                    format!(
                        "end what listens there (`ss -ltnp 'sport = :{}'`), or name another address",
                        address.port()
                    ),
                ),
            }
        }
    }
}

fn device(director: &Director, address: &DeviceAddress) -> Finding {
    let point = point(director, "device");
    let mend = || match address {
        DeviceAddress::Socket(_) => "start the shelf: `dyad shelf --config`".to_owned(),
        DeviceAddress::Pci(pci) => format!("`dyad device probe {pci}` tries it again"),
    };
    let reached = Function::open(address).map_err(|error| (error.to_string(), mend()));
    let tried = reached.and_then(try_device);
    match tried {
        Ok(found) => Finding::good(point, format!("{address}: {found}")),
        Err((found, mend)) => Finding::bad(point, format!("{address}: {found}"), mend),
    }
}

/// Drives it and lets it go.
fn try_device(function: Function) -> Result<String, (String, String)> {
    let executor = executor();
    let attached = block_on(&executor, || 0, Driver::attach(function, &executor.handle(), [0xd0; 16]));
    let driver = attached
        .map_err(|error| (error.to_string(), "see what the device's log pages say, or replace it".to_owned()))?;
    let info = driver.info();
    if !info.reservations {
        let found = "it has no reservations with persistence".to_owned();
        return Err((
            found,
            "a device that cannot be fenced cannot be in a pair: use dual-ported devices with reservations".to_owned(),
        ));
    }
    Ok(format!("{} MiB, dual-ported devices' reservations", info.blocks.bytes() >> 20))
}

fn executor() -> Executor {
    Executor::new(Limits { tasks: 64, timers: 256 }, Rc::new(BootClock))
}

/// Under the directory, or the nearest one above that is there.
fn free_bytes(directory: &Path) -> Option<u64> {
    let there: PathBuf = directory.ancestors().find(|path| path.is_dir())?.to_owned();
    let there = if there.as_os_str().is_empty() { PathBuf::from(".") } else { there };
    let stat = statvfs(&there).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
