//! The caches' memories as the engine knows them: without their types.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::error::Result;
use crate::ids::{NamespaceName, Seq};
use crate::memory::metrics::CacheStats;
use crate::memory::scope::Scopes;
use crate::memory::servable::Generation;
use crate::metrics::Counter;
use crate::seam::sync::{Mutex, MutexGuard};

/// The memory of a typed cache, as far as the engine needs to know it.
pub trait View: Any + Send + Sync {
    /// Makes everything in it unservable.
    fn invalidate_all(&self);
    /// The same, because a namespace that it is or is below of was invalidated.
    fn invalidate_namespace(&self, floor: Generation);
    /// Drops a key from it, or everything if the key is of another type than its own.
    fn invalidate_key(&self, key: &AnyKey);
    /// Takes in that another process has changed a key: since that version it may have another value, or has this one.
    /// Of version zero nobody knows since when. All as the codec encodes it.
    fn changed_elsewhere(&self, key: &[u8], version: Seq, value: Option<&[u8]>);
    /// Whether it has keys of this type.
    fn has_key_type(&self, key: &AnyKey) -> bool;
    /// Which schema its values have.
    fn schema_version(&self) -> u8;
    /// How many reads it answered.
    fn memory_hits(&self) -> u64;
    /// What it has counted.
    fn stats(&self) -> CacheStats;
    /// For going back to the type.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A key of a cache whose type is not known here.
pub type AnyKey = dyn Any + Send + Sync;

/// The open caches of a layer, by namespace.
#[derive(Default)]
pub struct Views {
    open: Mutex<BTreeMap<NamespaceName, Arc<dyn View>>>,
    scopes: Arc<Scopes>,
    /// What the reads of those counted that are not open any more.
    past_memory_hits: Counter,
}

/// Looks up views, and knows the one that it looked up last. It is not to live longer than it takes to carry out what
/// has come: a cache that is opened meanwhile is not seen by it.
pub(crate) struct ViewFinder<'a> {
    views: &'a Views,
    last: Option<(&'a str, Option<Arc<dyn View>>)>,
}

impl<'a> ViewFinder<'a> {
    /// The open view of a namespace.
    pub(crate) fn view(&mut self, namespace: &'a str) -> Option<&dyn View> {
        let known = self.last.take().filter(|(known, _)| *known == namespace);
        let (_, view) = self.last.insert(known.unwrap_or_else(|| (namespace, self.views.view(namespace))));
        view.as_deref()
    }
}

impl Views {
    /// The view of a namespace, made by `make` if it is not open yet, or is with another schema and nobody has it.
    ///
    /// # Errors
    /// What `make` says.
    pub fn open(
        &self,
        namespace: &NamespaceName,
        schema_version: u8,
        make: impl FnOnce() -> Result<Arc<dyn View>>,
    ) -> Result<Arc<dyn View>> {
        let (view, past) = {
            let mut views = self.lock();
            if let Some(view) = views.get(namespace)
                && (view.schema_version() == schema_version || Arc::strong_count(view) > 1)
            {
                return Ok(Arc::clone(view));
            }
            let view = make()?;
            let past = views.insert(namespace.clone(), Arc::clone(&view));
            self.past_memory_hits.add(past.as_ref().map_or(0, |past| past.memory_hits()));
            (view, past)
        };
        if let Some(past) = past {
            // What was derived from it hangs on its fences, which nobody moves any more.
            past.invalidate_all();
        }
        Ok(view)
    }

    /// What orders the bulk invalidations of all of them.
    pub fn scopes(&self) -> &Arc<Scopes> {
        &self.scopes
    }

    /// Makes everything in all of them unservable.
    pub fn invalidate_everything(&self) {
        self.lock().values().for_each(|view| view.invalidate_all());
    }

    /// The open view of a namespace.
    pub fn view(&self, namespace: &str) -> Option<Arc<dyn View>> {
        self.lock().get(namespace).map(Arc::clone)
    }

    /// For looking up the views of many namespaces that are mostly the same one.
    pub(crate) fn finder(&self) -> ViewFinder<'_> {
        ViewFinder { views: self, last: None }
    }

    /// Makes everything in a namespace's memory unservable.
    pub fn invalidate(&self, namespace: &str) {
        if let Some(view) = self.view(namespace) {
            view.invalidate_all();
        }
    }

    /// What each of them has counted, by namespace.
    #[cfg(feature = "metrics")]
    pub fn stats(&self) -> Vec<(NamespaceName, CacheStats)> {
        self.lock().iter().map(|(name, view)| (name.clone(), view.stats())).collect()
    }

    /// How many reads were answered from memory.
    pub fn memory_hits(&self) -> u64 {
        let views = self.lock();
        let open: u64 = views.values().map(|view| view.memory_hits()).sum();
        open + self.past_memory_hits.value()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<NamespaceName, Arc<dyn View>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
