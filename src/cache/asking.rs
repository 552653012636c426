//! What a read asks for of a layer that follows another process, and a look at memory that is no read.

use std::time::Duration;

use crate::cache::entry::{Entry, ReadOptions};
use crate::cache::reading::entry_held;
use crate::cache::view::{CacheKey, CacheValue, TypedView};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::layer::Layer;
use crate::memory::freshness::OnUnverified;
use crate::memory::servable::{MissReason, ReadConstraints};

impl<K: CacheKey, V: CacheValue> TypedView<K, V> {
    /// What a read asks for, once the store has what it wants to see at the least.
    pub(super) async fn constraints(
        &self,
        layer: &Layer,
        options: &ReadOptions,
        has_loader: bool,
    ) -> Result<ReadConstraints> {
        let constraints = options.constraints(has_loader);
        let past_memory = match options.least() {
            Some(least) => layer.reach(least).await?,
            None => false,
        };
        let max_staleness = if past_memory { Some(Duration::ZERO) } else { constraints.max_staleness };
        Ok(ReadConstraints { max_staleness, ..constraints })
    }

    /// Whether a read may go on to the store.
    pub(super) fn check_verifiable(&self, reason: MissReason, constraints: &ReadConstraints) -> Result<()> {
        let Some(following) = self.resident.freshness().following else { return Ok(()) };
        let wanted = constraints.on_unverified.unwrap_or(following.on_unverified);
        if reason != MissReason::Unverified || wanted != OnUnverified::Fail {
            return Ok(());
        }
        let context = format!(
            "namespace {}: for {:?} or longer it could not be told whether this is current",
            self.namespace, following.lag_max
        );
        Err(Error::new(ErrorKind::Unverified, context))
    }

    /// What memory would serve.
    pub(crate) fn peek(&self, layer: &Layer, key: &K) -> Option<Entry<V>> {
        layer.catch_up();
        self.resident.peek(key, &ReadConstraints::default()).ok().map(|held| entry_held(held, None))
    }
}
