//! Addresses as the device uses them: which ones the IOMMU translates, and which are given out.
//!
//! An IOMMU translates addresses of some width (39, 48 or 57 bits with VT-d), without the window of message-signalled
//! interrupts and whatever else the platform keeps for itself. VFIO tells the usable ranges (`VFIO_IOMMU_GET_INFO`,
//! capability 1, `linux/vfio.h`). Addresses are given out from below, each at a multiple of 2 MiB so that huge pages
//! stay huge in the IOMMU, and never twice: a function is mapped a few memories in its life.

use std::ops::RangeInclusive;

use dyad_nvme::bytes::{u16_at, u32_at, u64_at};

/// Every mapping starts at a multiple of this.
const ALIGNMENT: u64 = 2 << 20;

/// What is given out where the kernel does not say what can be (before 5.4): what the narrowest IOMMU has, above the
/// window for interrupts at FEE00000h.
const NARROWEST: RangeInclusive<u64> = 1 << 32..=(1 << 39) - 1;

/// `VFIO_IOMMU_INFO_CAPS` and `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`.
const HAS_CAPABILITIES: u32 = 1 << 1;
const IOVA_RANGES: u16 = 1;

/// What an IOMMU can do, as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IommuInfo {
    /// It maps pages of 4 KiB.
    pub(super) small_pages: bool,
    pub(super) ranges: Vec<RangeInclusive<u64>>,
}

impl IommuInfo {
    /// Reads what `VFIO_IOMMU_GET_INFO` wrote: structure `vfio_iommu_type1_info`, then a chain of capabilities.
    ///
    /// | bytes | what |
    /// |---|---|
    /// | 4..8 | flags |
    /// | 8..16 | page sizes, a bit each |
    /// | 16..20 | offset of the first capability: id (2), version (2), offset of the next or 0 (4), then its content |
    ///
    /// The content of capability 1 is a count (4), 4 bytes reserved, and pairs of first and last address (8 each).
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let small_pages = u64_at(bytes, 8) & 4096 != 0;
        let mut ranges = Vec::new();
        let mut next = if u32_at(bytes, 4) & HAS_CAPABILITIES == 0 { 0 } else { u32_at(bytes, 16) };
        // A chain is shorter than its bytes: one that goes in circles ends.
        for _ in 0..bytes.len() / 8 {
            let Some(capability) = usize::try_from(next).ok().filter(|at| *at != 0).and_then(|at| bytes.get(at..))
            else {
                break;
            };
            if capability.len() < 16 {
                break;
            }
            if u16_at(capability, 0) == IOVA_RANGES {
                let count = usize::try_from(u32_at(capability, 8)).unwrap_or(usize::MAX);
                let pairs = capability[16..].chunks_exact(16).take(count);
                ranges.extend(pairs.map(|pair| u64_at(pair, 0)..=u64_at(pair, 8)));
            }
            next = u32_at(capability, 4);
        }
        if ranges.is_empty() {
            ranges.push(NARROWEST);
        }
        Self { small_pages, ranges }
    }

    /// The bits that an address may have.
    pub(super) fn width(&self) -> u32 {
        self.ranges.iter().map(|range| u64::BITS - range.end().leading_zeros()).max().unwrap_or(0)
    }
}

/// Gives out addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    ranges: Vec<RangeInclusive<u64>>,
    next: u64,
}

impl Addresses {
    pub(super) fn new(info: &IommuInfo) -> Self {
        let mut ranges = info.ranges.clone();
        ranges.sort_by_key(|range| *range.start());
        // Zero is what a field that was forgotten says.
        Self { ranges, next: ALIGNMENT }
    }

    /// Room for so many bytes, more than zero; it stays free until [`Self::use_up`].
    pub(super) fn find(&self, bytes: u64) -> Option<u64> {
        self.ranges.iter().find_map(|range| {
            let start = self.next.max(*range.start()).checked_next_multiple_of(ALIGNMENT)?;
            let last = start.checked_add(bytes - 1)?;
            (last <= *range.end()).then_some(start)
        })
    }

    /// The room that was found is in use for good.
    pub(super) fn use_up(&mut self, start: u64, bytes: u64) {
        self.next = start + bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the kernel writes it: page sizes, and a chain with another capability before the ranges.
    fn info(ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0, HAS_CAPABILITIES] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        bytes.extend_from_slice(&0x4020_1000_u64.to_le_bytes());
        bytes.extend_from_slice(&24_u64.to_le_bytes());
        bytes.extend_from_slice(&[3, 0, 1, 0, 40, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&(ranges.len() as u64).to_le_bytes());
        for (start, end) in ranges {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn ranges_are_read_from_the_chain() {
        let parsed = IommuInfo::parse(&info(&[(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]));
        assert!(parsed.small_pages);
        assert_eq!(parsed.ranges, [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!(parsed.width(), 39);
    }

    #[test]
    fn a_kernel_that_does_not_say_means_the_narrowest() {
        let mut bytes = info(&[(0, u64::MAX)]);
        bytes[4] = 0;
        assert_eq!(IommuInfo::parse(&bytes).ranges, [NARROWEST]);
        assert_eq!(IommuInfo::parse(&info(&[])).ranges, [NARROWEST]);
    }

    #[test]
    fn addresses_are_aligned_avoid_holes_and_end() {
        let info = IommuInfo { small_pages: true, ranges: vec![16 << 20..=(20 << 20) - 1, 0..=(8 << 20) - 1] };
        let mut addresses = Addresses::new(&info);
        let mut take = |bytes| {
            let start = addresses.find(bytes)?;
            addresses.use_up(start, bytes);
            Some(start >> 20)
        };
        assert_eq!(take(4096), Some(2));
        assert_eq!(take((2 << 20) + 4096), Some(4));
        assert_eq!(take(8 << 20), None, "longer than any range");
        assert_eq!(take(4 << 20), Some(16), "the hole is left out");
        assert_eq!(take(4096), None);
        let all = Addresses::new(&IommuInfo { small_pages: true, ranges: vec![0..=u64::MAX] });
        assert_eq!(all.find(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_them_ends(bytes in prop::collection::vec(any::<u8>(), 24..400), at in 0_u8..64) {
            let mut bytes = bytes;
            bytes[4] |= 2;
            bytes[16..20].copy_from_slice(&u32::from(at).to_le_bytes());
            let _ = IommuInfo::parse(&bytes);
        }
    }
}
