//! A layer over redb, with postcard for the values, of a build that has neither sled nor bincode.
//!
//! ```text
//! cargo test -p forebay-minimal-tests -- --include-ignored
//! ```

#![allow(clippy::unwrap_used, reason = "these are tests")]

use forebay::store::RedbOptions;
use forebay::{Cache, ErrorKind, Forebay, MemoryStore, Postcard};

#[test]
fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let open = || -> (Forebay, Cache<u64, String>) {
        let store = RedbOptions::new().open(directory.path().join("store")).unwrap();
        let layer =
            Forebay::builder(store).journal(directory.path().join("journal")).open_blocking().unwrap();
        let cache = layer.cache("names").codec::<Postcard>().open().unwrap();
        (layer, cache)
    };
    let (layer, cache) = open();
    cache.blocking().put(&7, "kettle".to_owned()).unwrap();
    layer.blocking().close().unwrap();
    drop((layer, cache));

    let (layer, cache) = open();
    assert_eq!(cache.blocking().get(&7).unwrap().as_deref(), Some("kettle"));
    layer.blocking().close().unwrap();
}

#[test]
#[ignore = "only without bincode, which the other members of the workspace bring in where all are built together"]
fn a_cache_without_a_codec_is_refused_and_the_error_names_the_call_that_is_missing() {
    let layer = Forebay::builder(MemoryStore::new()).open_blocking().unwrap();
    let error = layer.cache::<u64, String>("names").open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("CacheBuilder::codec"), "{error}");
}
