//! One load per key at a time.
//!
//! A flight carries the mark at which it began. A reader joins it only if nothing has moved since, so a read
//! that begins after a write or an invalidation never joins an older load (Facebook's memcache leases, NSDI
//! 2013, settle the same race with tokens). A flight whose reader is cancelled or panics releases those who
//! wait; each of them tries again, and one of them loads.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use crate::memory::fence::Mark;
use crate::safeguard::Safeguard;
use crate::seam::sync::{Mutex, MutexGuard};

/// The loads of one cache that are under way.
pub struct Flights<K, T> {
    flights: Mutex<HashMap<K, Arc<Flight<T>>>>,
}

struct Flight<T> {
    mark: Mark,
    /// `None` until it has landed; closed without a value if it was abandoned.
    outcome: watch::Receiver<Option<T>>,
}

/// What a reader is to do about an absent key.
pub enum Turn<'a, K: Hash + Eq, T> {
    /// Load it, and land.
    Lead(Lead<'a, K, T>),
    /// Somebody loads it; wait.
    Join(Join<T>),
}

/// The duty to load. Dropping it without landing releases those who wait.
pub struct Lead<'a, K: Hash + Eq, T> {
    flights: &'a Flights<K, T>,
    key: K,
    flight: Arc<Flight<T>>,
    outcome: watch::Sender<Option<T>>,
}

/// A place on somebody else's flight.
pub struct Join<T>(watch::Receiver<Option<T>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights { flights: Mutex::new(HashMap::new()) }
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    /// Joins the flight of `key` that began where the fences stand now, or begins one.
    pub fn board(&self, key: &K, mark: &Mark) -> Turn<'_, K, T> {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(key)
            && (flight.mark == *mark || !Safeguard::JoinNoOlderLoad.holds())
        {
            return Turn::Join(Join(flight.outcome.clone()));
        }
        let (sender, outcome) = watch::channel(None);
        let flight = Arc::new(Flight { mark: *mark, outcome });
        flights.insert(key.clone(), Arc::clone(&flight));
        drop(flights);
        Turn::Lead(Lead { flights: self, key: key.clone(), flight, outcome: sender })
    }
}

impl<K: Hash + Eq, T> Flights<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<T>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq, T> Lead<'_, K, T> {
    /// Ends the flight with its outcome.
    pub fn land(self, outcome: T) {
        self.outcome.send_replace(Some(outcome));
    }
}

impl<K: Hash + Eq, T> Drop for Lead<'_, K, T> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // A newer flight may have taken the place.
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.remove(&self.key);
        }
    }
}

impl<T: Clone> Join<T> {
    /// Waits for the outcome; `None` if the flight was abandoned.
    pub async fn outcome(mut self) -> Option<T> {
        let landed = self.0.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::fence::Fences;

    #[tokio::test]
    async fn a_reader_joins_only_what_began_where_the_fences_stand_now() {
        let (flights, fences) = (Flights::<u32, &str>::default(), Fences::default());
        let mark = fences.mark(1);
        let Turn::Lead(old) = flights.board(&1, &mark) else { panic!("nobody loads yet") };
        let Turn::Join(joined) = flights.board(&1, &mark) else { panic!("somebody loads") };
        fences.change(1, || {});
        let Turn::Lead(new) = flights.board(&1, &fences.mark(1)) else {
            panic!("the flight is too old to join")
        };
        old.land("old");
        assert_eq!(joined.outcome().await, Some("old"));
        let Turn::Join(joined) = flights.board(&1, &fences.mark(1)) else {
            panic!("the new flight is still up")
        };
        new.land("new");
        assert_eq!(joined.outcome().await, Some("new"));
    }

    #[tokio::test]
    async fn an_abandoned_flight_releases_those_who_wait() {
        let (flights, fences) = (Flights::<u32, &str>::default(), Fences::default());
        let mark = fences.mark(1);
        let Turn::Lead(lead) = flights.board(&1, &mark) else { panic!("nobody loads yet") };
        let Turn::Join(joined) = flights.board(&1, &mark) else { panic!("somebody loads") };
        drop(lead);
        assert_eq!(joined.outcome().await, None);
        assert!(matches!(flights.board(&1, &mark), Turn::Lead(_)));
    }
}
