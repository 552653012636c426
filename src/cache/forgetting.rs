//! What makes a cache forget: one key, a version of it, a group, everything.

use std::sync::Arc;

use crate::cache::codec::check_name;
use crate::cache::group::Group;
use crate::cache::typed::Cache;
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::layer::invalidation::GROUP_BYTES_MAX;

impl<K: CacheKey, V: CacheValue> Cache<K, V> {
    /// Drops a key from memory only to make room; nothing is said about its value.
    pub fn evict(&self, key: &K) {
        self.layer.catch_up();
        self.view.resident.evict(key);
    }

    /// Drops a key from memory because its value in the store has changed: no load that began before the call
    /// will be kept, and no read that begins after it joins one. What is pending is the truth and stays.
    pub fn invalidate(&self, key: &K) {
        self.layer.catch_up();
        self.view.invalidate(key);
    }

    /// As [`Cache::invalidate`], because the store's value is now of this version: keeps what memory has if that is of
    /// this version or a newer one, and drops what is older or of an unknown version. Says whether it dropped, or
    /// would have if there had been something. Loads under way are not kept in any case: nobody knows what they saw.
    ///
    /// The same call again finds what was loaded since, so it may be repeated, and may come late.
    pub fn invalidate_version(&self, key: &K, version: Seq) -> bool {
        self.layer.catch_up();
        match self.view.resident.invalidate_version(key, version) {
            Ok(dropped) => dropped,
            Err(_) => {
                self.view.memory_failed();
                true
            }
        }
    }

    /// As [`Cache::invalidate`] for every key, present or absent, at the cost of one.
    pub fn invalidate_all(&self) {
        self.layer.catch_up();
        self.view.resident.invalidate_all();
    }

    /// The group of this name; see [`CacheBuilder::group_by`](crate::CacheBuilder::group_by).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the cache was opened without groups; [`ErrorKind::InvalidName`] if the name is
    /// empty or longer than 255 bytes.
    pub fn group(&self, name: &str) -> Result<Group> {
        if self.view.group_of.is_none() {
            let context = format!("cache \"{}\" was opened without groups", self.view.namespace);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        check_name("a group's name", name, GROUP_BYTES_MAX)?;
        Ok(Group::new(Arc::clone(&self.layer), self.view.namespace.clone(), name))
    }
}
