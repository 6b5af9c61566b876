//! Sequential streams: who reads on where somebody read before, and what will be asked for next.
//!
//! A read continues a stream if it begins where the stream is, or a little ahead: commands outstanding together come in any order. A stream counts as
//! sequential after [`SEQUENTIAL_BLOCKS`]; from then on the rest of its stripe and the next one are to be read before they are asked for. The stream
//! that nobody continued for longest makes room for a new one.

use crate::address::{TRACK_BLOCKS, TrackRange, VolumeId};

/// Streams that are known at once.
const STREAMS: usize = 16;

/// Blocks after which a stream counts as sequential: two tracks.
pub(crate) const SEQUENTIAL_BLOCKS: u64 = 2 * TRACK_BLOCKS as u64;

/// How far ahead of a stream a read may begin and still continue it: what is between is under way.
const REACH: u64 = TRACK_BLOCKS as u64;

/// How far behind it a read may begin and still belong to it.
const TRAIL: u64 = 4 * TRACK_BLOCKS as u64;

#[derive(Debug, Copy, Clone)]
struct Stream {
    volume: VolumeId,
    /// The block behind the last one that was read.
    next: u64,
    /// Blocks that it has come so far.
    length: u64,
    /// The track behind the last one that was to be read ahead.
    ahead: u64,
    /// When it was continued last, in reads.
    used: u64,
}

/// What a read says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advice {
    /// It is part of a sequential stream.
    pub(crate) sequential: bool,
    /// Tracks to be read now, before anybody asks for them.
    pub(crate) ahead: std::ops::Range<u64>,
}

/// All streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: heapless::Vec<Stream, STREAMS>,
    reads: u64,
}

impl Streams {
    /// A read of a volume of so many tracks, in stripes of so many.
    pub(crate) fn read(&mut self, range: TrackRange, tracks: u64, stripe_tracks: u64) -> Advice {
        self.reads += 1;
        let (volume, first, blocks) = (range.track.volume, range.lba().0, range.count() as u64);
        let continued = |stream: &&mut Stream| {
            stream.volume == volume && (stream.next.saturating_sub(TRAIL)..=stream.next + REACH).contains(&first)
        };
        let Some(stream) = self.streams.iter_mut().find(continued) else {
            let stream =
                Stream { volume, next: first + blocks, length: blocks, ahead: range.track.track + 1, used: self.reads };
            if let Err(stream) = self.streams.push(stream) {
                let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used).expect("there are streams");
                *oldest = stream;
            }
            return Advice { sequential: false, ahead: 0..0 };
        };
        stream.used = self.reads;
        let next = stream.next.max(first + blocks);
        stream.length += next - stream.next;
        stream.next = next;
        if stream.length < SEQUENTIAL_BLOCKS {
            return Advice { sequential: false, ahead: 0..0 };
        }
        let at = stream.next.div_ceil(TRACK_BLOCKS as u64);
        // To the end of the stripe behind the one that is being read.
        let end = ((at / stripe_tracks + 2) * stripe_tracks).min(tracks);
        let from = stream.ahead.max(at);
        stream.ahead = end.max(stream.ahead);
        Advice { sequential: true, ahead: from..end.max(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::TrackAddress;

    const VOLUME: VolumeId = VolumeId { uuid: [1; 16], generation: 1 };

    fn read(streams: &mut Streams, lba: u64, blocks: u64) -> Advice {
        let range = TrackRange::split(VOLUME, dyad_nvme::types::Lba(lba), blocks).next().unwrap();
        streams.read(range, 100, 4)
    }

    #[test]
    fn a_stream_is_read_ahead_stripe_by_stripe_and_each_track_once() {
        let mut streams = Streams::default();
        assert!(!read(&mut streams, 0, 16).sequential);
        let advice = [1, 2, 3, 4, 5, 98].map(|track| read(&mut streams, track * 16, 16));
        assert!(advice[0].sequential && !advice[5].sequential, "{advice:?}");
        assert_eq!(
            advice[..4].iter().map(|advice| advice.ahead.clone()).collect::<Vec<_>>(),
            [2..8, 8..8, 8..12, 12..12]
        );
        let mut end = 12;
        for track in 6..100 {
            let ahead = read(&mut streams, track * 16, 16).ahead;
            assert!(ahead.start == end || ahead.is_empty(), "{ahead:?} after {end}");
            end = end.max(ahead.end);
        }
        assert_eq!(end, 100, "not beyond the volume");
    }

    #[test]
    fn small_reads_out_of_order_are_a_stream_and_random_ones_are_not() {
        let mut streams = Streams::default();
        let mut sequential = false;
        for lba in [0, 2, 1, 3, 5, 4, 6, 7].into_iter().flat_map(|lba| [lba, lba + 8, lba + 16, lba + 24, lba + 32]) {
            sequential |= read(&mut streams, lba, 1).sequential;
        }
        assert!(sequential);
        let mut streams = Streams::default();
        for n in 0..1000_u64 {
            assert!(!read(&mut streams, n * 7_919_001 % 1_000_003, 1).sequential, "read {n}");
        }
        for _ in 0..1000 {
            assert!(!read(&mut streams, 5, 1).sequential, "the same again and again");
        }
    }

    #[test]
    fn two_streams_are_two() {
        let mut streams = Streams::default();
        let track = |volume: u8, track| {
            TrackRange::whole(TrackAddress { volume: VolumeId { uuid: [volume; 16], generation: 1 }, track })
        };
        let mut ahead = [0, 0];
        for n in 0..20 {
            for volume in 0..2_u8 {
                let advice = streams.read(track(volume, n), 100, 1);
                ahead[usize::from(volume)] += advice.ahead.count();
            }
        }
        assert_eq!(ahead, [20, 20]);
    }
}
