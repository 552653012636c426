//! Checks without failures: all messages are delivered, in order, and no others.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::bus::contract::{
    BODY_BYTES_MAX, Channel, Delivery, IDENTITY_BYTES_MAX, Identity, Message, StartPosition,
};
use crate::error::ErrorKind;
use crate::testkit::bus_conformance::fixture::{BusFixture, DEADLINE, QUIET};
use crate::testkit::bus_conformance::listening::{
    Judgement, Listener, Publisher, all, body, channel, message, publish, within,
};
use crate::testkit::draw::Draw;

/// Checks that the messages of one publisher are delivered in their order, for calls of any size.
///
/// # Panics
/// If the bus breaks this.
pub async fn order_within_a_publisher(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 400;
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("order");
    let mut listener =
        Listener::new("order within a publisher", &listens, &channel, StartPosition::Now, [1]).await;
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    let mut draw = Draw::new(1);
    all([tokio::spawn(async move {
        while publisher.next < MESSAGES {
            publisher.publish(draw.up_to(20).min(MESSAGES - publisher.next)).await;
        }
    })])
    .await;
    listener.hear_until(MESSAGES).await;
}

/// Checks several publishers and listeners at once, some of which share a client: each listener gets all messages,
/// those of each publisher in order, and no invented ones.
///
/// # Panics
/// If the bus breaks this.
pub async fn several_publishers_and_listeners(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 150;
    const PUBLISHERS: u32 = 4;
    let channel = channel("several");
    let shared = fixture.connect().await;
    let mut listeners = Vec::new();
    for number in 0..3 {
        let own = fixture.connect().await;
        // One listener shares its client with publishers, where a bus may block one by the other.
        let bus = if number == 0 { &shared } else { &own };
        let name = format!("several publishers, listener {number}");
        let mut listener = Listener::new(name, bus, &channel, StartPosition::Now, 0..PUBLISHERS).await;
        listeners.push(tokio::spawn(async move { drop(listener.hear_until(MESSAGES).await) }));
    }
    let mut publishers = Vec::new();
    for id in 0..PUBLISHERS {
        let bus = if id < 2 { shared.clone() } else { fixture.connect().await };
        let mut publisher = Publisher::new(&bus, &channel, id);
        let mut draw = Draw::new(u64::from(id));
        publishers.push(tokio::spawn(async move {
            while publisher.next < MESSAGES {
                publisher.publish(draw.up_to(7).min(MESSAGES - publisher.next)).await;
            }
        }));
    }
    all(publishers.into_iter().chain(listeners)).await;
}

/// Checks that each of many listeners gets all messages.
///
/// # Panics
/// If the bus breaks this.
pub async fn many_listeners(fixture: &dyn BusFixture) {
    const LISTENERS: usize = 32;
    const MESSAGES: u64 = 60;
    let clients = [fixture.connect().await, fixture.connect().await];
    let channel = channel("many");
    let mut listening = Vec::new();
    for number in 0..LISTENERS {
        let client = if number % 2 == 0 { &clients[0] } else { &clients[1] };
        let name = format!("many listeners, number {number}");
        let mut listener = Listener::new(name, client, &channel, StartPosition::Now, [1]).await;
        listening.push(tokio::spawn(async move { drop(listener.hear_until(MESSAGES).await) }));
    }
    let mut publisher = Publisher::new(&clients[0], &channel, 1);
    for _ in 0..MESSAGES / 5 {
        publisher.publish(5).await;
    }
    all(listening).await;
}

/// Checks that channels with similar names share nothing, and that names may have the maximal length.
///
/// # Panics
/// If the bus breaks this.
pub async fn channels_are_apart(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 20;
    let client = fixture.connect().await;
    let first = channel("apart");
    let longest = format!("{first}{}", "-x".repeat(64));
    // Names that differ in case, by a suffix and in length: a bus that folds or cuts names mixes them up.
    let names =
        [first.to_string(), first.to_string().to_uppercase(), format!("{first}-2"), longest[..64].into()];
    let mut pairs = Vec::new();
    for (id, name) in (0..).zip(names) {
        let channel = Channel::parse(&name).expect("the check chose a good name");
        let listener =
            Listener::new(format!("channel {name}"), &client, &channel, StartPosition::Now, [id, 9]).await;
        pairs.push((channel.clone(), Publisher::new(&client, &channel, id), listener));
    }
    for number in 0..MESSAGES {
        for (channel, publisher, _) in &mut pairs {
            publisher.publish(1).await;
            // The same identity and body in all channels.
            publish(&client, channel, &[message(9, number)]).await;
        }
    }
    for (channel, _, listener) in &mut pairs {
        listener.hear_until(MESSAGES).await;
        let identity = "i".repeat(IDENTITY_BYTES_MAX);
        let identity = Identity::parse(&identity).expect("the check chose a good name");
        let last = Message { identity, body: body(9, MESSAGES) };
        publish(&client, channel, &[last]).await;
        // It comes last, after any repetitions of the others.
        while listener.hear().await == Judgement::Again {}
    }
}

/// Checks that a subscription from now on gets all messages published after it has returned.
///
/// # Panics
/// If the bus breaks this.
pub async fn now_misses_nothing_that_comes_later(fixture: &dyn BusFixture) {
    const ROUNDS: u64 = 20;
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("now");
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    for round in 0..ROUNDS {
        publisher.publish(3).await;
        let subscribed = within("subscribing", listens.subscribe(&channel, StartPosition::Now)).await;
        let mut subscription = subscribed.expect("subscribing, with nothing wrong around");
        publisher.publish(2).await;
        let (first, last) = (body(1, 5 * round + 3), body(1, 5 * round + 4));
        let earlier: BTreeSet<Bytes> = (0..5 * round + 3).map(|number| body(1, number)).collect();
        let mut awaited = &first;
        loop {
            // The listener may get earlier messages too, which the contract allows for this start.
            let what =
                format!("a listener from now on, round {round}: what was published after it subscribed");
            match within(&what, subscription.next()).await {
                Ok(Delivery::Message(_, body)) if body == *awaited && *awaited == last => break,
                Ok(Delivery::Message(_, body)) if body == *awaited => awaited = &last,
                Ok(Delivery::Message(_, body)) if earlier.contains(&body) || body == first => {}
                other => panic!("{what}: instead came {other:?}"),
            }
        }
    }
}

/// Checks that publishing messages again loses none: new messages are delivered, as are equal bodies with another
/// identity, and the order is kept.
///
/// # Panics
/// If the bus breaks this.
pub async fn publishing_again_does_no_harm(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("again");
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    publisher.publish(10).await;
    let mut listener =
        Listener::new("publishing again", &listens, &channel, StartPosition::Oldest, [1]).await;
    // In overlapping parts, as a publisher repeats a call whose answer was lost.
    publisher.again(0, 10).await;
    publisher.again(5, 10).await;
    publisher.again(9, 11).await;
    publisher.again(19, 1).await;
    listener.hear_until(20).await;

    let same = |identity: &str| Message {
        identity: Identity::parse(identity).expect("the check chose a good name"),
        body: body(1, 20),
    };
    publish(&publishes, &channel, &[same("one"), same("another")]).await;
    // By position, because a message that is delivered twice has the same contents as two equal ones.
    let mut places = BTreeSet::new();
    while places.len() < 2 {
        let what = "publishing again: two messages that say the same, of two identities";
        match within(what, listener.subscription.next()).await {
            Ok(Delivery::Message(place, delivered)) => {
                let known = (0..=20).any(|number| body(1, number) == delivered);
                assert!(known, "{what}: something came that nobody published");
                if delivered == body(1, 20) {
                    places.insert(place.as_str().to_owned());
                }
            }
            other => panic!("{what}: instead came {other:?}"),
        }
    }
}

/// Checks that bodies are delivered unchanged: from 0 to [`BODY_BYTES_MAX`] bytes, with all byte values, and several
/// large ones in one call. A call without messages does nothing.
///
/// # Panics
/// If the bus breaks this.
pub async fn bodies_of_every_size(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("sizes");
    let subscribed = within("subscribing", listens.subscribe(&channel, StartPosition::Now)).await;
    let mut subscription = subscribed.expect("subscribing, with nothing wrong around");
    let sizes =
        [0, 1, 2, 255, 256, 257, 4_095, 4_096, 65_535, 65_536, 65_537, BODY_BYTES_MAX - 1, BODY_BYTES_MAX];
    let mut draw = Draw::new(7);
    let mut calls: Vec<Vec<Bytes>> = sizes.iter().map(|size| vec![noise(&mut draw, *size)]).collect();
    // All byte values, and bytes with a meaning in text protocols.
    calls.push(vec![Bytes::from_iter(0..=u8::MAX), Bytes::from_static(b"\r\n\0'\"$ *3\r\n")]);
    calls.push((0..6).map(|_| noise(&mut draw, BODY_BYTES_MAX)).collect());
    calls.push(Vec::new());
    calls.push(vec![Bytes::from_static(b"last")]);
    for (number, bodies) in calls.iter().enumerate() {
        let messages: Vec<Message> =
            bodies.iter().enumerate().map(|(at, body)| known(number, at, body)).collect();
        publish(&publishes, &channel, &messages).await;
    }
    let mut before = None;
    for expected in calls.iter().flatten() {
        loop {
            let what = format!("a body of {} bytes", expected.len());
            match within(&what, subscription.next()).await {
                Ok(Delivery::Message(_, body)) if body == *expected => break,
                Ok(Delivery::Message(_, body)) if Some(&body) == before => {}
                Ok(Delivery::Message(_, body)) => {
                    panic!("{what} came otherwise, or one of {} did", body.len())
                }
                Ok(Delivery::PositionLost) => {
                    panic!("{what}: told that the position is lost; nothing was lost")
                }
                Err(error) => panic!("{what}: {error:?}"),
            }
        }
        before = Some(expected);
    }
}

fn known(call: usize, at: usize, body: &Bytes) -> Message {
    let identity = Identity::parse(&format!("{call}.{at}")).expect("the check chose a good name");
    Message { identity, body: body.clone() }
}

fn noise(draw: &mut Draw, bytes: usize) -> Bytes {
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| draw.next().to_le_bytes()).collect();
    noise.truncate(bytes);
    Bytes::from(noise)
}

/// Checks that a body of one byte too many is refused, and that no message of its call is published.
///
/// # Panics
/// If the bus breaks this.
pub async fn too_large_is_refused_as_a_whole(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("large");
    let mut listener = Listener::new("too large", &listens, &channel, StartPosition::Now, [1, 2]).await;
    let large = known(0, 0, &Bytes::from(vec![7; BODY_BYTES_MAX + 1]));
    // The large body alone, last, first and in the middle: a bus that checks while it sends publishes a part.
    let calls = [
        vec![large.clone()],
        vec![message(1, 0), message(2, 0), large.clone()],
        vec![large.clone(), message(1, 0)],
        vec![message(1, 0), large, message(2, 0)],
    ];
    for call in &calls {
        match within("publishing", publishes.publish(&channel, call)).await {
            Err(error) if error.kind() == ErrorKind::TooLarge => {}
            other => panic!("{} bytes are too many, and publishing them gave {other:?}", BODY_BYTES_MAX + 1),
        }
    }
    // Another publisher than in those calls, so that a message of a refused call would come first and be noticed.
    publish(&publishes, &channel, &[message(3, 0)]).await;
    match within("what follows a refused call", listener.subscription.next()).await {
        Ok(Delivery::Message(_, delivered)) => {
            assert!(delivered == body(3, 0), "a part of a call that was refused as too large was published");
        }
        other => panic!("what follows a refused call: instead came {other:?}"),
    }
    publish(&publishes, &channel, &[message(1, 0), message(2, 0)]).await;
    // The identity of a refused message may be used again.
    let mut awaited = vec![body(1, 0), body(2, 0)];
    while !awaited.is_empty() {
        match within("what was refused once", listener.subscription.next()).await {
            Ok(Delivery::Message(_, delivered)) => awaited.retain(|body| *body != delivered),
            other => panic!("what was refused once: instead came {other:?}"),
        }
    }
}

/// Checks that a listener waits while nothing is published: it does not end, fail or poll.
///
/// # Panics
/// If the bus breaks this.
pub async fn waits_while_nothing_is_published(fixture: &dyn BusFixture) {
    /// The number of polls allowed within [`QUIET`] without a delivery.
    const POLLS_MAX: u32 = 100;
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("waits");
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    let mut listener = Listener::new("waiting", &listens, &channel, StartPosition::Now, [1]).await;
    for round in 0..2 {
        let mut polls = 0;
        let delivery = {
            let mut next = listener.subscription.next();
            let waits = poll_fn(|context| {
                polls += 1;
                assert!(
                    polls <= POLLS_MAX,
                    "a listener that waits did work {polls} times while nothing was published"
                );
                next.as_mut().poll(context)
            });
            if let Ok(came) = timeout(QUIET, waits).await {
                panic!("nothing was published, and a listener that waits got {came:?}");
            }
            publisher.publish(1).await;
            // The same future goes on: a long wait must still end with the message.
            within("a message, after a while without any", next).await
        };
        let delivery = delivery.expect("listening, with nothing wrong around");
        assert!(matches!(listener.judge(delivery), Judgement::New(_)), "a message, in round {round}");
    }
}

/// Checks that dropping the future of `next` at any moment loses no message.
///
/// # Panics
/// If the bus breaks this.
pub async fn cancelled_waits_lose_nothing(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 300;
    /// The largest number of polls before a future is dropped.
    const POLLS_MAX: u64 = 8;
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("cancel");
    let mut listener =
        Listener::new("dropped while waiting", &listens, &channel, StartPosition::Now, [1]).await;
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    let mut draw = Draw::new(3);
    let (waits, mut waiting) = watch::channel(0_u64);
    let publishing = tokio::spawn(async move {
        while publisher.next < MESSAGES {
            // Published while somebody waits, so that it comes in the middle of that.
            waiting.changed().await.expect("the listener waits until all is published");
            publisher.publish(draw.up_to(4).min(MESSAGES - publisher.next)).await;
        }
    });
    let mut draw = Draw::new(4);
    let mut dropped = 0_u64;
    let hearing = async {
        while !listener.has_all_before(MESSAGES) {
            let (mut polls, polls_max) = (0, draw.up_to(POLLS_MAX));
            let mut next = listener.subscription.next();
            let mut heard = None;
            let polled = poll_fn(|context| {
                polls += 1;
                let Poll::Pending = next.as_mut().poll(context).map(|delivered| heard = Some(delivered))
                else {
                    return Poll::Ready(());
                };
                waits.send_modify(|waits| *waits += 1);
                if polls >= polls_max { Poll::Ready(()) } else { Poll::Pending }
            });
            polled.await;
            drop(next);
            match heard {
                Some(Ok(delivery)) => drop(listener.judge(delivery)),
                Some(Err(error)) => panic!("listening, with nothing wrong around: {error:?}"),
                None => {
                    dropped += 1;
                    yield_now().await;
                }
            }
        }
    };
    if timeout(DEADLINE, hearing).await.is_err() {
        panic!("a listener whose waits are dropped: the last messages did not come within {DEADLINE:?}");
    }
    all([publishing]).await;
    assert!(dropped > 0, "no wait was dropped, so nothing was checked");
}
