//! The boot page: where recovery begins, and where the catalog is. `FORMAT.md`, "Boot page".
//!
//! All that changes is in its first block, so it is never torn.

use dyad_host::VolumeError;
use dyad_matrix::Memory;

use crate::allocation::maps::BOOT_PAGE;
use crate::codec::Fields;
use crate::ids::{Lsn, ObjectId, PageId};
use crate::page::{HEADER_BYTES, PAGE_BYTES, Page, PageKind, Stamp};
use crate::port::{BLOCK_BYTES, PAGE_BLOCKS, Port};

/// What the boot page says.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) stamp: Stamp,
    /// Files of the database.
    pub(crate) files: u16,
    /// The last checkpoint's record.
    pub(crate) checkpoint: Lsn,
    /// Where the log ended when that checkpoint began.
    pub(crate) begin: Lsn,
    /// Minimum recovery LSN: reading the log begins here.
    pub(crate) recovery: Lsn,
    /// The first IAM pages of the catalog and of its long values.
    pub(crate) catalog: [PageId; 2],
}

const NAME: PageId = PageId::new(0, BOOT_PAGE);
const AT: u64 = BOOT_PAGE as u64 * PAGE_BLOCKS;

impl Boot {
    fn encode(&self) -> Vec<u8> {
        let memory = Memory::anonymous(PAGE_BYTES);
        let page = Page::new(&memory, [0, BLOCK_BYTES as u64]).expect("a page of memory");
        page.format(NAME, PageKind::Boot, ObjectId::SYSTEM, self.stamp);
        let [rows, long] = self.catalog.map(PageId::pack);
        let numbers = [u64::from(self.files), self.checkpoint.0, self.begin.0, self.recovery.0, rows, long];
        for (place, number) in numbers.into_iter().enumerate() {
            page.write(HEADER_BYTES + 8 * place, &number.to_le_bytes());
        }
        page.seal();
        page.bytes(0, PAGE_BYTES)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let memory = Memory::anonymous(PAGE_BYTES);
        let page = Page::new(&memory, [0, BLOCK_BYTES as u64]).ok()?;
        page.write(0, bytes);
        let stamp = page.stamp();
        if page.verify(NAME, stamp).is_err() || page.kind() != Some(PageKind::Boot) {
            return None;
        }
        let mut fields = Fields(&bytes[HEADER_BYTES..]);
        Some(Self {
            stamp,
            files: u16::try_from(fields.u64()?).ok()?,
            checkpoint: Lsn(fields.u64()?),
            begin: Lsn(fields.u64()?),
            recovery: Lsn(fields.u64()?),
            catalog: [PageId::unpack(fields.u64()?), PageId::unpack(fields.u64()?)],
        })
    }

    /// Makes it durable.
    pub(crate) async fn write(&self, port: &Port) -> Result<(), VolumeError> {
        port.write_blocks(AT, self.encode()).await
    }

    /// There is no database any more.
    pub(crate) async fn erase(port: &Port) -> Result<(), VolumeError> {
        port.write_blocks(AT, vec![0; PAGE_BYTES]).await
    }

    /// The boot page of the database whose first file is behind `port`.
    pub(crate) async fn read(port: &Port) -> Result<Option<Self>, VolumeError> {
        let blocks = usize::try_from(PAGE_BLOCKS).expect("two");
        Ok(Self::decode(&port.read_blocks(AT, blocks).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_page_comes_back_and_only_its_first_block_ever_changes() {
        let boot = Boot {
            stamp: Stamp(9),
            files: 2,
            checkpoint: Lsn(3),
            begin: Lsn(2),
            recovery: Lsn(1),
            catalog: [PageId::new(0, 8), PageId::new(1, 9)],
        };
        let bytes = boot.encode();
        assert_eq!(Boot::decode(&bytes), Some(boot));
        let later = Boot { checkpoint: Lsn(77), ..boot }.encode();
        assert_eq!(later[BLOCK_BYTES..], bytes[BLOCK_BYTES..]);
        assert_eq!(Boot::decode(&vec![0; PAGE_BYTES]), None);
        let mut torn = later;
        torn[100] ^= 1;
        assert_eq!(Boot::decode(&torn), None);
    }
}
