//! Names of PCI functions, as `lspci` and sysfs write them.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `domain:bus:device.function`.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// The text is no PCI address.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address is like 0000:01:00.0 or 01:00.0")]
pub struct BadAddress;

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = BadAddress;

    /// With the domain or without it (0000), in hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (rest, function) = text.rsplit_once('.').ok_or(BadAddress)?;
        let mut parts = rest.rsplit(':');
        let device = number(parts.next(), 1..=2)?;
        let bus = number(parts.next(), 1..=2)?;
        // A domain of a volume management device has more than 16 bits.
        let domain = parts.next().map_or(Ok(0), |text| number(Some(text), 4..=8))?;
        let function = number(Some(function), 1..=1)?;
        if parts.next().is_some() || device > 0x1f || function > 7 {
            return Err(BadAddress);
        }
        let byte = |value: u32| u8::try_from(value).map_err(|_| BadAddress);
        Ok(Self { domain, bus: byte(bus)?, device: byte(device)?, function: byte(function)? })
    }
}

fn number(text: Option<&str>, digits: std::ops::RangeInclusive<usize>) -> Result<u32, BadAddress> {
    let text = text.filter(|t| digits.contains(&t.len()) && t.bytes().all(|b| b.is_ascii_hexdigit()));
    u32::from_str_radix(text.ok_or(BadAddress)?, 16).map_err(|_| BadAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_sysfs_writes_them() {
        for (text, canonical) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("3:1F.7", "0000:03:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let texts = "|disk0|01:00|01:00.8|01:20.0|1:0:0:0.0|001:00.0|0:01:00.0|0000:01:00.|+1:00.0|./01:00.0|nvme0n1|01:00.0 |\
                     0000:001:00.0|:00.0|01:.0";
        for text in texts.split('|') {
            assert_eq!(text.parse::<PciAddress>(), Err(BadAddress), "{text:?}");
        }
    }
}
