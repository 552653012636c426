//! The common part of the buses over Redis and NATS: errors that name the server without its secrets, and options.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};

/// The default retention of a channel, in messages.
pub(crate) const RETAINED_DEFAULT: u64 = 65_536;
/// The range of the retention. A larger number would promise to keep everything, which no server can.
const RETAINED: RangeInclusive<u64> = 1..=1_000_000_000;
/// The default timeout of an answer.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);
/// The default time without a message after which a listener checks that it has lost none.
pub(crate) const IDLE_DEFAULT: Duration = Duration::from_secs(1);
const IDLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// The default prefix of all names on the server.
pub(crate) const PREFIX_DEFAULT: &str = "forebay";
const PREFIX_BYTES_MAX: usize = 64;

/// The name of a server in errors, and the secrets that no error may contain.
#[derive(Clone)]
pub(crate) struct ServerLabel {
    name: String,
    /// Passwords and tokens, also in their encoded forms.
    secrets: Vec<String>,
}

impl ServerLabel {
    /// Makes the name from the kind of the bus and an address without credentials.
    pub(crate) fn new(
        bus: &str,
        address: impl fmt::Display,
        secrets: impl Iterator<Item = String>,
    ) -> ServerLabel {
        // Replacing an empty text would insert stars everywhere.
        let secrets = secrets.filter(|secret| !secret.is_empty()).collect();
        ServerLabel { name: format!("the {bus} bus at {address}"), secrets }
    }

    /// Makes an error without a source.
    pub(crate) fn error(&self, kind: ErrorKind, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error::new(kind, format!("{}: {doing}: {}", self.name, self.without_secrets(&why.to_string())))
    }

    /// Makes an error with the driver's error as its source.
    ///
    /// Servers repeat what they did not understand, such as a command with a password. If a secret occurs anywhere in
    /// the chain of sources, the source is replaced by the text of the chain without the secret.
    pub(crate) fn error_from(
        &self,
        kind: ErrorKind,
        doing: impl fmt::Display,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        let context = format!("{}: {doing}", self.name);
        // The whole chain is searched, because a driver's source may quote the command that held the password.
        let mut chain = source.to_string();
        let mut next = std::error::Error::source(&source);
        while let Some(cause) = next {
            // Some drivers print their source in their own text already.
            let text = cause.to_string();
            if !chain.contains(&text) {
                chain.push_str(": ");
                chain.push_str(&text);
            }
            next = cause.source();
        }
        let shown = self.without_secrets(&chain);
        if shown == chain {
            Error::with_source(kind, context, source)
        } else {
            Error::with_source(kind, context, shown)
        }
    }

    fn without_secrets(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |shown, secret| shown.replace(secret.as_str(), "***"))
    }
}

impl fmt::Debug for ServerLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Locks a connection that another call may be opening at this moment, within the timeout.
pub(crate) async fn lock_within<'a, T>(
    connection: &'a Mutex<T>,
    timeout: Duration,
    server: &ServerLabel,
) -> Result<MutexGuard<'a, T>> {
    // The other call may hang on a dead server for its own timeout; without a limit, callers would queue up behind
    // each other's.
    tokio::time::timeout(timeout, connection.lock()).await.map_err(|_| {
        let why = format!("another call has been at it for {} ms", timeout.as_millis());
        server.error(ErrorKind::Transient, "connecting", why)
    })
}

fn refused(option: &str, value: impl fmt::Debug, allowed: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("{option} is {value:?}; allowed are {allowed}"))
}

/// Checks the common options.
pub(crate) fn check(retained: u64, prefix: &str, timeout: Duration, idle: Duration) -> Result<()> {
    if !RETAINED.contains(&retained) {
        return Err(refused("retained", retained, "1 to 1,000,000,000 messages"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.chars().all(allowed) {
        let shown: String = prefix.chars().take(PREFIX_BYTES_MAX).collect();
        return Err(refused("prefix", shown, "1 to 64 of a-z A-Z 0-9 _ -"));
    }
    if !TIMEOUT.contains(&timeout) {
        return Err(refused("timeout", timeout, "10 milliseconds to 10 minutes"));
    }
    if !IDLE.contains(&idle) {
        return Err(refused("idle", idle, "100 milliseconds to a minute"));
    }
    Ok(())
}

/// Draws a random identity, which distinguishes a channel from an earlier one of the same name.
#[cfg(feature = "redis")]
pub(crate) fn draw_incarnation() -> Result<String> {
    let mut bytes = [0; 8];
    crate::seam::random::fill(&mut bytes).map_err(|e| {
        Error::with_source(ErrorKind::Io, "drawing random bytes for a channel's incarnation", e.to_string())
    })?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Installs ring as the process's cryptography for TLS, unless one is installed. rustls has one per process.
#[cfg(any(feature = "redis-tls", feature = "nats"))]
pub(crate) fn provide_cryptography() {
    // This fails if a provider is installed already, which is then used.
    drop(rustls::crypto::ring::default_provider().install_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_holds_no_secret() {
        let server = ServerLabel::new("redis", "h:1", ["s3cret".to_string(), String::new()].into_iter());
        let error = server.error(ErrorKind::BusFailed, "connecting", "unknown command 'AUTH' 's3cret'");
        assert_eq!(format!("{error:#}"), "the redis bus at h:1: connecting: unknown command 'AUTH' '***'");
        let io = |text: &str| std::io::Error::other(text.to_owned());
        let error = server.error_from(ErrorKind::BusFailed, "connecting", io("unknown command 's3cret'"));
        let shown = format!("{error:#} {error:?}");
        assert!(shown.contains("unknown command '***'") && !shown.contains("s3cret"), "{shown}");
        let error = server.error_from(ErrorKind::Transient, "connecting", io("refused"));
        assert_eq!(format!("{error:#}"), "the redis bus at h:1: connecting: refused");
    }

    #[test]
    fn options_are_checked() {
        let second = Duration::from_secs(1);
        assert!(check(1, "a-b_C", second, second).is_ok());
        let refused = [
            (check(0, "a", second, second), "retained is 0"),
            (check(1, "", second, second), "prefix is \"\""),
            (check(1, "a.b", second, second), "prefix is \"a.b\""),
            (check(1, "a", Duration::ZERO, second), "timeout is 0ns"),
            (check(1, "a", second, Duration::from_secs(61)), "idle is 61s"),
        ];
        for (result, expected) in refused {
            let error = result.expect_err(expected);
            assert!(error.kind() == ErrorKind::InvalidOption && format!("{error:#}").starts_with(expected));
        }
    }
}
