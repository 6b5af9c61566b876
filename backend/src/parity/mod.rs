//! Parity: linear combinations of blocks over GF(2^8), wherever the blocks lie in device memory.
//!
//! Everything that RAID 5 and 6 compute is one operation, [`combine`]: each target block becomes a sum of source blocks, each multiplied by a
//! constant. P is the sum with all constants one, Q the sum with g^i for data member i; an updated P or Q is the sum of itself, old and new data;
//! a lost member is a sum of those that are left ([`Recipe`]).
//!
//! Source of the arithmetic: H. P. Anvin, "The mathematics of RAID-6" (2004): the field modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d), generator g = 2.
//!
//! The bytes may be in the reach of devices and peers, so no reference to them is made: [`combine`] checks every range and leaves the rest to
//! `kernel`, whose only accesses are loads and stores that are atomic to the language (see there). A block that changes meanwhile gives a
//! parity of some mixture, never undefined behaviour. Nothing is counted as a copy: no payload moves.

mod field;
mod kernel;
mod recipe;
#[cfg(test)]
mod tests;

use dyad_matrix::Memory;
use dyad_matrix::memory::RangeError;
use dyad_nvme::types::BlockCount;

pub use field::Gf;
pub use recipe::{Member, Recipe};

use kernel::Isa;

/// Most data members of a stripe.
pub const DATA_MAX: usize = 16;

/// Most sources of one combination: all data, P and Q.
pub const SOURCES_MAX: usize = DATA_MAX + 2;

/// Most targets of one combination.
pub const TARGETS_MAX: usize = 2;

/// A run of blocks in memory; how many is said by whoever uses it.
#[derive(Debug, Copy, Clone)]
pub struct Piece<'a> {
    /// Which memory.
    pub memory: &'a Memory,
    /// Bytes from its start.
    pub offset: u64,
}

/// Why a combination was refused. No byte was written.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// A piece does not lie in its memory, or a target's memory is read-only.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// No targets or more than [`TARGETS_MAX`], more than [`SOURCES_MAX`] sources, or rows of another shape.
    #[error("a combination has 1 to {TARGETS_MAX} targets, at most {SOURCES_MAX} sources, and a factor for each pair")]
    Shape,
}

/// Makes each of `targets` the sum of all `sources`, each times its factor in the target's row.
///
/// A target may be one of the sources, exactly; if pieces overlap in any other way, which bytes are summed is not specified.
///
/// # Errors
/// [`CombineError`].
pub fn combine(
    targets: &[Piece<'_>],
    sources: &[Piece<'_>],
    rows: &[&[Gf]],
    blocks: BlockCount,
) -> Result<(), CombineError> {
    combine_with(Isa::best(), targets, sources, rows, blocks)
}

/// Makes `target` the sum of all `sources`: P, and a data member that was lost alone.
///
/// # Errors
/// [`CombineError`].
pub fn xor(target: Piece<'_>, sources: &[Piece<'_>], blocks: BlockCount) -> Result<(), CombineError> {
    let row = [Gf::ONE; SOURCES_MAX];
    let row = row.get(..sources.len()).ok_or(CombineError::Shape)?;
    combine(&[target], sources, &[row], blocks)
}

fn combine_with(
    isa: Isa,
    targets: &[Piece<'_>],
    sources: &[Piece<'_>],
    rows: &[&[Gf]],
    blocks: BlockCount,
) -> Result<(), CombineError> {
    let fits = (1..=TARGETS_MAX).contains(&targets.len()) && sources.len() <= SOURCES_MAX;
    if !fits || rows.len() != targets.len() || rows.iter().any(|row| row.len() != sources.len()) {
        return Err(CombineError::Shape);
    }
    let mut to = heapless::Vec::<_, TARGETS_MAX>::new();
    for target in targets {
        let place = kernel::Place::writable(target.memory, target.offset, blocks)?;
        assert!(to.push(place).is_ok(), "the shape was checked");
    }
    let mut from = heapless::Vec::<_, SOURCES_MAX>::new();
    for source in sources {
        let place = kernel::Place::readable(source.memory, source.offset, blocks)?;
        assert!(from.push(place).is_ok(), "the shape was checked");
    }
    kernel::combine(isa, &to, &from, rows, blocks);
    Ok(())
}
