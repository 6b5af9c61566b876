//! Commands off the I/O path: small data in the slot's own page, an answer that somebody waits for with a deadline.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dyad_matrix::Segment;
use dyad_nvme::log::{self, ErrorEntry, SmartLog};
use dyad_nvme::reservation::{
    AcquireAction, AcquireData, RegisterAction, RegisterData, ReleaseAction, ReportHeader, ReportRegistrant,
};
use dyad_nvme::types::{BlockCount, CommandId, Lba, NamespaceId};
use dyad_nvme::{CompletionEntry, Status, SubmissionEntry};
use dyad_reactor::Time;

use super::channel::{Channel, Ended};
use super::{AttachError, Core, Driver, Shared, State, error_of, outcome};
use crate::device::{
    DeviceError, Registrant, ReservationKey, ReservationOp, ReservationReport, ReservationType, SubmitError,
};
use crate::pci::PciFunction;

/// How long between two looks for an answer.
pub(super) const ANSWER_INTERVAL: Duration = Duration::from_micros(50);

/// Which queue pair.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Admin,
    Io,
}

impl Core {
    fn channel(&mut self, which: Which) -> &mut Channel {
        match which {
            Which::Admin => &mut self.admin,
            Which::Io => &mut self.io,
        }
    }
}

/// A slot whose page is ours. The device may still have it when this is dropped; then it is given back when the device is done.
struct Page<'a, F: PciFunction> {
    shared: &'a Shared<F>,
    which: Which,
    command: CommandId,
}

impl<F: PciFunction> Drop for Page<'_, F> {
    fn drop(&mut self) {
        self.shared.core.borrow_mut().channel(self.which).release(self.command);
    }
}

impl<F: PciFunction> Shared<F> {
    /// Sends a command and waits for its answer, looking for it without anybody's help. `Err(None)` is no answer in time; the command is still the device's.
    pub(super) async fn exchange(
        &self,
        which: Which,
        command: SubmissionEntry,
        data: &[u8],
        back: &mut [u8],
        deadline: Time,
    ) -> Result<CompletionEntry, Option<Ended>> {
        let (page, answer) = loop {
            let submitted = {
                let mut core = self.core.borrow_mut();
                if core.state == State::Failed {
                    return Err(Some(Ended::Gone));
                }
                let tick = core.tick;
                core.channel(which).submit_kept(command, data, tick)
            };
            match submitted {
                Ok((command, answer)) => break (Page { shared: self, which, command }, answer),
                Err(SubmitError::Full) if self.handle.now() < deadline => self.handle.sleep(ANSWER_INTERVAL).await,
                Err(_) => return Err(None),
            }
        };
        let mut answer = pin!(answer);
        loop {
            self.poll();
            if let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                let entry = answer.map_err(Some)?;
                self.core.borrow_mut().channel(which).read_page(page.command, back);
                return Ok(entry);
            }
            if self.handle.now() >= deadline {
                return Err(None);
            }
            self.handle.sleep(ANSWER_INTERVAL).await;
        }
    }

    /// A command of the I/O queue with small data. Its time is long enough for the whole ladder of the watch.
    async fn io(&self, command: SubmissionEntry, data: &[u8], back: &mut [u8]) -> Result<(), DeviceError> {
        {
            let mut core = self.core.borrow_mut();
            if !core.ticking {
                core.ticking = true;
                self.alarm.notify_all();
            }
        }
        let deadline = self.handle.now() + self.options.command_timeout * 2 + self.options.admin_timeout * 8;
        match self.exchange(Which::Io, command, data, back, deadline).await {
            Ok(entry) if entry.status().is_success() => Ok(()),
            Ok(entry) => Err(error_of(entry.status())),
            Err(Some(Ended::Gone)) => Err(DeviceError::Gone),
            Err(Some(Ended::Reset) | None) => Err(DeviceError::Aborted),
        }
    }

    pub(super) async fn reserve(&self, op: ReservationOp) -> Result<(), DeviceError> {
        let namespace = self.core.borrow().info.namespace;
        let acquire = |action, rtype| SubmissionEntry::reservation_acquire(namespace, action, type_bits(rtype));
        let (command, data): (_, Vec<u8>) = match op {
            ReservationOp::Register { key } => (
                SubmissionEntry::reservation_register(namespace, RegisterAction::Replace, true, Some(true)),
                RegisterData { current: 0, new: key.0 }.to_bytes().to_vec(),
            ),
            ReservationOp::Unregister { key } => (
                SubmissionEntry::reservation_register(namespace, RegisterAction::Unregister, false, None),
                RegisterData { current: key.0, new: 0 }.to_bytes().to_vec(),
            ),
            ReservationOp::Acquire { key, rtype } => {
                (acquire(AcquireAction::Acquire, rtype), AcquireData { current: key.0, preempt: 0 }.to_bytes().to_vec())
            }
            ReservationOp::PreemptAndAbort { key, victim, rtype } => (
                acquire(AcquireAction::PreemptAndAbort, rtype),
                AcquireData { current: key.0, preempt: victim.0 }.to_bytes().to_vec(),
            ),
            ReservationOp::Release { key, rtype } => (
                SubmissionEntry::reservation_release(namespace, ReleaseAction::Release, type_bits(rtype)),
                key.0.to_le_bytes().to_vec(),
            ),
        };
        self.io(command, &data, &mut []).await
    }

    pub(super) async fn reservation_report(&self) -> Result<ReservationReport, DeviceError> {
        let mut page = vec![0; 4096];
        let namespace = self.core.borrow().info.namespace;
        self.io(SubmissionEntry::reservation_report(namespace, 4096), &[], &mut page).await?;
        let (head, rest) = page.split_at(ReportHeader::BYTES);
        let header = ReportHeader::from_bytes(head.try_into().expect("split there"));
        let count = usize::from(header.registrants);
        if count * ReportRegistrant::BYTES > rest.len() {
            return Err(DeviceError::Rejected); // more hosts than an array has directors
        }
        let registrants = rest.chunks_exact(ReportRegistrant::BYTES).take(count).map(|bytes| {
            let registrant = ReportRegistrant::from_bytes(bytes.try_into().expect("chunks of that size"));
            Registrant { host: registrant.host.0, key: ReservationKey(registrant.key), holder: registrant.holder }
        });
        Ok(ReservationReport {
            rtype: (header.rtype != 0).then_some(header.rtype),
            persistent: header.persistent,
            registrants: registrants.collect(),
        })
    }
}

const fn type_bits(rtype: ReservationType) -> u8 {
    match rtype {
        ReservationType::WriteExclusive => dyad_nvme::reservation::ReservationType::WriteExclusive.to_bits(),
        ReservationType::WriteExclusiveAllRegistrants => {
            dyad_nvme::reservation::ReservationType::WriteExclusiveAllRegistrants.to_bits()
        }
    }
}

/// Health, housekeeping, and commands that the array does not need.
impl<F: PciFunction> Driver<F> {
    /// Gives blocks up (Dataset Management, NVM 3.2.3): the device may forget them, and they read as zeros or as before. Up to 256 ranges.
    ///
    /// # Errors
    /// [`DeviceError::Rejected`] if the device has no such command, or the ranges are none or too many.
    pub async fn deallocate(&self, ranges: &[(Lba, BlockCount)]) -> Result<(), DeviceError> {
        let count = u32::try_from(ranges.len()).ok().filter(|count| (1..=256).contains(count));
        let count = count.ok_or(DeviceError::Rejected)?;
        let mut data = Vec::with_capacity(ranges.len() * 16);
        for (lba, blocks) in ranges {
            let blocks = u32::try_from(blocks.0).map_err(|_| DeviceError::Rejected)?;
            // Attributes, which are hints; how many blocks; from where on.
            data.extend_from_slice(&[0; 4]);
            data.extend_from_slice(&blocks.to_le_bytes());
            data.extend_from_slice(&lba.0.to_le_bytes());
        }
        let namespace = self.shared.core.borrow().info.namespace;
        self.shared.io(SubmissionEntry::deallocate(namespace, count), &data, &mut []).await
    }

    /// Whether the blocks hold what memory holds (Compare, NVM 3.2.1).
    ///
    /// # Errors
    /// What the device says: [`DeviceError::Rejected`] if it has no such command, or memory and blocks do not fit.
    pub async fn compare(&self, lba: Lba, segments: &[Segment]) -> Result<bool, DeviceError> {
        let answer = self.shared.compare(lba, segments).map_err(|error| match error {
            SubmitError::Full => DeviceError::Aborted,
            SubmitError::Invalid => DeviceError::Rejected,
            SubmitError::Gone => DeviceError::Gone,
        })?;
        match answer.await {
            Ok(entry) if entry.status().code() == Status::COMPARE_FAILURE => Ok(false),
            other => outcome(other).map(|()| true),
        }
    }

    /// SMART / Health Information.
    ///
    /// # Errors
    /// [`AttachError`] of the command.
    pub async fn smart_log(&self) -> Result<SmartLog, AttachError> {
        let mut page = [0; SmartLog::BYTES];
        let command = SubmissionEntry::get_log_page(log::SMART, NamespaceId::ALL, 0, 512, false);
        self.shared.admin(command, &[], &mut page).await?;
        Ok(SmartLog::from_bytes(&page))
    }

    /// The error log, newest first.
    ///
    /// # Errors
    /// [`AttachError`] of the command.
    pub async fn error_log(&self) -> Result<Vec<ErrorEntry>, AttachError> {
        let entries = usize::from(self.shared.controller.borrow().error_log_entries) + 1;
        let mut page = vec![0; entries.min(64) * ErrorEntry::BYTES];
        let bytes = u32::try_from(page.len()).expect("at most a page");
        let command = SubmissionEntry::get_log_page(log::ERROR, NamespaceId::ALL, 0, bytes, false);
        self.shared.admin(command, &[], &mut page).await?;
        let entries = page.chunks_exact(ErrorEntry::BYTES);
        Ok(entries.filter_map(|e| ErrorEntry::from_bytes(e.try_into().expect("chunks of that size"))).collect())
    }

    /// Formats the namespace; every block is gone. The driver must be attached anew afterwards: blocks may look different.
    ///
    /// # Errors
    /// [`AttachError`] of the command.
    pub async fn format(&self, lba_format: u8, protected: bool) -> Result<(), AttachError> {
        let namespace = self.shared.core.borrow().info.namespace;
        let command = SubmissionEntry::format(namespace, lba_format);
        // PI 001b is type 1, PIL 1 its place at the start of the metadata (Base 5.14).
        let command = if protected { command.with_dword(10, command.dword(10) | 1 << 5 | 1 << 8) } else { command };
        self.shared.admin(command, &[], &mut []).await.map(|_| ())
    }
}
