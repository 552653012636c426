//! Versioned keys: versions of an outside source side by side, the highest of which a plain read returns.

use std::sync::Arc;

use forebay::disk::CrashPolicy;
use forebay::{Cache, CacheBuilder, Error, ErrorKind, Forebay, OnRejected, Seq, VersionReceipt, WritePolicy};

use crate::support::held_loads::HeldLoads;
use crate::support::{GatedStore, Layer, key_of, poll_once, store_beside, stored};

fn versioned(bay: &Forebay, kept: usize) -> Cache<u32, u64> {
    let cache: CacheBuilder<u32, u64> = bay.cache("n");
    cache.versions_kept(kept).open().unwrap()
}

/// Everything there is of key 1: what a plain read finds, and each version.
async fn all_of(cache: &Cache<u32, u64>) -> (Option<u64>, Vec<(u64, u64)>) {
    let mut versions = Vec::new();
    for version in cache.versions(&1).await.unwrap() {
        versions.push((version, cache.get_version(&1, version).await.unwrap().unwrap()));
    }
    (cache.get(&1).await.unwrap(), versions)
}

#[tokio::test]
async fn versions_live_side_by_side_and_a_plain_read_returns_the_latest() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 10);
    assert_eq!(all_of(&cache).await, (None, vec![]));
    assert!(matches!(cache.put_version(&1, 5, 50).await.unwrap(), VersionReceipt::Latest(_)));
    assert!(matches!(cache.put_version(&1, 9, 90).await.unwrap(), VersionReceipt::Latest(_)));
    let late = cache.put_version(&1, 7, 70).await.unwrap();
    assert_eq!(late, VersionReceipt::Behind(bay.last_committed()));
    let expected = (Some(90), vec![(5, 50), (7, 70), (9, 90)]);
    assert_eq!(all_of(&cache).await, expected);
    cache.invalidate_all();
    assert_eq!(all_of(&cache).await, expected, "not from memory either");
    bay.flush().await.unwrap();
    cache.invalidate_all();
    assert_eq!(all_of(&cache).await, expected, "from the store");
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await.unwrap().0, 90);
    assert_eq!(cache.get_version(&1, 6).await.unwrap(), None);
    assert_eq!(cache.versions(&2).await.unwrap(), Vec::<u64>::new(), "a key of its own");
}

#[tokio::test]
async fn a_late_lower_version_never_becomes_what_a_plain_read_returns() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 3);
    // Every order of four versions.
    let mut orders = vec![vec![]];
    for version in 1..=4_u64 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<u64>| {
                (0..=order.len()).map(move |at| {
                    let mut longer = order.clone();
                    longer.insert(at, version);
                    longer
                })
            })
            .collect();
    }
    assert_eq!(orders.len(), 24);
    for (key, order) in (0_u32..).zip(&orders) {
        let mut highest = 0;
        for version in order {
            cache.put_version(&key, *version, version * 10).await.unwrap();
            highest = highest.max(*version);
            assert_eq!(cache.get(&key).await.unwrap(), Some(highest * 10), "{order:?}");
            cache.evict(&key);
            assert_eq!(cache.get(&key).await.unwrap(), Some(highest * 10), "{order:?}, beyond memory");
        }
        assert_eq!(cache.versions(&key).await.unwrap(), [2, 3, 4], "{order:?}");
        assert_eq!(cache.get_version(&key, 1).await.unwrap(), None, "{order:?}");
    }
}

#[tokio::test]
async fn a_load_that_began_before_a_newer_version_does_not_bring_the_older_one_back() {
    let layer = Layer::new();
    let source = HeldLoads::new(&layer.store);
    let bay = layer.builder_on(source.clone()).open().await.unwrap();
    let cache = versioned(&bay, 3);
    cache.put_version(&1, 1, 10).await.unwrap();
    bay.flush().await.unwrap();
    cache.evict(&1);
    source.hold();
    let mut read = Box::pin(cache.get(&1));
    assert!(poll_once(&mut read).await.is_none(), "the load is held");
    let mut write = Box::pin(cache.put_version(&1, 2, 20));
    assert!(poll_once(&mut write).await.is_none());
    source.let_go();
    write.await.unwrap();
    read.await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), Some(20));
}

#[tokio::test]
async fn the_same_version_again_replaces_its_value_and_nothing_else() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 2);
    for version in [1, 2, 2, 1, 1] {
        cache.put_version(&1, version, version * 10).await.unwrap();
        cache.put_version(&1, version, version * 10).await.unwrap();
    }
    assert_eq!(all_of(&cache).await, (Some(20), vec![(1, 10), (2, 20)]));
    cache.put_version(&1, 1, 11).await.unwrap();
    assert_eq!(all_of(&cache).await, (Some(20), vec![(1, 11), (2, 20)]));
    assert!(matches!(cache.put_version(&1, 2, 22).await.unwrap(), VersionReceipt::Latest(_)));
    assert_eq!(all_of(&cache).await, (Some(22), vec![(1, 11), (2, 22)]));
}

#[tokio::test]
async fn retention_by_count_keeps_the_highest() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 2);
    for version in [1, 2, 3] {
        cache.put_version(&1, version, version * 10).await.unwrap();
    }
    assert_eq!(all_of(&cache).await, (Some(30), vec![(2, 20), (3, 30)]));
    let before = bay.last_committed();
    let late = cache.put_version(&1, 1, 11).await.unwrap();
    assert_eq!((late, late.seq()), (VersionReceipt::NotKept, None));
    assert_eq!(bay.last_committed(), before, "nothing was written");
    bay.flush().await.unwrap();
    assert_eq!(layer.store.snapshot().len(), 4, "the value, the list, two versions");
    bay.close().await.unwrap();

    let bay = layer.open().await;
    let cache = versioned(&bay, 4);
    assert!(matches!(cache.put_version(&1, 1, 11).await.unwrap(), VersionReceipt::Behind(_)));
    assert_eq!(all_of(&cache).await, (Some(30), vec![(1, 11), (2, 20), (3, 30)]));
    bay.close().await.unwrap();

    let bay = layer.open().await;
    let cache = versioned(&bay, 1);
    assert!(matches!(cache.put_version(&1, 4, 40).await.unwrap(), VersionReceipt::Latest(_)));
    assert_eq!(all_of(&cache).await, (Some(40), vec![(4, 40)]));
    bay.flush().await.unwrap();
    assert_eq!(layer.store.snapshot().len(), 3);

    for bad in [0, 1025] {
        let cache: CacheBuilder<u32, u64> = bay.cache("other");
        let error = cache.versions_kept(bad).open().expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert_eq!(format!("{error:#}"), format!("versions_kept is {bad}; allowed are 1 to 1024"));
    }
    let cache: CacheBuilder<u32, u64> = bay.cache("n");
    assert_eq!(cache.versions_kept(2).open().expect_err("open").kind(), ErrorKind::NamespaceInUse);
}

#[tokio::test]
async fn versions_are_journaled_and_true_after_a_power_cut_and_in_the_store() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let bay = layer.builder_on(gated.clone()).open().await.unwrap();
    let cache = versioned(&bay, 2);
    for version in [4, 6, 5] {
        cache.put_version(&1, version, version * 10).await.unwrap();
    }
    assert!(layer.store.snapshot().is_empty(), "only the journal has them");
    let cut = Layer { disk: layer.disk.crash(CrashPolicy::OnlySynced), store: layer.store.copy() };
    let bay = cut.open().await;
    let cache = versioned(&bay, 2);
    let expected = (Some(60), vec![(5, 50), (6, 60)]);
    assert_eq!(all_of(&cache).await, expected);
    bay.flush().await.unwrap();
    bay.close().await.unwrap();
    let bay = cut.open().await;
    let cache = versioned(&bay, 2);
    assert_eq!(all_of(&cache).await, expected);
    assert_eq!(cache.put_version(&1, 3, 30).await.unwrap(), VersionReceipt::NotKept);
    gated.release();
}

#[tokio::test]
async fn every_power_cut_leaves_a_version_wholly_or_not_at_all() {
    let layer = Layer::new();
    let images = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&images);
    layer.disk.observe(move |_, _, disk| seen.lock().unwrap().push(disk));
    let bay = layer.builder_on(GatedStore::stalled(&layer.store)).open().await.unwrap();
    let cache = versioned(&bay, 2);
    let order = [2, 4, 3, 1, 4, 5];
    for version in order {
        cache.put_version(&1, version, version * 10).await.unwrap();
    }
    layer.disk.unobserve();
    let images: Vec<_> = std::mem::take(&mut *images.lock().unwrap());
    // After each write: what a plain read finds, and the versions.
    let states: [(Option<u64>, &[u64]); 6] = [
        (None, &[]),
        (Some(20), &[2]),
        (Some(40), &[2, 4]),
        (Some(40), &[3, 4]),
        (Some(40), &[3, 4]),
        (Some(50), &[4, 5]),
    ];
    let mut found_before = 0;
    for image in images {
        let disk = image.crash(CrashPolicy::OnlySynced);
        let store = store_beside(&disk, &layer.store);
        let cut = Layer { disk, store };
        let bay = cut.open().await;
        let (value, versions) = all_of(&versioned(&bay, 2)).await;
        assert!(versions.iter().all(|(version, value)| *value == version * 10));
        let versions: Vec<u64> = versions.into_iter().map(|(version, _)| version).collect();
        let found = states.iter().rposition(|state| *state == (value, &versions[..]));
        let found = found.unwrap_or_else(|| panic!("{value:?} and {versions:?} were never together"));
        assert!(found >= found_before, "it went back");
        found_before = found;
        bay.close().await.unwrap();
    }
}

#[tokio::test]
async fn two_writers_of_one_key_lose_neither_version() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 10);
    let gate = layer.disk.hold_syncs("0");
    let mut first = Box::pin(cache.put_version(&1, 1, 10));
    assert!(poll_once(&mut first).await.is_none());
    assert!(gate.wait_for(1), "its frame is being synced");
    let mut second = Box::pin(cache.put_version(&1, 2, 20));
    assert!(poll_once(&mut second).await.is_none());
    gate.open();
    assert!(matches!(first.await.unwrap(), VersionReceipt::Latest(_)));
    assert!(matches!(second.await.unwrap(), VersionReceipt::Latest(_)));
    assert_eq!(all_of(&cache).await, (Some(20), vec![(1, 10), (2, 20)]));
}

#[tokio::test]
async fn a_writer_that_goes_away_still_keeps_the_next_one_waiting() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 10);
    let gate = layer.disk.hold_syncs("0");
    let mut first = Box::pin(cache.put_version(&1, 9, 90));
    assert!(poll_once(&mut first).await.is_none());
    assert!(gate.wait_for(1), "it was handed over, so it happens");
    drop(first);
    let mut second = Box::pin(cache.put_version(&1, 2, 20));
    assert!(poll_once(&mut second).await.is_none());
    gate.open();
    assert!(matches!(second.await.unwrap(), VersionReceipt::Behind(_)));
    assert_eq!(all_of(&cache).await, (Some(90), vec![(2, 20), (9, 90)]));
}

#[tokio::test]
async fn many_writers_of_one_key_from_many_threads_lose_none() {
    let layer = Layer::new();
    let bay = layer.builder().open_blocking().unwrap();
    let cache = versioned(&bay, 1024);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = cache.blocking();
            scope.spawn(move || {
                // Thread by thread up, down, and both mixed.
                for step in 0..50 {
                    let version = if thread % 2 == 0 { step } else { 49 - step } * 4 + thread;
                    cache.put_version(&1, version, version * 10).unwrap();
                }
            });
        }
    });
    let (value, versions) = all_of(&cache).await;
    assert_eq!(value, Some(1990));
    assert_eq!(versions, (0..200).map(|version| (version, version * 10)).collect::<Vec<_>>());
}

#[tokio::test]
async fn through_and_around_keep_versions_as_well() {
    for policy in [WritePolicy::Through, WritePolicy::Around] {
        let layer = Layer::new();
        let gated = GatedStore::new(&layer.store);
        let bay = layer.builder_on(gated.clone()).open().await.unwrap();
        let cache: CacheBuilder<u32, u64> = bay.cache("n");
        let cache = cache.versions_kept(2).write_policy(policy).open().unwrap();
        gated.stall();
        let mut first = Box::pin(cache.put_version(&1, 6, 60));
        assert!(poll_once(&mut first).await.is_none());
        gated.wait_for_applies(1).await;
        drop(first);
        let mut second = Box::pin(cache.put_version(&1, 5, 50));
        assert!(poll_once(&mut second).await.is_none(), "the first has not ended");
        gated.release();
        assert!(matches!(second.await.unwrap(), VersionReceipt::Behind(_)));
        assert_eq!(all_of(&cache).await, (Some(60), vec![(5, 50), (6, 60)]));
        assert_eq!(layer.store.snapshot().len(), 4);
    }
}

#[tokio::test]
async fn a_writer_through_does_not_wait_for_ever_for_the_one_before_it() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let timeout = std::time::Duration::from_millis(20);
    let bay = layer.builder_on(gated.clone()).through_timeout(timeout).open().await.unwrap();
    let cache: CacheBuilder<u32, u64> = bay.cache("n");
    let cache = cache.versions_kept(2).write_policy(WritePolicy::Through).open().unwrap();
    let first = cache.put_version(&1, 1, 10).await.expect_err("the store stands");
    assert_eq!(first.kind(), ErrorKind::InDoubt);
    let second = cache.put_version(&1, 2, 20).await.expect_err("the first has not ended");
    assert_eq!(second.kind(), ErrorKind::Transient);
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(
        all_of(&cache).await,
        (Some(10), vec![(1, 10)]),
        "the first came true, the second never began"
    );
}

#[tokio::test]
async fn what_else_writes_a_versioned_key_is_defined() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache = versioned(&bay, 3);
    let plain: Cache<u32, u64> = bay.cache("plain").open().unwrap();
    fn refused<T>(outcome: Result<T, Error>) {
        assert_eq!(outcome.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    }
    refused(cache.put(&1, 1).await);
    refused(cache.put_with(&1, 1, WritePolicy::Through).await);
    let mut batch = bay.batch();
    refused(batch.put(&cache, &1, 1).map(drop));
    refused(batch.remove(&cache, &1).map(drop));
    assert!(batch.is_empty());
    refused(plain.put_version(&1, 1, 1).await);
    refused(plain.get_version(&1, 1).await);
    refused(plain.versions(&1).await);

    for version in [1, 2, 3] {
        cache.put_version(&1, version, version * 10).await.unwrap();
    }
    cache.put_version(&2, 1, 10).await.unwrap();
    cache.remove(&1).await.unwrap();
    assert_eq!(all_of(&cache).await, (None, vec![]));
    bay.flush().await.unwrap();
    assert_eq!(layer.store.snapshot().len(), 3, "of key 2: its value, its list, its version");
    assert!(
        matches!(cache.put_version(&1, 2, 22).await.unwrap(), VersionReceipt::Latest(_)),
        "the first again"
    );
    assert_eq!(all_of(&cache).await, (Some(22), vec![(2, 22)]));
}

#[tokio::test]
async fn a_value_put_without_a_version_gives_way_to_the_first_version() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let plain: Cache<u32, u64> = bay.cache("n").open().unwrap();
    plain.put(&1, 1).await.unwrap();
    bay.close().await.unwrap();
    drop(plain);
    let bay = layer.open().await;
    let cache = versioned(&bay, 3);
    assert_eq!(all_of(&cache).await, (Some(1), vec![]));
    cache.put_version(&1, 7, 70).await.unwrap();
    assert_eq!(all_of(&cache).await, (Some(70), vec![(7, 70)]));
}

#[tokio::test]
async fn a_rejected_version_is_parked_with_its_list_and_replayed_with_it() {
    let layer = Layer::new();
    let gated = GatedStore::new(&layer.store);
    let bay = layer.builder_on(gated.clone()).on_rejected(OnRejected::Park).open().await.unwrap();
    let cache = versioned(&bay, 3);
    cache.put_version(&1, 1, 10).await.unwrap();
    bay.flush().await.unwrap();
    gated.reject(key_of("n", &1_u32));
    cache.put_version(&1, 3, 30).await.unwrap();
    cache.put_version(&1, 2, 20).await.unwrap();
    bay.flush().await.unwrap();
    let expected = (Some(30), vec![(1, 10), (2, 20), (3, 30)]);
    assert_eq!(all_of(&cache).await, expected, "parked, and readable");
    assert_eq!(stored(&layer.store, "n", &1_u32).await.unwrap(), (10_u64, Seq::new(3)));
    gated.accept_all();
    bay.dead_letters().replay(&[key_of("n", &1_u32)]).await.unwrap();
    cache.invalidate_all();
    assert_eq!(all_of(&cache).await, expected);
    assert_eq!(stored::<u32, u64>(&layer.store, "n", &1).await.unwrap().0, 30);
}
