//! A store that fails at random, by a seed: before it has applied, and after, when nobody can tell.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind};
use crate::ids::{JournalId, Key};
use crate::store::contract::{Atomicity, Batch, BoxFuture, Store, StoreError, Tenure, Versioned};

/// Wraps a store whose applies fail transiently now and then. Clones share one sequence of failures.
#[derive(Clone, Debug)]
pub struct FlakyStore<S> {
    store: S,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    random: Mutex<u64>,
    probability: f64,
    before: AtomicU64,
    after: AtomicU64,
}

impl<S: Store> FlakyStore<S> {
    /// Every apply fails with `probability` (0 to 1): half of the failures before the store was asked, half after it
    /// has applied. The same seed gives the same sequence.
    pub fn random(store: S, seed: u64, probability: f64) -> FlakyStore<S> {
        let state = State {
            random: Mutex::new(seed),
            probability,
            before: AtomicU64::new(0),
            after: AtomicU64::new(0),
        };
        FlakyStore { store, state: Arc::new(state) }
    }

    /// How many applies failed before the store was asked.
    pub fn failed_before(&self) -> u64 {
        self.state.before.load(Ordering::SeqCst)
    }

    /// How many applies failed although the store had applied.
    pub fn failed_after(&self) -> u64 {
        self.state.after.load(Ordering::SeqCst)
    }

    /// The next number from 0 up to 1 (SplitMix64, Steele et al., OOPSLA 2014).
    fn draw(&self) -> f64 {
        let mut state = self.state.random.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 53 bits are what a double holds exactly.
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn out_of_order(when: &str) -> StoreError {
    StoreError::Transient(Error::new(ErrorKind::Transient, format!("made to fail {when} applying")))
}

impl<S: Store> Store for FlakyStore<S> {
    fn atomicity(&self) -> Atomicity {
        self.store.atomicity()
    }

    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        self.store.tenure()
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        self.store.claim(journal)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.store.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.store.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let drawn = self.draw();
            if drawn < self.state.probability / 2.0 {
                self.state.before.fetch_add(1, Ordering::SeqCst);
                return Err(out_of_order("before"));
            }
            self.store.apply(batch).await?;
            if drawn < self.state.probability {
                self.state.after.fetch_add(1, Ordering::SeqCst);
                return Err(out_of_order("after"));
            }
            Ok(())
        })
    }
}
