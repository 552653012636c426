//! The store as an owner and as a follower see it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay::seam::simulated;
use forebay::store::{Batch, BoxFuture, Claim, OwnerStatus, Standing, Store, StoreError, Tenure, Versioned};
use forebay::{Epoch, Error, ErrorKind, Key, MemoryStore, Seq};

use crate::harness::plan::Draw;
use crate::harness::world::{CutStore, State, World};

/// The owner's, which also has an ear for its owner's life.
pub struct OwnerStore {
    pub world: World,
    pub tenure: usize,
    pub inner: CutStore,
    pub store: MemoryStore,
    /// The owners that claimed the store, each with its journal.
    pub claims: Claims,
}

/// The journal of each epoch, by the number that the director gave it. The lock is std's, held over no point.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<ClaimsInner>>);

#[derive(Default)]
struct ClaimsInner {
    present: usize,
    journals: Vec<(Epoch, usize)>,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, ClaimsInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes this journal for whoever claims from now on.
    pub fn use_journal(&self, journal: usize) {
        self.lock().present = journal;
    }

    /// The journal of each epoch.
    pub fn journals(&self) -> Vec<(Epoch, usize)> {
        self.lock().journals.clone()
    }
}

impl OwnerStore {
    async fn pass(&self) -> Result<(), StoreError> {
        shuttle::future::yield_now().await;
        match self.world.point(self.tenure) {
            State::Dead => Err(StoreError::Fatal(Error::new(ErrorKind::StoreFailed, "the store is gone"))),
            State::Lives | State::Zombie => Ok(()),
        }
    }
}

impl Store for OwnerStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.inner.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            let before = self.inner.claim(claim).await?;
            let claimed = before.claimed(claim)?;
            let mut claims = self.claims.lock();
            let present = claims.present;
            claims.journals.push((claimed.tenure.epoch, present));
            Ok(before)
        })
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        Box::pin(async move {
            self.pass().await?;
            self.store.renew(tenure, ends).await
        })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        self.store.owner_status()
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.inner.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.inner.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.apply(batch)
    }
}

/// The store as one follower sees it.
#[derive(Clone)]
pub struct Terms(Arc<Mutex<TermsInner>>);

struct TermsInner {
    draw: Draw,
    load_percent: u64,
    slow: Option<Duration>,
    mute: bool,
    failures: u64,
}

impl Terms {
    pub fn new(seed: u64, load_percent: u64, slow: Option<Duration>) -> Terms {
        let (draw, mute, failures) = (Draw(seed), false, 0);
        Terms(Arc::new(Mutex::new(TermsInner { draw, load_percent, slow, mute, failures })))
    }

    fn lock(&self) -> MutexGuard<'_, TermsInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if it does not tell how far the owner has come.
    pub fn mute(&self, mute: bool) {
        self.lock().mute = mute;
    }

    pub fn make_good(&self) {
        let mut terms = self.lock();
        (terms.mute, terms.load_percent, terms.slow) = (false, 0, None);
    }

    pub fn failures(&self) -> u64 {
        self.lock().failures
    }
}

/// A follower's view of the store.
pub struct FollowerStore {
    pub store: MemoryStore,
    pub terms: Terms,
}

impl FollowerStore {
    /// A point at which threads may change, and that may take a while.
    async fn pass(&self) {
        let wait = {
            let mut terms = self.terms.lock();
            let share = terms.draw.below(1000) as f64 / 1000.0;
            let slow = terms.draw.one_in(2);
            terms.slow.filter(|_| slow).map(|longest| longest.mul_f64(share))
        };
        match wait {
            Some(wait) => simulated::sleep(wait).await,
            None => shuttle::future::yield_now().await,
        }
    }

    fn fails(&self, what: &str, fails: impl FnOnce(&mut TermsInner) -> bool) -> Result<(), StoreError> {
        let mut terms = self.terms.lock();
        if !fails(&mut terms) {
            return Ok(());
        }
        terms.failures += 1;
        Err(StoreError::Transient(Error::new(ErrorKind::Transient, what)))
    }

    fn may_load(&self) -> Result<(), StoreError> {
        self.fails("the simulation fails this load", |terms| terms.draw.below(100) < terms.load_percent)
    }
}

fn refused<T>() -> Result<T, StoreError> {
    Err(StoreError::Fatal(Error::new(ErrorKind::StoreFailed, "a follower changes the store")))
}

impl Store for FollowerStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async {
            self.pass().await;
            self.fails("the simulation does not tell this follower", |terms| terms.mute)?;
            let tenure = self.store.standing().await?;
            self.pass().await;
            Ok(tenure)
        })
    }

    fn claim<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async { refused() })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async {
            self.pass().await;
            self.may_load()?;
            let loaded = self.store.load(key).await?;
            self.pass().await;
            Ok(loaded)
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async {
            self.pass().await;
            self.may_load()?;
            let loaded = self.store.load_many(keys).await?;
            self.pass().await;
            Ok(loaded)
        })
    }

    fn apply<'a>(&'a self, _: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { refused() })
    }
}
