//! The address of a Postgres server, with credentials, schema and timeouts.

use std::fmt;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use crate::error::{Error, ErrorKind, Result};

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// The range of both timeouts.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
const SCHEMA_DEFAULT: &str = "forebay";
/// The longest name of a schema in bytes. Postgres has room for 63, and the names of our objects in it take some.
const SCHEMA_BYTES_MAX: usize = 48;

/// A Postgres database, the way to connect to it, and the schema with the tables.
///
/// One schema belongs to one store and to the bus whose outbox this store fills, so one database can serve several
/// layers. Requires Postgres 13 or later. Neither `Debug` nor an error shows the user name or the password.
#[derive(Clone)]
pub struct PostgresServer {
    pub(crate) config: Config,
    pub(crate) schema: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) call_timeout: Duration,
    #[cfg(feature = "postgres-tls")]
    pub(crate) tls: Option<rustls::ClientConfig>,
}

impl PostgresServer {
    /// Parses a connection string: `postgres://user:password@host:5432/database?option=value`, or
    /// `host=... user=... password=... dbname=...`. Several hosts are tried in turn until one accepts writes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]. The error does not repeat the string.
    pub fn parse(connection: &str) -> Result<PostgresServer> {
        let mut config: Config = connection.parse().map_err(|_| {
            // The error of the parser may quote a part of the string, which may be the password. So it is not a source.
            let context = "the connection string of a Postgres server cannot be read (it is not shown here)";
            Error::new(ErrorKind::InvalidOption, context)
        })?;
        // Refused here, because the driver would say so only at the first connection.
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            let context = "the connection string of a Postgres server names no host";
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        // A standby refuses writes.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        // So that an operator recognises our sessions in `pg_stat_activity`.
        if config.get_application_name().is_none() {
            config.application_name("forebay");
        }
        Ok(PostgresServer {
            config,
            schema: SCHEMA_DEFAULT.to_owned(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            call_timeout: CALL_TIMEOUT_DEFAULT,
            #[cfg(feature = "postgres-tls")]
            tls: None,
        })
    }

    /// Sets the schema with the tables: 1 to 48 of `a-z 0-9 _`, not starting with a digit. Default: `forebay`. It is
    /// created if it does not exist.
    #[must_use]
    pub fn schema(mut self, name: impl Into<String>) -> PostgresServer {
        self.schema = name.into();
        self
    }

    /// Sets the timeout of connecting, including the authentication. Default: 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> PostgresServer {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the timeout of one call, including a connection that it opens. After a timeout the connection is closed,
    /// and it is unknown whether the call was carried out. Default: 30 s.
    ///
    /// The server ends a transaction that is idle for half of this time. This limits how long an owner that was
    /// suspended in the middle of an apply can delay the next owner.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> PostgresServer {
        self.call_timeout = timeout;
        self
    }

    /// Requires TLS with this configuration of rustls 0.23. A server that does not offer TLS, or whose certificate is
    /// not trusted, is a permanent failure.
    #[cfg(feature = "postgres-tls")]
    #[must_use]
    pub fn tls(mut self, tls: rustls::ClientConfig) -> PostgresServer {
        self.config.ssl_mode(SslMode::Require);
        self.tls = Some(tls);
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |context: String| Err(Error::new(ErrorKind::InvalidOption, context));
        for (name, timeout) in
            [("connect_timeout", self.connect_timeout), ("call_timeout", self.call_timeout)]
        {
            // A shorter one would fail every call on a busy machine, and a longer one would hide a dead server.
            if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
                return refuse(format!("{name} is {timeout:?}, and must be from 10 ms to an hour"));
            }
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = &self.schema;
        let fits = (1..=SCHEMA_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed);
        // The name is put into statements in quotes and into string literals, so it must need no escape there.
        if !fits || name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("pg_") {
            let shown: String = name.chars().take(SCHEMA_BYTES_MAX).flat_map(char::escape_default).collect();
            return refuse(format!(
                "schema is \"{shown}\", and must be 1 to 48 of a-z 0-9 _, with no digit and no pg_ first"
            ));
        }
        #[cfg(feature = "postgres-tls")]
        let has_tls = self.tls.is_some();
        #[cfg(not(feature = "postgres-tls"))]
        let has_tls = false;
        // Connecting without TLS against this setting would send the password in the clear.
        if self.config.get_ssl_mode() == SslMode::Require && !has_tls {
            return refuse("sslmode is require, and no TLS was configured".to_owned());
        }
        Ok(())
    }

    /// Returns the name of the server in errors: host, port, database and schema.
    pub(crate) fn label(&self) -> String {
        // Neither user nor password: this text is in every error and log line.
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => self.config.get_hostaddrs().first().map_or_else(String::new, ToString::to_string),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = self.config.get_dbname().unwrap_or("its default database");
        format!("Postgres at {host}:{port}, {database}, schema {}", self.schema)
    }
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresServer").field(&self.label()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_shown() {
        let server = PostgresServer::parse("postgres://bob:hunter2@db.example:5433/shop").unwrap();
        let shown = format!("{server:?}");
        assert!(shown.contains("db.example:5433, shop, schema forebay"), "{shown}");
        assert!(!shown.contains("bob") && !shown.contains("hunter2"), "{shown}");
        for bad in ["postgres://bob:hunter2@db:port/x", "hunter2", "password=hunter2", "host='hunter2"] {
            let error = PostgresServer::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(!format!("{error:#}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn bad_options_are_told() {
        let server = || PostgresServer::parse("host=h dbname=d").unwrap();
        assert!(server().check().is_ok());
        let bad = [
            server().schema(""),
            server().schema("a\"b"),
            server().schema("Public"),
            server().schema("1st"),
            server().schema("pg_own"),
            server().schema("s".repeat(49)),
            server().connect_timeout(Duration::ZERO),
            server().call_timeout(Duration::from_secs(7200)),
            PostgresServer::parse("host=h sslmode=require").unwrap(),
        ];
        for server in bad {
            assert_eq!(server.check().expect_err("bad").kind(), ErrorKind::InvalidOption, "{server:?}");
        }
    }
}
