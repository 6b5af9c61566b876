//! The Linux kernel's NVMe/TCP initiator against our target on the host: discover, connect, read what it learned, write and
//! read with verification, disconnect, and again with digests.
//!
//! The guest needs no program for that: options written to `/dev/nvme-fabrics` make a controller (Linux,
//! drivers/nvme/host/fabrics.c), and sysfs shows what the kernel made of Identify and the log pages.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dyad_frontend::bench::{HOST_NQN, MemoryTarget, NQN};
use dyad_guest::GuestError;
use dyad_nvme::fabrics::DISCOVERY_NQN;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{BootClock, Clock};

use super::{Case, nothing, words};

pub(super) const CASE: Case = Case {
    name: "tcp",
    what: "the kernel's NVMe/TCP initiator: discover, connect, verify, disconnect; with and without digests",
    modules: &["virtio_pci", "virtio_net", "qemu_fw_cfg", "crc32c_generic", "nvme-tcp"],
    programs: &["ip"],
    packages: &[],
    memory_mib: 768,
    kernel_arguments: "",
    qemu_arguments,
    asked: nothing,
    inside,
};

const BLOCKS: BlockCount = BlockCount(16384);
/// Where the guest's network has the host (QEMU, user networking).
pub(super) const HOST: &str = "10.0.2.2";
/// How QEMU tells the guest where the target listens (QEMU, docs/specs/fw_cfg.rst).
const PORT: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/dyad/port/raw";
/// Ten times what it takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn qemu_arguments(_directory: &Path) -> Result<Vec<String>, GuestError> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let target = MemoryTarget::start(any, BLOCKS, Duration::ZERO, None);
    let target = target.map_err(|error| GuestError::Missing(error.to_string()))?;
    let port = target.address().port();
    // As long as this process.
    std::mem::forget(target);
    let arguments =
        format!("-netdev user,id=net -device virtio-net-pci,netdev=net -fw_cfg name=opt/dyad/port,string={port}");
    Ok(words(&arguments).collect())
}

/// Waits for something that the kernel does in its own time.
pub(super) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = BootClock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(BootClock.now().since(start) < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

pub(super) fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split_whitespace()).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{program} {arguments}: {status:?}");
}

pub(super) fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A controller that the kernel made.
struct Controller(PathBuf);

impl Controller {
    /// Has the kernel connect (Linux, drivers/nvme/host/fabrics.c: options).
    fn connect(port: &str, nqn: &str, more: &str) -> Self {
        let mut fabrics = OpenOptions::new().read(true).write(true).open("/dev/nvme-fabrics").expect("nvme-fabrics");
        let options = format!(
            "transport=tcp,traddr={HOST},trsvcid={port},nqn={nqn},hostnqn={HOST_NQN},\
             hostid=11111111-2222-3333-4444-555555555555{more}"
        );
        fabrics.write_all(options.as_bytes()).unwrap_or_else(|error| panic!("connect {options}: {error}"));
        let mut answer = String::new();
        fabrics.read_to_string(&mut answer).expect("instance=N,cntlid=M");
        println!("connected: {}", answer.trim());
        let instance = answer.trim().split(',').find_map(|field| field.strip_prefix("instance=")).expect("an instance");
        let controller = Self(PathBuf::from(format!("/sys/class/nvme/nvme{instance}")));
        wait_for("the controller", || (controller.attribute("state")? == "live").then_some(()));
        controller
    }

    fn attribute(&self, name: &str) -> Option<String> {
        text(&self.0.join(name))
    }

    /// The block device that it made, named by its multipath head.
    fn device(&self) -> String {
        let of_controller = |name: &str| {
            let rest = name.strip_prefix("nvme")?;
            let (subsystem, rest) = rest.split_once(['c', 'n'])?;
            let namespace = rest.rsplit('n').next()?;
            Some(format!("nvme{subsystem}n{namespace}"))
        };
        wait_for("the namespace", || {
            let names = fs::read_dir(&self.0).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let head = names.filter(|name| name.starts_with("nvme")).find_map(|name| of_controller(&name))?;
            let there = Path::new("/dev").join(&head).exists() && Path::new("/sys/block").join(&head).exists();
            there.then_some(head)
        })
    }

    fn disconnect(self) {
        fs::write(self.0.join("delete_controller"), "1").expect("disconnect");
        wait_for("the end of the controller", || (!self.0.exists()).then_some(()));
    }
}

/// Bytes that tell where they belong.
fn pattern(buffer: &mut [u8], offset: u64, salt: u64) {
    for (at, word) in (offset..).step_by(8).zip(buffer.chunks_exact_mut(8)) {
        word.copy_from_slice(&(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt).to_le_bytes());
    }
}

/// Writes and reads past the page cache, in pieces of all sizes: in the capsule, by R2T, split by the kernel.
fn verify(device: &str, salt: u64) {
    const O_DIRECT: i32 = 0o40_000;
    let path = format!("/dev/{device}");
    let open = || OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&path);
    let file: File = open().unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut memory = vec![0; (2 << 20) + 4096];
    let aligned = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[aligned..aligned + (2 << 20)];
    let sizes = [4096, 8192, 12288, 65536, 131_072, 262_144, 1 << 20, 2 << 20];
    let mut offset = 0;
    for size in sizes {
        pattern(&mut buffer[..size], offset, salt);
        file.write_all_at(&buffer[..size], offset).unwrap_or_else(|error| panic!("write {size}: {error}"));
        offset += size as u64;
    }
    file.sync_all().expect("flush");
    let mut expected = vec![0; 2 << 20];
    let mut offset = 0;
    for size in sizes {
        buffer[..size].fill(0);
        file.read_exact_at(&mut buffer[..size], offset).unwrap_or_else(|error| panic!("read {size}: {error}"));
        pattern(&mut expected[..size], offset, salt);
        assert!(buffer[..size] == expected[..size], "{size} bytes at {offset} are others");
        offset += size as u64;
    }
    println!("{device}: {offset} bytes written and read back");
}

/// The network as QEMU expects it (QEMU, user networking).
pub(super) fn network() {
    run("ip", "link set lo up");
    run("ip", "link set eth0 up");
    run("ip", "addr add 10.0.2.15/24 dev eth0");
}

fn inside() {
    network();
    let port = wait_for("the port", || text(Path::new(PORT)));

    let discovery = Controller::connect(&port, DISCOVERY_NQN, "");
    assert_eq!(discovery.attribute("subsysnqn").as_deref(), Some(DISCOVERY_NQN));
    discovery.disconnect();
    println!("discovery holds");

    for (salt, more) in (1..).zip([
        ",nr_io_queues=2,keep_alive_tmo=5",
        ",nr_io_queues=1,hdr_digest",
        ",nr_io_queues=2,data_digest,disable_sqflow",
        ",nr_io_queues=2,hdr_digest,data_digest,queue_size=16",
    ]) {
        let controller = Controller::connect(&port, NQN, more);
        for (attribute, expected) in
            [("model", "Dyad array"), ("serial", "DYADMEMORY"), ("transport", "tcp"), ("subsysnqn", NQN)]
        {
            assert_eq!(controller.attribute(attribute).as_deref(), Some(expected), "{attribute}");
        }
        let device = controller.device();
        let block = PathBuf::from(format!("/sys/block/{device}"));
        assert_eq!(text(&block.join("size")), Some((BLOCKS.bytes() / 512).to_string()));
        assert_eq!(text(&block.join("queue/logical_block_size")).as_deref(), Some("4096"));
        assert_eq!(text(&block.join("uuid")).as_deref(), Some("64796164-206d-656d-6f72-7920766f6c2e"));
        verify(&device, salt);
        controller.disconnect();
        // The next one makes a device of the same name.
        wait_for("the end of the device", || (!Path::new("/dev").join(&device).exists()).then_some(()));
        println!("holds with{more}");
    }
}
