//! What an array needs of the host: memory that is there and may be locked, cores, a clock that does not stand still.

use std::fs;

use super::Finding;
use crate::config::{Config, DeviceAddress, Director};

/// What a director takes beside cache and guards (DESIGN 8: at most 64 MiB).
const BESIDE: u64 = 64 << 20;

/// What was read of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Bytes that can be had without swapping.
    pub available: Option<u64>,
    /// Huge pages that are free.
    pub huge_free: u64,
    /// Bytes that this process may lock; `None`: as many as it likes.
    pub lockable: Option<u64>,
    /// Cores that this process may use.
    pub cores: usize,
    /// It is a virtual machine.
    pub virtual_machine: bool,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let read = |name| fs::read_to_string(name).unwrap_or_default();
        Self::parse(
            &read("/proc/meminfo"),
            &read("/proc/self/limits"),
            &read("/proc/self/status"),
            &read("/proc/cpuinfo"),
        )
    }

    /// From the text of `/proc/meminfo`, `/proc/self/limits`, `/proc/self/status` (proc(5)) and `/proc/cpuinfo`.
    pub(super) fn parse(meminfo: &str, limits: &str, status: &str, cpuinfo: &str) -> Self {
        let number = |name: &str| -> Option<u64> {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
        // "unlimited" is no number.
        let limit: Option<u64> = limit.and_then(|limit| limit.split_whitespace().next()?.parse().ok());
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
        let capabilities = capabilities.and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
        let may_lock = capabilities >> CAP_IPC_LOCK & 1 == 1;
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or("");
        Self {
            available: number("MemAvailable").and_then(|kib| kib.checked_mul(1024)),
            huge_free: number("HugePages_Free").unwrap_or(0),
            lockable: limit.filter(|_| !may_lock),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor"),
        }
    }
}

/// Bit of `CAP_IPC_LOCK` (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// What can be said without a configuration.
pub(super) fn any(host: &Host) -> Vec<Finding> {
    let available = host.available.map_or("unknown".to_owned(), mib);
    vec![
        Finding::good("memory", format!("{available} available, {} huge pages free (none are needed)", host.huge_free)),
        lock_limit(host, 0, false),
        Finding::good("cores", format!("{}", host.cores)),
        clock(host),
    ]
}

/// What these directors of an array need.
pub(super) fn array(host: &Host, config: &Config, directors: &[&Director]) -> Vec<Finding> {
    let needed: u64 = directors.iter().map(|director| memory_of(config, director)).sum();
    let pci =
        directors.iter().flat_map(|director| &director.devices).any(|device| matches!(device, DeviceAddress::Pci(_)));
    let devices = directors.iter().map(|director| director.devices.len() as u64).max().unwrap_or(0);
    let lock = if pci { needed.saturating_mul(devices + 1) } else { needed };
    vec![memory(host, needed), lock_limit(host, lock, pci), cores(host, config, directors), clock(host)]
}

/// The cache, what the partner writes to, and what a director takes besides.
fn memory_of(config: &Config, director: &Director) -> u64 {
    let pair = config.pair(director);
    pair.cache.bytes() + pair.mirror.bytes() + BESIDE
}

fn memory(host: &Host, needed: u64) -> Finding {
    let Some(available) = host.available else {
        return Finding::warning(
            "memory",
            "/proc/meminfo does not say how much there is",
            format!("{} are needed", mib(needed)),
        );
    };
    let found = format!(
        "{} needed, and 1 MiB per GiB of devices; {} available, {} huge pages free (none are needed)",
        mib(needed),
        mib(available),
        host.huge_free
    );
    if available >= needed {
        Finding::good("memory", found)
    } else {
        Finding::bad("memory", found, "make `cache` and `mirror` of [[pairs]] smaller, or end other programs")
    }
}

fn lock_limit(host: &Host, needed: u64, pci: bool) -> Finding {
    let point = "locked memory";
    match host.lockable {
        None => Finding::good(point, "no limit"),
        Some(limit) if limit >= needed => {
            Finding::good(point, format!("{} needed, {} allowed", mib(needed), mib(limit)))
        }
        Some(limit) => {
            let found = format!("{} needed, {} allowed", mib(needed), mib(limit));
            let mend = "raise the limit: `LimitMEMLOCK=infinity` in the unit, or `ulimit -l unlimited` as root";
            if pci {
                Finding::bad(point, found, format!("devices write to memory that must stay where it is: {mend}"))
            } else {
                Finding::warning(point, found, format!("memory may be swapped out, which is slow: {mend}"))
            }
        }
    }
}

fn cores(host: &Host, config: &Config, directors: &[&Director]) -> Finding {
    let reactors = reactors(config);
    let found = format!("{} for {reactors} reactors", host.cores);
    let beyond = directors.iter().filter_map(|director| director.core).find(|core| *core >= host.cores);
    if let Some(core) = beyond {
        return Finding::bad(
            "cores",
            found,
            format!("there is no core {core}: they count from 0; change `core` of the director"),
        );
    }
    if reactors <= host.cores {
        Finding::good("cores", found)
    } else {
        Finding::warning("cores", found, "reactors share cores and never spin: latency is higher")
    }
}

/// Reactors on this host: its directors, the shelf's, and a host's.
#[must_use]
pub(crate) fn reactors(config: &Config) -> usize {
    config.directors.len() + usize::from(config.shelf.is_some()) + 1
}

fn clock(host: &Host) -> Finding {
    if host.virtual_machine {
        let mend = "never pause, snapshot or migrate it while it runs: its clock would stand still, and two directors could both believe \
                    that they hold a lease";
        Finding::warning("clock", "this is a virtual machine", mend)
    } else {
        Finding::good("clock", "counts on, also while the machine sleeps")
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
