//! What memory holds of a key, and what goes in and comes out. Plain values.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;

use crate::ids::Seq;
use crate::memory::extra::Extra;
use crate::memory::fence::FenceMark;
use crate::memory::scope::{Dependencies, Scopes};
use crate::memory::servable::{EntryFacts, Generation, StaleReason};
use crate::seam::clock::Moment;

/// What is in memory of a key.
///
/// What it says of its value is packed into 32 bytes, since the fewer an entry has, the more entries are in the
/// processor's caches. What does not fit is told so that nothing is served for longer, or kept instead of something
/// newer: see [`EntryMetadata`].
#[derive(Clone, Debug)]
pub(crate) struct Entry<V> {
    /// `None` says that the key has no value.
    pub(crate) value: Option<V>,
    since: Moment,
    /// Who wrote it, above its weight.
    apply_write: u64,
    /// Its generation, above its share of jitter, above how long its load took.
    belongs: u64,
    /// What few entries have, so that the others stay small.
    pub(crate) extra: Option<Arc<Extra>>,
}

/// What an entry says of its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryMetadata {
    /// Who wrote it; zero if nobody knows, as of what a loader brought, and beyond 48 bits.
    pub(crate) version: Seq,
    /// Beyond 44 bits the last one of these, so that a higher floor hides it though it is not below.
    pub(crate) generation: Generation,
    pub(crate) since: Moment,
    /// As [`short`] of eleven bits.
    pub(crate) weight: u32,
    /// How long its load took; nothing if it was written. As [`short`] of five bits.
    pub(crate) took_us: u32,
    /// Its share of the cache's jitter, from 0 to [`SHARE_MAX`].
    pub(crate) share: u16,
    pub(crate) of_loader: bool,
}

/// All of the cache's jitter.
pub(crate) const SHARE_MAX: u16 = (1 << SHARE_BITS) - 1;

const WEIGHT_BITS: u32 = 16;
const SHARE_BITS: u32 = 10;
const TOOK_BITS: u32 = 10;
const GENERATION_MAX: u64 = (1 << (u64::BITS - SHARE_BITS - TOOK_BITS)) - 1;
/// In the place of the version: a reader's loader brought it, of which no version is known.
const OF_LOADER: u64 = (1 << (u64::BITS - WEIGHT_BITS)) - 1;
/// The bits of a [`short`] number that say how far the others are shifted.
const SHIFT_BITS: u32 = 5;

/// What an entry is told to do instead of what its cache says, and what it hangs on beside it.
#[derive(Clone, Debug, Default)]
pub struct EntryOverrides {
    /// Its time to live.
    pub time_to_live: Option<Duration>,
    /// Its time to idle.
    pub time_to_idle: Option<Duration>,
    /// Its group, its tags, and what it was read from.
    pub dependencies: Option<Arc<Dependencies>>,
}

/// What a look at memory found that may be served.
#[derive(Clone, Debug)]
pub struct MemoryHit<V> {
    /// The value; `None` if the key is known to have none.
    pub value: Option<V>,
    /// Who wrote it; zero if nobody knows.
    pub version: Seq,
    /// How old it is. Only measured if that matters for the answer; else nothing.
    pub age: Duration,
    /// Why it is served though its time is up.
    pub stale: Option<StaleReason>,
    /// Whether it should be loaded again, while it is served.
    pub reload: bool,
    /// The age that it was allowed to have; none if nothing limited it.
    pub bound: Option<Duration>,
    /// What it hangs on beside its key and cache; told only to who looks closely.
    pub dependencies: Option<Arc<Dependencies>>,
}

/// Where a load starts: taken before anything is looked at.
#[derive(Clone, Copy, Debug)]
pub struct LoadStart {
    /// Where the fences stood.
    pub mark: FenceMark,
    /// What a value that this load brings belongs to.
    pub generation: Generation,
    /// When that was.
    pub since: Moment,
    /// Whether it reads past memory.
    pub anew: bool,
}

/// What a load brought.
#[derive(Clone, Debug)]
pub struct LoadResult<'a, V> {
    /// The value; `None` if there is none.
    pub value: Option<&'a V>,
    /// Who wrote it; zero if nobody knows.
    pub version: Seq,
    /// Whether a reader's loader was asked.
    pub of_loader: bool,
    /// What it is told to do instead of what the cache says.
    pub overrides: EntryOverrides,
}

/// What is in memory of a key, before anybody knows whether it may be served; and until when a follower had heard of
/// every change *before* that was looked up.
pub struct Candidate<V>(pub(crate) Option<Entry<V>>, pub(crate) Moment);

#[derive(Clone)]
pub(crate) struct ByEntry;

impl<K, V> Weighter<K, Entry<V>> for ByEntry {
    fn weight(&self, _key: &K, entry: &Entry<V>) -> u64 {
        u64::from(long(entry.apply_write, WEIGHT_BITS).max(1))
    }
}

impl<V> Entry<V> {
    pub(crate) fn new(value: Option<V>, about: &EntryMetadata, extra: Option<Arc<Extra>>) -> Entry<V> {
        let &EntryMetadata { version, generation, since, weight, took_us, share, of_loader } = about;
        let writer = match version {
            _ if of_loader => OF_LOADER,
            Seq(version) if version < OF_LOADER => version,
            _ => Seq::ZERO.0,
        };
        let apply_write = writer << WEIGHT_BITS | short(weight, WEIGHT_BITS);
        let belongs = generation.0.min(GENERATION_MAX) << SHARE_BITS | u64::from(share.min(SHARE_MAX));
        let belongs = belongs << TOOK_BITS | short(took_us, TOOK_BITS);
        Entry { value, since, apply_write, belongs, extra }
    }

    /// Who wrote it; zero if nobody knows.
    pub(crate) fn version(&self) -> Seq {
        match self.of_loader() {
            true => Seq::ZERO,
            false => Seq(self.apply_write >> WEIGHT_BITS),
        }
    }

    #[inline]
    pub(crate) fn of_loader(&self) -> bool {
        self.apply_write >> WEIGHT_BITS == OF_LOADER
    }

    pub(crate) fn since(&self) -> Moment {
        self.since
    }

    /// How long its load took.
    pub(crate) fn took(&self) -> Duration {
        Duration::from_micros(u64::from(long(self.belongs, TOOK_BITS)))
    }

    /// How often it was served, if anybody knows. Where nothing is timed nobody counts, and each copy is as good as any
    /// other.
    pub(crate) fn serves(&self, timed: bool) -> Option<u64> {
        let watched = self.extra.as_ref().and_then(|extra| extra.serves());
        watched.or((!timed).then_some(1))
    }

    /// What is to be known of it to decide whether it may be served, in a cache with so much jitter.
    #[inline]
    pub(crate) fn facts(&self, scopes: &Scopes, jitter: u16) -> EntryFacts {
        let share = (self.belongs >> TOOK_BITS) & u64::from(SHARE_MAX);
        // As large as the jitter at the most.
        let cut = u16::try_from(share * u64::from(jitter) / u64::from(SHARE_MAX)).unwrap_or(jitter);
        let mut facts = EntryFacts { cut, ..self.untimed_facts() };
        if let Some(extra) = &self.extra {
            extra.add_to(&mut facts, scopes);
        }
        facts
    }

    /// The stamp of an entry that has nothing beside its value and no life that jitter could cut.
    #[inline]
    pub(crate) fn untimed_facts(&self) -> EntryFacts {
        EntryFacts {
            generation: Generation(self.belongs >> (SHARE_BITS + TOOK_BITS)),
            since: self.since,
            used: self.since,
            absent: self.value.is_none(),
            of_loader: self.of_loader(),
            ..EntryFacts::default()
        }
    }

    pub(crate) fn without_value(&self) -> Entry<()> {
        let &Entry { ref value, since, apply_write, belongs, ref extra } = self;
        Entry { value: value.as_ref().map(|_| ()), since, apply_write, belongs, extra: extra.clone() }
    }

    /// A copy whose uses nobody counts.
    pub(crate) fn detached(self) -> Entry<V> {
        Entry { extra: self.extra.as_ref().map(|extra| extra.detached()), ..self }
    }

    pub(crate) fn dependencies(&self) -> Option<Arc<Dependencies>> {
        self.extra.as_ref().and_then(|extra| extra.dependencies().cloned())
    }
}

/// A number in so many bits: how far it was shifted, and what is left of it below that. As it is if it fits beside
/// [`SHIFT_BITS`] of zeros, else rounded up.
#[inline]
fn short(number: u32, bits: u32) -> u64 {
    let (kept, number) = (bits - SHIFT_BITS, u64::from(number));
    let length = u64::BITS - number.leading_zeros();
    if length <= kept {
        return number;
    }
    let rounded_up = |shift: u32| (number + (1 << shift) - 1) >> shift;
    // What is rounded up to another bit needs another shift.
    let shift = length - kept + u32::from(rounded_up(length - kept) >> kept != 0);
    u64::from(shift) << kept | rounded_up(shift)
}

/// The number that [`short`] made so many of the lowest bits of.
fn long(packed: u64, bits: u32) -> u32 {
    let kept = bits - SHIFT_BITS;
    let (shift, left) = (packed >> kept & ((1 << SHIFT_BITS) - 1), packed & ((1 << kept) - 1));
    u32::try_from(left << shift).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_number_is_exact_or_a_little_more() {
        let numbers = (0..32).flat_map(|shift| [1_u32, 3, 0x5555_5555, u32::MAX].map(|bits| bits >> shift));
        for number in numbers.chain(0..100_000) {
            for bits in [WEIGHT_BITS, TOOK_BITS] {
                let packed = short(number, bits);
                assert_eq!(packed >> bits, 0, "{number} in {bits} bits");
                let most = u64::from(number) + (u64::from(number) >> (bits - SHIFT_BITS - 1));
                // What lies above is another's.
                let again = long(packed | u64::MAX << bits, bits);
                assert!(again >= number && u64::from(again) <= most, "{number} became {again}");
            }
        }
        assert_eq!(long(short(2_047, WEIGHT_BITS), WEIGHT_BITS), 2_047);
    }

    #[test]
    fn an_entry_says_what_it_was_told() {
        let about = EntryMetadata {
            version: Seq(OF_LOADER - 1),
            generation: Generation(GENERATION_MAX),
            since: Moment::of_nanos(u64::MAX),
            weight: u32::MAX,
            took_us: 31,
            share: SHARE_MAX,
            of_loader: false,
        };
        let entry = Entry::new(Some(()), &about, None);
        let facts = entry.facts(&Scopes::default(), 6_554);
        assert_eq!((entry.version(), entry.of_loader(), entry.took()), (about.version, false, micros(31)));
        assert_eq!((facts.generation, facts.since, facts.cut), (about.generation, about.since, 6_554));
        assert_eq!(ByEntry.weight(&(), &entry), u64::from(u32::MAX));
        let least = EntryMetadata {
            version: Seq::ZERO,
            generation: Generation(0),
            since: Moment::default(),
            weight: 0,
            took_us: 0,
            share: 0,
            of_loader: true,
        };
        let entry = Entry::new(None::<()>, &least, None);
        let facts = entry.facts(&Scopes::default(), 6_554);
        assert_eq!((entry.version(), entry.of_loader(), entry.took()), (Seq::ZERO, true, micros(0)));
        assert_eq!((facts.generation, facts.since, facts.cut), (least.generation, least.since, 0));
        assert!(facts.absent && facts.of_loader);
        assert_eq!(ByEntry.weight(&(), &entry), 1);
    }

    /// Neither happens: 2^48 writes, or 2^44 bulk invalidations. If they do, no version is taken for a lower one, and
    /// nothing for younger than a floor.
    #[test]
    fn what_does_not_fit_is_told_so_that_nothing_wrong_is_served() {
        let about = EntryMetadata {
            version: Seq(OF_LOADER),
            generation: Generation(GENERATION_MAX + 5),
            since: Moment::default(),
            weight: 1,
            took_us: 0,
            share: 0,
            of_loader: false,
        };
        let entry = Entry::new(Some(()), &about, None);
        assert_eq!((entry.version(), entry.of_loader()), (Seq::ZERO, false));
        assert_eq!(entry.untimed_facts().generation, Generation(GENERATION_MAX));
    }

    /// The time of a hit depends on it: see the manual's page on speed.
    #[test]
    fn an_entry_has_32_bytes_beside_its_value() {
        assert_eq!(size_of::<Entry<Vec<u8>>>(), size_of::<Vec<u8>>() + 32);
    }

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }
}
