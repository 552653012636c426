//! One listener of a stream: pulls from a consumer of its own, makes another one when anything is wrong with it, and
//! compares its place with what the stream holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::Request;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::{StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use crate::bus::contract::{BoxFuture, Channel, Delivery, StartPosition, Subscription};
use crate::bus::nats::Inner;
use crate::bus::nats::link::Link;
use crate::bus::nats::stream::{self, Holding, Place, Received};
use crate::error::Result;

/// How many messages are pulled at once; 32 MiB of the largest.
const PULL_MESSAGES_MAX: usize = 64;
/// How much later than it expires the end of a pull may be told before nothing is awaited of it any more.
const PULL_GRACE: Duration = Duration::from_millis(500);
/// After how many pulls without any answer another consumer is made.
const SILENT_PULLS_MAX: u32 = 2;
/// After how long the server removes the consumer of a listener that is gone, or that nobody asks for deliveries.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(60);

pub(super) struct Listener {
    bus: Arc<Inner>,
    channel: Channel,
    place: Place,
    /// Whether what should come next cannot be had.
    lost: bool,
    /// Received and not delivered.
    received: VecDeque<Received>,
    consumer: Option<Consumer>,
    /// Whether the consumer is the second one in a row that was made to go on at this place.
    is_second: bool,
    /// A pull on its way. Kept here, so that nothing is pulled twice when the future of a delivery is dropped.
    step: Option<BoxFuture<'static, Result<Step>>>,
}

/// A consumer, and the inbox where its messages come in.
struct Consumer {
    link: Arc<Link>,
    name: String,
    inbox: Subscriber,
    /// What the subjects of the inbox begin with.
    address: String,
    /// The connection that the consumer was made over.
    connection: u64,
    /// How many pulls were made.
    pulls: u64,
    /// How many messages the last one may still bring.
    outstanding: usize,
    /// Whether anything was heard since, and when the server should be done with it.
    heard: bool,
    over: Instant,
    /// How many pulls in a row nothing was heard of.
    silent: u32,
}

/// What one pull found.
struct Step {
    /// `None` if the server has no such consumer any more.
    consumer: Option<Consumer>,
    received: VecDeque<Received>,
    /// Where to go on, if what should come next cannot be had.
    lost: Option<Place>,
    /// Why there is no consumer any more.
    gone: Option<String>,
}

impl Listener {
    /// Finds out where to begin, so that nothing is missed that is published from now on.
    pub(super) async fn begin(
        bus: Arc<Inner>,
        channel: &Channel,
        from: &StartPosition,
        wanted: Option<Place>,
    ) -> Result<Listener> {
        let link = bus.link().await?;
        stream::ensure(&link, &bus, channel).await?;
        let holding = stream::look(&link, &bus, channel).await?;
        let (place, lost) = match wanted {
            Some(place) if follows(&link, &bus, channel, &holding, &place).await? => (place, false),
            Some(_) => (holding.start(), true),
            None if *from == StartPosition::Oldest => (holding.start(), false),
            None => (holding.end(), false),
        };
        let channel = channel.clone();
        let (received, is_second) = (VecDeque::new(), false);
        Ok(Listener { bus, channel, place, lost, received, consumer: None, is_second, step: None })
    }

    /// Takes the next message, or says that one is missing before it. A consumer that leaves one out may just be
    /// wrong, so the first time another one is asked.
    fn take(&mut self) -> Option<Delivery> {
        while let Some(received) = self.received.pop_front() {
            if received.sequence <= self.place.sequence {
                continue;
            }
            if received.sequence > self.place.sequence.saturating_add(1) {
                if !std::mem::replace(&mut self.is_second, true) {
                    self.received.clear();
                    self.consumer = None;
                    return None;
                }
                self.place.sequence = received.sequence.saturating_sub(1);
                self.received.push_front(received);
                return Some(Delivery::PositionLost);
            }
            self.is_second = false;
            let position = received.position(&self.place.created);
            (self.place.sequence, self.place.taken) = (received.sequence, received.taken());
            return Some(Delivery::Message(position, received.body));
        }
        None
    }
}

impl Subscription for Listener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                if std::mem::take(&mut self.lost) {
                    return Ok(Delivery::PositionLost);
                }
                if let Some(delivery) = self.take() {
                    return Ok(delivery);
                }
                let step = self.step.get_or_insert_with(|| {
                    let consumer = self.consumer.take();
                    Box::pin(step(Arc::clone(&self.bus), self.channel.clone(), self.place.clone(), consumer))
                });
                let found = step.await;
                self.step = None;
                let Step { consumer, received, lost, gone } = found?;
                // All is well with a consumer that has been pulled from in vain.
                self.is_second &= consumer.is_none() || !received.is_empty();
                self.consumer = consumer;
                self.received = received;
                if let Some(place) = lost {
                    (self.place, self.lost) = (place, true);
                }
                // The server forgets consumers, as when nobody pulled for a while. One that is gone at once is another
                // matter.
                let Some(why) = gone else { continue };
                if std::mem::replace(&mut self.is_second, true) {
                    return Err(self
                        .bus
                        .transient(format_args!("pulling from channel {}", self.channel), why));
                }
            }
        })
    }
}

/// Whether a listener at `place` can be given all that came behind it. Where the server has given numbers anew, the
/// message at the place is another one.
async fn follows(
    link: &Link,
    bus: &Inner,
    channel: &Channel,
    holding: &Holding,
    place: &Place,
) -> Result<bool> {
    if !holding.follows(place) {
        return Ok(false);
    }
    if place.taken.is_none() || !holding.includes(place) {
        return Ok(true);
    }
    Ok(stream::taken_at(link, bus, channel, place.sequence).await? == place.taken)
}

/// Pulls what is behind `place`, waiting for it a while. With a new consumer, and after waiting in vain, the place is
/// compared with what the stream holds. After an error the consumer is given up.
async fn step(bus: Arc<Inner>, channel: Channel, place: Place, consumer: Option<Consumer>) -> Result<Step> {
    let mut consumer = match consumer {
        Some(consumer) => consumer,
        None => {
            let link = bus.link().await?;
            stream::ensure(&link, &bus, &channel).await?;
            let holding = stream::look(&link, &bus, &channel).await?;
            if !follows(&link, &bus, &channel, &holding, &place).await? {
                let lost = Some(holding.start());
                return Ok(Step { consumer: None, received: VecDeque::new(), lost, gone: None });
            }
            Consumer::make(link, &bus, &channel, place.sequence.saturating_add(1)).await?
        }
    };
    let (received, lost) = match consumer.pull(&bus, &channel).await? {
        Pulled::Received(received) => (received, None),
        Pulled::Nothing => {
            let holding = stream::look(&consumer.link, &bus, &channel).await?;
            (VecDeque::new(), (!holding.follows(&place)).then(|| holding.start()))
        }
        Pulled::Gone(why) => {
            let received = VecDeque::new();
            return Ok(Step { consumer: None, received, lost: None, gone: Some(why) });
        }
    };
    // A consumer starts at one place; for another one it takes another.
    let consumer = lost.is_none().then_some(consumer);
    Ok(Step { consumer, received, lost, gone: None })
}

enum Pulled {
    Received(VecDeque<Received>),
    /// The server has answered that nothing came.
    Nothing,
    /// The server has no such consumer, with its words.
    Gone(String),
}

impl Consumer {
    /// A consumer that lives in the memory of one server and starts at `sequence`, or at the first message behind it
    /// that the stream holds.
    async fn make(link: Arc<Link>, bus: &Inner, channel: &Channel, sequence: u64) -> Result<Consumer> {
        let name = stream::name(bus, channel);
        let doing = format!("making a consumer of stream {name}");
        let connection = link.connection();
        let address = link.client.new_inbox();
        let subscribed = link.client.subscribe(format!("{address}.*")).await;
        let inbox = subscribed.map_err(|error| link.error(bus, &doing, error))?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_IDLE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = link.context.create_consumer_on_stream(config, name.as_str()).await;
        let made = made.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(refusal) => {
                bus.server.error(stream::kind_of(&refusal), &doing, &refusal)
            }
            _ => link.error(bus, &doing, &error),
        })?;
        let name = made.cached_info().name.clone();
        let (outstanding, heard, over) = (0, false, Instant::now());
        Ok(Consumer { link, name, inbox, address, connection, pulls: 0, outstanding, heard, over, silent: 0 })
    }

    /// Asks for messages, unless some are asked for, and waits for the first of them.
    async fn pull(&mut self, bus: &Inner, channel: &Channel) -> Result<Pulled> {
        let doing = format!("pulling from channel {channel}");
        if self.outstanding == 0 {
            self.ask(bus, channel, &doing).await?;
        }
        let mut received = VecDeque::new();
        while self.outstanding > 0 {
            let message = if received.is_empty() {
                match self.wait(bus, &doing).await? {
                    Some(message) => message,
                    None => {
                        self.outstanding = 0;
                        self.silent = if self.heard { 0 } else { self.silent.saturating_add(1) };
                        if self.silent >= SILENT_PULLS_MAX {
                            return Ok(Pulled::Gone("the consumer does not answer".into()));
                        }
                        break;
                    }
                }
            } else {
                match self.inbox.next().now_or_never().flatten() {
                    Some(message) => message,
                    None => break,
                }
            };
            self.heard = true;
            match message.status {
                None => {
                    let of = Received::of(message);
                    received
                        .push_back(of.ok_or_else(|| bus.failed(&doing, "a message is not of its consumer"))?);
                    self.outstanding = self.outstanding.saturating_sub(1);
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                // The end of this pull, or of one before it that had been given up.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                    if message.subject.as_str() == self.reply() {
                        self.outstanding = 0;
                    }
                }
                Some(status) => {
                    let words = message.description.map_or_else(String::new, |words| words.to_string());
                    return Ok(Pulled::Gone(format!("the server says: {status} {words}")));
                }
            }
        }
        Ok(if received.is_empty() { Pulled::Nothing } else { Pulled::Received(received) })
    }

    /// Where the answers to the last pull come in. Each pull has its own, so that the end of one is not taken for the
    /// end of another.
    fn reply(&self) -> String {
        format!("{}.{}", self.address, self.pulls)
    }

    async fn ask(&mut self, bus: &Inner, channel: &Channel, doing: &str) -> Result<()> {
        self.pulls += 1;
        let payload =
            format!("{{\"batch\":{PULL_MESSAGES_MAX},\"expires\":{}}}", bus.options.idle.as_nanos());
        let request = Request::new().payload(payload.into()).inbox(self.reply());
        let subject = format!("CONSUMER.MSG.NEXT.{}.{}", stream::name(bus, channel), self.name);
        let sent = self.link.context.send_request(subject, request).await;
        sent.map_err(|error| self.link.error(bus, doing, error))?;
        (self.outstanding, self.heard) = (PULL_MESSAGES_MAX, false);
        self.over = Instant::now() + bus.options.idle + PULL_GRACE.min(bus.options.timeout);
        Ok(())
    }

    /// The next of what comes in; `None` once the pull is over and nothing has said so. Servers up to 2.9.10 at the
    /// least forget a pull without a word if a message comes just when it expires.
    async fn wait(&mut self, bus: &Inner, doing: &str) -> Result<Option<async_nats::Message>> {
        tokio::select! {
            biased;
            next = tokio::time::timeout_at(self.over, self.inbox.next()) => match next {
                Ok(Some(message)) => Ok(Some(message)),
                Ok(None) => Err(self.link.error(bus, doing, "the connection is closed")),
                Err(_) => Ok(None),
            },
            // What was asked for over a connection does not survive it.
            () = self.link.disconnected(self.connection) => {
                Err(self.link.error(bus, doing, "the connection was lost"))
            }
        }
    }
}
