//! Sizes as people write them: `64MiB`.

use std::fmt;
use std::str::FromStr;

use dyad_nvme::types::{BLOCK_BYTES, BlockCount};

/// A number of bytes: whole blocks of 4 KiB, at least one.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// It is no size.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Only powers of two.
    #[error("a size is a number with KiB, MiB, GiB or TiB behind it")]
    Unit,
    /// Nothing, or not whole, or too much.
    #[error("a size is a whole number of 4 KiB blocks, at least one")]
    Blocks,
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl ByteSize {
    /// So many blocks; `None` for none, or more than can be counted in bytes.
    #[must_use]
    pub fn of_blocks(blocks: BlockCount) -> Option<Self> {
        let bytes = blocks.0.checked_mul(BLOCK_BYTES as u64)?;
        (bytes > 0).then_some(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In blocks.
    #[must_use]
    pub const fn blocks(self) -> BlockCount {
        BlockCount(self.0 / BLOCK_BYTES as u64)
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = UNITS.iter().find(|(name, _)| *name == &text[digits.len()..]).ok_or(SizeError::Unit)?.1;
        let number: u64 = digits.parse().map_err(|_| SizeError::Blocks)?;
        let bytes = number.checked_mul(unit).filter(|bytes| *bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES as u64));
        bytes.map(Self).ok_or(SizeError::Blocks)
    }
}

/// In the largest unit that it is a whole number of.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = UNITS.into_iter().find(|(_, unit)| self.0.is_multiple_of(*unit)).expect("whole blocks");
        write!(f, "{}{name}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_whole_blocks() {
        for (text, bytes) in [("64MiB", 64 << 20), ("8KiB", 8192), ("3TiB", 3 << 40), ("1GiB", 1 << 30)] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.bytes(), size.to_string()), (bytes, text.to_owned()));
        }
        assert_eq!("1024KiB".parse::<ByteSize>().expect("a size").to_string(), "1MiB");
        for bad in ["", "64", "6KiB", "0MiB", "-1GiB", "99999999999GiB", "MiB", "1 MiB", "1mib"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize::of_blocks(BlockCount(0)), None);
    }
}
