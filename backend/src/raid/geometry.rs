//! Where the blocks of a group lie: arithmetic on its level and the number of its members.
//!
//! A **chunk** is 16 blocks on one member; the chunks at the same position on all members are a **stripe**. Blocks of the group fill the first data
//! chunk of stripe 0, then the second, then those of stripe 1. Roles rotate so that every member does its part of everything:
//!
//! | level | members n | data chunks | stripe s on member m |
//! |---|---|---|---|
//! | 0 | 1 to 16 | n | data m |
//! | 1 | 2 to 4 | 1 | data 0, on all |
//! | 10 | 4 to 16, even | n/2 | data m/2, on both of a pair |
//! | 5 | 3 to 17 | n-1 | P at p = n-1 - s mod n; data i at p+1+i (mod n) |
//! | 6 | 4 to 18 | n-2 | P at p = n-1 - s mod n; Q at p+1; data i at p+2+i (mod n) |
//!
//! This is part of the format on disk (FORMAT.md): it never changes for a version.

use dyad_nvme::types::{BlockCount, Lba};

use crate::parity::{DATA_MAX, Member};

/// Blocks of a chunk: 64 KiB.
pub const CHUNK_BLOCKS: u64 = 16;

/// Most members of a group.
pub const MEMBERS_MAX: usize = DATA_MAX + 2;

/// How a group survives the loss of members.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Level {
    /// Stripes without redundancy.
    Raid0,
    /// Everything on every member.
    Raid1,
    /// Stripes over mirrored pairs.
    Raid10,
    /// Rotating P.
    Raid5,
    /// Rotating P and Q.
    Raid6,
}

/// A level that this number of members cannot make.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{members} members cannot make {level:?}: it takes {least} to {most}{}", if *.level == Level::Raid10 { ", an even number" } else { "" })]
pub struct GeometryError {
    /// What was asked for.
    pub level: Level,
    /// Of so many.
    pub members: usize,
    /// The fewest that will do.
    pub least: usize,
    /// The most.
    pub most: usize,
}

/// The level and the number of members of a group.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Geometry {
    level: Level,
    members: usize,
}

/// A block on a member.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which member; of those of a mirror the first.
    pub member: usize,
    /// The stripe.
    pub stripe: u64,
    /// Which data chunk of the stripe.
    pub data: usize,
    /// The block in the chunk.
    pub block: u64,
}

impl Level {
    const fn least(self) -> usize {
        match self {
            Self::Raid0 => 1,
            Self::Raid1 => 2,
            Self::Raid5 => 3,
            Self::Raid10 | Self::Raid6 => 4,
        }
    }

    const fn most(self) -> usize {
        match self {
            Self::Raid0 | Self::Raid10 => DATA_MAX,
            Self::Raid1 => 4,
            Self::Raid5 => DATA_MAX + 1,
            Self::Raid6 => DATA_MAX + 2,
        }
    }

    /// Chunks of parity in a stripe.
    #[must_use]
    pub const fn parities(self) -> usize {
        match self {
            Self::Raid0 | Self::Raid1 | Self::Raid10 => 0,
            Self::Raid5 => 1,
            Self::Raid6 => 2,
        }
    }
}

impl Geometry {
    /// Checks that so many members can make the level.
    ///
    /// # Errors
    /// [`GeometryError`].
    pub const fn new(level: Level, members: usize) -> Result<Self, GeometryError> {
        let (least, most) = (level.least(), level.most());
        let odd = matches!(level, Level::Raid10) && members % 2 == 1;
        if members < least || members > most || odd {
            return Err(GeometryError { level, members, least, most });
        }
        Ok(Self { level, members })
    }

    /// The level.
    #[must_use]
    pub const fn level(self) -> Level {
        self.level
    }

    /// The number of members.
    #[must_use]
    pub const fn members(self) -> usize {
        self.members
    }

    /// Data chunks of a stripe.
    #[must_use]
    pub const fn data(self) -> usize {
        match self.level {
            Level::Raid1 => 1,
            Level::Raid10 => self.members / 2,
            Level::Raid0 | Level::Raid5 | Level::Raid6 => self.members - self.level.parities(),
        }
    }

    /// How many members may fail, whichever they are.
    #[must_use]
    pub const fn tolerated(self) -> usize {
        match self.level {
            Level::Raid0 => 0,
            Level::Raid1 => self.members - 1,
            Level::Raid10 | Level::Raid5 => 1,
            Level::Raid6 => 2,
        }
    }

    /// Whether the group has all its data without the members for which `lost` is true.
    pub fn survives(self, lost: impl Fn(usize) -> bool) -> bool {
        let count = (0..self.members).filter(|m| lost(*m)).count();
        match self.level {
            Level::Raid0 | Level::Raid5 | Level::Raid6 | Level::Raid1 => count <= self.tolerated(),
            Level::Raid10 => (0..self.members / 2).all(|pair| !(lost(2 * pair) && lost(2 * pair + 1))),
        }
    }

    /// What a member holds of a stripe. Members of a mirror hold the same.
    #[must_use]
    pub fn role(self, stripe: u64, member: usize) -> Member {
        debug_assert!(member < self.members);
        match self.level {
            Level::Raid0 => Member::Data(member),
            Level::Raid1 => Member::Data(0),
            Level::Raid10 => Member::Data(member / 2),
            Level::Raid5 | Level::Raid6 => match (member + self.members - self.first_parity(stripe)) % self.members {
                0 => Member::P,
                1 if self.level == Level::Raid6 => Member::Q,
                after => Member::Data(after - self.level.parities()),
            },
        }
    }

    /// The members that hold this part of a stripe.
    pub fn holders(self, stripe: u64, part: Member) -> impl Iterator<Item = usize> {
        (0..self.members).filter(move |member| self.role(stripe, *member) == part)
    }

    /// Where a block of the group lies.
    ///
    /// # Panics
    /// If the chunk's number in its stripe does not fit the machine's word, which it does.
    #[must_use]
    pub fn place(self, lba: Lba) -> Place {
        let (chunk, block) = (lba.0 / CHUNK_BLOCKS, lba.0 % CHUNK_BLOCKS);
        let stripe = chunk / self.data() as u64;
        let data = usize::try_from(chunk % self.data() as u64).expect("at most 16");
        let member = match self.level {
            Level::Raid0 => data,
            Level::Raid1 => 0,
            Level::Raid10 => 2 * data,
            Level::Raid5 | Level::Raid6 => (self.first_parity(stripe) + self.level.parities() + data) % self.members,
        };
        Place { member, stripe, data, block }
    }

    /// Blocks of a group whose members have so many chunks each.
    #[must_use]
    pub const fn blocks(self, chunks: u64) -> BlockCount {
        BlockCount(chunks * self.data() as u64 * CHUNK_BLOCKS)
    }

    fn first_parity(self, stripe: u64) -> usize {
        let turn = usize::try_from(stripe % self.members as u64).expect("at most 18");
        self.members - 1 - turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [Level; 5] = [Level::Raid0, Level::Raid1, Level::Raid10, Level::Raid5, Level::Raid6];

    fn all() -> impl Iterator<Item = Geometry> {
        LEVELS.into_iter().flat_map(|level| (0..=20).filter_map(move |n| Geometry::new(level, n).ok()))
    }

    #[test]
    fn levels_take_so_many_members_and_no_others() {
        let counts = |level| (0..=20).filter(|n| Geometry::new(level, *n).is_ok()).collect::<Vec<_>>();
        assert_eq!(counts(Level::Raid0), (1..=16).collect::<Vec<_>>());
        assert_eq!(counts(Level::Raid1), [2, 3, 4]);
        assert_eq!(counts(Level::Raid10), [4, 6, 8, 10, 12, 14, 16]);
        assert_eq!(counts(Level::Raid5), (3..=17).collect::<Vec<_>>());
        assert_eq!(counts(Level::Raid6), (4..=18).collect::<Vec<_>>());
        let refused = Geometry::new(Level::Raid10, 5).expect_err("odd");
        assert_eq!(refused.to_string(), "5 members cannot make Raid10: it takes 4 to 16, an even number");
    }

    #[test]
    fn every_block_has_its_own_place_and_every_part_of_a_stripe_a_member() {
        for geometry in all() {
            let n = geometry.members();
            for stripe in 0..3 * n as u64 {
                let mut parts: Vec<Member> = (0..n).map(|m| geometry.role(stripe, m)).collect();
                for (m, part) in parts.iter().enumerate() {
                    assert!(geometry.holders(stripe, *part).any(|holder| holder == m));
                }
                parts.dedup();
                assert_eq!(parts.len(), geometry.data() + geometry.level().parities(), "{geometry:?}");
                for data in 0..geometry.data() {
                    let chunk = stripe * geometry.data() as u64 + data as u64;
                    let place = geometry.place(Lba(chunk * CHUNK_BLOCKS + 5));
                    let expected = geometry.holders(stripe, Member::Data(data)).next().expect("it has a holder");
                    assert_eq!(place, Place { member: expected, stripe, data, block: 5 });
                }
            }
        }
    }

    #[test]
    fn roles_go_around() {
        let raid6 = Geometry::new(Level::Raid6, 5).expect("five");
        let row = |stripe| [0, 1, 2, 3, 4].map(|m| raid6.role(stripe, m));
        let (d, p, q) = (Member::Data, Member::P, Member::Q);
        assert_eq!(row(0), [q, d(0), d(1), d(2), p]);
        assert_eq!(row(1), [d(0), d(1), d(2), p, q]);
        assert_eq!(row(4), [p, q, d(0), d(1), d(2)]);
        assert_eq!(row(5), row(0));
    }

    #[test]
    fn groups_survive_what_their_level_tolerates() {
        for geometry in all() {
            let n = geometry.members();
            for failed in 0_u32..1 << n.min(10) {
                let lost = |m: usize| m < 10 && failed >> m & 1 == 1;
                let count = failed.count_ones() as usize;
                if count <= geometry.tolerated() {
                    assert!(geometry.survives(lost));
                }
                // It has its data exactly if every data chunk has a holder left, or parity for each that has none.
                let missing = (0..geometry.data()).filter(|d| geometry.holders(0, Member::Data(*d)).all(lost)).count();
                let parities = [Member::P, Member::Q].into_iter().take(geometry.level().parities());
                let left = parities.filter(|p| geometry.holders(0, *p).any(|m| !lost(m))).count();
                assert_eq!(geometry.survives(lost), missing <= left, "{geometry:?} without {failed:b}");
            }
        }
    }
}
