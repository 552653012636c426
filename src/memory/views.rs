//! The memories of a layer's open caches, without the types of their keys and values.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{NamespaceName, Seq};
use crate::invalidation::Invalidation;
use crate::memory::metrics::CacheStats;
use crate::memory::scope::{Scopes, StripeCounts};
use crate::memory::servable::Generation;
use crate::metrics::Counter;
use crate::safeguard::Safeguard;
use crate::seam::sync::{Mutex, MutexGuard};

/// The memory of a typed cache, as the layer sees it.
pub trait View: Any + Send + Sync {
    /// Makes everything in it unservable.
    fn invalidate_all(&self);
    /// As [`View::invalidate_all`], for the invalidation of a namespace that it is or is below of.
    fn invalidate_namespace(&self, floor: Generation);
    /// Drops a key from it, or everything if the key is of another type than its own.
    fn invalidate_key(&self, key: &AnyKey);
    /// Applies a change by another process: since that version the key has this value or, without one, an unknown
    /// value. Version zero stands for an unknown version. Key and value are encoded by the codec.
    fn changed_elsewhere(&self, key: &[u8], version: Seq, value: Option<&[u8]>);
    /// True if its keys are of this type.
    fn has_key_type(&self, key: &AnyKey) -> bool;
    /// Returns the schema version of its values.
    fn schema_version(&self) -> u8;
    /// Returns the number of reads that it answered.
    fn memory_hits(&self) -> u64;
    /// Returns its counters.
    fn stats(&self) -> CacheStats;
    /// Gives the typed view back, for a downcast.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A key of a type that is not known here.
pub type AnyKey = dyn Any + Send + Sync;

/// A target that a rule names as stale: a key in the type of its cache's keys, or any invalidation.
pub enum RuleTarget {
    /// A key of a cache. Nothing happens if the cache is not open: it has nothing in memory then.
    Key(NamespaceName, Box<AnyKey>),
    /// Anything else.
    Invalidation(Invalidation),
}

impl RuleTarget {
    /// Checks that a key is of the type of its cache's keys, if the cache is open.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub fn check(&self, views: &Views) -> Result<()> {
        let RuleTarget::Key(namespace, key) = self else { return Ok(()) };
        if views.view(namespace.as_str()).is_none_or(|view| view.has_key_type(key.as_ref())) {
            return Ok(());
        }
        let context = format!("a rule names a key of cache \"{namespace}\" that is not of that cache's type");
        Err(Error::new(ErrorKind::InvalidOption, context))
    }

    /// Makes it unservable in the memory of all open caches.
    pub fn carry_out(&self, views: &Views) {
        match self {
            RuleTarget::Key(namespace, key) => {
                if let Some(view) = views.view(namespace.as_str()) {
                    view.invalidate_key(key.as_ref());
                }
            }
            RuleTarget::Invalidation(what) => views.carry_out(what),
        }
    }
}

/// The open caches of a layer, by namespace.
#[derive(Default)]
pub struct Views {
    open: Mutex<BTreeMap<NamespaceName, Arc<dyn View>>>,
    scopes: Arc<Scopes>,
    /// The hits of caches that are not open any more.
    past_memory_hits: Counter,
}

/// A look-up of views that remembers the last one. It must not live longer than it takes to apply one message: it does
/// not see a cache that is opened meanwhile.
pub(crate) struct ViewFinder<'a> {
    views: &'a Views,
    last: Option<(&'a str, Option<Arc<dyn View>>)>,
}

impl<'a> ViewFinder<'a> {
    /// Returns the open view of a namespace.
    pub(crate) fn view(&mut self, namespace: &'a str) -> Option<&dyn View> {
        // A batch mostly names one namespace many times: its lock and map are asked once.
        let known = self.last.take().filter(|(known, _)| *known == namespace);
        let (_, view) = self.last.insert(known.unwrap_or_else(|| (namespace, self.views.view(namespace))));
        view.as_deref()
    }
}

impl Views {
    /// Makes an empty set of views, with these numbers of stripes.
    #[must_use]
    pub fn new(stripes: StripeCounts) -> Views {
        Views { scopes: Arc::new(Scopes::new(stripes)), ..Views::default() }
    }

    /// Returns the view of a namespace. Calls `make` if none is open, or if the open one has another schema and no
    /// handle.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn open(
        &self,
        namespace: &NamespaceName,
        schema_version: u8,
        make: impl FnOnce() -> Result<Arc<dyn View>>,
    ) -> Result<Arc<dyn View>> {
        // The lock ends before the replaced view is invalidated: other caches need not wait for that.
        let (view, past) = {
            let mut views = self.lock();
            // Two handles of one namespace share a view. Another schema gets a new one, once nobody holds the old one.
            if let Some(view) = views.get(namespace)
                && (view.schema_version() == schema_version || Arc::strong_count(view) > 1)
            {
                return Ok(Arc::clone(view));
            }
            // Under the lock: two openings at once would make two memories, and one would miss the other's writes.
            let view = make()?;
            let past = views.insert(namespace.clone(), Arc::clone(&view));
            // The layer's count of hits must not fall when a cache is replaced.
            self.past_memory_hits.add(past.as_ref().map_or(0, |past| past.memory_hits()));
            (view, past)
        };
        if let Some(past) = past {
            // Derived values compare its fences, which nothing moves any more.
            past.invalidate_all();
        }
        Ok(view)
    }

    /// Returns the order of the bulk invalidations of all of them.
    pub fn scopes(&self) -> &Arc<Scopes> {
        &self.scopes
    }

    /// Makes what an invalidation names unservable in all of them.
    pub fn carry_out(&self, what: &Invalidation) {
        match what {
            Invalidation::Key(key) => {
                if let Some(view) = self.view(key.namespace()) {
                    // Without a version: the key is dropped, however new the copy in memory is.
                    view.changed_elsewhere(key.key(), Seq::ZERO, None);
                }
            }
            Invalidation::Namespace(name) | Invalidation::Schema(name, _) => {
                let open = self.lock();
                // The tick is taken under the lock: a cache that is opened later holds nothing older.
                let floor = self.scopes.advance();
                for (namespace, view) in open.iter() {
                    if namespace == name || Safeguard::NamespaceBelow.holds() && namespace.is_within(name) {
                        view.invalidate_namespace(floor);
                    }
                }
            }
            // One floor serves all caches, so none of them is visited.
            Invalidation::Tag(tag) => self.scopes.invalidate(self.scopes.tag(tag)),
            Invalidation::Everything => self.invalidate_everything(),
        }
    }

    /// Makes everything in all of them unservable.
    pub fn invalidate_everything(&self) {
        self.lock().values().for_each(|view| view.invalidate_all());
    }

    /// Returns the open view of a namespace.
    pub fn view(&self, namespace: &str) -> Option<Arc<dyn View>> {
        // Cloned out: a view runs the user's hash and comparison, and other caches must not wait for those.
        self.lock().get(namespace).map(Arc::clone)
    }

    /// Returns a look-up for many namespaces that are mostly the same one.
    pub(crate) fn finder(&self) -> ViewFinder<'_> {
        ViewFinder { views: self, last: None }
    }

    /// Makes everything in a namespace's memory unservable.
    pub fn invalidate(&self, namespace: &str) {
        if let Some(view) = self.view(namespace) {
            view.invalidate_all();
        }
    }

    /// Returns the counters of each, by namespace.
    #[cfg(feature = "metrics")]
    pub fn stats(&self) -> Vec<(NamespaceName, CacheStats)> {
        self.lock().iter().map(|(name, view)| (name.clone(), view.stats())).collect()
    }

    /// Returns the number of reads answered from memory, by all caches that were ever open.
    pub fn memory_hits(&self) -> u64 {
        // Held over both sums: a cache that is replaced in between would be counted twice.
        let views = self.lock();
        let open: u64 = views.values().map(|view| view.memory_hits()).sum();
        open + self.past_memory_hits.value()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<NamespaceName, Arc<dyn View>>> {
        // A panic leaves the map as it was: a view enters it only when it is complete.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
