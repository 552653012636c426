//! The parts of the checks: messages that carry their own numbers, publishers, and listeners that notice missing,
//! reordered and invented messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::bus::contract::{
    Bus, Channel, Delivery, Identity, Message, Position, StartPosition, Subscription,
};
use crate::error::{Error, ErrorKind};
use crate::seam::random;
use crate::testkit::bus_conformance::fixture::{ATTEMPT, DEADLINE};

/// The delay of a publisher or a listener after an error.
const PAUSE: Duration = Duration::from_millis(20);
/// The length of the numbers of publisher and message.
const HEADER_BYTES: usize = 4 + 8;

/// Fails the check if this takes too long.
pub(super) async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {} s", DEADLINE.as_secs()),
    }
}

/// Waits for tasks. The first one that fails ends the others and fails the check.
pub(super) async fn all(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    let tasks: Vec<JoinHandle<()>> = tasks.into_iter().collect();
    let others: Vec<AbortHandle> = tasks.iter().map(JoinHandle::abort_handle).collect();
    let mut ends: JoinSet<Result<(), JoinError>> = tasks.into_iter().collect();
    while let Some(ended) = ends.join_next().await {
        if let Err(error) = ended.and_then(|ended| ended) {
            // The others would wait for messages that nobody publishes any more, and hide the cause behind a
            // timeout.
            others.iter().for_each(AbortHandle::abort);
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Makes a channel that was never used.
pub(super) fn channel(what: &str) -> Channel {
    let drawn = random::u32().expect("the system has randomness");
    Channel::parse(&format!("check-{what}-{drawn:08x}")).expect("the check chose a good name")
}

/// Makes the body of a message. The filler depends on the numbers, so that a changed body is noticed.
pub(super) fn body(publisher: u32, number: u64) -> Bytes {
    let mut body = BytesMut::with_capacity(HEADER_BYTES + 97);
    body.put_u32_le(publisher);
    body.put_u64_le(number);
    let filler = (0..number.wrapping_mul(7) % 97).map(|at| at.wrapping_add(number).to_le_bytes());
    body.extend(filler.map(|[low, ..]| low));
    body.freeze()
}

/// Returns the numbers of publisher and message; `None` if no publisher has made this body.
fn read(body_read: &Bytes) -> Option<(u32, u64)> {
    let mut rest = body_read.clone();
    let (publisher, number) = (rest.try_get_u32_le().ok()?, rest.try_get_u64_le().ok()?);
    // Made again and compared, so that a single changed byte is noticed.
    (body(publisher, number) == *body_read).then_some((publisher, number))
}

pub(super) fn message(publisher: u32, number: u64) -> Message {
    let identity = Identity::parse(&format!("{publisher}.{number}")).expect("the check chose a good name");
    Message { identity, body: body(publisher, number) }
}

/// Publishes messages 0, 1, 2 ... of its own to a channel.
pub(super) struct Publisher {
    bus: Arc<dyn Bus>,
    channel: Channel,
    id: u32,
    /// The number of the next message. All earlier ones were acknowledged.
    pub(super) next: u64,
}

impl Publisher {
    pub(super) fn new(bus: &Arc<dyn Bus>, channel: &Channel, id: u32) -> Publisher {
        Publisher { bus: Arc::clone(bus), channel: channel.clone(), id, next: 0 }
    }

    /// Returns the next messages. The caller publishes them and raises `next`.
    fn following(&self, count: u64) -> Vec<Message> {
        (self.next..self.next + count).map(|number| message(self.id, number)).collect()
    }

    /// Publishes the next messages in one call, which must succeed.
    pub(super) async fn publish(&mut self, count: u64) {
        self.again(self.next, count).await;
        self.next += count;
    }

    /// Publishes messages by their numbers, which may have been published before.
    pub(super) async fn again(&self, first: u64, count: u64) {
        let messages: Vec<Message> = (first..first + count).map(|number| message(self.id, number)).collect();
        publish(&self.bus, &self.channel, &messages).await;
    }

    /// Publishes the next messages in one call, and repeats it until it succeeds. Counts the failures.
    pub(super) async fn publish_repeating(&mut self, count: u64, failures: &watch::Sender<u64>) {
        let messages = self.following(count);
        let published = async {
            // With a timeout: a call may wait for a server that is down, and dropping its future is allowed.
            while let Err(error) = attempt(self.bus.publish(&self.channel, &messages)).await {
                // Only what the contract lets a caller repeat; after another error the message would be lost.
                assert!(passes(&error), "publishing while the bus fails: {error:?} is not for repeating");
                failures.send_modify(|failures| *failures += 1);
                sleep(PAUSE).await;
            }
        };
        within(format!("publisher {} repeating its message {}", self.id, self.next), published).await;
        self.next += count;
    }
}

async fn attempt(publishing: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let given_up = || Error::new(ErrorKind::Transient, "the check gave an attempt up");
    timeout(ATTEMPT, publishing).await.unwrap_or_else(|_| Err(given_up()))
}

/// Returns true if the caller may repeat the call, by the contract.
fn passes(error: &Error) -> bool {
    error.kind() == ErrorKind::Transient
}

/// Publishes in one call, which must succeed.
pub(super) async fn publish(bus: &Arc<dyn Bus>, channel: &Channel, messages: &[Message]) {
    if let Err(error) = within("publishing", bus.publish(channel, messages)).await {
        panic!("publishing {} messages, with nothing wrong around: {error:?}", messages.len());
    }
}

/// The cases in which a listener may get a lost position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Losses {
    /// In no case, because nothing was lost.
    Never,
    /// Exactly where messages were lost.
    Exact,
    /// At any time.
    Allowed,
}

/// The judgement of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The next message of a publisher, and its position.
    New(Position),
    /// A repeated message.
    Again,
    /// A lost position.
    Lost,
}

/// A subscription that knows the expected messages.
pub(super) struct Listener {
    name: String,
    pub(super) subscription: Box<dyn Subscription>,
    losses: Losses,
    /// True if a message may be repeated.
    pub(super) repeats: bool,
    /// The number of the next message of each publisher.
    next: BTreeMap<u32, u64>,
    /// The publishers whose next message may be missing because the position was lost.
    may_jump: BTreeSet<u32>,
    /// The number of lost positions.
    pub(super) times_lost: u32,
}

impl Listener {
    /// Subscribes, which must succeed, and expects message 0 of these publishers.
    pub(super) async fn new(
        name: impl Display,
        bus: &Arc<dyn Bus>,
        channel: &Channel,
        from: StartPosition,
        publishers: impl IntoIterator<Item = u32>,
    ) -> Listener {
        let name = name.to_string();
        let subscribed = within(format!("{name}: subscribing"), bus.subscribe(channel, from)).await;
        let subscription = match subscribed {
            Ok(subscription) => subscription,
            Err(error) => panic!("{name}: subscribing, with nothing wrong around: {error:?}"),
        };
        let next = publishers.into_iter().map(|publisher| (publisher, 0)).collect();
        Listener {
            name,
            subscription,
            losses: Losses::Never,
            repeats: true,
            next,
            may_jump: BTreeSet::new(),
            times_lost: 0,
        }
    }

    /// Expects another first message.
    pub(super) fn beginning_with(mut self, number: u64) -> Listener {
        self.next.values_mut().for_each(|next| *next = number);
        self
    }

    pub(super) fn allowing(mut self, losses: Losses) -> Listener {
        self.losses = losses;
        self
    }

    /// Waits for the next delivery, which must come and be an allowed one.
    pub(super) async fn hear(&mut self) -> Judgement {
        let waits_for = format!("{}: the next delivery, {}", self.name, self.missing());
        match within(waits_for, self.subscription.next()).await {
            Ok(delivery) => self.judge(delivery),
            Err(error) => panic!("{}: listening, with nothing wrong around: {error:?}", self.name),
        }
    }

    /// Listens until it has all messages before `end` of every publisher. Returns the position of each new message.
    pub(super) async fn hear_until(&mut self, end: u64) -> Vec<Position> {
        let mut places = Vec::new();
        while !self.has_all_before(end) {
            if let Judgement::New(place) = self.hear().await {
                places.push(place);
            }
        }
        places
    }

    /// Does the same during failures of the bus, and goes on after transient errors. The end is set before the last
    /// message is published.
    pub(super) async fn hear_until_despite_errors(&mut self, end: &watch::Receiver<Option<u64>>) {
        while end.borrow().is_none_or(|end| !self.has_all_before(end)) {
            let waits_for = format!("{}: the next delivery, {}", self.name, self.missing());
            match within(waits_for, self.subscription.next()).await {
                Ok(delivery) => drop(self.judge(delivery)),
                Err(error) if passes(&error) => sleep(PAUSE).await,
                Err(error) => panic!("{}: listening while the bus fails: {error:?} does not pass", self.name),
            }
        }
    }

    pub(super) fn has_all_before(&self, end: u64) -> bool {
        if let Some((publisher, next)) = self.next.iter().find(|(_, next)| **next > end) {
            panic!(
                "{}: heard message {} of publisher {publisher}, which nobody published",
                self.name,
                next - 1
            );
        }
        self.next.values().all(|next| *next == end)
    }

    /// Judges a delivery, and fails the check if it is not allowed.
    pub(super) fn judge(&mut self, delivery: Delivery) -> Judgement {
        let name = &self.name;
        let (place, delivered) = match delivery {
            Delivery::Message(place, delivered) => (place, delivered),
            Delivery::PositionLost => {
                assert!(
                    self.losses != Losses::Never,
                    "{name}: told that its position is lost; nothing was lost"
                );
                self.times_lost += 1;
                // It is not known whose messages were lost.
                self.may_jump.extend(self.next.keys());
                return Judgement::Lost;
            }
        };
        let Some((publisher, number)) = read(&delivered) else {
            panic!("{name}: a message of {} bytes that nobody published came", delivered.len());
        };
        let Some(next) = self.next.get_mut(&publisher) else {
            panic!("{name}: a message of publisher {publisher} came, who published nothing here");
        };
        if number < *next {
            assert!(self.repeats, "{name}: message {number} of publisher {publisher} came again");
            return Judgement::Again;
        }
        // Asked for each publisher, because one lost position may concern several of them.
        let may_jump = self.may_jump.remove(&publisher);
        // A gap without a lost position is what the contract forbids: a cache would keep a value that an event
        // should drop.
        assert!(
            number == *next || may_jump,
            "{name}: message {number} of publisher {publisher} came, and message {next} did not come before it"
        );
        assert!(
            number != *next || !may_jump || self.losses == Losses::Allowed,
            "{name}: told that its position is lost before message {number}, and nothing was lost there"
        );
        *next = number + 1;
        Judgement::New(place)
    }

    fn missing(&self) -> String {
        let awaited = self.next.iter().map(|(publisher, next)| format!("{publisher}.{next}"));
        format!("message {}", awaited.collect::<Vec<_>>().join(" or "))
    }
}
