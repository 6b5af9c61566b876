//! A registry for the simulator and for tests: the promises of [`Registry`] in virtual time, over links that lose and repeat messages.
//!
//! A request travels to the store, is executed there at one moment, and its answer travels back. On the way the faults that are set
//! may lose the request or the answer, let the request arrive twice, or let it arrive after the client gave up.
//! Whatever has not come back in time is [`RegistryError::Unknown`].
//! The same seed and the same requests give the same run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use dyad_reactor::{Rng, SeededRng, VirtualTime};

use super::answer::{Promise, answer};
use super::{Cas, Key, Registry, RegistryError, Revision, VALUE_BYTES_MAX, Versioned};

/// How long things take.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Each way takes at least this.
    pub base: Duration,
    /// And up to this more.
    pub jitter: Duration,
    /// When the client gives up. A late request arrives up to four times this later.
    pub timeout: Duration,
}

impl Default for Timing {
    /// A small store on the same network.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { base: ms(1), jitter: ms(2), timeout: ms(500) }
    }
}

/// What goes wrong, for every client: each field is "one request in so many", zero meaning never.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// The request never arrives.
    pub request_lost: u64,
    /// It is executed, and nobody hears of it.
    pub answer_lost: u64,
    /// It arrives twice; the answer that comes first is heard.
    pub duplicated: u64,
    /// It arrives after the client gave up.
    pub late: u64,
}

/// One client's link to the store.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub enum Link {
    /// Only the [`Faults`] happen.
    #[default]
    Up,
    /// Nothing arrives at the store.
    RequestsLost,
    /// Nothing comes back.
    AnswersLost,
}

struct Store {
    time: VirtualTime,
    rng: RefCell<SeededRng>,
    records: RefCell<BTreeMap<Key, Versioned>>,
    timing: Cell<Timing>,
    faults: Cell<Faults>,
}

/// The store. Clones are the same.
#[derive(Clone)]
pub struct FakeRegistry(Rc<Store>);

impl FakeRegistry {
    /// An empty store without faults.
    #[must_use]
    pub fn new(time: VirtualTime, seed: u64) -> Self {
        Self(Rc::new(Store {
            time,
            rng: RefCell::new(SeededRng::new(seed)),
            records: RefCell::default(),
            timing: Cell::default(),
            faults: Cell::default(),
        }))
    }

    /// A client with its own link.
    #[must_use]
    pub fn client(&self) -> FakeClient {
        FakeClient { store: Rc::clone(&self.0), link: Rc::default() }
    }

    /// From the next message on.
    pub fn set_timing(&self, timing: Timing) {
        self.0.timing.set(timing);
    }

    /// From the next request on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.faults.set(faults);
    }

    /// What the store holds, for those who check a run.
    #[must_use]
    pub fn contents(&self, key: &Key) -> Option<Versioned> {
        self.0.records.borrow().get(key).cloned()
    }
}

impl fmt::Debug for FakeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeRegistry").field("records", &self.0.records.borrow()).finish_non_exhaustive()
    }
}

/// One director's client. Clones are the same client.
#[derive(Clone)]
pub struct FakeClient {
    store: Rc<Store>,
    link: Rc<Cell<Link>>,
}

impl FakeClient {
    /// Cuts or mends this client's link, for every message that has not arrived yet.
    pub fn set_link(&self, link: Link) {
        self.link.set(link);
    }

    async fn request<T: 'static>(&self, execute: impl Fn(&Store) -> T + 'static) -> Result<T, RegistryError> {
        let (promise, answer) = answer();
        let store = &self.store;
        let (faults, timing) = (store.faults.get(), store.timing.get());
        let execute = Rc::new(execute);
        let copies = if store.happens(faults.duplicated) { 2 } else { 1 };
        for _ in 0..copies {
            if store.happens(faults.request_lost) {
                continue;
            }
            let late = if store.happens(faults.late) {
                timing.timeout + store.some_of(4 * timing.timeout)
            } else {
                Duration::ZERO
            };
            let heard = !store.happens(faults.answer_lost);
            self.send(store.way() + late, Rc::clone(&execute), heard.then(|| promise.clone()));
        }
        store.time.schedule_in(timing.timeout, move || promise.keep(Err(RegistryError::Unknown)));
        answer.await
    }

    fn send<T: 'static>(&self, way: Duration, execute: Rc<impl Fn(&Store) -> T + 'static>, heard: Option<Promise<T>>) {
        let client = self.clone();
        self.store.time.schedule_in(way, move || {
            if client.link.get() == Link::RequestsLost {
                return;
            }
            let result = execute(&client.store);
            let Some(promise) = heard else { return };
            let back = client.store.way();
            let time = client.store.time.clone();
            time.schedule_in(back, move || {
                if client.link.get() != Link::AnswersLost {
                    promise.keep(Ok(result));
                }
            });
        });
    }
}

impl Store {
    fn swap(&self, key: &Key, expected: Option<Revision>, value: &[u8]) -> Cas {
        let mut records = self.records.borrow_mut();
        let current = records.get(key);
        let revision = current.map(|versioned| versioned.revision);
        if revision != expected {
            return Cas::Lost(current.cloned());
        }
        // Nobody may count on the next number.
        let number = revision.map_or(0, Revision::number) + 1 + self.rng.borrow_mut().below(3);
        let revision = Revision::new(number).expect("at least one");
        records.insert(key.clone(), Versioned { revision, value: value.to_vec() });
        Cas::Won(revision)
    }

    fn happens(&self, one_in: u64) -> bool {
        one_in > 0 && self.rng.borrow_mut().one_in(one_in)
    }

    /// What one way takes.
    fn way(&self) -> Duration {
        self.timing.get().base + self.some_of(self.timing.get().jitter)
    }

    fn some_of(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(if most > 0 { self.rng.borrow_mut().below(most) } else { 0 })
    }
}

impl Registry for FakeClient {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, RegistryError> {
        let key = key.clone();
        self.request(move |store| store.records.borrow().get(&key).cloned()).await
    }

    async fn compare_and_swap(
        &self,
        key: &Key,
        expected: Option<Revision>,
        value: &[u8],
    ) -> Result<Cas, RegistryError> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(RegistryError::TooLarge);
        }
        let (key, value) = (key.clone(), value.to_vec());
        self.request(move |store| store.swap(&key, expected, &value)).await
    }
}

impl fmt::Debug for FakeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeClient").field("link", &self.link.get()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
