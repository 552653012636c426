//! What the embedded stores share: threads that load, the fence, the watermark, and the end after a failure.
//!
//! Fencing is a check under a mutex. That suffices, because one process at a time can hold the directory's
//! lock, within it one store with its clones, and all of these share the one mutex, which is held from
//! the check until the batch is durable. Who does not hold the mutex cannot write.
//!
//! A failure while something is being made true ends the store for good: every later call is
//! [`StoreError::Fatal`]. A failed sync must not be repeated (the kernel marks the pages clean), and the databases
//! themselves refuse all writes after a failed one, a full disk included. Reading stops too, because what is in
//! memory may not be on the disk. Opening the store again reads what the disk has.
//!
//! A batch is applied on the thread that asks for it, which is the layer's flusher's and may block: two changes of
//! threads cost a write-through more than its sync.
//!
//! Loads run on threads of the store. What a database has in memory takes less than a microsecond on the
//! caller's thread and eight this way; but nobody can know beforehand, and a load that misses reads the disk, while
//! one that meets a batch may wait for it. The layer's own memory is in front of this and answers what is hot.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, JournalId, Key};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, Store, StoreError, Tenure, Versioned};
use crate::store::worker::{Workers, caught};

/// Loads may run side by side.
const LOAD_THREADS: usize = 2;

/// A database under an embedded store.
pub(crate) trait Database: Send + Sync + 'static {
    /// What only the writer may touch.
    type Pen: Send + 'static;

    /// Loads one value, beside loads and a write at work.
    ///
    /// # Errors
    /// [`StoreError::Transient`] or [`StoreError::Fatal`]; neither ends the store.
    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError>;

    /// Makes the changes and the tenure true, together and durably. There is one change per key, in the order of keys.
    ///
    /// # Errors
    /// [`StoreError::Fatal`], which ends the store.
    fn write(&self, pen: &mut Self::Pen, changes: &[&Op], tenure: &Tenure) -> Result<(), StoreError>;

    /// Lets go of the files. Called once, with nobody else at work; all that was acknowledged is durable by then.
    fn close(&mut self, pen: &mut Self::Pen);
}

/// A store on such a database. Clones share it; dropping the last one runs to their end the calls that were begun,
/// joins the threads and closes the database.
pub(crate) struct Embedded<D: Database>(Arc<Handle<D>>);

/// The workers come first, so that they have ended when the database closes.
struct Handle<D: Database> {
    workers: Workers,
    shared: Arc<Shared<D>>,
}

/// What the threads share.
pub(crate) struct Shared<D: Database> {
    pub(crate) database: D,
    pub(crate) state: Mutex<State<D>>,
    /// Why the store ended, if it did.
    failed: OnceLock<Error>,
}

/// What only its holder may change, on the disk and here.
pub(crate) struct State<D: Database> {
    /// As it is on the disk.
    tenure: Tenure,
    pub(crate) pen: D::Pen,
}

impl<D: Database> Clone for Embedded<D> {
    fn clone(&self) -> Embedded<D> {
        Embedded(Arc::clone(&self.0))
    }
}

impl<D: Database> Embedded<D> {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses one.
    pub(crate) fn start(database: D, pen: D::Pen, tenure: Tenure) -> Result<Embedded<D>> {
        let state = Mutex::new(State { tenure, pen });
        let shared = Arc::new(Shared { database, state, failed: OnceLock::new() });
        Ok(Embedded(Arc::new(Handle { workers: Workers::start("forebay-load", LOAD_THREADS)?, shared })))
    }

    /// Why the store ended, if it did.
    pub(crate) fn failed(&self) -> Option<&Error> {
        self.0.shared.failed.get()
    }

    /// For tests that look below the contract.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared<D>> {
        &self.0.shared
    }
}

impl<D: Database> Store for Embedded<D> {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        Box::pin(self.0.workers.run(move || shared.with_state(|_, state| Ok(state.tenure))))
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        Box::pin(
            self.0.workers.run(move || shared.with_state(|database, state| claim(database, state, journal))),
        )
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        let key = key.clone();
        Box::pin(self.0.workers.run(move || shared.load(&key)))
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        let keys = keys.to_vec();
        Box::pin(self.0.workers.run(move || keys.iter().map(|key| shared.load(key)).collect()))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            caught(|| self.0.shared.with_state(|database, state| apply(database, state, batch)))
        })
    }
}

/// Implements [`Store`] and `Debug` for a public type around an [`Embedded`], and nothing of its own.
macro_rules! embedded_store {
    ($store:ident) => {
        impl std::fmt::Debug for $store {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($store)).field("failed", &self.0.failed()).finish_non_exhaustive()
            }
        }

        impl $crate::store::contract::Store for $store {
            fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
                self.0.tenure()
            }

            fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
                self.0.claim(journal)
            }

            fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
                self.0.load(key)
            }

            fn load_many<'a>(
                &'a self,
                keys: &'a [Key],
            ) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
                self.0.load_many(keys)
            }

            fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
                self.0.apply(batch)
            }
        }
    };
}
pub(crate) use embedded_store;

impl<D: Database> Shared<D> {
    /// The database, unless the store has ended.
    pub(crate) fn usable(&self) -> Result<&D, StoreError> {
        if self.state.is_poisoned() {
            self.failed
                .get_or_init(|| Error::new(ErrorKind::StoreFailed, "a call of the store panicked midway"));
        }
        match self.failed.get() {
            None => Ok(&self.database),
            Some(error) => {
                let context = "the store failed earlier and must be opened again";
                Err(StoreError::Fatal(error.clone().wrap(ErrorKind::StoreFailed, context)))
            }
        }
    }

    /// Runs what reads or changes the state, alone. A fatal outcome, a panic included, ends the store.
    pub(crate) fn with_state<T>(
        &self,
        work: impl FnOnce(&D, &mut State<D>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // The look at `failed` comes after the lock, so that nobody who waited for it writes after a failure.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(self.usable()?, &mut state);
        if let Err(StoreError::Fatal(error)) = &result {
            self.failed.get_or_init(|| error.clone());
        }
        result
    }

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.usable()?.load(key)
    }
}

impl<D: Database> Drop for Shared<D> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.database.close(&mut state.pen);
    }
}

fn claim<D: Database>(
    database: &D,
    state: &mut State<D>,
    journal: Option<JournalId>,
) -> Result<Tenure, StoreError> {
    let epoch = Epoch(state.tenure.epoch.0.saturating_add(1));
    let claimed = Tenure { epoch, journal, ..state.tenure };
    database.write(&mut state.pen, &[], &claimed)?;
    state.tenure = claimed;
    Ok(claimed)
}

fn apply<D: Database>(database: &D, state: &mut State<D>, batch: &Batch) -> Result<(), StoreError> {
    let held = state.tenure;
    if batch.epoch < held.epoch && Safeguard::EpochFence.holds() {
        return Err(StoreError::Fenced { current: held.epoch });
    }
    let watermark = held.progress.applied;
    if batch.progress.applied <= watermark {
        return Ok(());
    }
    // The last change of a key wins, and only that one is written.
    let mut changes: Vec<&Op> = batch.ops.iter().filter(|op| op.seq > watermark).collect();
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes.dedup_by(|later, kept| {
        let is_same = later.key == kept.key;
        if is_same {
            *kept = *later;
        }
        is_same
    });
    if !Safeguard::WatermarkInTransaction.holds() {
        database.write(&mut state.pen, &std::mem::take(&mut changes), &held)?;
    }
    let applied = Tenure { progress: batch.progress, ..held };
    database.write(&mut state.pen, &changes, &applied)?;
    state.tenure = applied;
    Ok(())
}
