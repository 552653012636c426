//! A bus over Redis Streams (feature `redis`); Valkey is the same to it. One stream for each channel.
//!
//! Redis hides what it has lost: who reads after an entry that was trimmed gets the entries that are left and no word
//! of the others, `XINFO STREAM` knows of single deletions only, and a stream that was deleted and made again looks
//! like a long one. So each entry says for itself which it is: a script adds it together with a *number*, which grows
//! by one for each entry of the channel, and with the channel's *incarnation*, which was drawn when its numbering began
//! (`entry`). Both lie in a hash beside the stream. What a listener is given has to be the next number of the same
//! incarnation; whatever else it is, something is missing ([`crate::bus::Delivery::PositionLost`]). What was lost
//! before anything else came is found by comparing the listener's place with what the server holds: whenever a
//! connection is made, and after every idle read.

mod entry;
mod listener;
mod script;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisError, ServerErrorKind};
use tokio::sync::Mutex;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::redis::entry::Place;
use crate::bus::redis::listener::Listener;
use crate::bus::redis::script::{Keys, Scripts};
use crate::bus::server::{self, IDLE_DEFAULT, PREFIX_DEFAULT, RETAINED_DEFAULT, Server, TIMEOUT_DEFAULT};
use crate::error::{Error, ErrorKind, Result};

/// How many messages one call of the script adds, and bytes of them, before the next call. The server does nothing
/// else during a call.
const CALL_MESSAGES_MAX: usize = 256;
const CALL_BYTES_MAX: usize = 1 << 20;

/// How a [`RedisBus`] is to be.
#[derive(Clone)]
pub struct RedisBusOptions {
    retained: u64,
    prefix: String,
    timeout: Duration,
    idle: Duration,
    #[cfg(feature = "redis-tls")]
    root_certificates: Option<Vec<u8>>,
}

impl Default for RedisBusOptions {
    fn default() -> RedisBusOptions {
        RedisBusOptions {
            retained: RETAINED_DEFAULT,
            prefix: PREFIX_DEFAULT.into(),
            timeout: TIMEOUT_DEFAULT,
            idle: IDLE_DEFAULT,
            #[cfg(feature = "redis-tls")]
            root_certificates: None,
        }
    }
}

impl fmt::Debug for RedisBusOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RedisBusOptions");
        shown.field("retained", &self.retained).field("prefix", &self.prefix);
        shown.field("timeout", &self.timeout).field("idle", &self.idle).finish_non_exhaustive()
    }
}

impl RedisBusOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> RedisBusOptions {
        RedisBusOptions::default()
    }

    /// How many messages a channel holds, about (`XADD ... MAXLEN ~`: Redis drops whole nodes of about a hundred);
    /// 65,536 by default, 1 to 1,000,000,000. They lie in the server's memory.
    #[must_use]
    pub fn retained(mut self, messages: u64) -> RedisBusOptions {
        self.retained = messages;
        self
    }

    /// What the keys begin with; `forebay` by default, 1 to 64 of `a-z A-Z 0-9 _ -`. Channel `c` lies in the stream
    /// `{forebay:c}` and the hash `{forebay:c}:place`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> RedisBusOptions {
        self.prefix = prefix.into();
        self
    }

    /// How long the server may take for an answer, and to accept a connection; 5 seconds by default, 10 milliseconds
    /// to 10 minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> RedisBusOptions {
        self.timeout = timeout;
        self
    }

    /// After how long without a message a listener checks that it has lost nothing; 1 second by default, 100
    /// milliseconds to a minute. A server that does not answer is noticed this much later than the timeout.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> RedisBusOptions {
        self.idle = idle;
        self
    }

    /// The certificates, in PEM, that a `rediss://` server is trusted for, instead of the system's.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> RedisBusOptions {
        self.root_certificates = Some(pem.into());
        self
    }
}

/// A bus over Redis Streams. Cheap to clone; all clones are one bus.
///
/// Publishing shares one connection, and each subscription has its own. A message is held as durably as the server
/// holds what it has acknowledged: with `appendfsync always` it survives a crash of the server's machine, by default a
/// second's worth may be lost, which listeners are told. [`crate::manual::buses`] says what else to know.
#[derive(Clone)]
pub struct RedisBus(Arc<Inner>);

struct Inner {
    client: Client,
    server: Server,
    options: RedisBusOptions,
    scripts: Scripts,
    publishing: Mutex<Option<MultiplexedConnection>>,
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("server", &self.0.server).finish_non_exhaustive()
    }
}

impl RedisBus {
    /// A bus over the server at `url`, with the default options: see [`RedisBus::with_options`].
    ///
    /// # Errors
    /// As there.
    pub fn new(url: &str) -> Result<RedisBus> {
        RedisBus::with_options(url, RedisBusOptions::new())
    }

    /// A bus over the server at `redis://[user][:password@]host[:port][/database]`, or `rediss://` for TLS (feature
    /// `redis-tls`), or `unix:///path`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the URL is none, needs TLS in a build without it, or an option is out of range.
    pub fn with_options(url: &str, options: RedisBusOptions) -> Result<RedisBus> {
        server::check(options.retained, &options.prefix, options.timeout, options.idle)?;
        // What does not parse is not shown: nobody knows where in it the password is.
        let client = client(url, &options).map_err(|error| {
            Error::new(ErrorKind::InvalidOption, format!("the URL of a redis bus: {error}"))
        })?;
        let info = client.get_connection_info();
        let secrets = info.redis_settings().password().map(String::from);
        let server = Server::new("redis", info.addr(), secrets.into_iter());
        let scripts = Scripts::new();
        let publishing = Mutex::default();
        Ok(RedisBus(Arc::new(Inner { client, server, options, scripts, publishing })))
    }
}

#[cfg(feature = "redis-tls")]
fn client(url: &str, options: &RedisBusOptions) -> Result<Client, RedisError> {
    let client = match &options.root_certificates {
        None => Client::open(url)?,
        Some(pem) => {
            let root_cert = Some(pem.clone());
            Client::build_with_tls(url, ::redis::TlsCertificates { client_tls: None, root_cert })?
        }
    };
    if matches!(client.get_connection_info().addr(), ::redis::ConnectionAddr::TcpTls { .. }) {
        server::provide_cryptography();
    }
    Ok(client)
}

#[cfg(not(feature = "redis-tls"))]
fn client(url: &str, _: &RedisBusOptions) -> Result<Client, RedisError> {
    Client::open(url)
}

impl Inner {
    /// A connection whose answers may take so long.
    async fn connect(&self, response_timeout: Duration) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.timeout))
            .set_response_timeout(Some(response_timeout));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        connecting.await.map_err(|error| self.error("connecting", &error))
    }

    /// The connection that is published over, which is made when it is first asked for, by one at a time.
    async fn publishing_connection(&self) -> Result<MultiplexedConnection> {
        let mut held = server::lock_within(&self.publishing, self.options.timeout, &self.server).await?;
        Ok(match &*held {
            Some(connection) => connection.clone(),
            None => held.insert(self.connect(self.options.timeout).await?).clone(),
        })
    }

    fn error(&self, doing: impl fmt::Display, error: &RedisError) -> Error {
        match error.kind() {
            // Their words repeat what was read, which may be a message.
            ::redis::ErrorKind::Parse | ::redis::ErrorKind::UnexpectedReturnType => {
                let why = format!("the server's answer cannot be read: {}", error.category());
                self.server.error(kind_of(error), doing, why)
            }
            _ => self.server.error(kind_of(error), doing, error),
        }
    }

    async fn publish(&self, channel: &Channel, messages: &[Message]) -> Result<()> {
        messages.iter().try_for_each(Message::check)?;
        if messages.is_empty() {
            return Ok(());
        }
        // Whoever publishes at the same time does it over the same connection, one call behind the other.
        let mut connection = self.publishing_connection().await?;
        let keys = Keys::of(&self.options.prefix, channel);
        let mut rest = messages;
        while !rest.is_empty() {
            let (call, behind) = rest.split_at(call_len(rest));
            // Another one each time: no two numberings may have the same.
            let incarnation = server::draw_incarnation()?;
            let added = self.scripts.add(&mut connection, &keys, &incarnation, self.options.retained, call);
            if let Err(error) = added.await {
                // It may be the connection's fault, and a new one costs little.
                *self.publishing.lock().await = None;
                return Err(self.error(format_args!("publishing to channel {channel}"), &error));
            }
            rest = behind;
        }
        Ok(())
    }
}

/// How many messages the next call takes; one at the least.
fn call_len(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fits = |message: &&Message| {
        bytes += message.body.len();
        bytes <= CALL_BYTES_MAX
    };
    messages.iter().take(CALL_MESSAGES_MAX).take_while(fits).count().max(1)
}

/// What does not pass by itself is told from what may.
fn kind_of(error: &RedisError) -> ErrorKind {
    use ::redis::ErrorKind as Redis;
    let lasting = match error.kind() {
        Redis::Server(ServerErrorKind::ResponseError) => {
            !error.detail().is_some_and(|detail| detail.contains("max number of clients"))
        }
        Redis::AuthenticationFailed
        | Redis::InvalidClientConfig
        | Redis::Client
        | Redis::UnexpectedReturnType
        | Redis::RESP3NotSupported
        | Redis::Parse
        | Redis::Server(
            ServerErrorKind::NoPerm
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        ) => true,
        // How rustls says that a certificate is not trusted.
        Redis::Io => io_error(error).is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData),
        _ => matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "WRONGTYPE" | "NOPROTO")),
    };
    if lasting { ErrorKind::BusFailed } else { ErrorKind::Transient }
}

/// The error of the connection within the driver's, which shares it.
fn io_error(error: &RedisError) -> Option<&std::io::Error> {
    type Shared = Arc<dyn std::error::Error + Send + Sync>;
    let source = std::error::Error::source(error)?;
    source.downcast_ref().or_else(|| source.downcast_ref::<Shared>()?.downcast_ref())
}

impl Bus for RedisBus {
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
