//! The loops, one per instruction set; the best that the processor has is chosen at run time.
//!
//! Blocks may change while they are summed, so plain loads are not allowed (they would be data races). Vectors are loaded and stored by single
//! instructions in assembly, as `dyad_matrix::memory` does: to the language they are opaque, and what they do is what relaxed atomics would do,
//! in units that are not specified. All computing is on values, by the processor intrinsics. Elsewhere, and under Miri, the loop is over atomic
//! 64-bit words.

#![allow(unsafe_code)] // the room that reads and writes blocks in registers: raw pointers, checked when a `Place` is made

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_matrix::Memory;
use dyad_matrix::memory::RangeError;
use dyad_nvme::types::BlockCount;

use super::Gf;

/// Where a run of blocks lies. It was checked against its memory, which lives as long.
#[derive(Debug)]
pub(super) struct Place<'a, P> {
    start: P,
    blocks: BlockCount,
    memory: PhantomData<&'a Memory>,
}

/// The longest vector, which a store past the caches wants aligned. Memories start at pages.
const ALIGNED: u64 = 64;

/// From so many bytes on (a chunk), targets are written past the caches: their lines are not read first, and the next to look is a device.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STREAMED: usize = 64 << 10;

impl<'a> Place<'a, *const u8> {
    pub(super) fn readable(memory: &'a Memory, offset: u64, blocks: BlockCount) -> Result<Self, RangeError> {
        let start = start(memory, offset, blocks)?;
        Ok(Self { start, blocks, memory: PhantomData })
    }
}

impl<'a> Place<'a, *mut u8> {
    pub(super) fn writable(memory: &'a Memory, offset: u64, blocks: BlockCount) -> Result<Self, RangeError> {
        let start = start(memory, offset, blocks)?.cast_mut();
        if !memory.writable() {
            return Err(RangeError::ReadOnly);
        }
        Ok(Self { start, blocks, memory: PhantomData })
    }
}

fn start(memory: &Memory, offset: u64, blocks: BlockCount) -> Result<*const u8, RangeError> {
    let len = u32::try_from(blocks.bytes()).map_err(|_| RangeError::Outside)?;
    memory.segment(offset, len)?;
    if !offset.is_multiple_of(ALIGNED) {
        return Err(RangeError::Misaligned);
    }
    let offset = usize::try_from(offset).map_err(|_| RangeError::Outside)?;
    // SAFETY: `offset` lies in the mapping, as `segment` has found.
    Ok(unsafe { memory.as_ptr().add(offset) }.as_ptr())
}

/// Which loop.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Isa {
    /// 64-bit words.
    Words,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Ssse3,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx2,
    /// AVX-512 F and BW.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx512,
}

impl Isa {
    /// All that this processor has, the best one last.
    pub(super) fn all() -> heapless::Vec<Self, 4> {
        let mut all = heapless::Vec::from_array([Self::Words]);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let has = [
                (std::arch::is_x86_feature_detected!("ssse3"), Self::Ssse3),
                (std::arch::is_x86_feature_detected!("avx2"), Self::Avx2),
                (
                    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw"),
                    Self::Avx512,
                ),
            ];
            all.extend(has.into_iter().filter(|(has, _)| *has).map(|(_, isa)| isa));
        }
        all
    }

    pub(super) fn best() -> Self {
        *Self::all().last().expect("words are always there")
    }
}

/// The sums; all places have `blocks` blocks, and each target a row with a factor for each source. `isa` is one of [`Isa::all`].
pub(super) fn combine(
    isa: Isa,
    targets: &[Place<'_, *mut u8>],
    sources: &[Place<'_, *const u8>],
    rows: &[&[Gf]],
    blocks: BlockCount,
) {
    assert!(targets.iter().all(|place| place.blocks == blocks) && sources.iter().all(|place| place.blocks == blocks));
    assert!(rows.len() == targets.len() && rows.iter().all(|row| row.len() == sources.len()));
    assert!(Isa::all().contains(&isa), "the processor has no {isa:?}");
    let len = usize::try_from(blocks.bytes()).expect("the places were checked");
    match (targets, rows) {
        ([target], [row]) => sum(isa, [target.start], sources, [row], len),
        ([a, b], [of_a, of_b]) => sum(isa, [a.start, b.start], sources, [of_a, of_b], len),
        _ => unreachable!("one or two targets"),
    }
}

fn sum<const T: usize>(
    isa: Isa,
    targets: [*mut u8; T],
    sources: &[Place<'_, *const u8>],
    rows: [&[Gf]; T],
    len: usize,
) {
    match isa {
        // SAFETY: the places are mapped for their use, `len` bytes each, and aligned.
        Isa::Words => unsafe { words(targets, sources, rows, len) },
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: as above; the processor has the instructions.
        Isa::Ssse3 => unsafe { ssse3::sum(targets, sources, rows, len) },
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::sum(targets, sources, rows, len) },
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { avx512::sum(targets, sources, rows, len) },
    }
}

/// Eight bytes at a time; a product is a sum of doublings.
///
/// # Safety
/// `len` bytes, a multiple of eight, are mapped at every target and source, all at multiples of 64.
unsafe fn words<const T: usize>(targets: [*mut u8; T], sources: &[Place<'_, *const u8>], rows: [&[Gf]; T], len: usize) {
    for at in (0..len).step_by(8) {
        let mut sums = [0; T];
        for (s, source) in sources.iter().enumerate() {
            // SAFETY: the caller's promise.
            let word = unsafe { &*source.start.add(at).cast::<AtomicU64>() }.load(Ordering::Relaxed);
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum ^= times(word, row[s]);
            }
        }
        for (sum, target) in sums.into_iter().zip(targets) {
            // SAFETY: the caller's promise.
            unsafe { &*target.add(at).cast::<AtomicU64>() }.store(sum, Ordering::Relaxed);
        }
    }
}

/// Eight products at once.
fn times(word: u64, factor: Gf) -> u64 {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (mut left, mut power, mut product) = (factor.0, word, 0);
    while left != 0 {
        if left & 1 != 0 {
            product ^= power;
        }
        let carries = (power & HIGH) >> 7;
        power = ((power & !HIGH) << 1) ^ (carries * 0x1d);
        left >>= 1;
    }
    product
}

/// For every factor its products with the low halves 0 to 15 of a byte, then with the high halves.
#[cfg(all(target_arch = "x86_64", not(miri)))]
static PRODUCTS: [[[u8; 16]; 2]; 256] = {
    let mut table = [[[0; 16]; 2]; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut half = 0;
        while half < 16 {
            #[expect(clippy::cast_possible_truncation, reason = "both stay below 256")]
            let (f, h) = (Gf(factor as u8), half as u8);
            table[factor][0][half] = f.times(Gf(h)).0;
            table[factor][1][half] = f.times(Gf(h << 4)).0;
            half += 1;
        }
        factor += 1;
    }
    table
};

/// One loop in the terms of an instruction set: four vectors of each source at a time, so that the additions of one wait for no other.
#[cfg(all(target_arch = "x86_64", not(miri)))]
macro_rules! vector_loop {
    (
        $name:ident, $features:literal, $vector:ty, $bytes:literal, $class:ident, $move:literal, $stream:literal,
        zero: $zero:ident, xor: $xor:ident, and: $and:ident, shift: $shift:ident, look_up: $look_up:ident, splat: $splat:ident,
        table: $table:expr
    ) => {
        mod $name {
            use super::{Gf, PRODUCTS, Place, STREAMED};
            use std::arch::asm;
            use std::arch::x86_64::*;

            const WAYS: usize = 4;
            /// Bytes: so far ahead a load is hinted at, because the sources are too many for the processor to see where each goes.
            const AHEAD: usize = 1024;

            /// # Safety
            /// The processor has the features. `len` bytes, a multiple of 256, are mapped at every target and source, all at multiples of 64.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn sum<const T: usize>(
                targets: [*mut u8; T],
                sources: &[Place<'_, *const u8>],
                rows: [&[Gf]; T],
                len: usize,
            ) {
                if len < STREAMED {
                    // SAFETY: the caller's promise.
                    unsafe { sum_with::<T, false>(targets, sources, rows, len) };
                } else {
                    // SAFETY: the caller's promise.
                    unsafe { sum_with::<T, true>(targets, sources, rows, len) };
                    // Stores past the caches are ordered by nothing else, and a doorbell may be next.
                    _mm_sfence();
                }
            }

            /// # Safety
            /// As for `sum`.
            #[target_feature(enable = $features)]
            unsafe fn sum_with<const T: usize, const STREAM: bool>(
                targets: [*mut u8; T],
                sources: &[Place<'_, *const u8>],
                rows: [&[Gf]; T],
                len: usize,
            ) {
                for step in (0..len).step_by($bytes * WAYS) {
                    let mut sums = [[$zero(); WAYS]; T];
                    for (s, source) in sources.iter().enumerate() {
                        let mut vectors = [$zero(); WAYS];
                        for (way, vector) in vectors.iter_mut().enumerate() {
                            // SAFETY: the caller's promise.
                            *vector = unsafe { load(source.start.add(step + way * $bytes)) };
                            // A hint only: what lies beyond the source's end is not brought in, or in vain.
                            _mm_prefetch::<_MM_HINT_T0>(source.start.wrapping_add(step + AHEAD + way * $bytes).cast());
                        }
                        for (sums, row) in sums.iter_mut().zip(rows) {
                            let factor = row[s];
                            match factor {
                                Gf::ZERO => {}
                                Gf::ONE => {
                                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                                        *sum = $xor(*sum, vector);
                                    }
                                }
                                Gf(factor) => {
                                    let [low, high] = &PRODUCTS[usize::from(factor)];
                                    let (low, high) = (broadcast(low), broadcast(high));
                                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                                        *sum = $xor(*sum, times(vector, low, high));
                                    }
                                }
                            }
                        }
                    }
                    for (sums, target) in sums.iter().zip(targets) {
                        for (way, sum) in sums.iter().enumerate() {
                            // SAFETY: the caller's promise.
                            unsafe { store::<STREAM>(target.add(step + way * $bytes), *sum) };
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            #[inline]
            fn times(vector: $vector, low: $vector, high: $vector) -> $vector {
                let half = $splat(0x0f);
                let of_low = $look_up(low, $and(vector, half));
                let of_high = $look_up(high, $and($shift::<4>(vector), half));
                $xor(of_low, of_high)
            }

            #[target_feature(enable = $features)]
            #[inline]
            fn broadcast(table: &[u8; 16]) -> $vector {
                // SAFETY: the table has the 16 bytes, and nobody changes them.
                let once = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
                $table(once)
            }

            /// # Safety
            /// The bytes are mapped.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn load(from: *const u8) -> $vector {
                let vector;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(concat!($move, " {}, [{}]"), out($class) vector, in(reg) from,
                        options(nostack, preserves_flags, readonly));
                }
                vector
            }

            /// # Safety
            /// The bytes are mapped for writing, at a multiple of their number.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn store<const STREAM: bool>(to: *mut u8, vector: $vector) {
                if STREAM {
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(concat!($stream, " [{}], {}"), in(reg) to, in($class) vector, options(nostack, preserves_flags));
                    }
                } else {
                    // SAFETY: the caller's promise.
                    unsafe {
                        asm!(concat!($move, " [{}], {}"), in(reg) to, in($class) vector, options(nostack, preserves_flags));
                    }
                }
            }
        }
    };
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
vector_loop!(ssse3, "ssse3", __m128i, 16, xmm_reg, "movdqu", "movntdq",
    zero: _mm_setzero_si128, xor: _mm_xor_si128, and: _mm_and_si128, shift: _mm_srli_epi64, look_up: _mm_shuffle_epi8,
    splat: _mm_set1_epi8, table: std::convert::identity);

#[cfg(all(target_arch = "x86_64", not(miri)))]
vector_loop!(avx2, "avx2", __m256i, 32, ymm_reg, "vmovdqu", "vmovntdq",
    zero: _mm256_setzero_si256, xor: _mm256_xor_si256, and: _mm256_and_si256, shift: _mm256_srli_epi64,
    look_up: _mm256_shuffle_epi8, splat: _mm256_set1_epi8, table: _mm256_broadcastsi128_si256);

#[cfg(all(target_arch = "x86_64", not(miri)))]
vector_loop!(avx512, "avx512f,avx512bw", __m512i, 64, zmm_reg, "vmovdqu64", "vmovntdq",
    zero: _mm512_setzero_si512, xor: _mm512_xor_si512, and: _mm512_and_si512, shift: _mm512_srli_epi64,
    look_up: _mm512_shuffle_epi8, splat: _mm512_set1_epi8, table: _mm512_broadcast_i32x4);
