//! The buses of a run, looked at in two places: what was published in truth, and what reached a follower.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay::Invalidation;
use forebay::bus::{
    BoxFuture, Bus, Channel, Delivery, Directive, Event, Message, Payload, StartPosition, Subscription,
};
use forebay::seam::simulated;
use forebay::testkit::faulty_bus::FaultyBus;
use forebay::{Epoch, Forebay, LocalBus, MemoryStore, Result, Seq};

use crate::harness::history::Violation;
use crate::harness::world::standing_of;

/// The channel on which the owner speaks.
pub const CHANNEL: &str = "changes";

/// An event that was published.
#[derive(Clone, Debug)]
pub struct Published {
    pub bus: usize,
    pub event: Event,
}

/// Events published over all buses, and how far the store was. The lock is std's, held over no point.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Inner>>);

#[derive(Default)]
pub struct Inner {
    pub published: Vec<Published>,
    pub violations: Vec<Violation>,
    /// Messages that reached followers.
    pub delivered: u64,
    /// Those among them of an owner of which the follower knew that another one had followed it.
    pub outdated: u64,
}

impl Record {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn violated(&self, promise: &'static str, what: String) {
        self.lock().violations.push(Violation { promise, what });
    }
}

/// A bus that is what it says, and notes what it takes.
#[derive(Clone)]
pub struct Tap {
    pub number: usize,
    pub inner: LocalBus,
    pub store: MemoryStore,
    pub record: Record,
}

impl Bus for Tap {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if channel.as_str() == CHANNEL {
                for message in messages {
                    self.note(&message.body);
                }
            }
            shuttle::future::yield_now().await;
            self.inner.publish(channel, messages).await
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        self.inner.subscribe(channel, from)
    }
}

impl Tap {
    fn note(&self, body: &bytes::Bytes) {
        let event = Event::decode(body).expect("an owner publishes events");
        let applied = standing_of(&self.store).progress.applied;
        if event.until > applied {
            let what = format!("{event:?} is published, and the store is at {applied}");
            self.record.violated("P8", what);
        }
        self.record.lock().published.push(Published { bus: self.number, event });
    }
}

/// A follower that is open, for those who look at it from below. The lock is std's, held over no point.
pub type Slot = Arc<Mutex<Option<Forebay>>>;

/// Directives that must not be carried out, by the simulated thread that heard them.
#[derive(Clone, Default)]
pub struct Barred(Arc<Mutex<BTreeMap<usize, (Epoch, Epoch)>>>);

impl Barred {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, (Epoch, Epoch)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be told of every directive that a follower carries out, by the thread that does so.
    pub fn carried_out(&self, directive: &Directive, record: &Record) {
        let barred = self.lock().get(&present_thread()).copied();
        if let Some((epoch, known)) = barred {
            let what = format!("{directive:?} of {epoch:?} was carried out, and {known:?} was known");
            record.violated("P9", what);
        }
    }
}

fn present_thread() -> usize {
    usize::from(shuttle::current::me())
}

/// A follower's side of a bus. An event of an owner whose successor it knows must have no effect.
#[derive(Clone)]
pub struct Ear {
    pub bus: FaultyBus<Tap>,
    pub slot: Slot,
    pub barred: Barred,
    pub record: Record,
}

impl Bus for Ear {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        self.bus.publish(channel, messages)
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            shuttle::future::yield_now().await;
            let inner = self.bus.subscribe(channel, from).await?;
            Ok(Box::new(Listening { inner, ear: self.clone() }) as Box<dyn Subscription>)
        })
    }
}

struct Listening {
    inner: Box<dyn Subscription>,
    ear: Ear,
}

impl Subscription for Listening {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            self.ear.barred.lock().remove(&present_thread());
            let delivery = self.inner.next().await?;
            if let Delivery::Message(_, body) = &delivery {
                self.ear.look_at(body);
            }
            Ok(delivery)
        })
    }
}

impl Ear {
    fn look_at(&self, body: &bytes::Bytes) {
        let event = Event::decode(body).expect("nobody else publishes");
        let bay = self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = bay.and_then(|bay| bay.following()).map(|status| status.epoch);
        let mut record = self.record.lock();
        record.delivered += 1;
        if let Some(known) = known.filter(|known| event.epoch < *known) {
            record.outdated += 1;
            self.barred.lock().insert(present_thread(), (event.epoch, known));
        }
    }
}

/// True if an event names this record: its key with this number, or all keys.
pub fn names(event: &Event, key: &forebay::Key, seq: Seq) -> bool {
    let Payload::Directives(directives) = &event.payload else { return false };
    directives.iter().any(|directive| match directive {
        Directive::Invalidate(Invalidation::Key(named), version)
        | Directive::Put(named, version, _)
        | Directive::Remove(named, version) => named == key && *version == seq,
        Directive::Invalidate(Invalidation::Everything, version) => *version >= seq,
        _ => false,
    })
}

/// The simulated time.
pub fn now() -> Duration {
    simulated::elapsed()
}
