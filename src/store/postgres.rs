//! A store in a Postgres database (feature `postgres`).
//!
//! | table of the schema | columns |
//! | --- | --- |
//! | `data` | `key bytea` (primary key), `value bytea`, `version int8`, `long_key bytea` |
//! | `pulse` | one row: `renewals int8`, `ended boolean` |
//! | `tenure` | one row: `layout int4`, `epoch int8`, `applied int8`, `journaled int8`, `journal bytea` |
//!
//! A key of up to 1,024 bytes is stored unchanged. An index takes no longer ones, so a longer key is stored as its
//! first 1,024 bytes and the SHA-256 of all of it, and as a whole in `long_key`. Numbers are unsigned: from 2^63 on the
//! columns show them as negative.
//!
//! An apply locks the row of `tenure`, checks epoch and watermark, and changes data, watermark and outbox in the same
//! transaction. A claim locks the same row. So an apply that is running when a newer owner claims the store is either
//! part of the progress that the claim returns, or refused. An apply takes two round trips: the changes depend on the
//! locked watermark, and all of them are sent at once, together with the commit.
//!
//! An apply whose commit is not answered is [`StoreError::Transient`]: the layer sends it again, and the watermark
//! shows whether it was applied.

mod sql;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::Statement;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, Key, Seq, Tenure};
use crate::postgres::driver::Driver;
use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::outbox::{self, Outbox, Retention, TRIM_EVERY_ROWS, Trim};
use crate::postgres::pool::{ConnectionPool, Session, within};
use crate::postgres::server::PostgresServer;
use crate::store::contract::{
    Batch, BoxFuture, Claim, Op, OwnerStatus, Placement, Standing, Store, StoreError, Versioned,
};
use crate::store::postgres::sql::{HeartbeatSql, Sql, StatementChunk, Writes};

const LOAD_CONNECTIONS_DEFAULT: usize = 4;
const LOAD_CONNECTIONS_MAX: usize = 64;

/// A batch that is being applied, for the function that makes its events for the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Applying<'a> {
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// The watermark before the batch.
    pub after: Seq,
    /// The watermark after the batch.
    pub until: Seq,
    /// The changes, in the order of their numbers. If a layer has combined several changes of a key, only the last one
    /// is here.
    pub ops: &'a [&'a Op],
}

/// A function that makes the events of a batch, in the order in which they are published.
pub type Events = Arc<dyn Fn(&Applying<'_>) -> Result<Vec<Bytes>> + Send + Sync>;

/// The options of a [`PostgresStore`].
#[derive(Clone)]
pub struct PostgresStoreOptions {
    server: PostgresServer,
    load_connections: usize,
    outbox: Option<(String, Events)>,
    retention: Retention,
}

impl fmt::Debug for PostgresStoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channel = self.outbox.as_ref().map(|(channel, _)| channel);
        let mut shown = f.debug_struct("PostgresStoreOptions");
        // The label of the server and not its configuration, which holds the password.
        shown.field("server", &self.server).field("load_connections", &self.load_connections);
        shown.field("outbox", &channel).field("retention", &self.retention).finish()
    }
}

impl PostgresStoreOptions {
    /// Returns the default options for the store in this database and schema.
    #[must_use]
    pub fn new(server: PostgresServer) -> PostgresStoreOptions {
        PostgresStoreOptions {
            server,
            load_connections: LOAD_CONNECTIONS_DEFAULT,
            outbox: None,
            retention: Retention::default(),
        }
    }

    /// Sets the number of connections for loads; 1 to 64, 4 by default. Each loads one value, or some hundred, at a
    /// time. One more connection applies and claims.
    #[must_use]
    pub fn load_connections(mut self, count: usize) -> PostgresStoreOptions {
        self.load_connections = count;
        self
    }

    /// Makes each apply write these events to a channel of the schema's outbox, in its own transaction.
    /// [`PostgresStoreOptions::outbox`] writes the usual ones.
    #[must_use]
    pub fn outbox_events(mut self, channel: &str, events: Events) -> PostgresStoreOptions {
        self.outbox = Some((channel.to_owned(), events));
        self
    }

    /// Sets how many rows of the outbox's channel are kept and for how long; 65,536 and 24 hours by default. Some
    /// applies trim the rows beyond either limit. A subscriber that has not read them gets
    /// [`Delivery::PositionLost`](crate::bus::contract::Delivery::PositionLost).
    #[must_use]
    pub fn outbox_retained(mut self, rows: u64, age: Duration) -> PostgresStoreOptions {
        self.retention = Retention { rows, age };
        self
    }

    /// Opens the store; see [`PostgresStore::open`].
    ///
    /// # Errors
    /// Those of [`PostgresStore::open`], and [`ErrorKind::InvalidOption`].
    pub async fn open(self) -> Result<PostgresStore> {
        let store = self.start()?;
        let shared = Arc::clone(&store.0.shared);
        store.0.driver.run(async move { shared.prepare().await }).await??;
        Ok(store)
    }

    /// Opens the store from a thread without a runtime, and blocks it meanwhile.
    ///
    /// # Errors
    /// Those of [`PostgresStoreOptions::open`].
    pub fn open_blocking(self) -> Result<PostgresStore> {
        let store = self.start()?;
        let shared = Arc::clone(&store.0.shared);
        store.0.driver.block(async move { shared.prepare().await })??;
        Ok(store)
    }

    fn start(self) -> Result<PostgresStore> {
        // Refused here and not at the first call, where a layer would retry a mistake for ever.
        self.server.check()?;
        self.retention.check()?;
        if !(1..=LOAD_CONNECTIONS_MAX).contains(&self.load_connections) {
            let context = format!("load_connections is {}, and must be from 1 to 64", self.load_connections);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let shared = StoreClient {
            label: self.server.label(),
            sql: Sql::new(&self.server.schema),
            heartbeat: HeartbeatSql::new(&self.server.schema),
            outbox: self.outbox.map(|(channel, events)| OutboxChannel {
                table: Outbox::new(&self.server.schema),
                channel,
                events,
                retention: self.retention,
                untrimmed: AtomicU64::new(0),
            }),
            // One connection, because applies and claims wait for the lock of one row anyway.
            applies: ConnectionPool::new(self.server.clone(), 1),
            loads: ConnectionPool::new(self.server.clone(), self.load_connections),
            call_timeout: self.server.call_timeout,
        };
        Ok(PostgresStore(Arc::new(StoreHandle { shared: Arc::new(shared), driver: Driver::start()? })))
    }
}

/// A store in a Postgres database. Clones share its connections.
///
/// A thread of the store drives its connections, so it can be used in any runtime and without one. A call that has
/// begun runs to its end even if its future is dropped. Dropping the last clone aborts running calls; the database then
/// holds all of an apply or nothing.
///
/// Writes are as durable as the server makes them: with `fsync = off`, or on a disk that does not sync, a power cut may
/// take back what was acknowledged.
///
/// ```no_run
/// # async fn example() -> forebay::Result<()> {
/// use forebay::{Forebay, PostgresServer, PostgresStore};
///
/// let server = PostgresServer::parse("postgres://shop@db.example/shop")?.schema("products");
/// let bay = Forebay::builder(PostgresStore::open(server).await?).journal("data/journal").open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore(Arc<StoreHandle>);

struct StoreHandle {
    shared: Arc<StoreClient>,
    driver: Driver,
}

/// The connections and statements, shared by the calls.
struct StoreClient {
    label: String,
    sql: Sql,
    heartbeat: HeartbeatSql,
    outbox: Option<OutboxChannel>,
    applies: ConnectionPool,
    loads: ConnectionPool,
    call_timeout: Duration,
}

/// The channel of the outbox that an apply writes to.
struct OutboxChannel {
    pub(crate) table: Outbox,
    pub(crate) channel: String,
    pub(crate) events: Events,
    pub(crate) retention: Retention,
    /// The number of rows written since the channel was last trimmed.
    pub(crate) untrimmed: AtomicU64,
}

impl PostgresStore {
    /// Opens the store in a database and schema, and creates missing tables, and the schema if the role may.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Transient`] if the server cannot be reached;
    /// [`ErrorKind::StoreFailed`] if it refuses the credentials, or lacks a database or a privilege;
    /// [`ErrorKind::UnknownFormat`] if a later version of this crate created the tables.
    pub async fn open(server: PostgresServer) -> Result<PostgresStore> {
        PostgresStoreOptions::new(server).open().await
    }

    /// Opens the store from a thread without a runtime, and blocks it meanwhile.
    ///
    /// # Errors
    /// Those of [`PostgresStore::open`].
    pub fn open_blocking(server: PostgresServer) -> Result<PostgresStore> {
        PostgresStoreOptions::new(server).open_blocking()
    }

    /// Runs a call on the thread of the store, within the call timeout.
    async fn call<T, W>(
        &self,
        doing: &'static str,
        work: impl FnOnce(Arc<StoreClient>) -> W,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, CallFailure>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0.shared);
        let limit = shared.call_timeout;
        let work = work(Arc::clone(&shared));
        // On the driver's task: dropping the future must not leave a transaction open in the middle.
        let done = self.0.driver.run(async move { within(doing, limit, work).await }).await;
        match done {
            Ok(done) => done.map_err(|failure| shared.store_error(failure)),
            Err(error) => Err(StoreError::Fatal(error)),
        }
    }
}

impl StoreClient {
    /// Creates missing tables and checks their layout.
    async fn prepare(&self) -> Result<()> {
        let preparing = async {
            let mut lease = self.applies.lease().await?;
            self.sql.ensure(lease.session()).await?;
            if let Some(outbox) = &self.outbox {
                outbox.table.ensure(lease.session()).await?;
            }
            let layout = self.sql.layout(lease.session()).await?;
            // Only after success is the connection given back. After an error it may be within a transaction or an
            // answer.
            lease.keep();
            Ok(layout)
        };
        let found = within("opening the store", self.call_timeout, preparing).await;
        let found = found.map_err(|failure| {
            let kind = match failure.class {
                ErrorClass::Transient => ErrorKind::Transient,
                ErrorClass::Rejected | ErrorClass::Permanent => ErrorKind::StoreFailed,
            };
            failure.within(&self.label).into_error(kind)
        })?;
        // Writing into tables of a later version could destroy what it relies on.
        if !self.sql.knows(found) {
            let context = format!("{}: the store has layout {found}, which is unknown", self.label);
            return Err(Error::new(ErrorKind::UnknownFormat, context));
        }
        Ok(())
    }

    /// Converts a failure of a call.
    fn store_error(&self, failure: CallFailure) -> StoreError {
        let class = failure.class;
        let failure = failure.within(&self.label);
        match class {
            ErrorClass::Transient => StoreError::Transient(failure.into_error(ErrorKind::Transient)),
            // A record that is to blame for a rejection was searched for before, by `find_refused`.
            ErrorClass::Rejected | ErrorClass::Permanent => {
                StoreError::Fatal(failure.into_error(ErrorKind::StoreFailed))
            }
        }
    }

    async fn standing(&self) -> Result<Standing, CallFailure> {
        let mut lease = self.applies.lease().await?;
        let standing = self.sql.standing(lease.session()).await?;
        lease.keep();
        Ok(standing)
    }

    async fn claim(&self, claim: &Claim) -> Result<Result<Standing, StoreError>, CallFailure> {
        let mut lease = self.applies.lease().await?;
        let before = self.sql.claim(lease.session(), claim).await?;
        lease.keep();
        Ok(before)
    }

    async fn renew(&self, tenure: Tenure, ends: bool) -> Result<Result<Seq, Standing>, CallFailure> {
        // Not behind the applies that wait for their connection. On the server it still waits for the row of the
        // tenure.
        let mut lease = self.loads.lease().await?;
        let current = self.heartbeat.renew(lease.session(), tenure, ends).await?;
        lease.keep();
        Ok(current)
    }

    async fn owner_status(&self) -> Result<OwnerStatus, CallFailure> {
        // Not behind an apply, because the asker has to see a living owner while that one applies.
        let mut lease = self.loads.lease().await?;
        let status = self.heartbeat.owner_status(lease.session()).await?;
        lease.keep();
        Ok(status)
    }

    async fn load_many(&self, keys: &[Key]) -> Result<Vec<Option<Versioned>>, CallFailure> {
        let mut lease = self.loads.lease().await?;
        let found = self.sql.load_many(lease.session(), keys).await?;
        lease.keep();
        Ok(found)
    }

    /// Applies a batch, on the one connection for applies.
    async fn apply(&self, batch: &Batch) -> Result<ApplyOutcome, CallFailure> {
        let mut lease = self.applies.lease().await?;
        let session = lease.session();
        // Before the transaction begins, because the row of the tenure is locked from then on.
        let writes = self.sql.prepare_writes(session).await?;
        let outbox_write = match &self.outbox {
            Some(outbox) => Some(OutboxWrite::prepare(outbox, session).await?),
            None => None,
        };
        let applied = match self.apply_once(session, &writes, outbox_write.as_ref(), batch).await {
            // The commit comes last, so nothing of the batch was applied.
            Err(failure) if failure.class == ErrorClass::Rejected => {
                self.find_refused(session, &writes, batch, failure).await?
            }
            other => other?,
        };
        lease.keep();
        Ok(applied)
    }

    async fn apply_once(
        &self,
        session: &mut Session,
        writes: &Writes,
        outbox_write: Option<&OutboxWrite<'_>>,
        batch: &Batch,
    ) -> Result<ApplyOutcome, CallFailure> {
        let (ops, events) = match self.locked(session, batch).await? {
            // The lock must not stay: the transaction is ended before the answer is given.
            Remaining::Nothing(applied) => return undone(session, applied).await,
            Remaining::Changes { ops, events } => (ops, events),
        };
        let parts = StatementChunk::divide(&ops);
        // All chunks but the last are awaited one by one, so that the driver buffers one of them at a time.
        let (first, last) = parts.split_at(parts.len().saturating_sub(1));
        for part in first {
            writes.write(session, part).await?;
        }
        // The rest is sent at once, with the commit last. If a statement fails, Postgres turns the commit into a
        // rollback.
        let session = &*session;
        let (written, advanced, inserted, committed) = tokio::join!(
            biased;
            async {
                match last {
                    [part] => writes.write(session, part).await,
                    _ => Ok(()),
                }
            },
            writes.advance(session, batch),
            async {
                match outbox_write {
                    Some(outbox_write) => outbox_write.write(session, &events).await,
                    None => Ok(()),
                }
            },
            session.run("committing a batch", "COMMIT"),
        );
        // The records first: their failure is the cause, and what the server says of the later statements its
        // consequence.
        written?;
        // These statements contain no record, so none is to blame for their failure.
        advanced.and(inserted).map_err(CallFailure::not_rejected)?;
        committed?;
        // Only after the commit, or rows that were rolled back would count towards the next trim.
        if let Some(outbox_write) = outbox_write {
            outbox_write.committed(events.len());
        }
        Ok(ApplyOutcome::Done)
    }

    /// Begins a transaction, locks the tenure, and returns the rest of the apply.
    async fn locked<'a>(
        &self,
        session: &mut Session,
        batch: &'a Batch,
    ) -> Result<Remaining<'a>, CallFailure> {
        let held = self.sql.lock(session).await?;
        // The row is locked, so no claim can come between this comparison and the commit.
        match held.place(batch) {
            Ok(Placement::Next) => {}
            // The answer to the first attempt was lost; applying again would repeat the events of the outbox too.
            Ok(Placement::Repeated) => return Ok(Remaining::Nothing(ApplyOutcome::Done)),
            Err(error) => return Ok(Remaining::Nothing(ApplyOutcome::OutOfPlace(error))),
        }
        let new: Vec<&Op> = held.unapplied(batch).collect();
        let events = match &self.outbox {
            None => Vec::new(),
            Some(outbox) => {
                let applying = Applying {
                    epoch: batch.tenure.epoch,
                    after: held.progress.applied,
                    until: batch.until,
                    ops: &new,
                };
                match (outbox.events)(&applying) {
                    Ok(events) => events,
                    // Events that cannot be made must stop the apply: without them followers would keep old values
                    // for good.
                    Err(error) => return Ok(Remaining::Nothing(ApplyOutcome::NoEvents(error))),
                }
            }
        };
        Ok(Remaining::Changes { ops: last_of_each_key(new), events })
    }

    /// Finds the first record that the server refuses, by bisection in a transaction that is rolled back. If it accepts
    /// all records now, the failure is transient.
    async fn find_refused(
        &self,
        session: &mut Session,
        writes: &Writes,
        batch: &Batch,
        refused: CallFailure,
    ) -> Result<ApplyOutcome, CallFailure> {
        // The failure may have come before the commit was sent, and the transaction is then still open.
        session.run("ending a transaction", "ROLLBACK").await?;
        let ops = match self.locked(session, batch).await? {
            Remaining::Nothing(applied) => return undone(session, applied).await,
            Remaining::Changes { mut ops, .. } => {
                // By number, so that the search names the first bad record and not the first key.
                ops.sort_by_key(|op| op.seq);
                ops
            }
        };
        let mut rest = ops.as_slice();
        let mut why = refused;
        while rest.len() > 1 {
            let (first, second) = rest.split_at(rest.len() / 2);
            match accepts(session, writes, first).await? {
                // Accepted changes stay in the transaction, because a later record may depend on an earlier one of
                // its table.
                Ok(()) => rest = second,
                Err(failure) => (rest, why) = (first, failure),
            }
        }
        let found = match rest {
            [op] => accepts(session, writes, rest).await?.err().map(|failure| (op.seq, failure)),
            _ => None,
        };
        session.run("ending a transaction", "ROLLBACK").await?;
        match found {
            Some((seq, failure)) => Ok(ApplyOutcome::Refused(seq, failure)),
            // Naming a record on a guess would park a healthy one for good.
            None => Err(why.within("every record is accepted now").transient()),
        }
    }
}

impl Store for PostgresStore {
    /// Returns true if the store fills an outbox.
    fn has_change_feed(&self) -> bool {
        self.0.shared.outbox.is_some()
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async move {
            self.call("reading the tenure", |shared| async move { shared.standing().await }).await
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        let claim = *claim;
        Box::pin(async move {
            self.call("claiming the store", move |shared| async move { shared.claim(&claim).await }).await?
        })
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        Box::pin(async move {
            let call = move |shared: Arc<StoreClient>| async move { shared.renew(tenure, ends).await };
            match self.call("renewing the tenure", call).await? {
                Ok(watermark) => Ok(Some(watermark)),
                Err(standing) => {
                    standing.check_owner(tenure)?;
                    // The store stood at another tenure when the heartbeat was sent, and at this one a moment later.
                    let context = "the tenure changed while it was renewed";
                    Err(StoreError::Transient(Error::new(ErrorKind::Transient, context)))
                }
            }
        })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async move {
            self.call("reading the owner's heartbeat", |shared| async move { shared.owner_status().await })
                .await
        })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            let found = self.load_many(std::slice::from_ref(key)).await?;
            Ok(found.into_iter().next().flatten())
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            // An empty query would still cost a connection and a round trip.
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let keys = keys.to_vec();
            self.call("loading", move |shared| async move { shared.load_many(&keys).await }).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // The call runs to its end even if its future is dropped, so it needs a batch of its own.
            let batch = batch.clone();
            let applied = self
                .call("applying a batch", move |shared| async move { shared.apply(&batch).await })
                .await?;
            let shared = &self.0.shared;
            match applied {
                ApplyOutcome::Done => Ok(()),
                ApplyOutcome::OutOfPlace(error) => Err(error),
                ApplyOutcome::Refused(seq, failure) => {
                    let error = failure.within(&shared.label).into_error(ErrorKind::Rejected);
                    Err(StoreError::Rejected { seq, error })
                }
                ApplyOutcome::NoEvents(error) => Err(StoreError::Fatal(error)),
            }
        })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.0.shared.label).finish()
    }
}

/// The outcome of a batch, if the server answered.
enum ApplyOutcome {
    /// The batch is applied, now or before.
    Done,
    /// The batch does not continue the store's history. Nothing of it was applied.
    OutOfPlace(StoreError),
    /// The server refuses this record. Nothing of the batch was applied.
    Refused(Seq, CallFailure),
    /// The function that makes the events failed. Nothing of the batch was applied.
    NoEvents(Error),
}

/// The rest of an apply, known once the tenure is locked.
enum Remaining<'a> {
    Nothing(ApplyOutcome),
    Changes { ops: Vec<&'a Op>, events: Vec<Bytes> },
}

/// The prepared statements of an apply for the outbox.
struct OutboxWrite<'a> {
    outbox: &'a OutboxChannel,
    insert: Statement,
    /// `None` unless it is time to trim.
    trim: Option<Trim>,
}

impl<'a> OutboxWrite<'a> {
    async fn prepare(
        outbox: &'a OutboxChannel,
        session: &mut Session,
    ) -> Result<OutboxWrite<'a>, CallFailure> {
        let insert = outbox.table.prepare_insert(session).await?;
        // A trim costs an index scan and a lock of the channel, so only some applies do it.
        let trim = match outbox.untrimmed.load(Ordering::Relaxed) >= TRIM_EVERY_ROWS {
            true => Some(outbox.table.prepare_trim(session).await?),
            false => None,
        };
        Ok(OutboxWrite { outbox, insert, trim })
    }

    /// Writes the events, and trims the channel if it is time. Sent with the first poll.
    async fn write(&self, session: &Session, events: &[Bytes]) -> Result<(), CallFailure> {
        let rows: Vec<(Option<&str>, Bytes)> = events.iter().map(|event| (None, event.clone())).collect();
        let channel = &self.outbox.channel;
        let (inserted, trimmed) = tokio::join!(
            biased;
            outbox::insert(session, &self.insert, channel, &rows),
            async {
                match &self.trim {
                    Some(trim) => trim.run(session, channel, self.outbox.retention).await,
                    None => Ok(()),
                }
            },
        );
        inserted.and(trimmed)
    }

    fn committed(&self, rows: usize) {
        // `Relaxed`: the counter only decides when to trim, and one apply more or less does no harm.
        match self.trim {
            Some(_) => self.outbox.untrimmed.store(0, Ordering::Relaxed),
            None => drop(self.outbox.untrimmed.fetch_add(rows as u64, Ordering::Relaxed)),
        }
    }
}

/// Ends a transaction that has changed nothing.
async fn undone(session: &Session, applied: ApplyOutcome) -> Result<ApplyOutcome, CallFailure> {
    session.run("ending a transaction", "ROLLBACK").await?;
    Ok(applied)
}

/// Tests whether the server accepts these changes. Accepted ones stay in the transaction, refused ones are rolled back.
async fn accepts(
    session: &Session,
    writes: &Writes,
    ops: &[&Op],
) -> Result<Result<(), CallFailure>, CallFailure> {
    const DOING: &str = "looking for a refused record";
    session.run(DOING, "SAVEPOINT accepted").await?;
    for part in StatementChunk::divide(&last_of_each_key(ops.to_vec())) {
        match writes.write(session, &part).await {
            Ok(()) => {}
            Err(failure) if failure.class == ErrorClass::Rejected => {
                session.run(DOING, "ROLLBACK TO accepted").await?;
                return Ok(Err(failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    session.run(DOING, "RELEASE accepted").await?;
    Ok(Ok(()))
}

/// Returns the last change of each key, in the order of keys. Two transactions then lock rows in the same order and
/// cannot deadlock.
fn last_of_each_key(mut ops: Vec<&Op>) -> Vec<&Op> {
    ops.sort_by(|a, b| a.key.cmp(&b.key));
    ops.dedup_by(|later, kept| {
        let is_same = later.key == kept.key;
        if is_same {
            *kept = *later;
        }
        is_same
    });
    ops
}
