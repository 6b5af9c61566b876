//! What a peer can say, from bytes that anybody made up: nothing of it may panic, hang, or lead outside the channel.
//! proptest runs it in every test, and a fuzzer can, through [`fuzz`] under `--cfg fuzzing`.

use super::control::Control;
use super::layout::{ENTRY_BYTES, ENTRY_WORDS, Geometry, Side};
use super::ring::Consumer;
use crate::memory::{HugePages, Memory};

const GEOMETRY: Geometry = Geometry { entries: 8, data: 4096 };

/// Reads `bytes` as a packet for the agent, and as the entries of a ring.
///
/// # Panics
/// If a reader of them has a fault.
#[allow(unreachable_pub, reason = "public to the fuzzer alone")]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(control) = Control::parse(bytes) {
        assert_eq!(Control::parse(&control.encode()), Ok(control), "what is understood can be said");
    }
    let len = usize::try_from(GEOMETRY.channel_bytes()).expect("it is small");
    let channel = Memory::shared("dyad-fuzz", len, HugePages::No).expect("a little memory");
    let ring = GEOMETRY.ring(Side::Client);
    for (number, entry) in (0_u64..8).zip(bytes.chunks_exact(12)) {
        let at = ring.entries + ENTRY_BYTES * number;
        // With the right stamp more of it is looked at.
        let mut first = [0; 8];
        first[..4].clone_from_slice(&u32::try_from(number + 1).expect("there are eight").to_le_bytes()); // copy: a test
        first[4..].clone_from_slice(&entry[..4]); // copy: a test
        channel.write(at, &first).expect("in range");
        channel.write(at + ENTRY_WORDS, &entry[4..]).expect("in range");
    }
    let mut consumer = Consumer::new(channel, ring, GEOMETRY);
    for _ in 0..8 {
        let Ok(Some(arrived)) = consumer.peek() else { break };
        let end = arrived.payload + u64::from(arrived.header.len);
        assert!(arrived.payload >= ring.entries && end <= ring.data + u64::from(GEOMETRY.data), "outside the ring");
        consumer.pop(&arrived);
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_safely(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..140)) {
            super::fuzz(&bytes);
        }

        #[test]
        fn short_lengths_and_few_flags_are_read_safely(entries in proptest::collection::vec((0_u16..600, 0_u8..9), 8)) {
            let entry = |&(len, flags): &(u16, u8)| [len.to_le_bytes().to_vec(), vec![0, flags], vec![0; 8]].concat();
            super::fuzz(&entries.iter().flat_map(entry).collect::<Vec<u8>>());
        }
    }
}
