//! Single flight: one load per key at a time, shared by all readers who wait for the key.
//!
//! A flight records where the fences stood when it began. A reader joins it only if they still stand there, so a read
//! that begins after a write or an invalidation never joins an older load (Facebook's memcache leases, NSDI 2013,
//! settle the same race with tokens); and only if the flight is young enough for that reader.
//!
//! A flight is driven by its waiters: whichever of them is polled polls the load. So no waiter can hold up the others
//! by not being polled or by going away. When the last one goes away, the load is dropped. If the load panics, every
//! waiter gets `None`. One flight may load several keys.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::Hash;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use crate::memory::entry::LoadStart;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// A load that ends with one outcome for each of its keys, in their order.
pub(crate) type Load<T> = Pin<Box<dyn Future<Output = Vec<T>> + Send>>;

/// The loads of one cache that are under way, by key.
pub(crate) struct Flights<K, T> {
    slots: Mutex<HashMap<K, FlightSlot<T>>>,
}

/// One key's place in the flight that loads it.
struct FlightSlot<T> {
    start: LoadStart,
    flight: Weak<Flight<T>>,
    index: usize,
}

/// One load and what its waiters share.
struct Flight<T> {
    state: Mutex<FlightState<T>>,
    wakers: Arc<Wakers>,
    /// Numbers the waiters.
    waiters: AtomicU64,
}

enum FlightState<T> {
    /// The keys are still being collected.
    Collecting,
    /// The load waits to be polled.
    Idle(Load<T>),
    /// A waiter polls the load, which it took out of here.
    Polled,
    /// The load has ended with these outcomes.
    Done(Vec<T>),
    /// The load panicked, or was never started.
    Panicked,
}

/// The wakers of a flight's waiters.
#[derive(Default)]
struct Wakers {
    by_waiter: Mutex<BTreeMap<u64, Waker>>,
    /// True if the flight was woken since its poll began.
    woken: AtomicBool,
}

/// The part a reader plays in the flight of its key.
pub(crate) enum Join<T> {
    /// The reader's own flight loads the key.
    Lead(Waiter<T>),
    /// Another reader's flight loads it already.
    Follow(Waiter<T>),
}

/// A flight that still collects its keys. Dropping it without [`FlightBuilder::start`] releases everyone who joined.
pub(crate) struct FlightBuilder<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    flight: Arc<Flight<T>>,
    keys: Vec<K>,
}

/// A future of one key's outcome; `None` if the load panicked.
pub(crate) struct Waiter<T> {
    flight: Arc<Flight<T>>,
    index: usize,
    number: u64,
}

/// Frees the slots of a flight's keys when its load ends or is dropped.
struct FlightSlotsGuard<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    flight: Weak<Flight<T>>,
    keys: Vec<K>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A key whose `Hash` or `Eq` panics must not stop the loads of all others.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights { slots: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq, T> Flights<K, T> {
    /// Begins a flight without keys.
    #[must_use]
    pub(crate) fn builder(self: &Arc<Self>) -> FlightBuilder<K, T> {
        let state = Mutex::new(FlightState::Collecting);
        let flight = Flight { state, wakers: Arc::default(), waiters: AtomicU64::new(0) };
        FlightBuilder { flights: Arc::clone(self), flight: Arc::new(flight), keys: Vec::new() }
    }

    /// Frees the slots of these keys that are still this flight's.
    fn free(&self, keys: &[K], flight: &Weak<Flight<T>>) {
        let mut slots = lock(&self.slots);
        for key in keys {
            // After a change of the key a newer flight may have taken the slot.
            if slots.get(key).is_some_and(|slot| Weak::ptr_eq(&slot.flight, flight)) {
                slots.remove(key);
            }
        }
    }
}

impl<K: Hash + Eq + Clone + Send + 'static, T: Send + 'static> FlightBuilder<K, T> {
    /// Joins the flight that loads `key`, if it began where the fences stand now and `suits` accepts its start; else
    /// adds the key to this flight.
    pub(crate) fn join_or_add(
        &mut self,
        key: &K,
        start: &LoadStart,
        suits: impl FnOnce(&LoadStart) -> bool,
    ) -> Join<T> {
        let mut slots = lock(&self.flights.slots);
        // Equal marks: any move of the fence in between is a change that the other load may have missed. A flight that
        // all waiters have left is dead, and its slot is taken over.
        if let Some(slot) = slots.get(key)
            && (slot.start.mark == start.mark || !Safeguard::JoinNoOlderLoad.holds())
            && suits(&slot.start)
            && let Some(flight) = slot.flight.upgrade()
        {
            return Join::Follow(Waiter::new(flight, slot.index));
        }
        let index = self.keys.len();
        let flight = Arc::downgrade(&self.flight);
        // An older flight may lose its slot here. It goes on for those who wait, and does not free the new slot.
        slots.insert(key.clone(), FlightSlot { start: *start, flight, index });
        self.keys.push(key.clone());
        Join::Lead(Waiter::new(Arc::clone(&self.flight), index))
    }

    /// Starts the load of the keys that were added; it has to end with one outcome for each, in their order.
    pub(crate) fn start(mut self, load: impl Future<Output = Vec<T>> + Send + 'static) {
        let keys = mem::take(&mut self.keys);
        // Weak: the flight owns its load, and the load this guard. A strong reference would keep all three for ever.
        let guard = FlightSlotsGuard {
            flights: Arc::clone(&self.flights),
            flight: Arc::downgrade(&self.flight),
            keys,
        };
        let load: Load<T> = Box::pin(async move {
            let outcomes = load.await;
            // Before the outcomes are seen: whoever sees them and reads again begins a load of its own.
            drop(guard);
            outcomes
        });
        *lock(&self.flight.state) = FlightState::Idle(load);
        // Readers who joined while the keys were collected found nothing to poll.
        self.flight.wakers.wake_all();
    }
}

impl<K: Hash + Eq, T> Drop for FlightBuilder<K, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.flight.state);
        // Never started: readers who joined would wait for ever.
        if matches!(*state, FlightState::Collecting) {
            *state = FlightState::Panicked;
            // A woken reader may poll at once, which takes this lock.
            drop(state);
            self.flights.free(&self.keys, &Arc::downgrade(&self.flight));
            self.flight.wakers.wake_all();
        }
    }
}

impl<K: Hash + Eq, T> Drop for FlightSlotsGuard<K, T> {
    fn drop(&mut self) {
        self.flights.free(&self.keys, &self.flight);
    }
}

impl Wakers {
    fn wake_all(&self) {
        // Woken without the lock: a waker runs foreign code, which may drop a waiter, and that takes the lock.
        let wakers = mem::take(&mut *lock(&self.by_waiter));
        wakers.into_values().for_each(Waker::wake);
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        // Before the wake-ups: a poll that ends meanwhile has to see that it needs another one.
        self.woken.store(true, Ordering::SeqCst);
        self.wake_all();
    }
}

impl<T> Waiter<T> {
    fn new(flight: Arc<Flight<T>>, index: usize) -> Waiter<T> {
        // Never given twice, so that a waiter that goes away cannot remove the waker of another.
        let number = flight.waiters.fetch_add(1, Ordering::SeqCst);
        Waiter { flight, index, number }
    }
}

impl<T: Clone> Future for Waiter<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Waiter { flight, index, number } = &*self;
        let mut state = lock(&flight.state);
        match &*state {
            FlightState::Done(outcomes) => return Poll::Ready(outcomes.get(*index).cloned()),
            FlightState::Panicked => return Poll::Ready(None),
            FlightState::Collecting | FlightState::Idle(_) | FlightState::Polled => {}
        }
        // Under the state's lock, so that a flight that ends now either is seen here or finds this waker.
        lock(&flight.wakers.by_waiter).insert(*number, context.waker().clone());
        let mut load = match mem::replace(&mut *state, FlightState::Polled) {
            FlightState::Idle(load) => load,
            // Whoever polls the load, or starts it, wakes this waiter.
            other => {
                *state = other;
                return Poll::Pending;
            }
        };
        // The load runs without the lock: it may read keys of this cache, and other waiters may come and go.
        drop(state);
        // Before the poll: each wake-up from here on has to be seen after it.
        flight.wakers.woken.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&flight.wakers));
        let polled = catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(&mut Context::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                *lock(&flight.state) = FlightState::Idle(load);
                // A waiter that was woken during the poll found the load taken, and went to sleep again. Without a
                // second wake-up it would depend on this waiter being polled.
                if flight.wakers.woken.load(Ordering::SeqCst) {
                    flight.wakers.wake_all();
                }
                Poll::Pending
            }
            Ok(Poll::Ready(outcomes)) => {
                let outcome = outcomes.get(*index).cloned();
                *lock(&flight.state) = FlightState::Done(outcomes);
                flight.wakers.wake_all();
                Poll::Ready(outcome)
            }
            Err(_panic) => {
                *lock(&flight.state) = FlightState::Panicked;
                flight.wakers.wake_all();
                // A future that panicked may panic again when it is dropped.
                drop(catch_unwind(AssertUnwindSafe(|| drop(load))));
                Poll::Ready(None)
            }
        }
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        // Or the wakers of readers who gave up would pile up during a long load.
        lock(&self.flight.wakers.by_waiter).remove(&self.number);
    }
}
