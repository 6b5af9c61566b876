//! Controller properties (Base 3.1.3): registers of BAR 0 on PCIe, Property Get and Set on fabrics.

/// Controller Capabilities, 8 bytes.
pub const CAP: u32 = 0x00;
/// Version, 4 bytes.
pub const VS: u32 = 0x08;
/// Interrupt Mask Set, 4 bytes (PCIe).
pub const INTMS: u32 = 0x0c;
/// Interrupt Mask Clear, 4 bytes (PCIe).
pub const INTMC: u32 = 0x10;
/// Controller Configuration, 4 bytes.
pub const CC: u32 = 0x14;
/// Controller Status, 4 bytes.
pub const CSTS: u32 = 0x1c;
/// NVM Subsystem Reset, 4 bytes.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes, 4 bytes.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes.
pub const ACQ: u32 = 0x30;
/// Where the doorbells begin (PCIe 3.1.2).
pub const DOORBELLS: u32 = 0x1000;
/// What is written to NSSR to reset the subsystem: "NVMe".
pub const NSSR_RESET: u32 = 0x4e56_4d65;
/// What a register of a device that is gone reads as: PCIe completes the read with all ones.
pub const GONE: u32 = 0xffff_ffff;

/// Which doorbell of a queue pair.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Doorbell {
    /// Submission Queue y Tail.
    SubmissionTail,
    /// Completion Queue y Head.
    CompletionHead,
}

/// Offset of a doorbell in BAR 0 (PCIe 3.1.2.1, 3.1.2.2); `stride` is CAP.DSTRD.
#[must_use]
pub const fn doorbell_offset(queue: u16, which: Doorbell, stride: u8) -> u32 {
    let index = 2 * queue as u32 + matches!(which, Doorbell::CompletionHead) as u32;
    DOORBELLS + (index << (2 + stride))
}

/// CAP (Base 3.1.3.1): maximum queue entries, zero-based (15:0), contiguous queues required (16), arbitration (18:17), time-out in 500 ms units (31:24),
/// doorbell stride (35:32), subsystem reset (36), command sets (44:37), minimum page size (51:48), maximum page size (55:52).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The register of a controller with the NVM command set, 4 KiB pages only, contiguous queues, a doorbell stride of 4 bytes.
    ///
    /// `queue_entries` is the maximum queue size, `timeout_500ms` the worst time that ready takes.
    #[must_use]
    pub const fn new(queue_entries: u16, timeout_500ms: u8) -> Self {
        Self((queue_entries - 1) as u64 | 1 << 16 | (timeout_500ms as u64) << 24 | 1 << 37)
    }

    /// Entries of the largest queue.
    #[must_use]
    pub const fn queue_entries_max(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// The longest time that CSTS.RDY may take to follow CC.EN, in milliseconds.
    #[must_use]
    pub const fn timeout_ms(self) -> u64 {
        ((self.0 >> 24) & 0xff) * 500
    }

    /// Doorbells lie `4 << stride` bytes apart.
    #[must_use]
    pub const fn doorbell_stride(self) -> u8 {
        ((self.0 >> 32) & 0xf) as u8
    }

    /// NVM Subsystem Reset is there.
    #[must_use]
    pub const fn subsystem_reset(self) -> bool {
        self.0 & 1 << 36 != 0
    }

    /// The NVM command set is there.
    #[must_use]
    pub const fn nvm_command_set(self) -> bool {
        self.0 & 1 << 37 != 0
    }

    /// The smallest memory page is `4096 << page_size_min` bytes.
    #[must_use]
    pub const fn page_size_min(self) -> u8 {
        ((self.0 >> 48) & 0xf) as u8
    }
}

/// VS (Base 3.1.3.2): major (31:16), minor (15:8), tertiary (7:0).
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// 1.4.
    pub const V1_4: Self = Self(0x0001_0400);
    /// 2.0.
    pub const V2_0: Self = Self(0x0002_0000);
}

/// CC (Base 3.1.3.5): enable (0), command set (6:4), page size (10:7), arbitration (13:11), shutdown (15:14), I/O SQ
/// entry size (19:16), I/O CQ entry size (23:20).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Configuration(pub u32);

/// CC.SHN: what the host asks for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// Nothing.
    None,
    /// Flush, then stop.
    Normal,
    /// Power is about to go: stop.
    Abrupt,
}

impl Configuration {
    /// Enabled, NVM command set, 4 KiB pages, entries of 64 and 16 bytes.
    pub const ENABLED: Self = Self(1 | 6 << 16 | 4 << 20);
    /// As a controller comes up.
    pub const DISABLED: Self = Self(0);

    /// EN.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// The same with EN as given.
    #[must_use]
    pub const fn with_enabled(self, on: bool) -> Self {
        Self(self.0 & !1 | on as u32)
    }

    /// CSS: 0 is the NVM command set, 6 all supported, 7 admin only.
    #[must_use]
    pub const fn command_set(self) -> u8 {
        ((self.0 >> 4) & 7) as u8
    }

    /// MPS: memory pages have `4096 << page_size` bytes.
    #[must_use]
    pub const fn page_size(self) -> u8 {
        ((self.0 >> 7) & 0xf) as u8
    }

    /// AMS: 0 is round robin.
    #[must_use]
    pub const fn arbitration(self) -> u8 {
        ((self.0 >> 11) & 7) as u8
    }

    /// IOSQES: I/O submission entries have `1 << io_sq_entry` bytes.
    #[must_use]
    pub const fn io_sq_entry(self) -> u8 {
        ((self.0 >> 16) & 0xf) as u8
    }

    /// IOCQES: I/O completion entries have `1 << io_cq_entry` bytes.
    #[must_use]
    pub const fn io_cq_entry(self) -> u8 {
        ((self.0 >> 20) & 0xf) as u8
    }

    /// SHN; the reserved value counts as none.
    #[must_use]
    pub const fn shutdown(self) -> ShutdownRequest {
        match (self.0 >> 14) & 3 {
            1 => ShutdownRequest::Normal,
            2 => ShutdownRequest::Abrupt,
            _ => ShutdownRequest::None,
        }
    }

    /// The same with SHN as given.
    #[must_use]
    pub const fn with_shutdown(self, request: ShutdownRequest) -> Self {
        let bits = match request {
            ShutdownRequest::None => 0,
            ShutdownRequest::Normal => 1,
            ShutdownRequest::Abrupt => 2,
        };
        Self(self.0 & !(3 << 14) | bits << 14)
    }
}

/// CSTS (Base 3.1.3.6): ready (0), fatal (1), shutdown status (3:2), subsystem reset occurred (4), processing paused (5).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// RDY.
    pub const READY: u32 = 1;
    /// CFS.
    pub const FATAL: u32 = 1 << 1;
    /// SHST: shutdown complete.
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
    /// NSSRO.
    pub const SUBSYSTEM_RESET_OCCURRED: u32 = 1 << 4;

    /// The device does not answer any more.
    #[must_use]
    pub const fn gone(self) -> bool {
        self.0 == GONE
    }

    /// RDY.
    #[must_use]
    pub const fn ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// CFS: the controller is broken until it is reset, or for good.
    #[must_use]
    pub const fn fatal(self) -> bool {
        self.0 & Self::FATAL != 0
    }

    /// SHST is "complete".
    #[must_use]
    pub const fn shutdown_complete(self) -> bool {
        self.0 & (3 << 2) == Self::SHUTDOWN_COMPLETE
    }
}

/// AQA (Base 3.1.3.8): entries of the admin queues, both zero-based: submission (11:0), completion (27:16).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct AdminQueueAttributes(pub u32);

impl AdminQueueAttributes {
    /// Queues of `entries` (2 to 4096) entries each.
    #[must_use]
    pub const fn new(entries: u16) -> Self {
        Self((entries - 1) as u32 | ((entries - 1) as u32) << 16)
    }

    /// Entries of the submission queue.
    #[must_use]
    pub const fn sq_entries(self) -> u16 {
        (self.0 & 0xfff) as u16 + 1
    }

    /// Entries of the completion queue.
    #[must_use]
    pub const fn cq_entries(self) -> u16 {
        ((self.0 >> 16) & 0xfff) as u16 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_say_what_they_were_made_of() {
        let cap = Capabilities::new(1024, 10);
        assert_eq!((cap.queue_entries_max(), cap.timeout_ms(), cap.doorbell_stride()), (1024, 5000, 0));
        assert!(cap.nvm_command_set() && !cap.subsystem_reset());
        assert_eq!(Configuration::ENABLED.0, 0x0046_0001);
        assert_eq!(Configuration::ENABLED.with_shutdown(ShutdownRequest::Normal).shutdown(), ShutdownRequest::Normal);
        let aqa = AdminQueueAttributes::new(32);
        assert_eq!((aqa.0, aqa.sq_entries(), aqa.cq_entries()), (31 << 16 | 31, 32, 32));
    }

    #[test]
    fn doorbells_lie_as_pcie_3_1_2_says() {
        assert_eq!(doorbell_offset(0, Doorbell::SubmissionTail, 0), 0x1000);
        assert_eq!(doorbell_offset(0, Doorbell::CompletionHead, 0), 0x1004);
        assert_eq!(doorbell_offset(3, Doorbell::CompletionHead, 0), 0x101c);
        assert_eq!(doorbell_offset(1, Doorbell::SubmissionTail, 4), 0x1080);
    }
}
