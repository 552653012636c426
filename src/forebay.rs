//! The handle of an open layer: flushing, closing, invalidation, change streams, publishing, health; async and
//! blocking.
//!
//! This is the face: every call is documented here, and passes on to the layer.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::bus::contract::Bus;
use crate::cache::batch::WriteBatch;
use crate::cache::codec::{CacheKey, CacheValue, SCHEMA_MAX, TAG_BYTES_MAX, check_name};
use crate::cache::entry::Receipt;
use crate::cache::opening::CacheBuilder;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::change::{ChangesFrom, CursorStatus};
use crate::feed::changes::{BlockingChangeStream, ChangeStream};
use crate::feed::follow::FollowStatus;
use crate::feed::publisher::{BlockingPublication, Publication, Publish};
use crate::ids::{Key, NamespaceName, Seq};
use crate::invalidation::Invalidation;
use crate::layer::dead_letter_list::DeadLetterList;
use crate::layer::layer::Layer;
use crate::metrics::Stats;
use crate::queue::health::{Closed, Health};
use crate::seam::blocking::blocking_calls;
use crate::seam::clock::block_on;

/// An open layer: one journal, one store, one order. Cheap to clone.
///
/// Made by [`Forebay::builder`]. The layer stops when its last handle is dropped, caches included. That waits for its
/// threads, but not for the store, and loses nothing: pending writes are drained after the next open.
/// [`Forebay::close`] drains them first.
///
/// ```
/// use forebay::{Cache, Forebay, MemoryStore};
/// # let dir = tempfile::tempdir().unwrap();
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bay = Forebay::builder(MemoryStore::new()).journal(dir.path().join("journal")).open().await?;
/// let stock: Cache<u64, u32> = bay.cache("stock").open()?;
/// stock.put(&7, 12).await?; // in the journal
/// bay.flush().await?; // in the store, too
/// assert_eq!(bay.pending(), 0);
/// bay.close().await?;
/// # Ok::<(), forebay::Error>(()) }).unwrap();
/// ```
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
    pub(crate) fn new(layer: Arc<Layer>) -> Forebay {
        Forebay { layer }
    }

    /// Begins to describe a cache of the namespace `name`; nothing is opened before [`CacheBuilder::open`].
    pub fn cache<K: CacheKey, V: CacheValue>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(Arc::clone(&self.layer), name)
    }

    /// Begins an atomic batch of writes over caches of this layer; nothing is written before [`WriteBatch::commit`].
    pub fn batch(&self) -> WriteBatch {
        WriteBatch::new(Arc::clone(&self.layer))
    }

    /// Waits until the store holds everything up to `seq`.
    ///
    /// # Errors
    /// The reason why it will not get there: the flusher is halted, or the layer is fenced, failed or closed.
    pub async fn wait_applied(&self, seq: Seq) -> Result<()> {
        self.layer.wait_applied(seq).await
    }

    /// Waits until the store holds everything that was acknowledged before the call, and returns the last sequence
    /// number of that. Later writes are not waited for.
    ///
    /// # Errors
    /// As [`Forebay::wait_applied`]. A store that fails transiently is waited for.
    pub async fn flush(&self) -> Result<Seq> {
        self.layer.flush().await
    }

    /// Closes the layer: takes no more writes, drains for as long as
    /// [`close_deadline`](crate::Builder::close_deadline) allows, and stops. Returns what is left in the queue.
    ///
    /// # Errors
    /// The journal's, if it could not be brought to a clean end; what was acknowledged is safe all the same.
    pub async fn close(&self) -> Result<Closed> {
        self.close_within(self.layer.options().close_deadline).await
    }

    /// Closes as [`Forebay::close`], with a deadline of its own; zero does not drain at all.
    ///
    /// Dropping the future leaves the layer closing: it takes no more writes.
    ///
    /// # Errors
    /// As [`Forebay::close`].
    pub async fn close_within(&self, deadline: Duration) -> Result<Closed> {
        self.layer.close(deadline).await
    }

    /// Invalidates a namespace and those below it (`products`, `products/eu`) in the memory of all caches, and writes
    /// that down durably. The receipt's number is the namespace's token.
    ///
    /// Costs the same however many entries there are. No load that is under way is kept, and no read that begins after
    /// the call joins one. Pending writes stay: they are newer than the store. Memory is invalidated when the call is
    /// first polled; it returns once the journal holds the token, or the store on a layer without a journal.
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
    /// [`ErrorKind::InvalidName`], with nothing done; else as [`Cache::put`](crate::Cache::put), and then memory is
    /// invalidated and the token may still be the older one.
    pub async fn invalidate_namespace(&self, name: &str) -> Result<Receipt> {
        let name = NamespaceName::parse(name)?;
        self.layer.invalidate(Invalidation::Namespace(name)).await.map(Receipt::new)
    }

    /// Reads a namespace's token: the sequence number of the last invalidation of it or of a namespace above it, by
    /// this layer or an earlier one; zero if there was none.
    ///
    /// Whoever keeps values of the namespace elsewhere, each with the number that it was current at, may serve those
    /// whose number is not below the token.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`]; the store's. A token that cannot be read is an error, never taken for one that is
    /// not there.
    pub async fn namespace_token(&self, name: &str) -> Result<Seq> {
        self.layer.namespace_token(&NamespaceName::parse(name)?).await
    }

    /// Invalidates every entry with this tag, in the memory of all caches of this process.
    ///
    /// Costs the same however many entries there are, and no I/O. A load that is under way and brings the tag is
    /// neither kept nor served to a read that begins after the call. Pending writes stay: they are newer than the
    /// store.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub fn invalidate_tag(&self, tag: &str) -> Result<()> {
        check_name("a tag", tag, TAG_BYTES_MAX)?;
        // A write that was acknowledged before, and entered memory after, would lie above the new floor and stay.
        self.layer.catch_up();
        self.layer.views().carry_out(&Invalidation::Tag(tag.to_owned()));
        Ok(())
    }

    /// Invalidates a tag as [`Forebay::invalidate_tag`], and writes that down durably for others: it is a change of the
    /// [change stream](Forebay::changes), and reaches processes that [follow](crate::Builder::follow). The store keeps
    /// a token for each tag that this was called with.
    ///
    /// # Errors and cancellation
    /// As [`Forebay::invalidate_namespace`].
    pub async fn invalidate_tag_everywhere(&self, tag: &str) -> Result<Receipt> {
        check_name("a tag", tag, TAG_BYTES_MAX)?;
        self.layer.invalidate(Invalidation::Tag(tag.to_owned())).await.map(Receipt::new)
    }

    /// Announces to followers that the namespace's values have this
    /// [schema version](crate::CacheBuilder::schema_version) from now on, so that they read them again.
    ///
    /// Each value carries its schema version; the announcement spares followers from finding out value by value.
    ///
    /// # Errors and cancellation
    /// As [`Forebay::invalidate_namespace`]; [`ErrorKind::InvalidOption`] unless the version is 1 to 127.
    pub async fn announce_schema(&self, name: &str, version: u8) -> Result<Receipt> {
        let name = NamespaceName::parse(name)?;
        // No stored value can have another one: the byte's eighth bit marks tags.
        if !(1..=SCHEMA_MAX).contains(&version) {
            let context = format!("schema version {version}; allowed are 1 to {SCHEMA_MAX}");
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        self.layer.invalidate(Invalidation::Schema(name, version)).await.map(Receipt::new)
    }

    /// Opens a stream of what the store has been given, in the layer's order: after a sequence number, or from where a
    /// named durable cursor stands. For layers with [`changes`](crate::Builder::changes).
    ///
    /// A cursor keeps the journal from being trimmed until its subscriber has acknowledged, up to
    /// [`changes_bytes_max`](crate::Builder::changes_bytes_max), and exists until [`Forebay::forget_cursor`]. A new one
    /// begins with what the journal still holds; earlier changes are reported as lost. A cursor has one subscriber at a
    /// time.
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
    /// [`ErrorKind::Unsupported`] on a layer without `changes`. With a cursor: [`ErrorKind::InvalidName`];
    /// [`ErrorKind::Locked`] if it has a subscriber; [`ErrorKind::InvalidOption`] if there are 64 already; the file
    /// system's, if a new one cannot be made.
    pub async fn changes(&self, from: impl Into<ChangesFrom>) -> Result<ChangeStream> {
        self.layer.changes(from.into()).await
    }

    /// Publishes the store's changes over a bus, in order and at least once, to processes that
    /// [follow](crate::Builder::follow). For layers with [`changes`](crate::Builder::changes).
    ///
    /// The publisher reads the journal behind the watermark, so it publishes nothing that the store does not hold, and
    /// costs writers nothing. Its cursor survives every crash; see [`Forebay::cursors`]. A bus that fails is tried
    /// again for as long as it takes, and [`Publication::status`] shows the failure.
    ///
    /// # Errors
    /// As [`Forebay::changes`]; [`ErrorKind::InvalidName`] of the channel, [`ErrorKind::InvalidOption`]. Never the
    /// bus's.
    pub async fn publish(&self, bus: impl Bus, publish: Publish) -> Result<Publication> {
        self.layer.publish(Arc::new(bus), publish).await
    }

    /// Lists the named cursors of the change stream, and how far each is behind the store.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal.
    pub fn cursors(&self) -> Result<Vec<CursorStatus>> {
        self.layer.cursors()
    }

    /// Deletes a named cursor durably: the journal keeps nothing for it any more. Returns true if there was one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal; [`ErrorKind::Locked`] if it has a subscriber; the file system's.
    pub async fn forget_cursor(&self, name: &str) -> Result<bool> {
        self.layer.forget_cursor(name).await
    }

    /// The state of a layer that follows another process; `None` if it does not.
    #[must_use]
    pub fn following(&self) -> Option<FollowStatus> {
        self.layer.follower.as_ref().map(|follower| follower.status())
    }

    /// The last sequence number that the store holds. In a layer that follows another process: the last one up to which
    /// it has carried out every change.
    #[must_use]
    pub fn watermark(&self) -> Seq {
        self.layer.watermark()
    }

    /// The last committed sequence number.
    #[must_use]
    pub fn last_committed(&self) -> Seq {
        self.layer.last_committed()
    }

    /// The number of records that are committed and not yet in the store.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.layer.health().queued_records
    }

    /// The layer's state, and the reason if it is not a good one.
    #[must_use]
    pub fn health(&self) -> Health {
        self.layer.health()
    }

    /// The layer's counters since it opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.layer.stats()
    }

    /// Exports the counters of the layer and its caches to the recorder that is installed for the
    /// [`metrics`](https://docs.rs/metrics) facade: counters as totals, and gauges as they are now.
    ///
    /// To be called before a scrape, or every few seconds. Names and units are on the manual's page
    /// [`figures`](crate::manual::figures). Costs a look-up in the recorder for each figure, some thirty for each
    /// cache; reads and writes pay nothing.
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.layer.record_metrics();
    }

    /// Lets a halted flusher try again; does nothing otherwise.
    pub fn resume(&self) {
        self.layer.resume();
    }

    /// The dead-letter list: the records that the store rejected.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetterList {
        DeadLetterList::new(Arc::clone(&self.layer))
    }

    /// The same calls for callers without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingForebay {
        BlockingForebay { inner: self.clone() }
    }
}

/// A [`Forebay`] for callers without a runtime: the same calls, errors and costs, on the calling thread.
///
/// Needs no runtime. Inside one it works, too, and blocks the thread that it is called on. Calls that do not wait are
/// on the layer itself: [`BlockingForebay::forebay`].
#[derive(Clone, Debug)]
pub struct BlockingForebay {
    inner: Forebay,
}

impl BlockingForebay {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.layer.runtime), future)
    }

    /// The layer itself, whose calls that do not wait are the same for both.
    #[must_use]
    pub fn forebay(&self) -> &Forebay {
        &self.inner
    }

    blocking_calls! { Forebay:
        fn wait_applied(seq: Seq) -> Result<()>;
        fn flush() -> Result<Seq>;
        fn close() -> Result<Closed>;
        fn close_within(deadline: Duration) -> Result<Closed>;
        fn invalidate_namespace(name: &str) -> Result<Receipt>;
        fn namespace_token(name: &str) -> Result<Seq>;
        fn invalidate_tag_everywhere(tag: &str) -> Result<Receipt>;
        fn announce_schema(name: &str, version: u8) -> Result<Receipt>;
        fn forget_cursor(name: &str) -> Result<bool>;
    }

    /// Commits a batch as [`WriteBatch::commit`], and blocks until that is done.
    ///
    /// # Errors
    /// As [`WriteBatch::commit`].
    pub fn commit(&self, batch: WriteBatch) -> Result<Receipt> {
        self.run(batch.commit())
    }

    /// Opens a change stream as [`Forebay::changes`]: an iterator whose steps block.
    ///
    /// # Errors
    /// As [`Forebay::changes`].
    pub fn changes(&self, from: impl Into<ChangesFrom>) -> Result<BlockingChangeStream> {
        self.run(self.inner.changes(from)).map(ChangeStream::blocking)
    }

    /// Publishes as [`Forebay::publish`].
    ///
    /// # Errors
    /// As [`Forebay::publish`].
    pub fn publish(&self, bus: impl Bus, publish: Publish) -> Result<BlockingPublication> {
        self.run(self.inner.publish(bus, publish)).map(Publication::blocking)
    }

    /// Replays dead letters as [`DeadLetterList::replay`], and blocks until that is done.
    ///
    /// # Errors
    /// As [`DeadLetterList::replay`].
    pub fn replay_dead_letters(&self, keys: &[Key]) -> Result<()> {
        self.run(self.inner.dead_letters().replay(keys))
    }

    /// Discards dead letters as [`DeadLetterList::discard`], and blocks until that is done.
    ///
    /// # Errors
    /// As [`DeadLetterList::discard`].
    pub fn discard_dead_letters(&self, keys: &[Key]) -> Result<()> {
        self.run(self.inner.dead_letters().discard(keys))
    }
}

#[cfg(test)]
#[cfg(not(forebay_simulation))]
mod tests {
    use super::*;
    use crate::bus::local::LocalBus;
    use crate::cache::entry::ReadOptions;
    use crate::cache::typed::Cache;
    use crate::cache::typed::derive::BlockingLoadContext;
    use crate::store::memory::MemoryStore;

    /// The blocking face lacked these six calls while it was written by hand.
    #[test]
    fn the_calls_that_the_blocking_face_lacked_do_as_the_async_ones() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Forebay::builder(MemoryStore::new()).journal(dir.path().join("journal")).changes(true);
        let bay = builder.open_blocking().unwrap();
        let prices: Cache<u64, u64> = bay.cache("prices").open().unwrap();
        let doubled: Cache<u64, u64> = bay.cache("doubled").open().unwrap();
        let sums: Cache<u64, u64> = bay.cache("sums").open().unwrap();
        let (prices, doubled, sums) = (prices.blocking(), doubled.blocking(), sums.blocking());
        let bay = bay.blocking();

        let publication = bay.publish(LocalBus::new(16), Publish::to("changes")).unwrap();
        let tag = bay.invalidate_tag_everywhere("spring").unwrap();
        let schema = bay.announce_schema("offers", 2).unwrap();
        assert!(schema.seq() > tag.seq());
        let behind = publication.seen_by_all(&["search"], schema.seq(), Duration::from_millis(1));
        assert_eq!(behind.len(), 1, "no follower of that name has reported");

        prices.put(&1, 30).unwrap();
        let sum = || {
            let (prices, doubled) = (prices.clone(), doubled.clone());
            let double = move |key: u64, context: BlockingLoadContext| {
                context.get(&prices, &key).map(|price| price.map(|price| price * 2))
            };
            let load = move |key: u64, context: BlockingLoadContext| {
                let double = context.get_or_derive(&doubled, &key, double)?;
                Ok::<Option<u64>, Error>(double.map(|double| double + 1))
            };
            sums.get_or_derive_with(&1, &ReadOptions::new(), load).unwrap().value
        };
        assert_eq!(sum(), Some(61));
        prices.put(&1, 40).unwrap();
        assert_eq!(sum(), Some(81), "a change of what was read two levels below is noticed");
        assert_eq!(bay.close().unwrap().queued, 0);
    }
}
