//! GF(2^8) modulo 0x11d: one number at a time, for factors.

/// An element of the field.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct Gf(pub u8);

/// x^8 as the rest of the polynomial.
const REDUCED: u8 = 0x1d;

impl Gf {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The neutral factor.
    pub const ONE: Self = Self(1);

    /// The sum, which is the difference too.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// Twice it.
    #[must_use]
    pub const fn doubled(self) -> Self {
        let reduced = if self.0 & 0x80 == 0 { 0 } else { REDUCED };
        Self((self.0 << 1) ^ reduced)
    }

    /// The product.
    #[must_use]
    pub const fn times(self, other: Self) -> Self {
        let (mut left, mut power, mut product) = (other.0, self, Self::ZERO);
        while left != 0 {
            if left & 1 != 0 {
                product = product.plus(power);
            }
            power = power.doubled();
            left >>= 1;
        }
        product
    }

    /// g^`exponent`: the factor of a data member in Q.
    #[must_use]
    pub const fn power_of_g(exponent: usize) -> Self {
        let mut power = Self::ONE;
        let mut done = 0;
        while done < exponent % 255 {
            power = power.doubled();
            done += 1;
        }
        power
    }

    /// What it must be multiplied with to give one; `None` for zero.
    #[must_use]
    pub const fn inverse(self) -> Option<Self> {
        if self.0 == 0 {
            return None;
        }
        // Its order divides 255, so its 254th power is its inverse.
        let (mut power, mut done) = (Self::ONE, 0);
        while done < 254 {
            power = power.times(self);
            done += 1;
        }
        Some(power)
    }
}
