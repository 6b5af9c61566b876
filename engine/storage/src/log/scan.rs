//! Reading the log, from a record to its end.

use std::sync::Arc;

use dyad_host::VolumeError;
use dyad_matrix::frames::RUN_FRAMES_MAX;

use super::block::{BLOCK_HEADER, BlockHead, Header};
use super::place;
use super::record::Record;
use crate::ids::Lsn;
use crate::port::{BLOCK_BYTES, Port};

/// Why the log cannot be read.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    /// It is the log of another database, or none.
    #[error("no log of this database")]
    Foreign,
    /// It does not have the record that reading begins with.
    #[error("the log does not reach its first record")]
    Damaged,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A place in the log. What is behind the last whole record is not part of it.
pub(crate) struct Scan {
    pub(super) port: Arc<Port>,
    pub(super) header: Header,
    /// The last block that is part of the log.
    pub(super) last: u64,
    generation: u32,
    /// Its bytes in use, and how far they were read.
    block: Vec<u8>,
    at: usize,
    /// Blocks that were read ahead, and the number of the first one.
    ahead: Vec<u8>,
    ahead_first: u64,
}

/// What the next bytes are.
enum Bytes {
    Of(Vec<u8>),
    /// Another generation begins before so many come.
    Fresh,
    End,
}

impl Scan {
    pub(super) async fn start(port: Arc<Port>, header: Header, from: Lsn) -> Result<Self, ScanError> {
        let block = BLOCK_BYTES as u64;
        let (last, at) = (from.0 / block, from.0 % block);
        let at = usize::try_from(at).map_err(|_| ScanError::Damaged)?;
        let mut scan =
            Self { port, header, last, generation: 0, block: Vec::new(), at, ahead: Vec::new(), ahead_first: 0 };
        let (head, block) = scan.load(last).await?.ok_or(ScanError::Damaged)?;
        if head.used < at || at < BLOCK_HEADER {
            return Err(ScanError::Damaged);
        }
        (scan.generation, scan.block) = (head.generation, block);
        Ok(scan)
    }

    /// Block `number`, if it is there.
    async fn load(&mut self, number: u64) -> Result<Option<(BlockHead, Vec<u8>)>, VolumeError> {
        let ahead = self.ahead_first..self.ahead_first + (self.ahead.len() / BLOCK_BYTES) as u64;
        if !ahead.contains(&number) {
            let until_wrap = self.header.capacity - number % self.header.capacity;
            let count = RUN_FRAMES_MAX.min(usize::try_from(until_wrap).unwrap_or(RUN_FRAMES_MAX));
            self.ahead = self.port.read_blocks(place(number, self.header.capacity), count).await?;
            self.ahead_first = number;
        }
        let from = usize::try_from(number - self.ahead_first).expect("a few blocks") * BLOCK_BYTES;
        let block = &self.ahead[from..from + BLOCK_BYTES];
        let head = BlockHead::open(self.header.stamp, block).filter(|head| head.number == number);
        Ok(head.map(|head| (head, block[..head.used].to_vec())))
    }

    /// Goes to the next block, if it is part of the log; says whether it begins another generation.
    async fn advance(&mut self) -> Result<Option<bool>, VolumeError> {
        let Some((head, block)) = self.load(self.last + 1).await? else { return Ok(None) };
        let continues = head.generation == self.generation && self.block.len() == BLOCK_BYTES;
        if !continues && head.generation <= self.generation {
            return Ok(None);
        }
        self.last += 1;
        (self.generation, self.block, self.at) = (head.generation, block, BLOCK_HEADER);
        Ok(Some(!continues))
    }

    async fn bytes(&mut self, count: usize) -> Result<Bytes, VolumeError> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let here = &self.block[self.at..];
            let taken = here.len().min(count - bytes.len());
            bytes.extend_from_slice(&here[..taken]);
            self.at += taken;
            if bytes.len() < count {
                match self.advance().await? {
                    None => return Ok(Bytes::End),
                    Some(true) => return Ok(Bytes::Fresh),
                    Some(false) => {}
                }
            }
        }
        Ok(Bytes::Of(bytes))
    }

    /// The next record and where it is; `None` at the end of the log.
    pub(crate) async fn next(&mut self) -> Result<Option<(Lsn, Record)>, VolumeError> {
        loop {
            if self.at == self.block.len() && self.advance().await?.is_none() {
                return Ok(None);
            }
            let lsn = Lsn(self.last * BLOCK_BYTES as u64 + self.at as u64);
            let mut bytes = match self.bytes(4).await? {
                Bytes::Of(bytes) => bytes,
                Bytes::Fresh => continue,
                Bytes::End => return Ok(None),
            };
            let announced = bytes.first_chunk().and_then(|len| Record::announced_len(*len));
            let Some(len) = announced else { return Ok(None) };
            match self.bytes(len - 4).await? {
                Bytes::Of(rest) => bytes.extend(rest),
                Bytes::Fresh => continue,
                Bytes::End => return Ok(None),
            }
            return Ok(Record::decode(&bytes).map(|record| (lsn, record)));
        }
    }
}
