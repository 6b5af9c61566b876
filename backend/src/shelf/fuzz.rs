//! The control socket, with lines that anybody made up. proptest runs this in every test; `fuzz/` has a target for it.

use dyad_nvme::types::BlockCount;
use dyad_reactor::{SeededRng, Time};

use super::control::answer;
use super::{PORTS, Served};
use crate::emulator::{BlockFormat, MemoryMedia, NamespaceConfig, Subsystem, SubsystemConfig};

/// Says `bytes` to the control socket of a shelf, line by line.
///
/// # Panics
/// If the shelf has a fault.
pub fn control(bytes: &[u8]) {
    let config = SubsystemConfig { ports: PORTS, ..SubsystemConfig::default() };
    let mut subsystem = Subsystem::new(config, SeededRng::new(1));
    let blocks = BlockCount(16);
    let config = NamespaceConfig { uuid: [1; 16], blocks, cache_blocks: Some(4), format: BlockFormat::Protected };
    let media = MemoryMedia::new(usize::try_from(config.media_bytes()).expect("small"));
    subsystem.add_namespace(config, Box::new(media));
    let mut devices = [Served { name: "disk0".to_owned(), subsystem, ports: Vec::new() }];
    for line in bytes.split(|byte| *byte == b'\n') {
        let said = answer(&String::from_utf8_lossy(line), &mut devices);
        assert!(said == "ok\n" || said.starts_with("error: "), "{said:?}");
        devices[0].subsystem.step(Time::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const WORDS: [&str; 24] = [
        "disk0",
        "disk1",
        "latency",
        "delay",
        "bad",
        "corrupt",
        "lose",
        "misdirect",
        "hang",
        "fatal",
        "remove",
        "plug",
        "power",
        "off",
        "on",
        "0",
        "1",
        "2",
        "15",
        "16",
        "99999",
        "18446744073709551615",
        "-1",
        "\n",
    ];

    proptest! {
        #[test]
        fn any_line_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            super::control(&bytes);
        }

        #[test]
        fn any_words_are_answered(words in prop::collection::vec(prop::sample::select(&WORDS), 0..60)) {
            super::control(words.join(" ").as_bytes());
        }
    }
}
