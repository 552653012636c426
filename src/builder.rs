//! From options to an open layer, and the handle that users hold.

pub mod blocking;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::blocking::BlockingForebay;
use crate::bus::contract::Bus;
use crate::bus::event::Directive;
use crate::cache::batch::Batch;
use crate::cache::codec::{SCHEMA_MAX, TAG_BYTES_MAX, check_name};
use crate::cache::opening::CacheBuilder;
use crate::cache::receipt::Receipt;
use crate::cache::rules::{self, Stale};
use crate::cache::view::{CacheKey, CacheValue};
use crate::disk::contract::Disk;
use crate::disk::os::OsDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::change::{ChangesFrom, CursorStatus};
use crate::feed::changes::ChangeStream;
use crate::feed::follow::{Follow, FollowStatus};
use crate::feed::publisher::{Publication, Publish};
use crate::ids::{NamespaceName, Seq};
use crate::journal::options::{Durability, JournalOptions};
use crate::layer::dead_letter_list::DeadLetterList;
use crate::layer::layer::Layer;
use crate::layer::opening;
use crate::layer::ownership::{OnOwned, Role};
use crate::metrics::Stats;
use crate::options::{Backpressure, LayerOptions, OnRejected, Sizes};
use crate::queue::health::{Closed, Health};
use crate::seam::clock::{Clock, Ticker, block_on};
use crate::store::contract::Store;

/// An open layer: one journal, one store, one order. Cheap to clone.
///
/// The layer stops when the last handle, of it and of its caches, is dropped; that waits for its threads, but
/// not for the store, and loses nothing: what is pending is drained after the next open. [`Forebay::close`]
/// drains first.
#[derive(Clone)]
pub struct Forebay {
    layer: Arc<Layer>,
}

impl fmt::Debug for Forebay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = self.layer.health();
        f.debug_struct("Forebay")
            .field("state", &health.state)
            .field("watermark", &health.watermark)
            .field("committed", &health.committed)
            .finish_non_exhaustive()
    }
}

impl Forebay {
    /// Starts to describe a layer in front of `store`.
    pub fn builder(store: impl Store) -> Builder {
        Builder {
            store: Arc::new(store),
            options: LayerOptions::default(),
            disk: Arc::new(OsDisk),
            ticker: Ticker::default(),
            role: Role::Owner(OnOwned::default()),
        }
    }

    /// Starts to describe a cache of the namespace `name`.
    pub fn cache<K: CacheKey, V: CacheValue>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(Arc::clone(&self.layer), name)
    }

    /// Starts an atomic batch over caches of this layer.
    pub fn batch(&self) -> Batch {
        Batch::new(Arc::clone(&self.layer))
    }

    /// Waits until the store holds everything up to `seq`.
    ///
    /// # Errors
    /// Why it will not get there: the flusher is halted, or the layer fenced, failed or closed.
    pub async fn wait_applied(&self, seq: Seq) -> Result<()> {
        self.layer.wait_applied(seq).await
    }

    /// Waits until the store holds what was acknowledged before the call; what comes later is not waited for.
    /// Returns the sequence number up to which that was.
    ///
    /// # Errors
    /// As [`Forebay::wait_applied`]. A store that fails transiently is waited for.
    pub async fn flush(&self) -> Result<Seq> {
        self.layer.flush().await
    }

    /// Takes no more writes, drains for as long as [`Builder::close_deadline`] allows, and stops.
    ///
    /// # Errors
    /// If the journal could not be brought to a clean end; what was acknowledged is safe all the same.
    pub async fn close(&self) -> Result<Closed> {
        self.close_within(self.layer.options().close_deadline).await
    }

    /// As [`Forebay::close`], with a deadline of its own; zero does not drain at all.
    ///
    /// Dropping the future leaves the layer closing: it takes no more writes.
    ///
    /// # Errors
    /// As [`Forebay::close`].
    pub async fn close_within(&self, deadline: Duration) -> Result<Closed> {
        self.layer.close(deadline).await
    }

    /// Makes every entry of the namespace and of those below it (`products`, `products/eu`) unservable in the memory
    /// of all caches, at a cost that does not depend on how many there are, and notes that durably. A load that is
    /// under way is not kept, and no read that begins after the call joins one. What is pending is the truth and
    /// stays.
    ///
    /// Memory has forgotten when the call is first polled; it returns once the journal holds the token, or, on a layer
    /// without one, the store. The receipt's number is the token.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// # let bay = Forebay::builder(MemoryStore::new()).open().await?;
    /// let users: Cache<u64, String> = bay.cache("users/eu").open()?;
    /// users.get_or_load(&7, |_| async { Ok::<_, std::io::Error>(Some("Ada".to_string())) }).await?;
    /// let receipt = bay.invalidate_namespace("users").await?;
    /// assert_eq!(users.get(&7).await?, None); // not in memory any more, and never in the store
    /// assert_eq!(bay.namespace_token("users/eu").await?, receipt.seq());
    /// # Ok::<(), forebay::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors and cancellation
    /// [`ErrorKind::InvalidName`], with nothing done; else as [`Cache::put`]'s, and then
    /// memory has forgotten and the token may be the older one.
    ///
    /// [`Cache::put`]: crate::Cache::put
    pub async fn invalidate_namespace(&self, name: &str) -> Result<Receipt> {
        let name = NamespaceName::parse(name)?;
        self.layer.invalidate_namespace(&name).await.map(Receipt::new)
    }

    /// The sequence number of the last invalidation of the namespace or of one that it lies below, in this layer's
    /// life or an earlier one's; zero if there was none. Whoever keeps values of the namespace elsewhere, with the
    /// number that they were current at, may serve those that are not below it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`]; the store's. A token that cannot be read is never
    /// taken for one that is not there.
    pub async fn namespace_token(&self, name: &str) -> Result<Seq> {
        self.layer.namespace_token(&NamespaceName::parse(name)?).await
    }

    /// Makes every entry that has this tag unservable in the memory of all caches, at a cost that does not depend on
    /// how many there are. A load that is under way and brings the tag is not kept, nor served to a read that begins
    /// after the call. What is pending is the truth and stays. Without I/O, and for this process: memory does not
    /// outlive it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn invalidate_tag(&self, tag: &str) -> Result<()> {
        check_name("a tag", tag, TAG_BYTES_MAX)?;
        self.layer.catch_up();
        let scopes = self.layer.views().scopes();
        scopes.invalidate(scopes.tag(tag));
        Ok(())
    }

    /// As [`Forebay::invalidate_tag`], and notes that durably, so that others hear of it: it is a change of the
    /// [change stream](Forebay::changes), and travels to those who [follow](Builder::follow). The store keeps a token
    /// for each tag that this was called with.
    ///
    /// # Errors and cancellation
    /// As [`Forebay::invalidate_namespace`].
    pub async fn invalidate_tag_everywhere(&self, tag: &str) -> Result<Receipt> {
        check_name("a tag", tag, TAG_BYTES_MAX)?;
        self.layer.invalidate_tag(tag).await.map(Receipt::new)
    }

    /// Tells those who follow that the namespace's values are written with this
    /// [schema version](crate::CacheBuilder::schema_version) from now on, so that they read them again. Values say
    /// their version themselves; this only spares others from finding out one by one.
    ///
    /// # Errors and cancellation
    /// As [`Forebay::invalidate_namespace`]; [`ErrorKind::InvalidOption`] for a
    /// version that cannot be.
    pub async fn announce_schema(&self, name: &str, version: u8) -> Result<Receipt> {
        let name = NamespaceName::parse(name)?;
        if !(1..=SCHEMA_MAX).contains(&version) {
            let context = format!("schema version {version}; allowed are 1 to {SCHEMA_MAX}");
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        self.layer.announce_schema(&name, version).await.map(Receipt::new)
    }

    /// What the store has been given, in the layer's order: from a number on, or from where the durable cursor of a
    /// name stands. On a layer that was opened with [`Builder::changes`].
    ///
    /// A cursor keeps the journal from being trimmed until its subscriber has acknowledged, up to
    /// [`Builder::changes_bytes_max`], and stays until [`Forebay::forget_cursor`]. A new one begins with what the
    /// journal still holds; what came before is told as lost. It has one subscriber at a time.
    ///
    /// ```
    /// # use forebay::{Cache, ChangeKind, ChangeOutcome, Forebay, MemoryStore};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let bay = Forebay::builder(MemoryStore::new()).journal(dir.path().join("journal")).changes(true).open().await?;
    /// let mut changes = bay.changes("search-index").await?;
    /// let products: Cache<u64, u32> = bay.cache("products").open()?;
    /// products.put(&7, 3_490).await?;
    /// match changes.next().await? {
    ///     ChangeOutcome::Change(change) => {
    ///         assert_eq!(change.key.namespace(), "products");
    ///         assert!(matches!(change.kind, ChangeKind::Put(_)));
    ///         changes.acknowledge(change.seq).await?; // not told again, after a restart either
    ///     }
    ///     ChangeOutcome::PlaceLost { .. } => { /* take everything as changed */ }
    /// }
    /// # Ok::<(), forebay::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on a layer that does not tell changes. With a cursor:
    /// `InvalidName`; `Locked` if it has a subscriber; `InvalidOption` if there are 64 already; the file system's, if a
    /// new one cannot be made.
    pub async fn changes(&self, from: impl Into<ChangesFrom>) -> Result<ChangeStream> {
        self.layer.changes(from.into()).await
    }

    /// Publishes what changes in the store over a bus, in order and at least once, to those who
    /// [follow](Builder::follow). On a layer that was opened with [`Builder::changes`].
    ///
    /// It reads the journal behind the watermark, so nothing is published that the store does not hold, and writers pay
    /// nothing. Its place is a cursor that survives every crash; see [`Forebay::cursors`]. A bus that fails is tried
    /// again for as long as it takes, and [`Publication::status`] says so.
    ///
    /// # Errors
    /// As [`Forebay::changes`]; [`ErrorKind::InvalidName`] of the channel,
    /// [`ErrorKind::InvalidOption`]. Never the bus's.
    pub async fn publish(&self, bus: impl Bus, publish: Publish) -> Result<Publication> {
        self.layer.publish(Arc::new(bus), publish).await
    }

    /// The named cursors of the change stream, and how far each is behind the store.
    ///
    /// # Errors
    /// `Unsupported` without a journal.
    pub fn cursors(&self) -> Result<Vec<CursorStatus>> {
        self.layer.cursors()
    }

    /// Gives a named cursor up, durably: nothing is kept for it any more. Says whether there was one.
    ///
    /// # Errors
    /// `Unsupported` without a journal; `Locked` if it has a subscriber; the file system's.
    pub async fn forget_cursor(&self, name: &str) -> Result<bool> {
        self.layer.forget_cursor(name).await
    }

    /// How a layer that follows another process is; nothing of one that does not.
    #[must_use]
    pub fn following(&self) -> Option<FollowStatus> {
        self.layer.follower.as_ref().map(|follower| follower.status())
    }

    /// The last sequence number that the store holds; of a layer that follows another process, the last up to which it
    /// has heard everything.
    #[must_use]
    pub fn watermark(&self) -> Seq {
        self.layer.watermark()
    }

    /// The last committed sequence number.
    #[must_use]
    pub fn last_committed(&self) -> Seq {
        self.layer.last_committed()
    }

    /// How many records are committed and not yet in the store.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.layer.health().queued_records
    }

    /// How the layer is, and why.
    #[must_use]
    pub fn health(&self) -> Health {
        self.layer.health()
    }

    /// What has been counted since the layer opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.layer.stats()
    }

    /// Tells the recorder that is installed for the [`metrics`](https://docs.rs/metrics) facade what the layer and
    /// its caches have counted: counters as totals, and gauges as they are now. For whoever is about to be scraped,
    /// or for a task that calls it every few seconds. Names and units are on the manual's page
    /// [`figures`](crate::manual::figures).
    ///
    /// Costs a look-up in the recorder for each figure, some thirty for each cache; reads and writes pay nothing.
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.layer.record_metrics();
    }

    /// Lets a halted flusher try again; otherwise does nothing.
    pub fn resume(&self) {
        self.layer.resume();
    }

    /// The dead-letter list.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetterList {
        DeadLetterList::new(Arc::clone(&self.layer))
    }

    /// The same calls without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingForebay {
        BlockingForebay::new(self.clone())
    }
}

/// The options of a layer that is about to be opened. Each is checked by [`Builder::open`].
#[must_use = "nothing is opened until `open` is called"]
pub struct Builder {
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    role: Role,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $field:ident: $kind:ty,)*) => {
        impl Builder {
            $($(#[$doc])* pub fn $name(mut self, value: $kind) -> Self {
                self.options.$field = value;
                self
            })*
        }
    };
}

setters! {
    /// When a journaled write counts as committed. Default: [`Durability::Sync`].
    durability: durability: Durability,
    /// Segment sizes and the like.
    journal_options: journal: JournalOptions,
    /// How many bytes of the journal may wait for the store, what is in flight included. Default: 4 GiB.
    queue_bytes_max: queue_bytes_max: u64,
    /// How many records may wait for the store, what is in flight included. Default: 4,000,000.
    queue_records_max: queue_records_max: u64,
    /// How many bytes of pending records stay in memory; beyond that, they are read back from the journal,
    /// and each takes 8 to 16 bytes that do not count. Default: 256 MiB.
    pending_memory_bytes_max: pending_memory_bytes_max: u64,
    /// What a write does when the queue is full. Default: wait.
    backpressure: backpressure: Backpressure,
    /// How many records one apply takes at the most. Default: 1024.
    batch_records_max: batch_records_max: usize,
    /// How many bytes one apply takes at the most. Default: 8 MiB.
    batch_bytes_max: batch_bytes_max: u64,
    /// How long the flusher waits for a batch to fill, as long as nobody waits for an apply or for room. A store's sync
    /// and the journal's share the disk, so applying every write at once would slow the writers down. Zero: what is
    /// there is applied at once. Default: 10 ms.
    batch_linger: batch_linger: Duration,
    /// For how long the drain stays out of the way of writers that go on committing, since it shares processors and
    /// disk with them. It waits for a `batch_linger` in which nothing is committed, but not beyond this, nor for more
    /// than a quarter of the queue's bounds or of `pending_memory_bytes_max`, nor while somebody waits for an apply or
    /// for room. Where changes are told ([`Builder::changes`], or an outbox of the store's), and for so long after a
    /// write-through, there is no such delay. Zero: whatever fills a batch is applied at once. Default: 1 s.
    drain_delay_max: drain_delay_max: Duration,
    /// What a record does that the store rejects. Default: halt.
    on_rejected: on_rejected: OnRejected,
    /// How many records the dead-letter list may hold before the flusher halts after all. Default: 100,000.
    dead_letter_records_max: dead_letter_records_max: u64,
    /// How long a write-through waits for the store before its outcome counts as unknown. Default: 30 s.
    through_timeout: through_timeout: Duration,
    /// How long [`Forebay::close`] drains. Default: 30 s.
    close_deadline: close_deadline: Duration,
    /// Whether [`Forebay::changes`] can be called. The journal then holds a notice of each write-through, too, which
    /// costs it a sync of the journal before the store's. Default: no.
    changes: changes: bool,
    /// How many bytes of segments that the store needs no more are kept for named cursors of the change stream; beyond
    /// that the slowest lose their places, and are told. Default: 1 GiB.
    changes_bytes_max: changes_bytes_max: u64,
    /// How often the layer says in the store that it lives, for those who [wait](Builder::on_owned) for the store.
    /// Default: 1 s.
    renew_interval: renew_interval: Duration,
    /// Accept that the journal that the store was fed from is gone, with whatever was queued in it. Default: no.
    replace_journal: replace_journal: bool,
}

impl Builder {
    /// Where the journal lies. Without one every write goes through.
    pub fn journal(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.journal_dir = Some(dir.into());
        self
    }

    /// Lowers internal sizes so that keys collide all the time, for tests.
    #[doc(hidden)]
    pub fn colliding_sizes(mut self) -> Self {
        self.options.sizes = Sizes::COLLIDING;
        self
    }

    /// How long to wait before the first retry of a failed apply, and at the most. Default: 10 ms and 10 s.
    pub fn retry_backoff(mut self, first: Duration, cap: Duration) -> Self {
        (self.options.retry_first, self.options.retry_cap) = (first, cap);
        self
    }

    /// Follows the owner of the store, another process or another layer of this one, instead of becoming it: the
    /// layer is read-only, its caches keep what they load from the store until the owner's directives, over a bus, say
    /// that it changed, and a read's tolerance holds against the lag of the directives. See the manual's page
    /// [`coordination`](crate::manual::coordination).
    pub fn follow(mut self, follow: Follow) -> Self {
        self.role = Role::Follower(follow);
        self
    }

    /// As [`Builder::follow`], with a rule of what else becomes stale by a directive of the owner: keys of this layer's
    /// own caches, tags, namespaces. A pure function; if it panics, or names what cannot be, all of memory is emptied.
    pub fn follow_with(
        self,
        follow: Follow,
        rule: impl Fn(&Directive, &mut Stale) + Send + Sync + 'static,
    ) -> Self {
        self.follow(follow.deriving(Arc::new(rules::on_directive(rule))))
    }

    /// What opening does if the store has an owner that lives: another layer, of this process or another, that has
    /// claimed it and not closed. Default: take it over. For stores that several processes share.
    ///
    /// Whatever is chosen, the older owner is fenced by the claim, and can neither change the store nor be heard by
    /// followers from then on.
    pub fn on_owned(mut self, on_owned: OnOwned) -> Self {
        self.role = Role::Owner(on_owned);
        self
    }

    /// The file system that the journal lies on. Default: the operating system's.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// The clock that ages in memory are read from; what waits does so by the system's. Default: the system's
    /// monotonic clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.ticker = Ticker::new(clock);
        self
    }

    /// Opens the layer: claims the store, replays the journal, and starts to drain.
    ///
    /// # Errors
    /// A bad option; a journal that is locked, damaged, of an unknown format or not this store's; the store's.
    /// Dropping the future may leave the store claimed, which only fences its older owner.
    pub async fn open(self) -> Result<Forebay> {
        let layer = opening::open(self.store, self.options, self.disk, self.ticker, self.role).await?;
        Ok(Forebay { layer })
    }

    /// As [`Builder::open`], without a runtime. For a store that needs one, use [`Builder::open`] inside it.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open_blocking(self) -> Result<Forebay> {
        block_on(None, self.open())
    }
}
