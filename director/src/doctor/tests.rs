//! What is bad is found, and each finding says how to mend it.

use std::path::Path;

use super::*;
use crate::up::Plan;

const MEMINFO: &str = "MemTotal:       16000000 kB\nMemAvailable:    1024000 kB\nHugePages_Free:      3\n";
const LIMITS: &str = "Limit   Soft Limit   Hard Limit   Units\nMax locked memory         8388608              8388608              bytes\n";

fn config() -> Config {
    let text = Plan::new(2, "127.0.0.1:0".parse().unwrap()).text([1; 16]);
    Config::parse(&text, Path::new("/nowhere/dyad.toml")).unwrap()
}

fn verdict(findings: &[Finding], point: &str) -> Verdict {
    findings.iter().find(|finding| finding.point == point).unwrap_or_else(|| panic!("{point}")).verdict
}

#[test]
fn the_machine_is_read_as_it_is() {
    let host = Host::parse(MEMINFO, LIMITS, "CapEff:\t0000000000000000\n", "flags\t\t: fpu hypervisor sse\n");
    assert_eq!((host.available, host.huge_free, host.lockable), (Some(1_024_000 << 10), 3, Some(8 << 20)));
    assert!(host.virtual_machine);
    let root = Host::parse("", LIMITS, "CapEff:\t000001ffffffffff\n", "flags\t\t: fpu\n");
    assert_eq!((root.available, root.lockable, root.virtual_machine), (None, None, false));
}

#[test]
fn too_little_memory_is_bad_and_a_low_lock_limit_is_only_slow_without_vfio() {
    let config = config();
    let directors: Vec<_> = config.directors.iter().collect();
    let mut host = Host { available: Some(1 << 30), lockable: Some(8 << 20), cores: 64, ..Host::default() };
    let findings = machine::array(&host, &config, &directors);
    assert_eq!(verdict(&findings, "memory"), Verdict::Good);
    assert_eq!(verdict(&findings, "locked memory"), Verdict::Warning);
    assert_eq!(verdict(&findings, "cores"), Verdict::Good);
    host.available = Some(1 << 20);
    host.cores = 1;
    let findings = machine::array(&host, &config, &directors);
    assert_eq!((verdict(&findings, "memory"), verdict(&findings, "cores")), (Verdict::Bad, Verdict::Warning));

    let text = Plan::new(2, "127.0.0.1:0".parse().unwrap()).text([1; 16]);
    let pci = (0..4).fold(text, |text, n| {
        text.replace(&format!("shelf/disk{}.port{}.sock", n / 2, n % 2), &format!("0000:0{n}:00.0"))
    });
    let config = Config::parse(&pci, Path::new("/nowhere/dyad.toml")).unwrap();
    let directors: Vec<_> = config.directors.iter().collect();
    let findings = machine::array(&host, &config, &directors);
    let lock = findings.iter().find(|finding| finding.point == "locked memory").unwrap();
    assert_eq!(lock.verdict, Verdict::Bad);
    assert!(lock.mend.as_ref().unwrap().contains("LimitMEMLOCK"), "{lock}");
}

#[test]
fn parts_that_are_missing_are_bad_and_say_how_to_mend_it() {
    let findings = examine(Some(&config()));
    for point in ["director 0 matrix", "director 0 device", "director 1 device"] {
        assert_eq!(verdict(&findings, point), Verdict::Bad, "{point}");
    }
    assert!(findings.iter().all(|finding| finding.verdict == Verdict::Good || finding.mend.is_some()));
}

#[test]
fn long_socket_paths_and_ports_in_use_are_found() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = Plan::new(2, "127.0.0.1:0".parse().unwrap()).text([1; 16]);
    let text = text.replacen("127.0.0.1:0", &taken.local_addr().unwrap().to_string(), 1);
    let deep = format!("/{}/dyad.toml", "x".repeat(100));
    let config = Config::parse(&text, Path::new(&deep)).unwrap();
    let findings = examine(Some(&config));
    assert_eq!(verdict(&findings, "director 0 control"), Verdict::Bad);
    assert_eq!(verdict(&findings, "director 1 control"), Verdict::Good);
    let matrix = findings.iter().find(|finding| finding.point == "director 0 matrix").unwrap();
    assert!(matrix.mend.as_ref().unwrap().contains("108"), "{matrix}");
}
