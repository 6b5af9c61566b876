//! A device that works, but for what bytes say: registers that read otherwise, queue memory that changes, faults, at any moment. The driver may give
//! it up, and must neither panic nor lose a command. proptest runs this in every test; `fuzz/` has a target for it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::Memory;
use dyad_nvme::types::{BlockCount, Lba};
use dyad_reactor::time::ManualClock;
use dyad_reactor::{Clock, Executor, Fifo, Limits, SeededRng};

use super::{Completion, Driver};
use crate::device::{Device, Io};
use crate::emulator::{BlockFormat, EmulatedFunction, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};
use crate::pci::{BusAddress, DmaError, PciFunction};

/// Turns that are enough for whatever was begun to end, in virtual time.
const TURNS: usize = 1_000_000;

/// What is left of the bytes; zeros behind their end.
#[derive(Debug, Default)]
struct Story(Vec<u8>);

impl Story {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.0.pop().unwrap_or(0))
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }
}

/// The emulated controller, with registers that lie now and then.
struct Fickle {
    inner: EmulatedFunction,
    story: Rc<RefCell<Story>>,
    queues: Rc<RefCell<Option<Memory>>>,
}

impl PciFunction for Fickle {
    fn read32(&self, offset: u32) -> Poll<u32> {
        let mut story = self.story.borrow_mut();
        match story.byte() {
            250.. => Poll::Ready(u32::from_le_bytes(story.bytes())),
            240..250 => Poll::Pending,
            _ => self.inner.read32(offset),
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        self.inner.write32(offset, value);
    }

    fn doorbell(&self, offset: u32, value: u32) {
        self.inner.doorbell(offset, value);
    }

    fn allocate(&self, len: usize) -> Result<Memory, DmaError> {
        let memory = self.inner.allocate(len)?;
        self.queues.replace(Some(memory.clone()));
        Ok(memory)
    }

    fn map_dma(&self, memory: &Memory) -> Result<BusAddress, DmaError> {
        self.inner.map_dma(memory)
    }

    fn settled(&self) -> Poll<Result<(), DmaError>> {
        match self.story.borrow_mut().byte() {
            255 => Poll::Ready(Err(DmaError::Full)),
            250..255 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn reset(&self) {
        self.inner.reset();
    }
}

/// Plays `bytes`.
///
/// # Panics
/// If the driver has a fault.
pub fn device(bytes: &[u8]) {
    let mut rig = Rig::new(bytes);
    let function = Fickle {
        inner: EmulatedFunction::new(&rig.subsystem, 0, Rc::<ManualClock>::clone(&rig.clock)),
        story: Rc::clone(&rig.story),
        queues: Rc::clone(&rig.queues),
    };
    let handle = rig.executor.handle();
    let attach = Driver::attach(function, &handle, [0xa; 16]);
    let Ok(driver) = rig.until(None, attach) else { return };
    let memory = Memory::anonymous(64 * 4096);
    let _ = driver.map(&memory);
    let mut commands = Vec::new();
    while !rig.story.borrow().0.is_empty() {
        let what = rig.story.borrow_mut().byte();
        commands.extend(submit(&driver, &memory, what));
        rig.turn(Some(&driver));
    }
    // Whatever was taken ends, and nothing that was heard of the device hangs.
    for command in commands {
        let _ = rig.until(Some(&driver), command);
    }
    let _ = rig.until(Some(&driver), driver.smart_log());
    assert!(driver.failed() || driver.shared.core.borrow().io.outstanding() == 0, "nothing is left over");
}

fn submit(driver: &Driver<Fickle>, memory: &Memory, what: u8) -> Option<Completion> {
    let lba = Lba(u64::from(what / 8));
    let piece = |first: u64, blocks: u32| memory.segment(first * 4096, blocks * 4096).expect("inside");
    let (one, many) = ([piece(3, 1)], [piece(0, 16), piece(40, 2), piece(20, 1)]);
    let io = match what % 8 {
        0 => Io::Write { lba, segments: &one, fua: false },
        1 => Io::Write { lba, segments: &many, fua: true },
        2 => Io::Read { lba, segments: &many },
        3 => Io::Flush,
        4 => Io::WriteZeroes { lba, blocks: BlockCount(3) },
        _ => return None,
    };
    driver.submit(io).ok()
}

struct Rig {
    executor: Executor,
    clock: Rc<ManualClock>,
    subsystem: Rc<RefCell<Subsystem>>,
    story: Rc<RefCell<Story>>,
    queues: Rc<RefCell<Option<Memory>>>,
}

impl Rig {
    fn new(bytes: &[u8]) -> Self {
        let clock = Rc::new(ManualClock::default());
        let executor = Executor::new(Limits { tasks: 4, timers: 64 }, Rc::<ManualClock>::clone(&clock));
        let mut subsystem = Subsystem::new(SubsystemConfig::default(), SeededRng::new(1));
        let blocks = BlockCount(64);
        let format = if bytes.len().is_multiple_of(2) { BlockFormat::Bare } else { BlockFormat::Protected };
        let config = NamespaceConfig { uuid: [7; 16], blocks, cache_blocks: Some(8), format };
        let media = MemoryMedia::new(usize::try_from(config.media_bytes()).expect("small"));
        subsystem.add_namespace(config, Box::new(media));
        let story = Story(bytes.iter().rev().copied().collect());
        Self {
            executor,
            clock,
            subsystem: Rc::new(RefCell::new(subsystem)),
            story: Rc::new(RefCell::new(story)),
            queues: Rc::default(),
        }
    }

    /// Something happens to the device, and everybody has a turn.
    fn turn(&mut self, driver: Option<&Driver<Fickle>>) {
        let what = self.story.borrow_mut().byte();
        match what {
            0..64 => {}
            64..160 => self.scribble(),
            160..164 => self.subsystem.borrow_mut().fail(0),
            164..168 => self.subsystem.borrow_mut().hang(1, what == 164),
            168 => self.subsystem.borrow_mut().remove(0),
            _ => self.pass(),
        }
        self.work(driver);
    }

    fn work(&mut self, driver: Option<&Driver<Fickle>>) -> usize {
        let now = self.clock.now();
        let worked = self.executor.run_until_idle(&mut Fifo) + self.subsystem.borrow_mut().step(now);
        worked + driver.map_or(0, Driver::poll)
    }

    /// Eight bytes of the queue memory change: rings, lists, data of admin commands, shadow doorbells.
    fn scribble(&self) {
        if let Some(memory) = &*self.queues.borrow() {
            let mut story = self.story.borrow_mut();
            let at = u64::from(u32::from_le_bytes(story.bytes()));
            memory.write(at * 8 % memory.len(), &story.bytes::<8>()).expect("inside");
        }
    }

    /// Time goes on to whatever happens next.
    fn pass(&self) {
        let next = [self.subsystem.borrow().next_event(), self.executor.next_deadline()];
        let later = self.clock.now() + Duration::from_millis(1);
        self.clock.set(next.into_iter().flatten().min().unwrap_or(later).max(self.clock.now()));
        self.executor.fire_timers();
    }

    /// Runs a future to its end, while the story goes on, and without it afterwards.
    fn until<T>(&mut self, driver: Option<&Driver<Fickle>>, future: impl Future<Output = T>) -> T {
        let mut future: Pin<Box<_>> = Box::pin(future);
        for _ in 0..TURNS {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            if !self.story.borrow().0.is_empty() {
                self.turn(driver);
            }
            if self.work(driver) == 0 {
                self.pass();
            }
        }
        panic!("it takes for ever");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        // Each story has as many time-outs as it likes.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_driver_bears_any_device(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            super::device(&bytes);
        }

        /// Stories that get through to the commands: little happens at first.
        #[test]
        fn a_driver_bears_a_device_that_goes_bad(
            calm in 50..150_usize,
            bytes in prop::collection::vec(any::<u8>(), 0..1000),
        ) {
            let mut story = vec![170; calm];
            story.extend(bytes);
            super::device(&story);
        }
    }
}
