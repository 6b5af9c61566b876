//! Chance, from a seed.

/// A source of randomness.
///
/// Implementations promise: the same seed gives the same sequence for ever (failing seeds are kept as tests).
/// Nothing here is for cryptography.
pub trait Rng {
    /// Sixty-four random bits.
    fn next_u64(&mut self) -> u64;

    /// A number below `bound`, near enough to uniform for scheduling (multiply-shift, Lemire 2019).
    ///
    /// # Panics
    /// If `bound` is zero.
    fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "below(0) has no answer");
        u64::try_from((u128::from(self.next_u64()) * u128::from(bound)) >> 64)
            .expect("a 64-bit product shifted by 64 fits")
    }

    /// True once in `one_in` times.
    fn one_in(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

impl<R: Rng + ?Sized> Rng for &mut R {
    fn next_u64(&mut self) -> u64 {
        (**self).next_u64()
    }
}

/// xoshiro256++ (Blackman and Vigna 2019), seeded through `SplitMix64` as its authors recommend.
#[derive(Debug, Clone)]
pub struct SeededRng {
    state: [u64; 4],
}

impl SeededRng {
    /// The generator that `seed` stands for.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        let mut next = || {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mix;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// An independent generator for one part of a larger whole.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

impl Rng for SeededRng {
    fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_seed_never_changes() {
        let mut rng = SeededRng::new(42);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [0xd076_4d4f_4476_689f, 0x519e_4174_576f_3791, 0xfbe0_7cfb_0c24_ed8c]);
    }

    #[test]
    fn below_stays_below() {
        let mut rng = SeededRng::new(1);
        assert!((0..1000).all(|_| rng.below(7) < 7));
    }
}
