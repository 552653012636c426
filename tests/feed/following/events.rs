//! Events: a follower carries out what it receives, and notices what it did not receive.

use forebay::Invalidation;
use forebay::bus::{Directive, Event, Payload, Position, StartPosition};
use forebay::testkit::FlakyStore;
use forebay::{Cache, Epoch, Error, ErrorKind, Forebay, NamespaceName, Seq, Source};

use super::{Bed, before, changed, eventually};
use crate::support::key_of;

#[tokio::test]
async fn what_was_not_changed_is_served_from_memory_and_what_was_is_not() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    bed.write(2, 20).await;
    let (bay, prices) = bed.follower().await;
    assert_eq!((prices.get(&1).await.unwrap(), prices.get(&2).await.unwrap()), (Some(10), Some(20)));
    let seq = bed.write(1, 11).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10), "it was told nothing");
    bed.tell(before(seq), seq, vec![changed(1, seq)]).await;
    assert_eq!(bay.watermark(), seq);
    assert_eq!(prices.get_entry(&2).await.unwrap().source, Source::Memory);
    assert!(prices.peek(&1).is_none(), "it would have to be loaded");
    let entry = prices.get_entry(&1).await.unwrap();
    assert_eq!((entry.value, entry.version, entry.source), (Some(11), Some(seq), Source::Store));
    let hits = prices.stats().memory_hits;
    assert_eq!(prices.peek(&1).unwrap().version, Some(seq));
    assert_eq!(prices.stats().memory_hits, hits);
}

/// The namespace of one directive is remembered for the next one.
#[tokio::test]
async fn directives_of_one_event_reach_each_the_cache_of_their_namespace() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let stocks = bed.owner.cache::<u64, u64>("stocks").open().unwrap();
    stocks.put(&1, 100).await.unwrap();
    bed.owner.flush().await.unwrap();
    let (bay, prices) = bed.follower().await;
    let stocks = bay.cache::<u64, u64>("stocks").open().unwrap();
    assert_eq!((prices.get(&1).await.unwrap(), stocks.get(&1).await.unwrap()), (Some(10), Some(100)));
    type Say = fn(Seq) -> Directive;
    let elsewhere = |seq| Directive::Invalidate(Invalidation::Key(key_of("elsewhere", &1_u64)), seq);
    let stock = |seq| Directive::Invalidate(Invalidation::Key(key_of("stocks", &1_u64)), seq);
    let one: Say = |seq| changed(1, seq);
    let others: Say = |seq| changed(2, seq);
    let said: [(&str, &[Say], _); 3] = [
        ("prices", &[elsewhere, elsewhere, one, elsewhere], [true, false]),
        ("stocks", &[others, others, stock], [false, true]),
        ("both", &[one, stock, elsewhere], [true, true]),
    ];
    for (what, directives, dropped) in said {
        let seq = bed.write(100, 0).await;
        let directives = directives.iter().map(|directive| directive(seq)).collect();
        bed.tell(before(seq), seq, directives).await;
        let gone = [prices.peek(&1).is_none(), stocks.peek(&1).is_none()];
        assert_eq!(gone, dropped, "{what}");
        prices.get(&1).await.unwrap();
        stocks.get(&1).await.unwrap();
    }
    assert_eq!(bay.following().unwrap().directives_elsewhere, 4);
}

/// It cannot weigh events that have not come, so it goes by those that have: 100 bytes for a number, say.
#[tokio::test]
async fn a_follower_says_about_how_many_bytes_of_events_it_is_behind() {
    let bed = Bed::new().await;
    let (bay, _prices) = bed.follower().await;
    let behind = || {
        let status = bay.following().unwrap();
        (status.behind_records, status.behind_bytes)
    };
    let first = bed.write(1, 10).await;
    eventually("it is behind", || behind() == (1, 0)).await;
    let event = bed.event(before(first), first, vec![changed(1, first)]);
    let bytes = event.encode().unwrap().len() as u64;
    // Neither a heartbeat nor what comes twice makes the mean another.
    bed.bus.deliver(&event);
    bed.bus.deliver(&event);
    bed.tell(first, first, vec![]).await;
    assert_eq!(behind(), (0, 0));
    for _ in 0..3 {
        bed.write(1, 11).await;
    }
    eventually("it is behind", || behind().0 == 3).await;
    assert_eq!(behind(), (3, 3 * bytes));
}

#[tokio::test]
async fn a_directive_that_comes_again_or_late_drops_nothing_newer() {
    let bed = Bed::new().await;
    let old = bed.write(1, 10).await;
    let new = bed.write(1, 11).await;
    let (_bay, prices) = bed.follower().await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    bed.bus.deliver(&bed.event(before(old), old, vec![changed(1, old)]));
    bed.tell(before(new), new, vec![changed(1, new)]).await;
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Memory);
}

#[tokio::test]
async fn removals_namespaces_groups_and_new_values_are_carried_out() {
    let bed = Bed::new().await;
    for key in 1..=3 {
        bed.write(key, key * 10).await;
    }
    let bay = bed.open(bed.layer.store.clone(), bed.follow()).await;
    let prices = bay.cache::<u64, u64>("prices").group_by(|key| Some(format!("of {key}"))).open().unwrap();
    let warm = async || {
        for key in 1..=3 {
            prices.get(&key).await.unwrap();
        }
    };
    let sources = async || {
        let mut sources = Vec::new();
        for key in 1..=3 {
            sources.push(prices.get_entry(&key).await.unwrap().source);
        }
        sources
    };
    // Under a number that the store has: a position beyond it is that of another history.
    let say = async |directive: fn(Seq) -> Directive| {
        let seq = bed.write(100, 0).await;
        bed.tell(before(seq), seq, vec![directive(seq)]).await;
    };
    let (memory, store) = (Source::Memory, Source::Store);
    warm().await;
    say(|seq| Directive::Remove(key_of("prices", &1_u64), seq)).await;
    assert_eq!(sources().await, [store, memory, memory]);
    say(|seq| {
        Directive::Invalidate(Invalidation::group(&NamespaceName::parse("prices").unwrap(), "of 2"), seq)
    })
    .await;
    assert_eq!(sources().await, [memory, store, memory]);
    say(|seq| Directive::Invalidate(Invalidation::Namespace(NamespaceName::parse("prices").unwrap()), seq))
        .await;
    assert_eq!(sources().await, [store, store, store]);
    say(|seq| Directive::Invalidate(Invalidation::Schema(NamespaceName::parse("prices").unwrap(), 2), seq))
        .await;
    assert_eq!(sources().await, [store, store, store]);
    say(|seq| Directive::Invalidate(Invalidation::Everything, seq)).await;
    assert_eq!(sources().await, [store, store, store]);
    // As the codec writes it: bincode, schema 1.
    let value = bytes::Bytes::from([&[1, 1][..], &77_u64.to_le_bytes()].concat());
    let at = bed.write(100, 0).await;
    let put = Directive::Put(key_of("prices", &3_u64), at, value.clone());
    bed.bus.deliver(&bed.event(before(at), at, vec![put]));
    // What nobody has read here is not brought in.
    bed.tell(at, at, vec![Directive::Put(key_of("prices", &9_u64), at, value)]).await;
    let entry = prices.get_entry(&3).await.unwrap();
    assert_eq!((entry.value, entry.version, entry.source), (Some(77), Some(at), memory));
    assert_eq!(prices.resident_count(), 3);
}

/// A value that travelled came a second time, after the key had been removed and its absence was remembered, or after
/// memory had been emptied: it took the place of what was there, and was served as current from then on.
#[tokio::test]
async fn a_value_that_comes_late_does_not_bring_back_what_is_gone() {
    let bed = Bed::new().await;
    let old = bed.write(1, 10).await;
    let bay = bed.open(bed.layer.store.clone(), bed.follow()).await;
    let hour = std::time::Duration::from_secs(3600);
    let prices = bay.cache::<u64, u64>("prices").negative_time_to_live(hour).open().unwrap();
    let value = bytes::Bytes::from([&[1, 1][..], &10_u64.to_le_bytes()].concat());
    let late = bed.event(before(old), old, vec![Directive::Put(key_of("prices", &1_u64), old, value)]);

    let removed = bed.prices.remove(&1).await.unwrap().seq();
    bed.owner.wait_applied(removed).await.unwrap();
    bed.tell(old, removed, vec![Directive::Remove(key_of("prices", &1_u64), removed)]).await;
    assert_eq!(prices.get(&1).await.unwrap(), None);
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Memory, "the absence is remembered");
    bed.bus.deliver(&late);
    bed.bus.heard().await;
    assert_eq!(prices.get(&1).await.unwrap(), None);

    let new = bed.write(1, 11).await;
    bed.tell(removed, new, vec![changed(1, new)]).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    bed.bus.deliver(&bed.event(new, new, vec![Directive::Invalidate(Invalidation::Everything, new)]));
    bed.bus.deliver(&late);
    bed.bus.heard().await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11), "memory was emptied, and knows of nothing newer");
}

/// A follower that has key 1 in memory and has taken one event, about key 2. With that event's number.
async fn after_one_event() -> (Bed, Forebay, Cache<u64, u64>, Seq) {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (bay, prices) = bed.follower().await;
    let first = bed.write(2, 20).await;
    bed.tell(before(first), first, vec![changed(2, first)]).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    (bed, bay, prices, first)
}

#[tokio::test]
async fn a_gap_is_asked_for_again_from_the_last_message_before_it() {
    let (bed, bay, prices, first) = after_one_event().await;
    let missed = bed.write(1, 11).await;
    let last = bed.write(3, 30).await;
    bed.tell(before(last), last, vec![changed(3, last)]).await;
    assert_eq!(bed.bus.subscriptions(), [StartPosition::Now, StartPosition::After(Position::new("1"))]);
    assert!(bay.following().unwrap().has_gap);
    assert_eq!((bay.watermark(), prices.get(&1).await.unwrap()), (first, Some(10)), "nothing is known of it");
    bed.tell(before(missed), missed, vec![changed(1, missed)]).await;
    assert_eq!(bay.watermark(), last, "what was heard behind the gap counts");
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    let status = bay.following().unwrap();
    assert_eq!((status.gaps, status.places_lost), (1, 0));
}

#[tokio::test]
async fn a_gap_that_stays_empties_memory() {
    let (bed, bay, prices, _) = after_one_event().await;
    bed.write(1, 11).await;
    let last = bed.write(3, 30).await;
    let later = bed.event(before(last), last, vec![changed(3, last)]);
    bed.bus.deliver(&later);
    bed.bus.deliver(&later);
    bed.bus.heard().await;
    assert_eq!(bay.watermark(), last);
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    assert_eq!(bay.following().unwrap().places_lost, 1);
}

/// Of what belongs to no chain nothing shows that it is missing.
#[tokio::test]
async fn a_lost_position_empties_memory_where_directives_of_no_chain_are_taken() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (bay, prices) = bed.follower_with(bed.follow().outside_directives(true)).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    let last = bed.write(1, 11).await;
    bed.bus.lose_position();
    bed.bus.heard().await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    assert_eq!((bay.watermark(), bay.following().unwrap().places_lost), (last, 1));
}

/// A bus that came back empty made all followers empty their memories, though the events went on where they stood.
#[tokio::test]
async fn after_a_lost_position_the_chain_says_whether_anything_is_missing() {
    let bed = Bed::new().await;
    let first = bed.write(1, 10).await;
    bed.write(2, 20).await;
    let (bay, prices) = bed.follower().await;
    let sources = async || {
        let (one, two) = (prices.get_entry(&1).await.unwrap(), prices.get_entry(&2).await.unwrap());
        [(one.value, one.source), (two.value, two.source)]
    };
    let (memory, store) = (Source::Memory, Source::Store);
    sources().await;
    bed.bus.lose_position();
    let third = bed.write(1, 11).await;
    bed.tell(before(third), third, vec![changed(1, third)]).await;
    assert_eq!(sources().await, [(Some(11), store), (Some(20), memory)], "nothing was missing");
    let status = bay.following().unwrap();
    assert_eq!((status.positions_lost, status.places_lost), (1, 0));

    // Now something is, and a heartbeat shows it. It is asked for, and the bus has only what comes again.
    let fourth = bed.write(1, 12).await;
    bed.bus.lose_position();
    bed.tell(fourth, fourth, vec![]).await;
    assert_eq!(bay.following().unwrap().gaps, 1);
    bed.bus.lose_position();
    bed.bus.deliver(&bed.event(before(first), first, vec![changed(1, first)]));
    bed.tell(fourth, fourth, vec![]).await;
    assert_eq!(sources().await, [(Some(12), store), (Some(20), store)]);
    let status = bay.following().unwrap();
    assert_eq!((status.positions_lost, status.places_lost, bay.watermark()), (3, 1, fourth));
}

#[tokio::test]
async fn what_is_not_to_be_believed_is_refused_and_counted_and_does_nothing() {
    let bed = Bed::new().await;
    let seq = bed.write(1, 10).await;
    let (bay, prices) = bed.follower().await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    bed.bus.deliver_bytes(&b"no event"[..]);
    let mut flipped = bed.event(seq, seq.next(), vec![changed(1, seq.next())]).encode().unwrap().to_vec();
    flipped[40] ^= 1;
    bed.bus.deliver_bytes(flipped);
    bed.bus.deliver_bytes(vec![1; forebay::bus::BODY_BYTES_MAX + 1]);
    // Of nobody's chain.
    bed.bus.deliver(&bed.event(Seq::ZERO, Seq::ZERO, vec![changed(1, Seq::ZERO)]));
    // A follower's word on the owner's channel.
    bed.bus.deliver(&Event {
        payload: Payload::Seen("x".into()),
        ..bed.event(seq, seq.next(), vec![changed(1, seq.next())])
    });
    // Of an owner that the store does not know, and would silence the true one.
    let forged = bed.event(seq, seq.next(), vec![changed(1, seq.next())]);
    bed.bus.deliver(&Event { epoch: Epoch::new(bed.epoch().get() + 1), ..forged.clone() });
    bed.bus.deliver(&Event { epoch: Epoch::new(bed.epoch().get() - 1), ..forged });
    bed.tell(seq, seq, vec![Directive::Remove(key_of("elsewhere", &1_u64), seq)]).await;
    let status = bay.following().unwrap();
    assert_eq!((status.refused, status.refused_owner, status.directives_elsewhere), (5, 2, 1));
    assert_eq!((status.position, status.epoch), (seq, bed.epoch()));
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Memory);
    // The true owner is still heard.
    let next = bed.write(1, 11).await;
    bed.tell(seq, next, vec![changed(1, next)]).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
}

#[tokio::test]
async fn directives_from_outside_are_carried_out_where_that_is_wanted() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let (_bay, prices) = bed.follower_with(bed.follow().outside_directives(true)).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    let event = bed.event(Seq::ZERO, Seq::ZERO, vec![changed(1, Seq::ZERO)]);
    bed.bus.deliver(&Event { epoch: Epoch::new(0), ..event });
    bed.bus.heard().await;
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Store);
}

/// A thawed owner says what it had still to say, after another one has taken over.
#[tokio::test]
async fn an_owner_that_another_has_followed_is_not_heard() {
    let bed = Bed::new().await;
    let seq = bed.write(1, 10).await;
    let (bay, prices) = bed.follower().await;
    let old = bed.event(seq, seq.next(), vec![changed(1, seq.next())]);
    bed.owner.close().await.unwrap();
    let next_owner = bed.layer.builder().changes(true).open().await.unwrap();
    eventually("the next owner is known", || bay.following().unwrap().epoch == next_owner.health().epoch)
        .await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    bed.bus.deliver(&old);
    bed.bus.heard().await;
    let status = bay.following().unwrap();
    assert_eq!((status.refused_owner, status.position), (1, seq));
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Memory);
}

/// An event of a new owner came while the store did not answer: it was skipped, could not be asked for again, and the
/// place was lost.
#[tokio::test]
async fn a_new_owners_events_wait_until_the_store_can_say_who_it_is() {
    let bed = Bed::new().await;
    let seq = bed.write(1, 10).await;
    let store = FlakyStore::new(bed.layer.store.clone());
    let bay = bed.open(store.clone(), bed.follow()).await;
    let prices = bay.cache::<u64, u64>("prices").open().unwrap();
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));
    store.fail_standing(true);
    bed.owner.close().await.unwrap();
    let next_owner = bed.layer.builder().changes(true).open().await.unwrap();
    let written = next_owner.cache::<u64, u64>("prices").open().unwrap().put(&1, 11).await.unwrap().seq();
    next_owner.flush().await.unwrap();
    let event = bed.event(seq, written, vec![changed(1, written)]);
    bed.bus.deliver(&Event { epoch: next_owner.health().epoch, ..event });
    eventually("the store is asked in vain", || bay.following().unwrap().error.is_some()).await;
    assert_eq!(bay.watermark(), seq);
    store.fail_standing(false);
    bay.wait_applied(written).await.unwrap();
    assert_eq!(prices.get(&1).await.unwrap(), Some(11));
    let status = bay.following().unwrap();
    assert_eq!((status.gaps, status.places_lost), (0, 0));
}

#[tokio::test]
async fn a_bus_that_fails_is_listened_to_again_and_says_so_meanwhile() {
    let bed = Bed::new().await;
    let seq = bed.write(1, 10).await;
    let (bay, _prices) = bed.follower().await;
    bed.bus.fail(Error::new(ErrorKind::Transient, "the bus is away"));
    bed.bus.heard().await;
    assert!(format!("{:#}", bay.following().unwrap().error.unwrap()).contains("the bus is away"));
    let next = bed.write(1, 11).await;
    bed.tell(seq, next, vec![changed(1, next)]).await;
    assert!(bay.following().unwrap().error.is_none());
    assert_eq!(bay.watermark(), next);
}
