//! A store in memory, for tests and examples.
//!
//! It fulfils the contract except for durability: the data is gone when the last clone is dropped. It does no I/O and
//! never fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{Epoch, JournalId, Key, Seq};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, OwnerStatus, Progress, Store, StoreError, Tenure, Versioned};

/// A store in memory. Clones share the data.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<MemoryState>>);

#[derive(Debug, Default)]
struct MemoryState {
    data: BTreeMap<Key, Versioned>,
    tenure: Tenure,
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
    fn claim(&mut self, journal: Option<JournalId>) -> Tenure {
        let epoch = Epoch(self.tenure.epoch.0.saturating_add(1));
        self.tenure = Tenure { epoch, journal, ..self.tenure };
        (self.renewals, self.ended) = (self.renewals + 1, false);
        self.tenure
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        // Before anything else: a fenced owner must not learn that its batch was applied.
        if batch.epoch < self.tenure.epoch && Safeguard::EpochFence.holds() {
            return Err(StoreError::Fenced { current: self.tenure.epoch });
        }
        let watermark: Seq = self.tenure.progress.applied;
        // A repetition of a batch that was applied, although its sender got an error or no answer.
        if batch.progress.applied <= watermark && Safeguard::ApplyOnce.holds() {
            return Ok(());
        }
        // A doubtful batch may come again with more records; those at or below the watermark took effect the first
        // time.
        for op in batch.ops.iter().filter(|op| op.seq > watermark || !Safeguard::ApplyOnce.holds()) {
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
        self.tenure.progress = batch.progress;
        self.history.push(batch.progress);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async { Ok(self.state().tenure) })
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async move { Ok(self.state().claim(journal)) })
    }

    fn renew(&self, epoch: Epoch, ends: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut state = self.state();
            // An old owner that ends must not mark the tenure of its successor as free.
            if epoch < state.tenure.epoch {
                return Err(StoreError::Fenced { current: state.tenure.epoch });
            }
            (state.renewals, state.ended) = (state.renewals + 1, ends);
            Ok(())
        })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async {
            let state = self.state();
            Ok(match state.tenure.epoch {
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
