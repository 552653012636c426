//! A store in a Postgres database.
//!
//! | table of the schema | columns |
//! | --- | --- |
//! | `data` | `key bytea` (primary key), `value bytea`, `version int8`, `long_key bytea` |
//! | `pulse` | one row: `renewals int8`, `ended boolean` |
//! | `tenure` | one row: `layout int4`, `epoch int8`, `applied int8`, `journaled int8`, `journal bytea` |
//!
//! A key of up to 1,024 bytes is stored as it is. An index takes no longer ones, so a longer key is stored as its first
//! 1,024 bytes and the SHA-256 of all of it, and as a whole in `long_key`. Numbers are unsigned: from 2^63 on the
//! columns show them as negative.
//!
//! An apply locks the row of `tenure`, looks at epoch and watermark, and changes data, watermark and outbox in that
//! same transaction; a claim locks the same row. So an apply that is under way when a newer owner claims the store is
//! either part of what the claim returns, or refused. It takes two round trips: what is locked has to be known before
//! what is new can be sent, all of which goes at once, the commit included.
//!
//! An apply whose commit is not answered is [`StoreError::Transient`]: the layer sends it again, and the watermark
//! tells whether it had been carried out.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, JournalId, Key, Seq};
use crate::postgres::driver::Driver;
use crate::postgres::failure::{Failure, Sort};
use crate::postgres::outbox::{Outbox, Retention};
use crate::postgres::pool::{Pool, within};
use crate::postgres::server::PostgresServer;
use crate::store::contract::{Batch, BoxFuture, Op, OwnerStatus, Store, StoreError, Tenure, Versioned};
use crate::store::postgres_pulse::Liveness;
use crate::store::postgres_sql::{Applied, Sql};

const LOAD_CONNECTIONS_DEFAULT: usize = 4;
const LOAD_CONNECTIONS_MAX: usize = 64;

/// A batch as it is being applied, for whoever says in the outbox what it did.
#[derive(Clone, Copy, Debug)]
pub struct Applying<'a> {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The watermark before it.
    pub after: Seq,
    /// The watermark behind it.
    pub until: Seq,
    /// What it changes, in the order of the numbers. Of several changes of a key that a layer has applied together it
    /// holds the last one only.
    pub ops: &'a [&'a Op],
}

/// Makes the events of a batch, in the order in which they are published.
pub type Events = Arc<dyn Fn(&Applying<'_>) -> Result<Vec<Bytes>> + Send + Sync>;

/// How to open a [`PostgresStore`].
#[derive(Clone)]
pub struct PostgresStoreOptions {
    server: PostgresServer,
    load_connections: usize,
    outbox: Option<(String, Events)>,
    retention: Retention,
}

impl PostgresStoreOptions {
    /// Of the store in this database and schema.
    #[must_use]
    pub fn new(server: PostgresServer) -> PostgresStoreOptions {
        PostgresStoreOptions {
            server,
            load_connections: LOAD_CONNECTIONS_DEFAULT,
            outbox: None,
            retention: Retention::default(),
        }
    }

    /// How many connections load, each one value, or some hundred, at a time; 1 to 64, 4 by default. One more applies
    /// and claims.
    #[must_use]
    pub fn load_connections(mut self, count: usize) -> PostgresStoreOptions {
        self.load_connections = count;
        self
    }

    /// Has each apply write, in its own transaction, these events to a channel of the schema's outbox. See
    /// [`PostgresStoreOptions::outbox`] for the usual ones.
    #[must_use]
    pub fn outbox_events(mut self, channel: &str, events: Events) -> PostgresStoreOptions {
        self.outbox = Some((channel.to_owned(), events));
        self
    }

    /// How many rows of the outbox's channel are kept, and for how long: 65,536 and 24 hours by default. What goes
    /// beyond either is trimmed, now and then, by an apply; a subscriber that has not read it is told.
    #[must_use]
    pub fn outbox_retained(mut self, rows: u64, age: Duration) -> PostgresStoreOptions {
        self.retention = Retention { rows, age };
        self
    }

    /// Opens the store; see [`PostgresStore::open`].
    ///
    /// # Errors
    /// As there, and [`ErrorKind::InvalidOption`].
    pub async fn open(self) -> Result<PostgresStore> {
        let store = self.start()?;
        let shared = Arc::clone(&store.0.shared);
        store.0.driver.run(async move { shared.prepare().await }).await??;
        Ok(store)
    }

    /// The same for a caller without a runtime.
    ///
    /// # Errors
    /// As there.
    pub fn open_blocking(self) -> Result<PostgresStore> {
        let store = self.start()?;
        let shared = Arc::clone(&store.0.shared);
        store.0.driver.block(async move { shared.prepare().await })??;
        Ok(store)
    }

    fn start(self) -> Result<PostgresStore> {
        self.server.check()?;
        self.retention.check()?;
        if !(1..=LOAD_CONNECTIONS_MAX).contains(&self.load_connections) {
            let context = format!("load_connections is {}, and must be from 1 to 64", self.load_connections);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let shared = Shared {
            label: self.server.label(),
            sql: Sql::new(&self.server.schema),
            liveness: Liveness::new(&self.server.schema),
            outbox: self.outbox.map(|(channel, events)| Channelled {
                table: Outbox::new(&self.server.schema),
                channel,
                events,
                retention: self.retention,
                untrimmed: AtomicU64::new(0),
            }),
            applies: Pool::new(self.server.clone(), 1),
            loads: Pool::new(self.server.clone(), self.load_connections),
            call_timeout: self.server.call_timeout,
        };
        Ok(PostgresStore(Arc::new(Handle { shared: Arc::new(shared), driver: Driver::start()? })))
    }
}

/// A store in a Postgres database; clones share its connections.
///
/// It has a thread of its own for its connections, so it can be used within any runtime and without one. A call that
/// was begun runs to its end though its future is dropped; dropping the last clone cuts what is under way, and of an
/// apply the database then holds all or nothing.
///
/// Durable is what the server takes for it: with `fsync = off`, or on a disk that lies, a power cut may take back
/// what was acknowledged.
///
/// ```no_run
/// # async fn example() -> forebay::Result<()> {
/// use forebay::postgres::PostgresServer;
/// use forebay::{Forebay, PostgresStore};
///
/// let server = PostgresServer::parse("postgres://shop@db.example/shop")?.schema("products");
/// let bay = Forebay::builder(PostgresStore::open(server).await?).journal("data/journal").open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    driver: Driver,
}

/// What the calls share.
pub(crate) struct Shared {
    label: String,
    pub(crate) sql: Sql,
    liveness: Liveness,
    pub(crate) outbox: Option<Channelled>,
    pub(crate) applies: Pool,
    loads: Pool,
    call_timeout: Duration,
}

/// A channel of the outbox, and what is said there.
pub(crate) struct Channelled {
    pub(crate) table: Outbox,
    pub(crate) channel: String,
    pub(crate) events: Events,
    pub(crate) retention: Retention,
    /// Rows that were written since the channel was trimmed.
    pub(crate) untrimmed: AtomicU64,
}

impl PostgresStore {
    /// Opens the store in a database and schema, and makes what is missing there: the schema, if the role may, and the
    /// tables.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Transient`] if the server cannot be reached;
    /// [`ErrorKind::StoreFailed`] if it refuses the credentials, or lacks a database or a privilege;
    /// [`ErrorKind::UnknownFormat`] if a later version of this crate made the tables.
    pub async fn open(server: PostgresServer) -> Result<PostgresStore> {
        PostgresStoreOptions::new(server).open().await
    }

    /// The same for a caller without a runtime.
    ///
    /// # Errors
    /// As there.
    pub fn open_blocking(server: PostgresServer) -> Result<PostgresStore> {
        PostgresStoreOptions::new(server).open_blocking()
    }

    /// Runs a call on the store's own thread, within the call timeout.
    async fn call<T, W>(
        &self,
        doing: &'static str,
        work: impl FnOnce(Arc<Shared>) -> W,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let shared = Arc::clone(&self.0.shared);
        let limit = shared.call_timeout;
        let work = work(Arc::clone(&shared));
        let done = self.0.driver.run(async move { within(doing, limit, work).await }).await;
        match done {
            Ok(done) => done.map_err(|failure| shared.sorted(failure)),
            Err(error) => Err(StoreError::Fatal(error)),
        }
    }
}

impl Shared {
    /// Makes what is missing.
    async fn prepare(&self) -> Result<()> {
        let preparing = async {
            let mut lease = self.applies.lease().await?;
            self.sql.ensure(lease.session()).await?;
            if let Some(outbox) = &self.outbox {
                outbox.table.ensure(lease.session()).await?;
            }
            let layout = self.sql.layout(lease.session()).await?;
            lease.keep();
            Ok(layout)
        };
        let found = within("opening the store", self.call_timeout, preparing).await;
        let found = found.map_err(|failure| {
            let kind = match failure.sort {
                Sort::Passing => ErrorKind::Transient,
                Sort::Content | Sort::Lasting => ErrorKind::StoreFailed,
            };
            failure.within(&self.label).into_error(kind)
        })?;
        if !self.sql.knows(found) {
            let context = format!("{}: the store has layout {found}, which is unknown", self.label);
            return Err(Error::new(ErrorKind::UnknownFormat, context));
        }
        Ok(())
    }

    fn sorted(&self, failure: Failure) -> StoreError {
        let sort = failure.sort;
        let failure = failure.within(&self.label);
        match sort {
            Sort::Passing => StoreError::Transient(failure.into_error(ErrorKind::Transient)),
            // Of a batch, the record was looked for before.
            Sort::Content | Sort::Lasting => StoreError::Fatal(failure.into_error(ErrorKind::StoreFailed)),
        }
    }

    async fn tenure(&self) -> Result<Tenure, Failure> {
        let mut lease = self.applies.lease().await?;
        let tenure = self.sql.tenure(lease.session()).await?;
        lease.keep();
        Ok(tenure)
    }

    async fn claim(&self, journal: Option<JournalId>) -> Result<Tenure, Failure> {
        let mut lease = self.applies.lease().await?;
        let tenure = self.sql.claim(lease.session(), journal).await?;
        lease.keep();
        Ok(tenure)
    }

    async fn renew(&self, epoch: Epoch, ends: bool) -> Result<Option<Epoch>, Failure> {
        let mut lease = self.loads.lease().await?;
        let current = self.liveness.renew(lease.session(), epoch, ends).await?;
        lease.keep();
        Ok(current)
    }

    async fn owner_status(&self) -> Result<OwnerStatus, Failure> {
        let mut lease = self.loads.lease().await?;
        let pulse = self.liveness.pulse(lease.session()).await?;
        lease.keep();
        Ok(pulse)
    }

    async fn load_many(&self, keys: &[Key]) -> Result<Vec<Option<Versioned>>, Failure> {
        let mut lease = self.loads.lease().await?;
        let found = self.sql.load_many(lease.session(), keys).await?;
        lease.keep();
        Ok(found)
    }
}

impl Store for PostgresStore {
    /// With an outbox.
    fn has_change_feed(&self) -> bool {
        self.0.shared.outbox.is_some()
    }

    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async move {
            self.call("reading the tenure", |shared| async move { shared.tenure().await }).await
        })
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async move {
            self.call("claiming the store", move |shared| async move { shared.claim(journal).await }).await
        })
    }

    fn renew(&self, epoch: Epoch, ends: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let call = move |shared: Arc<Shared>| async move { shared.renew(epoch, ends).await };
            match self.call("renewing the tenure", call).await? {
                Some(current) => Err(StoreError::Fenced { current }),
                None => Ok(()),
            }
        })
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async move {
            self.call("asking for the owner's pulse", |shared| async move { shared.owner_status().await })
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
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let keys = keys.to_vec();
            self.call("loading", move |shared| async move { shared.load_many(&keys).await }).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let batch = batch.clone();
            let applied = self
                .call("applying a batch", move |shared| async move { shared.apply(&batch).await })
                .await?;
            let shared = &self.0.shared;
            match applied {
                Applied::Done => Ok(()),
                Applied::Fenced(current) => Err(StoreError::Fenced { current }),
                Applied::Refused(seq, failure) => {
                    let error = failure.within(&shared.label).into_error(ErrorKind::Rejected);
                    Err(StoreError::Rejected { seq, error })
                }
                Applied::Unsaid(error) => Err(StoreError::Fatal(error)),
            }
        })
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.0.shared.label).finish()
    }
}
