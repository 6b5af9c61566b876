//! A stock Linux host on a pair of real directors: discover, connect to both, a file system with verified load on their volume,
//! and native multipath that carries it over the death of the home (SIGKILL) without an error to the file system.
//!
//! Directors and shelf run on the host, as processes of their own; in the guest are the kernel's initiator, nvme-cli, fio and
//! e2fsprogs, as Debian has them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use dyad_director::layout::ArrayDir;
use dyad_director::membership::DirectorId;
use dyad_director::trial::processes::Processes;
use dyad_guest::inside::ask_host;
use dyad_guest::{GuestError, Qmp};
use dyad_reactor::{BootClock, Clock};
use serde_json::Value;

use super::tcp::{HOST, network, run, text, wait_for};
use super::{Case, words};

pub(super) const CASE: Case = Case {
    name: "array",
    what: "a stock host on two directors: file system, verified load, multipath over the death of the home",
    modules: &["virtio_pci", "virtio_net", "qemu_fw_cfg", "crc32c_generic", "nvme-tcp", "ext4"],
    programs: &["ip", "nvme", "fio", "mkfs.ext4", "fsck.ext4"],
    packages: &["nvme-cli", "fio", "e2fsprogs"],
    memory_mib: 1024,
    kernel_arguments: "",
    qemu_arguments,
    asked,
    inside,
};

/// How QEMU tells the guest where the directors listen.
const PORTS: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/dyad/ports/raw";
const HOST_NAME: &str = "--hostnqn=nqn.2026-01.org.dyad:guest --hostid=11111111-2222-3333-4444-555555555555";
const MOUNT: &str = "/run/volume";

/// What the guest asks for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Order {
    /// SIGKILL of the director that serves.
    KillHome,
    /// The one that was killed is started again.
    StartAgain,
}

/// The way to the thread that has the array's processes, which live as long as this process.
static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();

fn qemu_arguments(directory: &Path) -> Result<Vec<String>, GuestError> {
    let missing = |error: std::io::Error| GuestError::Missing(format!("no array on this machine: {error}"));
    let program = std::env::current_exe().map_err(missing)?.with_file_name("dyad");
    if !program.exists() {
        return Err(GuestError::Missing("dyad is not built (`cargo build --bins`)".to_owned()));
    }
    let (a, b) = free_ports().map_err(missing)?;
    let mut processes = Processes::new(ArrayDir::new(directory)).map_err(missing)?.with_program(program);
    for (me, port) in [(DirectorId::A, a), (DirectorId::B, b)] {
        processes = processes
            .with_arguments(me, [format!("--nvme-tcp=127.0.0.1:{port}"), format!("--advertise={HOST}:{port}")]);
    }
    let (orders, inbox) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let started = processes.start_whole();
        let failed = started.is_err();
        // Whoever asked waits for it.
        let _ = tell.send(started);
        if !failed && let Err(error) = keep(&mut processes, &inbox) {
            // The guest finds its volume gone, and fails.
            println!("array: {error}");
        }
    });
    told.recv().map_err(std::io::Error::other).and_then(|started| started).map_err(missing)?;
    assert!(ORDERS.set(orders).is_ok(), "one guest of this kind per run");
    let arguments =
        format!("-netdev user,id=net -device virtio-net-pci,netdev=net -fw_cfg name=opt/dyad/ports,string={a}+{b}");
    Ok(words(&arguments).collect())
}

/// Two ports that nobody has now.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let [a, b] = [(); 2].map(|()| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
    Ok((a?.local_addr()?.port(), b?.local_addr()?.port()))
}

/// Does what the guest asks for, and starts directors again that want to begin anew.
fn keep(processes: &mut Processes, orders: &Receiver<Order>) -> std::io::Result<()> {
    let mut killed = None;
    loop {
        match orders.recv_timeout(Duration::from_millis(100)) {
            Err(RecvTimeoutError::Timeout) => processes.attend()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Order::KillHome) => {
                processes.wait_until("somebody serves", |processes| processes.home().is_some())?;
                let lost = processes.home().expect("somebody serves");
                processes.kill(lost)?;
                println!("array: director {lost:?}, the home, is killed");
                killed = Some(lost);
            }
            Ok(Order::StartAgain) => processes.start(killed.take().expect("one was killed"))?,
        }
    }
}

fn asked(words: &str, _qmp: &mut Qmp) -> Result<(), GuestError> {
    let order = match words {
        "kill-home" => Order::KillHome,
        "start-again" => Order::StartAgain,
        other => return super::nothing(other, _qmp),
    };
    let sent = ORDERS.get().is_some_and(|orders| orders.send(order).is_ok());
    if sent { Ok(()) } else { Err(GuestError::Qmp("there is no array any more".to_owned())) }
}

/// Runs nvme-cli; what it prints.
fn nvme(arguments: &str) -> String {
    let output = Command::new("nvme").args(arguments.split_whitespace()).output().expect("nvme-cli");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "nvme {arguments}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn nvme_json(arguments: &str) -> Value {
    let said = nvme(&format!("{arguments} --output-format=json"));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("nvme {arguments}: {error}: {said}"))
}

/// The kernel's controllers of the array, by name.
fn controllers(nqn: &str) -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/class/nvme").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut ours: Vec<PathBuf> = all.filter(|path| text(&path.join("subsysnqn")).as_deref() == Some(nqn)).collect();
    ours.sort();
    ours
}

/// The ANA state of a controller's path to the volume.
fn ana_state(controller: &Path) -> Option<String> {
    let paths = fs::read_dir(controller).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter_map(|path| text(&path.join("ana_state"))).next()
}

/// Waits until both controllers are live and the volume is reached through one of them, and not through the other.
fn wait_for_paths(nqn: &str) -> String {
    wait_for("two paths, one of them to the home", || {
        let live = controllers(nqn).into_iter().filter(|path| text(&path.join("state")).as_deref() == Some("live"));
        let mut states: Vec<String> = live.filter_map(|path| ana_state(&path)).collect();
        states.sort();
        (states == ["inaccessible", "optimized"]).then_some(())
    });
    wait_for("the volume", || {
        let list = nvme_json("list");
        let device = list["Devices"].as_array()?.first()?["DevicePath"].as_str()?.to_owned();
        Path::new(&device).exists().then_some(device)
    })
}

/// Operations that the paths to a volume have done: reads and writes (Linux, Documentation/block/stat.rst). This kernel counts none for
/// the multipath device itself.
fn done(nqn: &str) -> u64 {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let paths = controllers(nqn).into_iter().flat_map(|controller| entries(&controller).collect::<Vec<_>>());
    let operations = paths.filter_map(|path| {
        let fields = text(&path.join("stat"))?;
        let fields: Vec<u64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        Some(fields.first()? + fields.get(4)?)
    });
    operations.sum()
}

fn fio(name: &str, more: &str) -> Child {
    let always =
        "--ioengine=psync --direct=1 --thread --verify=crc32c --verify_fatal=1 --output-format=terse --fallocate=none";
    let arguments = format!("--name={name} --directory={MOUNT} {always} {more}");
    let mut command = Command::new("fio");
    command.args(arguments.split_whitespace()).stdout(Stdio::null()).current_dir("/run");
    command.spawn().expect("fio")
}

fn ends_well(what: &str, mut child: Child) {
    let start = BootClock.now();
    let status = child.wait();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{what}: {status:?}");
    println!("{what}: {:.1} s", BootClock.now().since(start).as_secs_f64());
}

fn check(device: &str) {
    run("fsck.ext4", &format!("-f -n {device}"));
}

fn inside() {
    network();
    let ports = wait_for("the ports", || text(Path::new(PORTS)));
    let (a, b) = ports.split_once('+').expect("two ports");

    // Either director tells where both are.
    let mut nqn = String::new();
    for port in [a, b] {
        let log = nvme_json(&format!("discover --transport=tcp --traddr={HOST} --trsvcid={port} {HOST_NAME}"));
        let records = log["records"].as_array().expect("records");
        let mut found: Vec<&str> = records.iter().filter_map(|record| record["trsvcid"].as_str()).collect();
        found.sort_unstable();
        let mut expected = [a, b];
        expected.sort_unstable();
        assert_eq!(found, expected, "{log}");
        assert!(records.iter().all(|record| record["traddr"] == HOST && record["trtype"] == "tcp"), "{log}");
        let names: Vec<&str> = records.iter().filter_map(|record| record["subnqn"].as_str()).collect();
        assert!(names.len() == 2 && names[0] == names[1], "one subsystem over all directors: {log}");
        nqn = names[0].to_owned();
    }
    println!("discovery holds: {nqn} at {a} and {b}");

    let connect = format!(
        "connect-all --transport=tcp --traddr={HOST} --trsvcid={a} {HOST_NAME} --nr-io-queues=2 --keep-alive-tmo=5 \
         --reconnect-delay=1 --ctrl-loss-tmo=600"
    );
    nvme(&connect);
    let device = wait_for_paths(&nqn);
    println!("{}", nvme("list"));
    let mut ids = Vec::new();
    for controller in controllers(&nqn) {
        let name = controller.file_name().expect("a name").to_string_lossy().into_owned();
        let about = nvme_json(&format!("id-ctrl /dev/{name}"));
        assert_eq!(about["mn"].as_str().map(str::trim), Some("Dyad array"), "{about}");
        assert_eq!(about["subnqn"].as_str(), Some(&*nqn));
        assert_eq!((&about["awun"], &about["awupf"]), (&Value::from(0), &Value::from(0)), "one block (PROTOCOLS 12.2)");
        ids.push(about["cntlid"].as_u64().expect("a number") / 4080);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1], "each director has identifiers of its own");
    let about = nvme_json(&format!("id-ns {device}"));
    assert!(about["nsze"].as_u64().is_some_and(|blocks| blocks > 4096) && about["anagrpid"] == 1, "{about}");
    println!("identify holds");

    run("mkfs.ext4", &format!("-q {device}"));
    fs::create_dir_all(MOUNT).expect("a directory");
    mount(&device);
    ends_well("fio, both directors", fio("still", "--rw=randwrite --bsrange=4k-64k --size=8m --end_fsync=1"));
    unmount();
    check(&device);
    nvme(&format!("disconnect --nqn={nqn}"));
    wait_for("the end of the device", || (!Path::new(&device).exists()).then_some(()));
    nvme(&connect);
    let device = wait_for_paths(&nqn);
    mount(&device);
    ends_well(
        "what was written is there after a reconnect",
        fio("still", "--rw=randwrite --bsrange=4k-64k --size=8m --verify_only"),
    );

    // The home dies in the middle of it.
    let before = done(&nqn);
    let mut load = fio("moving", "--rw=randrw --bs=4k --size=4m --numjobs=4 --loops=2 --group_reporting");
    wait_for("some load", || (done(&nqn) > before + 500).then_some(()));
    ask_host("kill-home");
    wait_for("one path is lost", || {
        let live = |path: &PathBuf| text(&path.join("state")).as_deref() == Some("live");
        (controllers(&nqn).iter().filter(|path| live(path)).count() == 1).then_some(())
    });
    assert!(load.try_wait().expect("fio").is_none(), "the load ended before the home did");
    let lost_at = done(&nqn);
    wait_for("the survivor serves", || (done(&nqn) > lost_at + 500).then_some(()));
    println!("the survivor serves");
    ask_host("start-again");
    ends_well("fio, over the death of the home", load);
    unmount();
    check(&device);
    wait_for_paths(&nqn);
    println!("both paths are back");
    mount(&device);
    ends_well("all of it is still there", fio("still", "--rw=randwrite --bsrange=4k-64k --size=8m --verify_only"));
    unmount();
    nvme(&format!("disconnect --nqn={nqn}"));
}

fn mount(device: &str) {
    nix::mount::mount(Some(device), MOUNT, Some("ext4"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("mount {device}: {error}"));
}

fn unmount() {
    nix::mount::umount(MOUNT).unwrap_or_else(|error| panic!("unmount: {error}"));
}
