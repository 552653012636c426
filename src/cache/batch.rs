//! Atomic writes over several keys and caches of one layer: one frame, one apply.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cache::receipt::Receipt;
use crate::cache::rules::{self, RuledChange};
use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::{ErrorKind, Result};
use crate::journal::frame::{FrameBody, FrameBuilder};
use crate::layer::layer::Layer;
use crate::options::WritePolicy;
use crate::queue::record::Record;
use crate::queue::ticket::{Effect, Effects};
use crate::seam::random::HashBuilder;

/// Writes that take effect together. Nothing happens before [`WriteBatch::commit`].
///
/// Of several writes of one key the last one counts. The batch is written through if any of its caches is, so
/// that each cache's promise holds, unless [`WriteBatch::write_policy`] says otherwise.
#[must_use = "a batch does nothing until it is committed"]
pub struct WriteBatch {
    layer: Arc<Layer>,
    frame: FrameBuilder,
    effects: Vec<Box<dyn Effect>>,
    /// What drops each key from memory if the outcome stays unknown, and whether it is dropped before the write, too.
    drops: Vec<(Box<dyn Fn() + Send>, bool)>,
    /// What the rules of the caches have to be told.
    changes: Vec<Box<dyn RuledChange>>,
    policy: Option<WritePolicy>,
    through: bool,
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

    /// Adds a write of a value.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Encode`]; [`ErrorKind::InvalidOption`] if the cache belongs to
    /// another layer; [`ErrorKind::Unsupported`] if it keeps versions. The batch is as it was then.
    pub fn put<K: CacheKey, V: CacheValue>(
        &mut self,
        cache: &Cache<K, V>,
        key: &K,
        value: V,
    ) -> Result<&mut Self> {
        cache.add_to(self, key, Some(value))?;
        Ok(self)
    }

    /// Adds a removal.
    ///
    /// # Errors
    /// As [`WriteBatch::put`].
    pub fn remove<K: CacheKey, V: CacheValue>(&mut self, cache: &Cache<K, V>, key: &K) -> Result<&mut Self> {
        cache.add_to(self, key, None)?;
        Ok(self)
    }

    /// Sets when the batch is acknowledged, whatever its caches' policies are; [`WritePolicy::Around`] is as
    /// [`WritePolicy::Through`] here, since whether a key stays in memory is its cache's choice.
    pub fn write_policy(&mut self, policy: WritePolicy) -> &mut Self {
        self.policy = Some(policy);
        self
    }

    /// How many writes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.effects.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// Writes all of it, or nothing. An empty batch changes nothing and returns the last committed number.
    ///
    /// # Errors and cancellation
    /// As [`Cache::put`].
    pub async fn commit(mut self) -> Result<Receipt> {
        if self.is_empty() {
            return Ok(Receipt::new(self.layer.last_committed()));
        }
        let default = if self.through { WritePolicy::Through } else { WritePolicy::Behind };
        let policy = self.policy.unwrap_or(default);
        if !self.changes.is_empty() {
            let aftermath = rules::begin(&self.layer, &self.changes).await?;
            aftermath.push_tokens(&mut self.frame)?;
            // No other effect comes after the last one, or instead of it.
            if let Some(last) = self.effects.pop() {
                self.effects.push(rules::then_invalidate(last, aftermath));
            }
        }
        self.drops.iter().filter(|(_, before)| *before).for_each(|(drop, _)| drop());
        let body = self.frame.finish();
        let effects = Effects::Many(last_of_each_key(&body, self.effects)?);
        let written = self.layer.write(body, policy, effects).await;
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt) {
            self.drops.iter().for_each(|(drop, _)| drop());
        }
        written.map(Receipt::new)
    }

    pub(crate) fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    pub(crate) fn changes(&mut self, change: Option<Box<dyn RuledChange>>) {
        self.changes.extend(change);
    }

    pub(crate) fn frame(&mut self) -> &mut FrameBuilder {
        &mut self.frame
    }

    pub(crate) fn added(&mut self, effect: Box<dyn Effect>, policy: WritePolicy, drop: Box<dyn Fn() + Send>) {
        self.effects.push(effect);
        self.drops.push((drop, policy == WritePolicy::Around));
        self.through |= policy != WritePolicy::Behind;
    }
}

/// The effects, without those that a later one of the same key replaces.
fn last_of_each_key(body: &FrameBody, effects: Vec<Box<dyn Effect>>) -> Result<Vec<Option<Box<dyn Effect>>>> {
    let keys = body.records().map(|bytes| Record::parse(&bytes).map(|record| record.key));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let mut seen = HashSet::with_capacity_and_hasher(keys.len(), HashBuilder::default());
    let mut kept: Vec<_> = effects
        .into_iter()
        .zip(&keys)
        .rev()
        .map(|(effect, key)| seen.insert(key).then_some(effect))
        .collect();
    kept.reverse();
    Ok(kept)
}
