//! The submission queue entry (Base 3.3.3.1).

use crate::bytes;
use crate::fabrics::PropertySize;
use crate::opcode::{admin, fabrics, nvm};
use crate::reservation::{AcquireAction, RegisterAction, ReleaseAction};
use crate::sgl::SglDescriptor;
use crate::types::{BlockCount, CommandId, Lba, NamespaceId, QueueId};

/// Sixty-four bytes: opcode (0), fuse (1:0) and PSDT (7:6) (1), command (2..4), namespace (4..8), dwords 2 and 3 (8..16), metadata pointer (16..24),
/// data pointer: PRP 1 (24..32) and PRP 2 (32..40) or one SGL descriptor (24..40), dwords 10 to 15 (40..64).
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(transparent)]
pub struct SubmissionEntry([u8; Self::BYTES]);

const _: () = assert!(size_of::<SubmissionEntry>() == 64);

/// How a command names its data: the PSDT field, byte 1, bits 7:6.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum DataPointer {
    /// 00b.
    Prp,
    /// 01b: SGL; the metadata pointer is an address. Always so on fabrics.
    Sgl,
    /// 10b: SGL; the metadata pointer names an SGL segment of one descriptor.
    SglMetadata,
}

/// The FUSE field, byte 1, bits 1:0.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Fuse {
    /// 00b.
    Normal,
    /// 01b.
    First,
    /// 10b.
    Second,
}

/// Bits of dword 12 of reads and writes (NVM 3.2.4, 3.2.6).
pub mod rw {
    /// Limited retry.
    pub const LIMITED_RETRY: u32 = 1 << 31;
    /// Force unit access.
    pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
    /// Protection information action: the controller makes it and takes it off.
    pub const PRACT: u32 = 1 << 29;
    /// Check the guard.
    pub const CHECK_GUARD: u32 = 1 << 28;
    /// Check the application tag.
    pub const CHECK_APPLICATION_TAG: u32 = 1 << 27;
    /// Check the reference tag.
    pub const CHECK_REFERENCE_TAG: u32 = 1 << 26;
    /// Write Zeroes: deallocate if that reads as zeros.
    pub const DEALLOCATE: u32 = 1 << 25;
    /// Most blocks of one command: the field is zero-based and has 16 bits.
    pub const BLOCKS_MAX: u64 = 1 << 16;
}

impl Default for SubmissionEntry {
    fn default() -> Self {
        Self([0; Self::BYTES])
    }
}

/// Entries by opcode. Command identifier and data pointer are set by whoever submits.
impl SubmissionEntry {
    /// Size on the wire.
    pub const BYTES: usize = 64;
    /// The same in words of 8 bytes.
    pub const WORDS: usize = Self::BYTES / 8;

    /// An entry with nothing but an opcode and a namespace.
    #[must_use]
    #[inline]
    pub fn new(opcode: u8, namespace: NamespaceId) -> Self {
        let mut entry = Self::default();
        entry.0[0] = opcode;
        bytes::put(&mut entry.0, 4, &namespace.0.to_le_bytes());
        entry
    }

    /// Read (NVM 3.2.4).
    ///
    /// # Panics
    /// Unless `blocks` is between 1 and [`rw::BLOCKS_MAX`].
    #[must_use]
    #[inline]
    pub fn read(namespace: NamespaceId, lba: Lba, blocks: BlockCount) -> Self {
        Self::blocks(nvm::READ, namespace, lba, blocks)
    }

    /// Write (NVM 3.2.6).
    ///
    /// # Panics
    /// Unless `blocks` is between 1 and [`rw::BLOCKS_MAX`].
    #[must_use]
    #[inline]
    pub fn write(namespace: NamespaceId, lba: Lba, blocks: BlockCount, fua: bool) -> Self {
        let entry = Self::blocks(nvm::WRITE, namespace, lba, blocks);
        if fua { entry.with_dword(12, entry.dword(12) | rw::FORCE_UNIT_ACCESS) } else { entry }
    }

    /// Compare (NVM 3.2.1).
    ///
    /// # Panics
    /// Unless `blocks` is between 1 and [`rw::BLOCKS_MAX`].
    #[must_use]
    pub fn compare(namespace: NamespaceId, lba: Lba, blocks: BlockCount) -> Self {
        Self::blocks(nvm::COMPARE, namespace, lba, blocks)
    }

    /// Write Zeroes (NVM 3.2.8), deallocating where that reads as zeros.
    ///
    /// # Panics
    /// Unless `blocks` is between 1 and [`rw::BLOCKS_MAX`].
    #[must_use]
    pub fn write_zeroes(namespace: NamespaceId, lba: Lba, blocks: BlockCount) -> Self {
        let entry = Self::blocks(nvm::WRITE_ZEROES, namespace, lba, blocks);
        entry.with_dword(12, entry.dword(12) | rw::DEALLOCATE)
    }

    /// Flush (Base 7.1).
    #[must_use]
    pub fn flush(namespace: NamespaceId) -> Self {
        Self::new(nvm::FLUSH, namespace)
    }

    /// Dataset Management, deallocate (NVM 3.2.3): `ranges` (1 to 256) descriptors of 16 bytes are the data.
    ///
    /// # Panics
    /// Unless `ranges` is between 1 and 256.
    #[must_use]
    pub fn deallocate(namespace: NamespaceId, ranges: u32) -> Self {
        assert!((1..=256).contains(&ranges), "dataset management names 1 to 256 ranges");
        Self::new(nvm::DATASET_MANAGEMENT, namespace).with_dword(10, ranges - 1).with_dword(11, 1 << 2)
    }

    fn blocks(opcode: u8, namespace: NamespaceId, lba: Lba, blocks: BlockCount) -> Self {
        let zero_based = blocks.0.checked_sub(1).and_then(|n| u16::try_from(n).ok());
        let zero_based = zero_based.expect("a command names 1 to 65536 blocks");
        let mut entry = Self::new(opcode, namespace);
        bytes::put(&mut entry.0, 40, &lba.0.to_le_bytes());
        bytes::put(&mut entry.0, 48, &zero_based.to_le_bytes());
        entry
    }

    /// Reservation Register (Base 7.3); the data is [`crate::reservation::RegisterData`]. `persist`: survive power loss (CPTPL); `None` is no change.
    #[must_use]
    pub fn reservation_register(
        namespace: NamespaceId,
        action: RegisterAction,
        ignore_existing_key: bool,
        persist: Option<bool>,
    ) -> Self {
        let persist = match persist {
            None => 0,
            Some(false) => 0b10,
            Some(true) => 0b11,
        };
        let dword = u32::from(action.to_bits()) | u32::from(ignore_existing_key) << 3 | persist << 30;
        Self::new(nvm::RESERVATION_REGISTER, namespace).with_dword(10, dword)
    }

    /// Reservation Acquire (Base 7.2); the data is [`crate::reservation::AcquireData`].
    #[must_use]
    pub fn reservation_acquire(namespace: NamespaceId, action: AcquireAction, rtype: u8) -> Self {
        let dword = u32::from(action.to_bits()) | u32::from(rtype) << 8;
        Self::new(nvm::RESERVATION_ACQUIRE, namespace).with_dword(10, dword)
    }

    /// Reservation Release (Base 7.4); the data is the 8-byte current key.
    #[must_use]
    pub fn reservation_release(namespace: NamespaceId, action: ReleaseAction, rtype: u8) -> Self {
        let dword = u32::from(action.to_bits()) | u32::from(rtype) << 8;
        Self::new(nvm::RESERVATION_RELEASE, namespace).with_dword(10, dword)
    }

    /// Reservation Report (Base 7.5) of `bytes` bytes (a multiple of four), with the extended (128-bit Host Identifier) structure.
    #[must_use]
    pub fn reservation_report(namespace: NamespaceId, bytes: u32) -> Self {
        Self::new(nvm::RESERVATION_REPORT, namespace).with_dword(10, bytes / 4 - 1).with_dword(11, 1)
    }

    /// Identify (Base 5.17): 4096 bytes. `controller` is CNTID, for those CNS values that look at it.
    #[must_use]
    pub fn identify(cns: u8, namespace: NamespaceId, controller: u16) -> Self {
        Self::new(admin::IDENTIFY, namespace).with_dword(10, u32::from(controller) << 16 | u32::from(cns))
    }

    /// Get Log Page (Base 5.16): `bytes` bytes (a multiple of four) from `offset`. `retain` keeps the event that announced it (RAE).
    #[must_use]
    pub fn get_log_page(log: u8, namespace: NamespaceId, offset: u64, bytes: u32, retain: bool) -> Self {
        let dwords = bytes / 4 - 1;
        let mut entry = Self::new(admin::GET_LOG_PAGE, namespace)
            .with_dword(10, dwords << 16 | u32::from(retain) << 15 | u32::from(log))
            .with_dword(11, dwords >> 16);
        bytes::put(&mut entry.0, 48, &offset.to_le_bytes());
        entry
    }

    /// Set Features (Base 5.27) with dword 11.
    #[must_use]
    pub fn set_features(feature: u8, namespace: NamespaceId, value: u32) -> Self {
        Self::new(admin::SET_FEATURES, namespace).with_dword(10, u32::from(feature)).with_dword(11, value)
    }

    /// Get Features (Base 5.15), the current value.
    #[must_use]
    pub fn get_features(feature: u8, namespace: NamespaceId) -> Self {
        Self::new(admin::GET_FEATURES, namespace).with_dword(10, u32::from(feature))
    }

    /// Abort (Base 5.1).
    #[must_use]
    pub fn abort(queue: QueueId, command: CommandId) -> Self {
        Self::new(admin::ABORT, NamespaceId::NONE).with_dword(10, u32::from(command.0) << 16 | u32::from(queue.0))
    }

    /// Asynchronous Event Request (Base 5.2).
    #[must_use]
    pub fn async_event_request() -> Self {
        Self::new(admin::ASYNC_EVENT_REQUEST, NamespaceId::NONE)
    }

    /// Keep Alive (Base 5.18).
    #[must_use]
    pub fn keep_alive() -> Self {
        Self::new(admin::KEEP_ALIVE, NamespaceId::NONE)
    }

    /// Create I/O Completion Queue (Base 5.4) of `entries` entries, physically contiguous at PRP 1, with interrupt vector `vector` if any.
    #[must_use]
    pub fn create_completion_queue(queue: QueueId, entries: u16, vector: Option<u16>) -> Self {
        let flags = 1 | u32::from(vector.is_some()) << 1 | u32::from(vector.unwrap_or(0)) << 16;
        Self::new(admin::CREATE_CQ, NamespaceId::NONE)
            .with_dword(10, u32::from(entries - 1) << 16 | u32::from(queue.0))
            .with_dword(11, flags)
    }

    /// Create I/O Submission Queue (Base 5.5) of `entries` entries, physically contiguous at PRP 1.
    #[must_use]
    pub fn create_submission_queue(queue: QueueId, entries: u16, completion_queue: QueueId) -> Self {
        Self::new(admin::CREATE_SQ, NamespaceId::NONE)
            .with_dword(10, u32::from(entries - 1) << 16 | u32::from(queue.0))
            .with_dword(11, u32::from(completion_queue.0) << 16 | 1)
    }

    /// Delete I/O Submission Queue (Base 5.7).
    #[must_use]
    pub fn delete_submission_queue(queue: QueueId) -> Self {
        Self::new(admin::DELETE_SQ, NamespaceId::NONE).with_dword(10, u32::from(queue.0))
    }

    /// Delete I/O Completion Queue (Base 5.6).
    #[must_use]
    pub fn delete_completion_queue(queue: QueueId) -> Self {
        Self::new(admin::DELETE_CQ, NamespaceId::NONE).with_dword(10, u32::from(queue.0))
    }

    /// Doorbell Buffer Config (Base 5.8): the pages of shadow doorbells and of `EventIdx` values.
    #[must_use]
    pub fn doorbell_buffer_config(shadow: u64, event_index: u64) -> Self {
        Self::new(admin::DOORBELL_BUFFER_CONFIG, NamespaceId::NONE).with_prp(shadow, event_index)
    }

    /// Format NVM (Base 5.14) to LBA format `format` without protection information.
    #[must_use]
    pub fn format(namespace: NamespaceId, format: u8) -> Self {
        Self::new(admin::FORMAT_NVM, namespace).with_dword(10, u32::from(format & 0xf))
    }

    /// Fabrics Connect (Base 6.3); the data is [`crate::fabrics::ConnectData`]. `entries` is the queue's size, `keep_alive_ms` KATO (admin queue only).
    #[must_use]
    pub fn connect(queue: QueueId, entries: u16, keep_alive_ms: u32) -> Self {
        let mut entry = Self::fabrics(fabrics::CONNECT);
        bytes::put(&mut entry.0, 42, &queue.0.to_le_bytes());
        bytes::put(&mut entry.0, 44, &(entries - 1).to_le_bytes());
        entry.with_dword(12, keep_alive_ms)
    }

    /// Fabrics Property Get (Base 6.5).
    #[must_use]
    pub fn property_get(offset: u32, size: PropertySize) -> Self {
        Self::fabrics(fabrics::PROPERTY_GET).with_dword(10, size.to_bits()).with_dword(11, offset)
    }

    /// Fabrics Property Set (Base 6.6).
    #[must_use]
    pub fn property_set(offset: u32, size: PropertySize, value: u64) -> Self {
        let mut entry = Self::fabrics(fabrics::PROPERTY_SET).with_dword(10, size.to_bits()).with_dword(11, offset);
        bytes::put(&mut entry.0, 48, &value.to_le_bytes());
        entry
    }

    /// Fabrics Disconnect (Base 6.4).
    #[must_use]
    pub fn disconnect() -> Self {
        Self::fabrics(fabrics::DISCONNECT)
    }

    fn fabrics(kind: u8) -> Self {
        let mut entry = Self::default();
        entry.0[0] = fabrics::OPCODE;
        entry.0[1] = 0x40;
        entry.0[4] = kind;
        entry
    }
}

/// Fields.
impl SubmissionEntry {
    /// The entry in these bytes.
    #[must_use]
    #[inline]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the wire.
    #[must_use]
    #[inline]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// The entry in these words, as a ring in memory has them.
    #[must_use]
    #[inline]
    pub fn from_words(words: [u64; Self::WORDS]) -> Self {
        let mut entry = Self::default();
        for (index, word) in words.into_iter().enumerate() {
            bytes::put(&mut entry.0, 8 * index, &word.to_le_bytes());
        }
        entry
    }

    /// The words, as a ring in memory has them.
    #[must_use]
    #[inline]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        std::array::from_fn(|index| bytes::u64_at(&self.0, 8 * index))
    }

    /// The bytes of the wire, in place.
    #[must_use]
    #[inline]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The same with a command identifier.
    #[must_use]
    #[inline]
    pub fn with_command(mut self, command: CommandId) -> Self {
        bytes::put(&mut self.0, 2, &command.0.to_le_bytes());
        self
    }

    /// The same with two PRP entries as data pointer.
    #[must_use]
    #[inline]
    pub fn with_prp(mut self, prp1: u64, prp2: u64) -> Self {
        self.0[1] &= 0x3f;
        bytes::put(&mut self.0, 24, &prp1.to_le_bytes());
        bytes::put(&mut self.0, 32, &prp2.to_le_bytes());
        self
    }

    /// The same with an SGL descriptor as data pointer.
    #[must_use]
    #[inline]
    pub fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.0[1] = self.0[1] & 0x3f | 0x40;
        bytes::put(&mut self.0, 24, &sgl.to_bytes());
        self
    }

    /// The same with a metadata pointer.
    #[must_use]
    pub fn with_metadata(mut self, address: u64) -> Self {
        bytes::put(&mut self.0, 16, &address.to_le_bytes());
        self
    }

    /// The same with dword `index` (10 to 15, or any other) set.
    ///
    /// # Panics
    /// If there is no such dword.
    #[must_use]
    #[inline]
    pub fn with_dword(mut self, index: usize, value: u32) -> Self {
        bytes::put(&mut self.0, index * 4, &value.to_le_bytes());
        self
    }

    /// Which command it is.
    #[must_use]
    #[inline]
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Which fabrics command it is, if the opcode is [`fabrics::OPCODE`].
    #[must_use]
    pub const fn fabrics_type(&self) -> u8 {
        self.0[4]
    }

    /// How the data is named; `None` for the reserved value.
    #[must_use]
    #[inline]
    pub const fn data_pointer(&self) -> Option<DataPointer> {
        match self.0[1] >> 6 {
            0 => Some(DataPointer::Prp),
            1 => Some(DataPointer::Sgl),
            2 => Some(DataPointer::SglMetadata),
            _ => None,
        }
    }

    /// Whether it is half of a fused pair; `None` for the reserved value.
    #[must_use]
    #[inline]
    pub const fn fuse(&self) -> Option<Fuse> {
        match self.0[1] & 3 {
            0 => Some(Fuse::Normal),
            1 => Some(Fuse::First),
            2 => Some(Fuse::Second),
            _ => None,
        }
    }

    /// The command identifier.
    #[must_use]
    #[inline]
    pub fn command(&self) -> CommandId {
        CommandId(bytes::u16_at(&self.0, 2))
    }

    /// The namespace.
    #[must_use]
    #[inline]
    pub fn namespace(&self) -> NamespaceId {
        NamespaceId(bytes::u32_at(&self.0, 4))
    }

    /// The metadata pointer.
    #[must_use]
    pub fn metadata(&self) -> u64 {
        bytes::u64_at(&self.0, 16)
    }

    /// The first PRP entry.
    #[must_use]
    #[inline]
    pub fn prp1(&self) -> u64 {
        bytes::u64_at(&self.0, 24)
    }

    /// The second PRP entry.
    #[must_use]
    #[inline]
    pub fn prp2(&self) -> u64 {
        bytes::u64_at(&self.0, 32)
    }

    /// The SGL descriptor.
    #[must_use]
    #[inline]
    pub fn sgl(&self) -> SglDescriptor {
        SglDescriptor::from_bytes(bytes::array(&self.0, 24))
    }

    /// Dword `index`.
    ///
    /// # Panics
    /// If there is no such dword.
    #[must_use]
    #[inline]
    pub fn dword(&self, index: usize) -> u32 {
        bytes::u32_at(&self.0, index * 4)
    }

    /// Dwords `index` and `index + 1` as one number.
    ///
    /// # Panics
    /// If there are no such dwords.
    #[must_use]
    #[inline]
    pub fn qword(&self, index: usize) -> u64 {
        bytes::u64_at(&self.0, index * 4)
    }

    /// Reads and writes: the first block.
    #[must_use]
    #[inline]
    pub fn lba(&self) -> Lba {
        Lba(bytes::u64_at(&self.0, 40))
    }

    /// Reads and writes: how many blocks (the field is zero-based).
    #[must_use]
    #[inline]
    pub fn block_count(&self) -> BlockCount {
        BlockCount(u64::from(bytes::u16_at(&self.0, 48)) + 1)
    }

    /// Reads and writes: force unit access.
    #[must_use]
    #[inline]
    pub fn fua(&self) -> bool {
        self.dword(12) & rw::FORCE_UNIT_ACCESS != 0
    }

    /// Get Log Page, Reservation Report and others: how many bytes the host wants, from a zero-based number of dwords.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        let dwords = u64::from(self.dword(11) & 0xffff) << 16 | u64::from(self.dword(10) >> 16);
        (dwords + 1) * 4
    }
}

impl std::fmt::Debug for SubmissionEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "opcode {:#04x} flags {:#04x} command {:#x} namespace {:#x} data {:x}/{:x} dwords",
            self.0[0],
            self.0[1],
            self.command().0,
            self.namespace().0,
            self.prp1(),
            self.prp2()
        )?;
        (10..16).try_for_each(|i| write!(f, " {:08x}", self.dword(i)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_lies_where_the_specification_puts_it() {
        let entry = SubmissionEntry::read(NamespaceId(7), Lba(0x1_0000_0002), BlockCount(8))
            .with_command(CommandId(0xabcd))
            .with_prp(0x1000, 0x2000);
        let mut expected = [0u8; 64];
        expected[0] = 0x02;
        expected[2..4].copy_from_slice(&[0xcd, 0xab]);
        expected[4] = 7;
        expected[25] = 0x10;
        expected[33] = 0x20;
        expected[40..48].copy_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0]);
        expected[48] = 7;
        assert_eq!(entry.to_bytes(), expected);
        assert_eq!((entry.lba(), entry.block_count(), entry.fua()), (Lba(0x1_0000_0002), BlockCount(8), false));
    }

    #[test]
    fn the_longest_command_has_65536_blocks() {
        let entry = SubmissionEntry::write(NamespaceId(1), Lba(0), BlockCount(rw::BLOCKS_MAX), true);
        assert_eq!(entry.block_count(), BlockCount(65536));
        assert!(entry.fua());
    }

    #[test]
    fn connect_is_as_base_6_3_says() {
        let entry = SubmissionEntry::connect(QueueId(1), 128, 15_000).with_sgl(SglDescriptor::keyed(64, 1024, 9));
        let bytes = entry.to_bytes();
        assert_eq!((bytes[0], bytes[1], bytes[4]), (0x7f, 0x40, 0x01));
        assert_eq!(bytes[40..52], [0, 0, 1, 0, 127, 0, 0, 0, 0x98, 0x3a, 0, 0]);
        assert_eq!(entry.data_pointer(), Some(DataPointer::Sgl));
    }

    #[test]
    fn a_log_of_more_than_256_kib_uses_both_halves_of_its_length() {
        let entry = SubmissionEntry::get_log_page(0x0c, NamespaceId::NONE, 0x1_0000_0000, 0x8_0004, true);
        assert_eq!(entry.log_bytes(), 0x8_0004);
        assert_eq!(entry.qword(12), 0x1_0000_0000);
        assert_eq!(entry.dword(10) & 0xffff, 0x800c);
    }
}
