//! Two directors in two network namespaces, TCP with a key between them and to their host, under load: processes are killed and
//! stopped, links are cut. Needs root.

use super::{dyad, stderr, stdout};

#[test]
fn directors_in_network_namespaces_lose_nothing() {
    let root = nix::unistd::geteuid().is_root();
    let ip = std::process::Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
    if !root || !ip {
        eprintln!("SKIPPED: network namespaces need root and `ip` (apt-get install iproute2)");
        return;
    }
    let output = dyad(&["bench", "takeover", "--rounds", "1", "--matrix", "network", "--json"]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    // The command fails if a write was lost; all faults happened.
    for fault in ["kill_home", "stop_partner", "kill_both", "cut_home", "cut_partner"] {
        assert!(stderr(&output).contains(&format!("{fault}: ")), "{fault}: {}", stderr(&output));
    }
    assert!(stdout(&output).contains("takeover.lost_writes"), "{}", stdout(&output));
}
