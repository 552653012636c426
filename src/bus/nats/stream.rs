//! A channel's stream: its names, what it holds, and a listener's place in it.

use async_nats::datetime::{DateTime, from_nanos, parse_rfc3339};
use async_nats::jetstream;
use async_nats::jetstream::context::{RequestError, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bus::contract::{Channel, Position};
use crate::bus::nats::Inner;
use crate::bus::nats::link::Link;
use crate::error::{Error, ErrorKind, Result};

/// The stream of a channel. A channel's name needs no escape, and none can be mistaken for another.
pub(super) fn name(bus: &Inner, channel: &Channel) -> String {
    format!("{}-{channel}", bus.options.prefix)
}

/// The subject of a channel.
pub(super) fn subject(bus: &Inner, channel: &Channel) -> String {
    format!("{}.{channel}", bus.options.prefix)
}

/// Behind which message a listener stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// When the stream was made, in the server's words.
    pub(super) created: String,
    pub(super) sequence: u64,
    /// When the message was taken in; `None` stands for no message.
    pub(super) taken: Option<DateTime>,
}

impl Place {
    /// Reads what [`Received::position`] wrote.
    pub(super) fn parse(position: &Position) -> Result<Place> {
        let parsed = || {
            let mut parts = position.as_str().splitn(3, ':');
            let (sequence, nanoseconds) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u64>().ok()?);
            let created = parts.next().filter(|created| parse_rfc3339(created).is_ok())?.to_string();
            Some(Place { created, sequence, taken: Some(from_nanos(nanoseconds.into()).ok()?) })
        };
        parsed().ok_or_else(|| {
            let shown: String = position.as_str().chars().take(80).flat_map(char::escape_default).collect();
            Error::new(ErrorKind::BusFailed, format!("a nats bus has no position \"{shown}\""))
        })
    }
}

/// A message as a consumer delivered it.
pub(super) struct Received {
    pub(super) sequence: u64,
    nanoseconds: u64,
    pub(super) body: Bytes,
}

impl Received {
    /// `None` if it is not of a consumer. Where it has come from is said by the subject for its acknowledgement:
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

    /// The place behind this message: the sequence, when it was taken in, and when its stream was made.
    pub(super) fn position(&self, created: &str) -> Position {
        Position::new(format!("{}:{}:{created}", self.sequence, self.nanoseconds))
    }

    /// When it was taken in.
    pub(super) fn taken(&self) -> Option<DateTime> {
        from_nanos(self.nanoseconds.into()).ok()
    }
}

/// What a stream holds, of what the server says of it.
#[derive(Debug, Deserialize)]
pub(super) struct Holding {
    created: String,
    state: Held,
}

#[derive(Debug, Deserialize)]
struct Held {
    first_seq: u64,
    last_seq: u64,
    last_ts: String,
}

#[derive(Serialize)]
struct Wanted {
    seq: u64,
}

#[derive(Deserialize)]
struct Found {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    time: String,
}

impl Holding {
    /// The place before all that is held.
    pub(super) fn start(&self) -> Place {
        let sequence = self.state.first_seq.saturating_sub(1);
        Place { created: self.created.clone(), sequence, taken: None }
    }

    /// The place behind all that is held.
    pub(super) fn end(&self) -> Place {
        let sequence = self.state.last_seq;
        let taken = parse_rfc3339(&self.state.last_ts).ok().filter(|_| sequence > 0);
        Place { created: self.created.clone(), sequence, taken }
    }

    /// Whether a listener at `place` can be given all that came behind it, as far as the numbers say.
    pub(super) fn follows(&self, place: &Place) -> bool {
        self.created == place.created
            && place.sequence <= self.state.last_seq
            && place.sequence.saturating_add(1) >= self.state.first_seq
    }

    /// Whether the message at `place` is still held, and not just the next one.
    pub(super) fn includes(&self, place: &Place) -> bool {
        place.sequence > 0 && place.sequence >= self.state.first_seq
    }
}

/// Makes the channel's stream unless it is there, and checks that it is what a channel needs.
pub(super) async fn ensure(link: &Link, bus: &Inner, channel: &Channel) -> Result<()> {
    let (name, subject) = (name(bus, channel), subject(bus, channel));
    let doing = format!("making stream {name}");
    let config = Config {
        name: name.clone(),
        subjects: vec![subject.clone()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_messages: i64::try_from(bus.options.retained).unwrap_or(i64::MAX),
        num_replicas: bus.options.replicas,
        ..Config::default()
    };
    let made = link.context.get_or_create_stream(config).await;
    let stream = made.map_err(|error| {
        use async_nats::jetstream::context::CreateStreamErrorKind as Kind;
        match error.kind() {
            Kind::JetStream(refusal) => bus.server.error(kind_of(&refusal), &doing, &refusal),
            _ => link.error(bus, &doing, &error),
        }
    })?;
    let config = &stream.cached_info().config;
    if config.retention == RetentionPolicy::Limits && config.subjects.as_slice() == [subject.as_str()] {
        return Ok(());
    }
    let why = format!("there is a stream of that name whose subject is not {subject}, or that is a queue");
    Err(bus.failed(&doing, why))
}

/// What the channel's stream holds.
pub(super) async fn look(link: &Link, bus: &Inner, channel: &Channel) -> Result<Holding> {
    let name = name(bus, channel);
    let answer = link.context.request(format!("STREAM.INFO.{name}"), &()).await;
    let doing = format!("looking what stream {name} holds");
    match answer.map_err(|error| request_error(link, bus, &doing, &error))? {
        Response::Ok(holding) => Ok(holding),
        // It was deleted; the next attempt makes it again, and finds it another one.
        Response::Err { error } if error.code() == 404 => Err(bus.transient(&doing, error)),
        Response::Err { error } => Err(bus.server.error(kind_of(&error), &doing, &error)),
    }
}

/// When the message with this sequence was taken in; `None` if there is none.
pub(super) async fn taken_at(
    link: &Link,
    bus: &Inner,
    channel: &Channel,
    sequence: u64,
) -> Result<Option<DateTime>> {
    let name = name(bus, channel);
    let doing = format!("looking for message {sequence} of stream {name}");
    let answer = link.context.request(format!("STREAM.MSG.GET.{name}"), &Wanted { seq: sequence }).await;
    match answer.map_err(|error| request_error(link, bus, &doing, &error))? {
        Response::Ok(Found { message }) => {
            parse_rfc3339(&message.time).map(Some).map_err(|error| bus.failed(&doing, error))
        }
        Response::Err { error } if error.code() == 404 => Ok(None),
        Response::Err { error } => Err(bus.server.error(kind_of(&error), &doing, &error)),
    }
}

fn request_error(link: &Link, bus: &Inner, doing: &str, error: &RequestError) -> Error {
    match error.kind() {
        RequestErrorKind::InvalidSubject => bus.failed(doing, error),
        _ => link.error(bus, doing, error),
    }
}

/// What does not pass by itself is told from what may.
pub(super) fn kind_of(error: &jetstream::Error) -> ErrorKind {
    use async_nats::jetstream::ErrorCode;
    let disabled = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT]
        .contains(&error.kind());
    let passes = !disabled && (error.code() >= 500 || error.code() == 404);
    if passes { ErrorKind::Transient } else { ErrorKind::BusFailed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: &str = "2026-11-25T16:20:00.123456789Z";

    fn holding(first_seq: u64, last_seq: u64) -> Holding {
        let last_ts = "2026-11-25T16:21:00Z".to_string();
        Holding { created: MADE.into(), state: Held { first_seq, last_seq, last_ts } }
    }

    fn place(sequence: u64) -> Place {
        Place { created: MADE.into(), sequence, taken: None }
    }

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        let received = Received { sequence: 17, nanoseconds: 1_790_230_470_084_404_001, body: Bytes::new() };
        let position = received.position(MADE);
        assert_eq!(position.as_str(), format!("17:1790230470084404001:{MADE}"));
        let place = Place::parse(&position).unwrap();
        assert_eq!((place.sequence, place.created.as_str(), place.taken), (17, MADE, received.taken()));
        for bad in ["", "17", "17:1", "17:1:yesterday", "x:1:2026-11-25T16:20:00Z", "1-2"] {
            assert_eq!(Place::parse(&Position::new(bad)).expect_err(bad).kind(), ErrorKind::BusFailed);
        }
    }

    #[test]
    fn what_is_missing_behind_a_place_is_noticed() {
        let held = holding(7, 9);
        assert!(held.follows(&place(6)) && held.follows(&place(9)) && !held.follows(&place(5)));
        assert!(!held.follows(&place(10)), "the server lost number 10");
        assert!(!held.follows(&Place { created: "2026-11-25T16:20:00Z".into(), ..place(8) }));
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
