//! Versioned keys: the versions that an outside source gives to a value, side by side.
//!
//! Three kinds of records are kept, and change together in one frame: each version's value, the list of the versions,
//! and the plain value, which is that of the highest version. Writers of one key are serialised by the layer's key
//! locks, from their look at the list until their frame is committed or refused, whether or not anybody still waits for
//! it.

use std::iter;

use crate::cache::codec::{CacheKey, CacheValue, with_scratch};
use crate::cache::entry::{Receipt, WriteOptions};
use crate::cache::reading::OpenCache;
use crate::cache::writing::{self, Begun, KeyWrite};
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

/// The proof of an acknowledged [`Cache::put_version`](crate::Cache::put_version): where the version stands among the
/// key's versions, and the write's place in the layer's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VersionReceipt {
    /// The version is the highest: a plain read returns it.
    Latest(Seq),
    /// There are higher versions; it was kept below them.
    Behind(Seq),
    /// It was not kept: the cache keeps fewer versions than there are higher ones. Nothing was written.
    NotKept,
}

impl VersionReceipt {
    /// Returns the write's place in the layer's order; none if nothing was written.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        match self {
            VersionReceipt::Latest(seq) | VersionReceipt::Behind(seq) => Some(*seq),
            VersionReceipt::NotKept => None,
        }
    }
}

/// Where a version stands among the key's versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VersionPlace {
    Latest,
    Behind,
    NotKept,
}

/// The versions of one key, ascending.
///
/// Stored as a byte for the format, their count (4 bytes) and each of them (8 bytes), little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct VersionList(Vec<u64>);

impl VersionList {
    fn parse(bytes: &[u8]) -> Option<VersionList> {
        let (&format, rest) = bytes.split_first()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (versions, left) = rest.as_chunks::<8>();
        // A damaged list must not pass for a shorter one: the next write would orphan the versions that it lacks.
        if format != LIST_FORMAT || count > VERSIONS_KEPT_MAX || versions.len() != count || !left.is_empty() {
            return None;
        }
        let versions: Vec<u64> = versions.iter().map(|version| u64::from_le_bytes(*version)).collect();
        // `take` searches by halving, and each version has one record.
        versions.is_sorted_by(|a, b| a < b).then_some(VersionList(versions))
    }

    fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.0.len()).expect("a list has at most VERSIONS_KEPT_MAX versions");
        let mut bytes = vec![LIST_FORMAT];
        bytes.extend_from_slice(&count.to_le_bytes());
        self.0.iter().for_each(|version| bytes.extend_from_slice(&version.to_le_bytes()));
        bytes
    }

    /// Adds `version`, and returns where it stands and which versions have to be removed to keep `kept` of them.
    fn take(&mut self, version: u64, kept: usize) -> (VersionPlace, Vec<u64>) {
        // A version that is put again replaces its value and is not listed twice.
        if let Err(at) = self.0.binary_search(&version) {
            self.0.insert(at, version);
        }
        let dropped: Vec<u64> = self.0.drain(..self.0.len().saturating_sub(kept)).collect();
        let place = match self.0.last() {
            // A version that comes late must not replace the plain value.
            Some(latest) if *latest == version || !Safeguard::LateVersionStaysBehind.holds() => {
                VersionPlace::Latest
            }
            _ if dropped.contains(&version) => VersionPlace::NotKept,
            _ => VersionPlace::Behind,
        };
        (place, dropped)
    }
}

/// Puts one version of a key's value: its record, the list of versions, and, if it is the latest, the plain value.
pub(crate) async fn put<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    version: u64,
    value: V,
) -> Result<VersionReceipt> {
    let view = &cache.view;
    let stored = view.stored_key(key)?;
    let (key_guard, mut list) = begin(cache, &stored, view.policy).await?;
    let (place, dropped) = list.take(version, kept(cache)?);
    // The versions that are kept are as before, so there is nothing to write.
    if place == VersionPlace::NotKept {
        return Ok(VersionReceipt::NotKept);
    }
    let (mut frame, coalesce) = (FrameBuilder::new(), view.coalesce);
    push(&mut frame, Operation::Put, coalesce, stored.version_list()?.as_bytes(), &list.encode())?;
    let version = stored.version(version)?;
    with_scratch(|_, encoded| {
        view.coder.value(&value, &[], encoded)?;
        push(&mut frame, Operation::Put, coalesce, version.as_bytes(), encoded)
    })?;
    for dropped in dropped {
        push(&mut frame, Operation::Remove, coalesce, stored.version(dropped)?.as_bytes(), &[])?;
    }
    let is_latest = place == VersionPlace::Latest;
    let plain = is_latest.then_some(Some(value));
    let seq = end(cache, key, plain, frame, view.policy, key_guard).await?.seq();
    Ok(if is_latest { VersionReceipt::Latest(seq) } else { VersionReceipt::Behind(seq) })
}

/// Reads one version of a key's value.
pub(crate) async fn get<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    version: u64,
) -> Result<Option<V>> {
    kept(cache)?;
    let stored = cache.view.stored_key(key)?.version(version)?;
    let found = cache.layer.reads().load(&stored).await?.value;
    found.map(|found| cache.view.coder.decode(&found.value).map(|decoded| decoded.value)).transpose()
}

/// Lists a key's versions, ascending.
pub(crate) async fn list<K: CacheKey, V: CacheValue>(cache: &OpenCache<K, V>, key: &K) -> Result<Vec<u64>> {
    kept(cache)?;
    Ok(read_list(cache, &cache.view.stored_key(key)?).await?.0)
}

/// Removes a key with all its versions.
pub(crate) async fn remove<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    policy: WritePolicy,
) -> Result<Receipt> {
    let (stored, coalesce) = (cache.view.stored_key(key)?, cache.view.coalesce);
    let (key_guard, list) = begin(cache, &stored, policy).await?;
    let mut frame = FrameBuilder::new();
    for version in list.0 {
        push(&mut frame, Operation::Remove, coalesce, stored.version(version)?.as_bytes(), &[])?;
    }
    push(&mut frame, Operation::Remove, coalesce, stored.version_list()?.as_bytes(), &[])?;
    end(cache, key, Some(None), frame, policy, key_guard).await
}

/// Waits until no other writer of the key is under way, and reads which versions there are.
async fn begin<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    stored: &Key,
    policy: WritePolicy,
) -> Result<(KeyGuard, VersionList)> {
    // Before the lock: a cache without versions need not wait to learn that.
    kept(cache)?;
    let begun = async {
        let key_guard = cache.layer.key_locks.lock(iter::once(stored)).await;
        Ok((key_guard, read_list(cache, stored).await?))
    };
    if policy == WritePolicy::Behind {
        return begun.await;
    }
    // A writer before this one may wait for the store without an end, and a write-through promises an answer in time.
    let timeout = cache.layer.options().through_timeout;
    cache.layer.within(timeout, begun).await.unwrap_or_else(|| {
        let context =
            format!("another write of the key was still under way after {timeout:?}; nothing was written");
        Err(Error::new(ErrorKind::Transient, context))
    })
}

/// Writes the frame, with the plain value if that changes (`Some(None)` removes it).
async fn end<K: CacheKey, V: CacheValue>(
    cache: &OpenCache<K, V>,
    key: &K,
    plain: Option<Option<V>>,
    mut frame: FrameBuilder,
    policy: WritePolicy,
    key_guard: KeyGuard,
) -> Result<Receipt> {
    let mut effects = Effects::None;
    if let Some(value) = plain {
        let others = frame.len();
        let effect = cache.view.encode(&mut frame, key, value, &WriteOptions::from(policy))?;
        // Memory keeps the plain value alone; the records before it have no effect there.
        let none = (0..others).map(|_| None);
        effects = Effects::Many(none.chain([Some(effect)]).collect());
    }
    // Held by the frame until that has ended: this future may be dropped before, and the next writer has to see the
    // list as this one left it.
    let mut key_guard = Some(key_guard);
    let held_by_frame = key_guard.take_if(|_| Safeguard::VersionsHeldToTheEnd.holds());
    let begun = KeyWrite::new(cache, key, policy).begin_frame(frame, effects, held_by_frame);
    writing::end(cache, key, Begun::Now(begun)).await
}

async fn read_list<K: CacheKey, V: CacheValue>(cache: &OpenCache<K, V>, stored: &Key) -> Result<VersionList> {
    let Some(found) = cache.layer.reads().load(&stored.version_list()?).await?.value else {
        return Ok(VersionList::default());
    };
    VersionList::parse(&found.value).ok_or_else(|| {
        Error::new(ErrorKind::Decode, format!("the list of the versions of {stored} is unreadable"))
    })
}

/// The number of versions that the cache keeps; an error if it was opened without.
fn kept<K, V>(cache: &OpenCache<K, V>) -> Result<usize> {
    cache.view.versions_kept.ok_or_else(|| {
        let context = format!("cache \"{}\" was opened without versions_kept", cache.view.namespace);
        Error::new(ErrorKind::Unsupported, context)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_the_highest_and_says_what_goes() {
        let mut list = VersionList::default();
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
        let list = VersionList(vec![1, 7, u64::MAX]);
        let bytes = list.encode();
        assert_eq!(VersionList::parse(&bytes), Some(list));
        for cut in 0..bytes.len() {
            assert_eq!(VersionList::parse(&bytes[..cut]), None);
        }
        let unsorted = VersionList(vec![7, 7]).encode();
        let long = [&[LIST_FORMAT][..], &u32::MAX.to_le_bytes(), &[0; 16]].concat();
        let newer = [&[LIST_FORMAT + 1], &bytes[1..]].concat();
        for bad in [unsorted, long, newer, [&bytes[..], &[0]].concat()] {
            assert_eq!(VersionList::parse(&bad), None, "{bad:?}");
        }
    }
}
