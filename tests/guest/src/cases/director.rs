//! A pair of directors on dual-ported devices over VFIO, a host that knows what every block must hold, and controllers that
//! are disabled behind their drivers' backs while it writes.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dyad_backend::driver::{Driver, block_on};
use dyad_director::config::{Config, DirectorNumber};
use dyad_director::layout::ArrayDir;
use dyad_director::membership::{DirectorId, Timing};
use dyad_director::process::{ProcessConfig, run_director_on};
use dyad_director::trial::load::{Host, Order, Report, Summary};
use dyad_director::up::Plan;
use dyad_guest::GuestError;

use super::fenced::{Fenced, Reservation, Upset};
use super::vfio::{bind_all, open};
use super::{BLOCKS, Case, image, nothing, words};

pub(super) const CASE: Case = Case {
    name: "director",
    what: "a pair on VFIO devices serves a volume while controllers are reset",
    modules: &["vfio-pci", "vfio_iommu_type1"],
    programs: &[],
    packages: &[],
    memory_mib: 1024,
    kernel_arguments: "intel_iommu=on",
    qemu_arguments,
    asked: nothing,
    inside,
};

/// For each director its ports of the devices.
const PORTS: [[&str; 2]; 2] = [["0000:00:04.0", "0000:00:05.0"], ["0000:00:06.0", "0000:00:07.0"]];

const DEVICES: [&str; 2] = ["disk0", "disk1"];

/// Longest silence of the host.
const PATIENCE: Duration = Duration::from_secs(120);

fn qemu_arguments(directory: &Path) -> Result<Vec<String>, GuestError> {
    let mut arguments: Vec<String> = words("-device intel-iommu,aw-bits=48").collect();
    for (number, name) in DEVICES.into_iter().enumerate() {
        arguments.extend(["-drive".to_owned(), image(directory, name, 64 << 20)?]);
        let (a, b) = (4 + number, 6 + number);
        arguments.extend(words(&format!(
            "-device nvme-subsys,id=s-{name},nqn={name} \
             -device nvme,id=a-{name},serial={name},subsys=s-{name},addr={a:02x}.0 \
             -device nvme,id=b-{name},serial={name},subsys=s-{name},addr={b:02x}.0 \
             -device nvme-ns,drive={name},bus=a-{name},nsid=1,shared=on,{BLOCKS}"
        )));
    }
    Ok(arguments)
}

fn inside() {
    bind_all(PORTS.as_flattened());
    let array = ArrayDir::new(&std::env::temp_dir().join("array"));
    std::fs::create_dir_all(array.path()).expect("a directory");
    let text = Plan::new(2, "127.0.0.1:0".parse().expect("an address")).text([0xda; 16]);
    let array_config = Config::parse(&text, &array.configuration()).expect("a good configuration");
    let reservations: [Arc<Mutex<Reservation>>; 2] = Default::default();
    let upsets: [[Arc<Upset>; 2]; 2] = Default::default();
    for me in [DirectorId::A, DirectorId::B] {
        let mut config = ProcessConfig::new(&array_config, DirectorNumber(me.index())).expect("there is one");
        config.timing = Timing::default().times(10);
        let (reservations, upsets) = (reservations.clone(), upsets[usize::from(me.index())].clone());
        thread::spawn(move || {
            let ended = run_director_on(&config, |number, _, reactor| {
                let function = open(PORTS[usize::from(me.index())][number]);
                let (host, handle) = ([me.index() + 1; 16], reactor.handle());
                let driver = block_on(reactor.executor(), || 0, Driver::attach(function, &handle, host));
                let driver = driver.expect("attached");
                let (reservation, upset) = (Arc::clone(&reservations[number]), Arc::clone(&upsets[number]));
                Ok(Fenced { driver, host, reservation, upset })
            });
            // The host would wait for ever.
            eprintln!("director {me:?} ended: {ended:?}");
            std::process::abort();
        });
    }
    let mut host = Host::start(&array);
    assert!(matches!(next(&host), Report::Attached { .. }));
    host.order(Order::Load);
    progress(&host, 1);
    for (number, device) in DEVICES.iter().enumerate() {
        println!(
            "the home's controller of {device} is disabled while {} workers write",
            dyad_director::trial::load::WORKERS
        );
        upsets[0][number].now.store(true, Ordering::Relaxed);
        progress(&host, 1);
    }
    println!("both of them at once");
    for upset in &upsets[0] {
        upset.now.store(true, Ordering::Relaxed);
    }
    progress(&host, 1);
    host.order(Order::Verify);
    let summary = ended(&host);
    println!("{summary:?}");
    assert_eq!(summary.lost_blocks, 0);
    assert!(summary.verified_blocks > 0);
    for upset in &upsets[0] {
        let resets = upset.resets.load(Ordering::Relaxed);
        assert!(resets >= 1, "the controller was reset");
        println!("its driver has reset the controller {resets} times");
    }
}

fn next(host: &Host) -> Report {
    match host.reports.recv_timeout(PATIENCE).expect("the host goes on") {
        Report::Failed(why) => panic!("{why}"),
        report => report,
    }
}

/// So many thousand operations more.
fn progress(host: &Host, thousands: u32) {
    for _ in 0..thousands {
        assert_eq!(next(host), Report::Progress);
    }
}

fn ended(host: &Host) -> Summary {
    loop {
        match next(host) {
            Report::Ended(summary) => return summary,
            Report::Progress => {}
            other => panic!("{other:?}"),
        }
    }
}
