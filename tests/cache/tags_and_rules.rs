//! Tags, rules and read sets: what becomes stale because something else has changed.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use forebay::{
    Cache, CacheBuilder, ErrorKind, Forebay, Loaded, MissReason, Seq, Source, WriteOptions, WritePolicy,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::support::{GatedStore, Layer, poll_once};

pub fn tags(tags: &[&str]) -> WriteOptions {
    WriteOptions::new().tags(tags.iter().copied())
}

async fn source_of<V: forebay::CacheValue>(cache: &Cache<u32, V>, key: u32) -> Source {
    cache.get_entry(&key).await.unwrap().source
}

#[tokio::test]
async fn what_has_a_tag_is_invalidated_in_all_caches_however_it_came() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let one: Cache<u32, u64> = bay.cache("one").open().unwrap();
    let other: Cache<u32, String> = bay.cache("other").open().unwrap();
    one.put_with(&1, 1, tags(&["red", "round"])).await.unwrap();
    one.put_with(&2, 2, tags(&["red"]).policy(WritePolicy::Through)).await.unwrap();
    one.put(&3, 3).await.unwrap();
    other.put_with(&1, "x".into(), tags(&["round"])).await.unwrap();
    bay.flush().await.unwrap();
    // This one comes back from the store.
    one.evict(&2);
    one.get(&2).await.unwrap();
    let load = |_| async { Ok::<_, String>(Loaded::new(4).tags(["red"])) };
    one.get_or_load(&4, load).await.unwrap();
    let absent =
        |_| async { Ok::<_, String>(Loaded::absent().tags(["red"]).time_to_live(Duration::from_secs(1000))) };
    one.get_or_load(&5, absent).await.unwrap();
    bay.invalidate_tag("red").unwrap();
    for (key, at) in [(1, Source::Store), (2, Source::Store), (3, Source::Memory), (4, Source::Store)] {
        assert_eq!(source_of(&one, key).await, at, "{key}");
    }
    let again = |_| async { Ok::<_, String>(Some(5)) };
    assert_eq!(one.get_or_load(&5, again).await.unwrap(), Some(5), "an absence may have tags, too");
    assert_eq!(one.stats().misses[MissReason::TagInvalidated], 4);
    // Reloaded, they have their tags again; and after a restart.
    bay.invalidate_tag("round").unwrap();
    assert_eq!((source_of(&one, 1).await, source_of(&other, 1).await), (Source::Store, Source::Store));
    drop((one, other, bay));
    let bay = layer.open().await;
    let one: Cache<u32, u64> = bay.cache("one").open().unwrap();
    assert_eq!((source_of(&one, 1).await, source_of(&one, 1).await), (Source::Store, Source::Memory));
    bay.invalidate_tag("round").unwrap();
    assert_eq!(source_of(&one, 1).await, Source::Store);
}

#[tokio::test]
async fn pending_values_keep_their_tags_and_stay_the_truth() {
    let layer = Layer::new();
    let bay = layer.builder_on(GatedStore::stalled(&layer.store)).open().await.unwrap();
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    cache.put_with(&1, 1, tags(&["red"])).await.unwrap();
    for _ in 0..2 {
        bay.invalidate_tag("red").unwrap();
        assert_eq!(source_of(&cache, 1).await, Source::Pending);
        assert_eq!(source_of(&cache, 1).await, Source::Memory);
    }
}

#[tokio::test]
async fn tags_are_bounded() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
    let many: Vec<String> = (0..17).map(|tag| tag.to_string()).collect();
    let long = "x".repeat(256);
    for (bad, kind) in [
        (many.clone(), ErrorKind::TooLarge),
        (vec![String::new()], ErrorKind::InvalidName),
        (vec![long.clone()], ErrorKind::InvalidName),
    ] {
        let written = cache.put_with(&1, 1, WriteOptions::new().tags(bad.clone())).await;
        assert_eq!(written.unwrap_err().kind(), kind);
        let load = move |_| async move { Ok::<_, String>(Loaded::new(1).tags(bad)) };
        assert_eq!(cache.get_or_load(&1, load).await.unwrap_err().kind(), kind);
    }
    assert_eq!(cache.get(&1).await.unwrap(), None, "nothing was written");
    assert_eq!(bay.invalidate_tag(&long).unwrap_err().kind(), ErrorKind::InvalidName);
    cache.put_with(&1, 1, WriteOptions::new().tags(many[..16].to_vec())).await.unwrap();
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    category: String,
}

fn of(category: &str) -> Product {
    Product { category: category.into() }
}

/// The arguments that a rule was called with: the key, and the categories before and after.
type Told = Arc<Mutex<Vec<(u32, Option<String>, Option<String>)>>>;

/// A change of products/{id} makes catalogue/{category} and page/home stale.
fn with_rule(builder: CacheBuilder<u32, Product>, told: &Told) -> Cache<u32, Product> {
    let told = Arc::clone(told);
    let rule = move |change: &forebay::Replacement<'_, u32, Product>, stale: &mut forebay::Stale| {
        let category = |product: &Product| product.category.clone();
        told.lock().unwrap().push((*change.key, change.old.map(category), change.new.map(category)));
        change
            .old
            .into_iter()
            .chain(change.new)
            .for_each(|product| stale.key("catalogue", category(product)));
        stale.key("page", "home".to_owned());
        stale.tag("prices");
        stale.namespace("feeds");
    };
    builder.on_change(rule).open().unwrap()
}

struct Shop {
    bay: Forebay,
    gated: GatedStore,
    products: Cache<u32, Product>,
    catalogue: Cache<String, u64>,
    page: Cache<String, u64>,
    feeds: Cache<String, u64>,
    told: Told,
    _layer: Layer,
}

impl Shop {
    async fn open() -> Shop {
        let layer = Layer::new();
        let gated = GatedStore::new(&layer.store);
        let bay = layer.builder_on(gated.clone()).open().await.unwrap();
        let told = Told::default();
        let open = |name| bay.cache(name).open().unwrap();
        let (catalogue, page, feeds) = (open("catalogue"), open("page"), open("feeds/atom"));
        let products = with_rule(bay.cache("products"), &told);
        Shop { bay, gated, products, catalogue, page, feeds, told, _layer: layer }
    }

    /// Loads everything that is derived; all of it is in memory afterwards.
    async fn load(&self) {
        let load = |_| async { Ok::<_, String>(Some(1)) };
        for category in ["toys", "tools", "books"] {
            self.catalogue.get_or_load(&category.into(), load).await.unwrap();
        }
        self.page.get_or_load(&"home".into(), load).await.unwrap();
        let tagged = |_| async { Ok::<_, String>(Loaded::new(1).tags(["prices"])) };
        self.page.get_or_load(&"prices".into(), tagged).await.unwrap();
        self.feeds.get_or_load(&"all".into(), load).await.unwrap();
    }

    /// Returns the names of those that are not in memory any more.
    async fn gone(&self) -> Vec<String> {
        let mut gone = Vec::new();
        let look = [
            (&self.catalogue, "toys"),
            (&self.catalogue, "tools"),
            (&self.catalogue, "books"),
            (&self.page, "home"),
            (&self.page, "prices"),
            (&self.feeds, "all"),
        ];
        for (cache, key) in look {
            if cache.get(&key.to_owned()).await.unwrap().is_none() {
                gone.push(key.to_owned());
            }
        }
        gone
    }
}

#[tokio::test]
async fn a_rule_makes_stale_what_is_derived_from_the_old_and_the_new_value() {
    let shop = Shop::open().await;
    let Shop { bay, products, told, .. } = &shop;
    let of_category =
        |old: Option<&str>, new: Option<&str>| (1, old.map(str::to_owned), new.map(str::to_owned));
    for (policy, old, new) in [
        (WritePolicy::Behind, None, Some("toys")),
        (WritePolicy::Through, Some("toys"), Some("tools")),
        (WritePolicy::Around, Some("tools"), Some("books")),
        (WritePolicy::Behind, Some("books"), Some("toys")),
        (WritePolicy::Through, Some("toys"), None),
        (WritePolicy::Behind, None, None),
    ] {
        shop.load().await;
        let receipt = match new {
            Some(new) => products.put_with(&1, of(new), policy).await.unwrap(),
            None => products.remove_with(&1, policy).await.unwrap(),
        };
        assert_eq!(told.lock().unwrap().pop(), Some(of_category(old, new)));
        let stale: Vec<&str> = ["toys", "tools", "books"]
            .into_iter()
            .filter(|category| old == Some(category) || new == Some(category))
            .chain(["home", "prices", "all"])
            .collect();
        assert_eq!(shop.gone().await, stale, "{policy:?} {old:?} {new:?}");
        let entry = products.get_entry(&1).await.unwrap();
        assert_eq!(entry.value, new.map(of));
        assert!(entry.version.is_none_or(|version| version == receipt.seq()));
        let token = bay.namespace_token("feeds/atom").await.unwrap();
        assert_eq!(token.next(), receipt.seq(), "in one frame with the change");
    }
}

#[tokio::test]
async fn rules_hold_for_batches_and_the_old_value_may_be_anywhere() {
    let shop = Shop::open().await;
    let Shop { bay, products, told, .. } = &shop;
    products.put(&1, of("toys")).await.unwrap();
    bay.flush().await.unwrap();
    products.evict(&1);
    shop.load().await;
    let mut batch = bay.batch();
    batch.put(products, &1, of("tools")).unwrap().remove(products, &2).unwrap();
    batch.put(&shop.page, &"other".to_owned(), 1).unwrap();
    told.lock().unwrap().clear();
    batch.commit().await.unwrap();
    assert_eq!(shop.gone().await, ["toys", "tools", "home", "prices", "all"]);
    let expected = [(1, Some("toys".to_owned()), Some("tools".to_owned())), (2, None, None)];
    assert_eq!(*told.lock().unwrap(), expected);
    assert!(bay.namespace_token("feeds").await.unwrap() > Seq::ZERO);
    assert_eq!(products.blocking().get(&1).unwrap(), Some(of("tools")));
    shop.load().await;
    products.blocking().remove(&1).unwrap();
    assert_eq!(shop.gone().await, ["tools", "home", "prices", "all"]);
}

/// A value loaded after the write was handed over, and before the store had it, was derived from the old value.
#[tokio::test]
async fn what_was_loaded_while_the_write_was_under_way_is_dropped_when_it_has_taken_effect() {
    for policy in [WritePolicy::Through, WritePolicy::Around] {
        let shop = Shop::open().await;
        shop.load().await;
        shop.gated.stall();
        let mut write = Box::pin(shop.products.put_with(&1, of("toys"), policy));
        assert!(poll_once(&mut write).await.is_none());
        assert_eq!(shop.gone().await, ["toys", "home", "prices", "all"], "before");
        shop.load().await;
        let (gate, opened) = watch::channel(false);
        let load = |_| async move {
            opened.clone().wait_for(|open| *open).await.unwrap();
            Ok::<_, String>(Some(2))
        };
        let cache = shop.catalogue.clone();
        let mut late = Box::pin(async move { cache.get_or_load(&"games".into(), load).await });
        assert!(poll_once(&mut late).await.is_none());
        shop.gated.release();
        write.await.unwrap();
        assert_eq!(shop.gone().await, ["toys", "home", "prices", "all"], "and after");
        gate.send_replace(true);
        assert_eq!(late.await.unwrap(), Some(2), "others are nothing to the rule");
    }
}

/// Writers of one key take turns, so that each is told the value that it replaces.
#[tokio::test]
async fn a_rule_is_told_exactly_the_value_that_the_write_replaces() {
    let shop = Shop::open().await;
    let Shop { products, told, gated, .. } = &shop;
    products.put(&1, of("toys")).await.unwrap();
    shop.bay.flush().await.unwrap();
    gated.stall();
    let mut first = Box::pin(products.put_with(&1, of("tools"), WritePolicy::Through));
    assert!(poll_once(&mut first).await.is_none());
    // Its future goes, the write goes on, and so does its turn.
    drop(first);
    let mut second = Box::pin(products.put(&1, of("books")));
    assert!(poll_once(&mut second).await.is_none(), "it waits for its turn");
    shop.load().await;
    gated.release();
    second.await.unwrap();
    assert_eq!(told.lock().unwrap().last().unwrap().1.as_deref(), Some("tools"));
    assert_eq!(
        shop.gone().await,
        ["toys", "tools", "books", "home", "prices", "all"],
        "both have taken effect"
    );
    let mut batch = shop.bay.batch();
    batch.put(products, &1, of("toys")).unwrap().put(products, &2, of("toys")).unwrap();
    let mut other = shop.bay.batch();
    other.put(products, &2, of("books")).unwrap().put(products, &1, of("books")).unwrap();
    let (one, other) = tokio::join!(batch.commit(), other.commit());
    assert!(one.unwrap() != other.unwrap(), "nobody waits in a circle");
}

/// A write whose outcome nobody knows holds up later ones of its key for no longer than it was waited for itself.
#[tokio::test]
async fn a_writer_whose_turn_does_not_come_is_told() {
    let layer = Layer::new();
    let gated = GatedStore::stalled(&layer.store);
    let wait = std::time::Duration::from_millis(1);
    let bay = layer.builder_on(gated.clone()).through_timeout(wait).open().await.unwrap();
    let products = with_rule(bay.cache("products"), &Told::default());
    let through = products.put_with(&1, of("toys"), WritePolicy::Through).await;
    assert_eq!(through.unwrap_err().kind(), ErrorKind::InDoubt);
    let behind = products.put(&1, of("tools")).await.unwrap_err();
    assert_eq!(behind.kind(), ErrorKind::Transient, "{behind}");
    gated.release();
    bay.flush().await.unwrap();
    assert_eq!(products.get(&1).await.unwrap(), Some(of("toys")));
    products.put(&1, of("tools")).await.unwrap();
}

#[tokio::test]
async fn a_rule_that_fails_stops_the_write_before_it_begins() {
    let layer = Layer::new();
    let bay = layer.open().await;
    let other: Cache<u32, u64> = bay.cache("other").open().unwrap();
    let cache: Cache<u32, u64> = bay
        .cache("n")
        .on_change(|change, stale| match change.new {
            Some(1) => panic!("a rule's defect"),
            Some(2) => stale.key("a//b", 1_u32),
            Some(3) => stale.tag(""),
            Some(4) => stale.key("other", "a string".to_owned()),
            Some(5) => (0..2000).for_each(|key: u32| stale.key("other", key)),
            _ => stale.key("nobody", 1_u8),
        })
        .open()
        .unwrap();
    other.put(&1, 1).await.unwrap();
    let committed = bay.last_committed();
    for value in 1..=5 {
        let error = cache.put(&1, value).await.unwrap_err();
        let kind = if value == 4 { ErrorKind::InvalidOption } else { ErrorKind::RuleFailed };
        assert_eq!(error.kind(), kind, "{value}: {error}");
    }
    assert_eq!((bay.last_committed(), cache.get(&1).await.unwrap()), (committed, None));
    assert_eq!(source_of(&other, 1).await, Source::Memory);
    cache.put(&1, 6).await.unwrap();
}
