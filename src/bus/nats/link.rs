//! The connection to the servers: opening it, and noticing that it is lost. The driver reconnects by itself.

use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind::InvalidData;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::connection::State as ConnectionState;
use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;

use crate::bus::contract::Channel;
use crate::bus::nats::options::{Login, Settings};
use crate::bus::server;
use crate::error::{Error, ErrorKind, Result};
use crate::seam::backoff;
use crate::seam::sync::Mutex;

/// The delay between two attempts to reconnect: longer by this step each time, up to the maximum.
const RECONNECT_STEP: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);

/// The state that all clones and listeners of a bus share.
pub(super) struct NatsClient {
    pub(super) settings: Arc<Settings>,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    /// The channels whose streams exist, as far as is known.
    streams: Mutex<HashSet<Channel>>,
}

impl NatsClient {
    /// Makes a client that is not connected yet.
    pub(super) fn new(settings: Settings) -> NatsClient {
        NatsClient {
            settings: Arc::new(settings),
            link: tokio::sync::Mutex::default(),
            streams: Mutex::default(),
        }
    }

    /// Returns the one connection, opens it at the first call, and waits until it is connected.
    pub(super) async fn link(&self) -> Result<Arc<Link>> {
        let link = {
            let settings = &self.settings;
            // Locked while it connects, so that many first callers open one connection.
            let mut opened =
                server::lock_within(&self.link, settings.options.timeout, &settings.server).await?;
            match &*opened {
                Some(link) => Arc::clone(link),
                None => Arc::clone(opened.insert(Arc::new(Link::connect(Arc::clone(settings)).await?))),
            }
        };
        // Without the lock: a caller that waits for a reconnect must not keep the others from their own timeouts.
        link.ready().await?;
        Ok(link)
    }

    /// Returns true if the stream of a channel exists, as far as is known.
    pub(super) fn knows_stream(&self, channel: &Channel) -> bool {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).contains(channel)
    }

    /// Records whether the stream of a channel exists.
    pub(super) fn note_stream(&self, channel: &Channel, exists: bool) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if exists {
            streams.insert(channel.clone());
        } else {
            streams.remove(channel);
        }
    }
}

/// The connection, which outlives reconnects.
pub(super) struct Link {
    settings: Arc<Settings>,
    pub(super) client: Client,
    pub(super) context: Context,
    events: watch::Sender<ConnectionEvents>,
}

/// The events of the connection.
#[derive(Default)]
struct ConnectionEvents {
    disconnects: u64,
    /// The text of a refusal by the server that no error has reported yet.
    refusal: Option<String>,
}

impl ConnectionEvents {
    fn record(&mut self, event: &Event) {
        let words = match event {
            Event::Disconnected => {
                // A number and no flag, because a listener that slept through a reconnect has to notice it.
                self.disconnects += 1;
                return;
            }
            Event::Connected => {
                // Whatever was refused before, the server accepts us now.
                self.refusal = None;
                return;
            }
            Event::ServerError(ServerError::AuthorizationViolation) => "authorization violation".into(),
            Event::ServerError(error) => error.to_string(),
            Event::ClientError(error) => error.to_string(),
            _ => return,
        };
        // The driver has no kinds for these errors, and retries without end as if they could pass.
        let lower = words.to_ascii_lowercase();
        if ["authorization", "authentication", "permissions"].iter().any(|word| lower.contains(word)) {
            self.refusal = Some(words);
        }
    }
}

/// Returns true if TLS failed because the certificate is not trusted, which rustls reports as invalid data.
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
    pub(super) async fn connect(settings: Arc<Settings>) -> Result<Link> {
        server::provide_cryptography();
        let events = watch::Sender::new(ConnectionEvents::default());
        let recorded = events.clone();
        let options = &settings.options;
        let mut connecting = ConnectOptions::new()
            .name("forebay")
            .connection_timeout(options.timeout)
            .request_timeout(Some(options.timeout))
            // The driver gives a connection up after two pings without an answer.
            .ping_interval(options.idle)
            .reconnect_delay_callback(|attempts| {
                // The first attempt is number 1 and must not wait.
                backoff::linear(RECONNECT_STEP, RECONNECT_MAX, attempts.saturating_sub(1) as u64)
            })
            .event_callback(move |event| {
                recorded.send_modify(|events| events.record(&event));
                std::future::ready(())
            });
        match &settings.login {
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
            // The parser's error is not shown: it may quote the key.
            connecting = connecting
                .credentials(credentials)
                .map_err(|_| settings.failed("connecting", "the credentials cannot be read"))?;
        }
        if let Some(path) = &options.root_certificates {
            connecting = connecting.add_root_certificates(path.clone());
        }
        let client = connecting.connect(settings.addresses.clone()).await.map_err(|error| {
            // No retry mends these, and endless reconnects would hide a wrong password.
            let kind = match error.kind() {
                ConnectErrorKind::Authentication
                | ConnectErrorKind::AuthorizationViolation
                | ConnectErrorKind::Tls
                | ConnectErrorKind::ServerParse => ErrorKind::BusFailed,
                _ if is_refused_certificate(&error) => ErrorKind::BusFailed,
                _ => ErrorKind::Transient,
            };
            settings.server.error_from(kind, "connecting", error)
        })?;
        let context = ContextBuilder::new().timeout(options.timeout).build(client.clone());
        Ok(Link { settings, client, context, events })
    }

    /// Waits until the link is connected, within the timeout.
    pub(super) async fn ready(&self) -> Result<()> {
        let mut events = self.events.subscribe();
        let connected = events.wait_for(|_| self.client.connection_state() == ConnectionState::Connected);
        match tokio::time::timeout(self.settings.options.timeout, connected).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.error("connecting", "there is no connection at the moment")),
        }
    }

    /// Returns the number of the current connection.
    pub(super) fn connection(&self) -> u64 {
        self.events.borrow().disconnects
    }

    /// Returns when this connection is lost.
    pub(super) fn disconnected(&self, connection: u64) -> impl Future<Output = ()> + Send + 'static {
        let mut events = self.events.subscribe();
        async move {
            // An error means that the link was dropped, and the connection with it.
            drop(events.wait_for(|events| events.disconnects != connection).await);
        }
    }

    /// Makes the error of a call without an error of the driver; see [`Link::error_from`].
    pub(super) fn error(&self, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        // Taken once, so that an old refusal does not make a later, passing failure permanent.
        match self.take_refusal() {
            Some(words) => self.settings.failed(doing, format_args!("{why}; the server says: {words}")),
            None => self.settings.transient(doing, why),
        }
    }

    /// Makes the error of a call from the driver's error. The error is transient, unless the server has refused
    /// something since: then the refusal is the reason, and the driver reports only its consequence.
    pub(super) fn error_from(
        &self,
        doing: impl fmt::Display,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        match self.take_refusal() {
            Some(words) => self.settings.failed(doing, format_args!("{error}; the server says: {words}")),
            None => self.settings.server.error_from(ErrorKind::Transient, doing, error),
        }
    }

    fn take_refusal(&self) -> Option<String> {
        let mut refusal = None;
        self.events.send_if_modified(|events| {
            refusal = events.refusal.take();
            // Taking it is no event that anybody has to wake up for.
            false
        });
        refusal
    }
}
