//! The limit on locked memory. Memory that a device reaches stays where it is, and the kernel counts it against
//! `RLIMIT_MEMLOCK`, once for every function that it is mapped for (vfio, `vfio_iommu_type1.c`), unless the process
//! may lock what it likes (`CAP_IPC_LOCK`; capabilities(7)).

use std::fs;

/// Bit of `CAP_IPC_LOCK`.
const CAP_IPC_LOCK: u32 = 14;

/// Bytes that this process may still have locked; `None` if there is no limit.
pub(super) fn lockable_bytes() -> Option<u64> {
    let read = |name| fs::read_to_string(name).unwrap_or_default();
    lockable(&read("/proc/self/limits"), &read("/proc/self/status"))
}

/// The same, from the text of `/proc/self/limits` and `/proc/self/status` (proc_pid_limits(5), proc_pid_status(5)).
fn lockable(limits: &str, status: &str) -> Option<u64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let capabilities = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return None;
    }
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    // "unlimited" is no number.
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    let locked_kib: u64 = field("VmLck:").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(locked_kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max open files            1024                 4096                 files     \n\
        Max locked memory         8388608              8388608              bytes     \n";

    #[test]
    fn what_is_locked_already_counts() {
        let status = "Name:\tdyad\nVmLck:\t    1024 kB\nCapEff:\t0000000000000000\n";
        assert_eq!(lockable(LIMITS, status), Some(7 << 20));
        assert_eq!(lockable(LIMITS, ""), Some(8 << 20));
        assert_eq!(lockable(LIMITS, "VmLck:\t 9999999 kB\n"), Some(0));
    }

    #[test]
    fn unlimited_and_privileged_processes_have_no_limit() {
        assert_eq!(lockable(&LIMITS.replace("8388608", "unlimited"), ""), None);
        assert_eq!(lockable(LIMITS, "CapEff:\t000001ffffffffff\n"), None);
        assert_eq!(lockable(LIMITS, "CapEff:\t0000000000004000\n"), None);
        assert_eq!(lockable(LIMITS, "CapEff:\t0000000000008000\n"), Some(8 << 20));
    }
}
