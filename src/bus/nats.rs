//! A bus over NATS JetStream (feature `nats`), server 2.9 or newer. One stream for each channel.
//!
//! JetStream numbers the messages of a stream, but says nothing when it cannot start where it was asked to: it starts
//! at the first message that is left. So each delivery's sequence has to be the next one (if it is not, that is
//! [`crate::bus::Delivery::PositionLost`]), and whenever a consumer is made, and after every idle pull, the listener's
//! place is compared with what the stream holds. A stream that was deleted and made again shows by when it was made; a
//! server that lost messages and gave their numbers anew, by when the message at the listener's place was taken in.
//!
//! Consumers are pulled from, made for one listener, and made anew when anything is wrong with them: the server has to
//! answer each pull, with messages or without any, within a bounded time.

mod link;
mod listener;
mod stream;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;
use tokio::sync::Mutex;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::nats::link::Link;
use crate::bus::nats::listener::Listener;
use crate::bus::nats::stream::Place;
use crate::bus::server::{self, IDLE_DEFAULT, PREFIX_DEFAULT, RETAINED_DEFAULT, Server, TIMEOUT_DEFAULT};
use crate::error::{Error, ErrorKind, Result};

const IN_FLIGHT_DEFAULT: usize = 256;
const IN_FLIGHT_MAX: usize = 4096;
const REPLICAS_MAX: usize = 5;

/// How a [`NatsBus`] is to be.
#[derive(Clone)]
pub struct NatsBusOptions {
    retained: u64,
    replicas: usize,
    prefix: String,
    timeout: Duration,
    idle: Duration,
    in_flight: usize,
    token: Option<String>,
    credentials: Option<String>,
    root_certificates: Option<PathBuf>,
}

impl Default for NatsBusOptions {
    fn default() -> NatsBusOptions {
        NatsBusOptions {
            retained: RETAINED_DEFAULT,
            replicas: 1,
            prefix: PREFIX_DEFAULT.into(),
            timeout: TIMEOUT_DEFAULT,
            idle: IDLE_DEFAULT,
            in_flight: IN_FLIGHT_DEFAULT,
            token: None,
            credentials: None,
            root_certificates: None,
        }
    }
}

impl fmt::Debug for NatsBusOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("NatsBusOptions");
        shown
            .field("retained", &self.retained)
            .field("replicas", &self.replicas)
            .field("prefix", &self.prefix);
        shown.field("timeout", &self.timeout).field("idle", &self.idle).field("in_flight", &self.in_flight);
        shown.field("root_certificates", &self.root_certificates).finish_non_exhaustive()
    }
}

impl NatsBusOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> NatsBusOptions {
        NatsBusOptions::default()
    }

    /// How many messages a channel holds; 65,536 by default, 1 to 1,000,000,000. Counts when the channel's stream is
    /// made; one that is there stays as it is.
    #[must_use]
    pub fn retained(mut self, messages: u64) -> NatsBusOptions {
        self.retained = messages;
        self
    }

    /// On how many servers of a cluster a channel lies; 1 by default, 1 to 5. Counts when the channel's stream is
    /// made.
    #[must_use]
    pub fn replicas(mut self, servers: usize) -> NatsBusOptions {
        self.replicas = servers;
        self
    }

    /// What the names of streams and subjects begin with; `forebay` by default, 1 to 64 of `a-z A-Z 0-9 _ -`. Channel
    /// `c` is the stream `forebay-c` of the subject `forebay.c`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> NatsBusOptions {
        self.prefix = prefix.into();
        self
    }

    /// How long the server may take for an answer, and to accept a connection; 5 seconds by default, 10 milliseconds
    /// to 10 minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> NatsBusOptions {
        self.timeout = timeout;
        self
    }

    /// After how long without a message a listener checks that it has lost nothing; 1 second by default, 100
    /// milliseconds to a minute. A server that does not answer is noticed this much later than the timeout.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> NatsBusOptions {
        self.idle = idle;
        self
    }

    /// How many messages are on their way before the first of them has to be acknowledged; 256 by default, 1 to 4096.
    /// With 1, a message is sent when the one before it is held, so that what a lost connection leaves behind has no
    /// hole; that costs a round trip for each message.
    #[must_use]
    pub fn in_flight(mut self, messages: usize) -> NatsBusOptions {
        self.in_flight = messages;
        self
    }

    /// The token that the server wants.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> NatsBusOptions {
        self.token = Some(token.into());
        self
    }

    /// What a `.creds` file holds: a user's JWT and the seed of its key.
    #[must_use]
    pub fn credentials(mut self, text: impl Into<String>) -> NatsBusOptions {
        self.credentials = Some(text.into());
        self
    }

    /// A file of the certificates, in PEM, that a `tls://` server is trusted for, besides the system's.
    #[must_use]
    pub fn root_certificates(mut self, path: impl Into<PathBuf>) -> NatsBusOptions {
        self.root_certificates = Some(path.into());
        self
    }

    fn check(&self) -> Result<()> {
        server::check(self.retained, &self.prefix, self.timeout, self.idle)?;
        let ranges =
            [("replicas", self.replicas, REPLICAS_MAX), ("in_flight", self.in_flight, IN_FLIGHT_MAX)];
        for (option, value, max) in ranges {
            if !(1..=max).contains(&value) {
                let context = format!("{option} is {value}; allowed are 1 to {max}");
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
        }
        Ok(())
    }
}

/// A bus over NATS JetStream. Cheap to clone; all clones are one bus, and share one connection.
///
/// The bus belongs to the tokio runtime in which it is used first. A message is held as durably as the stream is: on so
/// many servers as its replicas, in files that NATS syncs every two minutes unless it is configured otherwise; what is
/// lost, listeners are told. [`crate::manual::buses`] says what else to know.
#[derive(Clone)]
pub struct NatsBus(Arc<Inner>);

struct Inner {
    addresses: Vec<ServerAddr>,
    login: Option<Login>,
    server: Server,
    options: NatsBusOptions,
    link: Mutex<Option<Arc<Link>>>,
}

/// What the URL says for a server to know the bus by. The driver does not look for it there.
enum Login {
    Token(String),
    Password(String, String),
}

impl Login {
    fn of(address: &ServerAddr) -> Option<Login> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = decoded(address.username()?);
        Some(match address.password() {
            Some(password) => Login::Password(user, decoded(password)),
            None => Login::Token(user),
        })
    }

    fn secret(&self) -> &str {
        match self {
            Login::Token(secret) | Login::Password(_, secret) => secret,
        }
    }
}

fn address(text: &str) -> Option<ServerAddr> {
    let address: ServerAddr = text.trim().parse().ok()?;
    (!address.host().is_empty()).then_some(address)
}

impl fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBus").field("server", &self.0.server).finish_non_exhaustive()
    }
}

impl NatsBus {
    /// A bus over the servers at `url`, with the default options: see [`NatsBus::with_options`].
    ///
    /// # Errors
    /// As there.
    pub fn new(url: &str) -> Result<NatsBus> {
        NatsBus::with_options(url, NatsBusOptions::new())
    }

    /// A bus over the servers at `nats://[user:password@]host[:port]`, or `nats://token@host`, or `tls://` if TLS has
    /// to be used; several of one cluster with commas between them. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the URL is none or an option is out of range.
    pub fn with_options(url: &str, options: NatsBusOptions) -> Result<NatsBus> {
        options.check()?;
        let parsed: Option<Vec<ServerAddr>> = url.split(',').map(address).collect();
        // Neither the URL nor why it does not parse is shown: nobody knows where in it the password is.
        let addresses = parsed.ok_or_else(|| {
            let context =
                "the URL of a nats bus cannot be read; it is nats://[user:password@]host[:port], or several";
            Error::new(ErrorKind::InvalidOption, context)
        })?;
        let named: Vec<String> =
            addresses.iter().map(|address| format!("{}:{}", address.host(), address.port())).collect();
        let login = addresses.iter().find_map(Login::of);
        let encoded = addresses.iter().filter_map(|address| address.password()).map(String::from);
        let given = options.token.iter().chain(&options.credentials).cloned();
        let given = given.chain(login.iter().map(|login| login.secret().to_string()));
        let server = Server::new("nats", named.join(","), encoded.chain(given));
        let link = Mutex::default();
        Ok(NatsBus(Arc::new(Inner { addresses, login, server, options, link })))
    }
}

impl Inner {
    /// The one connection, which is made when it is first asked for and mends itself.
    async fn link(&self) -> Result<Arc<Link>> {
        let link = {
            let mut held = server::lock_within(&self.link, self.options.timeout, &self.server).await?;
            match &*held {
                Some(link) => Arc::clone(link),
                None => Arc::clone(held.insert(Arc::new(Link::connect(self).await?))),
            }
        };
        link.ready(self).await?;
        Ok(link)
    }

    async fn publish(&self, channel: &Channel, messages: &[Message]) -> Result<()> {
        messages.iter().try_for_each(Message::check)?;
        if messages.is_empty() {
            return Ok(());
        }
        let link = self.link().await?;
        let connection = link.connection();
        link.ensure_stream(self, channel).await?;
        let doing = format!("publishing to channel {channel}");
        // Acknowledgements do not survive their connection.
        tokio::select! {
            biased;
            published = link.publish(self, channel, messages) => published,
            () = link.disconnected(connection) => Err(self.transient(doing, "the connection was lost")),
        }
    }

    fn transient(&self, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        self.server.error(ErrorKind::Transient, doing, why)
    }

    fn failed(&self, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        self.server.error(ErrorKind::BusFailed, doing, why)
    }
}

impl Bus for NatsBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.publish(channel, messages))
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let wanted = match &from {
                StartPosition::After(position) => Some(Place::parse(position)?),
                StartPosition::Now | StartPosition::Oldest => None,
            };
            let listener = Listener::begin(Arc::clone(&self.0), channel, &from, wanted).await?;
            Ok(Box::new(listener) as Box<dyn Subscription>)
        })
    }
}
