//! Scatter gather list descriptors (Base 4.1.2).

use crate::bytes;

/// One descriptor: fifteen bytes that depend on the type, then type (7:4) and sub type (3:0).
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct SglDescriptor([u8; Self::BYTES]);

const _: () = assert!(size_of::<SglDescriptor>() == 16);

/// Most bytes that a keyed descriptor names: its length has 24 bits.
pub const KEYED_BYTES_MAX: u32 = 0x00ff_ffff;

/// What a descriptor says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Sgl {
    /// 0h: `len` bytes at `address`.
    DataBlock {
        /// Where.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// 0h with sub type 1h: `len` bytes of in-capsule data, `offset` bytes behind ICDOFF (fabrics).
    InCapsule {
        /// Bytes behind the start of the data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// 1h: read data to throw away.
    BitBucket {
        /// Bytes.
        len: u32,
    },
    /// 2h: more descriptors, the last of which is another segment.
    Segment {
        /// Where they are.
        address: u64,
        /// Bytes of descriptors.
        len: u32,
    },
    /// 3h: more descriptors, all data.
    LastSegment {
        /// Where they are.
        address: u64,
        /// Bytes of descriptors.
        len: u32,
    },
    /// 4h: `len` bytes of the memory that the peer knows by `key`.
    Keyed {
        /// Where. On the `vi` transport an offset into the region.
        address: u64,
        /// Bytes, at most [`KEYED_BYTES_MAX`].
        len: u32,
        /// Which memory. On the `vi` transport the region handle's index; its incarnation was agreed when the VI connected.
        key: u32,
    },
    /// 5h: the transport itself says where the data goes (NVMe/TCP).
    Transport {
        /// Bytes.
        len: u32,
    },
}

impl SglDescriptor {
    /// Size on the wire.
    pub const BYTES: usize = 16;

    /// `len` bytes at `address`.
    #[must_use]
    pub fn data_block(address: u64, len: u32) -> Self {
        Self::plain(address, len, 0x00)
    }

    /// In-capsule data (fabrics).
    #[must_use]
    pub fn in_capsule(offset: u64, len: u32) -> Self {
        Self::plain(offset, len, 0x01)
    }

    /// Read data to throw away.
    #[must_use]
    pub fn bit_bucket(len: u32) -> Self {
        Self::plain(0, len, 0x10)
    }

    /// More descriptors, the last of which is another segment.
    #[must_use]
    pub fn segment(address: u64, len: u32) -> Self {
        Self::plain(address, len, 0x20)
    }

    /// More descriptors, all data.
    #[must_use]
    pub fn last_segment(address: u64, len: u32) -> Self {
        Self::plain(address, len, 0x30)
    }

    /// `len` bytes of the memory known by `key` (see [`Sgl::Keyed`] for what `vi` makes of it).
    ///
    /// # Panics
    /// If `len` exceeds [`KEYED_BYTES_MAX`].
    #[must_use]
    pub fn keyed(address: u64, len: u32, key: u32) -> Self {
        assert!(len <= KEYED_BYTES_MAX, "a keyed descriptor has 24 bits of length");
        let mut descriptor = Self::default();
        bytes::put(&mut descriptor.0, 0, &address.to_le_bytes());
        bytes::put(&mut descriptor.0, 8, &len.to_le_bytes()[..3]);
        bytes::put(&mut descriptor.0, 11, &key.to_le_bytes());
        descriptor.0[15] = 0x40;
        descriptor
    }

    /// Data that the transport places (NVMe/TCP: sub type Ah).
    #[must_use]
    pub fn transport(len: u32) -> Self {
        Self::plain(0, len, 0x5a)
    }

    fn plain(address: u64, len: u32, id: u8) -> Self {
        let mut descriptor = Self::default();
        bytes::put(&mut descriptor.0, 0, &address.to_le_bytes());
        bytes::put(&mut descriptor.0, 8, &len.to_le_bytes());
        descriptor.0[15] = id;
        descriptor
    }

    /// The descriptor in these bytes.
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

    /// What it says; `None` if type or sub type is not one of [`Sgl`] (status [`crate::Status::SGL_TYPE_INVALID`]).
    #[must_use]
    pub fn parse(&self) -> Option<Sgl> {
        let address = bytes::u64_at(&self.0, 0);
        let len = bytes::u32_at(&self.0, 8);
        Some(match self.0[15] {
            0x00 => Sgl::DataBlock { address, len },
            0x01 => Sgl::InCapsule { offset: address, len },
            0x10 => Sgl::BitBucket { len },
            0x20 => Sgl::Segment { address, len },
            0x30 => Sgl::LastSegment { address, len },
            // Sub type Fh asks the target to invalidate the key afterwards; keys of ours are not invalidated, so it says the same.
            0x40 | 0x4f => Sgl::Keyed { address, len: len & KEYED_BYTES_MAX, key: bytes::u32_at(&self.0, 11) },
            0x5a => Sgl::Transport { len },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_says_what_it_was_made_of() {
        let address = 0x1122_3344_5566_7788;
        for (descriptor, sgl) in [
            (SglDescriptor::data_block(address, 4096), Sgl::DataBlock { address, len: 4096 }),
            (SglDescriptor::in_capsule(0, 512), Sgl::InCapsule { offset: 0, len: 512 }),
            (SglDescriptor::bit_bucket(8), Sgl::BitBucket { len: 8 }),
            (SglDescriptor::segment(address, 32), Sgl::Segment { address, len: 32 }),
            (SglDescriptor::last_segment(address, 48), Sgl::LastSegment { address, len: 48 }),
            (
                SglDescriptor::keyed(address, KEYED_BYTES_MAX, 0xdead_beef),
                Sgl::Keyed { address, len: KEYED_BYTES_MAX, key: 0xdead_beef },
            ),
            (SglDescriptor::transport(65536), Sgl::Transport { len: 65536 }),
        ] {
            assert_eq!(SglDescriptor::from_bytes(descriptor.to_bytes()).parse(), Some(sgl));
        }
        assert_eq!(SglDescriptor::from_bytes([0xff; 16]).parse(), None);
    }
}
