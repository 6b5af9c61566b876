//! A host that does whatever bytes say, to a subsystem with whatever faults they say. Nothing may panic or hang. proptest runs this in every
//! test; `fuzz/` has a target for it.

use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::SubmissionEntry;
use dyad_nvme::register::{self, AdminQueueAttributes, Configuration, DOORBELLS};
use dyad_nvme::types::{BlockCount, Lba, NamespaceId, QueueId};
use dyad_reactor::{SeededRng, Time};

use super::{
    BadBlock, BlockFault, BlockFormat, Delay, Latency, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig,
};

/// Where the host's memory lies for the device: admin queues, two I/O queue pairs, then pages for data.
const BASE: u64 = 0x10_0000;
const PAGES: u64 = 16;
const ENTRIES: u16 = 8;

struct Story<'a>(&'a [u8]);

impl Story<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let len = N.min(self.0.len());
        taken[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        taken
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
}

/// Plays `bytes`.
///
/// # Panics
/// If the controller has a fault.
pub fn host(bytes: &[u8]) {
    let mut story = Story(bytes);
    let mut host = Host::new(match story.byte() % 3 {
        0 => BlockFormat::Bare,
        1 => BlockFormat::Metadata,
        _ => BlockFormat::Protected,
    });
    host.enable();
    while !story.0.is_empty() {
        host.act(&mut story);
        host.now = host.now + Duration::from_micros(10);
        host.subsystem.step(host.now);
    }
    // However it was treated, after power is back it can be enabled again.
    host.subsystem.power_loss();
    host.subsystem.power_on();
    host.subsystem.disconnect(0);
    let _ = host.subsystem.map_dma(0, BASE, host.memory.len(), &host.memory, 0);
    host.enable();
    assert_eq!(host.subsystem.read32(0, register::CSTS), 1, "it is ready");
}

struct Host {
    subsystem: Subsystem,
    memory: Memory,
    tails: [u16; 3],
    now: Time,
}

impl Host {
    fn new(format: BlockFormat) -> Self {
        let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
        let blocks = BlockCount(16);
        let config = NamespaceConfig { uuid: [1; 16], blocks, cache_blocks: Some(4), format };
        let media = MemoryMedia::new(usize::try_from(config.media_bytes()).expect("small"));
        subsystem.add_namespace(config, Box::new(media));
        let memory = Memory::anonymous(usize::try_from(PAGES * 4096).expect("small"));
        assert!(subsystem.map_dma(0, BASE, memory.len(), &memory, 0));
        Self { subsystem, memory, tails: [0; 3], now: Time::ZERO }
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.subsystem.write32(0, offset, value, self.now);
    }

    fn enable(&mut self) {
        self.tails = [0; 3];
        self.write(register::CC, Configuration::DISABLED.0);
        self.write(register::AQA, AdminQueueAttributes::new(ENTRIES).0);
        for (at, page) in [(register::ASQ, 0), (register::ACQ, 1)] {
            let [a, b, c, d, ..] = (BASE + page * 4096).to_le_bytes();
            self.write(at, u32::from_le_bytes([a, b, c, d]));
            self.write(at + 4, 0);
        }
        self.write(register::CC, Configuration::ENABLED.0);
        self.subsystem.step(self.now);
        for id in [1, 2] {
            let (sq, cq) = (BASE + u64::from(id) * 8192, BASE + u64::from(id) * 8192 + 4096);
            let queue = QueueId(id);
            self.send(0, SubmissionEntry::create_completion_queue(queue, ENTRIES, Some(0)).with_prp(cq, 0));
            self.send(0, SubmissionEntry::create_submission_queue(queue, ENTRIES, queue).with_prp(sq, 0));
        }
    }

    fn send(&mut self, queue: u16, entry: SubmissionEntry) {
        let tail = &mut self.tails[usize::from(queue)];
        let at = u64::from(queue) * 8192 + u64::from(*tail) * 64;
        self.memory.write(at, entry.as_bytes()).expect("in the ring");
        *tail = (*tail + 1) % ENTRIES;
        let tail = u32::from(*tail);
        self.write(DOORBELLS + u32::from(queue) * 8, tail);
        // Whatever was completed has been seen.
        self.write(DOORBELLS + u32::from(queue) * 8 + 4, tail);
        self.subsystem.step(self.now);
    }

    fn act(&mut self, story: &mut Story<'_>) {
        let (what, how) = (story.byte(), story.byte());
        match what % 16 {
            0..8 => {
                let mut bytes: [u8; 64] = story.bytes();
                if how & 1 == 0 {
                    // Addresses and namespaces that exist.
                    bytes[4] &= 1;
                    bytes[5..8].fill(0);
                    for pointer in [16, 24, 32] {
                        bytes[pointer + 2] = 0x10;
                        bytes[pointer + 3..pointer + 8].fill(0);
                    }
                }
                self.send(u16::from(how >> 1) % 3, SubmissionEntry::from_bytes(bytes));
            }
            8 => self.write((story.u32() % 0x4000) & !3, u32::from(how) | story.u32() << 8),
            9 => self.write(DOORBELLS + u32::from(how % 8) * 4, u32::from(story.byte())),
            10 => {
                let data: [u8; 32] = story.bytes();
                self.memory.write(u64::from(how) * 256, &data).expect("in the host's memory");
            }
            11 => {
                let from = BASE + u64::from(how % 16) * 4096;
                let _ = self.subsystem.unmap_dma(0, from, u64::from(story.u32()));
                let _ = self.subsystem.map_dma(0, from, 4096, &self.memory, 0);
            }
            12 => self.subsystem.set_latency(Latency {
                write: Duration::from_micros(u64::from(how)),
                jitter: Duration::from_micros(u64::from(story.byte())),
                bytes_per_s: (how & 1 == 0).then(|| u64::from(story.u32())),
                ..Latency::default()
            }),
            13 => match how % 4 {
                0 => self.subsystem.set_delay(Some(Delay { one_in: 2, by: Duration::from_millis(1) })),
                1 => self.subsystem.hang(1, how & 4 == 0),
                2 => self.subsystem.fail(0),
                _ => self.subsystem.ask_for_doorbells(),
            },
            14 => {
                let fault = match how % 4 {
                    0 => BlockFault::Bad(BadBlock::Forever),
                    1 => BlockFault::Corrupt,
                    2 => BlockFault::LoseNextWrite,
                    _ => BlockFault::MisdirectNextWrite(Lba(u64::from(story.byte()))),
                };
                self.subsystem.inject(NamespaceId(1), Lba(u64::from(story.byte())), fault);
            }
            _ => match how % 4 {
                0 => self.subsystem.reset(0),
                1 => self.subsystem.disconnect(0),
                2 => {
                    self.subsystem.remove(0);
                    self.subsystem.plug_in(0);
                }
                _ => {
                    let _ = self.subsystem.map_dma(0, BASE, self.memory.len(), &self.memory, 0);
                    self.enable();
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_controller_bears_any_host(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            super::host(&bytes);
        }
    }
}
