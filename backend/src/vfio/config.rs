//! What is read in a function's configuration space (PCI Local Bus 3.0, chapter 6 and 6.8.2; PCI Express Base keeps both).

use dyad_nvme::bytes::{u16_at, u32_at};

/// Bytes of the part that every function has.
pub(super) const CONFIG_BYTES: usize = 256;

/// The command register, and its bits: memory is decoded; the function may reach memory.
pub(super) const COMMAND: u64 = 4;
pub(super) const MEMORY_SPACE: u16 = 1 << 1;
pub(super) const BUS_MASTER: u16 = 1 << 2;

const STATUS: usize = 6;
const HAS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES: usize = 0x34;
const MSIX: u8 = 0x11;

/// Bytes of an entry in the MSI-X table, and where its vector control is; bit 0 of it masks.
const ENTRY_BYTES: u32 = 16;
const VECTOR_CONTROL: u32 = 12;

/// Where in BAR 0 vector 0 is masked; `None` if the MSI-X table is not there.
pub(super) fn vector_control(config: &[u8; CONFIG_BYTES]) -> Option<u32> {
    if u16_at(config, STATUS) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = config[CAPABILITIES];
    // A chain of 4-byte aligned places: one that goes in circles ends.
    for _ in 0..CONFIG_BYTES / 4 {
        let here = usize::from(at & !3);
        if !(0x40..=CONFIG_BYTES - 12).contains(&here) {
            return None;
        }
        if config[here] == MSIX {
            let table = u32_at(config, here + 4);
            let (bar, offset) = (table & 7, table & !7);
            let vector = offset.checked_add(ENTRY_BYTES)?;
            return (bar == 0).then_some(vector - ENTRY_BYTES + VECTOR_CONTROL);
        }
        at = config[here + 1];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(table: u32) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        config[STATUS] = 0x10;
        config[CAPABILITIES] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x80]);
        config[0x80..0x82].copy_from_slice(&[MSIX, 0]);
        config[0x84..0x88].copy_from_slice(&table.to_le_bytes());
        config
    }

    #[test]
    fn the_table_is_found_behind_other_capabilities() {
        assert_eq!(vector_control(&config(0x2000)), Some(0x200c));
    }

    #[test]
    fn a_table_elsewhere_or_nowhere_is_none() {
        assert_eq!(vector_control(&config(0x2004)), None, "BAR 4");
        assert_eq!(vector_control(&config(0xffff_fff8)), None);
        let mut none = config(0x2000);
        none[STATUS] = 0;
        assert_eq!(vector_control(&none), None);
        let mut circle = config(0x2000);
        circle[0x41] = 0x40;
        assert_eq!(vector_control(&circle), None);
        let mut outside = config(0x2000);
        outside[0x41] = 0xfc;
        assert_eq!(vector_control(&outside), None);
    }
}
