//! The command as a user types it: what it says to good and to bad arguments.

#[path = "cli/network.rs"]
mod network;
#[path = "cli/nvme_tcp.rs"]
mod nvme_tcp;

use std::process::{Command, Output};

#[path = "cli/up.rs"]
mod up;

fn dyad(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dyad")).args(arguments).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_the_commands_and_nothing_is_an_error() {
    let help = dyad(&["--help"]);
    assert!(help.status.success());
    for command in [
        "demo", "up", "status", "doctor", "sim", "bench", "device", "group", "pair", "port", "events", "director",
        "shelf",
    ] {
        assert!(stdout(&help).contains(command), "{}", stdout(&help));
    }
    let nothing = dyad(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(stderr(&nothing).contains("Usage"), "{}", stderr(&nothing));
}

#[test]
fn bad_arguments_say_what_would_be_good() {
    for (arguments, word) in [
        (&["dmo"][..], "demo"),
        (&["sim", "--seeds", "0"], "--seeds"),
        (&["sim", "--seed", "x"], "--seed"),
        (&["sim", "--faults", "flood"], "crash"),
        (&["shelf", "--dir", "x", "--size", "7"], "MiB"),
        (&["bench", "matrx"], "matrix"),
        (&["up", "--directors", "3"], "2, 4 or 8"),
        (&["up", "--config", "x", "--directors", "2"], "--directors"),
        (&["up", "--control", "nowhere"], "--control"),
        (&["director", "--config", "x"], "--id"),
        (&["director", "--id", "0"], "--config"),
        (&["status", "--watch", "--json"], "--json"),
        (&["status", "--control", "a:1", "--config", "x"], "--config"),
        (&["group"], "list"),
        (&["pair", "lst"], "list"),
    ] {
        let output = dyad(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_director_without_its_shelf_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dyad_director::up::Plan::new(2, "127.0.0.1:0".parse().unwrap());
    let path = dir.path().join("dyad.toml");
    std::fs::write(&path, plan.text([1; 16])).unwrap();
    let output = dyad(&["director", "--config", path.to_str().unwrap(), "--id", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is the shelf running?"), "{}", stderr(&output));
}

#[test]
fn devices_that_are_none_say_what_is_wrong_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::write(&small, [0; 100]).unwrap();
    let missing = dir.path().join("missing");
    for (path, word) in [
        (missing.as_path(), "No such file"),
        (dir.path(), "neither a file nor a block device"),
        (&small, "truncate -s"),
    ] {
        let output = dyad(&["device", "probe", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

#[test]
fn pci_addresses_are_told_from_paths() {
    // Nobody has a bus of that number in that domain.
    let output = dyad(&["device", "probe", "fffe:ff:1f.7"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("fffe:ff:1f.7: no PCI device is there; `lspci"), "{}", stderr(&output));
    for command in ["bind", "unbind"] {
        let output = dyad(&["device", command, "fffe:ff:1f.7"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no PCI device is there"), "{}", stderr(&output));
        let output = dyad(&["device", command, "/dev/nvme0n1"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("a PCI address is like 0000:01:00.0"), "{}", stderr(&output));
        let help = dyad(&["device", command, "--help"]);
        assert!(help.status.success() && stdout(&help).contains("Needs root"), "{}", stdout(&help));
    }
}

/// Ends with the test.
struct Shelf(std::process::Child);

impl Drop for Shelf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_shelf_serves_devices_that_can_be_probed_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_dyad"))
        .args(["shelf", "--dir", path, "--devices", "1", "--size", "8MiB", "--files"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let _shelf = Shelf(child);
    let said: Vec<_> =
        std::io::BufRead::lines(output).map_while(Result::ok).take_while(|line| line != "ready").collect();
    assert!(said.iter().any(|line| line.ends_with("disk0.port1.sock")), "{said:?}");

    let port = dir.path().join("disk0.port1.sock");
    let probe = dyad(&["device", "probe", port.to_str().unwrap()]);
    assert!(probe.status.success(), "{}", stderr(&probe));
    assert!(stdout(&probe).contains("8 MiB") && stdout(&probe).contains("reservations     yes"), "{}", stdout(&probe));
    let bench = dyad(&["device", "bench", port.to_str().unwrap(), "--reads", "100"]);
    assert!(bench.status.success() && stdout(&bench).contains("per second"), "{}", stderr(&bench));
    let second = dyad(&["shelf", "--dir", path, "--devices", "1", "--size", "8MiB"]);
    assert!(stderr(&second).contains("another shelf serves this device"), "{}", stderr(&second));
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    let traces = [0, 0].map(|_| {
        let run = dyad(&["sim", "--seed", "3", "--operations", "200"]);
        assert!(run.status.success(), "{}", stdout(&run));
        stdout(&run).lines().find(|line| line.contains("trace ")).map(str::to_owned)
    });
    assert!(traces[0].is_some());
    assert_eq!(traces[0], traces[1]);
}
