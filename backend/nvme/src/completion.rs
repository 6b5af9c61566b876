//! The completion queue entry (Base 3.3.3.2).

use crate::bytes;
use crate::status::Status;
use crate::types::{CommandId, QueueId};

/// Sixteen bytes: result (0..8), submission queue head (8..10), submission queue (10..12), command (12..14), phase (bit 0) and status (bits 15:1) (14..16).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct CompletionEntry([u8; Self::BYTES]);

const _: () = assert!(size_of::<CompletionEntry>() == 16);

impl CompletionEntry {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// An entry without result, of submission queue 0, with phase 0.
    #[must_use]
    #[inline]
    pub fn new(sq_head: u16, command: CommandId, status: Status) -> Self {
        let mut entry = Self::default();
        bytes::put(&mut entry.0, 8, &sq_head.to_le_bytes());
        bytes::put(&mut entry.0, 12, &command.0.to_le_bytes());
        bytes::put(&mut entry.0, 14, &(status.bits() << 1).to_le_bytes());
        entry
    }

    /// The entry in these bytes.
    #[must_use]
    #[inline]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The entry in these two words, as a ring in memory has them.
    #[must_use]
    #[inline]
    pub fn from_words(low: u64, high: u64) -> Self {
        let mut entry = Self::default();
        bytes::put(&mut entry.0, 0, &low.to_le_bytes());
        bytes::put(&mut entry.0, 8, &high.to_le_bytes());
        entry
    }

    /// The two words, as a ring in memory has them.
    #[must_use]
    #[inline]
    pub fn to_words(self) -> (u64, u64) {
        (bytes::u64_at(&self.0, 0), bytes::u64_at(&self.0, 8))
    }

    /// The bytes of the wire.
    #[must_use]
    #[inline]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// The same with a result in dwords 0 and 1.
    #[must_use]
    #[inline]
    pub fn with_result(mut self, result: u64) -> Self {
        bytes::put(&mut self.0, 0, &result.to_le_bytes());
        self
    }

    /// The same for commands of `queue`. Reserved (zero) on fabrics.
    #[must_use]
    #[inline]
    pub fn with_queue(mut self, queue: QueueId) -> Self {
        bytes::put(&mut self.0, 10, &queue.0.to_le_bytes());
        self
    }

    /// The same with the phase tag that tells a new entry from an old one. Reserved (zero) on fabrics.
    #[must_use]
    #[inline]
    pub fn with_phase(mut self, phase: bool) -> Self {
        self.0[14] = self.0[14] & !1 | u8::from(phase);
        self
    }

    /// Dwords 0 and 1.
    #[must_use]
    #[inline]
    pub fn result(&self) -> u64 {
        bytes::u64_at(&self.0, 0)
    }

    /// Dword 0.
    #[must_use]
    #[inline]
    pub fn result_low(&self) -> u32 {
        bytes::u32_at(&self.0, 0)
    }

    /// How far the controller has fetched the submission queue.
    #[must_use]
    #[inline]
    pub fn sq_head(&self) -> u16 {
        bytes::u16_at(&self.0, 8)
    }

    /// Whose command.
    #[must_use]
    #[inline]
    pub fn queue(&self) -> QueueId {
        QueueId(bytes::u16_at(&self.0, 10))
    }

    /// Which command.
    #[must_use]
    #[inline]
    pub fn command(&self) -> CommandId {
        CommandId(bytes::u16_at(&self.0, 12))
    }

    /// The phase tag.
    #[must_use]
    #[inline]
    pub fn phase(&self) -> bool {
        self.0[14] & 1 != 0
    }

    /// How it ended.
    #[must_use]
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_bits(bytes::u16_at(&self.0, 14) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let entry = CompletionEntry::new(0x1122, CommandId(0x3344), Status::LBA_OUT_OF_RANGE.with_do_not_retry())
            .with_result(0x0102_0304_0506_0708)
            .with_queue(QueueId(0x5566))
            .with_phase(true);
        assert_eq!(entry.to_bytes(), [8, 7, 6, 5, 4, 3, 2, 1, 0x22, 0x11, 0x66, 0x55, 0x44, 0x33, 0x01, 0x81]);
        assert_eq!(entry.status().code(), Status::LBA_OUT_OF_RANGE);
        assert!(entry.phase() && !entry.with_phase(false).phase());
    }
}
