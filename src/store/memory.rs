//! A store that lives in memory, for tests and examples.
//!
//! It keeps the contract, durability excepted: its clones share one state, which ends with the last of them.
//! It does no I/O and never fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{Epoch, JournalId, Key, Seq};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, OwnerStatus, Progress, Store, StoreError, Tenure, Versioned};

/// A store in memory; clones share what it holds.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    data: BTreeMap<Key, Versioned>,
    tenure: Tenure,
    /// How often the owner has said that it lives, and whether it has said that it ended.
    renewals: u64,
    ended: bool,
    history: Vec<Progress>,
}

impl MemoryStore {
    /// An empty store that nobody has claimed.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// A copy of all it holds.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Key, Versioned> {
        self.state().data.clone()
    }

    /// How many batches changed it. Fenced batches and repetitions do not count.
    #[must_use]
    pub fn applies(&self) -> usize {
        self.state().history.len()
    }

    /// The progress after each batch that changed it, in order. Grows for as long as the store lives.
    #[must_use]
    pub fn history(&self) -> Vec<Progress> {
        self.state().history.clone()
    }

    /// The state. A panic under the lock cannot have left it half changed: nothing under it can panic midway.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn claim(&mut self, journal: Option<JournalId>) -> Tenure {
        let epoch = Epoch(self.tenure.epoch.0.saturating_add(1));
        self.tenure = Tenure { epoch, journal, ..self.tenure };
        (self.renewals, self.ended) = (self.renewals + 1, false);
        self.tenure
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.epoch < self.tenure.epoch && Safeguard::EpochFence.holds() {
            return Err(StoreError::Fenced { current: self.tenure.epoch });
        }
        let watermark: Seq = self.tenure.progress.applied;
        if batch.progress.applied <= watermark && Safeguard::ApplyOnce.holds() {
            return Ok(());
        }
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
