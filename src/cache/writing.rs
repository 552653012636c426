//! The way of a write from a typed value to the layer: rules, encoding, hand-over, and what memory does about it.

use crate::cache::codec::{CacheKey, CacheValue};
use crate::cache::entry::{ReadOptions, Receipt, WriteOptions};
use crate::cache::reading::OpenCache;
use crate::cache::rules::{self, Replacement, RuledChange};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Key;
use crate::journal::frame::FrameBuilder;
use crate::layer::layer::Writing;
use crate::memory::views::RuleTarget;
use crate::options::WritePolicy;
use crate::queue::key_locks::KeyGuard;
use crate::queue::ticket::Effects;
use crate::safeguard::Safeguard;
use crate::seam::future::BoxFuture;

/// A write of one key of an open cache.
pub(crate) struct KeyWrite<'a, K, V> {
    cache: &'a OpenCache<K, V>,
    key: &'a K,
    policy: WritePolicy,
}

/// A write that was handed over, or one that has to wait for the cache's rules first.
pub(crate) enum Begun<'a> {
    Now(Result<Writing>),
    Later(BoxFuture<'a, Result<Writing>>),
}

impl<'a, K: CacheKey, V: CacheValue> KeyWrite<'a, K, V> {
    pub(crate) fn new(cache: &'a OpenCache<K, V>, key: &'a K, policy: WritePolicy) -> Self {
        KeyWrite { cache, key, policy }
    }

    /// Hands the write of a value over (`None` removes), or returns the future that does so after the rules.
    ///
    /// Not a future itself: the value would be moved into it, and from there to where it is handed over.
    pub(crate) fn begin(self, value: Option<V>, options: &WriteOptions) -> Begun<'a> {
        match ruled_change(self.cache, self.key, value.as_ref()) {
            Ok(None) => {
                let mut frame = FrameBuilder::new();
                let effect = self.cache.view.encode(&mut frame, self.key, value, options);
                let begin = |effect| self.begin_frame(frame, Effects::One(effect), None);
                Begun::Now(effect.and_then(begin))
            }
            Ok(Some(change)) => {
                // The future outlives the borrow of the caller's options.
                let options = options.clone();
                Begun::Later(Box::pin(async move {
                    let OpenCache { layer, view } = self.cache;
                    let invalidation = rules::begin(layer, &[change]).await?;
                    let mut frame = FrameBuilder::new();
                    // The tokens first, so that the receipt's number is the value's version.
                    let tokens = invalidation.push_tokens(&mut frame)?;
                    let effect = view.encode(&mut frame, self.key, value, &options)?;
                    let effects = rules::after_tokens(tokens, rules::then_invalidate(effect, invalidation));
                    self.begin_frame(frame, effects, None)
                }))
            }
            Err(error) => Begun::Now(Err(error)),
        }
    }

    /// Hands a frame over in which nothing but this key's value is in memory. `key_guard` is held until the frame has
    /// ended.
    pub(crate) fn begin_frame(
        &self,
        frame: FrameBuilder,
        mut effects: Effects,
        key_guard: Option<KeyGuard>,
    ) -> Result<Writing> {
        let OpenCache { layer, view } = self.cache;
        if self.policy == WritePolicy::Around {
            // Before the write, so that memory does not keep the older value if the outcome stays unknown. The effect
            // drops the key once more, when the store has the new value.
            if Safeguard::AroundDropsBefore.holds() {
                layer.catch_up();
                view.invalidate(self.key);
            }
            if !Safeguard::AroundDropsAfter.holds() {
                effects = Effects::None;
            }
        }
        layer.begin_write(frame.finish(), self.policy, effects, key_guard)
    }
}

/// Waits for the outcome of a write of `key`.
pub(crate) async fn end<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    begun: Begun<'_>,
) -> Result<Receipt> {
    let begun = match begun {
        Begun::Now(begun) => begun,
        Begun::Later(begun) => begun.await,
    };
    let written = match begun {
        Ok(writing) => cache.layer.end_write(writing).await,
        Err(error) => Err(error),
    };
    let in_doubt = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::InDoubt);
    // Memory may have the value from before, which the store may have replaced: the next read has to ask the store.
    if in_doubt && Safeguard::DropWhatIsInDoubt.holds() {
        // First, or an older write that is not in memory yet would come back after the drop.
        cache.layer.catch_up();
        cache.view.invalidate(key);
    }
    written.map(Receipt::new)
}

/// Returns the change that the cache's rules are run on; `None` if it has no rules.
pub(crate) fn ruled_change<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    new: Option<&V>,
) -> Result<Option<Box<dyn RuledChange>>> {
    // A put without rules pays for no second encoding, no clone of its value and no lock.
    if cache.view.rules.is_empty() {
        return Ok(None);
    }
    let stored = cache.view.stored_key(key)?;
    Ok(Some(Box::new(KeyChange { cache: cache.clone(), key: key.clone(), stored, new: new.cloned() })))
}

/// An error if the cache keeps versions, saying why `what` cannot be done to it.
pub(crate) fn check_unversioned<K, V>(cache: &OpenCache<K, V>, what: &str) -> Result<()> {
    match cache.view.versions_kept {
        None => Ok(()),
        Some(_) => {
            let context = format!("cache \"{}\" keeps versions: {what}", cache.view.namespace);
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

/// One change of a cache with rules, before it is handed over.
struct KeyChange<K, V> {
    cache: OpenCache<K, V>,
    key: K,
    stored: Key,
    new: Option<V>,
}

impl<K: CacheKey, V: CacheValue> RuledChange for KeyChange<K, V> {
    fn stored_key(&self) -> &Key {
        &self.stored
    }

    fn stale_targets(&self) -> BoxFuture<'_, Result<Vec<RuleTarget>>> {
        Box::pin(async move {
            let KeyChange { cache, key, new, .. } = self;
            // Through the cache: the old value is what readers get, pending writes included, not what the store has.
            let old = cache.read(key, &ReadOptions::new(), false, || None).await?.value;
            let change = Replacement { key, old: old.as_ref(), new: new.as_ref() };
            rules::run(&cache.view.namespace, &cache.view.rules, &change)
        })
    }
}
