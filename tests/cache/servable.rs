//! The decision to serve from memory, against a plain specification: the rules as the manual states them, in whole
//! nanoseconds, without the library's types and in no clever order.

use std::time::Duration;

use forebay::Moment;
use forebay::memory::freshness::{Following, Freshness, OnUnverified};
use forebay::memory::servable::{
    CacheLimits, EntryFacts, Generation, LoadProgress, MissReason, ReadConstraints, Servable, StaleReason,
    is_due_early, is_timed, servable,
};
use proptest::prelude::*;

/// Everything that the decision hangs on, in nanoseconds where it is a time.
#[derive(Clone, Debug)]
struct Case {
    generation: u64,
    floor: u64,
    namespace_floor: u64,
    tag_floor: u64,
    outdated: bool,
    now: u64,
    since: u64,
    used: u64,
    absent: bool,
    of_loader: bool,
    derived: bool,
    cut: u16,
    cache_life: Option<u64>,
    negative_life: Option<u64>,
    own_life: Option<u64>,
    cache_idle: Option<u64>,
    own_idle: Option<u64>,
    revalidate: u64,
    if_error: u64,
    max_staleness: Option<u64>,
    has_loader: bool,
    waiting: Option<u64>,
    failed: bool,
    verified: u64,
    following: Option<(u64, OnUnverified)>,
    on_unverified: Option<OnUnverified>,
}

/// The specification.
///
/// 1. What was invalidated is not served: with its cache, with its namespace, by one of its tags, or
///    because something that it was derived from has changed. The first of these that holds is the reason.
/// 2. That the store lacks a key is no answer for a reader who has a loader.
/// 3. What is as old as the reader accepts, or older, is not served. An age that would be negative is none. It counts
///    from when the entry came; in a layer that follows another process, from when that had last heard of every change,
///    if that was later and the entry did not come from a loader, or from one that read the layer's own keys.
///    And a follower does not serve what is as old as its bound on lag, or older, unless it or the reader says so.
/// 4. What was not used for its time to idle is not served. Its own counts before the cache's.
/// 5. A value is fresh while it is younger than its life: its own time to live, else the cache's (for an absence: the
///    one for absences), less the share that jitter cut. Without one it is fresh for ever.
/// 6. A value, not an absence, is served beyond its life if it is younger than its life and the window for
///    revalidating; or if the reader would wait, and it is younger than the reader takes then; or if loading it
///    failed, and it is younger than its life and the window for errors. The first of these that holds is the
///    reason.
/// 7. Else it has expired. Lives count from when the entry came.
/// 8. What a follower serves beyond its bound on lag is never fresh.
fn specified(case: &Case) -> Result<Option<StaleReason>, MissReason> {
    let unknown = staleness(case);
    let age = case.now.saturating_sub(case.since);
    let unverified = case.following.filter(|(lag_max, _)| unknown >= *lag_max);
    let unverified = unverified.map(|(_, wanted)| case.on_unverified.unwrap_or(wanted));
    let fresh = unverified.map(|_| StaleReason::Unverified);
    let unused = case.now.saturating_sub(case.used);
    let life = case.own_life.or(if case.absent { case.negative_life } else { case.cache_life });
    let life = life.map(|whole| whole - (u128::from(whole) * u128::from(case.cut) / 65_536) as u64);
    let limits = [
        (case.generation < case.floor, MissReason::Invalidated),
        (case.generation < case.namespace_floor, MissReason::NamespaceInvalidated),
        (case.generation < case.tag_floor, MissReason::TagInvalidated),
        (case.outdated, MissReason::DependencyChanged),
        (case.absent && case.has_loader && !case.of_loader, MissReason::Absent),
        (case.max_staleness.is_some_and(|most| unknown >= most), MissReason::TooOld),
        (unverified.is_some_and(|wanted| wanted != OnUnverified::Serve), MissReason::Unverified),
        (case.own_idle.or(case.cache_idle).is_some_and(|most| unused >= most), MissReason::Idle),
    ];
    if let Some((_, reason)) = limits.into_iter().find(|(broken, _)| *broken) {
        return Err(reason);
    }
    let Some(life) = life else { return Ok(fresh) };
    if age < life {
        return Ok(fresh);
    }
    let excuses = [
        (age < life.saturating_add(case.revalidate), StaleReason::WhileRevalidating),
        (case.waiting.is_some_and(|most| age < most), StaleReason::InsteadOfWaiting),
        (case.failed && age < life.saturating_add(case.if_error), StaleReason::LoadFailed),
    ];
    let stale = excuses.into_iter().find(|(holds, _)| *holds && !case.absent);
    stale.map(|(_, stale)| Some(stale)).ok_or(MissReason::Expired)
}

/// Returns the time since the entry was last known to be current.
fn staleness(case: &Case) -> u64 {
    let verified =
        if case.following.is_some() && (!case.of_loader || case.derived) { case.verified } else { 0 };
    case.now.saturating_sub(case.since.max(verified))
}

fn decided(case: &Case, now: u64) -> Servable {
    let time = Duration::from_nanos;
    let at = |nanos| Moment::at(time(nanos));
    let freshness = Freshness {
        time_to_idle: case.cache_idle.map(time),
        negative_time_to_live: case.negative_life.map(time),
        jitter: 0,
        early_refresh: None,
        stale_while_revalidate: time(case.revalidate),
        stale_if_error: time(case.if_error),
        load_throttle: Duration::ZERO,
        following: case
            .following
            .map(|(lag_max, on_unverified)| Following { lag_max: time(lag_max), on_unverified }),
    };
    let (facts, limits, constraints) = inputs(case, &freshness);
    let timeless = servable(&facts, &limits, at(0), &constraints);
    let timed = is_timed(&facts, &limits, &constraints);
    assert!(
        timed || same(timeless, servable(&facts, &limits, at(now), &constraints)),
        "the time does not matter"
    );
    servable(&facts, &limits, at(now), &constraints)
}

fn inputs<'a>(case: &Case, freshness: &'a Freshness) -> (EntryFacts, CacheLimits<'a>, ReadConstraints) {
    let time = Duration::from_nanos;
    let at = |nanos| Moment::at(time(nanos));
    let facts = EntryFacts {
        generation: Generation(case.generation),
        tag_floor: Generation(case.tag_floor),
        outdated: case.outdated,
        since: at(case.since),
        used: at(case.used),
        absent: case.absent,
        of_loader: case.of_loader,
        derived: case.derived,
        cut: case.cut,
        time_to_live: case.own_life.map(time),
        time_to_idle: case.own_idle.map(time),
    };
    let (floor, namespace_floor) = (Generation(case.floor), Generation(case.namespace_floor));
    let time_to_live = case.cache_life.map(time);
    let limits = CacheLimits { floor, namespace_floor, time_to_live, verified: at(case.verified), freshness };
    let progress = match (case.waiting, case.failed) {
        (Some(most), _) => LoadProgress::InFlight(time(most)),
        (None, true) => LoadProgress::Failed,
        (None, false) => LoadProgress::NotStarted,
    };
    let (max_staleness, on_unverified) = (case.max_staleness.map(time), case.on_unverified);
    let constraints = ReadConstraints {
        max_staleness,
        on_unverified,
        has_loader: case.has_loader,
        measures_age: false,
        progress,
    };
    (facts, limits, constraints)
}

/// True if two decisions are the same but for the age in them.
fn same(one: Servable, other: Servable) -> bool {
    let outcome = |decision| match decision {
        Servable::Fresh { .. } => Ok(None),
        Servable::Stale { because, .. } => Ok(Some(because)),
        Servable::Miss(reason) => Err(reason),
        other => panic!("{other:?}"),
    };
    outcome(one) == outcome(other)
}

/// Few values, close to each other, so that bounds are met exactly.
fn nanos() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..12, 1 => 0_u64..1_000_000, 1 => Just(u64::MAX >> 1)]
}

fn maybe() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), nanos().prop_map(Some)]
}

fn wanted() -> impl Strategy<Value = OnUnverified> {
    prop_oneof![Just(OnUnverified::Revalidate), Just(OnUnverified::Fail), Just(OnUnverified::Serve)]
}

prop_compose! {
    fn case()(
        (generation, floor, namespace_floor) in (2_u64..5, 0_u64..4, 0_u64..4),
        tag_floor in 0_u64..4,
        outdated in prop_oneof![3 => Just(false), 1 => Just(true)],
        (now, since, used) in (nanos(), nanos(), nanos()),
        (absent, of_loader, has_loader) in (any::<bool>(), any::<bool>(), any::<bool>()),
        derived in any::<bool>(),
        cut in prop_oneof![Just(0), Just(32_768), any::<u16>()],
        (cache_life, negative_life, own_life) in (maybe(), maybe(), maybe()),
        (cache_idle, own_idle) in (maybe(), maybe()),
        (revalidate, if_error) in (nanos(), nanos()),
        (max_staleness, waiting) in (maybe(), maybe()),
        failed in any::<bool>(),
        (verified, on_unverified) in (nanos(), proptest::option::of(wanted())),
        following in proptest::option::of((nanos(), wanted())),
    ) -> Case {
        let failed = failed && waiting.is_none();
        Case {
            generation, floor, namespace_floor, tag_floor, outdated, now, since, used, absent,
            of_loader, derived, cut, cache_life, negative_life, own_life, cache_idle, own_idle, revalidate, if_error,
            max_staleness, has_loader, waiting, failed, verified, following, on_unverified,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn servable_decides_as_specified(case in case()) {
        let age = Duration::from_nanos(staleness(&case));
        match (specified(&case), decided(&case, case.now)) {
            (Ok(None), Servable::Fresh { age: told, .. }) => prop_assert_eq!(told, age),
            (Ok(Some(stale)), Servable::Stale { age: told, because }) => {
                prop_assert_eq!((told, because), (age, stale));
            }
            (Err(reason), Servable::Miss(told)) => prop_assert_eq!(told, reason),
            (specified, decided) => prop_assert!(false, "{:?} is not {:?}", decided, specified),
        }
    }

    /// Jitter never lets anything live longer than its time to live.
    #[test]
    fn jitter_only_shortens(case in case(), cut in any::<u16>()) {
        let whole = specified(&Case { cut: 0, ..case.clone() });
        let fresh = |decision| matches!(decision, Servable::Fresh { .. });
        let cut = decided(&Case { cut, ..case.clone() }, case.now);
        prop_assert!(whole == Ok(None) || !fresh(cut));
    }

    /// XFetch: the draw `u` decides at `took * beta * -ln(u) >= left`, and nobody draws where no draw could say yes.
    #[test]
    fn early_refresh_is_due_as_xfetch_says(
        left_ms in 1_u64..100_000, took_ms in 0_u64..10_000, beta in 0.0_f64..10.0, drawn in any::<u32>(),
    ) {
        let (left, took) = (Duration::from_millis(left_ms), Duration::from_millis(took_ms));
        let u = (f64::from(drawn) + 1.0) / 4_294_967_296.0;
        let due = -(took_ms as f64) * beta * u.ln() >= left_ms as f64;
        let mut draws = 0;
        let told = is_due_early(left, took, beta, || { draws += 1; drawn });
        let close = (-(took_ms as f64) * beta * u.ln() - left_ms as f64).abs() < 1e-6 * left_ms as f64;
        prop_assert!(told == due || close, "{} {}", told, due);
        let most = took_ms as f64 * beta * 22.180_709_777_918_25;
        prop_assert_eq!(draws, u32::from(most >= left_ms as f64));
    }
}
