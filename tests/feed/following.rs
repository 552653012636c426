//! A layer that follows another process: what it hears, what it makes of gaps and silence, and whom it believes.

mod events;
mod ownership;
mod publishing;
mod scripted_bus;
mod staleness;
mod store_answers;

use std::time::Duration;

use forebay::Invalidation;
use forebay::bus::{Directive, Event, Payload};
use forebay::store::Store;
use forebay::{Cache, Epoch, Follow, Forebay, Seq};
use scripted_bus::ScriptedBus;

use crate::support::{Layer, key_of};

/// Longer than anything here takes, and no test is to fail for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An owner of a store, and how it speaks is left to the test.
struct Bed {
    layer: Layer,
    owner: Forebay,
    prices: Cache<u64, u64>,
    bus: ScriptedBus,
}

impl Bed {
    async fn new() -> Bed {
        let layer = Layer::new();
        let owner = layer.builder().changes(true).open().await.unwrap();
        let prices = owner.cache("prices").open().unwrap();
        Bed { layer, owner, prices, bus: ScriptedBus::default() }
    }

    fn follow(&self) -> Follow {
        // Asked often, so that no test waits for it.
        Follow::new(self.bus.clone(), "prices").probe_interval(ms(2)).lag_max(Duration::from_secs(3600))
    }

    /// Opens a layer that follows the owner, and waits until it listens.
    async fn open(&self, store: impl Store, follow: Follow) -> Forebay {
        let bay = Forebay::builder(store).follow(follow).open().await.unwrap();
        self.bus.subscribed().await;
        bay
    }

    async fn follower_with(&self, follow: Follow) -> (Forebay, Cache<u64, u64>) {
        let bay = self.open(self.layer.store.clone(), follow).await;
        let prices = bay.cache("prices").open().unwrap();
        (bay, prices)
    }

    async fn follower(&self) -> (Forebay, Cache<u64, u64>) {
        self.follower_with(self.follow()).await
    }

    /// The owner writes, and the store has it.
    async fn write(&self, key: u64, value: u64) -> Seq {
        let seq = self.prices.put(&key, value).await.unwrap().seq();
        self.owner.wait_applied(seq).await.unwrap();
        seq
    }

    fn epoch(&self) -> Epoch {
        self.owner.health().epoch
    }

    /// Makes the event in which the owner reports this range.
    fn event(&self, after: Seq, until: Seq, directives: Vec<Directive>) -> Event {
        Event { epoch: self.epoch(), after, until, as_of_us: 0, payload: Payload::Directives(directives) }
    }

    /// Delivers the event in which the owner reports this range, and waits until the follower has taken it.
    async fn tell(&self, after: Seq, until: Seq, directives: Vec<Directive>) {
        self.bus.deliver(&self.event(after, until, directives));
        self.bus.heard().await;
    }
}

fn changed(key: u64, seq: Seq) -> Directive {
    Directive::Invalidate(Invalidation::Key(key_of("prices", &key)), seq)
}

fn before(seq: Seq) -> Seq {
    Seq::new(seq.get() - 1)
}

/// Waits until `holds`, which nothing signals.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what} does not come true");
        tokio::time::sleep(ms(1)).await;
    }
}
