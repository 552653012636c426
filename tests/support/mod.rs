//! Shared by the programs of tests: a layer on a simulated disk, a store that is stopped by hand, and helpers.

#![allow(dead_code, unreachable_pub, reason = "each program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "these are tests")]

pub mod budget;
pub mod child;
pub mod held_loads;
pub mod order;
pub mod refusing;
pub mod simulated_build;
pub mod stores;
pub mod watchdog;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use forebay::disk::{Disk, SimDisk};
use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};
use forebay::{
    Bincode, Builder, Codec, Error, ErrorKind, Forebay, JournalOptions, Key, MemoryStore, NamespaceName, Seq,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::support::refusing::Refusing;

/// A layer's disk and store, which outlive the layers that are opened on them.
pub struct Layer {
    pub disk: SimDisk,
    pub store: MemoryStore,
}

impl Layer {
    pub fn new() -> Layer {
        Layer { disk: SimDisk::new(), store: MemoryStore::new() }
    }

    pub fn builder(&self) -> Builder {
        self.builder_on(self.store.clone())
    }

    pub fn builder_on(&self, store: impl Store) -> Builder {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let mut options = JournalOptions::default();
        options.segment_bytes = 64 << 10;
        Forebay::builder(store)
            .journal("/journal")
            .journal_options(options)
            // Most tests that look at the journal want it as short as it can be.
            .retain_applied_for(std::time::Duration::ZERO)
            .retry_backoff(std::time::Duration::from_millis(1), std::time::Duration::from_millis(1))
            .disk(disk)
    }

    pub async fn open(&self) -> Forebay {
        self.builder().open().await.unwrap()
    }
}

/// Claims a store that is fed from no journal, and returns the point at which it stands then.
pub async fn claimed(store: &dyn Store) -> Standing {
    Claim::new(None).unwrap().of(store).await.unwrap()
}

/// A copy of a store for a crash's image of the disk that its journal is on: nobody had claimed the store before there
/// was a journal.
pub fn store_beside(disk: &SimDisk, store: &MemoryStore) -> MemoryStore {
    let files = disk.files(std::path::Path::new("/journal"));
    let is_segment = |name: &String| name.ends_with(".seg") && !name.starts_with("spare");
    if files.keys().any(is_segment) { store.copy() } else { MemoryStore::new() }
}

/// The stored key of a cache's key.
pub fn key_of<K: Serialize + 'static>(namespace: &str, key: &K) -> Key {
    let mut encoded = Vec::new();
    Bincode::encode(key, 1 << 20, &mut encoded).unwrap();
    Key::new(&NamespaceName::parse(namespace).unwrap(), &encoded).unwrap()
}

/// Reads a cache's key from the store, past the layer.
pub async fn stored<K: Serialize + 'static, V: DeserializeOwned + 'static>(
    store: &impl Store,
    namespace: &str,
    key: &K,
) -> Option<(V, Seq)> {
    let found = store.load(&key_of(namespace, key)).await.unwrap()?;
    Some((Bincode::decode(&found.value[2..]).unwrap(), found.version))
}

/// Polls once; `None` if the future has to wait.
pub async fn poll_once<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A store that applies when it is allowed to, and says what it was sent.
#[derive(Clone)]
pub struct GatedStore(Arc<Gates>);

struct Gates {
    store: MemoryStore,
    /// The number of applies that may still go through.
    allowed: watch::Sender<u64>,
    /// The number of applies that have been asked for.
    asked: watch::Sender<u64>,
    rejected: Mutex<HashSet<Key>>,
    applied: Mutex<Vec<Batch>>,
    apply_first: bool,
}

impl GatedStore {
    fn make(store: &MemoryStore, allowed: u64, apply_first: bool) -> GatedStore {
        GatedStore(Arc::new(Gates {
            store: store.clone(),
            allowed: watch::Sender::new(allowed),
            asked: watch::Sender::new(0),
            rejected: Mutex::default(),
            applied: Mutex::default(),
            apply_first,
        }))
    }

    pub fn new(store: &MemoryStore) -> GatedStore {
        GatedStore::make(store, u64::MAX, false)
    }

    pub fn stalled(store: &MemoryStore) -> GatedStore {
        GatedStore::make(store, 0, false)
    }

    /// Applies at once, but does not say so: what a store looks like between its write and its sync.
    pub fn stalled_after_applying(store: &MemoryStore) -> GatedStore {
        GatedStore::make(store, 0, true)
    }

    pub fn stall(&self) {
        self.0.allowed.send_replace(0);
    }

    pub fn release(&self) {
        self.0.allowed.send_replace(u64::MAX);
    }

    pub fn release_one(&self) {
        self.0.allowed.send_modify(|allowed| *allowed += 1);
    }

    /// Rejects every batch that changes this key.
    pub fn reject(&self, key: Key) {
        self.0.rejected.lock().unwrap().insert(key);
    }

    pub fn accept_all(&self) {
        self.0.rejected.lock().unwrap().clear();
    }

    pub async fn wait_for_applies(&self, count: u64) {
        self.0.asked.subscribe().wait_for(|asked| *asked >= count).await.unwrap();
    }

    /// The batches that the store took, those without ops left out.
    pub fn applied(&self) -> Vec<Batch> {
        self.0.applied.lock().unwrap().clone()
    }
}

impl Store for GatedStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.0.store.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.0.store.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.0.store.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.0.store.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let refused = {
                let rejected = self.0.rejected.lock().unwrap();
                batch.ops.iter().find(|op| rejected.contains(&op.key)).map(|op| op.seq)
            };
            if let Some(seq) = refused {
                let error = Error::new(ErrorKind::Rejected, "this key is not taken");
                return Err(StoreError::Rejected { seq, error });
            }
            if self.0.apply_first {
                self.0.store.apply(batch).await?;
            }
            self.0.asked.send_modify(|asked| *asked += 1);
            self.0.allowed.subscribe().wait_for(|allowed| *allowed > 0).await.unwrap();
            self.0.allowed.send_if_modified(|allowed| {
                *allowed = if *allowed == u64::MAX { u64::MAX } else { *allowed - 1 };
                false
            });
            self.0.store.apply(batch).await?;
            if !batch.ops.is_empty() {
                self.0.applied.lock().unwrap().push(batch.clone());
            }
            Ok(())
        })
    }
}

/// A store whose first applies fail in a way that passes, and how many have.
pub fn failing(store: &MemoryStore, failures_max: u64) -> (impl Store, watch::Receiver<u64>) {
    let (failures, seen) = watch::channel(0);
    let refuse = move |_: &Batch| {
        if !failures.send_if_modified(|failed| (*failed < failures_max).then(|| *failed += 1).is_some()) {
            return Ok(());
        }
        Err(StoreError::Transient(Error::new(ErrorKind::Io, "the store is out of order")))
    };
    (Refusing::new(store.clone(), refuse), seen)
}
