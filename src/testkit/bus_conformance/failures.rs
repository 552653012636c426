//! Checks of what holds while servers are killed and connections are cut: a publisher that repeats what failed, and a
//! listener that listens on after an error, lose nothing between them.

use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};

use crate::bus::contract::{Channel, StartPosition};
use crate::testkit::bus_conformance::BusFixture;
use crate::testkit::bus_conformance::listening::{Listener, Losses, Publisher, all, channel, within};
use crate::testkit::draw::Draw;

/// How many messages are acknowledged, at the least, before, between and after the failures.
const PHASE_MESSAGES: u64 = 60;

/// A server that is killed and started again over its data has every message that it acknowledged, in order, and no
/// listener needs to be told that its position is lost.
///
/// # Panics
/// If the bus breaks this.
pub async fn restarts_lose_nothing(fixture: &dyn BusFixture) {
    const RESTARTS: u64 = 2;
    // Asked before anything relies on it.
    if !fixture.restart().await {
        return;
    }
    let mut run = Run::begin(fixture, "restart", Losses::Never).await;
    for _ in 0..RESTARTS {
        run.acknowledge_more().await;
        assert!(fixture.restart().await, "a fixture that has a server has it again");
    }
    run.end(fixture).await;
}

/// While connections are cut and mended, a listener gets every acknowledged message in order, or is told that its
/// position is lost.
///
/// # Panics
/// If the bus breaks this.
pub async fn cuts_lose_nothing(fixture: &dyn BusFixture) {
    const CUTS: u64 = 3;
    if !fixture.cut().await {
        return;
    }
    fixture.mend().await;
    let mut run = Run::begin(fixture, "cut", Losses::Allowed).await;
    for _ in 0..CUTS {
        run.acknowledge_more().await;
        assert!(fixture.cut().await, "a fixture that can cut connections can do so again");
        // Whoever publishes has noticed, so something is repeated.
        run.fail_more().await;
        fixture.mend().await;
    }
    run.end(fixture).await;
}

/// A publisher and listeners that go on, whatever happens.
struct Run {
    channel: Channel,
    losses: Losses,
    acknowledged: watch::Receiver<u64>,
    failures: watch::Receiver<u64>,
    ending: watch::Sender<bool>,
    end: watch::Receiver<Option<u64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Run {
    async fn begin(fixture: &dyn BusFixture, what: &'static str, losses: Losses) -> Run {
        let channel = channel(what);
        let (end_is, end) = watch::channel(None);
        let mut tasks = Vec::new();
        for number in 0..2 {
            let client = fixture.connect().await;
            let name = format!("{what}, listener {number}");
            let listener = Listener::new(name, &client, &channel, StartPosition::Now, [1]).await;
            let (mut listener, end) = (listener.allowing(losses), end.clone());
            tasks.push(tokio::spawn(async move { listener.hear_until_despite_errors(&end).await }));
        }
        let (acknowledges, acknowledged) = watch::channel(0);
        let (fails, failures) = watch::channel(0);
        let (ending, ended) = watch::channel(false);
        let client = fixture.connect().await;
        let mut publisher = Publisher::new(&client, &channel, 1);
        let mut draw = Draw::new(5);
        tasks.push(tokio::spawn(async move {
            while !*ended.borrow() {
                publisher.publish_repeating(draw.up_to(4), &fails).await;
                acknowledges.send_replace(publisher.next);
                // Others of the same thread get their turn between two messages.
                yield_now().await;
            }
            // Known before the last message, so that whoever hears that knows that it was the last.
            end_is.send_replace(Some(publisher.next + 1));
            publisher.publish_repeating(1, &fails).await;
        }));
        Run { channel, losses, acknowledged, failures, ending, end, tasks }
    }

    async fn acknowledge_more(&mut self) {
        self.grow(self.acknowledged.clone(), PHASE_MESSAGES, "further acknowledgements").await;
    }

    async fn fail_more(&mut self) {
        let what = "a failure of whoever publishes while all connections are cut";
        self.grow(self.failures.clone(), 1, what).await;
    }

    /// Waits until a count is larger by so much.
    async fn grow(&mut self, mut count: watch::Receiver<u64>, by: u64, what: &str) {
        let enough = *count.borrow() + by;
        let grown = within(what, count.wait_for(|now| *now >= enough)).await.is_ok();
        if !grown {
            // Whoever publishes has ended, and tells why.
            all(std::mem::take(&mut self.tasks)).await;
            panic!("whoever publishes ended early");
        }
    }

    async fn end(mut self, fixture: &dyn BusFixture) {
        self.acknowledge_more().await;
        self.ending.send_replace(true);
        all(self.tasks).await;
        let end = self.end.borrow().expect("who publishes says where it ends, and then ends");
        // Whoever comes afterwards finds it all, too.
        let client = fixture.connect().await;
        let late = Listener::new(
            "afterwards, from the oldest on",
            &client,
            &self.channel,
            StartPosition::Oldest,
            [1],
        );
        late.await.allowing(self.losses).hear_until(end).await;
    }
}
