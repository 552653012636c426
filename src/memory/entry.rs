//! An entry in a cache's memory, what loads bring and what look-ups return. Plain values, apart from two counters of an
//! entry's uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::Weighter;

use crate::ids::Seq;
use crate::memory::dependencies::Dependencies;
use crate::memory::fence::FenceMark;
use crate::memory::freshness::Freshness;
use crate::memory::scope::Scopes;
use crate::memory::servable::{EntryFacts, Generation, StaleReason};
use crate::seam::clock::Moment;

/// An entry in memory: the value of a key, or the knowledge that it has none.
///
/// Its metadata is packed into 32 bytes, because the smaller the entries are the more of them fit into the processor's
/// caches (`read_latency` shows it). A number that does not fit is changed to the safe side: nothing is served for
/// longer or kept in place of something newer. See [`EntryMetadata`].
#[derive(Clone, Debug)]
pub(crate) struct MemoryEntry<V> {
    /// The value; `None` if the key has none.
    pub(crate) value: Option<V>,
    since: Moment,
    /// From the highest bits: version, weight.
    written: u64,
    /// From the highest bits: generation, share of the jitter, duration of the load.
    origin: u64,
    /// Allocated only for entries that need it, so that the others stay small.
    pub(crate) extra: Option<Arc<EntryExtra>>,
}

/// The metadata of an entry, unpacked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryMetadata {
    /// The write that the value is from. Zero if unknown, as for a loader's value, and for versions beyond 48 bits.
    pub(crate) version: Seq,
    /// Beyond 44 bits the highest that fits, so that any higher floor hides the entry.
    pub(crate) generation: Generation,
    /// The time of the write, or of the start of the load.
    pub(crate) since: Moment,
    /// Packed as a [`short`] number of eleven bits.
    pub(crate) weight: u32,
    /// The duration of its load; zero if it was written. Packed as a [`short`] number of five bits.
    pub(crate) took_us: u32,
    /// Its share of the cache's jitter, from 0 to [`SHARE_MAX`].
    pub(crate) share: u16,
    /// True if a reader's loader brought it.
    pub(crate) of_loader: bool,
}

/// The share of an entry that takes all of the cache's jitter.
pub(crate) const SHARE_MAX: u16 = (1 << SHARE_BITS) - 1;

const WEIGHT_BITS: u32 = 16;
const SHARE_BITS: u32 = 10;
const TOOK_BITS: u32 = 10;
const GENERATION_MAX: u64 = (1 << (u64::BITS - SHARE_BITS - TOOK_BITS)) - 1;
/// The version of an entry that a reader's loader brought: no version is known of it.
const OF_LOADER: u64 = (1 << (u64::BITS - WEIGHT_BITS)) - 1;
/// The number of bits of a [`short`] number that hold the shift.
const SHIFT_BITS: u32 = 5;

/// The options of one entry, from its write or load, in place of the cache's.
#[derive(Clone, Debug, Default)]
pub struct EntryOverrides {
    /// The entry's time to live.
    pub time_to_live: Option<Duration>,
    /// The entry's time to idle.
    pub time_to_idle: Option<Duration>,
    /// Its tags, that of its group among them, and the keys that it was read from.
    pub dependencies: Option<Arc<Dependencies>>,
}

/// An entry that was found and may be served.
#[derive(Clone, Debug)]
pub struct MemoryHit<V> {
    /// The value; `None` if the key is known to have none.
    pub value: Option<V>,
    /// The write that the value is from; zero if unknown.
    pub version: Seq,
    /// The age. Zero if it was not measured, because neither the decision nor the reader needed it.
    pub age: Duration,
    /// The reason if it is served though it is not known to be fresh.
    pub stale: Option<StaleReason>,
    /// True if it should be loaded again while it is served.
    pub reload: bool,
    /// The age that it was allowed to have; `None` if nothing limits it.
    pub bound: Option<Duration>,
    /// Its dependencies beside its key and cache. Set only where the age is measured.
    pub dependencies: Option<Arc<Dependencies>>,
}

/// The start of a load, taken before the load looks anywhere.
#[derive(Clone, Copy, Debug)]
pub struct LoadStart {
    /// The position of the fences.
    pub mark: FenceMark,
    /// The generation of a value that this load brings.
    pub generation: Generation,
    /// The time of the start.
    pub since: Moment,
    /// True if the load reads past memory.
    pub past_memory: bool,
}

/// The result of a load, for memory to keep.
#[derive(Clone, Debug)]
pub struct LoadResult<'a, V> {
    /// The value; `None` if there is none.
    pub value: Option<&'a V>,
    /// The write that the value is from; zero if unknown.
    pub version: Seq,
    /// True if a reader's loader was asked.
    pub of_loader: bool,
    /// The options of its entry.
    pub overrides: EntryOverrides,
}

/// The result of a look-up in memory before anybody has decided whether it may be served, and the moment until which a
/// follower had received every change *before* the look-up.
pub struct Candidate<V>(pub(crate) Option<MemoryEntry<V>>, pub(crate) Moment);

/// Weighs an entry for quick_cache by the weight that is packed into it.
#[derive(Clone)]
pub(crate) struct PackedWeight;

impl<K, V> Weighter<K, MemoryEntry<V>> for PackedWeight {
    fn weight(&self, _key: &K, entry: &MemoryEntry<V>) -> u64 {
        // quick_cache never evicts an entry without weight.
        u64::from(long(entry.written, WEIGHT_BITS).max(1))
    }
}

impl<V> MemoryEntry<V> {
    pub(crate) fn new(
        value: Option<V>,
        metadata: &EntryMetadata,
        extra: Option<Arc<EntryExtra>>,
    ) -> MemoryEntry<V> {
        let &EntryMetadata { version, generation, since, weight, took_us, share, of_loader } = metadata;
        let version = match version {
            // The loader's source has its own versions, which nothing here can be compared with.
            _ if of_loader => OF_LOADER,
            Seq(version) if version < OF_LOADER => version,
            // A cut version could be taken for an older one: better none.
            _ => Seq::ZERO.0,
        };
        let written = version << WEIGHT_BITS | short(weight, WEIGHT_BITS);
        // Cut downwards: an entry that seems older than it is costs a reload.
        let origin = generation.0.min(GENERATION_MAX) << SHARE_BITS | u64::from(share.min(SHARE_MAX));
        let origin = origin << TOOK_BITS | short(took_us, TOOK_BITS);
        MemoryEntry { value, since, written, origin, extra }
    }

    /// Returns the write that the value is from; zero if unknown.
    pub(crate) fn version(&self) -> Seq {
        match self.of_loader() {
            true => Seq::ZERO,
            false => Seq(self.written >> WEIGHT_BITS),
        }
    }

    #[inline]
    pub(crate) fn of_loader(&self) -> bool {
        self.written >> WEIGHT_BITS == OF_LOADER
    }

    pub(crate) fn since(&self) -> Moment {
        self.since
    }

    /// Returns the duration of its load.
    pub(crate) fn took(&self) -> Duration {
        Duration::from_micros(u64::from(long(self.origin, TOOK_BITS)))
    }

    /// Returns the number of times it was served, if that was counted. In a cache that times nothing no serves are
    /// counted, and each copy counts as one.
    pub(crate) fn serves(&self, timed: bool) -> Option<u64> {
        let watched = self.extra.as_ref().and_then(|extra| extra.serves());
        watched.or((!timed).then_some(1))
    }

    /// Returns the facts by which it is decided whether it may be served, in a cache with this jitter.
    #[inline]
    pub(crate) fn facts(&self, scopes: &Scopes, jitter: u16) -> EntryFacts {
        let share = (self.origin >> TOOK_BITS) & u64::from(SHARE_MAX);
        // At most the jitter itself, since the share is at most SHARE_MAX.
        let cut = u16::try_from(share * u64::from(jitter) / u64::from(SHARE_MAX)).unwrap_or(jitter);
        let mut facts = EntryFacts { cut, ..self.untimed_facts() };
        if let Some(extra) = &self.extra {
            extra.add_to(&mut facts, scopes);
        }
        facts
    }

    /// Returns the facts of an entry without extra, in a cache without a time to live that jitter could cut.
    #[inline]
    pub(crate) fn untimed_facts(&self) -> EntryFacts {
        EntryFacts {
            generation: Generation(self.origin >> (SHARE_BITS + TOOK_BITS)),
            since: self.since,
            used: self.since,
            absent: self.value.is_none(),
            of_loader: self.of_loader(),
            ..EntryFacts::default()
        }
    }

    pub(crate) fn without_value(&self) -> MemoryEntry<()> {
        // The value stays behind: to clone it would run the user's code under the fence's lock.
        let &MemoryEntry { ref value, since, written, origin, ref extra } = self;
        MemoryEntry { value: value.as_ref().map(|_| ()), since, written, origin, extra: extra.clone() }
    }

    /// Returns a copy whose uses do not count as uses of the entry.
    pub(crate) fn detached(self) -> MemoryEntry<V> {
        MemoryEntry { extra: self.extra.as_ref().map(|extra| extra.detached()), ..self }
    }

    pub(crate) fn dependencies(&self) -> Option<Arc<Dependencies>> {
        self.extra.as_ref().and_then(|extra| extra.overrides.dependencies.clone())
    }
}

/// The part of an entry that few entries need.
#[derive(Debug)]
pub(crate) struct EntryExtra {
    overrides: EntryOverrides,
    /// The time of its last use, as nanoseconds of a [`Moment`].
    used: AtomicU64,
    /// The number of times it was served, if that is watched.
    serves: Option<AtomicU64>,
}

impl EntryExtra {
    /// Makes one for an entry that is used at the moment when it comes, if the entry needs one.
    pub(crate) fn of(
        overrides: EntryOverrides,
        freshness: &Freshness,
        used: Moment,
        watched: bool,
    ) -> Option<Arc<EntryExtra>> {
        let EntryOverrides { time_to_live, time_to_idle, dependencies } = &overrides;
        let has_overrides = time_to_live.is_some() || time_to_idle.is_some() || dependencies.is_some();
        let needed = watched || has_overrides || freshness.time_to_idle.is_some();
        let serves = watched.then(AtomicU64::default);
        // Most entries need none, and save the allocation and the counter.
        needed.then(|| Arc::new(EntryExtra { overrides, used: AtomicU64::new(used.nanos()), serves }))
    }

    fn detached(&self) -> Arc<EntryExtra> {
        // A copy of the time: what the caller does with the entry must not count as a use.
        let used = AtomicU64::new(self.used.load(Ordering::Relaxed));
        Arc::new(EntryExtra { overrides: self.overrides.clone(), used, serves: None })
    }

    /// Counts a use.
    pub(crate) fn use_at(&self, now: Moment) {
        // Two uses at once may store the earlier time, which only costs an early expiry.
        self.used.store(now.nanos(), Ordering::Relaxed);
        if let Some(serves) = &self.serves {
            serves.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn serves(&self) -> Option<u64> {
        self.serves.as_ref().map(|serves| serves.load(Ordering::Relaxed))
    }

    /// Adds what it knows to the facts of its entry. Not inlined: most entries have no extra.
    #[inline(never)]
    fn add_to(&self, facts: &mut EntryFacts, scopes: &Scopes) {
        // Relaxed: the time orders nothing else, and an older one only expires the entry a little early.
        facts.used = Moment::of_nanos(self.used.load(Ordering::Relaxed));
        facts.time_to_live = self.overrides.time_to_live;
        facts.time_to_idle = self.overrides.time_to_idle;
        if let Some(dependencies) = &self.overrides.dependencies {
            facts.derived = dependencies.is_derived();
            facts.tag_floor = dependencies.tag_floor(scopes);
            facts.outdated = dependencies.is_outdated(scopes, facts.generation);
        }
    }
}

/// Packs a number into so many bits, as a small floating-point number: the lowest bits hold the digits and the
/// [`SHIFT_BITS`] above them how far these are shifted. Exact if the number fits beside a zero shift, else rounded up.
#[inline]
fn short(number: u32, bits: u32) -> u64 {
    let (kept, number) = (bits - SHIFT_BITS, u64::from(number));
    let length = u64::BITS - number.leading_zeros();
    if length <= kept {
        return number;
    }
    let rounded_up = |shift: u32| (number + (1 << shift) - 1) >> shift;
    // Rounding up may add a digit, which then needs another shift.
    let shift = length - kept + u32::from(rounded_up(length - kept) >> kept != 0);
    u64::from(shift) << kept | rounded_up(shift)
}

/// Unpacks the number that [`short`] packed into the lowest `bits` of `packed`.
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
                // The bits above belong to another field.
                let again = long(packed | u64::MAX << bits, bits);
                assert!(again >= number && u64::from(again) <= most, "{number} became {again}");
            }
        }
        assert_eq!(long(short(2_047, WEIGHT_BITS), WEIGHT_BITS), 2_047);
    }

    #[test]
    fn an_entry_returns_what_was_packed_into_it() {
        let metadata = EntryMetadata {
            version: Seq(OF_LOADER - 1),
            generation: Generation(GENERATION_MAX),
            since: Moment::of_nanos(u64::MAX),
            weight: u32::MAX,
            took_us: 31,
            share: SHARE_MAX,
            of_loader: false,
        };
        let entry = MemoryEntry::new(Some(()), &metadata, None);
        let facts = entry.facts(&Scopes::default(), 6_554);
        assert_eq!((entry.version(), entry.of_loader(), entry.took()), (metadata.version, false, micros(31)));
        assert_eq!((facts.generation, facts.since, facts.cut), (metadata.generation, metadata.since, 6_554));
        assert_eq!(PackedWeight.weight(&(), &entry), u64::from(u32::MAX));
        let least = EntryMetadata {
            version: Seq::ZERO,
            generation: Generation(0),
            since: Moment::default(),
            weight: 0,
            took_us: 0,
            share: 0,
            of_loader: true,
        };
        let entry = MemoryEntry::new(None::<()>, &least, None);
        let facts = entry.facts(&Scopes::default(), 6_554);
        assert_eq!((entry.version(), entry.of_loader(), entry.took()), (Seq::ZERO, true, micros(0)));
        assert_eq!((facts.generation, facts.since, facts.cut), (least.generation, least.since, 0));
        assert!(facts.absent && facts.of_loader);
        assert_eq!(PackedWeight.weight(&(), &entry), 1);
    }

    /// Neither happens in practice: 2^48 writes, or 2^44 bulk invalidations. If they do, no version may be taken for a
    /// lower one, and no entry for younger than a floor.
    #[test]
    fn a_number_that_does_not_fit_is_changed_to_the_safe_side() {
        let metadata = EntryMetadata {
            version: Seq(OF_LOADER),
            generation: Generation(GENERATION_MAX + 5),
            since: Moment::default(),
            weight: 1,
            took_us: 0,
            share: 0,
            of_loader: false,
        };
        let entry = MemoryEntry::new(Some(()), &metadata, None);
        assert_eq!((entry.version(), entry.of_loader()), (Seq::ZERO, false));
        assert_eq!(entry.untimed_facts().generation, Generation(GENERATION_MAX));
    }

    /// The time of a hit depends on the size of an entry.
    #[test]
    fn an_entry_has_32_bytes_beside_its_value() {
        assert_eq!(size_of::<MemoryEntry<Vec<u8>>>(), size_of::<Vec<u8>>() + 32);
    }

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }
}
