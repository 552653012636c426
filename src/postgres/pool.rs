//! A bounded pool of connections to one server. Connections are opened when they are needed and closed after any
//! failure.
//!
//! A connection whose call failed, or was dropped before its end, is never used again, so no call ever finds one in the
//! middle of a transaction.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Row, Statement};

use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::server::PostgresServer;

/// The parameters of a statement.
pub(crate) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The oldest supported version of the server, as the server numbers it.
const SERVER_VERSION_MIN: i32 = 130_000;

/// A connection and its prepared statements.
pub(crate) struct Session {
    client: Client,
    /// By their SQL. There are few: one for each kind of call.
    statements: HashMap<String, Statement>,
    /// The number of notifications so far. Its sender is dropped with the connection.
    notifications: watch::Receiver<u64>,
    connection: AbortHandle,
}

/// The pool.
pub(crate) struct ConnectionPool {
    server: PostgresServer,
    idle: Mutex<Vec<Session>>,
    slots: Arc<Semaphore>,
}

/// A connection for the use of one call. It is closed when the lease is dropped, unless the call
/// [returns it to the pool](Lease::keep).
pub(crate) struct Lease<'a> {
    pool: &'a ConnectionPool,
    session: Option<Session>,
    _slot: OwnedSemaphorePermit,
}

impl ConnectionPool {
    /// Makes a pool of up to `count` connections. None is opened yet.
    pub(crate) fn new(server: PostgresServer, count: usize) -> ConnectionPool {
        ConnectionPool { server, idle: Mutex::default(), slots: Arc::new(Semaphore::new(count)) }
    }

    /// Takes an idle connection or opens a new one. Waits while all are in use.
    pub(crate) async fn lease(&self) -> Result<Lease<'_>, CallFailure> {
        // The slot before the connection, so that callers that wait open none.
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|_| CallFailure::new(ErrorClass::Transient, "the connections are closed"))?;
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            // The server may have closed idle connections since.
            idle.retain(|session| !session.client.is_closed());
            idle.pop()
        };
        let session = match idle {
            Some(session) => session,
            None => Session::open(&self.server).await?,
        };
        Ok(Lease { pool: self, session: Some(session), _slot: slot })
    }
}

impl Lease<'_> {
    /// Returns the connection.
    pub(crate) fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("only keeping takes it")
    }

    /// Returns the connection to the pool. Called only after the call has succeeded.
    pub(crate) fn keep(mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.session.take());
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // The call failed or was dropped midway: a transaction may be open, and the next call's statements would
        // become part of it.
        if let Some(session) = &self.session {
            session.connection.abort();
        }
    }
}

impl Session {
    /// Connects within the connect timeout. Must run on the runtime of the [driver](crate::postgres::driver).
    pub(crate) async fn open(server: &PostgresServer) -> Result<Session, CallFailure> {
        let mut config = server.config.clone();
        config.connect_timeout(server.connect_timeout);
        // Without it, data sent to a machine that is gone is retried by the kernel for a quarter of an hour.
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(server.call_timeout);
        }
        let connecting = async {
            #[cfg(feature = "postgres-tls")]
            if let Some(tls) = &server.tls {
                let tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls.clone());
                return Ok(spawn_connection(config.connect(tls).await?));
            }
            Ok(spawn_connection(config.connect(NoTls).await?))
        };
        // The driver's own timeout covers the TCP connection to each host, and neither TLS nor the authentication.
        let connected = tokio::time::timeout(server.connect_timeout, connecting).await;
        let Ok(connected) = connected else {
            let sentence = format!("connecting took longer than {:?}", server.connect_timeout);
            return Err(CallFailure::new(ErrorClass::Transient, sentence));
        };
        let session =
            connected.map_err(|error: tokio_postgres::Error| CallFailure::of("connecting", error))?;
        tokio::time::timeout(server.connect_timeout, session.set_up(server)).await.map_err(|_| {
            CallFailure::new(ErrorClass::Transient, "the server accepted a connection and then said nothing")
        })??;
        Ok(session)
    }

    /// Sets the parameters of a new connection and checks the version of the server.
    async fn set_up(&self, server: &PostgresServer) -> Result<(), CallFailure> {
        let idle_ms = server.call_timeout.as_millis() / 2;
        // Without these probes the server notices after two hours (the default of the system) that the machine of a
        // client is gone, and its transaction holds the locks until then.
        let probe_s = (server.call_timeout.as_secs() / 4).max(1);
        // A commit that has returned must be on the disk. The stricter `remote_apply` stays if it is configured.
        let settings = format!(
            "SELECT set_config('idle_in_transaction_session_timeout', '{idle_ms}', false), \
             set_config('tcp_keepalives_idle', '{probe_s}', false), \
             set_config('tcp_keepalives_interval', '{probe_s}', false), \
             set_config('tcp_keepalives_count', '2', false), \
             set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
             WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false), \
             current_setting('server_version_num')::int4"
        );
        let row = self.client.query_one(&settings, &[]).await;
        let row = row.map_err(|error| CallFailure::of("setting a connection up", error))?;
        let version: i32 = row.try_get(5).map_err(|error| CallFailure::of("reading its version", error))?;
        // Version 13 brought `xid8` and `pg_current_snapshot`, without which the outbox has no safe order.
        if version < SERVER_VERSION_MIN {
            let sentence =
                format!("its version is {version}; {SERVER_VERSION_MIN} is the oldest that will do");
            return Err(CallFailure::new(ErrorClass::Permanent, sentence));
        }
        Ok(())
    }

    /// Returns the prepared statement, and prepares it at its first use.
    pub(crate) async fn statement(&mut self, sql: &str) -> Result<Statement, CallFailure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let prepared = self.client.prepare(sql).await;
        let statement = prepared.map_err(|error| CallFailure::of("preparing a statement", error))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Runs a prepared statement and returns its rows. Sent with the first poll.
    pub(crate) async fn rows(
        &self,
        doing: &str,
        statement: &Statement,
        with: Parameters<'_>,
    ) -> Result<Vec<Row>, CallFailure> {
        self.client.query(statement, with).await.map_err(|error| CallFailure::of(doing, error))
    }

    /// Runs a statement without preparing it and returns its rows.
    pub(crate) async fn query(&self, doing: &str, sql: &str) -> Result<Vec<Row>, CallFailure> {
        self.client.query(sql, &[]).await.map_err(|error| CallFailure::of(doing, error))
    }

    /// Runs statements without parameters. Sent with the first poll.
    pub(crate) async fn run(&self, doing: &str, sql: &str) -> Result<(), CallFailure> {
        self.client.batch_execute(sql).await.map_err(|error| CallFailure::of(doing, error))
    }

    /// Returns the counter of notifications, which ends with the connection.
    pub(crate) fn notifications(&self) -> watch::Receiver<u64> {
        self.notifications.clone()
    }

    /// Closes the connection without telling the server.
    pub(crate) fn abort(self) {
        self.connection.abort();
    }
}

/// Spawns the task that drives a connection.
fn spawn_connection<S, T>((client, mut connection): (Client, Connection<S, T>)) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A counter and no queue: a listener needs to know only that it has to read, and a burst must not take memory.
    let (sender, notifications) = watch::channel(0);
    let task = tokio::spawn(async move {
        // An error ends the task. Running and later calls then fail because their connection is closed.
        // Polling for messages also drives the requests.
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                sender.send_modify(|count: &mut u64| *count = count.wrapping_add(1));
            }
        }
    });
    Session { client, statements: HashMap::new(), notifications, connection: task.abort_handle() }
}

/// Limits the time of a call. After a timeout the outcome is unknown.
pub(crate) async fn within<T>(
    doing: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, CallFailure>>,
) -> Result<T, CallFailure> {
    match tokio::time::timeout(limit, pin!(work)).await {
        Ok(done) => done,
        Err(_) => {
            // The connection may be in the middle of an answer, so its holder has to close it.
            Err(CallFailure::new(ErrorClass::Transient, format!("{doing}: no answer within {limit:?}")))
        }
    }
}

/// Reads a column of a row.
pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    at: usize,
) -> Result<T, CallFailure> {
    row.try_get(at).map_err(|error| CallFailure::of("reading an answer", error))
}

/// Reads a transaction number (`xid8`), which is selected as text.
pub(crate) fn xid(row: &Row, at: usize) -> Result<u64, CallFailure> {
    // Selected as text, because the driver has no type for it.
    let text: &str = column(row, at)?;
    text.parse().map_err(|_| {
        CallFailure::new(ErrorClass::Permanent, "reading an answer: a transaction number is malformed")
    })
}
