//! Messages: a header of 16 bytes, then what the command defines. All little-endian.

use dyad_nvme::bytes::{put, u16_at, u32_at, u64_at};

/// Bytes of the header.
pub(super) const HEADER: usize = 16;
/// Longest message that is taken: larger ones are nobody's.
pub(super) const MESSAGE_MAX: usize = 64 << 10;
/// Descriptors that one message may carry.
pub(super) const FDS_MAX: usize = 8;

/// Mappings of one client: each is a mapping of the server's process too.
pub(super) const MAPPINGS_MAX: usize = 256;

/// Commands.
pub(super) mod command {
    pub(in crate::vfio_user) const VERSION: u16 = 1;
    pub(in crate::vfio_user) const DMA_MAP: u16 = 2;
    pub(in crate::vfio_user) const DMA_UNMAP: u16 = 3;
    pub(in crate::vfio_user) const DEVICE_GET_INFO: u16 = 4;
    pub(in crate::vfio_user) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(in crate::vfio_user) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(in crate::vfio_user) const DEVICE_SET_IRQS: u16 = 8;
    pub(in crate::vfio_user) const REGION_READ: u16 = 9;
    pub(in crate::vfio_user) const REGION_WRITE: u16 = 10;
    pub(in crate::vfio_user) const DEVICE_RESET: u16 = 13;
}

/// Header flags.
pub(super) mod flag {
    pub(in crate::vfio_user) const REPLY: u32 = 1;
    pub(in crate::vfio_user) const NO_REPLY: u32 = 1 << 4;
    pub(in crate::vfio_user) const ERROR: u32 = 1 << 5;
}

/// Flags and indices of VFIO's structures (linux/vfio.h).
pub(super) mod vfio {
    pub(in crate::vfio_user) const DEVICE_RESET: u32 = 1;
    pub(in crate::vfio_user) const DEVICE_PCI: u32 = 1 << 1;
    pub(in crate::vfio_user) const REGION_READ: u32 = 1;
    pub(in crate::vfio_user) const REGION_WRITE: u32 = 1 << 1;
    pub(in crate::vfio_user) const REGION_MMAP: u32 = 1 << 2;
    pub(in crate::vfio_user) const REGION_CAPS: u32 = 1 << 3;
    pub(in crate::vfio_user) const CAP_SPARSE_MMAP: u16 = 1;
    pub(in crate::vfio_user) const BAR0: u32 = 0;
    pub(in crate::vfio_user) const CONFIG: u32 = 7;
    pub(in crate::vfio_user) const REGIONS: u32 = 9;
    pub(in crate::vfio_user) const IRQ_MSIX: u32 = 2;
    pub(in crate::vfio_user) const IRQS: u32 = 5;
    pub(in crate::vfio_user) const IRQ_EVENTFD: u32 = 1;
    pub(in crate::vfio_user) const IRQ_NORESIZE: u32 = 1 << 3;
    pub(in crate::vfio_user) const SET_NONE: u32 = 1;
    pub(in crate::vfio_user) const SET_EVENTFD: u32 = 1 << 2;
    pub(in crate::vfio_user) const SET_TRIGGER: u32 = 1 << 5;
    pub(in crate::vfio_user) const DMA_READ_WRITE: u32 = 3;
    pub(in crate::vfio_user) const UNMAP_ALL: u32 = 1 << 2;
}

/// The header: message id (0..2), command (2..4), size with the header (4..8), flags (8..12), errno (12..16).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) errno: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        Self {
            id: u16_at(bytes, 0),
            command: u16_at(bytes, 2),
            size: u32_at(bytes, 4),
            flags: u32_at(bytes, 8),
            errno: u32_at(bytes, 12),
        }
    }

    /// Bytes behind the header, if the size makes sense.
    pub(super) fn payload(&self) -> Option<usize> {
        let size = usize::try_from(self.size).ok()?;
        (HEADER..=MESSAGE_MAX).contains(&size).then(|| size - HEADER)
    }
}

/// A whole message.
pub(super) fn message(id: u16, command: u16, flags: u32, errno: u32, payload: &[u8]) -> Vec<u8> {
    let size = HEADER + payload.len();
    let mut bytes = vec![0; size];
    put(&mut bytes, 0, &id.to_le_bytes());
    put(&mut bytes, 2, &command.to_le_bytes());
    put(&mut bytes, 4, &u32::try_from(size).expect("messages are short").to_le_bytes());
    put(&mut bytes, 8, &flags.to_le_bytes());
    put(&mut bytes, 12, &errno.to_le_bytes());
    put(&mut bytes, HEADER, payload);
    bytes
}

/// VERSION: major (0..2), minor (2..4), capabilities as JSON with a terminating zero.
pub(super) fn version() -> Vec<u8> {
    let mut payload = vec![0, 0, 1, 0];
    payload.extend_from_slice(b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":65536}}\0");
    payload
}

/// DMA_MAP: argsz (0..4), flags (4..8), offset in the file (8..16), address (16..24), size (24..32).
/// DMA_UNMAP: argsz (0..4), flags (4..8), address (8..16), size (16..24).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Dma {
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) size: u64,
}

impl Dma {
    pub(super) fn to_map(self) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        put(&mut bytes, 0, &32_u32.to_le_bytes());
        put(&mut bytes, 4, &self.flags.to_le_bytes());
        put(&mut bytes, 8, &self.offset.to_le_bytes());
        put(&mut bytes, 16, &self.address.to_le_bytes());
        put(&mut bytes, 24, &self.size.to_le_bytes());
        bytes
    }

    pub(super) fn from_map(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 32).then(|| Self {
            flags: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            address: u64_at(bytes, 16),
            size: u64_at(bytes, 24),
        })
    }

    pub(super) fn from_unmap(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= 24).then(|| Self {
            flags: u32_at(bytes, 4),
            offset: 0,
            address: u64_at(bytes, 8),
            size: u64_at(bytes, 16),
        })
    }
}

/// DEVICE_GET_INFO: argsz (0..4), flags (4..8), regions (8..12), interrupts (12..16).
pub(super) fn device_info() -> Vec<u8> {
    words(&[16, vfio::DEVICE_RESET | vfio::DEVICE_PCI, vfio::REGIONS, vfio::IRQS])
}

/// `struct vfio_region_info`: argsz (0..4), flags (4..8), index (8..12), offset of capabilities (12..16), size (16..24), offset in the file (24..32).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegionInfo {
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Pieces that may be mapped: offset, size.
    pub(super) areas: Vec<(u64, u64)>,
}

/// Bytes of a region info without capabilities.
pub(super) const REGION_INFO: usize = 32;

impl RegionInfo {
    /// The reply to somebody with room for `argsz` bytes: what does not fit is left out, and argsz says how much it would be.
    pub(super) fn to_bytes(&self, argsz: usize) -> Vec<u8> {
        let caps = if self.areas.is_empty() { 0 } else { 16 + 16 * self.areas.len() };
        let whole = REGION_INFO + caps;
        let fits = caps > 0 && argsz >= whole;
        let mut bytes = vec![0; if fits { whole } else { REGION_INFO }];
        let flags = self.flags | if caps > 0 { vfio::REGION_CAPS } else { 0 };
        put(&mut bytes, 0, &u32::try_from(whole).expect("few areas").to_le_bytes());
        put(&mut bytes, 4, &flags.to_le_bytes());
        put(&mut bytes, 8, &self.index.to_le_bytes());
        put(&mut bytes, 16, &self.size.to_le_bytes());
        put(&mut bytes, 24, &self.offset.to_le_bytes());
        if fits {
            put(&mut bytes, 12, &32_u32.to_le_bytes());
            put(&mut bytes, 32, &vfio::CAP_SPARSE_MMAP.to_le_bytes());
            put(&mut bytes, 34, &1_u16.to_le_bytes());
            put(&mut bytes, 40, &u32::try_from(self.areas.len()).expect("few areas").to_le_bytes());
            for (index, (offset, size)) in self.areas.iter().enumerate() {
                put(&mut bytes, 48 + 16 * index, &offset.to_le_bytes());
                put(&mut bytes, 56 + 16 * index, &size.to_le_bytes());
            }
        }
        bytes
    }

    /// The fixed part of a reply.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= REGION_INFO).then(|| Self {
            flags: u32_at(bytes, 4),
            index: u32_at(bytes, 8),
            size: u64_at(bytes, 16),
            offset: u64_at(bytes, 24),
            areas: Vec::new(),
        })
    }
}

/// REGION_READ and REGION_WRITE: offset (0..8), region (8..12), count (12..16), then the data.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) offset: u64,
    pub(super) region: u32,
    pub(super) count: u32,
}

impl Access {
    pub(super) const BYTES: usize = 16;

    pub(super) fn to_bytes(self, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; Self::BYTES];
        put(&mut bytes, 0, &self.offset.to_le_bytes());
        put(&mut bytes, 8, &self.region.to_le_bytes());
        put(&mut bytes, 12, &self.count.to_le_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, data) = bytes.split_at_checked(Self::BYTES)?;
        Some((Self { offset: u64_at(head, 0), region: u32_at(head, 8), count: u32_at(head, 12) }, data))
    }
}

/// Words, little-endian, one after the other.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_their_size() {
        let bytes = message(7, command::REGION_READ, flag::REPLY, 0, &[1, 2, 3]);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert_eq!(header, Header { id: 7, command: 9, size: 19, flags: 1, errno: 0 });
        assert_eq!(header.payload(), Some(3));
        assert_eq!(Header { size: 15, ..header }.payload(), None);
        assert_eq!(Header { size: u32::MAX, ..header }.payload(), None);
    }

    #[test]
    fn capabilities_are_sent_to_those_who_have_room() {
        let info = RegionInfo { flags: 7, index: 0, size: 0x4000, offset: 0, areas: vec![(0x1000, 0x2000)] };
        let short = info.to_bytes(32);
        assert_eq!((short.len(), u32_at(&short, 0), u32_at(&short, 12)), (32, 64, 0));
        let long = info.to_bytes(64);
        assert_eq!((long.len(), u32_at(&long, 12), u64_at(&long, 48), u64_at(&long, 56)), (64, 32, 0x1000, 0x2000));
    }
}
