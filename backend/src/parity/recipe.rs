//! Which combination of the members that are left gives one that is lost.

use super::{DATA_MAX, Gf, SOURCES_MAX};

/// One member of a stripe.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Member {
    /// Data, counted from zero.
    Data(usize),
    /// The sum of all data.
    P,
    /// The sum of all data, each times g to the power of its number.
    Q,
}

/// Factors of data 0, data 1, ..., P, Q: those of lost members, and of members that are not needed, are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    factors: [Gf; SOURCES_MAX],
    data: usize,
}

impl Recipe {
    /// How to make `wanted` of a stripe with `data` members when `wanted` and perhaps `other` are lost. `None` if one parity is asked for
    /// more than it can give, there is no such member, or there are more than [`DATA_MAX`].
    #[must_use]
    pub fn new(data: usize, parities: usize, wanted: Member, other: Option<Member>) -> Option<Self> {
        let exists = |member: Member| match member {
            Member::Data(i) => i < data,
            Member::P => parities >= 1,
            Member::Q => parities >= 2,
        };
        let other = other.filter(|other| *other != wanted);
        if data > DATA_MAX || parities > 2 || !exists(wanted) || other.is_some_and(|other| !exists(other)) {
            return None;
        }
        let mut recipe = Self { factors: [Gf::ZERO; SOURCES_MAX], data };
        match (wanted, other) {
            (Member::P, Some(Member::Data(lost))) => {
                // P is the sum of all data, of which the lost one comes from Q.
                recipe = Self::new(data, parities, Member::Data(lost), Some(Member::P))?;
                for i in (0..data).filter(|i| *i != lost) {
                    recipe.add(Member::Data(i), Gf::ONE);
                }
            }
            (Member::P, _) => (0..data).for_each(|i| recipe.add(Member::Data(i), Gf::ONE)),
            (Member::Q, Some(Member::Data(lost))) => {
                for i in (0..data).filter(|i| *i != lost) {
                    recipe.add(Member::Data(i), Gf::power_of_g(i).plus(Gf::power_of_g(lost)));
                }
                recipe.add(Member::P, Gf::power_of_g(lost));
            }
            (Member::Q, _) => (0..data).for_each(|i| recipe.add(Member::Data(i), Gf::power_of_g(i))),
            (Member::Data(lost), None | Some(Member::Q)) => {
                recipe = recipe.by_p(lost, parities)?;
            }
            (Member::Data(lost), Some(Member::P)) => {
                // Without P: Q without the others, divided by the lost one's factor.
                if parities < 2 {
                    return None;
                }
                let divided = Gf::power_of_g(lost).inverse()?;
                for i in (0..data).filter(|i| *i != lost) {
                    recipe.add(Member::Data(i), Gf::power_of_g(i).times(divided));
                }
                recipe.add(Member::Q, divided);
            }
            (Member::Data(x), Some(Member::Data(y))) => {
                // With p = P - (other data) = Dx + Dy and q = Q - (other data) = g^x Dx + g^y Dy: Dx = (g^y p + q) / (g^x + g^y).
                if parities < 2 {
                    return None;
                }
                let (gx, gy) = (Gf::power_of_g(x), Gf::power_of_g(y));
                let divided = gx.plus(gy).inverse()?;
                let (of_p, of_q) = (gy.times(divided), divided);
                for i in (0..data).filter(|i| *i != x && *i != y) {
                    recipe.add(Member::Data(i), of_p.plus(of_q.times(Gf::power_of_g(i))));
                }
                recipe.add(Member::P, of_p);
                recipe.add(Member::Q, of_q);
            }
        }
        Some(recipe)
    }

    /// The factor of a member.
    #[must_use]
    pub fn factor(&self, member: Member) -> Gf {
        self.place(member).map_or(Gf::ZERO, |place| self.factors[place])
    }

    fn by_p(mut self, lost: usize, parities: usize) -> Option<Self> {
        if parities == 0 {
            return None;
        }
        for i in (0..self.data).filter(|i| *i != lost) {
            self.add(Member::Data(i), Gf::ONE);
        }
        self.add(Member::P, Gf::ONE);
        Some(self)
    }

    fn add(&mut self, member: Member, factor: Gf) {
        let place = self.place(member).expect("a recipe names members of its stripe");
        self.factors[place] = self.factors[place].plus(factor);
    }

    fn place(&self, member: Member) -> Option<usize> {
        match member {
            Member::Data(i) => (i < self.data).then_some(i),
            Member::P => Some(DATA_MAX),
            Member::Q => Some(DATA_MAX + 1),
        }
    }
}
