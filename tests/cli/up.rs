//! `dyad up` and the commands that ask its control planes, with real processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dyad_director::control::client::Client;
use dyad_director::control::view::{Device, Group, Status};
use dyad_director::layout::ArrayDir;
use dyad_director::trial::load::{Host, Order, Report};
use dyad_director::up::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{dyad, stderr, stdout};

/// Longer than anything here takes on an idle machine, ten times over.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `dyad up`. It is ended with the test.
struct Up {
    child: Child,
    lines: Receiver<String>,
    /// Where the control planes listen, by director.
    control: Vec<String>,
}

impl Up {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_with(directory, &[&["--control", "127.0.0.1:0"], arguments].concat())
    }

    fn start_with(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dyad"));
        command.arg("up").arg("--dir").arg(directory).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (said, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { child, lines, control: Vec::new() }
    }

    fn start_whole(directory: &Path, arguments: &[&str]) -> Self {
        let mut up = Self::start(directory, arguments);
        up.wait_for("the array is up");
        up
    }

    /// The next line that begins so.
    fn wait_for(&mut self, begin: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{begin}: {error}"));
            // Seen when the test fails.
            println!("{line}");
            if let Some((director, address)) = line.split_once(": http://") {
                let place: usize = director.strip_prefix("director ").unwrap().parse().unwrap();
                self.control.resize(self.control.len().max(place + 1), String::new());
                self.control[place] = address.trim_end_matches("/v1/status").to_owned();
            }
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    fn client(&self, director: usize) -> Client {
        Client::new(&self.control[director], None)
    }

    fn status(&self, director: usize) -> Status {
        self.client(director).get("/v1/status").unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Ctrl-C, and what it says at the end.
    fn stop(mut self) {
        self.signal(Signal::SIGINT);
        self.wait_for("stopped; everything is on media");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kill_director(process: u32) {
    kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGKILL).unwrap();
}

fn next(host: &Host) -> Report {
    match host.reports.recv_timeout(PATIENCE).expect("the host goes on") {
        Report::Failed(why) => panic!("{why}"),
        report => report,
    }
}

fn progress(host: &Host, thousands: u32) {
    for _ in 0..thousands {
        assert_eq!(next(host), Report::Progress);
    }
}

/// Writes that were acknowledged and never flushed survive a stop; a director that is killed comes back; the control planes answer under load.
#[test]
fn an_array_is_started_killed_stopped_and_started_again_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start_whole(dir.path(), &[]);
    let mut host = Host::start(&ArrayDir::new(dir.path()));
    assert!(matches!(next(&host), Report::Attached { .. }));
    host.order(Order::Load);
    progress(&host, 1);

    // Under full load every question is answered by the reactor itself.
    let served = up.status(0).commands;
    for _ in 0..100 {
        for director in 0..2 {
            assert!(up.status(director).responding);
        }
        assert!(up.client(0).text("/metrics").unwrap().ends_with("# EOF\n"));
    }
    progress(&host, 1);
    assert!(up.status(0).commands > served, "the load went on meanwhile");

    // A second one is refused.
    let path = dir.path().to_str().unwrap();
    let second = dyad(&["up", "--dir", path]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("is in use"), "{}", stderr(&second));

    let killed = up.status(0).process;
    kill_director(killed);
    up.wait_for("director 0 died");
    up.wait_for("the array is up");
    assert_ne!(up.status(0).process, killed);
    assert!(up.status(1).serves, "its partner went on");
    progress(&host, 1);

    // While the host still writes.
    up.stop();
    let up = Up::start_whole(dir.path(), &[]);
    progress(&host, 1);
    host.order(Order::Verify);
    let summary = loop {
        match next(&host) {
            Report::Ended(summary) => break summary,
            other => assert_eq!(other, Report::Progress),
        }
    };
    assert!(summary.verified_blocks > 0 && summary.writes > 0, "{summary:?}");
    assert_eq!(summary.lost_blocks, 0);
    up.stop();
}

#[test]
fn the_commands_show_the_array() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_whole(dir.path(), &[]);
    let control = up.control.join(",");
    let ask = |words: &[&str]| {
        let output = dyad(&[words, &["--control", &control]].concat());
        assert!(output.status.success(), "{words:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    };
    let status = ask(&["status"]);
    for word in ["array array: well", "director 0 serves", "RAID 1 over 2 devices, 2 live, optimal", "write pending"] {
        assert!(status.contains(word), "{word}: {status}");
    }
    let json: serde_json::Value = serde_json::from_str(&ask(&["status", "--json"])).unwrap();
    assert_eq!((json["well"].as_bool(), json["directors"].as_array().map(Vec::len)), (Some(true), Some(2)));
    let groups: Vec<Group> = serde_json::from_str(&ask(&["group", "list", "--json"])).unwrap();
    assert_eq!((groups.len(), groups[0].members.len()), (1, 2));
    let devices: Vec<Device> = serde_json::from_str(&ask(&["device", "list", "--json"])).unwrap();
    assert!(devices.len() == 2 && devices.iter().all(|device| device.member.as_deref() == Some("live")), "{devices:?}");
    assert!(ask(&["pair", "list"]).contains("director 0 serves"));
    let ports = ask(&["port", "list"]);
    assert!(ports.contains("director 1  vi") && ports.contains("0 connections"), "{ports}");
    assert!(ask(&["device", "list"]).contains("256 MiB"));
    assert!(ask(&["events"]).contains("both, epoch 1, serves"));

    let configuration = dir.path().join("dyad.toml");
    let doctor = dyad(&["doctor", "--json", "--config", configuration.to_str().unwrap()]);
    let findings: serde_json::Value = serde_json::from_str(&stdout(&doctor)).unwrap();
    let devices = findings["findings"].as_array().unwrap().iter().filter(|f| f["point"] == "director 0 devices");
    assert_eq!(
        devices.map(|f| f["verdict"].as_str()).collect::<Vec<_>>(),
        [Some("good")],
        "running ones are left alone"
    );
    assert!(ask(&["status"]).contains("well"), "and go on");
    up.stop();
    let gone = dyad(&["status", "--control", &control]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("is the array running?"), "{}", stderr(&gone));
}

/// 4 directors are two pairs, each with its own group and home.
#[test]
fn more_pairs_run_beside_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start_whole(dir.path(), &["--directors", "4"]);
    let homes = (0..4).filter(|director| up.status(*director).serves).count();
    assert_eq!(homes, 2);
    let pairs: Vec<_> = (0..4).map(|director| up.status(director).pair).collect();
    assert_eq!(pairs, [0, 0, 1, 1]);
    // One pair's loss is not the other's.
    kill_director(up.status(2).process);
    up.wait_for("director 2 died");
    assert!(up.status(0).serves && up.status(0).epoch == 1);
    up.wait_for("the array is up");
    up.stop();
}

/// An etcd with one member. It ends with the test.
struct Etcd(Child);

impl Etcd {
    /// `None`, loudly, if this machine has none.
    fn start(directory: &Path) -> Option<(Self, String)> {
        let [client, peer] = [(); 2].map(|()| {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", free.local_addr().unwrap())
        });
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(directory.join("etcd")).args(["--log-level", "error", "--name", "one"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]);
        match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => Some((Self(child), client)),
            Err(error) => {
                println!("SKIPPED: no etcd ({error}); `apt-get install etcd-server`");
                None
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the example for two nodes configures, on one: the registry in etcd, directors that meet over TCP with a secret.
#[test]
fn an_array_with_etcd_and_a_matrix_over_tcp_loses_a_director_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_etcd, endpoint)) = Etcd::start(dir.path()) else { return };
    let plan = Plan { matrix_port: Some(free_ports()), ..Plan::new(2, "127.0.0.1:0".parse().unwrap()) };
    let text = plan.text([5; 16]).replace("directory = \"registry\"", &format!("etcd = [\"{endpoint}\"]"));
    let text = format!("{text}\n[matrix]\nsecret = \"0123456789abcdef0123456789abcdef\"\n");
    let configuration = dir.path().join("two.toml");
    std::fs::write(&configuration, text).unwrap();
    // etcd takes a while until it answers.
    let doctor = || dyad(&["doctor", "--config", configuration.to_str().unwrap(), "--json"]);
    let answers = |output: &std::process::Output| stdout(output).contains("etcd answers at one of 1 endpoints");
    assert!((0..100).any(|_| answers(&doctor())), "{}", stdout(&doctor()));

    let mut up = Up::start_with(dir.path(), &["--config", configuration.to_str().unwrap()]);
    up.wait_for("the array is up");
    assert!(!dir.path().join("registry").exists(), "nothing is in a directory");
    kill_director(up.status(0).process);
    up.wait_for("director 0 died");
    up.wait_for("the array is up");
    assert!(up.status(1).serves);
    up.stop();
}

/// The first of two ports, one behind the other, that nobody has now.
fn free_ports() -> u16 {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    let first = |_| {
        let first = free(0)?.local_addr().ok()?.port();
        free(first.checked_add(1)?).map(|_| first)
    };
    (0..100).find_map(first).expect("two free ports")
}

#[test]
fn starts_that_cannot_be_say_why_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], word: &str| {
        let output = dyad(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    };
    let array = dir.path().join("array");
    let path = array.to_str().unwrap();

    // A port in use.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["up", "--dir", path, "--control", &address], &format!("cannot listen at {address}"));
    let configuration = array.join("dyad.toml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    refused(&["doctor", "--config", configuration.to_str().unwrap(), "--json"], "");
    drop(taken);

    // Unknown keys, with the line.
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, format!("{text}\ncontroll = 1\n")).unwrap();
    let (line, bad) = (text.lines().count() + 2, bad.to_str().unwrap());
    for command in [
        &["up", "--dir", path, "--config", bad][..],
        &["director", "--config", bad, "--id", "0"],
        &["shelf", "--config", bad],
        &["doctor", "--config", bad],
        &["status", "--config", bad],
    ] {
        refused(command, &format!("bad.toml:{line}: "));
    }
    refused(&["director", "--config", configuration.to_str().unwrap(), "--id", "9"], "it has 0, 1");

    // Another array's directory, and one of a newer version.
    let other = dir.path().join("other.toml");
    let uuid = text.lines().find_map(|line| line.strip_prefix("uuid = \"")).unwrap().trim_end_matches('"');
    std::fs::write(&other, text.replace(uuid, &"7".repeat(32))).unwrap();
    refused(&["up", "--dir", path, "--config", other.to_str().unwrap()], "belongs to the array");
    let mark = array.join("array");
    std::fs::write(&mark, std::fs::read_to_string(&mark).unwrap().replace("directory 1", "directory 9")).unwrap();
    refused(&["up", "--dir", path], "has format 9");
    refused(&["up", "--dir", path, "--directors", "4"], "has format 9");
    let letters = dir.path().join("letters");
    std::fs::create_dir(&letters).unwrap();
    std::fs::write(letters.join("letter"), "dear").unwrap();
    refused(&["up", "--dir", letters.to_str().unwrap()], "not empty and no array's directory");
}

/// PROTOCOLS 2.3: a registry that was lost or restored is refused, and nothing is changed.
#[test]
fn a_registry_that_is_older_than_the_devices_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Up::start_whole(dir.path(), &[]).stop();
    std::fs::rename(dir.path().join("registry"), dir.path().join("kept")).unwrap();
    let refused = dyad(&["up", "--dir", dir.path().to_str().unwrap(), "--control", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("the registry was restored or belongs to another array"), "{}", stderr(&refused));
    std::fs::remove_dir_all(dir.path().join("registry")).unwrap();
    std::fs::rename(dir.path().join("kept"), dir.path().join("registry")).unwrap();
    Up::start_whole(dir.path(), &[]).stop();
}

/// DESIGN 8: an idle director takes less than 2 % of a core, and less than 64 MiB beyond its cache, the mirror and the guard tables.
#[test]
fn an_idle_director_costs_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_whole(dir.path(), &[]);
    let processes = [0, 1].map(|director| up.status(director).process);
    let before = processes.map(cpu_ticks);
    let seconds = 10;
    let until = Duration::from_secs(seconds);
    let (_never, nothing) = channel::<()>();
    assert!(nothing.recv_timeout(until).is_err(), "it is only time that passes");
    for (place, process) in processes.into_iter().enumerate() {
        let used = cpu_ticks(process) - before[place];
        let per_core = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
        let percent = used * 100 / (u64::try_from(per_core).unwrap() * seconds);
        // 16 MiB of cache, 4 of mirror, 1 MiB of guards per GiB.
        let beyond = resident_bytes(process).saturating_sub((16 + 4 + 1) << 20);
        println!("director {place}: {used} ticks in {seconds} s, {} MiB beyond what is configured", beyond >> 20);
        // Without optimisation the checksums of the patrol alone cost more than that.
        let limit = if env!("CARGO_BIN_EXE_dyad").contains("/debug/") { 6 } else { 2 };
        assert!(percent < limit, "director {place} used {percent} % of a core");
        assert!(beyond < 64 << 20, "director {place} has {beyond} bytes beyond what is configured");
    }
    up.stop();
}

/// User and system time (proc_pid_stat(5)).
fn cpu_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
