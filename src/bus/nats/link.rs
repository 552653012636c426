//! The connection to the servers, which mends itself: making it, knowing when it is gone, and publishing over it.

use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind::InvalidData;
use std::sync::PoisonError;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;

use crate::bus::contract::{Channel, Message};
use crate::bus::nats::stream;
use crate::bus::nats::{Inner, Login};
use crate::bus::server;
use crate::error::{Error, ErrorKind, Result};
use crate::seam::sync::Mutex;

/// How long to wait between attempts to connect again: this much longer each time, up to the second.
const RECONNECT_STEP: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);

pub(super) struct Link {
    pub(super) client: Client,
    pub(super) context: Context,
    known: watch::Sender<Known>,
    /// The channels whose streams are known to be there.
    streams: Mutex<HashSet<Channel>>,
}

/// What has been heard of the connection.
#[derive(Default)]
struct Known {
    disconnects: u64,
    /// That the server refused something, with its words, and that nobody was told of it yet.
    refusal: Option<String>,
}

impl Known {
    fn hear(&mut self, event: &Event) {
        let words = match event {
            Event::Disconnected => {
                self.disconnects += 1;
                return;
            }
            Event::Connected => {
                self.refusal = None;
                return;
            }
            Event::ServerError(ServerError::AuthorizationViolation) => "authorization violation".into(),
            Event::ServerError(error) => error.to_string(),
            Event::ClientError(error) => error.to_string(),
            _ => return,
        };
        let lower = words.to_ascii_lowercase();
        if ["authorization", "authentication", "permissions"].iter().any(|word| lower.contains(word)) {
            self.refusal = Some(words);
        }
    }
}

/// How rustls says that a certificate is not trusted.
fn is_refused_certificate(error: &ConnectError) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if error.downcast_ref().is_some_and(|error: &std::io::Error| error.kind() == InvalidData) {
            return true;
        }
        next = error.source();
    }
    false
}

impl Link {
    pub(super) async fn connect(bus: &Inner) -> Result<Link> {
        server::provide_cryptography();
        let known = watch::Sender::new(Known::default());
        let hearing = known.clone();
        let options = &bus.options;
        let mut connecting = ConnectOptions::new()
            .name("forebay")
            .connection_timeout(options.timeout)
            .request_timeout(Some(options.timeout))
            // Two pings without an answer, and the connection is taken for lost.
            .ping_interval(options.idle)
            .reconnect_delay_callback(|attempts| {
                // The first attempt counts too, and is not to wait.
                let steps = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
                RECONNECT_STEP.saturating_mul(steps).min(RECONNECT_MAX)
            })
            .event_callback(move |event| {
                hearing.send_modify(|known| known.hear(&event));
                std::future::ready(())
            });
        match &bus.login {
            Some(Login::Password(user, password)) => {
                connecting = connecting.user_and_password(user.clone(), password.clone());
            }
            Some(Login::Token(token)) => connecting = connecting.token(token.clone()),
            None => {}
        }
        if let Some(token) = &options.token {
            connecting = connecting.token(token.clone());
        }
        if let Some(credentials) = &options.credentials {
            // What is wrong in them is not shown: it may be the key.
            connecting = connecting
                .credentials(credentials)
                .map_err(|_| bus.failed("connecting", "the credentials cannot be read"))?;
        }
        if let Some(path) = &options.root_certificates {
            connecting = connecting.add_root_certificates(path.clone());
        }
        let client = connecting.connect(bus.addresses.clone()).await.map_err(|error| {
            let kind = match error.kind() {
                ConnectErrorKind::Authentication
                | ConnectErrorKind::AuthorizationViolation
                | ConnectErrorKind::Tls
                | ConnectErrorKind::ServerParse => ErrorKind::BusFailed,
                _ if is_refused_certificate(&error) => ErrorKind::BusFailed,
                _ => ErrorKind::Transient,
            };
            bus.server.error(kind, "connecting", error)
        })?;
        let context = ContextBuilder::new().timeout(options.timeout).build(client.clone());
        Ok(Link { client, context, known, streams: Mutex::default() })
    }

    /// Waits until there is a connection, but not for ever.
    pub(super) async fn ready(&self, bus: &Inner) -> Result<()> {
        let mut known = self.known.subscribe();
        let connected = known.wait_for(|_| self.client.connection_state() == State::Connected);
        match tokio::time::timeout(bus.options.timeout, connected).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.error(bus, "connecting", "there is no connection at the moment")),
        }
    }

    /// Which connection there is: how many there were before it.
    pub(super) fn connection(&self) -> u64 {
        self.known.borrow().disconnects
    }

    /// Returns when this connection is lost.
    pub(super) fn disconnected(&self, connection: u64) -> impl Future<Output = ()> + Send + 'static {
        let mut known = self.known.subscribe();
        async move {
            // The sender is gone only when the link is, and then so is the connection.
            drop(known.wait_for(|known| known.disconnects != connection).await);
        }
    }

    /// What may pass, unless the server has refused something: then that is why.
    pub(super) fn error(
        &self,
        bus: &Inner,
        doing: impl std::fmt::Display,
        why: impl std::fmt::Display,
    ) -> Error {
        let mut refusal = None;
        self.known.send_if_modified(|known| {
            refusal = known.refusal.take();
            false
        });
        match refusal {
            Some(words) => bus.failed(doing, format_args!("{why}; the server says: {words}")),
            None => bus.transient(doing, why),
        }
    }

    /// Sees to it that the channel has its stream.
    pub(super) async fn ensure_stream(&self, bus: &Inner, channel: &Channel) -> Result<()> {
        if self.streams.lock().unwrap_or_else(PoisonError::into_inner).contains(channel) {
            return Ok(());
        }
        stream::ensure(self, bus, channel).await?;
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(channel.clone());
        Ok(())
    }

    /// Publishes the messages, so many at a time, and waits until each is acknowledged.
    pub(super) async fn publish(&self, bus: &Inner, channel: &Channel, messages: &[Message]) -> Result<()> {
        let (subject, name) = (stream::subject(bus, channel), stream::name(bus, channel));
        let fail = |error: async_nats::jetstream::context::PublishError| {
            let doing = format_args!("publishing to channel {channel}");
            match error.kind() {
                PublishErrorKind::StreamNotFound => {
                    // Somebody has deleted it; the next call makes it again.
                    self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(channel);
                    self.error(bus, doing, error)
                }
                PublishErrorKind::MaxPayloadExceeded => bus.failed(doing, error),
                _ => self.error(bus, doing, error),
            }
        };
        let mut waiting = VecDeque::with_capacity(bus.options.in_flight.min(messages.len()));
        let mut rest = messages.iter();
        loop {
            let next = if waiting.len() < bus.options.in_flight { rest.next() } else { None };
            if let Some(message) = next {
                let publish = PublishMessage::build()
                    .payload(message.body.clone())
                    .message_id(message.identity.as_str());
                waiting.push_back(self.context.send_publish(subject.clone(), publish).await.map_err(fail)?);
                continue;
            }
            let Some(first) = waiting.pop_front() else { return Ok(()) };
            let acknowledged = first.await.map_err(fail)?;
            if acknowledged.stream != name {
                let why = format!("its subject {subject} belongs to another stream");
                return Err(bus.failed(format_args!("publishing to channel {channel}"), why));
            }
        }
    }
}
