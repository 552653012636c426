//! The child's history of writes. It follows from a seed, so that the parent knows every write of it.
//!
//! The child only says "write 17 of thread 2 got number 4711", and the parent works out which keys that
//! changed, and to what. Nothing here does I/O.

use serde::{Deserialize, Serialize};

/// Keys of single writes, in each of the two caches. Few, so that most values are overwritten
/// while they are still queued.
const SINGLE_KEYS: u64 = 160;
/// Keys that only atomic batches write, always in both caches. They follow the single keys.
const PAIR_KEYS: u64 = 32;

/// One of the two caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Left, Side::Right];

    /// The cache's namespace.
    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Side::Left => "crash/left",
            Side::Right => "crash/right",
        }
    }
}

/// A key of one of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) side: Side,
    pub(crate) key: u64,
}

impl Place {
    /// Every key that a history can touch.
    pub(crate) fn all() -> impl Iterator<Item = Place> {
        Side::BOTH
            .into_iter()
            .flat_map(|side| (0..SINGLE_KEYS + PAIR_KEYS).map(move |key| Place { side, key }))
    }

    /// The keys that are either in both caches, from the same write, or in neither.
    pub(crate) fn pair_keys() -> impl Iterator<Item = u64> {
        SINGLE_KEYS..SINGLE_KEYS + PAIR_KEYS
    }
}

/// The identity of a write: its thread and its number. A thread's writes are numbered from 1, over all the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) thread: usize,
    pub(crate) counter: u64,
}

/// A value that says who wrote it where. All of it follows from the seed, the id and the place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) place: Place,
    filler: Vec<u8>,
}

impl Entry {
    fn new(seed: u64, id: Id, place: Place) -> Entry {
        let mut random = Random::new(seed ^ place.key, id);
        // Mostly small; now and then one that is larger than the memory the queue may use.
        let bytes = if random.below(64) == 0 { 20_000 } else { random.below(600) };
        Entry { id, place, filler: (0..bytes).map(|_| random.next().to_le_bytes()[0]).collect() }
    }

    /// True if this is, byte for byte, the value that its own id wrote to its own place.
    pub(crate) fn is_genuine(&self, seed: u64) -> bool {
        let writes_it = Step::of(seed, self.id).places().any(|place| place == self.place);
        writes_it && *self == Entry::new(seed, self.id, self.place)
    }
}

/// One write of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) removes: bool,
}

/// The call by which a step is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One key, behind.
    Behind(Place),
    /// One key, through.
    Through(Place),
    /// The same key of both caches, in one atomic batch, behind.
    Pair(u64),
}

impl Step {
    /// The step that `id` stands for.
    pub(crate) fn of(seed: u64, id: Id) -> Step {
        let mut random = Random::new(seed, id);
        let side = if random.below(2) == 0 { Side::Left } else { Side::Right };
        let place = Place { side, key: random.below(SINGLE_KEYS) };
        let kind = match random.below(100) {
            0..1 => Kind::Through(place),
            1..25 => Kind::Pair(SINGLE_KEYS + random.below(PAIR_KEYS)),
            _ => Kind::Behind(place),
        };
        Step { id, kind, removes: random.below(10) == 0 }
    }

    /// The places that it changes, in the order of their records.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let (first, second) = match self.kind {
            Kind::Behind(place) | Kind::Through(place) => (place, None),
            Kind::Pair(key) => (Place { side: Side::Left, key }, Some(Place { side: Side::Right, key })),
        };
        std::iter::once(first).chain(second)
    }

    /// The value that it writes to `place`; `None` if it removes it.
    pub(crate) fn entry(&self, seed: u64, place: Place) -> Option<Entry> {
        (!self.removes).then(|| Entry::new(seed, self.id, place))
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): small, seedable, and good enough to choose test cases.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, id: Id) -> Random {
        let mut random = Random(seed ^ id.counter.wrapping_mul(0xa076_1d64_78bd_642f));
        random.0 = random.next() ^ u64::try_from(id.thread).unwrap_or(u64::MAX);
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
