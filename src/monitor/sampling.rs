//! The monitor's face: which writes it looks at, and how many at once.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, watch};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::monitor::report::MonitorReport;
use crate::monitor::tally::Tally;
use crate::options::within_time;
use crate::seam::random;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// The most delays at which one write is asked for.
pub const DELAYS_MAX: usize = 16;
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The most writes that may be in flight.
pub const IN_FLIGHT_MAX: usize = 1_000_000;
/// The most offenders that may be kept.
pub const OFFENDERS_MAX: usize = 1_000;
/// The most followers that one monitor asks.
pub const FOLLOWERS_MAX: usize = 1_024;

/// How a [`Monitor`] is to be.
#[derive(Clone, Debug)]
#[must_use]
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
    /// The share of all writes that is looked at, above 0 and up to 1; 0.001 by default. Which ones is drawn.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// How long after a write every follower is asked: 1 to 16 rising delays of up to 24 hours; 0, 1, 10 and 60 seconds
    /// by default.
    pub fn delays(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
        self.delays = delays.into_iter().collect();
        self
    }

    /// How many of the worst answers are kept, up to 1,000; 20 by default.
    pub fn offenders_max(mut self, offenders: usize) -> Self {
        self.offenders_max = offenders;
        self
    }

    /// How many sampled writes may wait for their last answer, 1 to 1,000,000; 4,096 by default, which is a bit less
    /// than a kilobyte each and so many times a minute. What would be one more is not looked at, and counted.
    pub fn in_flight_max(mut self, samples: usize) -> Self {
        self.in_flight_max = samples;
        self
    }

    /// How long a follower may take to answer, 1 millisecond to an hour; 5 seconds by default. Never longer than until
    /// it is asked the next time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The monitor.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] names the option, the value and what is allowed; [`ErrorKind::Io`] if the system
    /// has no randomness.
    pub fn build(self) -> Result<Monitor> {
        self.validate()?;
        let seed = random::u32().map_err(|error| {
            Error::with_source(ErrorKind::Io, "drawing what a monitor looks at", error.to_string())
        })?;
        let (samples, arriving) = mpsc::unbounded_channel();
        let tally = Tally::new(self.delays.clone(), self.offenders_max);
        let threshold = (self.share * u64::MAX as f64) as u64;
        Ok(Monitor(Arc::new(Inner {
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
/// Whoever applies writes tells it of each ([`Monitor::committed`]), and a task of the caller's asks the followers
/// ([`Monitor::run`]).
#[derive(Clone)]
pub struct Monitor(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// Drawn numbers up to this are looked at.
    threshold: u64,
    seed: u64,
    seen: AtomicU64,
    permits: Arc<Semaphore>,
    samples: mpsc::UnboundedSender<Sample>,
    /// Bounded by the permits.
    pub(super) arriving: tokio::sync::Mutex<mpsc::UnboundedReceiver<Sample>>,
    pub(super) closed: watch::Sender<bool>,
    pub(super) tally: SharedTally,
    pub(super) delays: Arc<[Duration]>,
    in_flight_max: usize,
    pub(super) patience: Duration,
}

pub(super) type SharedTally = Arc<Mutex<Tally>>;

/// A write that is looked at.
pub(super) struct Sample {
    pub(super) key: Key,
    pub(super) seq: Seq,
    pub(super) applied: Instant,
    /// Its place among those in flight.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Monitor {
    /// The options of a monitor.
    pub fn builder() -> MonitorBuilder {
        MonitorBuilder::default()
    }

    /// Tells of a write that the store has taken, at this moment. Every follower should serve this version, or a newer
    /// one, from now on.
    ///
    /// Costs a draw, and for a sampled write a copy of the key; never waits. Safe to call from any thread, and without
    /// a runtime. After [`Monitor::close`] it does nothing.
    pub fn committed(&self, key: &Key, seq: Seq) {
        let inner = &*self.0;
        if *inner.closed.borrow() {
            return;
        }
        let number = inner.seen.fetch_add(1, Ordering::Relaxed);
        if drawn(inner.seed, number) > inner.threshold {
            return;
        }
        let permit = match Arc::clone(&inner.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => return lock(&inner.tally).skipped += 1,
            Err(TryAcquireError::Closed) => return,
        };
        lock(&inner.tally).sampled += 1;
        let sample = Sample { key: key.detached(), seq, applied: Instant::now(), _permit: permit };
        inner.samples.send(sample).expect("this monitor holds the receiver");
    }

    /// Ends it: no further write is looked at, and [`Monitor::run`] returns once every write that is in flight has had
    /// its last answer.
    pub fn close(&self) {
        // In this order: whoever got a permit is counted as in flight by a run that sees the end.
        self.0.permits.close();
        self.0.closed.send_replace(true);
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> MonitorReport {
        let seen = self.0.seen.load(Ordering::Relaxed);
        lock(&self.0.tally).report(seen, self.in_flight())
    }

    /// How many sampled writes wait for an answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight_max.saturating_sub(self.0.permits.available_permits())
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) at one place of its sequence.
fn drawn(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

pub(super) fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
