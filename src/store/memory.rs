//! A store in memory, for tests and examples.
//!
//! It fulfils the contract except for durability: the data is gone when the last clone is dropped. It does no I/O and
//! never fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{Epoch, Key, Seq, Tenure};
use crate::store::contract::{
    Batch, BoxFuture, Claim, OwnerStatus, Placement, Progress, Standing, Store, StoreError, Versioned,
};

/// A store in memory. Clones share the data.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<MemoryState>>);

#[derive(Clone, Debug, Default)]
struct MemoryState {
    data: BTreeMap<Key, Versioned>,
    standing: Standing,
    /// The number of claims and heartbeats so far.
    renewals: u64,
    /// True once the owner has ended properly.
    ended: bool,
    history: Vec<Progress>,
}

impl MemoryStore {
    /// Makes an empty store that nobody has claimed.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Returns a copy of all data.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Key, Versioned> {
        self.state().data.clone()
    }

    /// Returns a store of its own with the same content and history, as a restored backup has.
    #[must_use]
    pub fn copy(&self) -> MemoryStore {
        let state = self.state();
        MemoryStore(Arc::new(Mutex::new(state.clone())))
    }

    /// Returns how many batches changed the store. Fenced batches and repetitions do not count.
    #[must_use]
    pub fn applies(&self) -> usize {
        self.state().history.len()
    }

    /// Returns the progress after each batch that changed the store, in order. The list grows with every batch.
    #[must_use]
    pub fn history(&self) -> Vec<Progress> {
        self.state().history.clone()
    }

    /// Locks the state. A poisoned lock is taken all the same: nothing under it can panic halfway through a change.
    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryState {
    fn claim(&mut self, claim: &Claim) -> Result<Standing, StoreError> {
        let before = self.standing;
        self.standing = before.claimed(claim)?;
        (self.renewals, self.ended) = (self.renewals + 1, false);
        Ok(before)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.standing.place(batch)? == Placement::Repeated {
            return Ok(());
        }
        for op in self.standing.unapplied(batch) {
            match &op.value {
                Some(value) => {
                    let stored = Versioned { value: value.clone(), version: op.seq };
                    self.data.insert(op.key.clone(), stored);
                }
                None => {
                    self.data.remove(&op.key);
                }
            }
        }
        // Under the same lock as the data, so that no reader sees one without the other.
        self.standing = self.standing.after(batch);
        self.history.push(self.standing.progress);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { Ok(self.state().standing) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move { self.state().claim(claim) })
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        Box::pin(async move {
            let mut state = self.state();
            // An old owner that ends must not mark the tenure of its successor as free.
            state.standing.check_owner(tenure)?;
            (state.renewals, state.ended) = (state.renewals + 1, ends);
            Ok(Some(state.standing.progress.applied))
        })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async {
            let state = self.state();
            Ok(match state.standing.tenure.epoch {
                Epoch(0) => OwnerStatus::Free,
                _ if state.ended => OwnerStatus::Free,
                _ => OwnerStatus::Owned(state.renewals),
            })
        })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { Ok(self.state().data.get(key).cloned()) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async {
            let state = self.state();
            Ok(keys.iter().map(|key| state.data.get(key).cloned()).collect())
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { self.state().apply(batch) })
    }
}
