//! The one place that decides whether something found in memory may be served.
//!
//! Pure functions: of what was found, of what has been invalidated since, of the time, and of what the reader accepts.
//! Ages count from the start of the load that brought a value, or from the write; in a layer that follows another
//! process from when that last heard of every change, if that was later, though a time to live still counts from the
//! start. A bound is exclusive: what may be a second old is served while it is younger than a second, so a bound of
//! zero is met by nothing in memory.

use std::time::Duration;

use crate::memory::freshness::{Freshness, OnUnverified};
use crate::metrics::labels;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;

/// A layer's count of bulk invalidations. An entry carries the count at which its value was known to be current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What the decision has to know of an entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryFacts {
    /// What it belongs to.
    pub generation: Generation,
    /// The oldest generation that may be served of its group.
    pub group_floor: Generation,
    /// ... with its tags.
    pub tag_floor: Generation,
    /// Whether something that it was derived from has changed.
    pub outdated: bool,
    /// When its load began, or its write.
    pub since: Moment,
    /// When it was used last; at first when it came.
    pub used: Moment,
    /// Whether it says that the key has no value.
    pub absent: bool,
    /// Whether it came from a reader's loader, or was found absent there, and not in the layer's store alone.
    pub of_loader: bool,
    /// Whether it was read from keys of the layer alone, so that it is as current as those.
    pub derived: bool,
    /// The share of its life that jitter took, in 1/65,536.
    pub cut: u16,
    /// Its own time to live, instead of the cache's.
    pub time_to_live: Option<Duration>,
    /// Its own time to idle, instead of the cache's.
    pub time_to_idle: Option<Duration>,
}

/// What a cache asks of all its entries at the moment.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits<'a> {
    /// The oldest generation that may be served of the cache.
    pub floor: Generation,
    /// ... of the namespaces that the cache is, or is below of.
    pub namespace_floor: Generation,
    /// How long a value is fresh.
    pub time_to_live: Option<Duration>,
    /// Until when a layer that follows another process has heard of every change.
    pub verified: Moment,
    /// The rest.
    pub freshness: &'a Freshness,
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadConstraints {
    /// The oldest that may be served, whatever else would allow more.
    pub max_staleness: Option<Duration>,
    /// What it wants of an entry that is not known to be current, instead of what the layer says.
    pub on_unverified: Option<OnUnverified>,
    /// Whether the reader brought a loader, so that an absence counts only if the loader found it.
    pub has_loader: bool,
    /// How the reader stands.
    pub progress: LoadProgress,
}

/// What a reader has tried before it looks.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum LoadProgress {
    /// Nothing.
    #[default]
    NotStarted,
    /// Somebody loads the key already, and rather than wait the reader takes a value up to this age.
    InFlight(Duration),
    /// Loading the key failed.
    Failed,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Servable {
    /// Serve it.
    Fresh {
        /// How old it is.
        age: Duration,
        /// How much of its life is left, if that is limited.
        left: Option<Duration>,
    },
    /// Serve it though its time is up.
    Stale {
        /// How old it is.
        age: Duration,
        /// Why it is served all the same.
        because: StaleReason,
    },
    /// Look elsewhere.
    Miss(MissReason),
}

labels! {
    /// Why an entry is served though it is not known to be fresh.
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
    /// Why memory does not answer a read.
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
        /// Its group was invalidated.
        GroupInvalidated = "group_invalidated",
        /// One of its tags was invalidated.
        TagInvalidated = "tag_invalidated",
        /// A value that it was derived from has changed.
        DependencyChanged = "dependency_changed",
        /// It is older than the reader accepts.
        TooOld = "too_old",
        /// The layer follows another process, and has not been able to tell for too long whether the entry is current.
        Unverified = "unverified",
    }
}

/// By what an entry was invalidated, if it was.
#[must_use]
#[inline(always)]
pub fn invalidated(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Option<MissReason> {
    let below = |floor| entry.generation < floor;
    if below(limits.floor) {
        return Some(MissReason::Invalidated);
    }
    if below(limits.namespace_floor) {
        return Some(MissReason::NamespaceInvalidated);
    }
    if below(entry.group_floor) {
        return Some(MissReason::GroupInvalidated);
    }
    if below(entry.tag_floor) {
        return Some(MissReason::TagInvalidated);
    }
    entry.outdated.then_some(MissReason::DependencyChanged)
}

/// Whether an entry may be served.
///
/// If neither entry nor rules nor reader limit an age, the answer does not depend on `now`, except for the age in it.
#[must_use]
#[inline(always)]
pub fn servable(
    entry: &EntryFacts,
    limits: &CacheLimits<'_>,
    now: Moment,
    constraints: &ReadConstraints,
) -> Servable {
    let miss = Servable::Miss;
    if let Some(reason) = invalidated(entry, limits) {
        return miss(reason);
    }
    if entry.absent && constraints.has_loader && !entry.of_loader {
        return miss(MissReason::Absent);
    }
    let lived = now.since(entry.since);
    let age = now.since(current_at(entry, limits));
    let too_old =
        |most: Duration| age >= most && (!most.is_zero() || Safeguard::ZeroToleranceReadsTheStore.holds());
    if constraints.max_staleness.is_some_and(too_old) {
        return miss(MissReason::TooOld);
    }
    let unverified = limits
        .freshness
        .following
        .filter(|following| age >= following.lag_max && Safeguard::SilenceIsStaleness.holds());
    let unverified = unverified.map(|following| constraints.on_unverified.unwrap_or(following.on_unverified));
    if unverified.is_some_and(|wanted| wanted != OnUnverified::Serve) {
        return miss(MissReason::Unverified);
    }
    let idle = entry.time_to_idle.or(limits.freshness.time_to_idle);
    if idle.is_some_and(|most| now.since(entry.used) >= most) {
        return miss(MissReason::Idle);
    }
    let fresh = |left| match unverified {
        None => Servable::Fresh { age, left },
        Some(_) => Servable::Stale { age, because: StaleReason::Unverified },
    };
    let Some(life) = life(entry, limits) else { return fresh(None) };
    if let Some(left) = life.checked_sub(lived).filter(|left| !left.is_zero()) {
        return fresh(Some(left));
    }
    if entry.absent {
        return miss(MissReason::Expired);
    }
    let beyond = |window: Duration| lived < life.saturating_add(window);
    let because = match constraints.progress {
        _ if beyond(limits.freshness.stale_while_revalidate) => StaleReason::WhileRevalidating,
        LoadProgress::InFlight(most) if lived < most => StaleReason::InsteadOfWaiting,
        LoadProgress::Failed if beyond(limits.freshness.stale_if_error) => StaleReason::LoadFailed,
        _ => return miss(MissReason::Expired),
    };
    Servable::Stale { age, because }
}

/// Whether the answer for this entry hangs on the time.
#[must_use]
#[inline]
pub fn is_timed(entry: &EntryFacts, limits: &CacheLimits<'_>, constraints: &ReadConstraints) -> bool {
    constraints.max_staleness.is_some()
        || limits.freshness.following.is_some()
        || entry.time_to_idle.or(limits.freshness.time_to_idle).is_some()
        || life(entry, limits).is_some()
}

/// When an entry was last known to be current: when it came, or, in a layer that follows another process, when that
/// had last heard of every change. Of what a loader brought no event tells a change, unless it was read from the
/// layer's own keys.
#[inline]
fn current_at(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Moment {
    match limits.freshness.following {
        Some(_) if !entry.of_loader || entry.derived => entry.since.max(limits.verified),
        _ => entry.since,
    }
}

/// How long an entry is fresh; for ever without an answer. Jitter only ever shortens it.
#[must_use]
#[inline]
pub fn life(entry: &EntryFacts, limits: &CacheLimits<'_>) -> Option<Duration> {
    let cache = if entry.absent { limits.freshness.negative_time_to_live } else { limits.time_to_live };
    let whole = entry.time_to_live.or(cache)?;
    let share = u128::from(entry.cut) * whole.as_nanos() / (1 << 16);
    Some(whole.saturating_sub(Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))))
}

/// Whether a fresh entry is loaded again already, so that its expiry does not meet all its readers at once.
///
/// XFetch (Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015): a reader
/// reloads if `took * beta * -ln(u)` reaches what is left, with `u` drawn evenly from (0, 1]. `draw` is asked for the
/// 32 bits of `u` only if some draw could say yes.
pub fn is_due_early(left: Duration, took: Duration, beta: f64, draw: impl FnOnce() -> u32) -> bool {
    let reach = took.as_secs_f64() * beta;
    let least_u = 0.5_f64.powi(32);
    if reach * -least_u.ln() < left.as_secs_f64() {
        return false;
    }
    let u = (f64::from(draw()) + 1.0) * least_u;
    reach * -u.ln() >= left.as_secs_f64()
}
