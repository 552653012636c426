//! The store behind what is measured: one that costs nothing.

use forebay::Key;
use forebay::store::{Batch, BoxFuture, Claim, Placement, Standing, Store, StoreError, Versioned};

/// A store that takes everything at once and keeps nothing.
#[derive(Default)]
pub(crate) struct Forgetful(std::sync::Mutex<Standing>);

impl Forgetful {
    fn standing_now(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Store for Forgetful {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { Ok(*self.standing_now()) })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            let mut standing = self.standing_now();
            let before = *standing;
            *standing = before.claimed(claim)?;
            Ok(before)
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
            let mut standing = self.standing_now();
            if standing.place(batch)? == Placement::Next {
                *standing = standing.after(batch);
            }
            Ok(())
        })
    }
}
