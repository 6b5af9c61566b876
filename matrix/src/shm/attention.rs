//! Which connections a turn looks at, so that its cost does not grow with those on which nothing happens.
//!
//! To look at a ring takes a cache line, and a thousand of them take longer than the work there is. So a turn looks at all
//! *lively* connections, and at a few of the *quiet* ones in turn. A connection becomes quiet when nothing has happened on it
//! for many turns, unless there are few anyway, and lively when something does. Its peer is told (a word in the channel) and
//! rings the doorbell for a quiet connection as for a reactor that sleeps; so no sleep needs a look at all of them.

use crate::provider::ViId;

/// So many connections are always looked at.
pub(super) const FEW: usize = 16;

/// Quiet connections that one turn looks at. Few, because all that belongs to one is far from the processor by then: a look
/// at it takes as long as ten at a lively one.
pub(super) const GLANCES: usize = 4;

/// Turns without work after which a connection is quiet.
pub(super) const PATIENCE: u16 = 4096;

/// No place.
const NIL: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Attention {
    /// The lively ones, then the quiet ones.
    order: Vec<ViId>,
    lively: usize,
    /// Where the next glance goes.
    glance: usize,
    /// By the place of the VI in its table: its index in `order`.
    index: Box<[u32]>,
}

impl Attention {
    /// For VIs of a table of `capacity` places.
    pub(super) fn new(capacity: u16) -> Self {
        let capacity = usize::from(capacity);
        Self {
            order: Vec::with_capacity(capacity),
            lively: 0,
            glance: 0,
            index: vec![NIL; capacity].into_boxed_slice(),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> &[ViId] {
        &self.order
    }

    /// The lively one at `at`.
    pub(super) fn lively(&self, at: usize) -> Option<ViId> {
        self.order[..self.lively].get(at).copied()
    }

    /// Whether there are too many lively ones to keep them so.
    pub(super) fn is_crowded(&self) -> bool {
        self.lively > FEW
    }

    /// The next quiet one to look at.
    pub(super) fn glance(&mut self) -> Option<ViId> {
        let quiet = &self.order[self.lively..];
        if self.glance >= quiet.len() {
            self.glance = 0;
        }
        let vi = quiet.get(self.glance).copied();
        self.glance += 1;
        vi
    }

    /// How many quiet ones a turn looks at.
    pub(super) fn glances(&self) -> usize {
        GLANCES.min(self.order.len() - self.lively)
    }

    /// One more, lively.
    pub(super) fn insert(&mut self, vi: ViId) {
        self.order.push(vi);
        self.set(self.order.len() - 1, vi);
        self.wake(vi);
    }

    pub(super) fn remove(&mut self, vi: ViId) {
        let Some(mut at) = self.at(vi) else { return };
        if at < self.lively {
            self.lively -= 1;
            self.swap(at, self.lively);
            at = self.lively;
        }
        self.swap(at, self.order.len() - 1);
        self.order.pop();
        self.index[place(vi)] = NIL;
    }

    /// It is lively from now on; true if it was quiet.
    pub(super) fn wake(&mut self, vi: ViId) -> bool {
        let quiet = self.at(vi).filter(|&at| at >= self.lively);
        if let Some(at) = quiet {
            self.swap(at, self.lively);
            self.lively += 1;
        }
        quiet.is_some()
    }

    /// It is quiet from now on.
    pub(super) fn hush(&mut self, vi: ViId) {
        if let Some(at) = self.at(vi).filter(|&at| at < self.lively) {
            self.lively -= 1;
            self.swap(at, self.lively);
        }
    }

    fn at(&self, vi: ViId) -> Option<usize> {
        let at = usize::try_from(*self.index.get(place(vi))?).ok()?;
        self.order.get(at).is_some_and(|&there| there == vi).then_some(at)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.order.swap(a, b);
        self.set(a, self.order[a]);
        self.set(b, self.order[b]);
    }

    fn set(&mut self, at: usize, vi: ViId) {
        self.index[place(vi)] = u32::try_from(at).expect("tables have 16-bit places");
    }
}

/// The place of a VI in its table (see [`Slots`](crate::slots::Slots)).
fn place(vi: ViId) -> usize {
    usize::try_from(vi.0 & 0xffff).expect("16 bits")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn it_is_a_set_in_two_parts(steps in proptest::collection::vec((0_u8..4, 0_u32..20, 0_u32..3), 0..200)) {
            let mut attention = Attention::new(20);
            let mut model = BTreeMap::new();
            for (step, place, uses) in steps {
                let vi = ViId(uses << 16 | place);
                let taken = model.keys().any(|other: &ViId| other.0 & 0xffff == place);
                match step {
                    0 if !taken => {
                        attention.insert(vi);
                        model.insert(vi, true);
                    }
                    0 | 1 => {
                        attention.remove(vi);
                        model.remove(&vi);
                    }
                    2 => assert_eq!(attention.wake(vi), model.get(&vi) == Some(&false)),
                    _ => attention.hush(vi),
                }
                if let Some(lively) = model.get_mut(&vi).filter(|_| step >= 2) {
                    *lively = step == 2;
                }
                let mut lively: Vec<_> = (0..).map_while(|at| attention.lively(at)).collect();
                lively.sort_unstable();
                let wanted: Vec<_> = model.iter().filter(|(_, lively)| **lively).map(|(vi, _)| *vi).collect();
                assert_eq!(lively, wanted);
                let mut all = attention.all().to_vec();
                all.sort_unstable();
                assert!(all.iter().eq(model.keys()));
            }
        }
    }

    #[test]
    fn every_quiet_one_gets_its_glance() {
        let mut attention = Attention::new(100);
        (0..100).for_each(|vi| attention.insert(ViId(vi)));
        assert!(attention.is_crowded());
        (0..90).for_each(|vi| attention.hush(ViId(vi)));
        assert!(!attention.is_crowded());
        assert_eq!(attention.glances(), GLANCES);
        let mut seen: Vec<_> = (0..90).filter_map(|_| attention.glance()).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq((0..90).map(ViId)));
    }
}
