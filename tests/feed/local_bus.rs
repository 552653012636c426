//! The bus within a process keeps the contract of a bus, and the suite that says so notices buses that do not.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use forebay::Result;
use forebay::bus::{
    BoxFuture, Bus, Channel, Delivery, LocalBus, Message, Position, StartPosition, Subscription,
};
use forebay::testkit::bus_conformance::{self, BusFixture};
use forebay::testkit::faulty_bus::{BusFaults, FaultyBus};

/// The defect of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Every tenth message is left out.
    Skips,
    /// A lost position is not told.
    HidesTrims,
    /// A lost position is told whenever a listener resumes.
    CriesWolf,
    /// Two neighbours change places.
    Reorders,
    /// A message that was taken is lost if the future is dropped before it is delivered.
    NotCancelSafe,
    /// The first message after a resumed position is the one before it.
    ResumesTooEarly,
    /// The first message after a resumed position is left out.
    ResumesTooLate,
    /// Waits by asking again and again.
    Spins,
    /// Every message goes to one listener only.
    SharesOut,
    /// Takes a message for published if another one said the same.
    KnowsByBody,
    /// Publishes what comes before a message that is too large.
    RefusesLate,
    /// All channels are one.
    OneChannel,
    /// A byte is not as it was published.
    Garbles,
}

#[derive(Clone)]
struct Broken {
    inner: LocalBus,
    fault: Fault,
    /// Published messages by their body, and the listener that gets the next one.
    state: Arc<Mutex<(Vec<Bytes>, usize, usize)>>,
}

struct BrokenListener {
    inner: Box<dyn Subscription>,
    bus: Broken,
    number: usize,
    heard: usize,
    resumed: bool,
    taken: Option<Delivery>,
    ready: VecDeque<Delivery>,
}

impl Bus for Broken {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.fault == Fault::RefusesLate {
                for message in messages {
                    self.inner.publish(channel, std::slice::from_ref(message)).await?;
                }
                return Ok(());
            }
            if self.fault == Fault::KnowsByBody {
                let mut new = messages.to_vec();
                let known = &mut self.state.lock().unwrap().0;
                new.retain(|message| {
                    let is_new = !known.contains(&message.body);
                    known.push(message.body.clone());
                    is_new
                });
                return output_of(self.inner.publish(channel, &new));
            }
            self.inner.publish(&self.channel(channel), messages).await
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let resumed = matches!(from, StartPosition::After(_));
            let from = match from {
                StartPosition::After(position)
                    if self.fault == Fault::ResumesTooEarly && position.as_str() > "0" =>
                {
                    let earlier = position.as_str().parse::<u64>().map(|number| number.saturating_sub(1));
                    StartPosition::After(earlier.map_or(position, |number| Position::new(number.to_string())))
                }
                from => from,
            };
            let inner = self.inner.subscribe(&self.channel(channel), from).await?;
            let number = {
                let mut state = self.state.lock().unwrap();
                state.1 += 1;
                state.1
            };
            let bus = self.clone();
            let (taken, ready) = (None, VecDeque::new());
            Ok(Box::new(BrokenListener { inner, bus, number, heard: 0, resumed, taken, ready })
                as Box<dyn Subscription>)
        })
    }
}

/// The output of a future that does not wait.
fn output_of<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

impl Broken {
    fn channel(&self, channel: &Channel) -> Channel {
        if self.fault == Fault::OneChannel { Channel::parse("all").unwrap() } else { channel.clone() }
    }
}

impl BrokenListener {
    /// True if a fault replaces this delivery by others, or by nothing.
    fn deal_with(&mut self, mut delivery: Delivery) {
        if self.bus.fault == Fault::Garbles
            && let Delivery::Message(_, body) = &mut delivery
        {
            let mut garbled = body.to_vec();
            garbled.iter_mut().skip(20).take(1).for_each(|byte| *byte ^= 1);
            *body = garbled.into();
        }
        let is_message = matches!(delivery, Delivery::Message(..));
        let number = self.heard;
        self.heard += usize::from(is_message);
        match self.bus.fault {
            Fault::Skips if number % 10 == 9 => {}
            Fault::HidesTrims if !is_message => {}
            Fault::CriesWolf if is_message && number == 0 && self.resumed => {
                self.ready.extend([Delivery::PositionLost, delivery]);
            }
            Fault::Reorders if is_message && number.is_multiple_of(2) => self.taken = Some(delivery),
            Fault::Reorders => self.ready.extend([Some(delivery), self.taken.take()].into_iter().flatten()),
            Fault::ResumesTooLate if is_message && number == 0 && self.resumed => {}
            Fault::SharesOut if is_message => {
                let mut state = self.bus.state.lock().unwrap();
                state.2 += 1;
                if state.2 % state.1 == self.number % state.1 {
                    self.ready.push_back(delivery);
                }
            }
            _ => self.ready.push_back(delivery),
        }
    }
}

impl Subscription for BrokenListener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                if let Some(delivery) = self.ready.pop_front() {
                    return Ok(delivery);
                }
                let delivery = if self.bus.fault == Fault::Spins {
                    let mut next = self.inner.next();
                    poll_fn(|context| {
                        context.waker().wake_by_ref();
                        next.as_mut().poll(context)
                    })
                    .await?
                } else {
                    self.inner.next().await?
                };
                if self.bus.fault == Fault::NotCancelSafe {
                    // Only here is it lost: it was taken, and nobody has it yet.
                    tokio::task::yield_now().await;
                }
                self.deal_with(delivery);
            }
        })
    }
}

impl BusFixture for Broken {
    fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>> {
        Box::pin(async { Arc::new(self.clone()) as Arc<dyn Bus> })
    }

    fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async { self.inner.trim(&self.channel(channel)) })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn cut(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn mend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn broken(fault: Fault) -> Broken {
    Broken { inner: LocalBus::default(), fault, state: Arc::default() }
}

/// Returns the finding of a check on a bus with this fault. Time is the runtime's and passes at once when all wait.
async fn found(fault: Fault, check: impl AsyncFnOnce(&dyn BusFixture)) -> String {
    let bus = broken(fault);
    panic_of(check(&bus)).await.unwrap_or_else(|| panic!("{fault:?} was not noticed"))
}

/// The sentence with which this panics; nothing if it does not.
async fn panic_of(checking: impl Future<Output = ()>) -> Option<String> {
    let mut checking = pin!(checking);
    let caught = poll_fn(move |context| {
        let polled = catch_unwind(AssertUnwindSafe(|| checking.as_mut().poll(context)));
        polled.map_or_else(|panic| Poll::Ready(Some(panic)), |polled| polled.map(|()| None))
    });
    let panic = caught.await?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).expect("a sentence"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_bus_passes() {
    bus_conformance::check(&broken(Fault::None)).await;
}

#[tokio::test(start_paused = true)]
async fn the_local_bus_passes_on_one_thread_also() {
    bus_conformance::check(&broken(Fault::None)).await;
}

/// A network's faults: everything twice now and then, failing publishes, connections that are cut.
struct Faulty {
    inner: LocalBus,
    bus: FaultyBus<LocalBus>,
}

impl BusFixture for Faulty {
    fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>> {
        Box::pin(async { Arc::new(self.bus.clone()) as Arc<dyn Bus> })
    }

    fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async { self.inner.trim(channel) })
    }

    /// No server, but an outage: what was published stays.
    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            self.bus.cut();
            tokio::task::yield_now().await;
            self.bus.mend();
            true
        })
    }

    fn cut(&self) -> BoxFuture<'_, bool> {
        self.bus.cut();
        Box::pin(async { true })
    }

    fn mend(&self) -> BoxFuture<'_, ()> {
        self.bus.mend();
        Box::pin(async {})
    }

    fn positions_are_exact(&self) -> bool {
        false
    }
}

fn faulty(faults: BusFaults) -> Faulty {
    let inner = LocalBus::default();
    let bus = FaultyBus::new(inner.clone(), 11);
    bus.set(faults);
    Faulty { inner, bus }
}

/// Doubled messages and cut connections do no harm: the whole suite holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_doubles_and_is_cut_off_passes() {
    let fixture = faulty(BusFaults { double_percent: 20, ..BusFaults::default() });
    bus_conformance::check(&fixture).await;
    let counts = fixture.bus.counts();
    assert!(counts.doubled > 100 && counts.refused > 3, "{counts:?}");
}

/// While publishes fail, what holds is what a publisher that repeats them needs.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_repeats_loses_nothing_to_failing_publishes() {
    let faults = BusFaults {
        double_percent: 20,
        publish_before_percent: 20,
        publish_after_percent: 20,
        ..BusFaults::default()
    };
    let fixture = faulty(faults);
    bus_conformance::cuts_lose_nothing(&fixture).await;
    bus_conformance::restarts_lose_nothing(&fixture).await;
    let counts = fixture.bus.counts();
    assert!(counts.failed_before > 10 && counts.failed_after > 10 && counts.refused > 5, "{counts:?}");
}

/// Dropped, reordered and lost messages break the contract, and the checks of failures see it, too.
#[tokio::test(start_paused = true)]
async fn what_a_faulty_bus_may_not_do_is_found() {
    let each = [
        (BusFaults { drop_percent: 5, ..BusFaults::default() }, "did not come before it"),
        (BusFaults { reorder_percent: 5, messages_max: 3, ..BusFaults::default() }, "did not come before it"),
        (BusFaults { lose_percent: 5, ..BusFaults::default() }, "nothing was lost"),
    ];
    for (faults, expected) in each {
        let told = panic_of(bus_conformance::restarts_lose_nothing(&faulty(faults))).await;
        assert!(told.expect("found").contains(expected), "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_bus_does_wrong_is_found_and_named() {
    use bus_conformance as suite;
    let told = found(Fault::Skips, suite::order_within_a_publisher).await;
    assert!(told.contains("message 10 of publisher 1 came, and message 9 did not come before it"), "{told}");
    let told = found(Fault::Skips, suite::several_publishers_and_listeners).await;
    assert!(told.contains("did not come before it"), "{told}");
    let told = found(Fault::Reorders, suite::order_within_a_publisher).await;
    assert!(told.contains("message 1 of publisher 1 came, and message 0 did not come before it"), "{told}");
    let told = found(Fault::Garbles, suite::order_within_a_publisher).await;
    assert!(told.contains("that nobody published came"), "{told}");
    let told = found(Fault::Garbles, suite::bodies_of_every_size).await;
    assert!(told.contains("came otherwise"), "{told}");
    let told = found(Fault::SharesOut, suite::many_listeners).await;
    assert!(told.contains("did not come before it"), "{told}");
    let told = found(Fault::OneChannel, suite::channels_are_apart).await;
    assert!(told.contains("who published nothing here"), "{told}");
    let told = found(Fault::KnowsByBody, suite::publishing_again_does_no_harm).await;
    assert!(told.contains("two messages that say the same"), "{told}");
    let told = found(Fault::RefusesLate, suite::too_large_is_refused_as_a_whole).await;
    assert!(told.contains("a part of a call that was refused"), "{told}");
    let told = found(Fault::Spins, suite::waits_while_nothing_is_published).await;
    assert!(told.contains("did work"), "{told}");
    let told = found(Fault::NotCancelSafe, suite::cancelled_waits_lose_nothing).await;
    assert!(told.contains("did not come before it"), "{told}");
    let told = found(Fault::ResumesTooEarly, suite::after_goes_on_exactly).await;
    assert!(told.contains("came again"), "{told}");
    let told = found(Fault::ResumesTooLate, suite::after_goes_on_exactly).await;
    assert!(told.contains("did not come before it"), "{told}");
    let told = found(Fault::ResumesTooLate, suite::a_position_resumes_in_another_client).await;
    assert!(told.contains("did not come before it"), "{told}");
    let told = found(Fault::HidesTrims, suite::a_gap_is_told).await;
    assert!(told.contains("a trimmed position: the next delivery"), "{told}");
    let told = found(Fault::CriesWolf, suite::a_trim_that_took_nothing_is_not_told).await;
    assert!(told.contains("nothing was lost"), "{told}");
}
