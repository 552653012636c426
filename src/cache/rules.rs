//! Rules: what becomes stale elsewhere when a key of a cache changes, as a pure function of the change.
//!
//! A rule gets the key, the value that the write replaces and the new one. So that the old value is exactly that,
//! writers of a key wait for each other, from the read of the old value until the write has taken effect. Everything
//! that the rule names is invalidated before the write is handed over, and again when it has taken effect.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::bus::event;
use crate::cache::codec::{CacheKey, TAG_BYTES_MAX, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, NamespaceName, Seq};
use crate::layer::invalidation::{Aftermath, Directive};
use crate::layer::layer::Layer;
use crate::memory::scope::Scopes;
use crate::memory::views::Views;
use crate::queue::ticket::{Effect, Effects};
use crate::store::contract::BoxFuture;

/// The most things that one write may make stale.
const DIRECTIVES_MAX: usize = 1024;

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
    directives: Vec<Directive>,
    scopes: Arc<Scopes>,
    refused: Option<Error>,
}

impl fmt::Debug for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stale").field("named", &self.directives.len()).finish_non_exhaustive()
    }
}

/// A rule of a cache: names what a change makes stale.
pub(crate) type Rule<K, V> = Box<dyn Fn(&Replacement<'_, K, V>, &mut Stale) + Send + Sync>;

impl Stale {
    /// Names a key of a cache; its type has to be that of the cache's keys.
    pub fn key<K: CacheKey>(&mut self, cache: &str, key: K) {
        self.add(NamespaceName::parse(cache).map(|name| Directive::Key(name, Box::new(key))));
    }

    /// Names every entry that has this tag.
    pub fn tag(&mut self, tag: &str) {
        let scope = check_name("a tag", tag, TAG_BYTES_MAX).map(|()| self.scopes.tag(tag));
        self.add(scope.map(Directive::Scope));
    }

    /// Names every entry in this namespace and below it. The namespace's token is written with the change, in one
    /// frame.
    pub fn namespace(&mut self, name: &str) {
        self.add(NamespaceName::parse(name).map(Directive::Namespace));
    }

    fn add(&mut self, directive: Result<Directive>) {
        match directive {
            // Bounded, since all of them are carried out twice while other writers of the key wait.
            Ok(directive) if self.directives.len() < DIRECTIVES_MAX => self.directives.push(directive),
            Ok(_) => {
                let context = format!("a rule makes more than {DIRECTIVES_MAX} things stale by one write");
                self.refused = Some(Error::new(ErrorKind::TooLarge, context));
            }
            Err(error) => self.refused = Some(error),
        }
    }
}

/// Wraps a user's rule on the directives of other processes: catches its panics, and checks what it names.
pub(crate) fn on_directive(
    rule: impl Fn(&event::Directive, &mut Stale) + Send + Sync + 'static,
) -> impl Fn(&event::Directive, &Views) -> Result<Vec<Directive>> + Send + Sync + 'static {
    move |directive, views| {
        let scopes = Arc::clone(views.scopes());
        let mut stale = Stale { directives: Vec::new(), scopes, refused: None };
        let ran = catch_unwind(AssertUnwindSafe(|| rule(directive, &mut stale)));
        let failed = |context| Error::new(ErrorKind::RuleFailed, context);
        ran.map_err(|_panic| failed("a rule on directives panicked"))?;
        let checked = match stale.refused {
            Some(error) => Err(error),
            None => stale.directives.iter().try_for_each(|directive| directive.check(views)),
        };
        let refused =
            |error: Error| error.wrap(ErrorKind::RuleFailed, "a rule on directives names what cannot be");
        checked.map_err(refused)?;
        Ok(stale.directives)
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
    views: &Views,
) -> Result<Vec<Directive>> {
    let scopes = Arc::clone(views.scopes());
    let mut stale = Stale { directives: Vec::new(), scopes, refused: None };
    let ran = catch_unwind(AssertUnwindSafe(|| rules.iter().for_each(|rule| rule(change, &mut stale))));
    let failed = |context| Error::new(ErrorKind::RuleFailed, context);
    ran.map_err(|_panic| failed(format!("a rule of cache \"{namespace}\" panicked")))?;
    match stale.refused {
        None => Ok(stale.directives),
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
    fn directives(&self) -> BoxFuture<'_, Result<Vec<Directive>>>;
}

/// Waits until nobody else writes these keys, as long as a write-through would, and drops what their changes make
/// stale; what is returned does so again when it is dropped, and holds the keys until then.
pub(crate) async fn begin(layer: &Layer, changes: &[Box<dyn RuledChange>]) -> Result<Aftermath> {
    let (wait, keys) = (layer.options().through_timeout, changes.iter().map(|change| change.stored_key()));
    let key_guard = layer.within(wait, layer.key_locks.lock(keys)).await.ok_or_else(|| {
        let context =
            format!("another write of the key has been under way for {wait:?}; nothing was written");
        Error::new(ErrorKind::Transient, context)
    })?;
    // The keys are locked: no other write can come between the old value that a rule sees and this write.
    let mut directives = Vec::new();
    for change in changes {
        directives.extend(change.directives().await?);
    }
    Aftermath::begin(layer, directives, key_guard)
}

/// A write's effect on its own cache, followed by the invalidation of what it makes stale elsewhere.
struct EffectThenInvalidation {
    effect: Box<dyn Effect>,
    aftermath: Aftermath,
}

impl Effect for EffectThenInvalidation {
    fn publish(self: Box<Self>, seq: Seq) {
        let EffectThenInvalidation { effect, aftermath } = *self;
        effect.publish(seq);
        // After the effect: whoever loads something derived now finds the new value.
        drop(aftermath);
    }
}

/// Makes an effect that the invalidation follows.
pub(crate) fn then_invalidate(effect: Box<dyn Effect>, aftermath: Aftermath) -> Box<dyn Effect> {
    Box::new(EffectThenInvalidation { effect, aftermath })
}

/// The effects of a frame that begins with so many tokens, which have none.
pub(crate) fn after_tokens(tokens: usize, effect: Box<dyn Effect>) -> Effects {
    let none = std::iter::repeat_with(|| None).take(tokens);
    Effects::Many(none.chain([Some(effect)]).collect())
}
