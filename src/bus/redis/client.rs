//! The connections of a Redis bus, its options, and its calls.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisError, ServerErrorKind};
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::bus::contract::{Channel, Message};
use crate::bus::redis::entry::{ChannelEntry, EntryId};
use crate::bus::redis::script::{ChannelKeys, ChannelState, Scripts};
use crate::bus::server::{
    self, IDLE_DEFAULT, PREFIX_DEFAULT, RETAINED_DEFAULT, ServerLabel, TIMEOUT_DEFAULT,
};
use crate::error::{Error, ErrorKind, Result};

/// The limits of one call of the script that adds messages. The server does nothing else during a call.
const CALL_MESSAGES_MAX: usize = 256;
const CALL_BYTES_MAX: usize = 1 << 20;

/// The number of entries in one read; at most 32 MiB.
const READ_ENTRIES_MAX: usize = 64;

/// The answer of `XREAD`: nothing, or the name of each stream and its entries with their IDs and fields.
type Read = Option<Vec<(String, Vec<(String, Vec<Bytes>)>)>>;

/// The options of a [`RedisBus`](crate::bus::redis::RedisBus).
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
    /// Returns the default options.
    #[must_use]
    pub fn new() -> RedisBusOptions {
        RedisBusOptions::default()
    }

    /// Sets about how many messages a channel keeps (`XADD ... MAXLEN ~`: Redis drops whole nodes of about a hundred);
    /// 65,536 by default, 1 to 1,000,000,000. They are in the memory of the server.
    #[must_use]
    pub fn retained(mut self, messages: u64) -> RedisBusOptions {
        self.retained = messages;
        self
    }

    /// Sets the prefix of the keys; `forebay` by default, 1 to 64 of `a-z A-Z 0-9 _ -`. Channel `c` is the stream
    /// `{forebay:c}` and the hash `{forebay:c}:place`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> RedisBusOptions {
        self.prefix = prefix.into();
        self
    }

    /// Sets the timeout of an answer of the server and of connecting; 5 seconds by default, 10 milliseconds to 10
    /// minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> RedisBusOptions {
        self.timeout = timeout;
        self
    }

    /// Sets the time without a message after which a listener checks that it has lost none; 1 second by default, 100
    /// milliseconds to a minute. A server that does not answer is noticed after this time plus the timeout.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> RedisBusOptions {
        self.idle = idle;
        self
    }

    /// Sets certificates in PEM that are trusted for a `rediss://` server, instead of those of the system.
    #[cfg(feature = "redis-tls")]
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> RedisBusOptions {
        self.root_certificates = Some(pem.into());
        self
    }
}

/// The connections, shared by all clones of a bus.
pub(super) struct RedisClient {
    client: Client,
    pub(super) server: ServerLabel,
    pub(super) options: RedisBusOptions,
    scripts: Scripts,
    publishing: Mutex<Option<MultiplexedConnection>>,
}

impl RedisClient {
    /// Parses the URL and checks the options. Connects later, when the bus is first used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub(super) fn new(url: &str, options: RedisBusOptions) -> Result<RedisClient> {
        server::check(options.retained, &options.prefix, options.timeout, options.idle)?;
        // The URL itself is not shown: the password may be anywhere in it.
        let client = client(url, &options).map_err(|error| {
            Error::new(ErrorKind::InvalidOption, format!("the URL of a redis bus: {error}"))
        })?;
        let info = client.get_connection_info();
        let secrets = info.redis_settings().password().map(String::from);
        let server = ServerLabel::new("redis", info.addr(), secrets.into_iter());
        let scripts = Scripts::new();
        Ok(RedisClient { client, server, options, scripts, publishing: Mutex::default() })
    }

    /// Opens a connection with this timeout for answers.
    async fn connect(&self, response_timeout: Duration) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.timeout))
            .set_response_timeout(Some(response_timeout));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        connecting.await.map_err(|error| self.error("connecting", error))
    }

    /// Returns the connection for publishing, and opens it at the first call. Only one call at a time opens it.
    async fn publishing_connection(&self) -> Result<MultiplexedConnection> {
        let mut held = server::lock_within(&self.publishing, self.options.timeout, &self.server).await?;
        Ok(match &*held {
            Some(connection) => connection.clone(),
            None => held.insert(self.connect(self.options.timeout).await?).clone(),
        })
    }

    pub(super) async fn connect_to_listen(&self) -> Result<MultiplexedConnection> {
        // A read blocks for the idle time before it answers, and that is no timeout.
        self.connect(self.options.idle + self.options.timeout).await
    }

    pub(super) async fn read_state(
        &self,
        connection: &mut MultiplexedConnection,
        channel: &Channel,
        id: EntryId,
    ) -> Result<ChannelState> {
        let keys = ChannelKeys::new(&self.options.prefix, channel);
        let incarnation = server::draw_incarnation()?;
        let looked = self.scripts.read_state(connection, &keys, &incarnation, id).await;
        looked.map_err(|error| self.error(format_args!("looking what channel {channel} holds"), error))
    }

    /// Reads the entries behind this one, and waits for them for a while.
    pub(super) async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        channel: &Channel,
        after: EntryId,
    ) -> Result<VecDeque<ChannelEntry>> {
        let keys = ChannelKeys::new(&self.options.prefix, channel);
        let mut command = ::redis::cmd("XREAD");
        command.arg("COUNT").arg(READ_ENTRIES_MAX);
        // Bounded, so that a dead server can be told from an idle channel.
        command.arg("BLOCK").arg(u64::try_from(self.options.idle.as_millis()).unwrap_or(u64::MAX));
        command.arg("STREAMS").arg(&keys.stream).arg(after.to_string());
        let read: Read = command
            .query_async(connection)
            .await
            .map_err(|error| self.error(format_args!("reading channel {channel}"), error))?;
        let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
        let own = entries.map(|(id, fields)| {
            // Skipping it could skip a message of ours that was changed on the server.
            ChannelEntry::of(&id, &fields).ok_or_else(|| {
                let why = format!("entry {} of stream {} is not of this bus", id.escape_debug(), keys.stream);
                self.server.error(ErrorKind::BusFailed, format_args!("reading channel {channel}"), why)
            })
        });
        own.collect()
    }

    fn error(&self, doing: impl fmt::Display, error: RedisError) -> Error {
        match error.kind() {
            // The texts of these errors quote the answer, which may be a message. So the error is not kept as a source.
            ::redis::ErrorKind::Parse | ::redis::ErrorKind::UnexpectedReturnType => {
                let why = format!("the server's answer cannot be read: {}", error.category());
                self.server.error(kind_of(&error), doing, why)
            }
            _ => self.server.error_from(kind_of(&error), doing, error),
        }
    }

    pub(super) async fn publish(&self, channel: &Channel, messages: &[Message]) -> Result<()> {
        messages.iter().try_for_each(Message::check)?;
        if messages.is_empty() {
            return Ok(());
        }
        // Concurrent calls share the connection; the server runs their scripts one after the other.
        let mut connection = self.publishing_connection().await?;
        let keys = ChannelKeys::new(&self.options.prefix, channel);
        let mut rest = messages;
        while !rest.is_empty() {
            let (call, behind) = rest.split_at(call_len(rest));
            // A new one for each call, because no two numberings may have the same incarnation. The script ignores it
            // if the channel has one.
            let incarnation = server::draw_incarnation()?;
            let added = self.scripts.add(&mut connection, &keys, &incarnation, self.options.retained, call);
            if let Err(error) = added.await {
                // The connection may be broken, and opening a new one costs little.
                *self.publishing.lock().await = None;
                return Err(self.error(format_args!("publishing to channel {channel}"), error));
            }
            rest = behind;
        }
        Ok(())
    }
}

/// Returns the number of messages for the next call, at least one.
fn call_len(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fits = |message: &&Message| {
        bytes += message.body.len();
        bytes <= CALL_BYTES_MAX
    };
    // At least one, or a single large message would never be sent.
    messages.iter().take(CALL_MESSAGES_MAX).take_while(fits).count().max(1)
}

/// Classifies an error of the driver.
fn kind_of(error: &RedisError) -> ErrorKind {
    use ::redis::ErrorKind as Redis;
    let lasting = match error.kind() {
        // A full server refuses with a plain error too, and that passes.
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
        // rustls reports a certificate that is not trusted as invalid data.
        Redis::Io => io_error(error).is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData),
        _ => matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "WRONGTYPE" | "NOPROTO")),
    };
    if lasting { ErrorKind::BusFailed } else { ErrorKind::Transient }
}

/// Returns the I/O error below the driver's error, which may be behind an `Arc`.
fn io_error(error: &RedisError) -> Option<&std::io::Error> {
    type Shared = Arc<dyn std::error::Error + Send + Sync>;
    let source = std::error::Error::source(error)?;
    source.downcast_ref().or_else(|| source.downcast_ref::<Shared>()?.downcast_ref())
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
