//! Where RDMA becomes the cheaper way on shared memory, as an endpoint that goes by it sees it.

use std::time::Duration;

use dyad_matrix::crossover::{Crossover, Way};
use dyad_matrix::endpoint::{Endpoint, EndpointConfig};
use dyad_matrix::provider::{ProtectionTag, RemoteAccess};
use dyad_matrix::shm::{ShmLimits, ShmProvider};
use dyad_reactor::{BootClock, Limits, Options, Reactor};

#[test]
fn shared_memory_has_a_crossover_and_an_endpoint_goes_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node");
    let options = Options { limits: Limits { tasks: 1, timers: 1 }, max_spin: Duration::ZERO, core: None };
    let mut reactor = Reactor::new(options).unwrap();
    let provider = ShmProvider::new(&path, 1, ShmLimits::default()).unwrap();
    reactor.add_source(provider.clone()).unwrap();
    let (stopper, (tell, told)) = (reactor.stopper(), std::sync::mpsc::channel());
    reactor.handle().spawn("measure", async move {
        let crossover = Crossover::measure(&provider, path.to_str().unwrap(), &BootClock).await;
        let config =
            EndpointConfig { vis_max: 1, depth: 4, tag: ProtectionTag(1), remote_access: RemoteAccess::default() };
        tell.send((crossover, Endpoint::new(provider, config).unwrap())).unwrap();
        stopper.stop();
    });
    reactor.run().unwrap();
    let (crossover, endpoint) = told.recv().unwrap();
    let crossover = crossover.unwrap();
    println!("from {} bytes on", crossover.bytes());
    // How much that is depends on the machine; but it was found, not assumed.
    assert!(crossover.bytes().is_power_of_two() && (64..=64 << 10).contains(&crossover.bytes()), "{crossover:?}");
    endpoint.choose_by(crossover);
    let short = u64::from(crossover.bytes() - 1);
    assert_eq!(endpoint.way(short, 0), if short < 400 { Way::Message } else { Way::Rdma });
    assert_eq!(endpoint.way(u64::from(crossover.bytes()), 0), Way::Rdma);
}
