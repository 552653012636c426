//! Time, and what drives futures.
//!
//! Two clocks must not be confused. [`now`] and [`sleep`] are the system's (in a simulation the world's) and are for
//! waits. Ages are read from the layer's own [`Ticker`], which is the same clock unless somebody gave the layer
//! another one; it never goes back, whatever the clock behind it does.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::seam::sync::Mutex;

#[cfg(feature = "simulation")]
pub(crate) use crate::seam::simulated::{Handle, Runtime, block_on, may_block, now, runtime, sleep};
#[cfg(not(feature = "simulation"))]
pub(crate) use {
    real::{block_on, may_block, now, runtime},
    tokio::runtime::{Handle, Runtime},
    tokio::time::sleep,
};

/// A moment of a layer's clock, in nanoseconds since that clock began; they last 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The moment so long after the clock began.
    #[must_use]
    pub fn at(elapsed: Duration) -> Moment {
        Moment(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long after `earlier` this is; nothing if it is not.
    #[must_use]
    #[inline]
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// As a plain number, for an atomic.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// The reverse of [`Moment::nanos`].
    pub(crate) fn of_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }
}

/// A clock that ages are read from.
///
/// It should be monotonic. If it is set back, the layer takes the time in between for standing still, so no age ever
/// shrinks; if it is set forward, what is in memory ages by as much.
pub trait Clock: Send + Sync + 'static {
    /// How long ago the clock began, whenever that was. Called often, and by many threads; must not block.
    fn now(&self) -> Duration;
}

/// A layer's clock as the layer reads it: it never goes back. Cheap to clone.
#[derive(Clone)]
pub struct Ticker(Source);

#[derive(Clone)]
enum Source {
    System(Instant),
    Given(Arc<Given>),
}

struct Given {
    clock: Box<dyn Clock>,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    /// What the clock said last.
    read: Duration,
    /// How much the clock was set back, all in all.
    lost: Duration,
}

impl Default for Ticker {
    /// The system's monotonic clock.
    fn default() -> Self {
        Ticker(Source::System(now()))
    }
}

impl Ticker {
    /// Another clock.
    pub fn new(clock: impl Clock) -> Ticker {
        Ticker(Source::Given(Arc::new(Given { clock: Box::new(clock), shown: Mutex::default() })))
    }

    /// What the time is.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::System(began) => Moment::at(now().saturating_duration_since(*began)),
            Source::Given(given) => given.now(),
        }
    }
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticker").field(&self.now()).finish()
    }
}

impl Given {
    fn now(&self) -> Moment {
        // Read under the lock, so that two threads cannot bring their readings out of order.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.clock.now();
        let set_back = shown.read.saturating_sub(read);
        shown.lost = shown.lost.saturating_add(set_back);
        shown.read = read;
        Moment::at(read.saturating_add(shown.lost))
    }
}

#[cfg(not(feature = "simulation"))]
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

    /// The runtime of a layer: it drives the timers, and runs what may block.
    pub(crate) fn runtime() -> io::Result<Runtime> {
        Builder::new_multi_thread().worker_threads(1).thread_name("forebay-timers").enable_all().build()
    }

    thread_local! {
        static BLOCKED: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether this thread is in a call that blocks it, so that it may wait for the disk itself.
    pub(crate) fn may_block() -> bool {
        BLOCKED.get()
    }

    /// Says so until it is dropped.
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
            BLOCKED.set(self.before);
        }
    }

    /// Drives a future on this thread. A store whose futures need tokio finds the layer's own runtime.
    pub(crate) fn block_on<T>(runtime: Option<&Handle>, future: impl Future<Output = T>) -> T {
        // Inside a task of somebody's runtime the task's budget would run out and stay so: this future is not
        // part of that task's work.
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
                // A wake-up that came first makes this return at once; a false one only polls again.
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
#[cfg(not(feature = "simulation"))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Seconds(Arc<AtomicU64>);

    impl Clock for Seconds {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_clock_that_is_set_back_stands_still_and_then_goes_on() {
        let seconds = Arc::new(AtomicU64::new(100));
        let ticker = Ticker::new(Seconds(Arc::clone(&seconds)));
        let first = ticker.now();
        for (read, passed) in [(107, 7), (50, 7), (53, 10), (0, 10), (200, 210)] {
            seconds.store(read, Ordering::SeqCst);
            assert_eq!(ticker.now().since(first), Duration::from_secs(passed), "the clock says {read}");
        }
        assert_eq!(first.since(ticker.now()), Duration::ZERO, "an age is never negative");
    }
}
