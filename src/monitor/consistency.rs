//! The consistency monitor: which writes it samples, and the questions to every follower after each delay.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::bus::event::FOLLOWER_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::monitor::observer::{Observation, Observer, Served, Trouble};
use crate::monitor::report::{MonitorReport, Reason};
use crate::monitor::tally::{AnswerFinding, AnswerVerdict, FOLLOWERS_MAX, FollowerAnswer, Tally};
use crate::options::within_time;
use crate::seam::random;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// The most delays after which the followers are asked for one write.
pub const DELAYS_MAX: usize = 16;
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The most writes that may be in flight.
pub const IN_FLIGHT_MAX: usize = 1_000_000;
/// The most offenders that may be kept.
pub const OFFENDERS_MAX: usize = 1_000;

/// The options of a [`Monitor`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sampled until `build` is called"]
pub struct MonitorBuilder {
    share: f64,
    delays: Vec<Duration>,
    offenders_max: usize,
    in_flight_max: usize,
    patience: Duration,
}

impl Default for MonitorBuilder {
    fn default() -> Self {
        let delays = [0, 1, 10, 60].map(Duration::from_secs).into();
        let patience = Duration::from_secs(5);
        MonitorBuilder { share: 0.001, delays, offenders_max: 20, in_flight_max: 4_096, patience }
    }
}

impl MonitorBuilder {
    /// The share of all writes that is sampled, above 0 and up to 1. Random ones. Default: 0.001.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// The delays after a write at which every follower is asked: 1 to 16 rising ones of up to 24 hours. Default: 0, 1,
    /// 10 and 60 seconds.
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.delays = delays.into_iter().collect();
        self
    }

    /// The number of the worst answers that are kept, up to 1,000. Default: 20.
    pub fn offenders_max(mut self, offenders: usize) -> Self {
        self.offenders_max = offenders;
        self
    }

    /// The most sampled writes that may wait for their last answer at a time, 1 to 1,000,000. Default: 4,096. Each
    /// takes a bit less than a kilobyte. Further ones are counted as skipped.
    pub fn in_flight_max(mut self, samples: usize) -> Self {
        self.in_flight_max = samples;
        self
    }

    /// The time that a follower may take to answer, 1 millisecond to an hour, but no longer than until it is asked the
    /// next time. Default: 5 seconds.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Makes the monitor.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] names the option, the value and the allowed range; [`ErrorKind::Io`] if the system
    /// has no randomness.
    pub fn build(self) -> Result<Monitor> {
        self.validate()?;
        let seed = random::u32().map_err(|error| {
            Error::with_source(ErrorKind::Io, "drawing what a monitor looks at", error.to_string())
        })?;
        // Each sample holds a permit, so the channel is as bounded as they are.
        let (samples, arriving) = mpsc::unbounded_channel();
        let tally = Tally::new(self.delays.clone(), self.offenders_max);
        // Of 2^64 drawn numbers this many are sampled.
        let threshold = (self.share * u64::MAX as f64) as u64;
        Ok(Monitor(Arc::new(MonitorState {
            threshold,
            seed: u64::from(seed),
            seen: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(self.in_flight_max)),
            samples,
            arriving: tokio::sync::Mutex::new(arriving),
            closed: watch::Sender::new(false),
            tally: Arc::new(Mutex::new(tally)),
            delays: self.delays.into(),
            in_flight_max: self.in_flight_max,
            patience: self.patience,
        })))
    }

    fn validate(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::InvalidOption, what));
        if !(self.share > 0.0 && self.share <= 1.0) {
            return refuse(format!("share is {}; allowed is more than 0, up to 1", self.share));
        }
        let delays = self.delays.len();
        if !(1..=DELAYS_MAX).contains(&delays) {
            return refuse(format!("delays has {delays}; allowed are 1 to {DELAYS_MAX}"));
        }
        // Rising, because each answer has until the next delay.
        if !self.delays.is_sorted_by(|earlier, later| earlier < later) {
            return refuse(format!("delays is {:?}; allowed are rising ones", self.delays));
        }
        self.delays.iter().try_for_each(|delay| within_time("delays", *delay, Duration::ZERO, DELAY_MAX))?;
        within_time("patience", self.patience, Duration::from_millis(1), Duration::from_secs(3600))?;
        if self.offenders_max > OFFENDERS_MAX {
            let offenders = self.offenders_max;
            return refuse(format!("offenders_max is {offenders}; allowed are 0 to {OFFENDERS_MAX}"));
        }
        if !(1..=IN_FLIGHT_MAX).contains(&self.in_flight_max) {
            let samples = self.in_flight_max;
            return refuse(format!("in_flight_max is {samples}; allowed are 1 to {IN_FLIGHT_MAX}"));
        }
        Ok(())
    }
}

/// The consistency monitor. Cheap to clone; all clones are one monitor.
///
/// The owner reports each applied write ([`Monitor::committed`]), and a task of the caller's asks the followers
/// ([`Monitor::run`]).
#[derive(Clone)]
pub struct Monitor(Arc<MonitorState>);

struct MonitorState {
    /// Writes whose drawn number is at most this are sampled.
    threshold: u64,
    seed: u64,
    seen: AtomicU64,
    permits: Arc<Semaphore>,
    samples: mpsc::UnboundedSender<SampledWrite>,
    /// Bounded by the permits.
    arriving: tokio::sync::Mutex<mpsc::UnboundedReceiver<SampledWrite>>,
    closed: watch::Sender<bool>,
    tally: SharedTally,
    delays: Arc<[Duration]>,
    in_flight_max: usize,
    patience: Duration,
}

type SharedTally = Arc<Mutex<Tally>>;

/// A write that was sampled.
struct SampledWrite {
    key: Key,
    seq: Seq,
    applied: Instant,
    /// Its place among the writes in flight.
    _permit: OwnedSemaphorePermit,
}

impl Monitor {
    /// Returns the options of a monitor, with their defaults.
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder::default()
    }

    /// Reports a write that the store has taken at this moment. Every follower should serve this version, or a newer
    /// one, from now on.
    ///
    /// Costs a random number, and for a sampled write a copy of the key; never waits. May be called from any thread,
    /// and without a runtime. After [`Monitor::close`] it does nothing.
    pub fn committed(&self, key: &Key, seq: Seq) {
        let state = &*self.0;
        if *state.closed.borrow() {
            return;
        }
        // Relaxed: the number only has to be drawn once.
        let number = state.seen.fetch_add(1, Ordering::Relaxed);
        if drawn(state.seed, number) > state.threshold {
            return;
        }
        let permit = match Arc::clone(&state.permits).try_acquire_owned() {
            Ok(permit) => permit,
            // Never waits: the caller is on the path of a write.
            Err(TryAcquireError::NoPermits) => return lock(&state.tally).skipped += 1,
            Err(TryAcquireError::Closed) => return,
        };
        lock(&state.tally).sampled += 1;
        // A copy of its own: the key may be a part of a large buffer, and it waits for a minute here.
        let sample = SampledWrite { key: key.detached(), seq, applied: Instant::now(), _permit: permit };
        state.samples.send(sample).expect("this monitor holds the receiver");
    }

    /// Asks the followers, until [`Monitor::close`]; then returns once no write is in flight. For a task of the
    /// caller's, on a tokio runtime. A second call waits until the first one has ended, and goes on with its figures.
    ///
    /// Dropping the future gives up the writes in flight, which are counted as abandoned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] at once: no observer, more than 1,024, or a name that is empty, longer than 64
    /// bytes, or used twice.
    pub async fn run(&self, observers: Vec<Arc<dyn Observer>>) -> Result<()> {
        check_names(&observers)?;
        let state = &*self.0;
        // One run at a time: two would share the samples out, and each write would be asked of one run's followers.
        let mut arriving = state.arriving.lock().await;
        let places: Vec<usize> = {
            let mut tally = lock(&state.tally);
            observers.iter().map(|observer| tally.follower(observer.name())).collect::<Result<_>>()?
        };
        let followers: Vec<(usize, Arc<dyn Observer>)> = places.into_iter().zip(observers).collect();
        let mut closed = state.closed.subscribe();
        let mut asking = JoinSet::new();
        loop {
            // Marked as seen before it is judged, so that a close from here on ends the wait below.
            let is_closed = *closed.borrow_and_update();
            // Closed alone is not the end: the writes in flight are still to be asked for.
            if is_closed && self.in_flight() == 0 {
                return Ok(());
            }
            tokio::select! {
                Some(sample) = arriving.recv() => {
                    let write = CheckedWrite::new(sample, &state.tally, state.delays.len(), followers.len());
                    let write = Arc::new(write);
                    for (follower, observer) in &followers {
                        let (write, observer) = (Arc::clone(&write), Arc::clone(observer));
                        asking.spawn(ask(observer, *follower, write, Arc::clone(&state.delays), state.patience));
                    }
                }
                // An observer that panicked leaves its write without an answer: it counts as abandoned.
                Some(_) = asking.join_next() => {}
                changed = closed.changed(), if !is_closed => changed.expect("this monitor holds the sender"),
            }
        }
    }

    /// Ends the monitor: no further write is sampled, and [`Monitor::run`] returns once every write in flight has had
    /// its last answer.
    pub fn close(&self) {
        // In this order: a write that got a permit before is in flight for a run that sees the end.
        self.0.permits.close();
        self.0.closed.send_replace(true);
    }

    /// Returns the findings so far.
    #[must_use]
    pub fn report(&self) -> MonitorReport {
        let seen = self.0.seen.load(Ordering::Relaxed);
        lock(&self.0.tally).report(seen, self.in_flight())
    }

    /// Returns the number of sampled writes that wait for an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight_max.saturating_sub(self.0.permits.available_permits())
    }

    /// Exports the findings so far to the recorder that is installed for the `metrics` facade.
    ///
    /// Counters are exported as totals: call it before each scrape, or every few seconds.
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        crate::monitor::figures::record(&self.report());
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// Returns one number of SplitMix64's sequence (Steele, Lea and Flood, OOPSLA 2014).
fn drawn(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_names(observers: &[Arc<dyn Observer>]) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::InvalidOption, what));
    let count = observers.len();
    if !(1..=FOLLOWERS_MAX).contains(&count) {
        return refuse(format!("a monitor with {count} observers; allowed are 1 to {FOLLOWERS_MAX}"));
    }
    let mut names = BTreeSet::new();
    for name in observers.iter().map(|observer| observer.name()) {
        if !(1..=FOLLOWER_BYTES_MAX).contains(&name.len()) {
            let length = name.len();
            return refuse(format!(
                "an observer's name of {length} bytes; allowed are 1 to {FOLLOWER_BYTES_MAX}"
            ));
        }
        // The names are the labels of the figures.
        if !names.insert(name) {
            return refuse(format!("two observers are named \"{}\"", name.escape_debug()));
        }
    }
    Ok(())
}

/// A sampled write that the followers are asked for.
struct CheckedWrite {
    sample: SampledWrite,
    tally: SharedTally,
    /// For each delay: the number of followers without an answer, and the worst of the other answers.
    rounds: Mutex<Vec<(usize, AnswerVerdict)>>,
}

impl CheckedWrite {
    fn new(sample: SampledWrite, tally: &SharedTally, delays: usize, followers: usize) -> CheckedWrite {
        let rounds = Mutex::new(vec![(followers, AnswerVerdict::Consistent); delays]);
        CheckedWrite { sample, tally: Arc::clone(tally), rounds }
    }

    /// Counts an answer and, if it is the last one of its round, the write as a whole.
    fn note(&self, follower: usize, round: usize, late: Duration, answer: FollowerAnswer) {
        let mut tally = lock(&self.tally);
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((left, worst)) = rounds.get_mut(round) else { return };
        // The lock of the tally is taken first everywhere, so that two followers cannot wait for each other.
        *left -= 1;
        *worst = answer.verdict().max(*worst);
        let whole = (*left == 0).then_some(*worst);
        tally.note(&AnswerFinding {
            follower,
            round,
            late,
            key: &self.sample.key,
            seq: self.sample.seq,
            answer,
            whole,
        });
    }
}

impl Drop for CheckedWrite {
    fn drop(&mut self) {
        let rounds = self.rounds.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A panic of an observer, or a run that was dropped: the write must not vanish from the counts.
        if rounds.iter().any(|(left, _)| *left > 0) {
            lock(&self.tally).abandoned += 1;
        }
    }
}

/// Asks one follower for one write, after each delay.
async fn ask(
    observer: Arc<dyn Observer>,
    follower: usize,
    write: Arc<CheckedWrite>,
    delays: Arc<[Duration]>,
    patience: Duration,
) {
    let nexts = delays.iter().skip(1).map(Some).chain([None]);
    for (round, (delay, next)) in delays.iter().zip(nexts).enumerate() {
        // From the apply, not from the last answer: a slow follower must not shift its later delays.
        let due = write.sample.applied + *delay;
        sleep_until(due).await;
        let late = due.elapsed();
        // An answer that takes longer would count for the next delay.
        let patience = next.map_or(patience, |next| patience.min(next.saturating_sub(*delay)));
        // A follower that hangs must not keep its sample's permit for ever.
        let answered = timeout(patience, observer.observe(&write.sample.key)).await;
        let observed = answered.unwrap_or_else(|_| {
            let context =
                format!("asking \"{}\" what it serves: no answer within {patience:?}", observer.name());
            Err(Error::new(ErrorKind::Transient, context))
        });
        write.note(follower, round, late, judge(write.sample.seq, observed));
    }
}

/// Judges an answer about a write. It is consistent if the follower would serve nothing older, or nothing from memory.
/// Without a version, as of an absence, this is unknown.
fn judge(seq: Seq, observed: Result<Observation>) -> FollowerAnswer {
    let observation = match observed {
        Ok(observation) => observation,
        Err(error) => {
            return FollowerAnswer::Inconsistent {
                reason: Reason::Unreachable,
                served: None,
                lag: 0,
                error: Some(format!("{error:#}")),
            };
        }
    };
    let Observation { version: served, state, heard_until, trouble } = observation;
    match served {
        // The store has the write: it was applied before it was sampled.
        _ if state == Served::Store => return FollowerAnswer::Consistent,
        Some(version) if version >= seq => return FollowerAnswer::Consistent,
        Some(_) => {}
        // Without a version nobody can say whether it is older.
        None => return FollowerAnswer::Unknown,
    }
    let lag = heard_until.map_or(0, |heard_until| seq.0.saturating_sub(heard_until.0));
    // The first cause that explains the answer; a lag is also the effect of the ones above it.
    let reason = match (state, trouble) {
        (Served::Unverified, _) => Reason::Unverified,
        (_, Some(Trouble::Gap)) => Reason::Gap,
        (_, Some(Trouble::RefusedFill)) => Reason::RefusedFill,
        _ if lag > 0 => Reason::Lag,
        _ => Reason::Unexplained,
    };
    FollowerAnswer::Inconsistent { reason, served, lag, error: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_consistent_where_nothing_older_would_be_served() {
        let observed = |version: Option<u64>, state, heard_until: u64, trouble| {
            let (version, heard_until) = (version.map(Seq), Some(Seq(heard_until)));
            judge(Seq(42), Ok(Observation { version, state, heard_until, trouble }))
        };
        let consistent = [
            observed(Some(42), Served::Fresh, 42, None),
            observed(Some(43), Served::Fresh, 9, Some(Trouble::Gap)),
            observed(Some(42), Served::Unverified, 9, None),
            observed(Some(42), Served::Absent, 42, None),
            observed(None, Served::Store, 9, Some(Trouble::Gap)),
        ];
        assert!(consistent.iter().all(|answer| *answer == FollowerAnswer::Consistent), "{consistent:?}");
        assert_eq!(observed(None, Served::Absent, 42, None), FollowerAnswer::Unknown);
        assert_eq!(observed(None, Served::Fresh, 9, Some(Trouble::Gap)), FollowerAnswer::Unknown);
        for (observed, expected, behind) in [
            (observed(Some(41), Served::Fresh, 39, None), Reason::Lag, 3),
            (observed(Some(41), Served::Fresh, 39, Some(Trouble::Gap)), Reason::Gap, 3),
            (observed(Some(41), Served::Fresh, 42, Some(Trouble::RefusedFill)), Reason::RefusedFill, 0),
            (observed(Some(41), Served::Unverified, 41, Some(Trouble::Gap)), Reason::Unverified, 1),
            (observed(Some(41), Served::Fresh, 50, None), Reason::Unexplained, 0),
            (observed(Some(41), Served::Absent, 42, None), Reason::Unexplained, 0),
            (judge(Seq(42), Err(Error::new(ErrorKind::Transient, "gone"))), Reason::Unreachable, 0),
        ] {
            let FollowerAnswer::Inconsistent { reason, lag, .. } = observed else {
                panic!("{expected:?}: {observed:?}")
            };
            assert_eq!((reason, lag), (expected, behind));
        }
    }
}
