//! A bus over a table of a Postgres database: the outbox that a store, or any other program, fills in the transaction
//! that changes the data.
//!
//! `NOTIFY` only wakes listeners up. What they hear is what they read from the table, behind a wake-up or after the
//! poll interval, in the order (transaction, number) and only from transactions that are older than every one that
//! still runs in the whole cluster. So a row that commits late is never passed over; but one long transaction that has
//! written anything, anywhere in the cluster, holds every channel up until it ends: [`PostgresBus::outbox_backlog`] tells.
//!
//! # Rows that other programs write
//! Into the table `outbox` of the schema, in the transaction that makes the change:
//!
//! | column | |
//! | --- | --- |
//! | `channel` | the channel |
//! | `operation` | `invalidate`: the key has another value; `remove`: it has none; `namespace`: all below the name changed |
//! | `namespace` | of the key |
//! | `key_bytes` | the key as its cache encodes it, or one of the following |
//! | `key_text` | a `String` key, of a cache with the default codec |
//! | `key_number` | a `u64` or `i64` key, likewise |
//! | `version` | usually null: whatever is cached is older |
//! | `identity` | usually null; a second row with the same one is left out by `ON CONFLICT DO NOTHING` |
//! | `event` | null; or instead of all from `operation` to `version` the bytes of an [event](crate::bus::event) |
//!
//! Rows of different transactions are delivered in the order in which those began to write, not in that of their
//! commits. So a `remove` is right only where those that change the key follow each other; an `invalidate` always is.
//! [`PostgresBus::trigger_sql`] writes triggers that fill the table.
//!
//! `xid`, `id` and `created` are to be left to their defaults, and nothing is to be deleted but by trimming. What a row
//! says is delivered as an event outside of any owner's chain. A row whose key is longer than a key can be is delivered
//! as its whole namespace, and one whose namespace is none as
//! [`Directive::Everything`](crate::bus::event::Directive::Everything): so a mistake costs reloads, and hides nothing.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::postgres_reading::{Listener, ReadSql, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::NamespaceName;
use crate::postgres::driver::Driver;
use crate::postgres::failure::{Failure, Sort};
use crate::postgres::outbox::{self, Outbox, Retention, TRIM_EVERY_ROWS};
use crate::postgres::pool::{Lease, Pool, column, within};
use crate::postgres::server::PostgresServer;
use crate::postgres::trigger::{KeyColumn, trigger_sql};

const POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(10);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// About how many bytes are inserted in one transaction; a single message may be larger.
const PUBLISH_BYTES_MAX: usize = 16 << 20;

/// How to open a [`PostgresBus`].
#[derive(Clone, Debug)]
pub struct PostgresBusOptions {
    server: PostgresServer,
    poll_interval: Duration,
    retention: Retention,
}

impl PostgresBusOptions {
    /// Of the bus over the outbox in this database and schema.
    #[must_use]
    pub fn new(server: PostgresServer) -> PostgresBusOptions {
        PostgresBusOptions { server, poll_interval: POLL_INTERVAL_DEFAULT, retention: Retention::default() }
    }

    /// After what time a listener looks by itself, should a wake-up have been lost; from 10 ms to an hour. Default: 1
    /// s.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> PostgresBusOptions {
        self.poll_interval = interval;
        self
    }

    /// How many rows of a channel are kept, and for how long: 65,536 and 24 hours by default. What goes beyond either
    /// is trimmed now and then by whoever publishes; a subscriber that has not read it is told.
    #[must_use]
    pub fn retained(mut self, rows: u64, age: Duration) -> PostgresBusOptions {
        self.retention = Retention { rows, age };
        self
    }

    /// Starts the bus. Nothing is connected yet: that happens when it is needed, so the server may be down now.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Io`] if the system refuses a thread.
    pub fn open(self) -> Result<PostgresBus> {
        self.server.check()?;
        self.retention.check()?;
        if !(POLL_INTERVAL_MIN..=POLL_INTERVAL_MAX).contains(&self.poll_interval) {
            let context =
                format!("poll_interval is {:?}, and must be from 10 ms to an hour", self.poll_interval);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let shared = Shared {
            label: self.server.label(),
            outbox: Outbox::new(&self.server.schema),
            read: ReadSql::new(&self.server.schema),
            calls: Pool::new(self.server.clone(), 1),
            server: self.server,
            poll_interval: self.poll_interval,
            retention: self.retention,
            ensured: AtomicBool::new(false),
            untrimmed: AtomicU64::new(0),
        };
        Ok(PostgresBus(Arc::new(Handle { shared: Arc::new(shared), driver: Arc::new(Driver::start()?) })))
    }
}

/// A bus over a table of a Postgres database; clones share its connections.
///
/// One connection publishes, and each subscription has one of its own. They are driven by a thread of the bus, so it
/// can be used within any runtime and without one.
#[derive(Clone)]
pub struct PostgresBus(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    driver: Arc<Driver>,
}

/// What the calls and the subscriptions share.
pub(crate) struct Shared {
    label: String,
    pub(crate) server: PostgresServer,
    pub(crate) outbox: Outbox,
    pub(crate) read: ReadSql,
    pub(crate) poll_interval: Duration,
    calls: Pool,
    retention: Retention,
    /// Whether the tables were there when the last call looked.
    ensured: AtomicBool,
    /// Rows that were published since a channel was trimmed.
    untrimmed: AtomicU64,
}

/// What holds a channel up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OutboxBacklog {
    /// How many rows of the channel are committed and cannot be delivered yet.
    pub rows: u64,
    /// How long ago the oldest of them was written.
    pub row_age: Duration,
    /// How long the oldest transaction of the cluster has been running that has written something, prepared ones
    /// included. Nothing if there is none, or if the role may not see those of others (`pg_read_all_stats` may).
    pub transaction_age: Option<Duration>,
}

impl PostgresBus {
    /// The bus over the outbox in this database and schema; see [`PostgresBusOptions::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(server: PostgresServer) -> Result<PostgresBus> {
        PostgresBusOptions::new(server).open()
    }

    /// Deletes all rows of a channel but the newest so many, as far as they can have been delivered, and notes it: a
    /// subscriber that has not read them is told. Returns when it is durable.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn trim(&self, channel: &Channel, rows: u64) -> Result<()> {
        let channel = channel.as_str().to_owned();
        // No row is that old.
        let retention = Retention { rows, age: Duration::from_secs(1 << 32) };
        self.call("trimming a channel", move |shared| async move {
            let mut lease = shared.lease().await?;
            let session = lease.session();
            let trim = shared.outbox.prepare_trim(session).await?;
            session.run("trimming a channel", "BEGIN").await?;
            trim.run(session, &channel, retention).await?;
            session.run("trimming a channel", "COMMIT").await?;
            lease.keep();
            Ok(())
        })
        .await
    }

    /// What holds a channel up at this moment. Costs a query.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn outbox_backlog(&self, channel: &Channel) -> Result<OutboxBacklog> {
        let channel = channel.as_str().to_owned();
        self.call("asking what holds a channel up", move |shared| async move {
            let mut lease = shared.lease().await?;
            let session = lease.session();
            let statement = session.statement(&shared.read.held_up).await?;
            let rows = session.rows("asking what holds a channel up", &statement, &[&channel]).await?;
            let mut held = OutboxBacklog::default();
            if let Some(row) = rows.first() {
                let seconds = |at| column::<Option<f64>>(row, at).map(|s| s.map(|s| s.max(0.0)));
                held.rows = u64::try_from(column::<i64>(row, 0)?).unwrap_or_default();
                held.row_age =
                    Duration::try_from_secs_f64(seconds(1)?.unwrap_or_default()).unwrap_or_default();
                held.transaction_age = seconds(2)?.and_then(|s| Duration::try_from_secs_f64(s).ok());
            }
            lease.keep();
            Ok(held)
        })
        .await
    }

    /// The script that has every change of a table by anybody, in plain SQL, invalidate the key in a namespace, on a
    /// channel and in the transaction that makes the change. `table` may have its schema in front (`sales.products`).
    /// To be run once, as a migration, by a role that may create triggers on the table; running it again changes
    /// nothing.
    ///
    /// It makes the outbox, too, if there is none. The triggers fire once for each statement: `INSERT`, `UPDATE` (of
    /// the old key and the new one), `DELETE`, and `TRUNCATE`, which invalidates the whole namespace. A deletion is
    /// told as an invalidation, because transactions are told in the order in which they began: another one that has
    /// put the key again may be told before it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for what cannot be the name of a table or a column.
    pub fn trigger_sql(
        &self,
        table: &str,
        key: KeyColumn<'_>,
        namespace: &NamespaceName,
        channel: &Channel,
    ) -> Result<String> {
        let schema = &self.0.shared.server.schema;
        trigger_sql(schema, table, key, namespace.as_str(), channel.as_str())
    }

    /// Runs a call on the bus's own thread, within the call timeout.
    async fn call<T, W>(&self, doing: &'static str, work: impl FnOnce(Arc<Shared>) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0.shared);
        let work = work(Arc::clone(&shared));
        let limit = shared.server.call_timeout;
        let done = self.0.driver.run(async move { within(doing, limit, work).await }).await?;
        done.map_err(|failure| {
            shared.ensured.store(false, Ordering::Relaxed);
            shared.error(failure)
        })
    }
}

impl Shared {
    /// The connection for calls, with the tables there.
    async fn lease(&self) -> Result<Lease<'_>, Failure> {
        let mut lease = self.calls.lease().await?;
        if !self.ensured.load(Ordering::Relaxed) {
            self.outbox.ensure(lease.session()).await?;
            self.ensured.store(true, Ordering::Relaxed);
        }
        Ok(lease)
    }

    /// Inserts messages in one transaction, and trims the channel in it if it is time.
    async fn publish(&self, channel: &str, rows: &[(Option<&str>, Bytes)]) -> Result<(), Failure> {
        const DOING: &str = "publishing";
        let mut lease = self.lease().await?;
        let session = lease.session();
        let insert = self.outbox.prepare_insert(session).await?;
        let written = self.untrimmed.fetch_add(rows.len() as u64, Ordering::Relaxed);
        if written < TRIM_EVERY_ROWS {
            outbox::insert(session, &insert, channel, rows).await?;
        } else {
            let trim = self.outbox.prepare_trim(session).await?;
            session.run(DOING, "BEGIN").await?;
            outbox::insert(session, &insert, channel, rows).await?;
            trim.run(session, channel, self.retention).await?;
            session.run(DOING, "COMMIT").await?;
            self.untrimmed.store(0, Ordering::Relaxed);
        }
        lease.keep();
        Ok(())
    }

    /// A failure as the bus tells it.
    pub(crate) fn error(&self, failure: Failure) -> Error {
        let kind = match failure.sort {
            Sort::Passing => ErrorKind::Transient,
            Sort::Content | Sort::Lasting => ErrorKind::BusFailed,
        };
        failure.within(&self.label).into_error(kind)
    }
}

impl Bus for PostgresBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            messages.iter().try_for_each(Message::check)?;
            let mut rest = messages;
            while !rest.is_empty() {
                let mut bytes = 0;
                let count = rest.iter().take_while(|message| {
                    bytes += message.body.len();
                    bytes <= PUBLISH_BYTES_MAX
                });
                let (some, later) = rest.split_at(count.count().max(1));
                rest = later;
                let (channel, some) = (channel.as_str().to_owned(), some.to_vec());
                self.call("publishing", move |shared| async move {
                    let rows: Vec<_> = some
                        .iter()
                        .map(|message| (Some(message.identity.as_str()), message.body.clone()))
                        .collect();
                    shared.publish(&channel, &rows).await
                })
                .await?;
            }
            Ok(())
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let mut reader = Reader::new(Arc::clone(&self.0.shared), channel);
            let begun = self.call("subscribing", move |_| async move {
                reader.begin(&from).await?;
                Ok(reader)
            });
            let driver = Arc::clone(&self.0.driver);
            Ok(Box::new(Listener::new(driver, begun.await?)) as Box<dyn Subscription>)
        })
    }
}

impl fmt::Debug for PostgresBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresBus").field(&self.0.shared.label).finish()
    }
}
