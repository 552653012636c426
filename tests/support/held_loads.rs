//! A store whose loads are held, fail, panic and are counted by hand, and which somebody else writes past the layer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use forebay::store::{Batch, BoxFuture, Claim, Op, Standing, Store, StoreError, Versioned};
use forebay::{Bincode, Codec, Error, ErrorKind, Key, MemoryStore, Seq};
use serde::Serialize;
use tokio::sync::watch;

use crate::support::key_of;

/// Its loads take their answer at once and give it when they are let go.
#[derive(Clone)]
pub struct HeldLoads {
    store: MemoryStore,
    begun: Arc<watch::Sender<u64>>,
    open: Arc<watch::Sender<bool>>,
    panics: Arc<watch::Sender<bool>>,
    fails: Arc<watch::Sender<bool>>,
    rejects: Arc<watch::Sender<bool>>,
    /// Changes that others made to the store.
    outside: Arc<Mutex<HashMap<Key, Option<Versioned>>>>,
}

impl HeldLoads {
    pub fn new(store: &MemoryStore) -> HeldLoads {
        HeldLoads {
            store: store.clone(),
            begun: Arc::new(watch::Sender::new(0)),
            open: Arc::new(watch::Sender::new(true)),
            panics: Arc::new(watch::Sender::new(false)),
            fails: Arc::new(watch::Sender::new(false)),
            rejects: Arc::new(watch::Sender::new(false)),
            outside: Arc::default(),
        }
    }

    /// Returns the number of its handles.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.begun)
    }

    pub fn hold(&self) {
        self.open.send_replace(false);
    }

    pub fn let_go(&self) {
        self.open.send_replace(true);
    }

    pub fn panic(&self, panics: bool) {
        self.panics.send_replace(panics);
    }

    pub fn fail(&self, fails: bool) {
        self.fails.send_replace(fails);
    }

    /// Rejects what is applied.
    pub fn reject(&self, rejects: bool) {
        self.rejects.send_replace(rejects);
    }

    /// Returns the number of loads that have begun.
    pub fn loads(&self) -> u64 {
        *self.begun.borrow()
    }

    pub async fn wait_for_loads(&self, count: u64) {
        self.begun.subscribe().wait_for(|begun| *begun >= count).await.unwrap();
    }

    /// Somebody else writes a key of the namespace `n`, or removes it.
    pub fn write_outside(&self, key: u32, value: Option<u64>, version: u64) {
        let value =
            value.map(|value| Versioned { value: encoded(&value).into(), version: Seq::new(version) });
        self.outside.lock().unwrap().insert(key_of("n", &key), value);
    }

    fn taken(&self, key: &Key, stored: Option<Versioned>) -> Result<Option<Versioned>, StoreError> {
        if *self.fails.borrow() {
            return Err(StoreError::Transient(Error::new(ErrorKind::Io, "the source is down")));
        }
        Ok(self.outside.lock().unwrap().get(key).cloned().unwrap_or(stored))
    }

    async fn answer<T>(&self, taken: T) -> T {
        self.begun.send_modify(|begun| *begun += 1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        assert!(!*self.panics.borrow(), "a store's defect");
        taken
    }
}

fn encoded<V: Serialize + 'static>(value: &V) -> Vec<u8> {
    let mut encoded = vec![Bincode::ID, 1];
    Bincode::encode(value, 1 << 10, &mut encoded).unwrap();
    encoded
}

impl Store for HeldLoads {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.store.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.store.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            let taken = self.taken(key, self.store.load(key).await?);
            self.answer(taken).await
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            let stored = self.store.load_many(keys).await?;
            let taken = keys.iter().zip(stored).map(|(key, stored)| self.taken(key, stored)).collect();
            self.answer(taken).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        match batch.ops.first().filter(|_| *self.rejects.borrow()) {
            Some(Op { seq, .. }) => {
                let error = Error::new(ErrorKind::Rejected, "not here");
                Box::pin(async move { Err(StoreError::Rejected { seq: *seq, error }) })
            }
            None => self.store.apply(batch),
        }
    }
}
