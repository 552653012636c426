//! A listener of a stream: it pulls from a consumer of its own, creates a new one if anything is wrong with it, and
//! compares its position with the state of the stream.

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
use crate::bus::nats::link::{Link, NatsClient};
use crate::bus::nats::options::Settings;
use crate::bus::nats::stream::{self, Received, StreamPosition, StreamState};
use crate::error::Result;

/// The number of messages in one pull; at most 32 MiB.
const PULL_MESSAGES_MAX: usize = 64;
/// The time after the expiry of a pull for which the listener waits for the answer of the server.
const PULL_GRACE: Duration = Duration::from_millis(500);
/// The number of pulls without any answer after which a new consumer is created.
const SILENT_PULLS_MAX: u32 = 2;
/// The time after which the server removes a consumer that nobody pulls from.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(60);

/// A subscription.
pub(super) struct NatsListener {
    client: Arc<NatsClient>,
    channel: Channel,
    place: StreamPosition,
    /// True if the next messages are missing and the caller has not been told.
    lost: bool,
    /// Messages that were received and not delivered yet.
    received: VecDeque<Received>,
    consumer: Option<NatsConsumer>,
    /// True if the consumer is the second one in a row that was created for this position.
    is_second: bool,
    /// The running pull. It is kept here so that dropping the future of a delivery loses no message.
    step: Option<BoxFuture<'static, Result<PullStep>>>,
}

/// A consumer and the inbox of its messages.
struct NatsConsumer {
    link: Arc<Link>,
    name: String,
    inbox: Subscriber,
    /// The prefix of the subjects of the inbox.
    address: String,
    /// The number of the connection over which the consumer was created.
    connection: u64,
    /// The number of pulls so far.
    pulls: u64,
    /// The number of messages that the last pull may still bring.
    outstanding: usize,
    /// True if the server has answered the last pull.
    heard: bool,
    /// The time when the last pull ends without an answer.
    over: Instant,
    /// The number of pulls in a row without any answer.
    silent: u32,
}

/// The result of one step: a check of the position, a new consumer if one is needed, and a pull.
struct PullStep {
    /// `None` if the server no longer has the consumer.
    consumer: Option<NatsConsumer>,
    received: VecDeque<Received>,
    /// The position to go on at, if the next messages are missing.
    lost: Option<StreamPosition>,
    /// The reason why the consumer is gone.
    gone: Option<String>,
}

impl NatsListener {
    /// Determines the start position. No message that is published from now on will be missed.
    pub(super) async fn begin(
        client: Arc<NatsClient>,
        channel: &Channel,
        from: &StartPosition,
        wanted: Option<StreamPosition>,
    ) -> Result<NatsListener> {
        let link = client.link().await?;
        // Before the state is read: without a stream, what is published right after this call would be lost.
        stream::ensure(&link, &client.settings, channel).await?;
        let holding = stream::read_state(&link, &client.settings, channel).await?;
        let (place, lost) = match wanted {
            Some(place) if follows(&link, &client.settings, channel, &holding, &place).await? => {
                (place, false)
            }
            // Goes on with what is left, and says so.
            Some(_) => (holding.start(), true),
            None if *from == StartPosition::Oldest => (holding.start(), false),
            None => (holding.end(), false),
        };
        let channel = channel.clone();
        let (received, is_second) = (VecDeque::new(), false);
        Ok(NatsListener { client, channel, place, lost, received, consumer: None, is_second, step: None })
    }

    /// Takes the next message, or returns that messages are missing before it. A gap may be the consumer's fault, so
    /// the first time a new consumer is created for the same position.
    fn take(&mut self) -> Option<Delivery> {
        while let Some(received) = self.received.pop_front() {
            // A new consumer may deliver again what the one before it has delivered.
            if received.sequence <= self.place.sequence {
                continue;
            }
            if received.sequence > self.place.sequence.saturating_add(1) {
                if !std::mem::replace(&mut self.is_second, true) {
                    // They come again from the new consumer, in order.
                    self.received.clear();
                    self.consumer = None;
                    return None;
                }
                // The message stays queued, and the position moves right before it: the next call delivers it.
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

impl Subscription for NatsListener {
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
                    Box::pin(step(
                        Arc::clone(&self.client),
                        self.channel.clone(),
                        self.place.clone(),
                        consumer,
                    ))
                });
                let found = step.await;
                // Before `?`: a finished future must not be polled again.
                self.step = None;
                let PullStep { consumer, received, lost, gone } = found?;
                // A consumer that answers without a message works.
                self.is_second &= consumer.is_none() || !received.is_empty();
                self.consumer = consumer;
                self.received = received;
                if let Some(place) = lost {
                    (self.place, self.lost) = (place, true);
                }
                // The server removes consumers that nobody pulled from for a while, which is no error. But if the new
                // one is gone at once too, retrying here would spin.
                let Some(why) = gone else { continue };
                if std::mem::replace(&mut self.is_second, true) {
                    let doing = format_args!("pulling from channel {}", self.channel);
                    return Err(self.client.settings.transient(doing, why));
                }
            }
        })
    }
}

/// Returns true if the stream has all messages behind `place`. If the server has lost messages and given out their
/// numbers again, the message at `place` has another time.
async fn follows(
    link: &Link,
    settings: &Settings,
    channel: &Channel,
    holding: &StreamState,
    place: &StreamPosition,
) -> Result<bool> {
    if !holding.follows(place) {
        return Ok(false);
    }
    // Without a time, or without the message, only the numbers can be compared.
    if place.taken.is_none() || !holding.includes(place) {
        return Ok(true);
    }
    Ok(stream::taken_at(link, settings, channel, place.sequence).await? == place.taken)
}

/// Pulls the messages behind `place`, and waits for them for a while. With a new consumer, and after a pull without a
/// message, compares the position with the state of the stream. After an error the consumer is dropped.
async fn step(
    client: Arc<NatsClient>,
    channel: Channel,
    place: StreamPosition,
    consumer: Option<NatsConsumer>,
) -> Result<PullStep> {
    let mut consumer = match consumer {
        Some(consumer) => consumer,
        None => {
            let link = client.link().await?;
            stream::ensure(&link, &client.settings, &channel).await?;
            let holding = stream::read_state(&link, &client.settings, &channel).await?;
            if !follows(&link, &client.settings, &channel, &holding, &place).await? {
                let lost = Some(holding.start());
                return Ok(PullStep { consumer: None, received: VecDeque::new(), lost, gone: None });
            }
            NatsConsumer::make(link, &client.settings, &channel, place.sequence.saturating_add(1)).await?
        }
    };
    let (received, lost) = match consumer.pull(&client.settings, &channel).await? {
        PullResult::Received(received) => (received, None),
        PullResult::Nothing => {
            // A pull looks the same for an idle stream and for one whose newest messages were lost.
            let holding = stream::read_state(&consumer.link, &client.settings, &channel).await?;
            (VecDeque::new(), (!holding.follows(&place)).then(|| holding.start()))
        }
        PullResult::Gone(why) => {
            let received = VecDeque::new();
            return Ok(PullStep { consumer: None, received, lost: None, gone: Some(why) });
        }
    };
    // A consumer has a fixed start; another position needs a new consumer.
    let consumer = lost.is_none().then_some(consumer);
    Ok(PullStep { consumer, received, lost, gone: None })
}

/// The result of one pull.
enum PullResult {
    Received(VecDeque<Received>),
    /// There was no message, or no answer within the time.
    Nothing,
    /// The server no longer has the consumer, for this reason.
    Gone(String),
}

impl NatsConsumer {
    /// Creates a consumer in the memory of one server. It starts at `sequence`, or at the first later message that the
    /// stream still has.
    async fn make(
        link: Arc<Link>,
        settings: &Settings,
        channel: &Channel,
        sequence: u64,
    ) -> Result<NatsConsumer> {
        let name = stream::name(settings, channel);
        let doing = format!("making a consumer of stream {name}");
        // Before the consumer is made: if this connection is lost meanwhile, so are the answers to its inbox.
        let connection = link.connection();
        let address = link.client.new_inbox();
        let subscribed = link.client.subscribe(format!("{address}.*")).await;
        let inbox = subscribed.map_err(|error| link.error_from(&doing, error))?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence },
            // The listener keeps its own position, so acknowledgements would only cost round trips.
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_IDLE_MAX,
            // A lost consumer is created again at the same position, so it needs neither file nor replica.
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let made = link.context.create_consumer_on_stream(config, name.as_str()).await;
        let made = made.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(refusal) => {
                settings.server.error_from(stream::kind_of(&refusal), &doing, refusal)
            }
            _ => link.error_from(&doing, error),
        })?;
        let name = made.cached_info().name.clone();
        let (outstanding, heard, over) = (0, false, Instant::now());
        Ok(NatsConsumer {
            link,
            name,
            inbox,
            address,
            connection,
            pulls: 0,
            outstanding,
            heard,
            over,
            silent: 0,
        })
    }

    /// Requests messages unless a request is running, and waits for the first of them.
    async fn pull(&mut self, settings: &Settings, channel: &Channel) -> Result<PullResult> {
        let doing = format!("pulling from channel {channel}");
        if self.outstanding == 0 {
            self.request(settings, channel, &doing).await?;
        }
        let mut received = VecDeque::new();
        while self.outstanding > 0 {
            let message = if received.is_empty() {
                match self.wait(&doing).await? {
                    Some(message) => message,
                    None => {
                        self.outstanding = 0;
                        self.silent = if self.heard { 0 } else { self.silent.saturating_add(1) };
                        // Its server may have been restarted, which takes a consumer in memory without a word.
                        if self.silent >= SILENT_PULLS_MAX {
                            return Ok(PullResult::Gone("the consumer does not answer".into()));
                        }
                        break;
                    }
                }
            } else {
                // Only what has arrived: waiting for a full pull would delay the first message.
                match self.inbox.next().now_or_never().flatten() {
                    Some(message) => message,
                    None => break,
                }
            };
            self.heard = true;
            match message.status {
                None => {
                    let of = Received::of(message);
                    received.push_back(
                        of.ok_or_else(|| settings.failed(&doing, "a message is not of its consumer"))?,
                    );
                    self.outstanding = self.outstanding.saturating_sub(1);
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                // This ends the current pull only if its reply subject says so: it may belong to an earlier pull.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                    if message.subject.as_str() == self.reply() {
                        self.outstanding = 0;
                    }
                }
                Some(status) => {
                    let words = message.description.map_or_else(String::new, |words| words.to_string());
                    return Ok(PullResult::Gone(format!("the server says: {status} {words}")));
                }
            }
        }
        Ok(if received.is_empty() { PullResult::Nothing } else { PullResult::Received(received) })
    }

    /// Returns the subject for the answers to the last pull. Each pull has its own, so that the end of an earlier pull
    /// is not taken for the end of this one.
    fn reply(&self) -> String {
        format!("{}.{}", self.address, self.pulls)
    }

    async fn request(&mut self, settings: &Settings, channel: &Channel, doing: &str) -> Result<()> {
        self.pulls += 1;
        let payload =
            format!("{{\"batch\":{PULL_MESSAGES_MAX},\"expires\":{}}}", settings.options.idle.as_nanos());
        let request = Request::new().payload(payload.into()).inbox(self.reply());
        let subject = format!("CONSUMER.MSG.NEXT.{}.{}", stream::name(settings, channel), self.name);
        let sent = self.link.context.send_request(subject, request).await;
        sent.map_err(|error| self.link.error_from(doing, error))?;
        (self.outstanding, self.heard) = (PULL_MESSAGES_MAX, false);
        self.over = Instant::now() + settings.options.idle + PULL_GRACE.min(settings.options.timeout);
        Ok(())
    }

    /// Waits for the next message of the inbox; `None` after the end of the pull. Servers up to 2.9.10 at least do not
    /// answer a pull if a message arrives just when it expires.
    async fn wait(&mut self, doing: &str) -> Result<Option<async_nats::Message>> {
        tokio::select! {
            biased;
            next = tokio::time::timeout_at(self.over, self.inbox.next()) => match next {
                Ok(Some(message)) => Ok(Some(message)),
                Ok(None) => Err(self.link.error(doing, "the connection is closed")),
                Err(_) => Ok(None),
            },
            // A pull does not survive its connection.
            () = self.link.disconnected(self.connection) => {
                Err(self.link.error(doing, "the connection was lost"))
            }
        }
    }
}
