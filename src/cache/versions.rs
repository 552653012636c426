//! Versioned keys: the versions that an outside source gives to a value, side by side.
//!
//! Three kinds of records are kept, and change together in one frame: each version's value, the list of the versions,
//! and what a plain read finds, which is the value of the highest one. Writers of one key come one after the other,
//! from their look at the list until their frame is committed or refused, whether or not anybody still waits for it.

use std::iter;

use crate::cache::blocking::BlockingCache;
use crate::cache::codec::with_scratch;
use crate::cache::entry::WriteOptions;
use crate::cache::receipt::Receipt;
use crate::cache::typed::{Begun, Cache};
use crate::cache::view::{CacheKey, CacheValue};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::FrameBuilder;
use crate::options::WritePolicy;
use crate::queue::key_locks::KeyGuard;
use crate::queue::record::{Operation, push};
use crate::queue::ticket::Effects;
use crate::safeguard::Safeguard;

/// The most versions of a key that a cache can keep.
pub const VERSIONS_KEPT_MAX: usize = 1024;
const LIST_FORMAT: u8 = 1;

/// What became of a version that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VersionPlace {
    /// It is the highest, and what a plain read returns.
    Latest,
    /// There are higher ones; it has its own place among them.
    Behind,
    /// It was not kept: the cache keeps fewer versions than there are higher ones. Nothing was written.
    NotKept,
}

/// The proof of an acknowledged [`Cache::put_version`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VersionReceipt {
    /// Where the version has its place.
    pub place: VersionPlace,
    /// The write's place in the layer's order; none if nothing was written.
    pub seq: Option<Seq>,
}

/// The versions of one key, ascending.
///
/// Stored as a byte for the format, their count (4 bytes) and each of them (8 bytes), little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List(Vec<u64>);

impl List {
    fn parse(bytes: &[u8]) -> Option<List> {
        let (&format, rest) = bytes.split_first()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (versions, left) = rest.as_chunks::<8>();
        if format != LIST_FORMAT || count > VERSIONS_KEPT_MAX || versions.len() != count || !left.is_empty() {
            return None;
        }
        let versions: Vec<u64> = versions.iter().map(|version| u64::from_le_bytes(*version)).collect();
        versions.is_sorted_by(|a, b| a < b).then_some(List(versions))
    }

    fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.0.len()).expect("a list has at most VERSIONS_KEPT_MAX versions");
        let mut bytes = vec![LIST_FORMAT];
        bytes.extend_from_slice(&count.to_le_bytes());
        self.0.iter().for_each(|version| bytes.extend_from_slice(&version.to_le_bytes()));
        bytes
    }

    /// Gives `version` its place, and returns which it is and which versions have to go for it.
    fn take(&mut self, version: u64, kept: usize) -> (VersionPlace, Vec<u64>) {
        if let Err(at) = self.0.binary_search(&version) {
            self.0.insert(at, version);
        }
        let dropped: Vec<u64> = self.0.drain(..self.0.len().saturating_sub(kept)).collect();
        let place = match self.0.last() {
            Some(latest) if *latest == version || !Safeguard::LateVersionStaysBehind.holds() => {
                VersionPlace::Latest
            }
            _ if dropped.contains(&version) => VersionPlace::NotKept,
            _ => VersionPlace::Behind,
        };
        (place, dropped)
    }
}

impl<K: CacheKey, V: CacheValue> Cache<K, V> {
    /// Puts one version of a key's value, where `version` is a number of the source's own: higher is later.
    ///
    /// Of a cache with [`versions_kept`](crate::CacheBuilder::versions_kept). The versions may come in any order: a
    /// plain [`Cache::get`] returns the highest one that ever came and is kept. The same version put again replaces
    /// that version's value, so delivering it twice does no harm. Written under the cache's policy, in one atomic
    /// frame, and acknowledged as [`Cache::put`] is. Costs a load of the key's list of versions, and writes the value
    /// once, or twice if it is the latest.
    ///
    /// Dropping the future leaves the write wholly done or not done at all. Writers of one key come one after the
    /// other.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore, VersionPlace};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// let prices: Cache<u64, u32> = bay.cache("prices").versions_kept(3).open()?;
    /// let prices = prices.blocking();
    /// prices.put_version(&7, 42, 3_490)?;
    /// let late = prices.put_version(&7, 41, 2_990)?;
    /// assert_eq!(late.place, VersionPlace::Behind);
    /// assert_eq!(prices.get(&7)?, Some(3_490));
    /// assert_eq!(prices.get_version(&7, 41)?, Some(2_990));
    /// assert_eq!(prices.versions(&7)?, [41, 42]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::put`]; [`ErrorKind::Unsupported`] if the cache keeps no versions; [`ErrorKind::Decode`] if the
    /// list of versions is unreadable; [`ErrorKind::Transient`] if, written through, it waited for another writer of
    /// the key for longer than [`through_timeout`](crate::Builder::through_timeout): not written.
    pub async fn put_version(&self, key: &K, version: u64, value: V) -> Result<VersionReceipt> {
        let stored = self.view.stored_key(key)?;
        let (key_guard, mut list) = self.begin_version(&stored, self.view.policy).await?;
        let (place, dropped) = list.take(version, self.versioned()?);
        if place == VersionPlace::NotKept {
            return Ok(VersionReceipt { place, seq: None });
        }
        let (mut frame, coalesce) = (FrameBuilder::new(), self.view.coalesce);
        push(&mut frame, Operation::Put, coalesce, stored.version_list()?.as_bytes(), &list.encode())?;
        let version = stored.version(version)?;
        with_scratch(|_, encoded| {
            self.view.coder.value(&value, &[], encoded)?;
            push(&mut frame, Operation::Put, coalesce, version.as_bytes(), encoded)
        })?;
        for dropped in dropped {
            push(&mut frame, Operation::Remove, coalesce, stored.version(dropped)?.as_bytes(), &[])?;
        }
        let value = (place == VersionPlace::Latest).then_some(Some(value));
        let receipt = self.end_version(key, value, frame, self.view.policy, key_guard).await?;
        Ok(VersionReceipt { place, seq: Some(receipt.seq()) })
    }

    /// One version of a key's value; `None` if there is no such version, or no longer. Costs a load of what is pending
    /// or of the store each time: memory keeps the latest version alone.
    ///
    /// # Errors
    /// As [`Cache::get`]; [`ErrorKind::Unsupported`] if the cache keeps no versions.
    pub async fn get_version(&self, key: &K, version: u64) -> Result<Option<V>> {
        self.versioned()?;
        let stored = self.view.stored_key(key)?.version(version)?;
        let found = self.layer.reads().load(&stored).await?.value;
        found.map(|found| self.view.coder.decode(&found.value).map(|decoded| decoded.value)).transpose()
    }

    /// Which versions of a key's value there are, ascending. Costs a load.
    ///
    /// # Errors
    /// As [`Cache::get_version`]; [`ErrorKind::Decode`] if the list is unreadable.
    pub async fn versions(&self, key: &K) -> Result<Vec<u64>> {
        self.versioned()?;
        Ok(self.version_list(&self.view.stored_key(key)?).await?.0)
    }

    /// Removes a key with all its versions.
    pub(crate) async fn remove_versions(&self, key: &K, policy: WritePolicy) -> Result<Receipt> {
        let stored = self.view.stored_key(key)?;
        let (key_guard, list) = self.begin_version(&stored, policy).await?;
        let mut frame = FrameBuilder::new();
        for version in list.0 {
            let version = stored.version(version)?;
            push(&mut frame, Operation::Remove, self.view.coalesce, version.as_bytes(), &[])?;
        }
        push(&mut frame, Operation::Remove, self.view.coalesce, stored.version_list()?.as_bytes(), &[])?;
        self.end_version(key, Some(None), frame, policy, key_guard).await
    }

    /// Waits for its turn among the writers of the key, and looks which versions there are.
    async fn begin_version(&self, stored: &Key, policy: WritePolicy) -> Result<(KeyGuard, List)> {
        self.versioned()?;
        let begun = async {
            let key_guard = self.layer.key_locks.lock(iter::once(stored)).await;
            Ok((key_guard, self.version_list(stored).await?))
        };
        if policy == WritePolicy::Behind {
            return begun.await;
        }
        // A writer before this one may wait for the store without an end.
        let timeout = self.layer.options().through_timeout;
        self.layer.within(timeout, begun).await.unwrap_or_else(|| {
            let context = format!(
                "another write of the key was still under way after {timeout:?}; nothing was written"
            );
            Err(Error::new(ErrorKind::Transient, context))
        })
    }

    /// Writes what changes in the versions, and in what a plain read finds if it does.
    async fn end_version(
        &self,
        key: &K,
        value: Option<Option<V>>,
        mut frame: FrameBuilder,
        policy: WritePolicy,
        key_guard: KeyGuard,
    ) -> Result<Receipt> {
        let mut effects = Effects::None;
        if let Some(value) = value {
            let beside = frame.len();
            let options = WriteOptions::from(policy);
            let effect = self.view.encode(&mut frame, key, value, &options)?;
            // Only a plain read's value is in memory.
            let none = (0..beside).map(|_| None);
            effects = Effects::Many(none.chain([Some(effect)]).collect());
        }
        let (key_guard, _of_this_future) = match Safeguard::VersionsHeldToTheEnd.holds() {
            true => (Some(key_guard), None),
            false => (None, Some(key_guard)),
        };
        let begun = self.begin_frame(key, frame, policy, effects, key_guard);
        self.end_write(key, Begun::Now(begun)).await
    }

    async fn version_list(&self, stored: &Key) -> Result<List> {
        let Some(found) = self.layer.reads().load(&stored.version_list()?).await?.value else {
            return Ok(List::default());
        };
        List::parse(&found.value).ok_or_else(|| {
            Error::new(ErrorKind::Decode, format!("the list of the versions of {stored} is unreadable"))
        })
    }

    /// An error if the cache keeps versions: what has none cannot be put there.
    pub(crate) fn check_unversioned(&self, what: &str) -> Result<()> {
        match self.view.versions_kept {
            None => Ok(()),
            Some(_) => {
                let context = format!("cache \"{}\" keeps versions: {what}", self.view.namespace);
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
    }

    /// How many versions the cache keeps.
    fn versioned(&self) -> Result<usize> {
        self.view.versions_kept.ok_or_else(|| {
            let context = format!("cache \"{}\" was opened without versions_kept", self.view.namespace);
            Error::new(ErrorKind::Unsupported, context)
        })
    }
}

impl<K: CacheKey, V: CacheValue> BlockingCache<K, V> {
    /// See [`Cache::put_version`].
    ///
    /// # Errors
    /// As there.
    pub fn put_version(&self, key: &K, version: u64, value: V) -> Result<VersionReceipt> {
        self.run(self.cache().put_version(key, version, value))
    }

    /// See [`Cache::get_version`].
    ///
    /// # Errors
    /// As there.
    pub fn get_version(&self, key: &K, version: u64) -> Result<Option<V>> {
        self.run(self.cache().get_version(key, version))
    }

    /// See [`Cache::versions`].
    ///
    /// # Errors
    /// As there.
    pub fn versions(&self, key: &K) -> Result<Vec<u64>> {
        self.run(self.cache().versions(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_the_highest_and_says_what_goes() {
        let mut list = List::default();
        assert_eq!(list.take(5, 2), (VersionPlace::Latest, vec![]));
        assert_eq!(list.take(3, 2), (VersionPlace::Behind, vec![]));
        assert_eq!(list.take(3, 2), (VersionPlace::Behind, vec![]));
        assert_eq!(list.take(2, 2), (VersionPlace::NotKept, vec![2]));
        assert_eq!(list.take(4, 2), (VersionPlace::Behind, vec![3]));
        assert_eq!(list.take(u64::MAX, 1), (VersionPlace::Latest, vec![4, 5]));
        assert_eq!(list.0, [u64::MAX]);
    }

    #[test]
    fn bytes_that_are_no_list_are_told() {
        let list = List(vec![1, 7, u64::MAX]);
        let bytes = list.encode();
        assert_eq!(List::parse(&bytes), Some(list));
        for cut in 0..bytes.len() {
            assert_eq!(List::parse(&bytes[..cut]), None);
        }
        let unsorted = List(vec![7, 7]).encode();
        let long = [&[LIST_FORMAT][..], &u32::MAX.to_le_bytes(), &[0; 16]].concat();
        let newer = [&[LIST_FORMAT + 1], &bytes[1..]].concat();
        for bad in [unsorted, long, newer, [&bytes[..], &[0]].concat()] {
            assert_eq!(List::parse(&bad), None, "{bad:?}");
        }
    }
}
