//! A store that goes back under a running layer, as in the failover to a standby that had not received everything: the
//! layer stops and says so, and never applies behind a hole. P14.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::disk::CrashPolicy;
use forebay::store::{Batch, BoxFuture, Claim, OwnerStatus, Standing, Store, StoreError, Tenure, Versioned};
use forebay::testkit::FlakyStore;
use forebay::{Cache, ErrorKind, Forebay, HealthState, Key, MemoryStore, Seq, WritePolicy};

use crate::support::{Layer, claimed, stored};

/// A server with a standby: another store answers under its name.
#[derive(Clone)]
struct Failover(Arc<Mutex<MemoryStore>>);

impl Failover {
    fn to(store: &MemoryStore) -> Failover {
        Failover(Arc::new(Mutex::new(store.clone())))
    }

    fn fail_over(&self, standby: &MemoryStore) {
        *self.0.lock().unwrap() = standby.clone();
    }

    fn store(&self) -> MemoryStore {
        self.0.lock().unwrap().clone()
    }
}

impl Store for Failover {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async { self.store().standing().await })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move { self.store().claim(claim).await })
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        Box::pin(async move { self.store().renew(tenure, ends).await })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async { self.store().owner_status().await })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { self.store().load(key).await })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async { self.store().load_many(keys).await })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { self.store().apply(batch).await })
    }
}

/// A layer whose store can fail over, and a cache of it.
async fn opened(layer: &Layer, renew_interval: Duration) -> (Failover, Forebay, Cache<u64, u64>) {
    let store = Failover::to(&layer.store);
    let builder = layer.builder_on(store.clone()).renew_interval(renew_interval);
    let bay = builder.retain_applied_for(Duration::from_secs(3600)).open().await.unwrap();
    let cache = bay.cache("n").open().unwrap();
    (store, bay, cache)
}

async fn put_all(cache: &Cache<u64, u64>, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        cache.put(&n, n).await.unwrap();
    }
}

/// 150 writes were applied, the store went back to 100, and ten more went in: the store held 1 to 100 and 151 to 160,
/// and the layer was healthy.
#[tokio::test]
async fn nothing_is_applied_behind_a_hole() {
    let layer = Layer::new();
    let (store, bay, cache) = opened(&layer, Duration::from_secs(3600)).await;
    put_all(&cache, 1..=100).await;
    bay.flush().await.unwrap();
    let standby = layer.store.copy();
    put_all(&cache, 101..=150).await;
    bay.flush().await.unwrap();
    store.fail_over(&standby);
    put_all(&cache, 151..=160).await;
    let error = bay.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WentBack);
    assert!(format!("{error:#}").contains("went back to record 100"), "{error:#}");
    let health = bay.health();
    assert_eq!((health.state, health.error.unwrap().kind()), (HealthState::Failed, ErrorKind::WentBack));
    for policy in [WritePolicy::Behind, WritePolicy::Through, WritePolicy::Around] {
        let refused = cache.put_with(&1, 0, policy).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WentBack, "{policy:?}: {refused}");
    }
    assert_eq!(standby.snapshot().len(), 100, "nothing was applied behind the hole");
    // What the journal has, the next opening feeds to the standby.
    drop((bay, cache));
    let bay = layer.builder_on(store).open().await.unwrap();
    bay.flush().await.unwrap();
    for n in 1..=160 {
        assert_eq!(stored::<u64, u64>(&standby, "n", &n).await, Some((n, Seq::new(n))));
    }
}

#[tokio::test]
async fn an_owner_that_writes_nothing_is_told_by_its_heartbeat() {
    let layer = Layer::new();
    let (store, bay, cache) = opened(&layer, Duration::from_millis(1)).await;
    put_all(&cache, 1..=10).await;
    bay.flush().await.unwrap();
    let standby = layer.store.copy();
    put_all(&cache, 11..=20).await;
    bay.flush().await.unwrap();
    store.fail_over(&standby);
    // Ends when the state does: the heartbeat is the only one that can have told it.
    let error = bay.wait_applied(Seq::new(21)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WentBack);
    assert_eq!(bay.health().state, HealthState::Failed);
}

/// The rightful owner was told that a newer owner had fenced it.
#[tokio::test]
async fn an_owner_whose_claim_was_lost_is_told_that_and_not_that_it_was_fenced() {
    for idle in [false, true] {
        let layer = Layer::new();
        let standby = after_a_first_owner(&layer).await.store;
        let renew_interval = if idle { Duration::from_millis(1) } else { Duration::from_secs(3600) };
        let (store, bay, cache) = opened(&layer, renew_interval).await;
        store.fail_over(&standby);
        let error = if idle {
            bay.wait_applied(Seq::new(11)).await.unwrap_err()
        } else {
            put_all(&cache, 11..=11).await;
            bay.flush().await.unwrap_err()
        };
        assert_eq!(error.kind(), ErrorKind::WentBack, "{error}");
        assert_eq!(bay.health().state, HealthState::Failed);
        assert_eq!(standby.snapshot().len(), 10);
    }
}

/// Lets a first owner write ten records and close. Returns a copy of the layer at that point.
async fn after_a_first_owner(layer: &Layer) -> Layer {
    let bay = layer.open().await;
    let cache: Cache<u64, u64> = bay.cache("n").open().unwrap();
    put_all(&cache, 1..=10).await;
    bay.close().await.unwrap();
    Layer { disk: layer.disk.crash(CrashPolicy::ProcessKilled), store: layer.store.copy() }
}

/// The standby had not received the claim either, so the next owner got the same epoch.
#[tokio::test]
async fn an_owner_of_the_same_epoch_fences_one_whose_claim_was_lost() {
    let layer = Layer::new();
    let standby = layer.store.copy();
    let (store, bay, cache) = opened(&layer, Duration::from_secs(3600)).await;
    let other = claimed(&standby).await;
    assert_eq!(layer.store.standing().await.unwrap().tenure.epoch, other.tenure.epoch);
    store.fail_over(&standby);
    put_all(&cache, 1..=1).await;
    assert_eq!(bay.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert!(standby.snapshot().is_empty());
}

/// P9: the same with a batch under way, and a successor that has a copy of the journal: the two have one epoch and give
/// the same numbers, and only the identity of the tenure tells them apart.
#[tokio::test]
async fn of_two_owners_of_one_epoch_and_the_same_numbers_the_older_one_changes_nothing() {
    let layer = Layer::new();
    let standby = after_a_first_owner(&layer).await;
    let store = Failover::to(&layer.store);
    let flaky = FlakyStore::new(store.clone());
    let older =
        layer.builder_on(flaky.clone()).renew_interval(Duration::from_secs(3600)).open().await.unwrap();
    let cache: Cache<u64, u64> = older.cache("n").open().unwrap();
    flaky.stall();
    put_all(&cache, 11..=12).await;
    flaky.wait_stalled(1).await;
    store.fail_over(&standby.store);
    let newer = standby.builder_on(store).open().await.unwrap();
    assert_eq!(newer.health().epoch, older.health().epoch);
    let taken: Cache<u64, u64> = newer.cache("n").open().unwrap();
    assert_eq!(taken.put(&20, 20).await.unwrap().seq(), Seq::new(11));
    newer.flush().await.unwrap();
    let content = (standby.store.standing().await.unwrap(), standby.store.snapshot());
    flaky.release();
    assert_eq!(older.flush().await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(older.health().state, HealthState::Fenced);
    assert_eq!((standby.store.standing().await.unwrap(), standby.store.snapshot()), content);
    assert_eq!(taken.put(&21, 21).await.unwrap().seq(), Seq::new(12));
    newer.flush().await.unwrap();
}
