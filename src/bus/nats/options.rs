//! The options of a NATS bus, its servers, and its errors.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;

use crate::bus::server::{
    self, IDLE_DEFAULT, PREFIX_DEFAULT, RETAINED_DEFAULT, ServerLabel, TIMEOUT_DEFAULT,
};
use crate::error::{Error, ErrorKind, Result};

const IN_FLIGHT_DEFAULT: usize = 256;
const IN_FLIGHT_MAX: usize = 4096;
const REPLICAS_MAX: usize = 5;

/// The options of a [`NatsBus`](crate::bus::nats::NatsBus).
#[derive(Clone)]
pub struct NatsBusOptions {
    pub(super) retained: u64,
    pub(super) replicas: usize,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) idle: Duration,
    pub(super) in_flight: usize,
    pub(super) token: Option<String>,
    pub(super) credentials: Option<String>,
    pub(super) root_certificates: Option<PathBuf>,
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
        // Token and credentials are left out.
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
    /// Returns the default options.
    #[must_use]
    pub fn new() -> NatsBusOptions {
        NatsBusOptions::default()
    }

    /// Sets the number of messages that a channel keeps; 65,536 by default, 1 to 1,000,000,000. Applies when the stream
    /// of the channel is created; an existing stream does not change.
    #[must_use]
    pub fn retained(mut self, messages: u64) -> NatsBusOptions {
        self.retained = messages;
        self
    }

    /// Sets the number of servers of a cluster that store a channel; 1 by default, 1 to 5. Applies when the stream of
    /// the channel is created.
    #[must_use]
    pub fn replicas(mut self, servers: usize) -> NatsBusOptions {
        self.replicas = servers;
        self
    }

    /// Sets the prefix of the names of streams and subjects; `forebay` by default, 1 to 64 of `a-z A-Z 0-9 _ -`.
    /// Channel `c` is the stream `forebay-c` of the subject `forebay.c`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> NatsBusOptions {
        self.prefix = prefix.into();
        self
    }

    /// Sets the timeout of an answer of the server and of connecting; 5 seconds by default, 10 milliseconds to 10
    /// minutes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> NatsBusOptions {
        self.timeout = timeout;
        self
    }

    /// Sets the time without a message after which a listener checks that it has lost none; 1 second by default, 100
    /// milliseconds to a minute. A server that does not answer is noticed after this time plus the timeout.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> NatsBusOptions {
        self.idle = idle;
        self
    }

    /// Sets the number of messages in flight before the first must be acknowledged; 256 by default, 1 to 4096. With 1 a
    /// message is sent once the previous one is stored, so a lost connection leaves no gap within the published
    /// messages; this costs a round trip for each message.
    #[must_use]
    pub fn in_flight(mut self, messages: usize) -> NatsBusOptions {
        self.in_flight = messages;
        self
    }

    /// Sets the token for the server.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> NatsBusOptions {
        self.token = Some(token.into());
        self
    }

    /// Sets the contents of a `.creds` file: the JWT of a user and the seed of its key.
    #[must_use]
    pub fn credentials(mut self, text: impl Into<String>) -> NatsBusOptions {
        self.credentials = Some(text.into());
        self
    }

    /// Sets a file of certificates in PEM that are trusted for a `tls://` server, in addition to those of the system.
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

/// The checked options of a bus and the servers of its URL.
pub(super) struct Settings {
    pub(super) addresses: Vec<ServerAddr>,
    pub(super) login: Option<Login>,
    pub(super) server: ServerLabel,
    pub(super) options: NatsBusOptions,
}

impl Settings {
    /// Parses the URL and checks the options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub(super) fn new(url: &str, options: NatsBusOptions) -> Result<Settings> {
        options.check()?;
        let parsed: Option<Vec<ServerAddr>> = url.split(',').map(address).collect();
        // Neither the URL nor the parser's error is shown: the password may be anywhere in it.
        let addresses = parsed.ok_or_else(|| {
            let context =
                "the URL of a nats bus cannot be read; it is nats://[user:password@]host[:port], or several";
            Error::new(ErrorKind::InvalidOption, context)
        })?;
        // The name in errors must not contain the credentials of the URL.
        let named: Vec<String> =
            addresses.iter().map(|address| format!("{}:{}", address.host(), address.port())).collect();
        let login = addresses.iter().find_map(Login::of);
        // In the encoded form too, because drivers and servers quote the URL as it was given.
        let encoded = addresses.iter().filter_map(|address| address.password()).map(String::from);
        let given = options.token.iter().chain(&options.credentials).cloned();
        let given = given.chain(login.iter().map(|login| login.secret().to_string()));
        let server = ServerLabel::new("nats", named.join(","), encoded.chain(given));
        Ok(Settings { addresses, login, server, options })
    }

    /// Makes an error that may pass by itself.
    pub(super) fn transient(&self, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        self.server.error(ErrorKind::Transient, doing, why)
    }

    /// Makes an error that does not pass by itself.
    pub(super) fn failed(&self, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        self.server.error(ErrorKind::BusFailed, doing, why)
    }
}

/// The credentials in the URL. The driver does not look for them there.
pub(super) enum Login {
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
    // The parser accepts a URL without a host.
    (!address.host().is_empty()).then_some(address)
}
