//! A store that refuses the applies that a test wants refused.

use forebay::Key;
use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};

/// Passes to another store whatever it does not refuse.
#[derive(Clone)]
pub struct Refusing<S, F> {
    store: S,
    refuse: F,
}

impl<S: Store, F: Fn(&Batch) -> Result<(), StoreError> + Send + Sync + 'static> Refusing<S, F> {
    pub fn new(store: S, refuse: F) -> Refusing<S, F> {
        Refusing { store, refuse }
    }
}

impl<S: Store, F: Fn(&Batch) -> Result<(), StoreError> + Send + Sync + 'static> Store for Refusing<S, F> {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.store.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.store.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.store.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.store.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        match (self.refuse)(batch) {
            Ok(()) => self.store.apply(batch),
            Err(refused) => Box::pin(async move { Err(refused) }),
        }
    }
}
