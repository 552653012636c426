//! The one place that decides whether an entry found in memory may be served.
//!
//! Pure functions of the entry, of the invalidations since it came, of the time, and of what the reader accepts. Ages
//! count from the write or from the start of the load; in a layer that follows another process from the moment until
//! which it has received every change, if that is later. A time to live counts from the write or the start of the load
//! in any case. Bounds are exclusive: an entry that may be a second old is served while it is younger than a second, so
//! no entry meets a bound of zero.

use std::time::Duration;

use crate::memory::freshness::{Freshness, OnUnverified};
use crate::metrics::labels;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;

/// A count of a layer's bulk invalidations. An entry carries the count at which its value was known to be current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// The facts of an entry that the decision depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryFacts {
    /// Its generation.
    pub generation: Generation,
    /// The oldest generation that may be served with its tags, that of its group among them.
    pub tag_floor: Generation,
    /// True if a value that it was derived from has changed.
    pub outdated: bool,
    /// The time of its write, or of the start of its load.
    pub since: Moment,
    /// The time of its last use; at first the time when it came.
    pub used: Moment,
    /// True if it says that the key has no value.
    pub absent: bool,
    /// True if a reader's loader brought it or found it absent, not the layer's store alone.
    pub of_loader: bool,
    /// True if it was read from keys of the layer alone, so that it is as current as those.
    pub derived: bool,
    /// The share of its life that jitter takes, in 1/65,536.
    pub cut: u16,
    /// Its own time to live, in place of the cache's.
    pub time_to_live: Option<Duration>,
    /// Its own time to idle, in place of the cache's.
    pub time_to_idle: Option<Duration>,
}

/// The limits of a cache on all its entries at this moment.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits<'a> {
    /// The oldest generation of the cache that may be served.
    pub floor: Generation,
    /// The oldest generation that may be served of the cache's namespace and those above it.
    pub namespace_floor: Generation,
    /// The time to live of a value.
    pub time_to_live: Option<Duration>,
    /// The moment until which a layer that follows another process has received every change.
    pub verified: Moment,
    /// The other options.
    pub freshness: &'a Freshness,
}

/// The constraints of a reader.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadConstraints {
    /// The age from which on nothing is served, whatever else would allow more.
    pub max_staleness: Option<Duration>,
    /// The answer for an entry that is not known to be current, in place of the layer's option.
    pub on_unverified: Option<OnUnverified>,
    /// True if the reader brought a loader: an absence counts only if the loader found it.
    pub has_loader: bool,
    /// True if the reader wants to know the age, which costs a look at the clock.
    pub measures_age: bool,
    /// The state of the load that the reader would need.
    pub progress: LoadProgress,
}

/// The state of a load that a reader needs if memory cannot serve it.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum LoadProgress {
    /// The reader has not tried to load.
    #[default]
    NotStarted,
    /// Another reader loads the key, and rather than wait this one takes a value that is younger than this.
    InFlight(Duration),
    /// The load failed.
    Failed,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Servable {
    /// Serve it.
    Fresh {
        /// Its age.
        age: Duration,
        /// The rest of its life, if that is limited.
        left: Option<Duration>,
    },
    /// Serve it though it is not known to be fresh.
    Stale {
        /// Its age.
        age: Duration,
        /// The reason why it is served all the same.
        because: StaleReason,
    },
    /// Do not serve it.
    Miss(MissReason),
}

labels! {
    /// The reason why an entry is served though it is not known to be fresh.
    pub enum StaleReason {
        /// It is loaded again in the background.
        WhileRevalidating = "revalidating",
        /// Another reader loads it again, and this one chose not to wait.
        InsteadOfWaiting = "instead_of_waiting",
        /// Loading it again failed.
        LoadFailed = "load_failed",
        /// The layer follows another process, has not been able to tell for too long whether the entry is current, and
        /// was told to serve it all the same.
        Unverified = "unverified",
    }
}

labels! {
    /// The reason why memory does not answer a read.
    pub enum MissReason {
        /// There is no entry; or only the knowledge that the store lacks the key, and the reader has a loader to ask.
        Absent = "absent",
        /// Its time to live is over, and nothing allows it to be served stale.
        Expired = "expired",
        /// It was not used for its time to idle.
        Idle = "idle",
        /// The whole cache was invalidated.
        Invalidated = "invalidated",
        /// Its namespace, or one above that, was invalidated.
        NamespaceInvalidated = "namespace_invalidated",
        /// One of its tags, or its group, was invalidated.
        TagInvalidated = "tag_invalidated",
        /// A value that it was derived from has changed.
        DependencyChanged = "dependency_changed",
        /// It is older than the reader accepts.
        TooOld = "too_old",
        /// The layer follows another process, and has not been able to tell for too long whether the entry is current.
        Unverified = "unverified",
    }
}

/// Returns the reason if an entry was invalidated.
#[must_use]
#[inline(always)]
pub fn invalidated(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Option<MissReason> {
    let below = |floor| entry.generation < floor;
    match entry {
        // Several may hold: the first one is the reason that is counted.
        _ if below(limits.floor) => Some(MissReason::Invalidated),
        _ if below(limits.namespace_floor) => Some(MissReason::NamespaceInvalidated),
        _ if below(entry.tag_floor) => Some(MissReason::TagInvalidated),
        _ if entry.outdated => Some(MissReason::DependencyChanged),
        _ => None,
    }
}

/// Decides whether an entry may be served. The first row that holds decides.
///
/// If neither entry nor cache nor reader limit an age, the answer does not depend on `now`, except for the age in it.
#[must_use]
#[inline(always)]
pub fn servable(
    entry: &EntryFacts,
    limits: &CacheLimits<'_>,
    now: Moment,
    constraints: &ReadConstraints,
) -> Servable {
    use Servable::{Fresh, Miss, Stale};

    let freshness = limits.freshness;
    // Two times: since the entry came, and since it was last known to be current.
    let (lived, age) = (now.since(entry.since), now.since(current_at(entry, limits)));
    let life = life(entry, limits);
    let left = life.map(|life| life.saturating_sub(lived));
    let is_fresh = left.is_none_or(|left| !left.is_zero());
    let within = |window: Duration| life.is_none_or(|life| lived < life.saturating_add(window));
    let is_idle = |idle: Duration| now.since(entry.used) >= idle;
    let unverified = on_unverified(age, limits, constraints);

    if let Some(reason) = invalidated(entry, limits) {
        return Miss(reason);
    }
    match constraints.progress {
        // The store's lack of a key says nothing about a loader.
        _ if entry.absent && constraints.has_loader && !entry.of_loader => Miss(MissReason::Absent),
        // The reader's own bound comes before anything that would allow more.
        _ if constraints.max_staleness.is_some_and(|most| is_too_old(age, most)) => Miss(MissReason::TooOld),
        // A follower that has not heard of its owner for too long serves only if it was told to.
        _ if unverified.is_some_and(|wanted| wanted != OnUnverified::Serve) => Miss(MissReason::Unverified),
        _ if entry.time_to_idle.or(freshness.time_to_idle).is_some_and(is_idle) => Miss(MissReason::Idle),

        _ if is_fresh && unverified.is_some() => Stale { age, because: StaleReason::Unverified },
        _ if is_fresh => Fresh { age, left },

        // An absence is never served stale: a value may have come meanwhile, and costs a load to find.
        _ if entry.absent => Miss(MissReason::Expired),
        _ if within(freshness.stale_while_revalidate) => {
            Stale { age, because: StaleReason::WhileRevalidating }
        }
        // A reader who need not wait, and one whose load has just failed, may take what is older.
        LoadProgress::InFlight(most) if lived < most => Stale { age, because: StaleReason::InsteadOfWaiting },
        LoadProgress::Failed if within(freshness.stale_if_error) => {
            Stale { age, because: StaleReason::LoadFailed }
        }
        _ => Miss(MissReason::Expired),
    }
}

/// True if an entry of this age is too old for a reader. A bound of zero is met by no entry in memory.
#[inline(always)]
fn is_too_old(age: Duration, most: Duration) -> bool {
    // At the bound is too old, so that a bound of zero accepts nothing.
    age >= most && (!most.is_zero() || Safeguard::ZeroToleranceReadsTheStore.holds())
}

/// Returns what the reader gets of an entry that a follower has not been able to verify for too long; `None` if it has.
#[inline(always)]
fn on_unverified(
    age: Duration,
    limits: &CacheLimits<'_>,
    constraints: &ReadConstraints,
) -> Option<OnUnverified> {
    let following = limits.freshness.following?;
    let unverified = age >= following.lag_max && Safeguard::SilenceIsStaleness.holds();
    unverified.then(|| constraints.on_unverified.unwrap_or(following.on_unverified))
}

/// True if the decision about this entry depends on the time.
#[must_use]
#[inline]
pub fn is_timed(entry: &EntryFacts, limits: &CacheLimits<'_>, constraints: &ReadConstraints) -> bool {
    constraints.max_staleness.is_some()
        || limits.freshness.following.is_some()
        || entry.time_to_idle.or(limits.freshness.time_to_idle).is_some()
        || life(entry, limits).is_some()
}

/// Returns the moment at which an entry was last known to be current: when it came, or, in a layer that follows another
/// process, the moment until which that has received every change. No event reports a change of a loader's value,
/// unless it was read from the layer's own keys.
#[inline]
fn current_at(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Moment {
    match limits.freshness.following {
        // The proof covers the owner's writes only, not the source of a loader.
        Some(_) if !entry.of_loader || entry.derived => entry.since.max(limits.verified),
        _ => entry.since,
    }
}

/// Returns how long an entry is fresh; `None` is for ever. Jitter only ever shortens it.
#[must_use]
#[inline]
pub fn life(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Option<Duration> {
    // An entry's own time to live counts before the cache's, for absences, too.
    let cache = if entry.absent { limits.freshness.negative_time_to_live } else { limits.time_to_live };
    let whole = entry.time_to_live.or(cache)?;
    // In 128 bits: a life of 584 years times the share does not fit into 64.
    let share = u128::from(entry.cut) * whole.as_nanos() / (1 << 16);
    Some(whole.saturating_sub(Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))))
}

/// True if a fresh entry should be loaded again already, so that not all its readers meet its expiry at once.
///
/// XFetch (Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015): a reader
/// reloads if `took * beta * -ln(u)` reaches the time left, with `u` drawn evenly from (0, 1]. The 32 bits of `u` are
/// drawn only if some draw could say yes.
pub fn is_due_early(left: Duration, took: Duration, beta: f64, draw: impl FnOnce() -> u32) -> bool {
    let reach = took.as_secs_f64() * beta;
    let least_u = 0.5_f64.powi(32);
    // Not even the smallest draw would say yes: the random number is saved.
    if reach * -least_u.ln() < left.as_secs_f64() {
        return false;
    }
    // Never zero, whose logarithm would make any entry due.
    let u = (f64::from(draw()) + 1.0) * least_u;
    reach * -u.ln() >= left.as_secs_f64()
}
