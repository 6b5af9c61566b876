//! A stand-in for what QEMU's controllers (7.2) have not: reservations, without which no device may be in a pair
//! (PROTOCOLS 5.5). Blocks go to the real controller. The reservation is kept in this process, which both directors of the
//! test share, and is exactly as much as it takes to become a pair: registering, and Write Exclusive - All Registrants.
//! Nobody is put out in the test, so that is refused.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use dyad_backend::Device;
use dyad_backend::device::{
    DeviceError, DeviceInfo, Io, Registrant, ReservationKey, ReservationOp, ReservationReport, ReservationType,
    SubmitError,
};
use dyad_backend::driver::{Completion, Driver};
use dyad_backend::pci::PciFunction;
use dyad_backend::vfio::VfioFunction;
use dyad_matrix::Memory;
use dyad_nvme::register;
use dyad_reactor::Source;

/// The reservation of one namespace.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    registrants: Vec<([u8; 16], ReservationKey)>,
    /// Every registrant is a holder; nobody else writes.
    held: bool,
}

/// A controller that can be upset from another thread.
#[derive(Debug, Default)]
pub(super) struct Upset {
    /// The controller is to be disabled behind its driver's back.
    pub(super) now: AtomicBool,
    /// How often its driver has reset it.
    pub(super) resets: AtomicU32,
}

/// A namespace behind a controller of a director's own.
#[derive(Debug, Clone)]
pub(super) struct Fenced {
    pub(super) driver: Driver<VfioFunction>,
    pub(super) host: [u8; 16],
    pub(super) reservation: Arc<Mutex<Reservation>>,
    pub(super) upset: Arc<Upset>,
}

impl Fenced {
    fn with<T>(&self, what: impl FnOnce(&mut Reservation) -> T) -> T {
        what(&mut self.reservation.lock().expect("nobody panics with it"))
    }
}

/// Of a command that was sent, or of one that a reservation stands against.
#[derive(Debug)]
pub(super) enum Outcome {
    Sent(Completion),
    Conflict,
}

impl Future for Outcome {
    type Output = Result<(), DeviceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Sent(completion) => Pin::new(completion).poll(cx),
            Self::Conflict => Poll::Ready(Err(DeviceError::ReservationConflict)),
        }
    }
}

impl Device for Fenced {
    type Completion = Outcome;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { reservations: true, ..self.driver.info() }
    }

    fn map(&self, memory: &Memory) -> Result<(), SubmitError> {
        self.driver.map(memory)
    }

    fn submit(&self, io: Io<'_>) -> Result<Outcome, SubmitError> {
        let reads = matches!(io, Io::Read { .. });
        let may = self.with(|r| reads || !r.held || r.registrants.iter().any(|(host, _)| *host == self.host));
        if may { self.driver.submit(io).map(Outcome::Sent) } else { Ok(Outcome::Conflict) }
    }

    async fn reserve(&self, op: ReservationOp) -> Result<(), DeviceError> {
        self.with(|r| match op {
            ReservationOp::Register { key } => {
                r.registrants.retain(|(host, _)| *host != self.host);
                r.registrants.push((self.host, key));
                Ok(())
            }
            ReservationOp::Acquire { rtype: ReservationType::WriteExclusiveAllRegistrants, .. } => {
                r.held = true;
                Ok(())
            }
            _ => Err(DeviceError::Rejected),
        })
    }

    async fn reservation_report(&self) -> Result<ReservationReport, DeviceError> {
        Ok(self.with(|r| ReservationReport {
            rtype: r.held.then_some(5),
            persistent: true,
            registrants: r.registrants.iter().map(|&(host, key)| Registrant { host, key, holder: r.held }).collect(),
        }))
    }
}

impl Source for Fenced {
    fn poll(&mut self) -> usize {
        if self.upset.now.swap(false, Ordering::Relaxed) {
            self.driver.function().write32(register::CC, 0);
        }
        self.upset.resets.store(self.driver.resets(), Ordering::Relaxed);
        self.driver.poll()
    }

    fn arm(&mut self) {
        self.driver.arm();
    }

    fn disarm(&mut self) {
        self.driver.disarm();
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.driver.fd()
    }
}
