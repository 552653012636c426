//! Atomic writes over several keys and caches of one layer: one frame, one apply.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::cache::codec::{CacheKey, CacheValue};
use crate::cache::entry::{Receipt, WriteOptions};
use crate::cache::reading::OpenCache;
use crate::cache::rules::{self, RuledChange};
use crate::cache::typed::Cache;
use crate::cache::writing::{check_unversioned, ruled_change};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::frame::{FrameBody, FrameBuilder};
use crate::layer::layer::Layer;
use crate::options::WritePolicy;
use crate::queue::record::Record;
use crate::queue::ticket::{Effect, Effects};
use crate::seam::random::HashBuilder;

/// Writes that take effect together, or not at all. Nothing happens before [`WriteBatch::commit`].
///
/// Of several writes of one key the last one counts. The batch is written through if any of its caches is, so that each
/// cache's promise holds, unless [`WriteBatch::write_policy`] says otherwise. Made by
/// [`Forebay::batch`](crate::Forebay::batch).
///
/// ```
/// # use forebay::{Cache, Forebay, MemoryStore};
/// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
/// let stock: Cache<u64, u32> = bay.cache("stock").open()?;
/// let orders: Cache<u64, String> = bay.cache("orders").open()?;
/// let mut batch = bay.batch();
/// batch.put(&stock, &7, 11)?.put(&orders, &1, "one teapot".into())?;
/// let receipt = bay.blocking().commit(batch)?; // or `batch.commit().await`
/// assert_eq!(stock.blocking().get(&7)?, Some(11));
/// assert_eq!(bay.last_committed(), receipt.seq());
/// # Ok::<(), forebay::Error>(())
/// ```
#[must_use = "a batch does nothing until it is committed"]
pub struct WriteBatch {
    layer: Arc<Layer>,
    frame: FrameBuilder,
    /// One for each record of the frame.
    effects: Vec<Box<dyn Effect>>,
    drops: Vec<KeyDrop>,
    /// The changes that the rules of the caches are run on.
    changes: Vec<Box<dyn RuledChange>>,
    policy: Option<WritePolicy>,
    through: bool,
}

/// Drops a written key from the memory of its cache.
struct KeyDrop {
    drop_key: Box<dyn Fn() + Send>,
    /// True if the cache writes around memory, so that the key is dropped before the write, too.
    around: bool,
}

impl fmt::Debug for WriteBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBatch")
            .field("len", &self.len())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl WriteBatch {
    pub(crate) fn new(layer: Arc<Layer>) -> WriteBatch {
        WriteBatch {
            layer,
            frame: FrameBuilder::new(),
            effects: Vec::new(),
            drops: Vec::new(),
            changes: Vec::new(),
            policy: None,
            through: false,
        }
    }

    /// Adds a write of a value. Returns the batch, so that calls can be chained.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Encode`]; [`ErrorKind::InvalidOption`] if the cache belongs to another
    /// layer; [`ErrorKind::Unsupported`] if it keeps versions. The batch is unchanged then.
    pub fn put<K: CacheKey, V: CacheValue>(
        &mut self,
        cache: &Cache<K, V>,
        key: &K,
        value: V,
    ) -> Result<&mut Self> {
        self.add(&cache.open, key, Some(value))
    }

    /// Adds a removal. Returns the batch, so that calls can be chained.
    ///
    /// # Errors
    /// As [`WriteBatch::put`].
    pub fn remove<K: CacheKey, V: CacheValue>(&mut self, cache: &Cache<K, V>, key: &K) -> Result<&mut Self> {
        self.add(&cache.open, key, None)
    }

    fn add<K: CacheKey, V: CacheValue>(
        &mut self,
        cache: &OpenCache<K, V>,
        key: &K,
        value: Option<V>,
    ) -> Result<&mut Self> {
        // A frame is atomic in one journal. The record would reach this layer's store and never the cache's own.
        if !Arc::ptr_eq(&cache.layer, &self.layer) {
            let context =
                format!("cache \"{}\" and the batch belong to different layers", cache.view.namespace);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        check_unversioned(cache, "a batch would have to look at the list of versions first")?;
        // What can fail comes first, so that the batch is unchanged if it does. `encode` adds its record last.
        let change = ruled_change(cache, key, value.as_ref())?;
        let effect = cache.view.encode(&mut self.frame, key, value, &WriteOptions::new())?;
        self.changes.extend(change);
        self.effects.push(effect);
        let (policy, view, layer) = (cache.view.policy, Arc::clone(&cache.view), Arc::clone(&self.layer));
        let key = key.clone();
        let drop_key = Box::new(move || {
            // An acknowledged older write may not be in memory yet; after the drop it would come back.
            layer.catch_up();
            view.invalidate(&key);
        });
        self.drops.push(KeyDrop { drop_key, around: policy == WritePolicy::Around });
        // A batch has one policy for all its records: the cache that promises most decides.
        self.through |= policy != WritePolicy::Behind;
        Ok(self)
    }

    /// Sets when the batch is acknowledged, whatever its caches' policies are.
    ///
    /// [`WritePolicy::Around`] is as [`WritePolicy::Through`] here: whether a key stays in memory is its cache's
    /// choice.
    pub fn write_policy(&mut self, policy: WritePolicy) -> &mut Self {
        self.policy = Some(policy);
        self
    }

    /// The number of writes in the batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.effects.len()
    }

    /// True if the batch holds no writes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// Writes everything in the batch, or nothing. An empty batch changes nothing and returns the last committed
    /// number.
    ///
    /// # Errors and cancellation
    /// As [`Cache::put`].
    pub async fn commit(mut self) -> Result<Receipt> {
        // Nothing has to be written, so the receipt promises only what is committed already.
        if self.is_empty() {
            return Ok(Receipt::new(self.layer.last_committed()));
        }
        let default = if self.through { WritePolicy::Through } else { WritePolicy::Behind };
        let policy = self.policy.unwrap_or(default);
        // Only rules need the old values, and with them the locks of the keys.
        if !self.changes.is_empty() {
            let invalidation = rules::begin(&self.layer, &self.changes).await?;
            // The tokens come after the writes here, so the effects keep the places of their records.
            invalidation.push_tokens(&mut self.frame)?;
            // The last effect is never left out for a later one of its key.
            if let Some(last) = self.effects.pop() {
                self.effects.push(rules::then_invalidate(last, invalidation));
            }
        }
        // Before the write, as for a single one: if the outcome stays unknown, memory must not keep the older values.
        self.drops.iter().filter(|dropped| dropped.around).for_each(|dropped| (dropped.drop_key)());
        let body = self.frame.finish();
        let effects = Effects::Many(last_of_each_key(&body, self.effects)?);
        let written = self.layer.write(body, policy, effects).await;
        // As for a single write: memory may have values that the store has replaced.
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt) {
            self.drops.iter().for_each(|dropped| (dropped.drop_key)());
        }
        written.map(Receipt::new)
    }
}

/// Leaves out the effect of every write that a later one of the same key replaces: nobody may see a value that was
/// never in the store.
fn last_of_each_key(body: &FrameBody, effects: Vec<Box<dyn Effect>>) -> Result<Vec<Option<Box<dyn Effect>>>> {
    // By the stored bytes: the typed keys are of many types, hidden in the effects.
    let keys = body.records().map(|bytes| Record::parse(&bytes).map(|record| record.key));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let mut seen = HashSet::with_capacity_and_hasher(keys.len(), HashBuilder::default());
    // From the back: memory gets the write of a key that the store ends up with.
    let mut kept: Vec<_> = effects
        .into_iter()
        .zip(&keys)
        .rev()
        .map(|(effect, key)| seen.insert(key).then_some(effect))
        .collect();
    kept.reverse();
    Ok(kept)
}
