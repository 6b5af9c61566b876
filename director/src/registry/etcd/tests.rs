//! A cluster conforms, calm and with members killed and stopped; members that answer nonsense, or nothing, cost time and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;
use crate::registry::conformance::{World, block_on, conforms, key, won};

/// Ten times what a member needs for an answer on a machine that has other things to do.
const PATIENT: Duration = Duration::from_secs(20);
/// Long enough for a local answer, short enough to find out that there is none.
const IMPATIENT: Duration = Duration::from_millis(500);

fn client(endpoints: &[String], array: &str, timeout: Duration) -> EtcdRegistry {
    let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().expect("an endpoint")).collect();
    EtcdRegistry::start(&EtcdConfig { endpoints, array: key(array), timeout }).expect("a client")
}

#[test]
fn endpoints_are_plain_addresses() {
    for good in ["http://etcd-1:2379", "http://127.0.0.1:1", "http://[::1]:2379"] {
        assert_eq!(good.parse::<Endpoint>().expect("an endpoint").to_string(), good);
    }
    assert_eq!("http://a:1/".parse::<Endpoint>().expect("an endpoint").to_string(), "http://a:1");
    for bad in ["https://etcd-1:2379", "etcd-1:2379", ""] {
        assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Scheme), "{bad:?}");
    }
    for bad in [
        "http://",
        "http://a",
        "http://:1",
        "http://a:0",
        "http://a:65536",
        "http://a:1/x",
        "http://a b:1",
        "http://a@b:1",
        "http://::1:1",
    ] {
        assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Authority), "{bad:?}");
    }
    let nobody = EtcdConfig { endpoints: vec![], array: key("a"), timeout: PATIENT };
    assert!(matches!(EtcdRegistry::start(&nobody), Err(StartError::NoEndpoints)));
}

/// Answers every request with the same bytes, in a thread that ends with the test's process. Empty: reads and never answers.
fn impostor(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    thread::spawn(move || {
        let mut silent: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            if status.is_empty() {
                silent.push(stream);
            } else {
                let length = body.len();
                let _ =
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            }
        }
    });
    address
}

/// A port at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

const EMPTY: &str = r#"{"header":{"cluster_id":"9","member_id":"1","revision":"12","raft_term":"3"}}"#;
const OTHER_CLUSTER: &str = r#"{"header":{"cluster_id":"8","member_id":"1","revision":"12","raft_term":"3"}}"#;

#[test]
fn what_is_not_an_answer_is_unknown() {
    for (status, body) in [
        ("", ""),
        ("200 OK", "{}"),
        ("200 OK", "<html>"),
        ("404 Not Found", "404 page not found"),
        ("503 Service Unavailable", r#"{"error":"etcdserver: no leader","code":14}"#),
        ("307 Temporary Redirect", ""),
    ] {
        let registry = client(&[impostor(status, body)], "a", IMPATIENT);
        assert_eq!(block_on(registry.get(&key("pair"))), Err(RegistryError::Unknown), "{status} {body}");
        let changed = block_on(registry.compare_and_swap(&key("pair"), None, b"x"));
        assert_eq!(changed, Err(RegistryError::Unknown), "{status} {body}");
    }
}

#[test]
fn refusals_are_certain() {
    let full = r#"{"error":"etcdserver: mvcc: database space exceeded","code":8}"#;
    let denied = r#"{"error":"etcdserver: invalid auth token","code":16}"#;
    for (body, error) in
        [(full, RegistryError::Full), (denied, RegistryError::Storage(io::ErrorKind::PermissionDenied))]
    {
        let registry = client(&[impostor("400 Bad Request", body)], "a", PATIENT);
        assert_eq!(block_on(registry.compare_and_swap(&key("pair"), None, b"x")), Err(error));
    }
}

#[test]
fn another_member_is_asked_if_that_is_safe() {
    for bad in [nobody(), impostor("200 OK", "{}"), impostor("", "")] {
        let registry = client(&[bad, impostor("200 OK", EMPTY)], "a", IMPATIENT);
        assert_eq!(block_on(registry.get(&key("pair"))), Ok(None));
        // The one that answered is asked first from now on.
        assert_eq!(block_on(registry.get(&key("pair"))), Ok(None));
    }
}

#[test]
fn a_member_of_another_cluster_is_not_believed() {
    let registry = client(&[impostor("200 OK", EMPTY), impostor("200 OK", OTHER_CLUSTER)], "a", PATIENT);
    assert_eq!(block_on(registry.get(&key("pair"))), Ok(None));
    // The first one's answer to a change is nonsense; the second one does not even get the change.
    assert_eq!(block_on(registry.compare_and_swap(&key("pair"), None, b"x")), Err(RegistryError::Unknown));
    let stranger = client(&[impostor("200 OK", EMPTY), nobody()], "a", PATIENT);
    assert_eq!(block_on(stranger.get(&key("pair"))), Ok(None));
}

/// One process of the cluster.
struct Member {
    process: Child,
    number: usize,
}

/// Three members on this machine.
struct EtcdCluster {
    directory: TempDir,
    members: Vec<Member>,
    clients: Vec<String>,
    peers: Vec<String>,
    arrays: AtomicU64,
}

impl EtcdCluster {
    /// `None`, and says so, if etcd is not installed.
    fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        // Held until all are known, so that no port is named twice.
        let ports: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let urls = |ports: &[TcpListener]| {
            ports.iter().map(|port| format!("http://{}", port.local_addr().expect("bound"))).collect::<Vec<_>>()
        };
        let (clients, peers) = (urls(&ports[..3]), urls(&ports[3..]));
        drop(ports);
        let directory = TempDir::new().expect("a directory");
        let mut cluster = Self { directory, members: vec![], clients, peers, arrays: AtomicU64::new(0) };
        cluster.members = (0..3).map(|number| cluster.member(number)).collect();
        let registry = client(&cluster.clients, "ready", IMPATIENT);
        while block_on(registry.get(&key("ready"))).is_err() {
            for member in &mut cluster.members {
                assert_eq!(member.process.try_wait().expect("a child"), None, "a member does not run");
            }
            thread::yield_now();
        }
        Some(cluster)
    }

    fn member(&self, number: usize) -> Member {
        let (client, peer) = (&self.clients[number], &self.peers[number]);
        let cluster: Vec<_> = self.peers.iter().enumerate().map(|(i, peer)| format!("m{i}={peer}")).collect();
        let log = File::create(self.directory.path().join(format!("m{number}.log"))).expect("a log");
        let process = Command::new("etcd")
            .args(["--name", &format!("m{number}"), "--initial-cluster", &cluster.join(",")])
            .arg("--data-dir")
            .arg(self.directory.path().join(format!("m{number}")))
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        Member { process, number }
    }

    fn signal(&self, member: usize, signal: Signal) {
        let id = self.members[member].process.id();
        kill(Pid::from_raw(i32::try_from(id).expect("a process id")), signal).expect("it runs");
    }

    fn restart(&mut self, member: usize) {
        self.signal(member, Signal::SIGKILL);
        self.members[member].process.wait().expect("it was killed");
        let number = self.members[member].number;
        self.members[member] = self.member(number);
    }

    /// An array that nobody has used.
    fn array(&self) -> String {
        format!("array-{}", self.arrays.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

struct CalmWorld<'a> {
    cluster: &'a EtcdCluster,
    array: String,
    clients: usize,
}

impl World for CalmWorld<'_> {
    type Client = EtcdRegistry;

    fn client(&mut self) -> EtcdRegistry {
        // Each client begins with another member.
        let mut endpoints = self.cluster.clients.clone();
        endpoints.rotate_left(self.clients % 3);
        self.clients += 1;
        client(&endpoints, &self.array, PATIENT)
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        block_on(future)
    }
}

#[test]
fn a_cluster_conforms() {
    let Some(cluster) = EtcdCluster::start() else { return };
    conforms(|| CalmWorld { cluster: &cluster, array: cluster.array(), clients: 0 });
    let (one, other) = (client(&cluster.clients, "one", PATIENT), client(&cluster.clients, "other", PATIENT));
    won(block_on(one.compare_and_swap(&key("pair"), None, b"1")));
    assert_eq!(block_on(other.get(&key("pair"))), Ok(None), "arrays are apart");
}

/// Each thread adds one to its own counter in a common record, over and over; whatever it was told it had won must be there.
#[test]
fn members_that_are_killed_or_stopped_lose_nothing() {
    const THREADS: usize = 2;
    const FAULTS: usize = 6;
    /// Changes between two faults.
    const BETWEEN: u64 = 5;
    let Some(mut cluster) = EtcdCluster::start() else { return };
    let (changes, over) = (AtomicU64::new(0), AtomicU64::new(0));
    let endpoints = cluster.clients.clone();
    let add = |mine: usize| {
        let mut endpoints = endpoints.clone();
        endpoints.rotate_left(mine);
        let (registry, key) = (client(&endpoints, "counters", IMPATIENT), key("counters"));
        let mut won = 0_u64;
        while over.load(Ordering::Relaxed) == 0 {
            let Ok(current) = block_on(registry.get(&key)) else { continue };
            let mut counters = current.as_ref().map_or(vec![0; THREADS * 8], |current| current.value.clone());
            let own = &mut counters[mine * 8..][..8];
            let count = u64::from_le_bytes((&*own).try_into().expect("eight"));
            // One change of unknown outcome may have been made.
            assert!(count == won || count == won + 1, "{count} is there, {won} were won");
            won = count;
            own.copy_from_slice(&(count + 1).to_le_bytes());
            let revision = current.map(|current| current.revision);
            if let Ok(Cas::Won(_)) = block_on(registry.compare_and_swap(&key, revision, &counters)) {
                won += 1;
                changes.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let adders: Vec<_> = (0..THREADS).map(|mine| scope.spawn(move || add(mine))).collect();
        let go_on = || {
            let until = changes.load(Ordering::Relaxed) + BETWEEN;
            while changes.load(Ordering::Relaxed) < until {
                if adders.iter().any(thread::ScopedJoinHandle::is_finished) {
                    over.store(1, Ordering::Relaxed);
                    panic!("a change was lost, or found that nobody had won");
                }
                thread::yield_now();
            }
        };
        for fault in 0..FAULTS {
            let member = fault % 3;
            go_on();
            if fault % 2 == 0 {
                cluster.signal(member, Signal::SIGSTOP);
                go_on();
                cluster.signal(member, Signal::SIGCONT);
            } else {
                cluster.restart(member);
            }
        }
        go_on();
        over.store(1, Ordering::Relaxed);
        for adder in adders {
            adder.join().expect("nothing was lost");
        }
    });
}
