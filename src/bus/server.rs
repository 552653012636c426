//! What the buses have in common that talk to a server: how their errors name it, and options that both have.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};

/// How many messages a channel holds unless it is told otherwise.
pub(crate) const RETAINED_DEFAULT: u64 = 65_536;
/// Messages of a channel; more than this says that nothing is to be forgotten, which nobody can promise.
const RETAINED: RangeInclusive<u64> = 1..=1_000_000_000;
/// How long a server may take to answer unless it is told otherwise.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);
/// After how long without a message a listener looks whether all is well, unless it is told otherwise.
pub(crate) const IDLE_DEFAULT: Duration = Duration::from_secs(1);
const IDLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// What the names of a channel begin with on the server unless it is told otherwise.
pub(crate) const PREFIX_DEFAULT: &str = "forebay";
const PREFIX_BYTES_MAX: usize = 64;

/// A server as the errors of a bus may show it.
#[derive(Clone)]
pub(crate) struct Server {
    name: String,
    /// What no error may show.
    secrets: Vec<String>,
}

impl Server {
    /// Of a kind of bus, at an address that holds no credentials.
    pub(crate) fn new(
        bus: &str,
        address: impl fmt::Display,
        secrets: impl Iterator<Item = String>,
    ) -> Server {
        let secrets = secrets.filter(|secret| !secret.is_empty()).collect();
        Server { name: format!("the {bus} bus at {address}"), secrets }
    }

    /// The failure of doing something, because of something that a server or a driver said. Servers repeat what they
    /// did not understand, so a secret in that is blotted out.
    pub(crate) fn error(&self, kind: ErrorKind, doing: impl fmt::Display, why: impl fmt::Display) -> Error {
        let mut why = why.to_string();
        for secret in &self.secrets {
            why = why.replace(secret.as_str(), "***");
        }
        Error::new(kind, format!("{}: {doing}: {why}", self.name))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Waits for whoever is connecting, but no longer than connecting may take.
pub(crate) async fn lock_within<'a, T>(
    connection: &'a Mutex<T>,
    timeout: Duration,
    server: &Server,
) -> Result<MutexGuard<'a, T>> {
    tokio::time::timeout(timeout, connection.lock()).await.map_err(|_| {
        let why = format!("another call has been at it for {} ms", timeout.as_millis());
        server.error(ErrorKind::Transient, "connecting", why)
    })
}

fn refused(option: &str, value: impl fmt::Debug, allowed: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("{option} is {value:?}; allowed are {allowed}"))
}

/// Checks the options that both have.
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

/// Draws what tells one making of something on a server from the next.
#[cfg(feature = "redis")]
pub(crate) fn draw_incarnation() -> Result<String> {
    let mut bytes = [0; 8];
    crate::seam::random::fill(&mut bytes).map_err(|e| {
        Error::with_source(ErrorKind::Io, "drawing random bytes for a channel's incarnation", e.to_string())
    })?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Sees to it that TLS has its cryptography. A process has one for all of its TLS: the one that it has already is
/// kept, and where it has none, it is ring.
#[cfg(any(feature = "redis-tls", feature = "nats"))]
pub(crate) fn provide_cryptography() {
    // That another thread was faster is no failure: then there is one.
    drop(rustls::crypto::ring::default_provider().install_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_holds_no_secret() {
        let server = Server::new("redis", "h:1", ["s3cret".to_string(), String::new()].into_iter());
        let error = server.error(ErrorKind::BusFailed, "connecting", "unknown command 'AUTH' 's3cret'");
        assert_eq!(format!("{error:#}"), "the redis bus at h:1: connecting: unknown command 'AUTH' '***'");
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
