//! A store in memory, for tests: everything the contract asks for, but for the durability.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ids::{JournalId, Key, Seq};
use crate::store::contract::{Batch, BoxFuture, Store, StoreError, Tenure, Versioned};

/// A store that forgets when its last handle is dropped. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    values: BTreeMap<Key, Versioned>,
    tenure: Tenure,
    /// The watermark after each batch that changed something.
    watermarks: Vec<Seq>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// All it holds now.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Key, Versioned> {
        self.lock().values.clone()
    }

    /// The watermark after each batch that it took, oldest first.
    #[must_use]
    pub fn watermarks(&self) -> Vec<Seq> {
        self.lock().watermarks.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_now(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut content = self.lock();
        if batch.epoch < content.tenure.epoch {
            return Err(StoreError::Fenced { current: content.tenure.epoch });
        }
        let watermark = content.tenure.progress.applied;
        if batch.progress.applied <= watermark {
            return Ok(());
        }
        for op in batch.ops.iter().filter(|op| op.seq > watermark) {
            match &op.value {
                Some(value) => {
                    let versioned = Versioned { value: value.clone(), version: op.seq };
                    content.values.insert(op.key.clone(), versioned);
                }
                None => drop(content.values.remove(&op.key)),
            }
        }
        content.tenure.progress = batch.progress;
        content.watermarks.push(batch.progress.applied);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async { Ok(self.lock().tenure) })
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async move {
            let mut content = self.lock();
            content.tenure.epoch.0 += 1;
            content.tenure.journal = journal;
            Ok(content.tenure)
        })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move { Ok(self.lock().values.get(key).cloned()) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            let content = self.lock();
            Ok(keys.iter().map(|key| content.values.get(key).cloned()).collect())
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.apply_now(batch) })
    }
}
