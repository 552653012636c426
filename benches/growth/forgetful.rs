//! The store behind what is measured: one that costs nothing.

use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Tenure, Versioned};
use forebay::{Epoch, JournalId, Key};

/// A store that takes everything at once and keeps nothing.
#[derive(Default)]
pub(crate) struct Forgetful(std::sync::Mutex<Tenure>);

impl Forgetful {
    fn change(&self, change: impl FnOnce(&mut Tenure)) -> Tenure {
        let mut tenure = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut tenure);
        *tenure
    }
}

impl Store for Forgetful {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { Ok(self.change(|_| {})) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            Ok(self.change(|tenure| {
                tenure.epoch = Epoch::new(tenure.epoch.get() + 1);
                tenure.journal = journal;
            }))
        })
    }

    fn load<'a>(&'a self, _key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async { Ok(vec![None; keys.len()]) })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            self.change(|tenure| tenure.progress = batch.progress);
            Ok(())
        })
    }
}
