//! Other processes: this binary again, told by the environment what to be.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use dyad_backend::device::{Device, Io};
use dyad_backend::driver::{Driver, block_on};
use dyad_backend::emulator::{BlockFormat, Latency};
use dyad_backend::shelf::{ShelfConfig, ShelfDevice, ShelfMedia, run_shelf, socket_path};
use dyad_backend::vfio_user::VfioUserFunction;
use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::{BootClock, Executor, Limits};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

const ROLE: &str = "DYAD_TEST_ROLE";
const DIRECTORY: &str = "DYAD_TEST_DIRECTORY";
/// What a role prints when others may go on.
const READY: &str = "role is ready";

pub(crate) const DEVICE: &str = "disk0";
pub(crate) const BLOCKS: u64 = 4096;

/// A process that dies with this value, or with this process.
pub(crate) struct Role {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Role {
    /// Starts a role, and waits until it is ready.
    pub(crate) fn start(role: &str, directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::in_another_process", "--nocapture"])
            .env(ROLE, role)
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut role = Self { child, output };
        role.wait_for(READY);
        role
    }

    fn wait_for(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the role ended before it was ready");
        }
    }

    /// Stops it at whatever it is doing, and waits until it stands: the signal alone takes effect later.
    pub(crate) fn stop(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    }

    /// Processor time that it has used, in hundredths of a second (proc(5): the 14th and 15th field; USER_HZ is 100 everywhere).
    pub(crate) fn processor_time(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does nothing unless this process was started as a role.
#[test]
fn in_another_process() {
    let (Ok(role), Some(directory)) = (std::env::var(ROLE), std::env::var_os(DIRECTORY)) else { return };
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let directory = Path::new(&directory);
    match role.as_str() {
        "shelf" => serve(directory, ShelfMedia::Memory),
        "file shelf" => serve(directory, ShelfMedia::File(directory.join("disk0.blocks"))),
        "director" => write_for_ever(directory),
        other => panic!("no role {other}"),
    }
}

fn serve(directory: &Path, media: ShelfMedia) {
    let device = ShelfDevice {
        name: DEVICE.to_owned(),
        uuid: [7; 16],
        blocks: BlockCount(BLOCKS),
        media,
        cache_blocks: Some(1024),
        format: BlockFormat::Bare,
        latency: Latency::default(),
    };
    let config = ShelfConfig {
        directory: directory.to_owned(),
        devices: vec![device],
        max_spin: Duration::ZERO,
        core: None,
        seed: 1,
    };
    run_shelf(&config, |_| println!("{READY}")).unwrap();
}

/// Keeps port 0 busy until it is killed.
fn write_for_ever(directory: &Path) {
    let executor = executor();
    let driver = attach(&executor, directory, 0, [0xa; 16]);
    let memory = Memory::shared("payload", 1 << 20, HugePages::No).unwrap();
    driver.map(&memory).unwrap();
    println!("{READY}");
    let mut in_flight = std::collections::VecDeque::new();
    for round in 0_u64.. {
        let segment = memory.segment(round % 128 * 4096, 8 * 4096).unwrap();
        let lba = Lba(BLOCKS / 2 + round % (BLOCKS / 4));
        in_flight.push_back(driver.submit(Io::Write { lba, segments: &[segment], fua: false }).unwrap());
        if in_flight.len() == 64 {
            let oldest = in_flight.pop_front().unwrap();
            block_on(&executor, || driver.poll(), oldest).unwrap();
        }
    }
}

pub(crate) fn executor() -> Executor {
    Executor::new(Limits { tasks: 8, timers: 64 }, std::rc::Rc::new(BootClock))
}

pub(crate) fn attach(executor: &Executor, directory: &Path, port: usize, host: [u8; 16]) -> Driver<VfioUserFunction> {
    let function = VfioUserFunction::connect(&socket_path(directory, DEVICE, port)).expect("connected");
    block_on(executor, || 0, Driver::attach(function, &executor.handle(), host)).expect("attached")
}
