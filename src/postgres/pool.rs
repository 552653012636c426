//! A few connections to one server, each made when it is needed, and given up after any failure.
//!
//! A connection that has failed, or that somebody stopped waiting for, is never used again: so none is ever found
//! in the middle of a transaction. How many there are at once is bounded, and so is each wait.

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

use crate::postgres::failure::{Failure, Sort};
use crate::postgres::server::PostgresServer;

/// The parameters of a statement.
pub(crate) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The oldest server that has what is used, as it numbers itself.
const SERVER_VERSION_MIN: i32 = 130_000;

/// A connection, with what was prepared on it.
pub(crate) struct Session {
    client: Client,
    /// One for each kind of call, so there are few.
    statements: HashMap<String, Statement>,
    /// How often the server has notified it. Gone with the connection.
    news: watch::Receiver<u64>,
    connection: AbortHandle,
}

/// The connections.
pub(crate) struct Pool {
    server: PostgresServer,
    idle: Mutex<Vec<Session>>,
    slots: Arc<Semaphore>,
}

/// A connection that one call has for itself. It is given up, unless it is [kept](Lease::keep).
pub(crate) struct Lease<'a> {
    pool: &'a Pool,
    session: Option<Session>,
    _slot: OwnedSemaphorePermit,
}

impl Pool {
    /// Of up to `count` connections, none of which is made yet.
    pub(crate) fn new(server: PostgresServer, count: usize) -> Pool {
        Pool { server, idle: Mutex::default(), slots: Arc::new(Semaphore::new(count)) }
    }

    /// A connection: one that lies idle, or a new one. Waits while all are in use.
    pub(crate) async fn lease(&self) -> Result<Lease<'_>, Failure> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|_| Failure::new(Sort::Passing, "the connections are closed"))?;
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// The connection.
    pub(crate) fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("only keeping takes it")
    }

    /// Says that the call is done and the connection as good as before.
    pub(crate) fn keep(mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.session.take());
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.connection.abort();
        }
    }
}

impl Session {
    /// Connects, within the server's connect timeout. Needs to run on the client's own runtime.
    pub(crate) async fn open(server: &PostgresServer) -> Result<Session, Failure> {
        let mut config = server.config.clone();
        config.connect_timeout(server.connect_timeout);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(server.call_timeout);
        }
        let connecting = async {
            #[cfg(feature = "postgres-tls")]
            if let Some(tls) = &server.tls {
                let tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls.clone());
                return Ok(driven(config.connect(tls).await?));
            }
            Ok(driven(config.connect(NoTls).await?))
        };
        let connected = tokio::time::timeout(server.connect_timeout, connecting).await;
        let Ok(connected) = connected else {
            let sentence = format!("connecting took longer than {:?}", server.connect_timeout);
            return Err(Failure::new(Sort::Passing, sentence));
        };
        let session = connected.map_err(|error: tokio_postgres::Error| Failure::of("connecting", &error))?;
        tokio::time::timeout(server.connect_timeout, session.set_up(server)).await.map_err(|_| {
            Failure::new(Sort::Passing, "the server accepted a connection and then said nothing")
        })??;
        Ok(session)
    }

    /// What every connection begins with.
    async fn set_up(&self, server: &PostgresServer) -> Result<(), Failure> {
        let idle_ms = server.call_timeout.as_millis() / 2;
        // A client whose machine has gone is noticed within the same time, not after the two hours of the system.
        let probe_s = (server.call_timeout.as_secs() / 4).max(1);
        // A transaction that has returned has to be on the disk; a server that waits for more keeps doing so.
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
        let row = row.map_err(|error| Failure::of("setting a connection up", &error))?;
        let version: i32 = row.try_get(5).map_err(|error| Failure::of("reading its version", &error))?;
        if version < SERVER_VERSION_MIN {
            let sentence =
                format!("its version is {version}; {SERVER_VERSION_MIN} is the oldest that will do");
            return Err(Failure::new(Sort::Lasting, sentence));
        }
        Ok(())
    }

    /// The prepared statement; prepares it when it is first asked for.
    pub(crate) async fn statement(&mut self, sql: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let prepared = self.client.prepare(sql).await;
        let statement = prepared.map_err(|error| Failure::of("preparing a statement", &error))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// All rows that the statement returns. Sent with the first poll.
    pub(crate) async fn rows(
        &self,
        doing: &str,
        statement: &Statement,
        with: Parameters<'_>,
    ) -> Result<Vec<Row>, Failure> {
        self.client.query(statement, with).await.map_err(|error| Failure::of(doing, &error))
    }

    /// All rows of a statement that is not worth preparing.
    pub(crate) async fn query(&self, doing: &str, sql: &str) -> Result<Vec<Row>, Failure> {
        self.client.query(sql, &[]).await.map_err(|error| Failure::of(doing, &error))
    }

    /// Runs statements without parameters. Sent with the first poll.
    pub(crate) async fn run(&self, doing: &str, sql: &str) -> Result<(), Failure> {
        self.client.batch_execute(sql).await.map_err(|error| Failure::of(doing, &error))
    }

    /// The counter of notifications, which ends with the connection.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.clone()
    }

    /// Cuts the connection, without a word to the server.
    pub(crate) fn cut(self) {
        self.connection.abort();
    }
}

/// The client of a connection that is driven from here on.
fn driven<S, T>((client, mut connection): (Client, Connection<S, T>)) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, news) = watch::channel(0);
    let task = tokio::spawn(async move {
        // An error ends the connection, and every call that is under way or comes later is told.
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                sender.send_modify(|count: &mut u64| *count = count.wrapping_add(1));
            }
        }
    });
    Session { client, statements: HashMap::new(), news, connection: task.abort_handle() }
}

/// Gives a call its time. What takes longer has an unknown outcome.
pub(crate) async fn within<T>(
    doing: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, pin!(work)).await {
        Ok(done) => done,
        Err(_) => Err(Failure::new(Sort::Passing, format!("{doing}: no answer within {limit:?}"))),
    }
}

/// A column of a row.
pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    at: usize,
) -> Result<T, Failure> {
    row.try_get(at).map_err(|error| Failure::of("reading an answer", &error))
}

/// A number of Postgres's own type for transactions, which is told as text.
pub(crate) fn xid(row: &Row, at: usize) -> Result<u64, Failure> {
    let text: &str = column(row, at)?;
    text.parse().map_err(|_| Failure::new(Sort::Lasting, "reading an answer: a transaction's number is none"))
}
