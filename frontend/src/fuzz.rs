//! Hosts that say whatever bytes say: to the parser of NVMe/TCP, and to the core. Nothing may panic, nothing may be accepted that
//! is not what it says. proptest runs this in every test; `fuzz/` has targets for it.

use std::time::Duration;

use dyad_nvme::fabrics::{ConnectData, PropertySize};
use dyad_nvme::log::AnaState;
use dyad_nvme::register::{self, Configuration};
use dyad_nvme::types::{BlockCount, ControllerId, HostId, NamespaceId, QueueId};
use dyad_nvme::{Status, SubmissionEntry};
use dyad_reactor::Time;

use crate::subsystem::array::{AccessRow, Volumes};
use crate::subsystem::{
    AccessTable, AnaGroupId, AnaGroupView, Answer, Array, Direction, DirectorIndex, NamespaceView, PortId, Queue,
    Subsystem, SubsystemConfig,
};
use crate::tcp::parse::{Params, Parsed, parse};

const NQN: &str = "nqn.2026-01.org.dyad:fuzz";

/// A stream of PDUs, under parameters that the first byte chooses. Data is passed over as if it had been received.
pub fn pdus(bytes: &[u8]) {
    let Some((&choice, mut stream)) = bytes.split_first() else { return };
    let mut params = Params::new(choice >> 3, 65536);
    params.started = choice & 1 != 0;
    (params.header_digest, params.data_digest) = (choice & 2 != 0, choice & 4 != 0);
    while let Ok(Parsed::Pdu(pdu)) = parse(stream, &params) {
        assert!((1..=stream.len()).contains(&pdu.head), "a PDU that ends before it begins");
        let tail = usize::try_from(pdu.payload).expect("32 bits fit") + if pdu.digest { 4 } else { 0 };
        stream = stream.get(pdu.head + tail..).unwrap_or_default();
    }
}

/// Commands of an admin and an I/O queue, 64 bytes each, in turn; after every eighth the array is another.
pub fn commands(bytes: &[u8]) {
    let mut core = subsystem();
    let mut now = Time::ZERO;
    let data = ConnectData::new(HostId([1; 16]), ControllerId::DYNAMIC, NQN, "nqn.host").to_bytes();
    let connect = SubmissionEntry::connect(QueueId::ADMIN, 32, 1000);
    let connected = core.connect(now, PortId(1), &connect, &data).expect("a good Connect");
    let key = connected.queue.controller;
    let enable = SubmissionEntry::property_set(register::CC, PropertySize::Four, u64::from(Configuration::ENABLED.0));
    core.admin(now, key, &enable, &[]).expect("it can be enabled");
    let (entries, _) = bytes.as_chunks::<{ SubmissionEntry::BYTES }>();
    for (index, entry) in entries.iter().enumerate() {
        now = now + Duration::from_millis(u64::from(entry[63]));
        let entry = SubmissionEntry::from_bytes(*entry);
        let direction = core.admin_direction(&entry);
        let from_host = if let Ok(Direction::FromHost(bytes)) = direction { bytes } else { 0 };
        let data = vec![entry.opcode(); usize::try_from(from_host).expect("32 bits fit")];
        match (core.admin(now, key, &entry, &data), direction) {
            (Ok(Answer::Done(reply)), Ok(Direction::ToHost(bytes))) => {
                assert_eq!(reply.data.len() as u64, u64::from(bytes))
            }
            (Ok(Answer::Done(reply)), Ok(_)) => assert!(reply.data.is_empty()),
            (Err(status), _) => assert!(!status.is_success()),
            (Ok(_), _) => {}
        }
        if let Ok(command) = core.parse(key, &entry) {
            core.admit(key);
            core.finish(Queue { controller: key, id: QueueId(1) }, &command, Status::SUCCESS);
        }
        if index % 8 == 7 {
            core.set_array(array(u64::from(entry.as_bytes()[62]) + 1, entry.as_bytes()[61]));
        }
        core.tick(now);
        while core.next_action().is_some() {}
    }
}

fn array(blocks: u64, state: u8) -> Array {
    let namespace = NamespaceView {
        id: NamespaceId(1),
        uuid: [1; 16],
        blocks: BlockCount(blocks),
        group: AnaGroupId(1),
        volatile_cache: true,
        deallocated_zeros: false,
        optimal_write: BlockCount(1),
    };
    let state = AnaState::from_bits(state).unwrap_or(AnaState::Optimized);
    Array::new(vec![namespace], vec![AnaGroupView { id: AnaGroupId(1), state }], Vec::new()).expect("one of each")
}

fn subsystem() -> Subsystem {
    let row = AccessRow { port: None, host: None, volumes: Volumes::All, credits: 32 };
    let config = SubsystemConfig {
        nqn: NQN.into(),
        serial: "FUZZ".into(),
        director: DirectorIndex(3),
        controllers: 2,
        io_queues: 2,
        queue_entries: 64,
        transfer_log2: 4,
        in_capsule_bytes: 4096,
        ana_transition: Duration::from_secs(1),
        quiesce: Duration::from_millis(100),
    };
    Subsystem::new(config, array(64, 1), AccessTable::new(vec![row]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn streams(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            pdus(&bytes);
        }

        #[test]
        fn any_commands(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            commands(&bytes);
        }
    }
}
