//! From an owner's journal over a bus to followers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use forebay::Invalidation;
use forebay::bus::{
    BoxFuture, Bus, Channel, Directive, Event, Message, Payload, StartPosition, Subscription,
};
use forebay::testkit::ManualClock;
use forebay::{
    Cache, ChangeLag, Error, ErrorKind, Follow, Forebay, LocalBus, Publish, Result, Seq, WritePolicy,
};

use super::scripted_bus::ScriptedBus;
use super::{Bed, eventually, ms};
use crate::support::Layer;

const SOON: Duration = Duration::from_secs(60);

fn publish() -> Publish {
    Publish::to("prices").heartbeat(ms(2))
}

fn published(bus: &ScriptedBus) -> Vec<Event> {
    let published = bus.published().into_iter();
    let owners = published.filter(|(channel, _)| channel.as_str() == "prices");
    owners.map(|(_, message)| Event::decode(&message.body).unwrap()).collect()
}

fn directives(events: &[Event]) -> Vec<Directive> {
    let of = |event: &Event| match &event.payload {
        Payload::Directives(directives) => directives.clone(),
        _ => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

#[tokio::test]
async fn every_kind_of_change_is_published_behind_the_watermark_in_one_chain() {
    let bed = Bed::new().await;
    let publication = bed.owner.publish(bed.bus.clone(), publish().values(true)).await.unwrap();
    let put = bed.prices.put(&1, 10).await.unwrap().seq();
    let through = bed.prices.put_with(&2, 20, WritePolicy::Through).await.unwrap().seq();
    let around = bed.prices.put_with(&3, 30, WritePolicy::Around).await.unwrap().seq();
    let removed = bed.prices.remove(&1).await.unwrap().seq();
    let token = bed.owner.invalidate_namespace("prices").await.unwrap().seq();
    let tag = bed.owner.invalidate_tag_everywhere("home").await.unwrap().seq();
    let schema = bed.owner.announce_schema("prices", 2).await.unwrap().seq();
    eventually("all is published", || publication.status().published == schema).await;
    let events = published(&bed.bus);
    for pair in events.windows(2) {
        assert_eq!(pair[0].until, pair[1].after, "a chain");
    }
    assert!(events.iter().all(|event| event.epoch == bed.epoch()));
    let told: BTreeMap<Seq, &str> = directives(&events)
        .iter()
        .map(|directive| {
            let kind = match directive {
                Directive::Put(..) => "put",
                Directive::Invalidate(Invalidation::Key(_), _) => "invalidate",
                Directive::Remove(..) => "remove",
                Directive::Invalidate(Invalidation::Namespace(_), _) => "namespace",
                Directive::Invalidate(Invalidation::Tag(tag), _) if tag == "home" => "tag",
                Directive::Invalidate(Invalidation::Schema(_, 2), _) => "schema",
                _ => "other",
            };
            (directive.version(), kind)
        })
        .collect();
    let expected = [
        (put, "put"),
        (through, "invalidate"),
        (around, "invalidate"),
        (removed, "remove"),
        (token, "namespace"),
        (tag, "tag"),
        (schema, "schema"),
    ];
    assert_eq!(told, BTreeMap::from(expected));
    let status = publication.status();
    assert_eq!((status.lag.records, status.error.is_none()), (0, true));
}

#[tokio::test]
async fn followers_over_a_bus_see_what_the_owner_writes_and_the_owner_sees_that() {
    let (layer, bus) = (Layer::new(), LocalBus::default());
    let owner = layer.builder().changes(true).open().await.unwrap();
    let prices: Cache<u64, u64> = owner.cache("prices").open().unwrap();
    let publication = owner.publish(bus.clone(), publish()).await.unwrap();
    let mut followers = Vec::new();
    for name in ["eu", "us"] {
        let follow = Follow::new(bus.clone(), "prices").probe_interval(ms(2)).name(name);
        let bay = Forebay::builder(layer.store.clone()).follow(follow).open().await.unwrap();
        let prices: Cache<u64, u64> = bay.cache("prices").open().unwrap();
        followers.push((bay, prices));
    }
    for round in 0..50 {
        let receipt = prices.put(&(round % 7), round).await.unwrap();
        owner.flush().await.unwrap();
        for (bay, prices) in &followers {
            bay.wait_applied(receipt.seq()).await.unwrap();
            assert_eq!(prices.get(&(round % 7)).await.unwrap(), Some(round));
        }
        assert_eq!(publication.seen_by_all(&["eu", "us"], receipt.seq(), SOON).await, []);
    }
    let known = publication.followers();
    assert_eq!(known.iter().map(|follower| follower.name.as_str()).collect::<Vec<_>>(), ["eu", "us"]);
    let missing = publication.seen_by_all(&["eu", "asia"], Seq::new(1), ms(1)).await;
    assert_eq!(missing.len(), 1);
    assert_eq!((missing[0].name.as_str(), missing[0].seen), ("asia", Seq::ZERO));
    let hits = followers.iter().map(|(_, prices)| prices.stats().memory_hits).sum::<u64>();
    assert_eq!(hits, 0, "each read followed a change of its key");
    for (_, prices) in &followers {
        prices.get(&0).await.unwrap();
        assert_eq!(prices.stats().memory_hits, 1);
    }
}

/// The outcome of one publishing.
enum Fate {
    Succeeds,
    /// The messages are lost, and that is told.
    Fails,
    /// The messages are there, and their publisher is told that they are not.
    SeemsToFail,
}

/// A bus on which publishing fails as the test wants it.
#[derive(Clone)]
struct Unreliable<F>(ScriptedBus, F);

impl<F: Fn() -> Fate + Clone + Send + Sync + 'static> Bus for Unreliable<F> {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let fate = (self.1)();
            if !matches!(fate, Fate::Fails) {
                self.0.publish(channel, messages).await?;
            }
            match fate {
                Fate::Succeeds => Ok(()),
                Fate::Fails | Fate::SeemsToFail => {
                    Err(Error::new(ErrorKind::Transient, "the test fails this"))
                }
            }
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        self.0.subscribe(channel, from)
    }
}

/// The report of a follower to its owner.
fn seen(bed: &Bed, name: &str, until: Seq) -> Event {
    let payload = Payload::Seen(name.to_owned());
    Event { epoch: bed.epoch(), after: Seq::ZERO, until, as_of_us: 0, payload }
}

/// A publisher's lag was that of its last success: it stood still while the bus was away, which is when it matters.
#[tokio::test]
async fn lag_is_in_records_bytes_and_seconds_of_the_publisher_and_of_each_follower() {
    let (layer, clock, bus) = (Layer::new(), ManualClock::new(), ScriptedBus::default());
    let is_away = Arc::new(AtomicBool::new(false));
    let fate = {
        let is_away = Arc::clone(&is_away);
        move || if is_away.load(SeqCst) { Fate::Fails } else { Fate::Succeeds }
    };
    let owner = layer.builder().changes(true).clock(clock.clone()).open().await.unwrap();
    let prices = owner.cache("prices").open().unwrap();
    let bed = Bed { layer, owner, prices, bus: bus.clone() };
    let publication = bed.owner.publish(Unreliable(bus.clone(), fate), publish()).await.unwrap();
    bus.subscribed().await;
    let write = async || {
        let seq = bed.write(1, 1).await;
        clock.advance(Duration::from_secs(10));
        seq
    };
    let first = write().await;
    write().await;
    let third = write().await;
    eventually("all is published", || publication.status().published == third).await;
    bus.deliver(&seen(&bed, "eu", first));
    bus.deliver(&seen(&bed, "us", third));
    bus.heard().await;
    // A frame is 56 bytes and its body of 33, padded to 8: 4 bytes, a record's head of 4, the key of "prices", a zero
    // and 8 bytes, and the value of 2 bytes and 8.
    const FRAME: u64 = 56 + 40;
    let lags = || {
        let of = |lag: ChangeLag| (lag.records, lag.bytes, lag.age.as_secs());
        let followers = publication.followers();
        (of(publication.status().lag), followers.iter().map(|known| of(known.lag)).collect::<Vec<_>>())
    };
    assert_eq!(lags(), ((0, 0, 0), vec![(2, 2 * FRAME, 20), (0, 0, 0)]));

    is_away.store(true, SeqCst);
    write().await;
    let fifth = write().await;
    eventually("the bus is away", || publication.status().error.is_some()).await;
    assert_eq!(lags(), ((2, 2 * FRAME, 20), vec![(4, 4 * FRAME, 40), (2, 2 * FRAME, 20)]));
    is_away.store(false, SeqCst);
    eventually("all is published", || publication.status().published == fifth).await;
    bus.deliver(&seen(&bed, "eu", fifth));
    bus.heard().await;
    assert_eq!(lags(), ((0, 0, 0), vec![(0, 0, 0), (2, 2 * FRAME, 20)]));
    assert!(publication.forget_follower("us") && !publication.forget_follower("us"));
    assert_eq!(publication.followers().len(), 1);
}

/// The journal keeps nothing for followers. What it has let go of is missing to a follower all the same.
#[tokio::test]
async fn bytes_that_the_journal_has_let_go_are_still_missing_to_a_follower() {
    const VALUE: u64 = 30 << 10;
    let (layer, bus) = (Layer::new(), ScriptedBus::default());
    let owner = layer.builder().changes(true).open().await.unwrap();
    let prices = owner.cache("prices").open().unwrap();
    let bed = Bed { layer, owner, prices, bus: bus.clone() };
    let large: Cache<u64, Vec<u8>> = bed.owner.cache("large").open().unwrap();
    let publication = bed.owner.publish(bus.clone(), publish()).await.unwrap();
    bus.subscribed().await;
    let first = bed.write(1, 1).await;
    bus.deliver(&seen(&bed, "eu", first));
    bus.heard().await;
    for key in 0..20 {
        large.put(&key, vec![0; VALUE as usize]).await.unwrap();
        bed.owner.flush().await.unwrap();
    }
    // One segment stays, and four spares.
    eventually("the journal lets go", || bed.owner.health().journal_bytes <= 5 * (64 << 10)).await;
    let lag = publication.followers()[0].lag;
    assert_eq!(lag.records, 20);
    assert!(lag.bytes > 20 * VALUE && lag.bytes < 20 * (VALUE + 200), "{lag:?}");
}

#[tokio::test]
async fn what_was_not_published_is_published_after_a_restart() {
    let layer = Layer::new();
    let bus = ScriptedBus::default();
    let turns = Arc::new(AtomicU64::new(0));
    let failing = Unreliable(bus.clone(), move || match turns.fetch_add(1, SeqCst) % 3 {
        0 => Fate::Fails,
        1 => Fate::SeemsToFail,
        _ => Fate::Succeeds,
    });
    let mut written = Vec::new();
    for round in 0..4 {
        let owner = layer.builder().changes(true).open().await.unwrap();
        let prices: Cache<u64, u64> = owner.cache("prices").open().unwrap();
        let publication = owner.publish(failing.clone(), publish()).await.unwrap();
        for key in 0..20 {
            written.push(prices.put(&key, round).await.unwrap().seq());
        }
        owner.flush().await.unwrap();
        if round == 3 {
            let last = *written.last().unwrap();
            eventually("all is published", || publication.status().published == last).await;
        }
        // Without a word: the cursor stands where it stood.
    }
    let events = published(&bus);
    let told: std::collections::BTreeSet<Seq> = directives(&events).iter().map(Directive::version).collect();
    assert!(written.iter().all(|seq| told.contains(seq)), "each at least once");
    // Whoever hears all of it in any order that keeps the first copies in order has no gap.
    let mut position = Seq::ZERO;
    for event in &events {
        assert!(event.after <= position, "a gap after {position}: {event:?}");
        position = position.max(event.until);
    }
}

#[tokio::test]
async fn a_publisher_that_fell_too_far_behind_says_that_anything_may_have_changed() {
    let layer = Layer::new();
    let bus = ScriptedBus::default();
    let open = || layer.builder().changes(true).changes_bytes_max(0).batch_linger(Duration::ZERO);
    {
        let owner = open().open().await.unwrap();
        drop(owner.publish(bus.clone(), publish()).await.unwrap());
        let prices: Cache<u64, Vec<u8>> = owner.cache("prices").open().unwrap();
        for key in 0..100 {
            prices.put(&key, vec![0; 4096]).await.unwrap();
        }
        owner.close().await.unwrap();
    }
    let owner = open().open().await.unwrap();
    let publication = owner.publish(bus.clone(), publish()).await.unwrap();
    eventually("all is published", || publication.status().published == owner.watermark()).await;
    assert_eq!(publication.status().places_lost, 1);
    let told = directives(&published(&bus));
    assert!(matches!(told.first(), Some(Directive::Invalidate(Invalidation::Everything, _))), "{told:?}");
}

#[tokio::test]
async fn an_owner_that_was_followed_by_another_publishes_nothing_more() {
    let bed = Bed::new().await;
    let publication = bed.owner.publish(bed.bus.clone(), publish()).await.unwrap();
    let seq = bed.write(1, 10).await;
    eventually("it is published", || publication.status().published == seq).await;
    // Another one takes the store over, with a journal of its own.
    let other = Layer { store: bed.layer.store.clone(), ..Layer::new() };
    let next = other.builder().replace_journal(true).changes(true).open().await.unwrap();
    eventually("the publisher ends", || {
        let error = publication.status().error;
        error.is_some_and(|error| error.kind() == ErrorKind::Fenced)
    })
    .await;
    let events = published(&bed.bus).len();
    next.cache::<u64, u64>("prices").open().unwrap().put(&1, 11).await.unwrap();
    next.flush().await.unwrap();
    assert_eq!(published(&bed.bus).len(), events);
}

#[tokio::test]
async fn what_cannot_be_is_said_by_name() {
    let bed = Bed::new().await;
    let kind = |result: Result<forebay::Publication>| result.err().unwrap().kind();
    assert_eq!(kind(bed.owner.publish(bed.bus.clone(), Publish::to("a b")).await), ErrorKind::InvalidName);
    let zero = Publish::to("prices").heartbeat(Duration::ZERO);
    assert_eq!(kind(bed.owner.publish(bed.bus.clone(), zero).await), ErrorKind::InvalidOption);
    let mute = Layer::new().open().await;
    assert_eq!(kind(mute.publish(bed.bus.clone(), publish()).await), ErrorKind::Unsupported);
    let open = |follow| Forebay::builder(bed.layer.store.clone()).follow(follow).open();
    let bad = open(Follow::new(bed.bus.clone(), "a/b")).await.err().unwrap();
    assert_eq!(bad.kind(), ErrorKind::InvalidName);
    let bad = open(bed.follow().lag_max(Duration::ZERO)).await.err().unwrap();
    assert!(bad.to_string().starts_with("lag_max is 0ns"), "{bad}");
    let bad = open(bed.follow().name("")).await.err().unwrap();
    assert_eq!(bad.kind(), ErrorKind::InvalidName);
    let journaled = Forebay::builder(bed.layer.store.clone()).journal("/journal").follow(bed.follow());
    assert_eq!(journaled.open().await.err().unwrap().kind(), ErrorKind::InvalidOption);
}
