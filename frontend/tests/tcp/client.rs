//! A host of NVMe/TCP that says exactly what a test wants it to say, and checks every byte that it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dyad_nvme::fabrics::{ConnectData, PropertySize};
use dyad_nvme::register::{self, Configuration};
use dyad_nvme::tcp::{CommonHeader, DataHeader, FatalError, IcReq, IcResp, flags, kind};
use dyad_nvme::types::{CommandId, ControllerId, HostId, NamespaceId, QueueId};
use dyad_nvme::{CompletionEntry, SglDescriptor, Status, SubmissionEntry, bytes};

pub(crate) const NQN: &str = "nqn.2026-01.org.dyad:array";
pub(crate) const HOST: &str = "nqn.2026-01.org.dyad:host";
pub(crate) const HOST_ID: HostId = HostId([7; 16]);
pub(crate) const VOLUME: NamespaceId = NamespaceId(1);

/// Ten times what an idle machine needs, and more.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a host wants its connections.
#[derive(Debug, Copy, Clone, Default)]
pub(crate) struct Style {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// HPDA.
    pub(crate) alignment: u8,
    /// Send all data when asked for, none in capsules.
    pub(crate) no_in_capsule: bool,
    /// SQ flow control off.
    pub(crate) no_flow_control: bool,
}

pub(crate) struct Pdu {
    pub(crate) common: CommonHeader,
    pub(crate) header: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) style: Style,
    /// What the target said.
    pub(crate) agreed: IcResp,
    next: u16,
}

impl Client {
    /// A connection on which nothing was said.
    pub(crate) fn raw(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A connection that may carry commands.
    pub(crate) fn open(address: SocketAddr, style: Style) -> Self {
        let mut stream = Self::raw(address);
        let Style { header_digest, data_digest, alignment, .. } = style;
        let request = IcReq { version: 0, alignment, header_digest, data_digest, r2t_max: 0 };
        stream.write_all(&request.to_bytes()).unwrap();
        let mut response = [0; 128];
        stream.read_exact(&mut response).unwrap();
        assert_eq!(response[0], kind::IC_RESP);
        let agreed = IcResp::from_bytes(&response);
        assert_eq!((agreed.header_digest, agreed.data_digest), (header_digest, data_digest));
        Self { stream, style, agreed, next: 0 }
    }

    /// An admin queue whose controller is ready.
    pub(crate) fn admin(address: SocketAddr, style: Style, keep_alive_ms: u32) -> (Self, ControllerId) {
        let mut client = Self::open(address, style);
        let answer = client.connect(QueueId::ADMIN, 32, ControllerId::DYNAMIC, keep_alive_ms);
        assert!(answer.status().is_success(), "{:?}", answer.status());
        let controller = ControllerId(bytes::u16_at(&answer.to_bytes(), 0));
        let enable =
            SubmissionEntry::property_set(register::CC, PropertySize::Four, u64::from(Configuration::ENABLED.0));
        assert!(client.ask(enable, &[], 0).0.status().is_success());
        (client, controller)
    }

    /// An I/O queue of a controller.
    pub(crate) fn io(address: SocketAddr, style: Style, controller: ControllerId, queue: u16) -> Self {
        let mut client = Self::open(address, style);
        let answer = client.connect(QueueId(queue), 32, controller, 0);
        assert!(answer.status().is_success(), "{:?}", answer.status());
        client
    }

    pub(crate) fn connect(
        &mut self,
        queue: QueueId,
        entries: u16,
        controller: ControllerId,
        keep_alive_ms: u32,
    ) -> CompletionEntry {
        let data = ConnectData::new(HOST_ID, controller, NQN, HOST).to_bytes();
        let mut entry = SubmissionEntry::connect(queue, entries, keep_alive_ms);
        if self.style.no_flow_control {
            entry = entry.with_dword(11, entry.dword(11) | 1 << 18);
        }
        self.ask(entry, &data, 0).0
    }

    fn next_id(&mut self) -> CommandId {
        self.next = self.next.wrapping_add(1);
        CommandId(self.next)
    }

    /// Sends a command with this data, in the capsule unless the style says otherwise; `reads` bytes are expected. Its identifier.
    pub(crate) fn send(&mut self, entry: SubmissionEntry, data: &[u8], reads: u32) -> CommandId {
        let id = self.next_id();
        let len = u32::try_from(data.len()).unwrap();
        let in_capsule = !data.is_empty() && !self.style.no_in_capsule;
        let sgl = if in_capsule { SglDescriptor::in_capsule(0, len) } else { SglDescriptor::transport(len.max(reads)) };
        let entry = entry.with_command(id).with_sgl(sgl);
        let pdu = self.pdu(kind::COMMAND, 0, entry.as_bytes(), if in_capsule { data } else { &[] });
        self.stream.write_all(&pdu).unwrap();
        id
    }

    /// A PDU as this connection wants it.
    pub(crate) fn pdu(&self, kind: u8, extra: u8, rest: &[u8], data: &[u8]) -> Vec<u8> {
        let header_len = 8 + rest.len();
        let head = header_len + if self.style.header_digest { 4 } else { 0 };
        let unit = 4 * (usize::from(self.agreed.alignment) + 1);
        let data_at = if data.is_empty() { 0 } else { head.next_multiple_of(unit) };
        let tail = if self.style.data_digest && !data.is_empty() { 4 } else { 0 };
        let len = if data.is_empty() { head } else { data_at + data.len() + tail };
        let common = CommonHeader {
            kind,
            flags: extra
                | if self.style.header_digest { flags::HEADER_DIGEST } else { 0 }
                | if tail > 0 { flags::DATA_DIGEST } else { 0 },
            header_len: u8::try_from(header_len).unwrap(),
            data_at: u8::try_from(data_at).unwrap(),
            len: u32::try_from(len).unwrap(),
        };
        let mut pdu = common.to_bytes().to_vec();
        pdu.extend(rest);
        if self.style.header_digest {
            pdu.extend(crc32c::crc32c(&pdu).to_le_bytes());
        }
        if !data.is_empty() {
            pdu.resize(data_at, 0);
            pdu.extend(data);
        }
        if tail > 0 {
            pdu.extend(crc32c::crc32c(data).to_le_bytes());
        }
        pdu
    }

    /// The next PDU, with everything about it checked.
    pub(crate) fn receive(&mut self) -> Pdu {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).unwrap();
        let common = CommonHeader::from_bytes(header);
        let mut pdu = header.to_vec();
        pdu.resize(usize::try_from(common.len).unwrap(), 0);
        self.stream.read_exact(&mut pdu[8..]).unwrap();
        let header_len = usize::from(common.header_len);
        if common.kind == kind::C2H_TERM {
            return Pdu { common, header: pdu[..header_len].to_vec(), data: pdu[header_len..].to_vec() };
        }
        assert_eq!(common.flags & flags::HEADER_DIGEST != 0, self.style.header_digest);
        if self.style.header_digest {
            assert_eq!(bytes::u32_at(&pdu, header_len), crc32c::crc32c(&pdu[..header_len]), "header digest");
        }
        let mut data = Vec::new();
        if common.data_at > 0 {
            let at = usize::from(common.data_at);
            assert_eq!(at % (4 * (usize::from(self.style.alignment) + 1)), 0, "HPDA");
            let end = pdu.len() - if self.style.data_digest { 4 } else { 0 };
            data = pdu[at..end].to_vec();
            if self.style.data_digest {
                assert_eq!(bytes::u32_at(&pdu, end), crc32c::crc32c(&data), "data digest");
            }
        }
        Pdu { common, header: pdu[..header_len].to_vec(), data }
    }

    /// Serves one command until its completion: gives data that is asked for, collects what comes.
    pub(crate) fn complete(&mut self, id: CommandId, data: &[u8]) -> (CompletionEntry, Vec<u8>) {
        let mut read = Vec::new();
        loop {
            let pdu = self.receive();
            match pdu.common.kind {
                kind::RESPONSE => {
                    let completion = CompletionEntry::from_bytes(bytes::array(&pdu.header, 8));
                    assert_eq!(completion.command(), id);
                    return (completion, read);
                }
                kind::C2H_DATA => {
                    let header = DataHeader::from_bytes(&bytes::array(&pdu.header, 8));
                    assert_eq!((header.command, usize::try_from(header.offset).unwrap()), (id, read.len()));
                    assert_eq!(usize::try_from(header.len).unwrap(), pdu.data.len());
                    read.extend(pdu.data);
                    if pdu.common.flags & flags::SUCCESS != 0 {
                        assert!(self.style.no_flow_control && pdu.common.flags & flags::LAST != 0);
                        return (CompletionEntry::new(0, id, Status::SUCCESS), read);
                    }
                }
                kind::R2T => self.give(&pdu, data),
                other => panic!("a PDU of type {other} for command {id:?}"),
            }
        }
    }

    /// Sends what an R2T asks for, in as many PDUs as MAXH2CDATA wants.
    pub(crate) fn give(&mut self, r2t: &Pdu, data: &[u8]) {
        let asked = DataHeader::from_bytes(&bytes::array(&r2t.header, 8));
        let (mut at, end) = (asked.offset, asked.offset + asked.len);
        while at < end {
            let len = (end - at).min(self.agreed.data_max);
            let header = DataHeader { offset: at, len, ..asked };
            let part = &data[usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()];
            at += len;
            let last = if at == end { flags::LAST } else { 0 };
            let pdu = self.pdu(kind::H2C_DATA, last, &header.to_bytes(), part);
            self.stream.write_all(&pdu).unwrap();
        }
    }

    /// A command from beginning to end.
    pub(crate) fn ask(&mut self, entry: SubmissionEntry, data: &[u8], reads: u32) -> (CompletionEntry, Vec<u8>) {
        let id = self.send(entry, data, reads);
        self.complete(id, data)
    }

    /// The status of a command.
    pub(crate) fn status(&mut self, entry: SubmissionEntry, data: &[u8], reads: u32) -> Status {
        self.ask(entry, data, reads).0.status()
    }

    /// The target ends the connection, and says why.
    pub(crate) fn ends_with(&mut self) -> FatalError {
        let pdu = self.receive();
        assert_eq!(pdu.common.kind, kind::C2H_TERM, "a termination request");
        self.is_over();
        FatalError::from_pdu(&bytes::array(&pdu.header, 0))
    }

    /// The target has closed the connection.
    pub(crate) fn is_over(&mut self) {
        let mut rest = Vec::new();
        let ended = self.stream.read_to_end(&mut rest);
        assert!(ended.is_ok_and(|_| rest.is_empty()) || ended_by_reset(&self.stream), "{} bytes more", rest.len());
    }
}

/// The connection is gone altogether.
fn ended_by_reset(stream: &TcpStream) -> bool {
    let mut byte = [0];
    (&mut &*stream).read(&mut byte).is_ok_and(|read| read == 0) || stream.take_error().is_ok()
}
