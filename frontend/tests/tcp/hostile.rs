//! Hosts that do not keep to the protocol: each costs its own connection and nothing else.

use std::io::{Read, Write};
use std::time::Duration;

use dyad_nvme::tcp::{CommonHeader, DataHeader, FatalError, IcReq, flags, kind};
use dyad_nvme::types::{BlockCount, CommandId, ControllerId, Lba, QueueId};
use dyad_nvme::{SglDescriptor, Status, SubmissionEntry, bytes};

use crate::client::{Client, Style, VOLUME};
use crate::{Target, pattern, read, write};

/// A neighbour that must not notice anything.
fn is_well(io: &mut Client) {
    let data = pattern(900, 2, 9);
    assert_eq!(io.status(write(900, 2), &data, 0), Status::SUCCESS);
    assert!(read(io, 900, 2) == data);
}

#[test]
fn a_malformed_pdu_ends_its_connection_with_the_status_that_is_due() {
    let target = Target::new();
    let (_admin, mut neighbour) = target.session(Style::default());
    let raw = |kind, flags, header_len, data_at, len| {
        let mut pdu = CommonHeader { kind, flags, header_len, data_at, len }.to_bytes().to_vec();
        pdu.resize(128, 0);
        pdu
    };
    for (pdu, expected) in [
        (raw(kind::RESPONSE, 0, 24, 0, 24), FatalError::InvalidField(0)),
        (raw(kind::COMMAND, 0, 64, 0, 72), FatalError::InvalidField(2)),
        (raw(kind::COMMAND, 0, 72, 73, 4096), FatalError::InvalidField(3)),
        (raw(kind::COMMAND, 0, 72, 72, 1 << 20), FatalError::LimitExceeded),
        (raw(kind::IC_REQ, 0, 128, 0, 128), FatalError::Sequence),
        (raw(kind::H2C_DATA, 4, 24, 24, 24), FatalError::InvalidField(4)),
        (raw(kind::COMMAND, 1, 72, 0, 76), FatalError::InvalidField(1)),
    ] {
        let mut client = Client::open(target.address, Style::default());
        client.stream.write_all(&pdu).unwrap();
        assert_eq!(client.ends_with(), expected);
        is_well(&mut neighbour);
    }
    let style = Style { header_digest: true, ..Style::default() };
    let mut client = Client::open(target.address, style);
    let mut pdu = client.pdu(kind::COMMAND, 0, SubmissionEntry::keep_alive().as_bytes(), &[]);
    pdu[30] ^= 1;
    client.stream.write_all(&pdu).unwrap();
    assert!(matches!(client.ends_with(), FatalError::HeaderDigest(_)));

    let mut stream = Client::raw(target.address);
    stream.write_all(&raw(kind::COMMAND, 0, 72, 0, 72)).unwrap();
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(FatalError::from_pdu(&answer), FatalError::Sequence, "before IC_REQ");
    let mut stream = Client::raw(target.address);
    let request = IcReq { version: 7, alignment: 0, header_digest: false, data_digest: false, r2t_max: 0 };
    stream.write_all(&request.to_bytes()).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(FatalError::from_pdu(&answer), FatalError::Unsupported(8));
    is_well(&mut neighbour);
}

#[test]
fn data_that_was_not_asked_for_ends_its_connection() {
    let target = Target::new();
    let (_admin, mut neighbour) = target.session(Style::default());
    let style = Style { no_in_capsule: true, ..Style::default() };
    type Twist = fn(DataHeader) -> (DataHeader, u8, usize);
    let twists: [(Twist, FatalError); 7] = [
        (|asked| (DataHeader { tag: asked.tag ^ 1, ..asked }, flags::LAST, 0), FatalError::InvalidField(10)),
        (|asked| (DataHeader { tag: 9999, ..asked }, flags::LAST, 0), FatalError::InvalidField(10)),
        (|asked| (DataHeader { command: CommandId(4711), ..asked }, flags::LAST, 0), FatalError::InvalidField(8)),
        (|asked| (DataHeader { offset: 4096, len: 4096, ..asked }, flags::LAST, 0), FatalError::Sequence),
        (|asked| (DataHeader { offset: asked.len, len: 4096, ..asked }, flags::LAST, 0), FatalError::OutOfRange),
        (|asked| (DataHeader { len: asked.len + 4096, ..asked }, flags::LAST, 0), FatalError::OutOfRange),
        (|asked| (DataHeader { len: 4096, ..asked }, flags::LAST, 0), FatalError::InvalidField(1)),
    ];
    for (index, (twist, expected)) in (0..).zip(twists) {
        let (_admin, mut io) = target.session(style);
        io.send(write(500, 4), &pattern(500, 4, 1), 0);
        let r2t = io.receive();
        assert_eq!(r2t.common.kind, kind::R2T);
        let asked = DataHeader::from_bytes(&bytes::array(&r2t.header, 8));
        assert_eq!((asked.offset, asked.len), (0, 4 * 4096));
        let (header, extra, _) = twist(asked);
        let data = vec![1; usize::try_from(header.len).unwrap()];
        let pdu = io.pdu(kind::H2C_DATA, extra, &header.to_bytes(), &data);
        // The target may have ended the connection before all of it is sent.
        let _ = io.stream.write_all(&pdu);
        let said = io.receive();
        assert_eq!(said.common.kind, kind::C2H_TERM);
        assert_eq!(FatalError::from_pdu(&bytes::array(&said.header, 0)), expected, "twist {index}");
        is_well(&mut neighbour);
        assert!(read(&mut neighbour, 500, 4).iter().all(|byte| *byte == 0), "nothing of it was written");
    }
}

#[test]
fn a_wrong_data_digest_fails_the_command_and_writes_nothing() {
    let target = Target::new();
    for no_in_capsule in [false, true] {
        let style = Style { data_digest: true, no_in_capsule, ..Style::default() };
        let (_admin, mut io) = target.session(style);
        let data = pattern(600, 1, 5);
        let spoil = |mut pdu: Vec<u8>| {
            let last = pdu.len() - 1;
            pdu[last] ^= 0x80;
            pdu
        };
        let id = if no_in_capsule {
            let id = io.send(write(600, 1), &data, 0);
            let r2t = io.receive();
            let asked = bytes::array::<16>(&r2t.header, 8);
            let pdu = spoil(io.pdu(kind::H2C_DATA, flags::LAST, &asked, &data));
            io.stream.write_all(&pdu).unwrap();
            id
        } else {
            let id = CommandId(77);
            let entry = write(600, 1).with_command(id).with_sgl(SglDescriptor::in_capsule(0, 4096));
            let pdu = spoil(io.pdu(kind::COMMAND, 0, entry.as_bytes(), &data));
            io.stream.write_all(&pdu).unwrap();
            id
        };
        assert_eq!(io.complete(id, &data).0.status(), Status::TRANSIENT_TRANSPORT);
        assert!(read(&mut io, 600, 1) == [0; 4096]);
        assert_eq!(io.status(write(600, 1), &data, 0), Status::SUCCESS, "the connection goes on");
        assert!(read(&mut io, 600, 1) == data);
        assert_eq!(io.status(SubmissionEntry::write_zeroes(VOLUME, Lba(600), BlockCount(1)), &[], 0), Status::SUCCESS);
    }
}

#[test]
fn descriptors_that_do_not_fit_get_their_status_and_the_data_is_passed_over() {
    let target = Target::new();
    let (_admin, mut io) = target.session(Style::default());
    let data = pattern(0, 1, 1);
    for (sgl, expected) in [
        (SglDescriptor::in_capsule(4, 4096), Status::SGL_OFFSET_INVALID),
        (SglDescriptor::in_capsule(0, 4095), Status::SGL_LENGTH_INVALID),
        (SglDescriptor::data_block(0, 4096), Status::SGL_TYPE_INVALID),
        (SglDescriptor::keyed(0, 4096, 1), Status::SGL_TYPE_INVALID),
        (SglDescriptor::transport(4096), Status::INVALID_FIELD),
    ] {
        let entry = write(0, 1).with_command(CommandId(3)).with_sgl(sgl);
        let pdu = io.pdu(kind::COMMAND, 0, entry.as_bytes(), &data);
        io.stream.write_all(&pdu).unwrap();
        assert_eq!(io.complete(CommandId(3), &[]).0.status().code(), expected);
    }
    let entry = SubmissionEntry::read(VOLUME, Lba(0), BlockCount(1));
    assert_eq!(io.status(entry, &[], 8192).code(), Status::SGL_LENGTH_INVALID);
    assert_eq!(
        io.status(SubmissionEntry::read(VOLUME, Lba(1 << 40), BlockCount(1)), &[], 4096).code(),
        Status::LBA_OUT_OF_RANGE
    );
    is_well(&mut io);
}

#[test]
fn commands_before_connect_and_beyond_the_queue_are_refused() {
    let target = Target::new();
    let mut client = Client::open(target.address, Style::default());
    assert_eq!(client.status(SubmissionEntry::keep_alive(), &[], 0).code(), Status::COMMAND_SEQUENCE);
    let answer = client.connect(QueueId(1), 32, ControllerId(77), 0);
    assert_eq!(answer.status().code(), Status::CONNECT_INVALID_PARAMETERS);
    let answer = client.connect(QueueId::ADMIN, 32, ControllerId::DYNAMIC, 0);
    assert_eq!(answer.status(), Status::SUCCESS, "it may try again");

    let style = Style { no_in_capsule: true, ..Style::default() };
    let (_admin, mut io) = target.session(style);
    // 32 entries: the 33rd write that waits for its data is one too many.
    for _ in 0..33 {
        io.send(write(0, 1), &pattern(0, 1, 1), 0);
    }
    for _ in 0..32 {
        let mut header = [0; 24];
        if io.stream.read_exact(&mut header).is_err() {
            break;
        }
        assert_eq!(header[0], kind::R2T);
    }
    let mut rest = Vec::new();
    let _ = io.stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "the connection is over");
    let (_admin, mut neighbour) = target.session(Style::default());
    is_well(&mut neighbour);
}

#[test]
fn slow_silent_half_open_and_vanishing_hosts_cost_only_themselves() {
    let target = Target::with(|config| {
        (config.patience, config.setup_timeout) = (Duration::from_millis(300), Duration::from_millis(300));
    });
    let neighbour_style = Style::default();
    let (mut admin, mut neighbour) = target.session(neighbour_style);
    let mut over = Vec::new();
    // Nothing at all; half an IC_REQ; half a command; half of its data; data that was asked for and never comes.
    over.push(Client::raw(target.address));
    let mut half = Client::raw(target.address);
    half.write_all(&[0; 7]).unwrap();
    over.push(half);
    let (_kept, controller) = Client::admin(target.address, Style::default(), 0);
    let mut half = Client::io(target.address, Style::default(), controller, 1);
    half.stream.write_all(&[kind::COMMAND, 0, 72]).unwrap();
    over.push(half.stream);
    let mut half = Client::io(target.address, Style::default(), controller, 2);
    let entry = write(0, 2).with_sgl(SglDescriptor::in_capsule(0, 8192));
    let pdu = half.pdu(kind::COMMAND, 0, entry.as_bytes(), &[1; 8192]);
    half.stream.write_all(&pdu[..3000]).unwrap();
    over.push(half.stream);
    let style = Style { no_in_capsule: true, ..Style::default() };
    let mut waits = Client::io(target.address, style, controller, 3);
    waits.send(write(0, 2), &[1; 8192], 0);
    assert_eq!(waits.receive().common.kind, kind::R2T);
    over.push(waits.stream);
    for mut stream in over {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "it is closed without a word");
    }
    // One that vanishes in the middle of its data.
    let mut vanishes = Client::io(target.address, Style::default(), controller, 3);
    let pdu = vanishes.pdu(kind::COMMAND, 0, entry.as_bytes(), &[1; 8192]);
    vanishes.stream.write_all(&pdu[..5000]).unwrap();
    drop(vanishes);
    // One that takes no answers.
    let deaf = Client::io(target.address, Style::default(), controller, 2);
    let read_much = SubmissionEntry::read(VOLUME, Lba(0), BlockCount(64)).with_sgl(SglDescriptor::transport(64 * 4096));
    let mut sent = &deaf.stream;
    for id in 0..31 {
        let pdu = deaf.pdu(kind::COMMAND, 0, read_much.with_command(CommandId(id)).as_bytes(), &[]);
        sent.write_all(&pdu).unwrap();
    }
    is_well(&mut neighbour);
    assert!(read(&mut neighbour, 0, 2).iter().all(|byte| *byte == 0), "half a write is none");
    assert_eq!(admin.status(SubmissionEntry::keep_alive(), &[], 0), Status::SUCCESS);
    drop(deaf);
}

#[test]
fn a_host_that_is_silent_longer_than_it_said_loses_its_controller() {
    let target = Target::new();
    let (mut admin, controller) = Client::admin(target.address, Style::default(), 200);
    let mut io = Client::io(target.address, Style::default(), controller, 1);
    admin.is_over();
    io.is_over();
    let (_admin, mut io) = target.session(Style::default());
    is_well(&mut io);
}

#[test]
fn more_connections_than_there_is_room_for_are_turned_away() {
    let target = Target::with(|config| config.connections = 3);
    let (_admin, mut neighbour) = target.session(Style::default());
    let _third = Client::open(target.address, Style::default());
    for _ in 0..20 {
        let mut stream = Client::raw(target.address);
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)), "closed");
    }
    is_well(&mut neighbour);
}
