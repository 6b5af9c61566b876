//! Either end of a connection, with somebody at the other who says what bytes tell him to. Nothing may panic, hang, or go unbounded. proptest
//! runs these in every test; `fuzz/` has a target for each.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::task::Poll;

use dyad_matrix::Memory;
use dyad_matrix::memory::HugePages;
use dyad_nvme::bytes::put;
use dyad_nvme::register;
use dyad_nvme::types::BlockCount;
use dyad_reactor::{SeededRng, Time};

use super::client::VfioUserFunction;
use super::server::Client;
use super::socket::{Closed, send};
use super::wire::{self, RegionInfo, command, flag, message, vfio};
use crate::emulator::{BAR_BYTES, BlockFormat, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use crate::pci::PciFunction;

/// What is left of the bytes; zeros behind their end.
struct Story<'a>(&'a [u8]);

impl<'a> Story<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn take(&mut self, len: u8) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(usize::from(len).min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn shared(bytes: u64) -> Memory {
    Memory::shared("dyad-fuzz", usize::try_from(bytes).expect("a few pages"), HugePages::No).expect("memory")
}

/// A server with a client that sends what the bytes say.
///
/// # Panics
/// If the server has a fault.
pub fn server(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
    let blocks = BlockCount(16);
    let config = NamespaceConfig { uuid: [1; 16], blocks, cache_blocks: Some(4), format: BlockFormat::Bare };
    let media = MemoryMedia::new(usize::try_from(config.media_bytes()).expect("small"));
    subsystem.add_namespace(config, Box::new(media));
    let (bar, memory) = (shared(BAR_BYTES), shared(8192));
    subsystem.share_bar(0, bar.clone());
    let (mut near, far) = UnixStream::pair().expect("a pair");
    for stream in [&near, &far] {
        stream.set_nonblocking(true).expect("so that nobody waits");
    }
    let mut client = Client::new(far);
    while !story.0.is_empty() {
        let command = u16::from(story.byte() % 16);
        let (flags, lie, len) = (story.byte(), story.byte(), story.byte());
        let mut bytes = message(1, command, u32::from(flags & 0x3e), 0, story.take(len));
        if lie % 8 == 7 {
            put(&mut bytes, 4, &u32::from(lie).to_le_bytes());
        }
        let fd = [memory.fd().expect("a file")];
        let fds: &[BorrowedFd<'_>] = if lie % 2 == 1 { &fd } else { &[] };
        let _ = send(&near, &bytes, fds);
        loop {
            match client.next(0, &bar, &mut subsystem, Time::ZERO) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Closed) => return subsystem.disconnect(0),
            }
        }
        subsystem.step(Time::ZERO);
        let _ = near.read(&mut [0; 4096]);
    }
}

/// A client whose server answers what the bytes say.
///
/// # Panics
/// If the client has a fault.
pub fn client(bytes: &[u8]) {
    let mut story = Story(bytes);
    let (near, mut far) = UnixStream::pair().expect("a pair");
    let bar = shared(BAR_BYTES);
    let honest = [
        (command::VERSION, wire::version()),
        (command::DEVICE_GET_INFO, wire::device_info()),
        (
            command::DEVICE_GET_REGION_INFO,
            RegionInfo { flags: 7, index: vfio::BAR0, size: BAR_BYTES, offset: 0, areas: Vec::new() }.to_bytes(32),
        ),
        (command::DEVICE_SET_IRQS, Vec::new()),
    ];
    for (id, (command, payload)) in (0..).zip(honest) {
        let fd = [bar.fd().expect("a file")];
        let fds: &[BorrowedFd<'_>] = if command == command::DEVICE_GET_REGION_INFO { &fd } else { &[] };
        // Most stories get through to the end of this.
        let _ = match story.byte() {
            0..224 => send(&far, &message(id, command, flag::REPLY, 0, &payload), fds),
            lie => send(&far, &message(id, command, u32::from(lie & 0x21), 22, story.take(lie & 63)), fds),
        };
    }
    let steps: Vec<u8> = story.take(24).to_vec();
    let mut id = 4_u16;
    while !story.0.is_empty() {
        let (kind, len) = (story.byte(), story.byte() % 40);
        let command = [command::REGION_READ, command::DMA_MAP, command::DEVICE_RESET][usize::from(kind % 3)];
        let error = if kind & 0x40 == 0 { 0 } else { flag::ERROR };
        let payload = story.take(len);
        if kind & 0x80 == 0 {
            let _ = far.write(&message(id, command, flag::REPLY | error, u32::from(len), payload));
        } else {
            let _ = far.write(payload);
        }
        id = id.wrapping_add(u16::from(kind & 0x20 == 0));
    }
    // Nothing more will come, so nobody waits for it.
    far.shutdown(std::net::Shutdown::Write).expect("open");
    let Ok(function) = VfioUserFunction::over(near) else { return };
    let memories = [shared(4096), shared(8192), Memory::anonymous(4096)];
    for step in steps {
        match step % 8 {
            0 | 1 => drop(function.read32(register::CSTS)),
            2 => drop(function.read64(register::CAP)),
            3 => function.write32(register::CC, u32::from(step)),
            4 => drop(function.map_dma(&memories[usize::from(step / 8) % 3])),
            5 => drop(function.settled()),
            6 => function.doorbell(register::DOORBELLS, u32::from(step)),
            _ => function.mask_interrupt(step & 8 == 0),
        }
    }
    function.reset();
    assert_eq!(function.read32(register::CSTS), Poll::Ready(register::GONE), "it is gone for good");
    assert!(function.interrupt().is_some_and(|fd| fd.as_fd().try_clone_to_owned().is_ok()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_server_bears_any_client(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::server(&bytes);
        }

        #[test]
        fn a_client_bears_any_server(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            super::client(&bytes);
        }
    }
}
