//! The directory conforms, whatever crashes, damage and hanging processes leave in it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;
use crate::registry::conformance::{World, block_on, conforms, key, won};
use crate::registry::{Corruption, Damage};

/// Each client has its own thread and no memory in common with the others, like another process.
struct OnDisk(TempDir);

impl OnDisk {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn open(&self) -> FileRegistry {
        FileRegistry::open(self.0.path()).expect("open")
    }

    fn of_key(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.of_key(name)).expect("list");
        let mut names: Vec<_> = entries.map(|e| e.expect("entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }
}

impl World for OnDisk {
    type Client = FileRegistry;

    fn client(&mut self) -> FileRegistry {
        self.open()
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        block_on(future)
    }
}

#[test]
fn it_conforms() {
    conforms(OnDisk::new);
}

#[test]
fn values_outlive_their_clients_and_old_revisions_are_tidied_up() {
    let disk = OnDisk::new();
    let key = key("pair");
    let mut newest = None;
    for i in 0..20_u8 {
        newest = Some(won(block_on(disk.open().compare_and_swap(&key, newest, &[i]))));
    }
    let current = block_on(disk.open().get(&key)).expect("get").expect("a value");
    assert_eq!((Some(current.revision), current.value), (newest, vec![19]));
    let kept: Vec<_> = (17..=20).map(|revision| format!("{revision:020}")).collect();
    assert_eq!(disk.names("pair"), kept);
}

#[test]
fn what_a_crash_leaves_behind_is_no_value_and_goes_away() {
    let disk = OnDisk::new();
    let key = key("pair");
    let first = won(block_on(disk.open().compare_and_swap(&key, None, b"1")));
    for garbage in ["tmp-1-0", "tmp-1-1", "notes"] {
        fs::write(disk.of_key("pair").join(garbage), b"half a rec").expect("write");
    }
    fs::create_dir(disk.of_key("made-by-a-crash")).expect("mkdir");
    let registry = disk.open();
    assert_eq!(disk.names("pair"), [&format!("{:020}", 1), "notes"]);
    assert_eq!(block_on(registry.get(&key)).expect("get").expect("a value").value, b"1");
    won(block_on(registry.compare_and_swap(&key, Some(first), b"2")));
    won(block_on(registry.compare_and_swap(&crate::registry::conformance::key("made-by-a-crash"), None, b"1")));
}

#[test]
fn a_damaged_value_is_an_error_and_nothing_older_is_taken_for_it() {
    let disk = OnDisk::new();
    let key = key("pair");
    let registry = disk.open();
    let first = won(block_on(registry.compare_and_swap(&key, None, b"1")));
    let second = won(block_on(registry.compare_and_swap(&key, Some(first), b"2")));
    let path = disk.of_key("pair").join(format!("{:020}", second.number()));
    let good = fs::read(&path).expect("read");
    let flipped: Vec<u8> = good.iter().enumerate().map(|(i, b)| if i + 1 == good.len() { b ^ 1 } else { *b }).collect();
    for (bytes, why) in [
        (flipped, Corruption::Checksum),
        (good[..good.len() - 1].to_vec(), Corruption::Length),
        (vec![], Corruption::Magic),
        (vec![0; 1 << 20], Corruption::Magic),
    ] {
        fs::write(&path, &bytes).expect("write");
        let damaged = RegistryError::Corrupt(Damage { revision: second, why });
        assert_eq!(block_on(registry.get(&key)), Err(damaged));
        for expected in [None, Some(first), Some(second)] {
            assert_eq!(block_on(registry.compare_and_swap(&key, expected, b"3")), Err(damaged));
        }
        assert_eq!(fs::read(&path).expect("read"), bytes, "nothing was changed");
    }
    fs::write(&path, &good).expect("restore");
    won(block_on(registry.compare_and_swap(&key, Some(second), b"3")));
}

/// A process slept between its read and its link, until the number that it links had been there and was removed.
#[test]
fn a_late_link_under_an_old_number_wins_nothing() {
    let disk = OnDisk::new();
    let (registry, key) = (disk.open(), key("pair"));
    let mut newest = None;
    for i in 0..10_u8 {
        newest = Some(won(block_on(registry.compare_and_swap(&key, newest, &[i]))));
    }
    let old = Revision::new(3).expect("not zero");
    let path = disk.of_key("pair").join(format!("{:020}", old.number()));
    fs::write(&path, record::encode(&key, old, b"late")).expect("write");
    assert_eq!(store::settle(&disk.of_key("pair"), old), Err(RegistryError::Unknown));
    assert_eq!(block_on(registry.get(&key)).expect("get").map(|v| v.revision), newest);
    won(block_on(registry.compare_and_swap(&key, newest, b"next")));
    assert!(!path.exists(), "the next change tidies it up");
}

#[test]
fn a_directory_that_is_not_usable_is_named() {
    let disk = OnDisk::new();
    let file = disk.0.path().join("file");
    fs::write(&file, b"").expect("write");
    let error = FileRegistry::open(&file.join("registry")).expect_err("a file is in the way");
    assert!(error.to_string().contains("file/registry"), "{error}");
    let deep = disk.0.path().join("a/b/c");
    let registry = FileRegistry::open(&deep).expect("open");
    won(block_on(registry.compare_and_swap(&key("pair"), None, b"1")));
    fs::remove_dir_all(&deep).expect("remove");
    fs::write(&deep, b"").expect("write");
    let failed = block_on(registry.compare_and_swap(&key("pair"), None, b"1"));
    assert_eq!(failed, Err(RegistryError::Storage(io::ErrorKind::NotADirectory)));
}

const COUNTING_IN: &str = "DYAD_TEST_REGISTRY";

/// Processes that are killed lose nothing that they had won, and processes that hang, wherever they are, hold up nobody.
#[test]
fn killed_and_hanging_processes_lose_nothing_and_hold_up_nobody() {
    let disk = OnDisk::new();
    let key = key("counter");
    let value = || {
        let current = block_on(disk.open().get(&key)).expect("get").expect("a value").value;
        u64::from_le_bytes(current.try_into().expect("eight bytes"))
    };
    for life in 0..12 {
        let (mut first, mut second) = (Counter::start(disk.0.path()), Counter::start(disk.0.path()));
        let mut told = 0;
        for _ in 0..=3 * life {
            told = first.next_win();
        }
        first.signal(Signal::SIGSTOP);
        let then = value();
        assert!(then >= told, "{told} was won, and {then} is there");
        while second.next_win() <= then {}
        drop((first, second));
        assert!(value() > then);
    }
}

/// A child process that counts up.
struct Counter {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Counter {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "registry::file::tests::child_that_counts", "--nocapture"])
            .env(COUNTING_IN, directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, output }
    }

    fn next_win(&mut self) -> u64 {
        let lines = self.output.by_ref().map(|line| line.expect("a line"));
        lines.filter_map(|line| line.strip_prefix("won ")?.parse().ok()).next().expect("the child counts on")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a process id")), signal).expect("kill");
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.child.kill(); // SIGKILL, which ends stopped processes too
        let _ = self.child.wait();
    }
}

/// Not a test of its own, and nothing unless the test above starts it: counts up until it is killed, and says what it has won.
#[test]
fn child_that_counts() {
    let Some(directory) = env::var_os(COUNTING_IN) else { return };
    let registry = FileRegistry::open(Path::new(&directory)).expect("open");
    let key = key("counter");
    loop {
        let current = block_on(registry.get(&key)).expect("get");
        let count =
            current.as_ref().map_or(0, |c| u64::from_le_bytes(c.value[..].try_into().expect("eight bytes"))) + 1;
        match block_on(registry.compare_and_swap(&key, current.map(|c| c.revision), &count.to_le_bytes())) {
            Ok(Cas::Won(_)) => println!("won {count}"),
            Ok(Cas::Lost(_)) | Err(RegistryError::Unknown | RegistryError::Busy) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
