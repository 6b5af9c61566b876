//! Devices that break the protocol: every one of them ends in a clear error, in bounded time, without a panic.

use super::*;
use crate::pci::BusAddress;
use dyad_nvme::CompletionEntry;
use dyad_nvme::register;
use dyad_nvme::types::{CommandId, QueueId};

/// The emulated controller behind somebody who lies about it.
struct Liar {
    inner: EmulatedFunction,
    cap: Option<u64>,
    csts: Option<u32>,
    deaf: bool,
    queues: Rc<RefCell<Option<Memory>>>,
}

impl PciFunction for Liar {
    fn read32(&self, offset: u32) -> Poll<u32> {
        match (offset, self.csts) {
            (register::CSTS, Some(csts)) => Poll::Ready(csts),
            _ => self.inner.read32(offset),
        }
    }

    fn read64(&self, offset: u32) -> Poll<u64> {
        match (offset, self.cap) {
            (register::CAP, Some(cap)) => Poll::Ready(cap),
            _ => self.inner.read64(offset),
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        self.inner.write32(offset, value);
    }

    fn doorbell(&self, offset: u32, value: u32) {
        if !self.deaf {
            self.inner.doorbell(offset, value);
        }
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        let memory = self.inner.allocate(len)?;
        self.queues.replace(Some(memory.clone()));
        Ok(memory)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        self.inner.map_dma(memory)
    }

    fn reset(&self) {
        self.inner.reset();
    }
}

/// Attaches to a liar; `forge` may change every page of data that the device gave, before the driver looks at it.
fn attach(lie: impl Fn(&mut Liar), forge: impl Fn(&mut [u8; 4096])) -> Result<DeviceInfo, AttachError> {
    let rig = rig();
    let queues = Rc::new(RefCell::new(None));
    let mut liar = Liar { inner: rig.function(0), cap: None, csts: None, deaf: false, queues: Rc::clone(&queues) };
    lie(&mut liar);
    let handle = rig.executor.handle();
    let mut attach = pin!(Driver::attach(liar, &handle, A));
    for _ in 0..100_000 {
        if let Poll::Ready(driver) = attach.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return driver.map(|d| d.info());
        }
        rig.turn();
        if let Some(memory) = &*queues.borrow() {
            for offset in (0..memory.len()).step_by(4096) {
                let mut page = [0; 4096];
                memory.read(offset, &mut page).unwrap();
                let before = page;
                forge(&mut page);
                if page != before {
                    memory.write(offset, &page).unwrap();
                }
            }
        }
        rig.wait();
    }
    panic!("attaching takes for ever");
}

fn honest(_: &mut [u8; 4096]) {}

fn is_controller(page: &[u8; 4096]) -> bool {
    page[24..].starts_with(b"Dyad emulated device")
}

fn is_namespace(page: &[u8; 4096]) -> bool {
    page[..8] == 4096_u64.to_le_bytes() && page[8..16] == 4096_u64.to_le_bytes()
}

#[test]
fn registers_that_cannot_be() {
    use AttachError as E;
    let cap = |f: fn(u64) -> u64| {
        let lie = |liar: &mut Liar| {
            let Poll::Ready(honestly) = liar.inner.read64(register::CAP) else { panic!("registers in memory") };
            liar.cap = Some(f(honestly));
        };
        attach(lie, honest)
    };
    assert!(attach(|_| {}, honest).is_ok(), "the harness itself is honest");
    assert_eq!(cap(|_| u64::MAX), Err(E::Gone));
    assert!(matches!(cap(|cap| cap & !(1 << 37)), Err(E::Unsupported(_))));
    assert!(matches!(cap(|cap| cap | 1 << 48), Err(E::Unsupported(_))));
    assert!(matches!(cap(|cap| cap & !0xffff | 1), Err(E::Unsupported(_))), "queues of two entries");
    assert_eq!(cap(|cap| cap & !0xffff | 2).unwrap().queue_depth, 2, "queues of three entries are enough");
    assert!(
        cap(|cap| cap | 15 << 32).is_ok(),
        "the first doorbell is where it always is; the others are the ladder's business"
    );
    assert!(cap(|cap| cap & !(0xff << 24)).is_ok(), "a time-out of zero");
    let csts = |value| attach(move |liar| liar.csts = Some(value), honest);
    assert_eq!(csts(0xffff_ffff), Err(E::Gone));
    assert_eq!(csts(0), Err(E::NotReady(Duration::from_secs(10))));
    assert_eq!(csts(1), Err(E::NotReady(Duration::from_secs(10))));
    assert_eq!(csts(2), Err(E::Fatal));
    assert!(matches!(attach(|liar| liar.deaf = true, honest), Err(E::Silent(_))));
}

#[test]
fn doorbells_that_are_nowhere() {
    let rig = rig();
    let liar = Liar { inner: rig.function(0), cap: None, csts: None, deaf: false, queues: Rc::default() };
    let Poll::Ready(cap) = liar.inner.read64(register::CAP) else { panic!("registers in memory") };
    let handle = rig.executor.handle();
    // The admin queue's first doorbell is where it always is, so it is found; the I/O queue's are not.
    let a = rig.run(Driver::attach(Liar { cap: Some(cap | 15 << 32), ..liar }, &handle, A)).expect("attached");
    let memory = Memory::anonymous(4096);
    a.map(&memory).unwrap();
    let read = a.submit(Io::Read { lba: Lba(0), segments: &[segment(&memory, 0, 1)] }).unwrap();
    let polled = async {
        let mut read = pin!(read);
        std::future::poll_fn(|cx| {
            a.poll();
            read.as_mut().poll(cx)
        })
        .await
    };
    assert_eq!(rig.run(polled), Err(DeviceError::Aborted));
    assert_eq!(a.resets(), 1);
}

#[test]
fn identify_data_that_cannot_be() {
    use AttachError as E;
    let controller = |change: fn(&mut [u8; 4096])| {
        attach(
            |_| {},
            move |page| {
                if is_controller(page) {
                    change(page);
                }
            },
        )
    };
    let namespace = |change: fn(&mut [u8; 4096])| {
        attach(
            |_| {},
            move |page| {
                if is_namespace(page) {
                    change(page);
                }
            },
        )
    };
    assert!(matches!(controller(|page| page[512] = 0x55), Err(E::Nonsense(_))));
    assert_eq!(controller(|page| page[77] = 255).unwrap().transfer_blocks_max, BlockCount(512));
    assert_eq!(controller(|page| page[77] = 0).unwrap().transfer_blocks_max, BlockCount(512));
    assert!(!controller(|page| page[520] &= !0x20).unwrap().reservations, "no reservations, no fencing");
    assert!(!controller(|page| page[96] = 0).unwrap().reservations, "no 128-bit Host Identifier");
    assert!(!namespace(|page| page[31] = 0x7f).unwrap().reservations, "no IEKEY");
    assert!(matches!(namespace(|page| page[..8].fill(0)), Err(E::Nonsense(_))));
    assert!(matches!(namespace(|page| page[7] = 0x10), Err(E::Nonsense(_))), "more bytes than can be counted");
    assert!(matches!(namespace(|page| page[26] = 9), Err(E::Format { data: None, .. })));
    assert!(matches!(namespace(|page| page[130] = 9), Err(E::Format { data: Some(512), .. })));
    assert!(matches!(namespace(|page| page[130] = 200), Err(E::Format { data: None, .. })));
    assert!(matches!(namespace(|page| page[128] = 64), Err(E::Format { metadata: 64, .. })));
}

#[test]
fn completions_that_cannot_be() {
    let good = CompletionEntry::new(0, CommandId(0), Status::SUCCESS).with_queue(QueueId(1)).with_phase(true);
    let with = |sq_head, command, queue| {
        CompletionEntry::new(sq_head, CommandId(command), Status::SUCCESS).with_queue(QueueId(queue)).with_phase(true)
    };
    for (name, forged) in [
        ("an identifier beyond the slots", with(0, 5000, 1)),
        ("an identifier that is not in flight", with(0, 77, 1)),
        ("a head outside the queue", with(129, 0, 1)),
        ("another queue", with(0, 0, 2)),
    ] {
        let rig = rig();
        let a = rig.attach(0, A);
        let memory = mapped(&a, 2);
        let command = a.submit(Io::Flush).unwrap();
        {
            let core = a.shared.core.borrow();
            core.io.forge(0, forged);
        }
        assert_eq!(rig.run(command), Err(DeviceError::Aborted), "{name}");
        assert_eq!(a.resets(), 1, "{name}");
        assert_eq!(write(&rig, &a, &memory, 1, 1, false), Ok(()), "{name}");
    }
    // A completion before its time is believed, as it must be; the real one is then of no command.
    let rig = rig();
    let a = rig.attach(0, A);
    let command = a.submit(Io::Flush).unwrap();
    a.shared.core.borrow().io.forge(0, good);
    a.shared.core.borrow().io.forge(1, good);
    assert_eq!(rig.run(command), Ok(()));
    rig.pass(Duration::from_secs(10));
    assert_eq!(a.resets(), 1);
}

#[test]
fn statuses_of_every_kind_are_errors_and_nothing_else() {
    for bits in 1..0x800_u16 {
        let error = error_of(Status::from_bits(bits));
        assert_ne!(error, DeviceError::Gone, "{bits:#x}");
        let conflict = error == DeviceError::ReservationConflict;
        assert_eq!(conflict, Status::from_bits(bits) == Status::RESERVATION_CONFLICT);
    }
}
