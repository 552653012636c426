//! Whose the store is, and what else a directive makes stale.

use std::time::{Duration, Instant};

use forebay::Invalidation;
use forebay::bus::Directive;
use forebay::{Bincode, Cache, Codec, ErrorKind, Forebay, HealthState, MemoryStore, OnOwned, Source};

use super::{Bed, before, changed, eventually, ms};
use crate::support::GatedStore;

fn open(store: &MemoryStore, on_owned: OnOwned) -> impl Future<Output = forebay::Result<Forebay>> + use<> {
    Forebay::builder(store.clone()).renew_interval(ms(5)).on_owned(on_owned).open()
}

#[tokio::test]
async fn who_waits_takes_over_when_the_owner_has_closed() {
    let store = MemoryStore::new();
    let first = open(&store, OnOwned::Wait(ms(200))).await.unwrap();
    let cache: Cache<u64, u64> = first.cache("n").open().unwrap();
    // So long that only the owner's word can end it.
    let second = tokio::spawn(open(&store, OnOwned::Wait(Duration::from_secs(600))));
    for round in 0..20 {
        cache.put(&1, round).await.unwrap();
        tokio::time::sleep(ms(5)).await;
    }
    assert!(!second.is_finished(), "the owner lives");
    first.close().await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(100), second).await.unwrap().unwrap().unwrap();
    assert!(second.health().epoch > first.health().epoch);
    assert_eq!(second.cache::<u64, u64>("n").open().unwrap().get(&1).await.unwrap(), Some(19));
}

#[tokio::test]
async fn who_waits_takes_over_from_an_owner_that_is_silent_and_that_is_fenced() {
    let store = MemoryStore::new();
    let began = Instant::now();
    // It speaks once an hour: as good as frozen.
    let frozen =
        Forebay::builder(store.clone()).renew_interval(Duration::from_secs(3600)).open().await.unwrap();
    let cache: Cache<u64, u64> = frozen.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    let second = open(&store, OnOwned::Wait(ms(80))).await.unwrap();
    assert!(began.elapsed() >= ms(80), "it waits for the silence");
    let error = cache.put(&1, 2).await.unwrap_err();
    assert!(format!("{error:#}").contains("another owner holds the store"), "{error}");
    assert_eq!(second.cache::<u64, u64>("n").open().unwrap().get(&1).await.unwrap(), Some(1));
}

#[tokio::test]
async fn who_does_not_wait_is_refused_as_long_as_the_owner_lives() {
    let store = MemoryStore::new();
    let first = open(&store, OnOwned::Refuse(ms(500))).await.unwrap();
    let error = open(&store, OnOwned::Refuse(Duration::from_secs(60))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(first.health().state, HealthState::Healthy);
    first.close().await.unwrap();
    open(&store, OnOwned::Refuse(Duration::from_secs(60))).await.unwrap();
}

#[tokio::test]
async fn who_takes_over_at_once_fences_an_owner_that_notices_though_it_is_idle() {
    let store = MemoryStore::new();
    let first = open(&store, OnOwned::TakeOver).await.unwrap();
    let second = open(&store, OnOwned::TakeOver).await.unwrap();
    eventually("the first is fenced", || first.health().state == HealthState::Fenced).await;
    assert_eq!(second.health().state, HealthState::Healthy);
}

#[tokio::test]
async fn a_store_that_cannot_say_whether_its_owner_lives_cannot_be_waited_for() {
    let store = GatedStore::new(&MemoryStore::new());
    let error = Forebay::builder(store).on_owned(OnOwned::Wait(ms(100))).open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = open(&MemoryStore::new(), OnOwned::Wait(Duration::ZERO)).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("on_owned (quiet) is 0ns"), "{error}");
}

#[tokio::test]
async fn a_rule_says_what_else_a_directive_makes_stale() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let builder = Forebay::builder(bed.layer.store.clone());
    let follow = builder.follow_with(bed.follow(), |directive, stale| match directive {
        Directive::Invalidate(Invalidation::Key(key), _) if key.namespace() == "prices" => {
            match Bincode::decode::<u64>(key.key()).unwrap() {
                1 => stale.key("pages", "of 1".to_owned()),
                2 => stale.tag("home"),
                3 => panic!("the test's rule panics"),
                _ => stale.key("pages", 4_u64),
            }
        }
        _ => {}
    });
    let bay = follow.open().await.unwrap();
    let pages: Cache<String, u64> = bay.cache("pages").open().unwrap();
    bed.bus.subscribed().await;
    let sources = async || {
        let mut sources = Vec::new();
        for page in ["of 1", "home", "other"] {
            let load = move |_| async move {
                let tags = if page == "home" { vec!["home"] } else { vec![] };
                Ok::<_, std::io::Error>(forebay::Loaded::new(7).tags(tags))
            };
            let options = forebay::ReadOptions::new();
            sources.push(pages.get_or_load_with(&page.to_owned(), &options, load).await.unwrap().source);
        }
        sources
    };
    let (memory, loader) = (Source::Memory, Source::Loader);
    assert_eq!(sources().await, [loader, loader, loader]);
    let say = async |key: u64| {
        let seq = bed.write(key, key).await;
        bed.tell(before(seq), seq, vec![changed(key, seq)]).await;
    };
    say(1).await;
    assert_eq!(sources().await, [loader, memory, memory]);
    say(2).await;
    assert_eq!(sources().await, [memory, loader, memory]);
    // A rule that panics, or names what cannot be, cannot be believed.
    say(3).await;
    assert_eq!(sources().await, [loader, loader, loader]);
    say(4).await;
    assert_eq!(sources().await, [loader, loader, loader]);
    let status = bay.following().unwrap();
    assert_eq!(status.rules_failed, 2);
    assert!(format!("{:#}", status.error.unwrap()).contains("rule on directives"));
}
