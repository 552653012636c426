//! The embedded default store: a sled 0.34 database in a directory of its own.
//!
//! A batch, its progress and the epoch check are one transaction: everything lies in one tree, a batch is one
//! sled batch, and sled replays a batch wholly or not at all; a lone change needs none for the same end, and takes
//! half the writes (`sled_single`). On return a batch is durable: after sled's flush,
//! which syncs nothing, the files are synced through a descriptor of the store's own (`sled_files`).
//!
//! A failure while something is being made true ends the store for good (`embedded`); sled itself refuses all
//! writes for ever after a failed one, a full disk included.
//!
//! sled's `blobs/` must stay empty. It puts items and pages above a quarter of its segment size into files,
//! and where a power cut takes such a file, its recovery skips the item silently and keeps the rest of the
//! batch (delete one and see): the watermark would then vouch for a lost value. So values above about 40 KiB
//! are cut into chunks that go into the tree in the same batch, and the segment size leaves room for a page
//! full of them. Only index pages can still outgrow it, with thousands of keys above about 4 KiB. New blobs are
//! synced before a batch is acknowledged, but for those keys that window remains. What a power cut can do besides, and
//! was seen to do, is in the manual's page on durability; `tests/fault_power_cut.rs` searches for it.
//!
//! The files: directories 0700, and 0600 for those this store creates or can name; sled creates blobs and
//! snapshots with the process's umask, and the directory shuts others out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::sled::{Batch as SledBatch, Db, IVec};
use bytes::{Buf, BufMut, Bytes};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Key, Seq};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, Progress, StoreError, Tenure, Versioned};
use crate::store::embedded::{Database, Embedded, embedded_store};
use crate::store::layout::{self, INLINE, META_KEY, value_key};
use crate::store::sled_files::Files;
use crate::store::sled_open::{self, open_failed, sled_error};
use crate::store::sled_single::{self, SINGLE_KEY_BYTES_MAX};

/// The memory sled may use for pages unless [`SledOptions::cache_bytes`] says otherwise.
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
/// sled's unit of writing. Part of the format: sled refuses a database that was made with another.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes of key and value that one item of the tree may hold. A page holds at most about twenty, and
/// must stay below a quarter of a segment.
const INLINE_BYTES_MAX: usize = 40 * 1024;
const CHUNK_BYTES: usize = 32 * 1024;

// Beside what `layout` has: the first byte of a chunk's key, and of a value that lies in chunks.
const TAG_CHUNK: u8 = b'c';
const CHUNKED: u8 = 1;
/// What says where a value's chunks are.
const CHUNKS_BYTES: usize = 20;

/// How to open a [`SledStore`].
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
    /// The default options.
    #[must_use]
    pub fn new() -> SledOptions {
        SledOptions::default()
    }

    /// How many bytes of pages sled keeps in memory; 256 MiB by default, at least 1 MiB. sled treats it as a
    /// goal: what it holds besides, and a load at work, come on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> SledOptions {
        self.cache_bytes = bytes;
        self
    }

    /// Opens the store in the directory `path`; see [`SledStore::open`].
    ///
    /// # Errors
    /// As [`SledStore::open`], and [`ErrorKind::InvalidOption`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<SledStore> {
        if self.cache_bytes < CACHE_BYTES_MIN {
            let context =
                format!("cache_bytes is {}, and must be at least {CACHE_BYTES_MIN}", self.cache_bytes);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        SledStore::open_with(path.as_ref(), self, SEGMENT_BYTES)
    }
}

/// The embedded store. Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop runs to their end the calls that were begun, joins the store's threads and lets the
/// directory go, so it may take as long as a sync; afterwards the store can be opened again at once.
#[derive(Clone)]
pub struct SledStore(Embedded<Sled>);

struct Sled {
    /// `None` only while it is being closed.
    db: Option<Db>,
}

struct Pen {
    files: Files,
    /// Whether the tree may hold chunks. As long as it holds none, no old value has to be looked at for them.
    chunked: bool,
    /// As the meta record on the disk says.
    progress: Progress,
}

impl SledStore {
    /// Opens the store in the directory `path`, creating it if there is none. The directory becomes its
    /// owner's alone (0700). Blocks while it reads what is there.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if somebody else
    /// wrote the database, or a later version of this crate; [`ErrorKind::Damaged`]; [`ErrorKind::Io`] and
    /// [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<SledStore> {
        SledOptions::default().open(path)
    }

    fn open_with(path: &Path, options: &SledOptions, segment_bytes: usize) -> Result<SledStore> {
        let mut files = Files::open(path)?;
        let db = sled_open::open(&mut files, options.cache_bytes, segment_bytes)?;
        let read = db.get(META_KEY).map_err(|error| open_failed(&files, error))?;
        let tenure = sled_single::tenure(&db, read.as_ref(), files.path())?;
        let chunked = db.scan_prefix([TAG_CHUNK]).next().is_some();
        let pen = Pen { files, chunked, progress: tenure.progress };
        Ok(SledStore(Embedded::start(Sled { db: Some(db) }, pen, tenure)?))
    }
}

embedded_store!(SledStore);

impl Sled {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("only closing takes it")
    }
}

impl Database for Sled {
    type Pen = Pen;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let db = self.db();
        let tree_key = value_key(key);
        let mut stored = db.get(&tree_key).map_err(load_failed)?;
        loop {
            let Some(bytes) = &stored else { return Ok(None) };
            let (version, content) = decode_value(bytes, key)?;
            let chunks = match content {
                Content::Inline(value) => {
                    return Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version }));
                }
                Content::Chunked(chunks) => chunks,
            };
            if let Some(value) = chunks.read(db)? {
                return Ok(Some(Versioned { value, version }));
            }
            // A batch that replaced the value took its chunks away, or they are damaged.
            let again = db.get(&tree_key).map_err(load_failed)?;
            if again == stored {
                let context = format!("the value of {key} at version {version} lacks some of its bytes");
                return Err(StoreError::Fatal(Error::new(ErrorKind::Damaged, context)));
            }
            stored = again;
        }
    }

    fn write(&self, pen: &mut Pen, changes: &[&Op], tenure: &Tenure) -> Result<(), StoreError> {
        let db = self.db();
        match changes {
            [] => drop(db.insert(META_KEY, layout::encode_meta(tenure)).map_err(apply_failed)?),
            [op] if !pen.chunked && can_be_single(op) => write_single(db, pen, op, tenure)?,
            _ => write_batch(db, pen, changes, tenure)?,
        }
        // Never `flush_async`, which can deadlock; this thread may wait.
        db.flush().map_err(apply_failed)?;
        if Safeguard::StoreSync.holds() {
            pen.files.sync().map_err(StoreError::Fatal)?;
        }
        pen.progress = tenure.progress;
        Ok(())
    }

    fn close(&mut self, pen: &mut Pen) {
        let db = self.db.take();
        // sled syncs when it closes and panics if that fails. By then every batch that was acknowledged is
        // durable, so there is nothing to report.
        let closed = catch_unwind(AssertUnwindSafe(|| drop(db)));
        if closed.is_ok() {
            // It fails only where files cannot be locked, and then there is no lock to wait for.
            drop(pen.files.wait_released());
        }
    }
}

/// Whether a lone change can go without a batch (`sled_single`): it needs no chunks, and its key fits the meta record.
fn can_be_single(op: &Op) -> bool {
    let key_bytes = 1 + op.key.as_bytes().len();
    key_bytes <= SINGLE_KEY_BYTES_MAX
        && key_bytes + op.value.as_ref().map_or(0, Bytes::len) <= INLINE_BYTES_MAX
}

fn write_single(db: &Db, pen: &Pen, op: &Op, tenure: &Tenure) -> Result<(), StoreError> {
    let tree_key = value_key(&op.key);
    let meta = sled_single::encode(tenure, pen.progress, op.seq, op.value.is_none(), &tree_key);
    db.insert(META_KEY, meta).map_err(apply_failed)?;
    let written = match &op.value {
        None => db.remove(tree_key),
        Some(value) => db.insert(tree_key, encoded(&mut Vec::new(), INLINE, op.seq, value)),
    };
    written.map(drop).map_err(apply_failed)
}

fn write_batch(db: &Db, pen: &mut Pen, changes: &[&Op], tenure: &Tenure) -> Result<(), StoreError> {
    let mut batch = SledBatch::default();
    let mut chunked = pen.chunked;
    // sled copies what it is given, so one buffer does for all.
    let mut buffer = Vec::new();
    for (place, op) in changes.iter().enumerate() {
        layout::write_value_key(&op.key, &mut buffer);
        let (tree_key, key_bytes) = (IVec::from(buffer.as_slice()), buffer.len());
        if pen.chunked
            && let Some(old) = db.get(&tree_key).map_err(apply_failed)?
            && let (_, Content::Chunked(chunks)) = decode_value(&old, &op.key)?
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
                let chunks = Chunks::new(tenure.progress.applied, place, value.len());
                chunks.insert(value, &mut batch);
                batch.insert(tree_key, encoded(&mut buffer, CHUNKED, op.seq, &chunks.encoded()));
            }
        }
    }
    pen.chunked = chunked;
    batch.insert(META_KEY, layout::encode_meta(tenure));
    db.apply_batch(batch).map_err(apply_failed)
}

/// Where the bytes of a large value lie: chunks in the tree under a name that no other batch ever uses, since
/// a batch with the same watermark is applied once.
#[derive(Clone, Copy)]
struct Chunks {
    watermark: Seq,
    place: u32,
    bytes: u64,
}

enum Content<'a> {
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

    /// The key of a chunk. Big-endian, so that a value's chunks lie next to each other in order.
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

    /// The value, or `None` if a chunk is missing or has the wrong length.
    fn read(self, db: &Db) -> Result<Option<Bytes>, StoreError> {
        let mut value = Vec::new();
        for index in 0..self.count() {
            let Some(chunk) = db.get(self.key(index)).map_err(load_failed)? else { return Ok(None) };
            value.extend_from_slice(&chunk);
        }
        Ok((value.len() as u64 == self.bytes).then(|| Bytes::from(value)))
    }
}

/// A value as the tree has it, by way of `buffer`.
fn encoded(buffer: &mut Vec<u8>, form: u8, version: Seq, content: &[u8]) -> IVec {
    buffer.clear();
    buffer.put_slice(&layout::value_header(form, version));
    buffer.put_slice(content);
    IVec::from(buffer.as_slice())
}

fn decode_value<'a>(stored: &'a [u8], key: &Key) -> Result<(Seq, Content<'a>), StoreError> {
    let (form, version, mut content) = layout::split_value(stored, key)?;
    match form {
        INLINE => Ok((version, Content::Inline(content))),
        CHUNKED => {
            let mut field = || -> Result<Chunks, bytes::TryGetError> {
                let watermark = Seq(content.try_get_u64_le()?);
                Ok(Chunks { watermark, place: content.try_get_u32_le()?, bytes: content.try_get_u64_le()? })
            };
            let chunks = field().map_err(|_| layout::unknown_value(key))?;
            Ok((version, Content::Chunked(chunks)))
        }
        _ => Err(layout::unknown_value(key)),
    }
}

/// A failed load. The file system may recover from what it said; nothing was changed.
fn load_failed(error: ::sled::Error) -> StoreError {
    let transient = matches!(error, ::sled::Error::Io(_));
    let error = sled_error("loading from the store".to_owned(), error);
    if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
}

/// A failed apply or claim. Always fatal: sled keeps its first I/O error and answers every later write with
/// it, however much room there is on the disk by then.
fn apply_failed(error: ::sled::Error) -> StoreError {
    StoreError::Fatal(sled_error("writing to the store".to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NamespaceName;
    use crate::store::contract::Store as _;
    use crate::store::worker::caught;
    use ::sled::Config;
    use std::os::unix::fs::PermissionsExt;

    fn key(name: &str) -> Key {
        Key::new(&NamespaceName::parse("sled").unwrap(), name.as_bytes()).unwrap()
    }

    fn batch(tenure: Tenure, seq: u64, name: &str, value: Option<Vec<u8>>) -> Batch {
        let ops = vec![Op { seq: Seq(seq), key: key(name), value: value.map(Bytes::from) }];
        let progress = Progress { applied: Seq(seq), journaled: Seq(seq) };
        Batch { epoch: tenure.epoch, ops, progress }
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
        let tenure = store.claim(None).await.unwrap();
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
        let tenure = store.claim(None).await.unwrap();
        for seq in 1..=20 {
            store.apply(&batch(tenure, seq, &seq.to_string(), Some(vec![1; 10_000]))).await.unwrap();
        }
        let files = |of: &SledStore| of.0.shared().state.lock().unwrap().pen.files.blobs().bar_cleaning();
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
        let tenure = store.claim(Some(JournalId([7; 16]))).await.unwrap();
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
        newer[0] = 3;
        cases.push((newer, ErrorKind::UnknownFormat));
        for (meta, kind) in cases {
            put_raw(directory.path(), META_KEY, meta.clone());
            assert_eq!(refused(directory.path()), kind, "{meta:?}");
        }
        put_raw(directory.path(), META_KEY, good);
        let store = SledStore::open(directory.path()).unwrap();
        assert_eq!(store.tenure().await.unwrap().journal, Some(JournalId([7; 16])));
    }

    /// A lone change goes without a batch, so a crash may leave the half of it that says that it happened.
    #[tokio::test]
    async fn a_lone_change_of_which_a_crash_left_half_never_happened() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = store.claim(None).await.unwrap();
        let applied = async || {
            let store = SledStore::open(directory.path()).unwrap();
            store.tenure().await.unwrap().progress.applied
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
        let tenure = store.claim(None).await.unwrap();
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
        let tenure = store.claim(None).await.unwrap();
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
        let tenure = store.claim(None).await.unwrap();
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
        let tenure = store.claim(None).await.unwrap();
        // Long enough for the store to rely on what it has listed; the time itself is what is tested.
        std::thread::sleep(std::time::Duration::from_secs(2));
        store.apply(&batch(tenure, 1, "1", Some(vec![1]))).await.unwrap();
        assert!(store.0.shared().state.lock().unwrap().pen.files.blobs().is_settled());
        let mut most = 0;
        for seq in 2..=40 {
            store.apply(&batch(tenure, seq, &seq.to_string(), Some(vec![1; 30_000]))).await.unwrap();
            let state = store.0.shared().state.lock().unwrap();
            let present: std::collections::HashSet<_> = std::fs::read_dir(directory.path().join(BLOBS))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(present.is_subset(state.pen.files.blobs().synced()), "after batch {seq}");
            most = most.max(present.len());
        }
        assert!(most > 0, "no blob was made, so nothing was tested");
    }
    const BLOBS: &str = "blobs";

    #[tokio::test]
    async fn a_failed_sync_ends_the_store_until_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let tenure = store.claim(None).await.unwrap();
        store.apply(&batch(tenure, 1, "a", Some(vec![1]))).await.unwrap();
        store.0.shared().state.lock().unwrap().pen.files.fail_next_sync();
        for attempt in 0..3 {
            let error = store.apply(&batch(tenure, 2, "a", Some(vec![2]))).await.unwrap_err();
            assert!(matches!(error, StoreError::Fatal(_)), "attempt {attempt}: {error:?}");
        }
        assert!(matches!(store.claim(None).await, Err(StoreError::Fatal(_))));
        assert!(
            matches!(store.load(&key("a")).await, Err(StoreError::Fatal(_))),
            "it may not be on the disk"
        );
        drop(store);
        let store = SledStore::open(directory.path()).unwrap();
        let found = store.load(&key("a")).await.unwrap().unwrap();
        assert_eq!(found.version, store.tenure().await.unwrap().progress.applied, "both or neither");
    }

    #[tokio::test]
    async fn a_panic_in_the_middle_of_a_call_ends_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(directory.path()).unwrap();
        let shared = store.0.shared();
        let panicked = caught(|| shared.with_state::<()>(|_, _| panic!("midway")));
        assert!(matches!(panicked, Err(StoreError::Fatal(_))));
        assert!(matches!(store.load(&key("a")).await, Err(StoreError::Fatal(_))));
        assert!(matches!(store.claim(None).await, Err(StoreError::Fatal(_))));
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
