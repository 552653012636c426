//! Checks of start positions, and of positions that are lost.

use crate::bus::contract::{Delivery, Position, StartPosition};
use crate::error::ErrorKind;
use crate::testkit::bus_conformance::fixture::BusFixture;
use crate::testkit::bus_conformance::listening::{
    Judgement, Listener, Losses, Publisher, all, channel, within,
};

/// Checks that a subscription from the oldest message gets all retained messages and then the new ones.
///
/// # Panics
/// If the bus breaks this.
pub async fn oldest_brings_all_that_is_held(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("oldest");
    // An empty channel has no message that could be the oldest, and a bus may take that for an error or for now.
    let mut early =
        Listener::new("oldest, of an empty channel", &listens, &channel, StartPosition::Oldest, [1]).await;
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    publisher.publish(30).await;
    let mut late =
        Listener::new("oldest, of a channel with messages", &listens, &channel, StartPosition::Oldest, [1])
            .await;
    publisher.publish(30).await;
    early.hear_until(60).await;
    late.hear_until(60).await;
}

/// Checks that a subscription after any position gets all later messages, and none twice if positions are exact.
///
/// # Panics
/// If the bus breaks this.
pub async fn after_goes_on_exactly(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 25;
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("after");
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    let mut listener = Listener::new("all positions", &listens, &channel, StartPosition::Now, [1]).await;
    publisher.publish(MESSAGES).await;
    let places = listener.hear_until(MESSAGES).await;
    let mut resumed = Vec::new();
    for (place, next) in places.into_iter().zip(1..) {
        let name = format!("after the position of message {}", next - 1);
        let listener = Listener::new(name, &listens, &channel, StartPosition::After(place), [1]).await;
        resumed.push(exactly(fixture, listener.beginning_with(next)));
    }
    publisher.publish(5).await;
    for mut listener in resumed {
        listener.hear_until(MESSAGES + 5).await;
    }
}

/// Allows repetitions only if positions are not exact.
fn exactly(fixture: &dyn BusFixture, mut listener: Listener) -> Listener {
    listener.repeats = !fixture.positions_are_exact();
    listener
}

/// Checks that a position of one client is valid in another one, also while others publish.
///
/// # Panics
/// If the bus breaks this.
pub async fn a_position_resumes_in_another_client(fixture: &dyn BusFixture) {
    const MESSAGES: u64 = 200;
    let channel = channel("resumes");
    let publishes = fixture.connect().await;
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    publisher.publish(1).await;
    let publishing = tokio::spawn(async move {
        while publisher.next < MESSAGES {
            publisher.publish(1).await;
        }
    });
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(fixture.connect().await);
    }
    let mut from = StartPosition::Oldest;
    let mut next = 0;
    // Each client goes on where another one stood, so a position may not depend on its client.
    for client in clients.iter().cycle() {
        let name = format!("a client that goes on with message {next} where another one stood");
        let listener = Listener::new(name, client, &channel, from, [1]).await;
        let mut listener = exactly(fixture, listener.beginning_with(next));
        let end = MESSAGES.min(next + 17);
        let places = listener.hear_until(end).await;
        next = end;
        if next == MESSAGES {
            break;
        }
        let last: Position = places.into_iter().next_back().expect("new messages were heard");
        from = StartPosition::After(last);
    }
    all([publishing]).await;
}

/// Checks that a listener gets one lost position for messages that were trimmed before it had them, and goes on with
/// the remaining ones. A listener that reads ahead may have had them.
///
/// # Panics
/// If the bus breaks this.
pub async fn a_gap_is_told(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("gap");
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    let listen = |name: &'static str, from: StartPosition, next: u64| {
        let (listens, channel) = (&listens, &channel);
        async move {
            let listener = Listener::new(name, listens, channel, from, [1]).await;
            listener.beginning_with(next).allowing(Losses::Exact)
        }
    };
    let mut unheard =
        listen("a listener that has heard nothing before the trim", StartPosition::Now, 0).await;
    let mut halfway =
        listen("a listener that has heard a part before the trim", StartPosition::Oldest, 0).await;
    publisher.publish(10).await;
    let places = halfway.hear_until(4).await;
    fixture.trim(&channel).await;

    let [.., middle] = places.as_slice() else {
        panic!("a listener that has heard four messages has four places")
    };
    let mut resumed =
        listen("a listener after a trimmed position", StartPosition::After(middle.clone()), 4).await;
    let first = resumed.hear().await;
    assert!(first == Judgement::Lost, "a listener after a trimmed position: first came {first:?}");
    publisher.publish(5).await;
    for listener in [&mut unheard, &mut halfway, &mut resumed] {
        listener.hear_until(15).await;
        // At most once for each trim: a cache invalidates everything at each lost position.
        assert!(listener.times_lost <= 1, "one gap was told {} times", listener.times_lost);
    }
    assert!(resumed.times_lost == 1, "a gap was told {} times", resumed.times_lost);

    // A later position is valid while the messages behind it are retained.
    let places = listen("what is held", StartPosition::Oldest, 10).await.hear_until(15).await;
    let [first_held, ..] = places.as_slice() else { panic!("five messages have five places") };
    let mut later =
        listen("after a trim", StartPosition::After(first_held.clone()), 11).await.allowing(Losses::Never);
    later.hear_until(15).await;
}

/// Checks that a trim of messages that a listener has had is no lost position.
///
/// # Panics
/// If the bus breaks this.
pub async fn a_trim_that_took_nothing_is_not_told(fixture: &dyn BusFixture) {
    let (publishes, listens) = (fixture.connect().await, fixture.connect().await);
    let channel = channel("end");
    fixture.trim(&channel).await;
    let mut empty = Listener::new("of an empty channel", &listens, &channel, StartPosition::Now, [1]).await;
    let mut publisher = Publisher::new(&publishes, &channel, 1);
    publisher.publish(10).await;
    let places = empty.hear_until(10).await;
    let [.., before_last, last] = places.as_slice() else { panic!("ten messages have ten places") };
    let mut listeners = vec![empty];
    for (name, from) in [
        ("at the end, from now on", StartPosition::Now),
        ("at the end, after the last position", StartPosition::After(last.clone())),
    ] {
        listeners.push(Listener::new(name, &listens, &channel, from, [1]).await.beginning_with(10));
    }
    fixture.trim(&channel).await;
    for (name, from) in [
        ("from now on, once trimmed", StartPosition::Now),
        ("after the last position, once trimmed", StartPosition::After(last.clone())),
        ("from the oldest on, once trimmed", StartPosition::Oldest),
    ] {
        listeners.push(Listener::new(name, &listens, &channel, from, [1]).await.beginning_with(10));
    }
    let lacking = StartPosition::After(before_last.clone());
    let mut lacking = Listener::new("one message is trimmed", &listens, &channel, lacking, [1]).await;
    lacking = lacking.beginning_with(9).allowing(Losses::Exact);
    publisher.publish(5).await;
    let late = StartPosition::After(last.clone());
    let late = Listener::new("after the last trimmed position", &listens, &channel, late, [1]).await;
    listeners.push(late.beginning_with(10));
    for listener in &mut listeners {
        listener.hear_until(15).await;
    }
    lacking.hear_until(15).await;
    assert!(lacking.times_lost == 1, "one trimmed message was told {} times", lacking.times_lost);
}

/// Checks that text that is not a position of the bus gives a permanent error or a lost position, and never a silent
/// start elsewhere.
///
/// # Panics
/// If the bus breaks this.
pub async fn what_is_no_position_is_told(fixture: &dyn BusFixture) {
    let client = fixture.connect().await;
    let channel = channel("none");
    Publisher::new(&client, &channel, 1).publish(3).await;
    // Texts that a bus may take for a number, for its own start or end, or for the end of a command.
    for text in ["", "no position", "-1", "\r\n$0"] {
        let what = format!("listening after {text:?}, which is no position");
        let first = match within(&what, client.subscribe(&channel, StartPosition::After(Position::new(text))))
            .await
        {
            Ok(mut subscription) => within(&what, subscription.next()).await,
            Err(error) => Err(error),
        };
        match first {
            Ok(Delivery::PositionLost) => {}
            Err(error) if error.kind() == ErrorKind::BusFailed => {}
            other => panic!("{what}, gave {other:?}"),
        }
    }
}
