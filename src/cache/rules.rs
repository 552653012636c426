//! Rules: what becomes stale elsewhere when a key of a cache changes, as a pure function of the change.
//!
//! A rule gets the key, the value that the write replaces and the new one. So that the old value is exactly that,
//! writers of a key wait for each other, from the read of the old value until the write has taken effect. Everything
//! that the rule names is invalidated before the write is handed over, and again when it has taken effect.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bus::event;
use crate::cache::codec::{CacheKey, TAG_BYTES_MAX, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, NamespaceName, Seq};
use crate::invalidation::Invalidation;
use crate::layer::invalidation::PostCommitInvalidation;
use crate::layer::layer::Layer;
use crate::memory::views::{RuleTarget, Views};
use crate::queue::ticket::{Effect, Effects};
use crate::seam::future::BoxFuture;

/// The most things that one write may make stale.
const TARGETS_MAX: usize = 1024;

/// A change of one key, as rules get it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Replacement<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// The value that the write replaces; `None` if there was none.
    pub old: Option<&'a V>,
    /// The new value; `None` if the write removes the key.
    pub new: Option<&'a V>,
}

/// Collects what a change makes stale. A name that cannot be makes the write fail with [`ErrorKind::RuleFailed`].
pub struct Stale {
    targets: Vec<RuleTarget>,
    refused: Option<Error>,
}

impl fmt::Debug for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stale").field("named", &self.targets.len()).finish_non_exhaustive()
    }
}

/// A rule of a cache: names what a change makes stale.
pub(crate) type Rule<K, V> = Box<dyn Fn(&Replacement<'_, K, V>, &mut Stale) + Send + Sync>;

impl Stale {
    /// Names a key of a cache; its type has to be that of the cache's keys.
    pub fn key<K: CacheKey>(&mut self, cache: &str, key: K) {
        self.add(NamespaceName::parse(cache).map(|name| RuleTarget::Key(name, Box::new(key))));
    }

    /// Names every entry that has this tag.
    pub fn tag(&mut self, tag: &str) {
        let checked = check_name("a tag", tag, TAG_BYTES_MAX);
        self.add(checked.map(|()| RuleTarget::Invalidation(Invalidation::Tag(tag.to_owned()))));
    }

    /// Names every entry in this namespace and below it. The namespace's token is written with the change, in one
    /// frame.
    pub fn namespace(&mut self, name: &str) {
        let name = NamespaceName::parse(name);
        self.add(name.map(|name| RuleTarget::Invalidation(Invalidation::Namespace(name))));
    }

    fn add(&mut self, target: Result<RuleTarget>) {
        match target {
            // Bounded, since all of them are carried out twice while other writers of the key wait.
            Ok(target) if self.targets.len() < TARGETS_MAX => self.targets.push(target),
            Ok(_) => {
                let context = format!("a rule makes more than {TARGETS_MAX} things stale by one write");
                self.refused = Some(Error::new(ErrorKind::TooLarge, context));
            }
            // A rule returns nothing, so its error waits here until it has ended.
            Err(error) => self.refused = Some(error),
        }
    }
}

/// Wraps a user's rule on the directives of other processes: catches its panics, and checks what it names.
pub(crate) fn on_directive(
    rule: impl Fn(&event::Directive, &mut Stale) + Send + Sync + 'static,
) -> impl Fn(&event::Directive, &Views) -> Result<Vec<RuleTarget>> + Send + Sync + 'static {
    move |directive, views| {
        let mut stale = Stale { targets: Vec::new(), refused: None };
        // A panic of the user's rule must not unwind into the task that carries out a bus's events.
        let ran = catch_unwind(AssertUnwindSafe(|| rule(directive, &mut stale)));
        let failed = |context| Error::new(ErrorKind::RuleFailed, context);
        ran.map_err(|_panic| failed("a rule on directives panicked"))?;
        let checked = match stale.refused {
            Some(error) => Err(error),
            // All are checked before the first is carried out, so none is done by halves.
            None => stale.targets.iter().try_for_each(|target| target.check(views)),
        };
        let refused =
            |error: Error| error.wrap(ErrorKind::RuleFailed, "a rule on directives names what cannot be");
        checked.map_err(refused)?;
        Ok(stale.targets)
    }
}

/// Runs a cache's rules on one change, and returns what they name.
///
/// # Errors
/// [`ErrorKind::RuleFailed`] if one panics or names what cannot be.
pub(crate) fn run<K, V>(
    namespace: &NamespaceName,
    rules: &[Rule<K, V>],
    change: &Replacement<'_, K, V>,
) -> Result<Vec<RuleTarget>> {
    let mut stale = Stale { targets: Vec::new(), refused: None };
    // Nothing is written yet, so the write can still fail with an error of its own instead of unwinding.
    let ran = catch_unwind(AssertUnwindSafe(|| rules.iter().for_each(|rule| rule(change, &mut stale))));
    let failed = |context| Error::new(ErrorKind::RuleFailed, context);
    ran.map_err(|_panic| failed(format!("a rule of cache \"{namespace}\" panicked")))?;
    match stale.refused {
        None => Ok(stale.targets),
        Some(error) => {
            let context = format!("a rule of cache \"{namespace}\" names what cannot be");
            Err(error.wrap(ErrorKind::RuleFailed, context))
        }
    }
}

/// A change that is about to be written, of a cache with rules.
pub(crate) trait RuledChange: Send + Sync {
    /// The key that changes, as it is stored.
    fn stored_key(&self) -> &Key;
    /// Reads the old value and returns what becomes stale. To be called while nobody else may write the key.
    fn stale_targets(&self) -> BoxFuture<'_, Result<Vec<RuleTarget>>>;
}

/// Waits until nobody else writes these keys, as long as a write-through would, and drops what their changes make
/// stale; what is returned does so again when it is dropped, and holds the keys until then.
pub(crate) async fn begin(layer: &Layer, changes: &[Box<dyn RuledChange>]) -> Result<PostCommitInvalidation> {
    let (wait, keys) = (layer.options().through_timeout, changes.iter().map(|change| change.stored_key()));
    // Bounded: the writer before may wait for a store that is down, and this one can still fail cleanly.
    let key_guard = layer.within(wait, layer.key_locks.lock(keys)).await.ok_or_else(|| {
        let context =
            format!("another write of the key has been under way for {wait:?}; nothing was written");
        Error::new(ErrorKind::Transient, context)
    })?;
    // The keys are locked: no other write can come between the old value that a rule sees and this write.
    let mut targets = Vec::new();
    for change in changes {
        targets.extend(change.stale_targets().await?);
    }
    PostCommitInvalidation::begin(layer, targets, key_guard)
}

/// A write's effect on its own cache, followed by the invalidation of what it makes stale elsewhere.
struct EffectThenInvalidation {
    effect: Box<dyn Effect>,
    invalidation: PostCommitInvalidation,
}

impl Effect for EffectThenInvalidation {
    fn publish(self: Box<Self>, seq: Seq) {
        let EffectThenInvalidation { effect, invalidation } = *self;
        effect.publish(seq);
        // After the effect: whoever loads something derived now finds the new value.
        drop(invalidation);
    }
}

/// Makes an effect that the invalidation follows.
pub(crate) fn then_invalidate(
    effect: Box<dyn Effect>,
    invalidation: PostCommitInvalidation,
) -> Box<dyn Effect> {
    Box::new(EffectThenInvalidation { effect, invalidation })
}

/// The effects of a frame that begins with so many tokens, which have none.
pub(crate) fn after_tokens(tokens: usize, effect: Box<dyn Effect>) -> Effects {
    // Effects are matched to records by place, and the tokens have none in memory.
    let none = std::iter::repeat_with(|| None).take(tokens);
    Effects::Many(none.chain([Some(effect)]).collect())
}
