//! A store that keeps every op it was sent, can be copied with all it holds, and rejects what it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay::store::{Batch, BoxFuture, Claim, Op, Placement, Standing, Store, StoreError, Versioned};
use forebay::{Error, ErrorKind, Key};

/// The store; clones share what it holds.
#[derive(Clone, Default)]
pub struct HistoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Called before and after each batch that changes something.
    watcher: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

#[derive(Clone, Default)]
struct State {
    data: BTreeMap<Key, Versioned>,
    standing: Standing,
    ops: Vec<Op>,
    rejected: BTreeSet<Key>,
}

impl HistoryStore {
    /// A store of its own with the same content: what a crash at this moment leaves of a durable store.
    pub fn copy(&self) -> HistoryStore {
        let state = self.state().clone();
        HistoryStore(Arc::new(Shared { state: Mutex::new(state), watcher: Mutex::default() }))
    }

    /// Returns its content.
    pub fn data(&self) -> BTreeMap<Key, Versioned> {
        self.state().data.clone()
    }

    /// Every op that took effect, in order.
    pub fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    /// Rejects every batch with one of these keys, and no other.
    pub fn reject(&self, keys: impl IntoIterator<Item = Key>) {
        self.state().rejected = keys.into_iter().collect();
    }

    /// Calls `watcher` before and after each batch that takes effect.
    pub fn watch(&self, watcher: impl FnMut() + Send + 'static) {
        *self.0.watcher.lock().unwrap() = Some(Box::new(watcher));
    }

    pub fn unwatch(&self) {
        *self.0.watcher.lock().unwrap() = None;
    }

    fn watched(&self) {
        if let Some(watcher) = &mut *self.0.watcher.lock().unwrap() {
            watcher();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// True if the batch is to take effect.
    fn accepts(&self, batch: &Batch) -> Result<bool, StoreError> {
        if self.standing.place(batch)? == Placement::Repeated {
            return Ok(false);
        }
        match batch.ops.iter().find(|op| self.rejected.contains(&op.key)) {
            Some(op) => {
                let error = Error::new(ErrorKind::Rejected, "this key is not taken");
                Err(StoreError::Rejected { seq: op.seq, error })
            }
            None => Ok(true),
        }
    }

    fn apply(&mut self, batch: &Batch) {
        for op in self.standing.unapplied(batch) {
            match &op.value {
                Some(value) => {
                    let stored = Versioned { value: value.clone(), version: op.seq };
                    self.data.insert(op.key.clone(), stored);
                }
                None => drop(self.data.remove(&op.key)),
            }
            self.ops.push(op.clone());
        }
        self.standing = self.standing.after(batch);
    }
}

impl Store for HistoryStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { Ok(self.state().standing) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            let mut state = self.state();
            let before = state.standing;
            state.standing = before.claimed(claim)?;
            Ok(before)
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
        Box::pin(async {
            if !self.state().accepts(batch)? {
                return Ok(());
            }
            self.watched();
            self.state().apply(batch);
            self.watched();
            Ok(())
        })
    }
}
