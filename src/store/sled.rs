//! The embedded default store: a sled 0.34 database in a directory of its own (feature `sled`).
//!
//! A batch, its progress and the epoch check are one transaction: all data lies in one tree, a batch is one sled batch,
//! and sled replays a batch completely or not at all. A batch is durable on return: sled's flush syncs nothing, so the
//! files are then synced through a descriptor of the store's own (`files`).
//!
//! A failed write ends the store for good (`embedded`). sled itself refuses all writes after a failed one, even after a
//! full disk.
//!
//! # A single change
//! A sled batch costs two writes, and sled waits for both: the manifest with the end of the batch is written
//! separately. A single change needs no batch. Its meta record names the key and the progress before the change, and is
//! inserted first. sled's log keeps this order, and a log that lost its end keeps a prefix. So after a crash the
//! database has neither of the two, both, or the meta record alone. In the last case the key has a version other than
//! the one in the meta record, and the store takes the progress before the change. The change was never acknowledged,
//! because that requires both to be durable.
//!
//! | meta record of a single change | bytes |
//! | --- | --- |
//! | version of the layout, 4 | 1 |
//! | the meta record (`embedded::layout`) after the change | 70 |
//! | watermark before it | 8 |
//! | last journaled number before it | 8 |
//! | number of the change | 8 |
//! | 1 if it removes the key, else 0 | 1 |
//! | key in the tree | the rest but 4 |
//! | CRC-32C of the above | 4 |
//!
//! # Blobs
//! sled's directory `blobs/` must stay empty. sled moves items and pages above a quarter of its segment size into files
//! there, and if a power cut takes such a file, its recovery silently skips the item and keeps the rest of the batch:
//! the watermark would then vouch for a lost value. So values above about 40 KiB are cut into chunks that go into the
//! tree in the same batch, and the segment size leaves room for a page full of chunks. Only index pages with thousands
//! of keys above about 4 KiB can still outgrow it. New blobs are synced before a batch is acknowledged, but for those
//! pages the window remains. [`crate::manual::durability`] describes the other effects of a power cut, and
//! `tests/faults/power_cut.rs` searches for them.
//!
//! # Permissions
//! Directories have mode 0700, and files that this store creates or can name have 0600. sled creates blobs and
//! snapshots with the umask of the process; the mode of the directory protects them.

mod files;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::sled::{Batch as SledBatch, Db, IVec};
use bytes::{Buf, BufMut, Bytes};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, Progress, Standing, StoreError, Versioned};
use crate::store::embedded::directory::damaged;
use crate::store::embedded::layout::{self, INLINE, META_BYTES, META_KEY, VALUE_HEADER_BYTES, value_key};
use crate::store::embedded::{Database, Embedded, embedded_store};
use crate::store::sled::files::{Files, open_failed, sled_error};

/// The default memory for pages of sled; see [`SledOptions::cache_bytes`].
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
/// The size of sled's segments. Part of the format: sled refuses a database that was created with another size.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// The limit for key and value of one item of the tree. A page holds at most about twenty items and must stay below a
/// quarter of a segment.
const INLINE_BYTES_MAX: usize = 40 * 1024;
const CHUNK_BYTES: usize = 32 * 1024;

// In addition to `layout`: the first byte of the key of a chunk, and the form of a value that is stored in chunks.
const TAG_CHUNK: u8 = b'c';
const CHUNKED: u8 = 1;
/// The length of the content of a chunked value, which locates its chunks.
const CHUNKS_BYTES: usize = 20;

/// The options of a [`SledStore`].
#[derive(Clone, Debug)]
pub struct SledOptions {
    cache_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> SledOptions {
        SledOptions { cache_bytes: CACHE_BYTES_DEFAULT }
    }
}

impl SledOptions {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> SledOptions {
        SledOptions::default()
    }

    /// Sets the memory for sled's pages in bytes; 256 MiB by default, at least 1 MiB. sled treats it as a goal; other
    /// data of sled and running loads come on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> SledOptions {
        self.cache_bytes = bytes;
        self
    }

    /// Opens the store in the directory `path`; see [`SledStore::open`].
    ///
    /// # Errors
    /// Those of [`SledStore::open`], and [`ErrorKind::InvalidOption`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<SledStore> {
        if self.cache_bytes < CACHE_BYTES_MIN {
            let context =
                format!("cache_bytes is {}, and must be at least {CACHE_BYTES_MIN}", self.cache_bytes);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        SledStore::open_with(path.as_ref(), self, SEGMENT_BYTES)
    }
}

/// The embedded default store. Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop finishes the calls that have begun, joins the store's threads and unlocks the directory, so it may
/// take as long as a sync. Afterwards the store can be opened again at once.
#[derive(Clone)]
pub struct SledStore(Embedded<Sled>);

struct Sled {
    /// `None` only while the store is being closed.
    db: Option<Db>,
}

struct SledWriter {
    files: Files,
    /// True if the tree may hold chunks. While it holds none, no old value has to be read to find its chunks.
    chunked: bool,
    /// The progress in the meta record on the disk.
    progress: Progress,
}

impl SledStore {
    /// Opens the store in the directory `path`, and creates it if it does not exist. The mode of the directory becomes
    /// 0700. Blocks while it reads the database.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if another program or a
    /// later version of this crate wrote the database; [`ErrorKind::Damaged`]; [`ErrorKind::Io`] and
    /// [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<SledStore> {
        SledOptions::default().open(path)
    }

    fn open_with(path: &Path, options: &SledOptions, segment_bytes: usize) -> Result<SledStore> {
        let mut files = Files::open(path)?;
        let db = files::open(&mut files, options.cache_bytes, segment_bytes)?;
        let read = db.get(META_KEY).map_err(|error| open_failed(&files, error))?;
        let standing = read_standing(&db, read.as_ref(), files.path())?;
        // Found out once: while there are no chunks, an apply need not read the values that it replaces.
        let chunked = db.scan_prefix([TAG_CHUNK]).next().is_some();
        let writer = SledWriter { files, chunked, progress: standing.progress };
        Ok(SledStore(Embedded::start(Sled { db: Some(db) }, writer, standing)?))
    }
}

embedded_store!(SledStore);

impl Sled {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("only closing takes it")
    }
}

impl Database for Sled {
    type Writer = SledWriter;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let db = self.db();
        let tree_key = value_key(key);
        let mut stored = db.get(&tree_key).map_err(load_failed)?;
        loop {
            let Some(bytes) = &stored else { return Ok(None) };
            let (version, content) = decode_value(bytes, key)?;
            let chunks = match content {
                StoredContent::Inline(value) => {
                    return Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version }));
                }
                StoredContent::Chunked(chunks) => chunks,
            };
            if let Some(value) = chunks.read(db)? {
                return Ok(Some(Versioned { value, version }));
            }
            // Either a batch that replaced the value meanwhile has removed its chunks, or they are damaged. Only in the
            // first case the item has changed.
            let again = db.get(&tree_key).map_err(load_failed)?;
            if again == stored {
                let context = format!("the value of {key} at version {version} lacks some of its bytes");
                return Err(StoreError::Fatal(Error::new(ErrorKind::Damaged, context)));
            }
            stored = again;
        }
    }

    fn write(&self, writer: &mut SledWriter, changes: &[&Op], standing: &Standing) -> Result<(), StoreError> {
        let db = self.db();
        match changes {
            // A claim or an empty batch has only the meta record, which a single insert writes atomically.
            [] => drop(db.insert(META_KEY, layout::encode_meta(standing)).map_err(apply_failed)?),
            [op] if !writer.chunked && fits_single_change(op) => {
                write_single_change(db, writer, op, standing)?
            }
            _ => write_batch(db, writer, changes, standing)?,
        }
        // `flush` and not `flush_async`, which can deadlock (sled #1308, #1412). This thread may block.
        db.flush().map_err(apply_failed)?;
        if Safeguard::StoreSync.holds() {
            writer.files.sync().map_err(StoreError::Fatal)?;
        }
        // Only after the sync: the next single change names this progress as the one before it.
        writer.progress = standing.progress;
        Ok(())
    }

    fn close(&mut self, writer: &mut SledWriter) {
        let db = self.db.take();
        // sled syncs when it closes and panics if the sync fails. All acknowledged batches are durable already, so
        // this failure concerns nobody.
        let closed = catch_unwind(AssertUnwindSafe(|| drop(db)));
        // After a panic sled may keep its lock, and waiting for it would never end.
        if closed.is_ok() {
            // This fails only where files cannot be locked, and then there is no lock to wait for.
            drop(writer.files.wait_released());
        }
    }
}

/// Returns true if a single change can be written without a batch: it needs no chunks, and its key fits into the meta
/// record.
fn fits_single_change(op: &Op) -> bool {
    let key_bytes = 1 + op.key.as_bytes().len();
    key_bytes <= SINGLE_KEY_BYTES_MAX
        && key_bytes + op.value.as_ref().map_or(0, Bytes::len) <= INLINE_BYTES_MAX
}

fn write_single_change(db: &Db, writer: &SledWriter, op: &Op, standing: &Standing) -> Result<(), StoreError> {
    let tree_key = value_key(&op.key);
    let meta = encode_single_meta(standing, writer.progress, op.seq, op.value.is_none(), &tree_key);
    // The meta record must come first in sled's log; see the head of the module.
    db.insert(META_KEY, meta).map_err(apply_failed)?;
    let written = match &op.value {
        None => db.remove(tree_key),
        Some(value) => db.insert(tree_key, encoded(&mut Vec::new(), INLINE, op.seq, value)),
    };
    written.map(drop).map_err(apply_failed)
}

fn write_batch(
    db: &Db,
    writer: &mut SledWriter,
    changes: &[&Op],
    standing: &Standing,
) -> Result<(), StoreError> {
    let mut batch = SledBatch::default();
    let mut chunked = writer.chunked;
    // sled copies keys and values, so one buffer serves all.
    let mut buffer = Vec::new();
    for (place, op) in changes.iter().enumerate() {
        layout::write_value_key(&op.key, &mut buffer);
        let (tree_key, key_bytes) = (IVec::from(buffer.as_slice()), buffer.len());
        // The chunks of a replaced value would stay for ever.
        if writer.chunked
            && let Some(old) = db.get(&tree_key).map_err(apply_failed)?
            && let (_, StoredContent::Chunked(chunks)) = decode_value(&old, &op.key)?
        {
            chunks.remove(&mut batch);
        }
        match &op.value {
            None => batch.remove(tree_key),
            Some(value) if key_bytes + value.len() <= INLINE_BYTES_MAX => {
                batch.insert(tree_key, encoded(&mut buffer, INLINE, op.seq, value));
            }
            Some(value) => {
                chunked = true;
                let chunks = Chunks::new(standing.progress.applied, place, value.len());
                chunks.insert(value, &mut batch);
                batch.insert(tree_key, encoded(&mut buffer, CHUNKED, op.seq, &chunks.encoded()));
            }
        }
    }
    // Also if the write fails below: claiming too many chunks costs a read, and too few would leak them.
    writer.chunked = chunked;
    batch.insert(META_KEY, layout::encode_meta(standing));
    db.apply_batch(batch).map_err(apply_failed)
}

/// The location of a large value: chunks in the tree under keys that no other batch ever uses, because only one batch
/// with the same watermark is applied.
#[derive(Clone, Copy)]
struct Chunks {
    watermark: Seq,
    place: u32,
    bytes: u64,
}

enum StoredContent<'a> {
    Inline(&'a [u8]),
    Chunked(Chunks),
}

impl Chunks {
    fn new(watermark: Seq, place: usize, bytes: usize) -> Chunks {
        let place = u32::try_from(place).expect("a batch in memory has fewer than four billion ops");
        Chunks { watermark, place, bytes: bytes as u64 }
    }

    fn encoded(self) -> [u8; CHUNKS_BYTES] {
        let mut encoded = [0; CHUNKS_BYTES];
        let mut rest = encoded.as_mut_slice();
        rest.put_u64_le(self.watermark.0);
        rest.put_u32_le(self.place);
        rest.put_u64_le(self.bytes);
        encoded
    }

    /// Returns the key of a chunk. Big-endian, so that the chunks of a value are neighbours in the tree.
    fn key(self, index: u32) -> Vec<u8> {
        let mut key = Vec::with_capacity(17);
        key.put_u8(TAG_CHUNK);
        key.put_u64(self.watermark.0);
        key.put_u32(self.place);
        key.put_u32(index);
        key
    }

    fn count(self) -> u32 {
        u32::try_from(self.bytes.div_ceil(CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
    }

    fn insert(self, value: &[u8], changes: &mut SledBatch) {
        for (index, chunk) in (0..self.count()).zip(value.chunks(CHUNK_BYTES)) {
            changes.insert(self.key(index), chunk);
        }
    }

    fn remove(self, changes: &mut SledBatch) {
        (0..self.count()).for_each(|index| changes.remove(self.key(index)));
    }

    /// Reads the value; returns `None` if a chunk is missing or has the wrong length.
    fn read(self, db: &Db) -> Result<Option<Bytes>, StoreError> {
        let mut value = Vec::new();
        for index in 0..self.count() {
            // A load runs beside applies, so a chunk may go between two reads. The caller looks whether the value
            // has changed.
            let Some(chunk) = db.get(self.key(index)).map_err(load_failed)? else { return Ok(None) };
            value.extend_from_slice(&chunk);
        }
        // A value of the wrong length is never served.
        Ok((value.len() as u64 == self.bytes).then(|| Bytes::from(value)))
    }
}

/// Encodes a value for the tree. `buffer` is scratch space.
fn encoded(buffer: &mut Vec<u8>, form: u8, version: Seq, content: &[u8]) -> IVec {
    buffer.clear();
    buffer.put_slice(&layout::value_header(form, version));
    buffer.put_slice(content);
    IVec::from(buffer.as_slice())
}

fn decode_value<'a>(stored: &'a [u8], key: &Key) -> Result<(Seq, StoredContent<'a>), StoreError> {
    let (form, version, mut content) = layout::split_value(stored, key)?;
    match form {
        INLINE => Ok((version, StoredContent::Inline(content))),
        CHUNKED => {
            let mut field = || -> Result<Chunks, bytes::TryGetError> {
                let watermark = Seq(content.try_get_u64_le()?);
                Ok(Chunks { watermark, place: content.try_get_u32_le()?, bytes: content.try_get_u64_le()? })
            };
            let chunks = field().map_err(|_| layout::unknown_value(key))?;
            Ok((version, StoredContent::Chunked(chunks)))
        }
        _ => Err(layout::unknown_value(key)),
    }
}

/// Converts the failure of a load. Nothing was changed, and a failure of the file system may pass.
fn load_failed(error: ::sled::Error) -> StoreError {
    let transient = matches!(error, ::sled::Error::Io(_));
    let error = sled_error("loading from the store".to_owned(), error);
    if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
}

/// Converts the failure of an apply or a claim. Always fatal: sled keeps its first I/O error and returns it for every
/// later write, even if the disk has room again.
fn apply_failed(error: ::sled::Error) -> StoreError {
    StoreError::Fatal(sled_error("writing to the store".to_owned(), error))
}

/// The version of the layout in the meta record of a single change.
const SINGLE_FORMAT: u8 = 4;
/// The length of the meta record of a single change without the key.
const FRAME_BYTES: usize = 1 + META_BYTES + 25 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 4;
/// The longest key in the tree that fits into a meta record; the change of a longer one is written as a batch.
const SINGLE_KEY_BYTES_MAX: usize = 1024;

/// Encodes the meta record of the single change `seq` of `tree_key`.
fn encode_single_meta(
    standing: &Standing,
    before: Progress,
    seq: Seq,
    removes: bool,
    tree_key: &[u8],
) -> Vec<u8> {
    let mut meta = Vec::with_capacity(FRAME_BYTES + tree_key.len());
    meta.put_u8(SINGLE_FORMAT);
    meta.put_slice(&layout::encode_meta(standing));
    meta.put_u64_le(before.applied.0);
    meta.put_u64_le(before.journaled.0);
    meta.put_u64_le(seq.0);
    meta.put_u8(u8::from(removes));
    meta.put_slice(tree_key);
    let checksum = crc32c::crc32c(&meta);
    meta.put_u32_le(checksum);
    assert_eq!(meta.len(), FRAME_BYTES + tree_key.len(), "the layout is fixed");
    meta
}

/// Reads the meta record of the database in `path`. If it is of a single change, checks that the change itself is
/// there.
///
/// # Errors
/// [`ErrorKind::UnknownFormat`] and [`ErrorKind::Damaged`]; those of the file system.
fn read_standing(db: &Db, stored: Option<&IVec>, path: &Path) -> Result<Standing> {
    match stored {
        Some(stored) if stored.first() == Some(&SINGLE_FORMAT) => decode_single_meta(db, stored, path),
        _ => layout::decode_meta(stored.map(IVec::as_ref), db.is_empty(), path),
    }
}

fn decode_single_meta(db: &Db, stored: &[u8], path: &Path) -> Result<Standing> {
    let broken = || Error::new(ErrorKind::Damaged, damaged(path, "its watermark and epoch are unreadable"));
    let (fields, checksum) = stored.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(broken)?;
    // The key's length is what is left, so the checksum has to hold before anything is cut.
    if stored.len() < FRAME_BYTES || crc32c::crc32c(fields) != u32::from_le_bytes(*checksum) {
        return Err(broken());
    }
    let (meta, mut rest) = fields.split_at(1 + META_BYTES);
    let after = layout::decode_meta(meta.get(1..), false, path)?;
    let before = Progress { applied: Seq(rest.get_u64_le()), journaled: Seq(rest.get_u64_le()) };
    let (seq, removes) = (Seq(rest.get_u64_le()), rest.get_u8() == 1);
    let found = db.get(rest);
    let found =
        found.map_err(|error| sled_error(format!("opening the store in {}", path.display()), error))?;
    // A crash may have lost the change and kept its meta record; see the head of the module.
    let is_there = match found {
        None => removes,
        // By version: an older value of the same key is what the lost change was to replace.
        Some(value) => !removes && version(&value) == Some(seq),
    };
    Ok(if is_there { after } else { Standing { progress: before, ..after } })
}

/// Returns the version of a stored value.
fn version(stored: &[u8]) -> Option<Seq> {
    let (_, mut version) = stored.get(..VALUE_HEADER_BYTES)?.split_at(1);
    version.try_get_u64_le().ok().map(Seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JournalId, NamespaceName};
    use crate::store::contract::{Claim, Store as _, claimed};
    use crate::store::embedded::caught;
    use ::sled::Config;
    use std::os::unix::fs::PermissionsExt;

    fn key(name: &str) -> Key {
        Key::new(&NamespaceName::parse("sled").unwrap(), name.as_bytes()).unwrap()
    }

    fn batch(standing: Standing, seq: u64, name: &str, value: Option<Vec<u8>>) -> Batch {
        let ops = vec![Op { seq: Seq(seq), key: key(name), value: value.map(Bytes::from) }];
        let (tenure, until) = (standing.tenure, Seq(seq));
        Batch { tenure, number: seq, after: Seq::ZERO, until, journaled: until, ops }
    }

    /// Opens sled without the store, on what the store left.
    fn raw(path: &Path) -> Db {
        Config::new().path(path).segment_size(SEGMENT_BYTES).flush_every_ms(None).open().unwrap()
    }

    /// Changes what the store left, past it. sled's own threads hold its lock for a moment longer than its handle, and
    /// the next opening was refused for it, once in some hundred times.
    fn change(path: &Path, change: impl FnOnce(&Db)) {
        let db = raw(path);
        change(&db);
        drop(db);
        let file = std::fs::File::open(path.join("db")).unwrap();
        file.lock().unwrap();
        file.unlock().unwrap();
    }

    fn put_raw(path: &Path, key: &[u8], value: Vec<u8>) {
        change(path, |db| drop(db.insert(key, value).unwrap()));
    }

    fn refused(path: &Path) -> ErrorKind {
        SledStore::open(path).expect_err("it must not open").kind()
    }

    #[test]
    fn a_store_is_open_once_and_can_be_opened_again_at_once() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let store = SledStore::open(directory.path()).unwrap();
            let clone = store.clone();
            assert_eq!(refused(directory.path()), ErrorKind::Locked);
            drop(store);
            assert_eq!(refused(directory.path()), ErrorKind::Locked, "a clone holds it");
            drop(clone);
        }
    }

    /// A process that was killed between sled's creating and renaming a snapshot left an empty `snap.*.generating`,
    /// which sled then took for its newest snapshot: "Read corrupted data", once in some hundreds of kills.
    #[tokio::test]
    async fn a_kill_while_sled_writes_a_snapshot_does_not_keep_the_store_from_opening() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        store.apply(&batch(tenure, 1, "a", Some(vec![1]))).await.unwrap();
        drop(store);
        std::fs::write(directory.path().join("snap.00000000000FFFFF.generating"), b"").unwrap();
        let store = SledStore::open(directory.path()).expect("an unfinished snapshot is nobody's loss");
        assert!(store.load(&key("a")).await.unwrap().is_some());
    }

    /// The store bars sled's cleaning in its first step of an opening, by a directory that keeps sled from opening. A
    /// process that dies in between leaves it behind; so would a refusal, in somebody else's database.
    #[tokio::test]
    async fn the_bar_of_an_opening_that_died_or_was_refused_keeps_nobody_out() {
        let directory = tempfile::tempdir().unwrap();
        let open = || SledStore::open_with(directory.path(), &SledOptions::new(), 64 * 1024);
        let store = open().unwrap();
        let tenure = claimed(&store, None).await;
        for seq in 1..=20 {
            store.apply(&batch(tenure, seq, &seq.to_string(), Some(vec![1; 10_000]))).await.unwrap();
        }
        let files =
            |of: &SledStore| of.0.shared().state.lock().unwrap().writer.files.blobs().block_clearing();
        files(&store).unwrap();
        drop(store);
        drop(open().expect("the bar is of no use any more"));
        let theirs = Config::new().path(directory.path()).segment_size(64 * 1024).open().unwrap();
        assert_eq!(open().expect_err("sled is open").kind(), ErrorKind::Locked);
        drop(theirs);
        drop(Config::new().path(directory.path()).segment_size(64 * 1024).open().expect("no bar was left"));
    }

    #[test]
    fn a_sled_of_somebody_elses_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let db = raw(directory.path());
        assert_eq!(refused(directory.path()), ErrorKind::Locked, "held by sled itself");
        db.insert("theirs", "data").unwrap();
        drop(db);
        assert_eq!(refused(directory.path()), ErrorKind::UnknownFormat);
        let other = tempfile::tempdir().unwrap();
        drop(::sled::open(other.path()).unwrap());
        assert_eq!(refused(other.path()), ErrorKind::UnknownFormat, "made with another segment size");
    }

    #[tokio::test]
    async fn an_unreadable_meta_record_is_damage_and_an_unknown_one_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, Some(JournalId([7; 16]))).await;
        store.apply(&batch(tenure, 1, "a", Some(vec![1]))).await.unwrap();
        drop(store);
        let mut good = Vec::new();
        change(directory.path(), |db| good = db.get(META_KEY).unwrap().unwrap().to_vec());
        let of_a_batch = layout::encode_meta(&tenure);
        assert_ne!(good[0], of_a_batch[0], "a lone change has a form of its own");
        let mut cases = vec![(Vec::new(), ErrorKind::Damaged)];
        for meta in [&good, &of_a_batch] {
            cases.push((meta[..meta.len() - 1].to_vec(), ErrorKind::Damaged));
            for byte in 1..meta.len() {
                let mut flipped = meta.clone();
                flipped[byte] ^= 0x10;
                cases.push((flipped, ErrorKind::Damaged));
            }
        }
        let mut newer = good.clone();
        newer[0] = 9;
        cases.push((newer, ErrorKind::UnknownFormat));
        for (meta, kind) in cases {
            put_raw(directory.path(), META_KEY, meta.clone());
            assert_eq!(refused(directory.path()), kind, "{meta:?}");
        }
        put_raw(directory.path(), META_KEY, good);
        let store = SledStore::open(directory.path()).unwrap();
        assert_eq!(store.standing().await.unwrap().journal, Some(JournalId([7; 16])));
    }

    /// A lone change goes without a batch, so a crash may leave the half of it that says that it happened.
    #[tokio::test]
    async fn a_lone_change_of_which_a_crash_left_half_never_happened() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        let applied = async || {
            let store = SledStore::open(directory.path()).unwrap();
            store.standing().await.unwrap().progress.applied
        };
        store.apply(&batch(tenure, 1, "a", Some(vec![1]))).await.unwrap();
        store.apply(&batch(tenure, 2, "a", Some(vec![2]))).await.unwrap();
        drop(store);
        assert_eq!(applied().await, Seq(2));
        let stored = |seq: u64| encoded(&mut Vec::new(), INLINE, Seq(seq), &[1]).to_vec();
        put_raw(directory.path(), &value_key(&key("a")), stored(1));
        assert_eq!(applied().await, Seq(1), "the key has its version of before");
        change(directory.path(), |db| drop(db.remove(value_key(&key("a"))).unwrap()));
        assert_eq!(applied().await, Seq(1), "or is not there yet");
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        assert_eq!(tenure.progress.applied, Seq(1), "a claim takes what is true");
        store.apply(&batch(tenure, 2, "b", Some(vec![2]))).await.unwrap();
        store.apply(&batch(tenure, 3, "b", None)).await.unwrap();
        drop(store);
        assert_eq!(applied().await, Seq(3));
        put_raw(directory.path(), &value_key(&key("b")), stored(2));
        assert_eq!(applied().await, Seq(2), "what was to be removed is there");
    }

    #[tokio::test]
    async fn a_large_value_leaves_no_chunk_behind() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        let sizes = [1 << 20, 50_000, 3, 200_000];
        for (seq, size) in (1..).zip(sizes) {
            store.apply(&batch(tenure, seq, "a", Some(vec![1; size]))).await.unwrap();
        }
        store.apply(&batch(tenure, 9, "a", None)).await.unwrap();
        drop(store);
        let left: Vec<_> = raw(directory.path()).iter().keys().map(Result::unwrap).collect();
        assert_eq!(left, [META_KEY], "only the meta record remains");
    }

    #[tokio::test]
    async fn a_missing_chunk_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        store.apply(&batch(tenure, 1, "a", Some(vec![1; 100_000]))).await.unwrap();
        drop(store);
        change(directory.path(), |db| drop(db.remove(Chunks::new(Seq(1), 0, 100_000).key(1)).unwrap()));
        let store = SledStore::open(directory.path()).unwrap();
        let error = store.load(&key("a")).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Fatal(error) if error.kind() == ErrorKind::Damaged),
            "{error:?}"
        );
    }

    /// With segments small enough for sled to make blobs after all, each is synced before the batch returns.
    #[tokio::test]
    async fn blobs_that_sled_makes_after_all_are_synced() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open_with(directory.path(), &SledOptions::new(), 64 * 1024).unwrap();
        let tenure = claimed(&store, None).await;
        // Long enough for the store to rely on what it has listed; the time itself is what is tested.
        std::thread::sleep(std::time::Duration::from_secs(2));
        store.apply(&batch(tenure, 1, "1", Some(vec![1]))).await.unwrap();
        assert!(store.0.shared().state.lock().unwrap().writer.files.blobs().is_settled());
        let mut most = 0;
        for seq in 2..=40 {
            store.apply(&batch(tenure, seq, &seq.to_string(), Some(vec![1; 30_000]))).await.unwrap();
            let state = store.0.shared().state.lock().unwrap();
            let present: std::collections::HashSet<_> = std::fs::read_dir(directory.path().join(BLOBS))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(present.is_subset(state.writer.files.blobs().synced()), "after batch {seq}");
            most = most.max(present.len());
        }
        assert!(most > 0, "no blob was made, so nothing was tested");
    }
    const BLOBS: &str = "blobs";

    #[tokio::test]
    async fn a_failed_sync_ends_the_store_until_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = claimed(&store, None).await;
        store.apply(&batch(tenure, 1, "a", Some(vec![1]))).await.unwrap();
        store.0.shared().state.lock().unwrap().writer.files.fail_next_sync();
        for attempt in 0..3 {
            let error = store.apply(&batch(tenure, 2, "a", Some(vec![2]))).await.unwrap_err();
            assert!(matches!(error, StoreError::Fatal(_)), "attempt {attempt}: {error:?}");
        }
        assert!(matches!(store.claim(&Claim::new(None).unwrap()).await, Err(StoreError::Fatal(_))));
        assert!(
            matches!(store.load(&key("a")).await, Err(StoreError::Fatal(_))),
            "it may not be on the disk"
        );
        drop(store);
        let store = SledStore::open(directory.path()).unwrap();
        let found = store.load(&key("a")).await.unwrap().unwrap();
        assert_eq!(found.version, store.standing().await.unwrap().progress.applied, "both or neither");
    }

    #[tokio::test]
    async fn a_panic_in_the_middle_of_a_call_ends_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let shared = store.0.shared();
        let panicked = caught(|| shared.with_state::<()>(|_, _| panic!("midway")));
        assert!(matches!(panicked, Err(StoreError::Fatal(_))));
        assert!(matches!(store.load(&key("a")).await, Err(StoreError::Fatal(_))));
        assert!(matches!(store.claim(&Claim::new(None).unwrap()).await, Err(StoreError::Fatal(_))));
        drop(store);
        SledStore::open(directory.path()).unwrap();
    }

    #[test]
    fn the_files_are_their_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/store");
        let _store = SledStore::open(&path).unwrap();
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        for (name, expected) in
            [("", 0o700), ("blobs", 0o700), ("db", 0o600), ("conf", 0o600), ("forebay.lock", 0o600)]
        {
            assert_eq!(mode(name), expected, "{name}");
        }
    }

    #[test]
    fn a_cache_that_is_too_small_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = SledOptions::new().cache_bytes(1).open(directory.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
    }
}
