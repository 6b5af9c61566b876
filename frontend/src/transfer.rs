//! Moves a command's bytes between frames and the host's exported memory, by RDMA.

use dyad_cache::CacheError;
use dyad_cache::home::Transfer;
use dyad_matrix::endpoint::{Endpoint, Posted};
use dyad_matrix::frames::Segments;
use dyad_matrix::provider::{RegionHandle, RemoteAddress, ViId};
use dyad_matrix::{Provider, Segment};
use dyad_nvme::capsule::{DATA_BLOCKS_MAX, DataBlock};

/// A part of one command's data.
pub struct HostMemory<'a, P> {
    endpoint: &'a Endpoint<P>,
    vi: ViId,
    region: RegionHandle,
    data: &'a [DataBlock],
    /// Bytes of the command's data before this part.
    skip: u64,
}

/// A piece of frames and the host memory that belongs to it.
struct Piece {
    segments: Segments,
    remote: u64,
}

impl<'a, P: Provider> HostMemory<'a, P> {
    /// The part that begins `skip` bytes into `data`, which lies in the host's `region`.
    pub fn new(endpoint: &'a Endpoint<P>, vi: ViId, region: RegionHandle, data: &'a [DataBlock], skip: u64) -> Self {
        Self { endpoint, vi, region, data, skip }
    }

    async fn transfer(&self, segments: &[Segment], reads: bool) -> Result<(), CacheError> {
        let mut posted: heapless::Vec<Posted, DATA_BLOCKS_MAX> = heapless::Vec::new();
        let mut failed = false;
        for piece in pair(segments, self.data, self.skip) {
            let remote = RemoteAddress { region: self.region, offset: piece.remote };
            let result = if reads {
                self.endpoint.rdma_read(self.vi, &piece.segments, remote).await
            } else {
                self.endpoint.rdma_write(self.vi, &piece.segments, remote).await
            };
            match result {
                Ok(transfer) => {
                    assert!(posted.push(transfer).is_ok(), "one piece per data block")
                }
                Err(_) => failed = true,
            }
        }
        // The frames are in use until every transfer is done.
        for transfer in posted {
            failed |= transfer.await.is_err();
        }
        if failed { Err(CacheError::Host) } else { Ok(()) }
    }
}

impl<P: Provider> Transfer for HostMemory<'_, P> {
    async fn fetch(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.transfer(segments, true).await
    }

    async fn deliver(&self, segments: &[Segment]) -> Result<(), CacheError> {
        self.transfer(segments, false).await
    }
}

/// Cuts frames where the host's list cuts its memory: one piece per data block that they touch.
fn pair<'a>(segments: &'a [Segment], data: &'a [DataBlock], skip: u64) -> impl Iterator<Item = Piece> + 'a {
    let total: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
    let mut block_start = 0;
    data.iter().filter_map(move |block| {
        let start = block_start;
        block_start += u64::from(block.len);
        let from = start.max(skip);
        let to = block_start.min(skip + total);
        (from < to).then(|| Piece {
            segments: cut(segments, from - skip, to - skip),
            remote: block.offset.saturating_add(from - start),
        })
    })
}

/// Bytes `from..to` of the segments.
fn cut(segments: &[Segment], from: u64, to: u64) -> Segments {
    let mut at = 0;
    let mut cut = Segments::new();
    for segment in segments {
        let (start, end) = (at, at + u64::from(segment.len));
        at = end;
        let (from, to) = (from.max(start), to.min(end));
        if from < to {
            let len = u32::try_from(to - from).expect("a cut is no longer than what it is cut from");
            let piece = Segment { memory: segment.memory, offset: segment.offset + (from - start), len };
            assert!(cut.push(piece).is_ok(), "a cut has no more pieces than what it is cut from");
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use dyad_matrix::MemoryId;

    use super::*;

    #[test]
    fn pieces_pair_the_same_bytes() {
        let memory = MemoryId(1);
        let segments = [Segment { memory, offset: 0, len: 8192 }, Segment { memory, offset: 40960, len: 4096 }];
        let data = [
            DataBlock { offset: 100, len: 4096 },
            DataBlock { offset: 9000, len: 8192 },
            DataBlock { offset: 50000, len: 4096 },
        ];
        let pieces: Vec<_> = pair(&segments, &data, 4096)
            .map(|p| (p.remote, p.segments.iter().map(|s| (s.offset, s.len)).collect::<Vec<_>>()))
            .collect();
        assert_eq!(pieces, [(9000, vec![(0, 8192)]), (50000, vec![(40960, 4096)])]);
        let pieces: Vec<_> =
            pair(&segments[..1], &data, 0).map(|p| (p.remote, p.segments[0].offset, p.segments[0].len)).collect();
        assert_eq!(pieces, [(100, 0, 4096), (9000, 4096, 4096)]);
    }
}
