//! Clocks, the runtime of a layer, and blocking on futures.
//!
//! Two clocks must not be confused. [`now`] and [`sleep`] are the system's (in a simulation the world's) and serve
//! waits. Ages are read from the layer's own [`Ticker`], which is the system's clock unless the user gave the layer
//! another one ([`Builder::clock`](crate::Builder::clock)). A ticker never goes back, whatever the clock behind it
//! does.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::seam::sync::Mutex;

#[cfg(forebay_simulation)]
pub(crate) use crate::seam::simulated::{Handle, Runtime, block_on, may_block, now, runtime, sleep};
#[cfg(not(forebay_simulation))]
pub(crate) use {
    real::{block_on, may_block, now, runtime},
    tokio::runtime::{Handle, Runtime},
    tokio::time::sleep,
};

/// A moment of a layer's clock, in nanoseconds since the clock's beginning. They last 584 years.
///
/// Moments of different clocks must not be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Returns the moment at this time after the clock's beginning.
    #[must_use]
    pub fn at(elapsed: Duration) -> Moment {
        Moment(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    #[inline]
    pub fn since(self, earlier: Moment) -> Duration {
        // Two threads may read the clock in either order, and an age below zero would be a panic or an eternity.
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Returns it as a plain number, for an atomic.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// The reverse of [`Moment::nanos`].
    pub(crate) fn of_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }
}

/// A clock that a layer reads ages from, given to [`Builder::clock`](crate::Builder::clock): times to live, times to
/// idle, and how stale a value is. Waits, retries and deadlines use the system's clock in any case.
///
/// It should be monotonic. If it is set back, time stands still for the layer until the clock moves on, so no age ever
/// shrinks. If it is set forward, the entries in memory age by as much.
pub trait Clock: Send + Sync + 'static {
    /// Returns the time since the clock's beginning, whenever that was.
    ///
    /// Called at every read that an age matters for, by many threads. Must not block.
    fn now(&self) -> Duration;
}

/// A layer's clock as the layer reads it: it never goes back. Cheap to clone; clones are one clock.
#[derive(Clone)]
pub struct Ticker(ClockSource);

#[derive(Clone)]
enum ClockSource {
    /// The system's monotonic clock, from this instant on.
    System(Instant),
    User(Arc<UserClock>),
}

/// A clock of the user's, made monotonic.
struct UserClock {
    clock: Box<dyn Clock>,
    readings: Mutex<ClockReadings>,
}

#[derive(Default)]
struct ClockReadings {
    /// The last reading.
    last: Duration,
    /// The sum of all times by which the clock was set back.
    set_back: Duration,
}

impl Default for Ticker {
    /// Returns the system's monotonic clock.
    fn default() -> Self {
        Ticker(ClockSource::System(now()))
    }
}

impl Ticker {
    /// Reads another clock.
    pub fn new(clock: impl Clock) -> Ticker {
        Ticker(ClockSource::User(Arc::new(UserClock { clock: Box::new(clock), readings: Mutex::default() })))
    }

    /// Returns the time.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Moment {
        match &self.0 {
            ClockSource::System(began) => Moment::at(now().saturating_duration_since(*began)),
            ClockSource::User(clock) => clock.now(),
        }
    }
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticker").field(&self.now()).finish()
    }
}

impl UserClock {
    fn now(&self) -> Moment {
        // The clock is read under the lock: two readings out of order would look like a clock that was set back.
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = self.clock.now();
        let set_back = readings.last.saturating_sub(reading);
        readings.set_back = readings.set_back.saturating_add(set_back);
        readings.last = reading;
        Moment::at(reading.saturating_add(readings.set_back))
    }
}

#[cfg(not(forebay_simulation))]
mod real {
    use std::cell::Cell;
    use std::io;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};
    use std::time::Instant;

    use tokio::runtime::{Builder, Handle, Runtime};

    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Makes the runtime of a layer, which drives the timers and runs calls that may block.
    pub(crate) fn runtime() -> io::Result<Runtime> {
        // One worker is enough: what runs here mostly waits. Work that blocks has threads of its own.
        Builder::new_multi_thread().worker_threads(1).thread_name("forebay-timers").enable_all().build()
    }

    thread_local! {
        static BLOCKED: Cell<bool> = const { Cell::new(false) };
    }

    /// True if this thread is in a call that blocks it, so that it may wait for the disk itself.
    pub(crate) fn may_block() -> bool {
        BLOCKED.get()
    }

    /// Marks this thread as blocked until it is dropped.
    struct Blocked {
        before: bool,
    }

    impl Blocked {
        fn begin() -> Blocked {
            Blocked { before: BLOCKED.replace(true) }
        }
    }

    impl Drop for Blocked {
        fn drop(&mut self) {
            // Restored, not cleared: a future that is driven may make a blocking call itself.
            BLOCKED.set(self.before);
        }
    }

    /// Blocks this thread until a future is ready. A store whose futures need tokio finds `runtime`.
    pub(crate) fn block_on<T>(runtime: Option<&Handle>, future: impl Future<Output = T>) -> T {
        // Inside a task of a tokio runtime the task's budget would run out and never be renewed, and tokio's futures
        // would be pending for ever. This future is not part of that task's work.
        let mut future = pin!(tokio::task::unconstrained(future));
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            let polled = {
                let (_entered, _blocked) = (runtime.map(Handle::enter), Blocked::begin());
                future.as_mut().poll(&mut context)
            };
            match polled {
                Poll::Ready(output) => return output,
                // A wake-up before this call makes it return at once; a spurious one only polls again.
                Poll::Pending => thread::park(),
            }
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
}

#[cfg(test)]
#[cfg(not(forebay_simulation))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct SecondsClock(Arc<AtomicU64>);

    impl Clock for SecondsClock {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_clock_that_is_set_back_stands_still_and_then_goes_on() {
        let seconds = Arc::new(AtomicU64::new(100));
        let ticker = Ticker::new(SecondsClock(Arc::clone(&seconds)));
        let first = ticker.now();
        for (read, passed) in [(107, 7), (50, 7), (53, 10), (0, 10), (200, 210)] {
            seconds.store(read, Ordering::SeqCst);
            assert_eq!(ticker.now().since(first), Duration::from_secs(passed), "the clock says {read}");
        }
        assert_eq!(first.since(ticker.now()), Duration::ZERO, "an age is never negative");
    }
}
