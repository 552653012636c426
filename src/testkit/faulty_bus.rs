//! A bus with faults: it drops, duplicates, delays and reorders deliveries, fails to publish, loses positions, and can
//! be disconnected. The faults are drawn from a seed.
//!
//! It wraps another bus, which has all messages that were published. No clock is involved: a delay is a number of later
//! messages. So the same seed gives the same faults for the same calls. Each subscription draws for itself, and so does
//! the sequence of publishes.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use crate::bus::contract::{BoxFuture, Bus, Channel, Delivery, Message, StartPosition, Subscription};
use crate::error::{Error, ErrorKind, Result};
use crate::seam::sync::{Mutex, MutexGuard};
use crate::testkit::draw::Draw;

/// The number of messages that one subscription delays at most. Further ones are delivered at once.
pub const HELD_MAX: usize = 1_024;

/// The probability of each fault in percent. Zero by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusFaults {
    /// A message is not delivered, without any notice.
    pub drop_percent: u8,
    /// A message is delivered twice.
    pub double_percent: u8,
    /// A message and all behind it are delayed until up to `messages_max` more have come.
    pub delay_percent: u8,
    /// A message is delivered after up to `messages_max` later ones; after more if those were delayed themselves.
    pub reorder_percent: u8,
    /// The largest delay, in messages.
    pub messages_max: u8,
    /// A publish fails and has published nothing.
    pub publish_before_percent: u8,
    /// A publish fails although it has published the first of its messages, or all.
    pub publish_after_percent: u8,
    /// [`Delivery::PositionLost`] is delivered instead of a message, or at the start of a resumed subscription.
    pub lose_percent: u8,
}

/// The number of faults so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusFaultCounts {
    /// Messages that were not delivered.
    pub dropped: u64,
    /// Messages that were delivered twice.
    pub doubled: u64,
    /// Messages that were delayed together with those behind them.
    pub delayed: u64,
    /// Messages that were delivered after later ones.
    pub reordered: u64,
    /// Publishes that failed without effect.
    pub failed_before: u64,
    /// Publishes that failed with effect.
    pub failed_after: u64,
    /// Positions that were lost, including those delivered instead of a message.
    pub lost: u64,
    /// Calls that failed because the bus was disconnected.
    pub refused: u64,
}

/// A bus with faults. Clones share the faults, the counts and the wrapped bus.
#[derive(Clone, Debug)]
pub struct FaultyBus<B> {
    inner: B,
    shared: Arc<FaultyBusShared>,
}

#[derive(Debug)]
struct FaultyBusShared {
    state: Mutex<FaultyBusState>,
    /// Counts each disconnect and each reconnect, so it is odd while the bus is disconnected.
    cuts: watch::Sender<u64>,
}

#[derive(Debug)]
struct FaultyBusState {
    seed: Draw,
    publishes: Draw,
    faults: BusFaults,
    counts: BusFaultCounts,
}

impl<B: Bus> FaultyBus<B> {
    /// Wraps `inner`. There are no faults until [`FaultyBus::set`].
    #[must_use]
    pub fn new(inner: B, seed: u64) -> FaultyBus<B> {
        let mut seed = Draw::new(seed);
        let publishes = Draw::new(seed.next());
        let (faults, counts) = (BusFaults::default(), BusFaultCounts::default());
        let state = Mutex::new(FaultyBusState { seed, publishes, faults, counts });
        FaultyBus { inner, shared: Arc::new(FaultyBusShared { state, cuts: watch::Sender::new(0) }) }
    }

    /// Returns the wrapped bus.
    #[must_use]
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Sets the faults from now on. Messages that are delayed already keep their delays.
    pub fn set(&self, faults: BusFaults) {
        self.shared.state().faults = faults;
    }

    /// Returns the number of faults so far.
    #[must_use]
    pub fn counts(&self) -> BusFaultCounts {
        self.shared.state().counts
    }

    /// Disconnects all clones and their subscriptions until [`FaultyBus::mend`]. Calls fail with
    /// [`ErrorKind::Transient`]; a subscription that waits for a delivery fails once. Other users of the wrapped bus
    /// stay connected: wrap it once for each part of the network that is disconnected separately.
    pub fn cut(&self) {
        self.shared.cuts.send_if_modified(|cuts| {
            // A second cut changes nothing, so the count stays odd until the bus is mended.
            let mended = cuts.is_multiple_of(2);
            *cuts += u64::from(mended);
            mended
        });
    }

    /// Reconnects after [`FaultyBus::cut`]. Subscriptions go on at their positions.
    pub fn mend(&self) {
        self.shared.cuts.send_if_modified(|cuts| {
            let cut = !cuts.is_multiple_of(2);
            *cuts += u64::from(cut);
            cut
        });
    }
}

impl FaultyBusShared {
    fn state(&self) -> MutexGuard<'_, FaultyBusState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse_if_cut(&self, what: &str) -> Result<()> {
        if self.cuts.borrow().is_multiple_of(2) {
            return Ok(());
        }
        self.state().counts.refused += 1;
        Err(failure(&format!("the test cut the bus off: {what}")))
    }
}

fn failure(context: &str) -> Error {
    Error::new(ErrorKind::Transient, context)
}

/// The outcome of a publish.
enum PublishFate {
    Works,
    FailsBefore,
    /// This number of its messages are published.
    FailsAfter(usize),
}

impl FaultyBusState {
    fn publish(&mut self, messages: usize) -> PublishFate {
        // All are drawn each time, so that one fault does not shift the others.
        let (before, after) = (
            self.publishes.hits(self.faults.publish_before_percent),
            self.publishes.hits(self.faults.publish_after_percent),
        );
        let drawn = self.publishes.up_to(u64::try_from(messages).unwrap_or(u64::MAX));
        if before {
            self.counts.failed_before += 1;
            return PublishFate::FailsBefore;
        }
        if after {
            self.counts.failed_after += 1;
            return PublishFate::FailsAfter(usize::try_from(drawn).unwrap_or(usize::MAX));
        }
        PublishFate::Works
    }
}

impl<B: Bus> Bus for FaultyBus<B> {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // As a real bus does, before any fault: a body that is too large must not look like a network failure.
            messages.iter().try_for_each(Message::check)?;
            self.shared.refuse_if_cut("publishing")?;
            let fate = self.shared.state().publish(messages.len());
            match fate {
                PublishFate::Works => self.inner.publish(channel, messages).await,
                PublishFate::FailsBefore => Err(failure("the test fails this publish")),
                PublishFate::FailsAfter(count) => {
                    self.inner.publish(channel, messages.get(..count).unwrap_or(messages)).await?;
                    Err(failure("the test hides that this publish worked"))
                }
            }
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            self.shared.refuse_if_cut("subscribing")?;
            let (draw, lost) = {
                let mut state = self.shared.state();
                let mut draw = Draw::new(state.seed.next());
                // Only a resumed subscription has a position to lose.
                let lost = matches!(from, StartPosition::After(_)) && draw.hits(state.faults.lose_percent);
                state.counts.lost += u64::from(lost);
                (draw, lost)
            };
            // What lies between the position and now is what such a bus has lost.
            let inner = self.inner.subscribe(channel, if lost { StartPosition::Now } else { from }).await?;
            let ready = lost.then_some(Delivery::PositionLost).into_iter().collect();
            let cuts = self.shared.cuts.subscribe();
            let told = cuts.borrow().next_multiple_of(2);
            let shared = Arc::clone(&self.shared);
            let held = DelayedDeliveries {
                draw,
                ready,
                behind: VecDeque::new(),
                overtaken: Vec::new(),
                waits_for: 0,
            };
            Ok(Box::new(FaultyListener { inner, shared, cuts, told, held }) as Box<dyn Subscription>)
        })
    }
}

struct FaultyListener {
    inner: Box<dyn Subscription>,
    shared: Arc<FaultyBusShared>,
    cuts: watch::Receiver<u64>,
    /// The value of `cuts` at which it last failed because it was disconnected.
    told: u64,
    held: DelayedDeliveries,
}

/// The deliveries of the wrapped bus that are delayed.
struct DelayedDeliveries {
    draw: Draw,
    ready: VecDeque<Delivery>,
    /// The deliveries that wait in order, and the number of messages that must come before.
    behind: VecDeque<Delivery>,
    waits_for: u64,
    /// The reordered deliveries, each with the number of later ones that come before it.
    overtaken: Vec<(u64, Delivery)>,
}

impl DelayedDeliveries {
    /// Takes what came from the wrapped bus.
    fn take(&mut self, delivery: Delivery, shared: &FaultyBusShared) {
        let mut state = shared.state();
        let BusFaults { messages_max, .. } = state.faults;
        // As many draws for every message, so that one fault does not move the others.
        let draw = &mut self.draw;
        let [dropped, doubled, delayed, reordered, lost] = [
            draw.hits(state.faults.drop_percent),
            draw.hits(state.faults.double_percent),
            draw.hits(state.faults.delay_percent),
            draw.hits(state.faults.reorder_percent),
            draw.hits(state.faults.lose_percent),
        ];
        let messages = draw.up_to(u64::from(messages_max));
        let is_message = matches!(delivery, Delivery::Message(..));
        if is_message && dropped {
            state.counts.dropped += 1;
            return self.passed();
        }
        // Bounded, or a test with a high percentage would hold every message.
        if is_message && reordered && self.overtaken.len() < HELD_MAX {
            state.counts.reordered += 1;
            self.passed();
            return self.overtaken.push((messages, delivery));
        }
        if is_message && delayed && self.waits_for == 0 {
            state.counts.delayed += 1;
            // One more, because it passes itself below.
            self.waits_for = messages.saturating_add(1);
        }
        state.counts.lost += u64::from(is_message && lost);
        state.counts.doubled += u64::from(is_message && !lost && doubled);
        let delivery = if lost { Delivery::PositionLost } else { delivery };
        if is_message && !lost && doubled {
            self.behind.push_back(delivery.clone());
        }
        self.behind.push_back(delivery);
        self.passed();
    }

    /// One more has come: what waited for it is ready.
    fn passed(&mut self) {
        self.waits_for = self.waits_for.saturating_sub(1);
        // Beyond the bound the delay ends early, because memory must not grow with the test.
        if self.waits_for == 0 || self.behind.len() > HELD_MAX {
            self.waits_for = 0;
            self.ready.append(&mut self.behind);
            self.ready
                .extend(self.overtaken.extract_if(.., |(others, _)| *others <= 1).map(|(_, late)| late));
            self.overtaken.iter_mut().for_each(|(others, _)| *others -= 1);
        }
    }
}

impl Subscription for FaultyListener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                let current = *self.cuts.borrow_and_update();
                if !current.is_multiple_of(2) {
                    // Once for each cut, after which the listener waits as a real one does.
                    if self.told < current {
                        self.told = current;
                        self.shared.state().counts.refused += 1;
                        return Err(failure("the test cut the bus off: listening"));
                    }
                    let mended = self.cuts.wait_for(|cuts| cuts.is_multiple_of(2)).await;
                    mended.map_err(|_| failure("the faulty bus is gone"))?;
                    continue;
                }
                if let Some(delivery) = self.held.ready.pop_front() {
                    return Ok(delivery);
                }
                tokio::select! {
                    // The cut is looked at first, so that a run with the same seed takes the same way.
                    biased;
                    changed = self.cuts.changed() => changed.map_err(|_| failure("the faulty bus is gone"))?,
                    delivery = self.inner.next() => self.held.take(delivery?, &self.shared),
                }
            }
        })
    }
}

#[cfg(test)]
#[cfg(not(forebay_simulation))]
mod tests {
    use super::*;
    use crate::bus::contract::{Identity, Position};
    use crate::bus::local::LocalBus;
    use bytes::Bytes;
    use std::task::{Context, Poll, Waker};

    const MESSAGES: u64 = 200;

    fn channel() -> Channel {
        Channel::parse("faulty").unwrap()
    }

    fn message(number: u64) -> Message {
        let identity = Identity::parse(&number.to_string()).unwrap();
        Message { identity, body: Bytes::from(number.to_string()) }
    }

    /// Returns the output if the future is ready at once.
    fn now<T>(future: BoxFuture<'_, T>) -> Option<T> {
        let mut future = future;
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn subscribe(bus: &FaultyBus<LocalBus>, from: StartPosition) -> Result<Box<dyn Subscription>> {
        now(bus.subscribe(&channel(), from)).unwrap()
    }

    /// The numbers that are to be had; nothing for a lost position.
    fn heard(subscription: &mut dyn Subscription) -> Vec<Option<u64>> {
        let mut heard = Vec::new();
        while let Some(delivery) = now(subscription.next()) {
            heard.push(match delivery.unwrap() {
                Delivery::Message(_, body) => Some(std::str::from_utf8(&body).unwrap().parse().unwrap()),
                Delivery::PositionLost => None,
            });
        }
        heard
    }

    /// Returns the deliveries of 200 messages under these faults, and the counts.
    fn run(seed: u64, faults: BusFaults) -> (Vec<Option<u64>>, BusFaultCounts) {
        let bus = FaultyBus::new(LocalBus::default(), seed);
        bus.set(faults);
        let mut subscription = subscribe(&bus, StartPosition::Now).unwrap();
        for number in 0..MESSAGES {
            // Whether it failed is in the counts.
            drop(now(bus.publish(&channel(), &[message(number)])));
        }
        (heard(subscription.as_mut()), bus.counts())
    }

    #[test]
    fn each_fault_does_what_it_says_and_is_counted() {
        let all: Vec<Option<u64>> = (0..MESSAGES).map(Some).collect();
        assert_eq!(run(1, BusFaults::default()), (all.clone(), BusFaultCounts::default()));

        let (heard, counts) = run(1, BusFaults { drop_percent: 10, ..BusFaults::default() });
        assert!(heard.is_sorted() && counts.dropped > 0 && heard.len() as u64 == MESSAGES - counts.dropped);

        let (mut heard, counts) = run(1, BusFaults { double_percent: 10, ..BusFaults::default() });
        assert!(heard.is_sorted() && counts.doubled > 0 && heard.len() as u64 == MESSAGES + counts.doubled);
        heard.dedup();
        assert_eq!(heard, all);

        let delay = BusFaults { delay_percent: 10, messages_max: 5, ..BusFaults::default() };
        let (heard, counts) = run(1, delay);
        assert!(counts.delayed > 0 && all.starts_with(&heard) && heard.len() + 5 > all.len());

        let reorder = BusFaults { reorder_percent: 10, messages_max: 5, ..BusFaults::default() };
        let (mut heard, counts) = run(1, reorder);
        assert!(counts.reordered > 0 && !heard.is_sorted());
        for (at, number) in heard.iter().enumerate() {
            assert!(number.unwrap().abs_diff(at as u64) <= 10, "{number:?} at {at}");
        }
        heard.sort();
        assert!(heard.windows(2).all(|pair| pair[0] < pair[1]) && heard.len() + 5 > all.len());

        let (heard, counts) = run(1, BusFaults { lose_percent: 10, ..BusFaults::default() });
        let lost = heard.iter().filter(|heard| heard.is_none()).count() as u64;
        assert!(lost > 0 && lost == counts.lost && heard.len() == all.len());

        let (heard, counts) = run(1, BusFaults { publish_before_percent: 10, ..BusFaults::default() });
        assert!(counts.failed_before > 0 && heard.len() as u64 == MESSAGES - counts.failed_before);
        let (heard, counts) = run(1, BusFaults { publish_after_percent: 10, ..BusFaults::default() });
        assert!(counts.failed_after > 0 && heard == all);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let faults = BusFaults {
            drop_percent: 10,
            double_percent: 10,
            delay_percent: 10,
            reorder_percent: 10,
            messages_max: 4,
            publish_before_percent: 10,
            publish_after_percent: 10,
            lose_percent: 5,
        };
        assert_eq!(run(7, faults), run(7, faults));
        assert_ne!(run(7, faults), run(8, faults));
    }

    #[test]
    fn a_failed_publish_may_have_published_the_first_of_its_messages() {
        let bus = FaultyBus::new(LocalBus::default(), 3);
        bus.set(BusFaults { publish_after_percent: 100, ..BusFaults::default() });
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let mut subscription = subscribe(&bus, StartPosition::Now).unwrap();
            let messages: Vec<Message> = (0..4).map(message).collect();
            let error =
                now(bus.publish(&channel(), &messages)).unwrap().expect_err("it is told that it failed");
            assert_eq!(error.kind(), ErrorKind::Transient);
            let heard = heard(subscription.as_mut());
            assert!((0..).map(Some).zip(&heard).all(|(expected, heard)| expected == *heard));
            lengths.insert(heard.len());
        }
        assert!(lengths.into_iter().eq(1..=4));
    }

    #[test]
    fn who_is_cut_off_is_told_once_and_goes_on_where_it_stood() {
        let bus = FaultyBus::new(LocalBus::default(), 1);
        let mut subscription = subscribe(&bus, StartPosition::Now).unwrap();
        now(bus.publish(&channel(), &[message(0)])).unwrap().unwrap();
        bus.cut();
        bus.cut();
        let refused = |result: Result<()>| assert_eq!(result.expect_err("cut").kind(), ErrorKind::Transient);
        refused(now(bus.publish(&channel(), &[message(9)])).unwrap());
        refused(subscribe(&bus, StartPosition::Oldest).map(drop));
        refused(now(subscription.next()).unwrap().map(drop));
        assert!(now(subscription.next()).is_none(), "told once; then it waits");
        // The rest of the network goes on.
        now(bus.inner().publish(&channel(), &[message(1)])).unwrap().unwrap();
        assert!(now(subscription.next()).is_none());
        bus.mend();
        assert_eq!(heard(subscription.as_mut()), [Some(0), Some(1)]);
        assert_eq!(bus.counts().refused, 3);
        bus.cut();
        refused(now(subscription.next()).unwrap().map(drop));
    }

    #[test]
    fn a_resumed_position_can_be_lost() {
        let bus = FaultyBus::new(LocalBus::default(), 1);
        now(bus.publish(&channel(), &[message(0), message(1)])).unwrap().unwrap();
        bus.set(BusFaults { lose_percent: 100, ..BusFaults::default() });
        let mut subscription = subscribe(&bus, StartPosition::After(Position::new("0"))).unwrap();
        bus.set(BusFaults::default());
        now(bus.publish(&channel(), &[message(2)])).unwrap().unwrap();
        assert_eq!(heard(subscription.as_mut()), [None, Some(2)]);
    }
}
