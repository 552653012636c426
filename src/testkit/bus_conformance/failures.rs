//! Checks with killed servers and cut connections: no message is lost between a publisher that repeats failed calls and
//! a listener that goes on after errors.

use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};

use crate::bus::contract::{Channel, StartPosition};
use crate::testkit::bus_conformance::fixture::BusFixture;
use crate::testkit::bus_conformance::listening::{Listener, Losses, Publisher, all, channel, within};
use crate::testkit::draw::Draw;

/// The number of messages acknowledged at least before, between and after the failures.
const PHASE_MESSAGES: u64 = 60;

/// Checks that a server that is killed and started again with its data has every acknowledged message, in order, and
/// that no listener loses its position.
///
/// # Panics
/// If the bus breaks this.
pub async fn restarts_lose_nothing(fixture: &dyn BusFixture) {
    const RESTARTS: u64 = 2;
    // A fixture without a server says so here, before the check relies on it.
    if !fixture.restart().await {
        return;
    }
    let mut run = FailureRun::begin(fixture, "restart", Losses::Never).await;
    for _ in 0..RESTARTS {
        run.acknowledge_more().await;
        assert!(fixture.restart().await, "a fixture that has a server has it again");
    }
    run.end(fixture).await;
}

/// Checks that a listener gets every acknowledged message in order, or a lost position, while connections are cut and
/// accepted again.
///
/// # Panics
/// If the bus breaks this.
pub async fn cuts_lose_nothing(fixture: &dyn BusFixture) {
    const CUTS: u64 = 3;
    if !fixture.cut().await {
        return;
    }
    // The first cut only asked whether the fixture can cut.
    fixture.mend().await;
    let mut run = FailureRun::begin(fixture, "cut", Losses::Allowed).await;
    for _ in 0..CUTS {
        run.acknowledge_more().await;
        assert!(fixture.cut().await, "a fixture that can cut connections can do so again");
        // Wait until the publisher has noticed the cut, so that it repeats a call.
        run.fail_more().await;
        fixture.mend().await;
    }
    run.end(fixture).await;
}

/// A publisher and listeners that go on during failures.
struct FailureRun {
    channel: Channel,
    losses: Losses,
    acknowledged: watch::Receiver<u64>,
    failures: watch::Receiver<u64>,
    ending: watch::Sender<bool>,
    end: watch::Receiver<Option<u64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FailureRun {
    async fn begin(fixture: &dyn BusFixture, what: &'static str, losses: Losses) -> FailureRun {
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
                // Lets other tasks of the thread run between two messages.
                yield_now().await;
            }
            // Set before the last message, so that a listener that gets it knows that it is the last.
            end_is.send_replace(Some(publisher.next + 1));
            publisher.publish_repeating(1, &fails).await;
        }));
        FailureRun { channel, losses, acknowledged, failures, ending, end, tasks }
    }

    async fn acknowledge_more(&mut self) {
        self.grow(self.acknowledged.clone(), PHASE_MESSAGES, "further acknowledgements").await;
    }

    async fn fail_more(&mut self) {
        let what = "a failure of the publisher while all connections are cut";
        self.grow(self.failures.clone(), 1, what).await;
    }

    /// Waits until a count has grown by this much.
    async fn grow(&mut self, mut count: watch::Receiver<u64>, by: u64, what: &str) {
        let enough = *count.borrow() + by;
        let grown = within(what, count.wait_for(|now| *now >= enough)).await.is_ok();
        if !grown {
            // The publisher has ended; its panic is resumed here.
            all(std::mem::take(&mut self.tasks)).await;
            panic!("the publisher ended early");
        }
    }

    async fn end(mut self, fixture: &dyn BusFixture) {
        self.acknowledge_more().await;
        self.ending.send_replace(true);
        all(self.tasks).await;
        let end = self.end.borrow().expect("the publisher sets the end before it ends");
        // A later listener finds all messages, too.
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
