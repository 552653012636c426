//! A store that went back while no layer had it open: it is fed again from what the journal has kept, or refused with
//! the numbers that are in neither. P14.

use std::path::Path;
use std::time::Duration;

use forebay::{Builder, Cache, ErrorKind, Forebay, HealthState, MemoryStore, OnRejected, WritePolicy};

use crate::support::{GatedStore, Layer, key_of};

/// A layer that keeps what it has applied.
fn retaining(layer: &Layer, store: MemoryStore) -> Builder {
    layer.builder_on(store).retain_applied_for(Duration::from_secs(3600))
}

async fn put_all(bay: &Forebay, numbers: std::ops::RangeInclusive<u64>) {
    let cache: Cache<u64, u64> = bay.cache("n").open().unwrap();
    for n in numbers {
        // Few keys, so that most records are superseded by later ones.
        cache.put(&(n % 37), n).await.unwrap();
    }
    bay.flush().await.unwrap();
}

/// Opens the layer on an older copy of its store, and asserts that the copy becomes what the store was.
async fn fed_again(layer: &Layer, older: &MemoryStore, until: u64) {
    let before = older.standing_now();
    let bay = retaining(layer, older.clone()).open().await.unwrap();
    let health = bay.health();
    assert!(before < until && health.state == HealthState::Healthy);
    // What was acknowledged is read at once, though the store lacks it still.
    let cache: Cache<u64, u64> = bay.cache("n").open().unwrap();
    for key in 0..37 {
        let newest = (1..=until).rev().find(|n| n % 37 == key);
        assert_eq!(cache.get(&key).await.unwrap(), newest, "key {key}");
    }
    bay.flush().await.unwrap();
    assert_eq!(bay.health().refeeding_until, None);
    assert_eq!(older.snapshot(), layer.store.snapshot());
    bay.close().await.unwrap();
}

trait StandingNow {
    fn standing_now(&self) -> u64;
}

impl StandingNow for MemoryStore {
    fn standing_now(&self) -> u64 {
        self.history().last().map_or(0, |progress| progress.applied.get())
    }
}

#[tokio::test]
async fn a_store_that_went_back_within_its_tenure_is_fed_again() {
    let layer = Layer::new();
    let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
    put_all(&bay, 1..=100).await;
    let older = layer.store.copy();
    put_all(&bay, 101..=150).await;
    bay.close().await.unwrap();
    fed_again(&layer, &older, 150).await;
}

#[tokio::test]
async fn health_shows_up_to_where_a_store_is_fed_again() {
    let layer = Layer::new();
    let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
    put_all(&bay, 1..=10).await;
    let older = layer.store.copy();
    put_all(&bay, 11..=20).await;
    bay.close().await.unwrap();
    let gated = GatedStore::stalled(&older);
    let builder = layer.builder_on(gated.clone()).retain_applied_for(Duration::from_secs(3600));
    let bay = builder.open().await.unwrap();
    assert_eq!(bay.health().refeeding_until.map(|until| until.get()), Some(20));
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(bay.health().refeeding_until, None);
}

#[tokio::test]
async fn a_store_that_went_back_behind_later_claims_is_fed_again() {
    let layer = Layer::new();
    let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
    put_all(&bay, 1..=100).await;
    let older = layer.store.copy();
    put_all(&bay, 101..=120).await;
    bay.close().await.unwrap();
    for round in 0..3 {
        let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
        put_all(&bay, 121 + 10 * round..=130 + 10 * round).await;
        bay.close().await.unwrap();
    }
    fed_again(&layer, &older, 150).await;
    // The copy is the store from now on, and the other one is the older.
    let bay = retaining(&layer, older.clone()).open().await.unwrap();
    put_all(&bay, 151..=160).await;
    bay.close().await.unwrap();
    fed_again(&Layer { disk: layer.disk.clone(), store: older }, &layer.store, 160).await;
}

/// The layer wrote no frame after the last apply, so only the witness of its close tells that the store had come
/// further.
#[tokio::test]
async fn a_write_through_that_only_the_store_had_is_named() {
    let layer = Layer::new();
    let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
    put_all(&bay, 1..=10).await;
    let older = layer.store.copy();
    let through: Cache<u64, u64> = bay.cache("through").write_policy(WritePolicy::Through).open().unwrap();
    through.put(&1, 1).await.unwrap();
    put_all(&bay, 12..=14).await;
    through.put(&1, 2).await.unwrap();
    bay.close().await.unwrap();
    let error = retaining(&layer, older.clone()).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WentBack);
    assert!(
        format!("{error:#}").contains("from record 15 to 10") && format!("{error:#}").ends_with("11, 15"),
        "{error:#}"
    );
    assert_eq!(older.standing_now(), 10, "nothing was written to it");
    retaining(&layer, layer.store.clone()).open().await.expect("the store itself is as good as before");
}

#[tokio::test]
async fn a_store_older_than_what_the_journal_has_kept_is_refused() {
    let layer = Layer::new();
    let bay = layer.open().await;
    put_all(&bay, 1..=10).await;
    let older = layer.store.copy();
    // Several segments of 64 KiB, and nothing is kept that the store has.
    put_all(&bay, 11..=2_000).await;
    bay.close().await.unwrap();
    let error = retaining(&layer, older).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WentBack);
    assert!(format!("{error:#}").contains("begins after"), "{error:#}");
}

/// The tail is bounded in bytes, too.
#[tokio::test]
async fn the_retained_tail_is_bounded() {
    let layer = Layer::new();
    for (bytes, at_most) in [(0, 3), (256 << 10, 8)] {
        let bay = retaining(&layer, layer.store.clone()).retain_applied_bytes(bytes).open().await.unwrap();
        let cache: Cache<u64, Vec<u8>> = bay.cache("n").open().unwrap();
        for n in 0..400 {
            cache.put(&n, vec![7; 2_000]).await.unwrap();
        }
        // The last trim comes behind the last apply.
        bay.close().await.unwrap();
        let files = layer.disk.files(Path::new("/journal"));
        let segments = files.keys().filter(|name| name.ends_with(".seg") && !name.contains("spare")).count();
        assert!(segments <= at_most, "{segments} segments of 64 KiB with a tail of {bytes} bytes");
    }
}

#[tokio::test]
async fn a_store_that_nobody_has_written_to_does_not_swallow_a_journal() {
    let layer = Layer::new();
    let bay = retaining(&layer, layer.store.clone()).open().await.unwrap();
    put_all(&bay, 1..=10).await;
    bay.close().await.unwrap();
    let empty = MemoryStore::new();
    for replace in [false, true] {
        let error = retaining(&layer, empty.clone()).replace_journal(replace).open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongJournal);
        assert!(format!("{error:#}").contains("use a new directory"), "{error:#}");
    }
    assert!(empty.snapshot().is_empty());
    retaining(&layer, layer.store.clone()).open().await.expect("journal and store are as they were");
}

#[tokio::test]
async fn a_mistyped_path_of_the_journal_leaves_nothing_behind() {
    let layer = Layer::new();
    let bay = layer.open().await;
    put_all(&bay, 1..=10).await;
    bay.close().await.unwrap();
    let names = layer.disk.files(Path::new("/"));
    let error = layer.builder().journal("/journl").open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongJournal);
    assert!(format!("{error:#}").contains("no journal in /journl"), "{error:#}");
    assert!(layer.disk.files(Path::new("/")) == names && layer.disk.files(Path::new("/journl")).is_empty());
}

/// A record that was parked is parked again, and one that was replayed is replayed again, in the same places.
#[tokio::test]
async fn dead_letters_stay_as_long_as_the_tail() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    gated.reject(key_of("n", &1_u64));
    let builder = layer.builder_on(gated.clone()).on_rejected(OnRejected::Park);
    let bay = builder.retain_applied_for(Duration::from_secs(3600)).open().await.unwrap();
    let cache: Cache<u64, u64> = bay.cache("n").open().unwrap();
    cache.put(&2, 20).await.unwrap();
    bay.flush().await.unwrap();
    let older = layer.store.copy();
    for value in [10, 11] {
        cache.put(&1, value).await.unwrap();
        cache.put(&2, value).await.unwrap();
    }
    bay.flush().await.unwrap();
    assert_eq!(bay.health().dead_letters, 2);
    gated.accept_all();
    bay.dead_letters().replay(&[key_of("n", &1_u64)]).await.unwrap();
    cache.put(&1, 12).await.unwrap();
    bay.close().await.unwrap();
    // The store would reject the records of before once more.
    let gated = GatedStore::new(&older);
    let builder = layer.builder_on(gated.clone()).on_rejected(OnRejected::Park);
    let bay = builder.retain_applied_for(Duration::from_secs(3600)).open().await.unwrap();
    let cache: Cache<u64, u64> = bay.cache("n").open().unwrap();
    assert_eq!((cache.get(&1).await.unwrap(), cache.get(&2).await.unwrap()), (Some(12), Some(11)));
    bay.flush().await.unwrap();
    assert_eq!(bay.health().dead_letters, 0);
    assert_eq!(older.snapshot(), layer.store.snapshot());
}
