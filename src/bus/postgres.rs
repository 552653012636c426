//! A bus over a table of a Postgres database (feature `postgres`): the outbox, which a store or another program fills
//! in the transaction that changes the data.
//!
//! `NOTIFY` only wakes listeners. They read the table after a notification or after the poll interval, in the order
//! (transaction, number), and only rows of transactions older than every running one of the whole cluster. So no row is
//! skipped because it committed late. But one long transaction that has written anything, anywhere in the cluster,
//! delays every channel until it ends; [`PostgresBus::outbox_backlog`] shows this.
//!
//! # Rows of other programs
//! Insert into the table `outbox` of the schema, in the transaction that makes the change:
//!
//! | column | |
//! | --- | --- |
//! | `channel` | the channel |
//! | `operation` | `invalidate`: the value of the key has changed; `remove`: it was removed; `namespace`: anything below the name has changed |
//! | `namespace` | the namespace of the key |
//! | `key_bytes` | the key as its cache encodes it, or one of the following |
//! | `key_text` | a `String` key, of a cache with the default codec |
//! | `key_number` | a `u64` or `i64` key, likewise |
//! | `version` | usually null: everything cached is older |
//! | `identity` | usually null; `ON CONFLICT DO NOTHING` skips a second row with the same one |
//! | `event` | null; or, instead of `operation` to `version`, the bytes of an [event](crate::bus::event) |
//!
//! Rows of different transactions are delivered in the order in which the transactions began to write, not in which
//! they committed. So a `remove` is right only if transactions that change the same key never overlap; an `invalidate`
//! is always right. [`PostgresBus::trigger_sql`] writes triggers that fill the table.
//!
//! Leave `xid`, `id` and `created` to their defaults, and delete rows only by trimming. A row is delivered as an event
//! outside of any owner's chain. A row whose key is too long is delivered as its whole namespace, and one whose
//! namespace is invalid as [`Directive::Everything`](crate::bus::event::Directive::Everything), so a mistake costs
//! reloads and hides nothing.

mod client;
mod reading;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::postgres::client::PostgresClient;
use crate::bus::postgres::reading::{OutboxReader, PostgresListener};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::NamespaceName;
use crate::postgres::driver::Driver;
use crate::postgres::failure::CallFailure;
use crate::postgres::outbox::Retention;
use crate::postgres::pool::{column, within};
use crate::postgres::server::PostgresServer;
use crate::postgres::trigger::{KeyColumn, trigger_sql};

const POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(10);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The size from which on messages are split into several transactions. A single message may be larger.
const PUBLISH_BYTES_MAX: usize = 16 << 20;

/// The options of a [`PostgresBus`].
#[derive(Clone, Debug)]
pub struct PostgresBusOptions {
    server: PostgresServer,
    poll_interval: Duration,
    retention: Retention,
}

impl PostgresBusOptions {
    /// Returns the default options for the bus over the outbox in this database and schema.
    #[must_use]
    pub fn new(server: PostgresServer) -> PostgresBusOptions {
        PostgresBusOptions { server, poll_interval: POLL_INTERVAL_DEFAULT, retention: Retention::default() }
    }

    /// Sets the time after which a listener reads without a notification, in case one was lost; 10 ms to an hour.
    /// Default: 1 s.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> PostgresBusOptions {
        self.poll_interval = interval;
        self
    }

    /// Sets how many rows of a channel are kept and for how long; 65,536 and 24 hours by default. Some publishing calls
    /// trim the rows beyond either limit. A subscriber that has not read them gets
    /// [`Delivery::PositionLost`](crate::bus::contract::Delivery::PositionLost).
    #[must_use]
    pub fn retained(mut self, rows: u64, age: Duration) -> PostgresBusOptions {
        self.retention = Retention { rows, age };
        self
    }

    /// Starts the bus. It connects when it is first used, so the server may be down now.
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
        let client = PostgresClient::new(self.server, self.poll_interval, self.retention);
        Ok(PostgresBus(Arc::new(BusHandle { client: Arc::new(client), driver: Arc::new(Driver::start()?) })))
    }
}

/// A bus over a table of a Postgres database. Clones share its connections.
///
/// One connection publishes, and each subscription has one of its own. A thread of the bus drives them, so it can be
/// used in any runtime and without one.
#[derive(Clone)]
pub struct PostgresBus(Arc<BusHandle>);

struct BusHandle {
    client: Arc<PostgresClient>,
    driver: Arc<Driver>,
}

/// The rows of a channel that cannot be delivered yet, and how long they have been waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OutboxBacklog {
    /// The number of rows of the channel that are committed and cannot be delivered yet.
    pub rows: u64,
    /// The age of the oldest of them.
    pub row_age: Duration,
    /// The age of the oldest running transaction of the cluster that has written anything, including prepared ones.
    /// `None` if there is none, or if the role may not see the transactions of others (`pg_read_all_stats` may).
    pub transaction_age: Option<Duration>,
}

impl PostgresBus {
    /// Starts a bus with the default options; see [`PostgresBusOptions::open`].
    ///
    /// # Errors
    /// Those of [`PostgresBusOptions::open`].
    pub fn open(server: PostgresServer) -> Result<PostgresBus> {
        PostgresBusOptions::new(server).open()
    }

    /// Deletes all rows of a channel except the newest `rows`, if they can have been delivered. A subscriber that has
    /// not read them gets [`Delivery::PositionLost`](crate::bus::contract::Delivery::PositionLost). Durable on return.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn trim(&self, channel: &Channel, rows: u64) -> Result<()> {
        let channel = channel.as_str().to_owned();
        // No row is that old, so only their number counts.
        let retention = Retention { rows, age: Duration::from_secs(1 << 32) };
        self.call("trimming a channel", move |client| async move {
            let mut lease = client.lease().await?;
            let session = lease.session();
            let trim = client.outbox.prepare_trim(session).await?;
            // In one transaction, because the lock of the channel has to last until its rows are gone.
            session.run("trimming a channel", "BEGIN").await?;
            trim.run(session, &channel, retention).await?;
            session.run("trimming a channel", "COMMIT").await?;
            lease.keep();
            Ok(())
        })
        .await
    }

    /// Returns the rows of a channel that wait for a running transaction. Costs a query.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn outbox_backlog(&self, channel: &Channel) -> Result<OutboxBacklog> {
        let channel = channel.as_str().to_owned();
        self.call("reading the backlog of a channel", move |client| async move {
            let mut lease = client.lease().await?;
            let session = lease.session();
            let statement = session.statement(&client.read.backlog).await?;
            let rows = session.rows("reading the backlog of a channel", &statement, &[&channel]).await?;
            let mut held = OutboxBacklog::default();
            if let Some(row) = rows.first() {
                // A clock that was set back gives negative ages, which `Duration` refuses.
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

    /// Returns an SQL script that creates triggers on a table. Every change of the table by any program then
    /// invalidates the key in a namespace, on a channel, in the transaction of the change. `table` may have its schema
    /// in front (`sales.products`). Run the script once, as a migration, as a role that may create triggers on the
    /// table; running it again changes nothing.
    ///
    /// The script also creates the outbox if it does not exist. The triggers fire once for each statement: `INSERT`,
    /// `UPDATE` (for the old key and the new one), `DELETE`, and `TRUNCATE`, which invalidates the whole namespace. A
    /// deletion is an `invalidate`, not a `remove`: events come in the order in which transactions began, so the event
    /// of another transaction that has put the key again may come first.
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
        let schema = &self.0.client.server.schema;
        trigger_sql(schema, table, key, namespace.as_str(), channel.as_str())
    }

    /// Runs a call on the thread of the bus, within the call timeout.
    async fn call<T, W>(&self, doing: &'static str, work: impl FnOnce(Arc<PostgresClient>) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, CallFailure>> + Send + 'static,
    {
        let client = Arc::clone(&self.0.client);
        let work = work(Arc::clone(&client));
        let limit = client.server.call_timeout;
        let done = self.0.driver.run(async move { within(doing, limit, work).await }).await?;
        done.map_err(|failure| {
            // The failure may mean that the tables are gone, so the next call looks for them.
            client.ensured.store(false, Ordering::Relaxed);
            client.error(failure)
        })
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
                // At least one, or a single large message would never be sent.
                let (some, later) = rest.split_at(count.count().max(1));
                rest = later;
                // The call outlives its future, so it needs messages of its own.
                let (channel, some) = (channel.as_str().to_owned(), some.to_vec());
                self.call("publishing", move |client| async move {
                    let rows: Vec<_> = some
                        .iter()
                        .map(|message| (Some(message.identity.as_str()), message.body.clone()))
                        .collect();
                    client.publish(&channel, &rows).await
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
            let mut reader = OutboxReader::new(Arc::clone(&self.0.client), channel);
            let begun = self.call("subscribing", move |_| async move {
                reader.begin(&from).await?;
                Ok(reader)
            });
            let driver = Arc::clone(&self.0.driver);
            Ok(Box::new(PostgresListener::new(driver, begun.await?)) as Box<dyn Subscription>)
        })
    }
}

impl fmt::Debug for PostgresBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresBus").field(&self.0.client.label).finish()
    }
}
