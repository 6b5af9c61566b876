//! Classes of traffic between two nodes (PROTOCOLS 11): each has a VI and credits of its own, so none can starve another.
//! [`Exchange`](crate::exchange::Exchange) speaks over them.
//!
//! Why this cannot deadlock: a message waits only for credits of its own class, and a credit comes back when the peer has
//! answered. A request takes, with its own credit, the room for its answer:
//! [`Credits::receives`] posts a receive of class [`Class::Reply`] for every request that may be outstanding, whatever its
//! class. So an answer never waits, and no class waits for a lower one.

use std::ops::{Index, IndexMut};

use dyad_reactor::sync::{Permit, Permits};

use crate::provider::Discriminator;

/// The classes, most urgent first.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Heartbeats, leases, fencing.
    Membership,
    /// Answers to requests of all classes; commits and releases.
    Reply,
    /// Mirrored writes.
    Mirror,
    /// Flush and destage.
    Flush,
    /// Commands on their way to their home.
    Forward,
    /// Hosts.
    Host,
}

impl Class {
    /// All of them, most urgent first.
    pub const ALL: [Self; 6] = [Self::Membership, Self::Reply, Self::Mirror, Self::Flush, Self::Forward, Self::Host];

    fn index(self) -> usize {
        match self {
            Self::Membership => 0,
            Self::Reply => 1,
            Self::Mirror => 2,
            Self::Flush => 3,
            Self::Forward => 4,
            Self::Host => 5,
        }
    }

    /// Where a service whose first discriminator is `service` listens for this class.
    #[must_use]
    pub fn discriminator(self, service: Discriminator) -> Discriminator {
        Discriminator(service.0 + u32::try_from(self.index()).expect("there are six"))
    }

    /// The class that such a service listens for at `discriminator`, if it is one of its own.
    #[must_use]
    pub fn at(service: Discriminator, discriminator: Discriminator) -> Option<Self> {
        let index = discriminator.0.checked_sub(service.0)?;
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }
}

/// One thing for each class.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct PerClass<T>([T; Class::ALL.len()]);

impl<T> PerClass<T> {
    /// What `make` makes for each, most urgent first.
    pub fn new(make: impl FnMut(Class) -> T) -> Self {
        Self(Class::ALL.map(make))
    }

    /// Those of `things`, most urgent first.
    ///
    /// # Panics
    /// If there are more or fewer than classes.
    #[must_use]
    pub fn of(things: &[T]) -> Self
    where
        T: Copy,
    {
        Self(things.try_into().expect("one for each class"))
    }

    /// What `make` makes for each, unless it fails.
    ///
    /// # Errors
    /// The first error of `make`, which is not asked again.
    pub fn try_new<E>(mut make: impl FnMut(Class) -> Result<T, E>) -> Result<Self, E> {
        let mut made = heapless::Vec::<T, { Class::ALL.len() }>::new();
        for class in Class::ALL {
            let room = made.push(make(class)?);
            assert!(room.is_ok(), "one for each");
        }
        let Ok(made) = made.into_array() else { unreachable!("one for each") };
        Ok(Self(made))
    }
}

impl<T> Index<Class> for PerClass<T> {
    type Output = T;

    fn index(&self, class: Class) -> &T {
        &self.0[class.index()]
    }
}

impl<T> IndexMut<Class> for PerClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        &mut self.0[class.index()]
    }
}

/// The credits of one direction: what may be outstanding there.
#[derive(Debug)]
pub struct Credits {
    outstanding: PerClass<u16>,
    free: PerClass<Permits>,
}

impl Credits {
    /// As many requests may be outstanding as this says for their class (of class [`Class::Reply`]: commits and releases).
    #[must_use]
    pub fn new(outstanding: PerClass<u16>) -> Self {
        Self { outstanding, free: PerClass::new(|class| Permits::new(usize::from(outstanding[class]))) }
    }

    /// How many receives to post on the VI of `class`, at both ends, if both were made with the same numbers: one for each
    /// message of the class that the peer may have outstanding, and on the one for answers one for each of our own.
    #[must_use]
    pub fn receives(&self, class: Class) -> u16 {
        self.outstanding[class] + if class == Class::Reply { self.requests() } else { 0 }
    }

    /// How many requests may be outstanding in all classes together: as many answers can be awaited.
    #[must_use]
    pub fn requests(&self) -> u16 {
        Class::ALL.map(|class| self.outstanding[class]).iter().sum()
    }

    /// Waits for a credit of `class`. It is held until the answer has come, whether or not anybody still waits for it.
    pub async fn acquire(&self, class: Class) -> Permit {
        self.free[class].acquire(1).await
    }

    /// Takes a credit of `class` if there is one.
    #[must_use]
    pub fn try_acquire(&self, class: Class) -> Option<Permit> {
        self.free[class].try_acquire(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_without_credits_takes_none_of_another_and_every_answer_has_room() {
        let outstanding = PerClass::new(|class| if class == Class::Host { 3 } else { 1 });
        let credits = Credits::new(outstanding);
        let hosts: Vec<_> = std::iter::from_fn(|| credits.try_acquire(Class::Host)).collect();
        assert_eq!(hosts.len(), 3);
        let others = Class::ALL.map(|class| credits.try_acquire(class));
        assert_eq!(others.iter().flatten().count(), 5, "all but the hosts");
        let answers = hosts.len() + 5;
        assert_eq!(usize::from(credits.receives(Class::Reply)), answers + 1, "and the peer's own one of this class");
        assert_eq!(credits.receives(Class::Mirror), 1);
        drop(hosts);
        assert!(credits.try_acquire(Class::Host).is_some(), "they come back");
    }

    #[test]
    fn classes_listen_apart_and_the_urgent_come_first() {
        let places: std::collections::BTreeSet<_> =
            Class::ALL.map(|class| class.discriminator(Discriminator(100))).into_iter().collect();
        assert_eq!(places.len(), 6);
        assert!(Class::ALL.is_sorted());
        assert!(
            Class::ALL
                .map(|class| Class::at(Discriminator(100), class.discriminator(Discriminator(100))))
                .iter()
                .eq(Class::ALL.map(Some).iter())
        );
        assert_eq!([99, 106].map(|other| Class::at(Discriminator(100), Discriminator(other))), [None; 2]);
    }
}
