//! How keys leave a cache's memory, or get another value, because something changed elsewhere.

use std::hash::{BuildHasher, Hash};

use crate::ids::Seq;
use crate::memory::entry::{Entry, EntryMetadata, EntryOverrides};
use crate::memory::metrics::EvictionCause;
use crate::memory::resident::{MemoryFailed, Resident};
use crate::safeguard::Safeguard;

impl<K: Hash + Eq + Clone, V: Clone> Resident<K, V> {
    /// Drops `key` from memory, and makes every load of it that is under way lose.
    ///
    /// # Errors
    /// [`MemoryFailed`]; then the key, with all others, is unservable as well.
    pub fn invalidate(&self, key: &K) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            if !self.entries.contains_key(key) && !Safeguard::FenceForAbsentKeys.holds() {
                return;
            }
            self.fences.change(self.hasher.hash_one(key), || {
                self.evictions.add(EvictionCause::Invalidated, u64::from(self.entries.remove(key).is_some()));
            });
        })
    }

    /// As [`Resident::invalidate`], but keeps what memory holds if that is this version or a newer one; says whether it
    /// was not. Loads under way lose in any case: nobody knows what they have seen.
    ///
    /// # Errors
    /// As [`Resident::invalidate`].
    pub fn invalidate_version(&self, key: &K, version: Seq) -> Result<bool, MemoryFailed> {
        self.guarded(|| {
            self.fences.change(self.hasher.hash_one(key), || {
                let there = self.inspect(key, |_| {}).filter(|there| self.is_current(there));
                let proven =
                    there.is_some_and(|there| there.version() > Seq::ZERO && there.version() >= version);
                if !proven {
                    self.evictions
                        .add(EvictionCause::Invalidated, u64::from(self.entries.remove(key).is_some()));
                }
                !proven
            })
        })
    }

    /// Takes in that a key has this value since this version. Only what memory holds is replaced: what nobody reads
    /// here is not brought in. Loads under way lose.
    ///
    /// This may come late, when a newer version, or a removal, has been heard of already. What is current and of an
    /// older version proves that it has not; where memory holds nothing like that, the key is dropped.
    ///
    /// # Errors
    /// As [`Resident::invalidate`].
    pub fn apply_remote_change(
        &self,
        key: &K,
        value: V,
        version: Seq,
        overrides: EntryOverrides,
    ) -> Result<(), MemoryFailed> {
        self.guarded(|| {
            let weight = self.weight(key, &value);
            // When it was written nobody says; not before everything was heard of that had happened by then.
            let since = self.fences.scopes().verified();
            let (share, extra) = (self.share(), self.extra(overrides, since));
            self.fences.change(self.hasher.hash_one(key), || {
                let Some(there) = self.inspect(key, |_| {}) else { return };
                // Neither an absence nor what a loader brought has a version.
                if !self.is_current(&there) || there.version() == Seq::ZERO {
                    self.evictions
                        .add(EvictionCause::Invalidated, u64::from(self.entries.remove(key).is_some()));
                    return;
                }
                if there.version() >= version {
                    return;
                }
                let generation = self.fences.scopes().now();
                let (took_us, of_loader) = (0, false);
                let about = EntryMetadata { version, generation, since, weight, took_us, share, of_loader };
                self.entries.insert(key.clone(), Entry::new(Some(value), &about, extra));
            });
        })
    }

    /// Drops everything, at a cost that does not depend on how much there is.
    pub fn invalidate_all(&self) {
        self.fences.change_all();
    }

    /// Drops `key` from memory only to make room: nothing has changed, so loads under way may land.
    pub fn evict(&self, key: &K) {
        self.evictions.add(EvictionCause::Called, u64::from(self.entries.remove(key).is_some()));
    }
}
