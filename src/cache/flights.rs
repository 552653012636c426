//! One load per key at a time.
//!
//! A flight carries where it started. A reader joins it only if nothing has moved since, so a read that begins after a
//! write or an invalidation never joins an older load (Facebook's memcache leases, NSDI 2013, settle the same race with
//! tokens); and only if it is young enough for the reader.
//!
//! A flight belongs to all who wait for it, and whoever of them is polled drives it: none of them can hold up the
//! others by not being polled or by going away. When the last one goes away, the load is dropped. If it panics, all of
//! them are told. One flight may load several keys.

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

/// A load that lands with one outcome for each of its keys.
pub type Load<T> = Pin<Box<dyn Future<Output = Vec<T>> + Send>>;

/// The loads of one cache that are under way.
pub struct Flights<K, T> {
    flights: Mutex<HashMap<K, Listed<T>>>,
}

/// Where the flight of a key is found.
struct Listed<T> {
    start: LoadStart,
    flight: Weak<Flight<T>>,
    seat: usize,
}

struct Flight<T> {
    state: Mutex<State<T>>,
    waiting: Arc<Waiting>,
    joined: AtomicU64,
}

enum State<T> {
    /// Its keys are still being collected.
    Boarding,
    /// Nobody polls it.
    Idle(Load<T>),
    /// Somebody polls it.
    Polled,
    /// The outcomes are there.
    Landed(Vec<T>),
    /// There will be none.
    Crashed,
}

/// Who is to be woken when a flight gets on.
#[derive(Default)]
struct Waiting {
    wakers: Mutex<BTreeMap<u64, Waker>>,
    /// Somebody has woken the flight since its poll began.
    woken: AtomicBool,
}

/// What a reader is to do about an absent key.
pub enum Turn<T> {
    /// Its flight loads the key.
    Lead(Join<T>),
    /// Somebody loads it already.
    Join(Join<T>),
}

/// A flight that collects its keys. Dropping it without [`Departure::depart`] releases those who joined.
pub struct Departure<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    flight: Arc<Flight<T>>,
    keys: Vec<K>,
}

/// A place on a flight: a future of its outcome, or of nothing if the load panicked.
pub struct Join<T> {
    flight: Arc<Flight<T>>,
    seat: usize,
    number: u64,
}

/// Takes a flight off the list when its load ends, however it does.
struct Listing<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    flight: Weak<Flight<T>>,
    keys: Vec<K>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights { flights: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, T> Flights<K, T> {
    /// A flight for keys that nobody loads.
    #[must_use]
    pub fn departure(self: &Arc<Self>) -> Departure<K, T> {
        let flight =
            Flight { state: Mutex::new(State::Boarding), waiting: Arc::default(), joined: AtomicU64::new(0) };
        Departure { flights: Arc::clone(self), flight: Arc::new(flight), keys: Vec::new() }
    }
}

impl<K: Hash + Eq + Clone + Send + 'static, T: Send + 'static> Departure<K, T> {
    /// Joins the flight of `key` that began where the fences stand now and that `suits`; or takes the key on this one.
    pub fn board(&mut self, key: &K, start: &LoadStart, suits: impl FnOnce(&LoadStart) -> bool) -> Turn<T> {
        let mut flights = lock(&self.flights.flights);
        if let Some(listed) = flights.get(key)
            && (listed.start.mark == start.mark || !Safeguard::JoinNoOlderLoad.holds())
            && suits(&listed.start)
            && let Some(flight) = listed.flight.upgrade()
        {
            return Turn::Join(Join::new(flight, listed.seat));
        }
        let seat = self.keys.len();
        let flight = Arc::downgrade(&self.flight);
        flights.insert(key.clone(), Listed { start: *start, flight, seat });
        self.keys.push(key.clone());
        Turn::Lead(Join::new(Arc::clone(&self.flight), seat))
    }

    /// Starts the load of the keys that were taken, in their order.
    pub fn depart(mut self, load: impl Future<Output = Vec<T>> + Send + 'static) {
        let keys = mem::take(&mut self.keys);
        let listing =
            Listing { flights: Arc::clone(&self.flights), flight: Arc::downgrade(&self.flight), keys };
        let load: Load<T> = Box::pin(async move {
            let landed = load.await;
            drop(listing);
            landed
        });
        *lock(&self.flight.state) = State::Idle(load);
        self.flight.waiting.wake_all();
    }
}

impl<K: Hash + Eq, T> Drop for Departure<K, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.flight.state);
        if matches!(*state, State::Boarding) {
            *state = State::Crashed;
            drop(state);
            self.flights.strike(&self.keys, &Arc::downgrade(&self.flight));
            self.flight.waiting.wake_all();
        }
    }
}

impl<K: Hash + Eq, T> Flights<K, T> {
    /// Forgets where these keys are loaded, as far as it is still this flight: a newer one may have taken the place.
    fn strike(&self, keys: &[K], flight: &Weak<Flight<T>>) {
        let mut flights = lock(&self.flights);
        for key in keys {
            if flights.get(key).is_some_and(|listed| Weak::ptr_eq(&listed.flight, flight)) {
                flights.remove(key);
            }
        }
    }
}

impl<K: Hash + Eq, T> Drop for Listing<K, T> {
    fn drop(&mut self) {
        self.flights.strike(&self.keys, &self.flight);
    }
}

impl Waiting {
    fn wake_all(&self) {
        let wakers = mem::take(&mut *lock(&self.wakers));
        wakers.into_values().for_each(Waker::wake);
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.wake_all();
    }
}

impl<T> Join<T> {
    fn new(flight: Arc<Flight<T>>, seat: usize) -> Join<T> {
        let number = flight.joined.fetch_add(1, Ordering::SeqCst);
        Join { flight, seat, number }
    }
}

impl<T: Clone> Future for Join<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Join { flight, seat, number } = &*self;
        let mut state = lock(&flight.state);
        match &*state {
            State::Landed(outcomes) => return Poll::Ready(outcomes.get(*seat).cloned()),
            State::Crashed => return Poll::Ready(None),
            State::Boarding | State::Idle(_) | State::Polled => {}
        }
        lock(&flight.waiting.wakers).insert(*number, context.waker().clone());
        let mut load = match mem::replace(&mut *state, State::Polled) {
            State::Idle(load) => load,
            // Who polls it, or makes it depart, wakes this one.
            other => {
                *state = other;
                return Poll::Pending;
            }
        };
        drop(state);
        flight.waiting.woken.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&flight.waiting));
        let polled = catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(&mut Context::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                *lock(&flight.state) = State::Idle(load);
                // Somebody who was woken in between found the flight being polled, and waits: not for this one alone.
                if flight.waiting.woken.load(Ordering::SeqCst) {
                    flight.waiting.wake_all();
                }
                Poll::Pending
            }
            Ok(Poll::Ready(outcomes)) => {
                let outcome = outcomes.get(*seat).cloned();
                *lock(&flight.state) = State::Landed(outcomes);
                flight.waiting.wake_all();
                Poll::Ready(outcome)
            }
            Err(_panic) => {
                *lock(&flight.state) = State::Crashed;
                flight.waiting.wake_all();
                // What a panic left behind may panic again when it is dropped.
                drop(catch_unwind(AssertUnwindSafe(|| drop(load))));
                Poll::Ready(None)
            }
        }
    }
}

impl<T> Drop for Join<T> {
    fn drop(&mut self) {
        lock(&self.flight.waiting.wakers).remove(&self.number);
    }
}
