//! The stream of a channel: its name, its state, positions in it, and publishing to it.

use std::collections::VecDeque;

use async_nats::datetime::{DateTime, from_nanos, parse_rfc3339};
use async_nats::jetstream;
use async_nats::jetstream::context::{PublishError, PublishErrorKind, RequestError, RequestErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bus::contract::{Channel, Message, Position};
use crate::bus::nats::link::{Link, NatsClient};
use crate::bus::nats::options::Settings;
use crate::error::{Error, ErrorKind, Result};

/// Returns the name of the stream of a channel. Names of channels need no escape, and no two give the same stream.
pub(super) fn name(settings: &Settings, channel: &Channel) -> String {
    format!("{}-{channel}", settings.options.prefix)
}

/// Returns the subject of a channel.
pub(super) fn subject(settings: &Settings, channel: &Channel) -> String {
    format!("{}.{channel}", settings.options.prefix)
}

/// The position of a listener, behind a message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StreamPosition {
    /// The creation time of the stream, as the server writes it.
    pub(super) created: String,
    pub(super) sequence: u64,
    /// The time when the server stored the message; `None` for a position that is not behind a message.
    pub(super) taken: Option<DateTime>,
}

impl StreamPosition {
    /// Parses the text of [`Received::position`].
    pub(super) fn parse(position: &Position) -> Result<StreamPosition> {
        let parsed = || {
            // The creation time comes last, because it holds colons itself.
            let mut parts = position.as_str().splitn(3, ':');
            let (sequence, nanoseconds) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?);
            let created = parts.next().filter(|created| parse_rfc3339(created).is_ok())?.to_string();
            Some(StreamPosition { created, sequence, taken: Some(from_nanos(nanoseconds.into()).ok()?) })
        };
        parsed().ok_or_else(|| {
            let shown: String = position.as_str().chars().take(80).flat_map(char::escape_default).collect();
            Error::new(ErrorKind::BusFailed, format!("a nats bus has no position \"{shown}\""))
        })
    }
}

/// A message that a consumer delivered.
pub(super) struct Received {
    pub(super) sequence: u64,
    nanoseconds: u64,
    pub(super) body: Bytes,
}

impl Received {
    /// Reads number and time from the subject for the acknowledgement; `None` if the message is not of a consumer:
    /// `$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.delivery.nanoseconds.pending`.
    pub(super) fn of(message: async_nats::Message) -> Option<Received> {
        let reply = message.reply?;
        let tokens: Vec<&str> = reply.split('.').collect();
        let before = match tokens.as_slice() {
            ["$JS", "ACK", ..] if tokens.len() == 9 => 5,
            ["$JS", "ACK", ..] if tokens.len() >= 11 => 7,
            _ => return None,
        };
        let number = |at: usize| tokens.get(at)?.parse().ok();
        Some(Received { sequence: number(before)?, nanoseconds: number(before + 2)?, body: message.payload })
    }

    /// Returns the position behind this message: its number, its time, and the creation time of the stream.
    pub(super) fn position(&self, created: &str) -> Position {
        Position::new(format!("{}:{}:{created}", self.sequence, self.nanoseconds))
    }

    /// Returns the time when the server stored the message.
    pub(super) fn taken(&self) -> Option<DateTime> {
        from_nanos(self.nanoseconds.into()).ok()
    }
}

/// The state of a stream: the used part of the answer of the server.
#[derive(Debug, Deserialize)]
pub(super) struct StreamState {
    created: String,
    state: StreamNumbers,
}

#[derive(Debug, Deserialize)]
struct StreamNumbers {
    first_seq: u64,
    last_seq: u64,
    last_ts: String,
}

#[derive(Serialize)]
struct GetMessage {
    seq: u64,
}

#[derive(Deserialize)]
struct FoundMessage {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    time: String,
}

impl StreamState {
    /// Returns the position before the first message.
    pub(super) fn start(&self) -> StreamPosition {
        let sequence = self.state.first_seq.saturating_sub(1);
        StreamPosition { created: self.created.clone(), sequence, taken: None }
    }

    /// Returns the position behind the last message.
    pub(super) fn end(&self) -> StreamPosition {
        let sequence = self.state.last_seq;
        let taken = parse_rfc3339(&self.state.last_ts).ok().filter(|_| sequence > 0);
        StreamPosition { created: self.created.clone(), sequence, taken }
    }

    /// Returns true if the stream has all messages behind `place`, judging by the numbers.
    pub(super) fn follows(&self, place: &StreamPosition) -> bool {
        // A stream that was deleted and made again counts from one, so its numbers alone prove nothing.
        self.created == place.created
            && place.sequence <= self.state.last_seq
            && place.sequence.saturating_add(1) >= self.state.first_seq
    }

    /// Returns true if the stream still has the message at `place` itself.
    pub(super) fn includes(&self, place: &StreamPosition) -> bool {
        place.sequence > 0 && place.sequence >= self.state.first_seq
    }
}

/// Creates the stream of a channel if it does not exist, and checks its configuration.
pub(super) async fn ensure(link: &Link, settings: &Settings, channel: &Channel) -> Result<()> {
    let (name, subject) = (name(settings, channel), subject(settings, channel));
    let doing = format!("making stream {name}");
    let config = Config {
        name: name.clone(),
        subjects: vec![subject.clone()],
        // The other policies remove messages that listeners have acknowledged.
        retention: RetentionPolicy::Limits,
        // A full stream must drop its oldest messages, and not refuse new ones.
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_messages: i64::try_from(settings.options.retained).unwrap_or(i64::MAX),
        num_replicas: settings.options.replicas,
        ..Config::default()
    };
    let made = link.context.get_or_create_stream(config).await;
    let stream = made.map_err(|error| {
        use async_nats::jetstream::context::CreateStreamErrorKind as Kind;
        match error.kind() {
            Kind::JetStream(refusal) => settings.server.error_from(kind_of(&refusal), &doing, refusal),
            _ => link.error_from(&doing, error),
        }
    })?;
    let config = &stream.cached_info().config;
    // `get_or_create_stream` returns an existing stream whatever its configuration.
    if config.retention == RetentionPolicy::Limits && config.subjects.as_slice() == [subject.as_str()] {
        return Ok(());
    }
    let why = format!("there is a stream of that name whose subject is not {subject}, or that is a queue");
    Err(settings.failed(&doing, why))
}

/// Reads the state of the stream of a channel.
pub(super) async fn read_state(link: &Link, settings: &Settings, channel: &Channel) -> Result<StreamState> {
    let name = name(settings, channel);
    let answer = link.context.request(format!("STREAM.INFO.{name}"), &()).await;
    let doing = format!("looking what stream {name} holds");
    match answer.map_err(|error| request_error(link, settings, &doing, error))? {
        Response::Ok(holding) => Ok(holding),
        // The stream was deleted. The next attempt creates it again and notices that it is another one.
        Response::Err { error } if error.code() == 404 => {
            Err(settings.server.error_from(ErrorKind::Transient, &doing, error))
        }
        Response::Err { error } => Err(settings.server.error_from(kind_of(&error), &doing, error)),
    }
}

/// Returns the time when the server stored the message with this number; `None` if there is none.
pub(super) async fn taken_at(
    link: &Link,
    settings: &Settings,
    channel: &Channel,
    sequence: u64,
) -> Result<Option<DateTime>> {
    let name = name(settings, channel);
    let doing = format!("looking for message {sequence} of stream {name}");
    let answer = link.context.request(format!("STREAM.MSG.GET.{name}"), &GetMessage { seq: sequence }).await;
    match answer.map_err(|error| request_error(link, settings, &doing, error))? {
        Response::Ok(FoundMessage { message }) => parse_rfc3339(&message.time)
            .map(Some)
            .map_err(std::io::Error::other)
            .map_err(|error| settings.server.error_from(ErrorKind::BusFailed, &doing, error)),
        Response::Err { error } if error.code() == 404 => Ok(None),
        Response::Err { error } => Err(settings.server.error_from(kind_of(&error), &doing, error)),
    }
}

/// Publishes the messages, some in flight at a time, and waits until all are acknowledged.
pub(super) async fn publish(client: &NatsClient, channel: &Channel, messages: &[Message]) -> Result<()> {
    messages.iter().try_for_each(Message::check)?;
    if messages.is_empty() {
        return Ok(());
    }
    let link = client.link().await?;
    let connection = link.connection();
    // Remembered, because a look costs a round trip for each call. A stream that was deleted fails the publish,
    // and is made again.
    if !client.knows_stream(channel) {
        ensure(&link, &client.settings, channel).await?;
        client.note_stream(channel, true);
    }
    tokio::select! {
        biased;
        published = send(client, &link, channel, messages) => published,
        // Acknowledgements of a lost connection never arrive.
        () = link.disconnected(connection) => {
            let doing = format_args!("publishing to channel {channel}");
            Err(client.settings.transient(doing, "the connection was lost"))
        }
    }
}

async fn send(client: &NatsClient, link: &Link, channel: &Channel, messages: &[Message]) -> Result<()> {
    let settings = &client.settings;
    let (subject, name) = (subject(settings, channel), name(settings, channel));
    let fail = |error: PublishError| {
        let doing = format_args!("publishing to channel {channel}");
        match error.kind() {
            PublishErrorKind::StreamNotFound => {
                // The stream was deleted; the next call creates it again.
                client.note_stream(channel, false);
                link.error_from(doing, error)
            }
            PublishErrorKind::MaxPayloadExceeded => {
                settings.server.error_from(ErrorKind::BusFailed, doing, error)
            }
            _ => link.error_from(doing, error),
        }
    };
    let in_flight_max = settings.options.in_flight;
    let mut in_flight = VecDeque::with_capacity(in_flight_max.min(messages.len()));
    let mut rest = messages.iter();
    loop {
        let next = if in_flight.len() < in_flight_max { rest.next() } else { None };
        if let Some(message) = next {
            let publish =
                PublishMessage::build().payload(message.body.clone()).message_id(message.identity.as_str());
            in_flight.push_back(link.context.send_publish(subject.clone(), publish).await.map_err(fail)?);
            continue;
        }
        let Some(first) = in_flight.pop_front() else { return Ok(()) };
        // In the order of sending, so that nothing behind a failed message is taken for published.
        let acknowledged = first.await.map_err(fail)?;
        // If another stream has the subject, JetStream acknowledges too, and no listener of ours would get the message.
        if acknowledged.stream != name {
            let why = format!("its subject {subject} belongs to another stream");
            return Err(settings.failed(format_args!("publishing to channel {channel}"), why));
        }
    }
}

fn request_error(link: &Link, settings: &Settings, doing: &str, error: RequestError) -> Error {
    match error.kind() {
        RequestErrorKind::InvalidSubject => settings.server.error_from(ErrorKind::BusFailed, doing, error),
        _ => link.error_from(doing, error),
    }
}

/// Classifies a refusal of JetStream by its code.
pub(super) fn kind_of(error: &jetstream::Error) -> ErrorKind {
    use async_nats::jetstream::ErrorCode;
    let disabled = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
        .contains(&error.kind());
    // A code of 500 and more is a missing leader or a restart; 404 is a stream that the next call makes again.
    let passes = !disabled && (error.code() >= 500 || error.code() == 404);
    if passes { ErrorKind::Transient } else { ErrorKind::BusFailed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: &str = "2026-11-25T16:20:00.123456789Z";

    fn holding(first_seq: u64, last_seq: u64) -> StreamState {
        let last_ts = "2026-11-25T16:21:00Z".to_string();
        StreamState { created: MADE.into(), state: StreamNumbers { first_seq, last_seq, last_ts } }
    }

    fn place(sequence: u64) -> StreamPosition {
        StreamPosition { created: MADE.into(), sequence, taken: None }
    }

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        let received = Received { sequence: 17, nanoseconds: 1_790_230_470_084_404_001, body: Bytes::new() };
        let position = received.position(MADE);
        assert_eq!(position.as_str(), format!("17:1790230470084404001:{MADE}"));
        let place = StreamPosition::parse(&position).unwrap();
        assert_eq!((place.sequence, place.created.as_str(), place.taken), (17, MADE, received.taken()));
        for bad in ["", "17", "17:1", "17:1:yesterday", "x:1:2026-11-25T16:20:00Z", "1-2"] {
            assert_eq!(
                StreamPosition::parse(&Position::new(bad)).expect_err(bad).kind(),
                ErrorKind::BusFailed
            );
        }
    }

    #[test]
    fn what_is_missing_behind_a_place_is_noticed() {
        let held = holding(7, 9);
        assert!(held.follows(&place(6)) && held.follows(&place(9)) && !held.follows(&place(5)));
        assert!(!held.follows(&place(10)), "the server lost number 10");
        assert!(!held.follows(&StreamPosition { created: "2026-11-25T16:20:00Z".into(), ..place(8) }));
        assert!(held.includes(&place(7)) && !held.includes(&place(6)));
        assert_eq!((held.start().sequence, held.end().sequence), (6, 9));
        let emptied = holding(10, 9);
        assert!(emptied.follows(&place(9)) && !emptied.follows(&place(8)) && !emptied.includes(&place(9)));
        let new = holding(0, 0);
        assert!(new.follows(&place(0)) && new.start().sequence == 0 && new.end().taken.is_none());
    }

    #[test]
    fn both_forms_of_a_delivery_are_understood() {
        let of = |reply: &str| {
            Received::of(async_nats::Message {
                subject: "forebay.c".into(),
                reply: Some(reply.into()),
                payload: Bytes::new(),
                headers: None,
                status: None,
                description: None,
                length: 0,
            })
            .map(|received| (received.sequence, received.nanoseconds))
        };
        assert_eq!(
            of("$JS.ACK.forebay-c.abc.1.42.7.1790230470084404000.3"),
            Some((42, 1_790_230_470_084_404_000))
        );
        assert_eq!(
            of("$JS.ACK.hub.acc.forebay-c.abc.1.42.7.1790230470084404000.3.t"),
            Some((42, 1_790_230_470_084_404_000))
        );
        assert!(of("_INBOX.1").is_none() && of("$JS.ACK.forebay-c.abc.1.x.7.1.3").is_none());
    }
}
