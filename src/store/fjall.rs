//! An embedded store on fjall 3, a log-structured merge tree in a directory (feature `fjall`).
//!
//! A batch, its progress and the epoch check are one fjall batch in one keyspace: one entry of fjall's own journal with
//! a checksum at its end. On return that journal has been synced (`fdatasync`, [`PersistMode::SyncData`]). Later, on
//! its own threads, fjall writes its memtables to sorted tables, syncs them and their directories, and then removes the
//! journal that they replace. A failure on those threads ends the store with the next write.
//!
//! All values are stored in the tables, and are copied whenever tables are merged. The layout is `embedded::layout`, in
//! a keyspace called `forebay`.
//!
//! # Opening
//! `journal` repairs the effects of a power cut on fjall's journal before fjall reads it.
//!
//! fjall never syncs `keyspaces/`, where each keyspace has a directory. If that directory is missing, fjall skips all
//! entries of the keyspace in its journal and creates an empty one. So a new database is made durable as a whole before
//! it is renamed into place, and a database without its keyspace is treated as damaged.

mod journal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::fjall::{Database as Db, Keyspace, KeyspaceCreateOptions, PersistMode};
use bytes::{BufMut, Bytes};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Key;
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, Standing, StoreError, Versioned};
use crate::store::embedded::directory::{Directory, damaged, locked};
use crate::store::embedded::layout::{self, INLINE, META_KEY, VALUE_HEADER_BYTES, value_key};
use crate::store::embedded::{Database, Embedded, embedded_store};

/// The default memory for blocks of tables; see [`FjallOptions::cache_bytes`].
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
const MEMTABLE_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
const MEMTABLE_BYTES_MIN: u64 = 64 * 1024;

/// The options of a [`FjallStore`].
#[derive(Clone, Debug)]
pub struct FjallOptions {
    cache_bytes: u64,
    memtable_bytes: u64,
}

impl Default for FjallOptions {
    fn default() -> FjallOptions {
        FjallOptions { cache_bytes: CACHE_BYTES_DEFAULT, memtable_bytes: MEMTABLE_BYTES_DEFAULT }
    }
}

impl FjallOptions {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> FjallOptions {
        FjallOptions::default()
    }

    /// Sets the memory for blocks of fjall's tables in bytes; 256 MiB by default, at least 1 MiB. The memtables
    /// ([`FjallOptions::memtable_bytes`]) come on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> FjallOptions {
        self.cache_bytes = bytes;
        self
    }

    /// Sets the size in bytes at which fjall writes a memtable to a table; 64 MiB by default, at least 64 KiB. While
    /// tables are being written, fjall may hold a few times as much. A store keeps the size it was created with.
    #[must_use]
    pub fn memtable_bytes(mut self, bytes: u64) -> FjallOptions {
        self.memtable_bytes = bytes;
        self
    }

    /// Opens the store in the directory `path`; see [`FjallStore::open`].
    ///
    /// # Errors
    /// Those of [`FjallStore::open`], and [`ErrorKind::InvalidOption`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<FjallStore> {
        // Before the directory is made or locked, so that a refused option leaves nothing behind.
        for (option, bytes, min) in [
            ("cache_bytes", self.cache_bytes, CACHE_BYTES_MIN),
            ("memtable_bytes", self.memtable_bytes, MEMTABLE_BYTES_MIN),
        ] {
            if bytes < min {
                let context = format!("{option} is {bytes}, and must be at least {min}");
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
        }
        let directory = Directory::open(path.as_ref())?;
        let opened = open_database(&directory, self.cache_bytes, self.memtable_bytes)?;
        let reading =
            |error| fjall_error(format!("opening the store in {}", directory.path().display()), error);
        let meta = opened.keyspace.get(META_KEY).map_err(reading)?;
        // Only a database without the meta record has to be looked through.
        let is_empty = meta.is_none() && opened.keyspace.is_empty().map_err(reading)?;
        let standing = layout::decode_meta(meta.as_deref(), is_empty, directory.path())?;
        Ok(FjallStore(Embedded::start(Fjall { opened: Some(opened) }, directory, standing)?))
    }
}

/// An embedded store in a log-structured merge tree, which applies batches fastest.
///
/// Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop finishes the calls that have begun, joins the threads and unlocks the directory, so it may take as
/// long as writing a table. Afterwards the store can be opened again at once.
///
/// ```
/// # async fn example() -> forebay::Result<()> {
/// use forebay::{FjallStore, Forebay};
///
/// let directory = tempfile::tempdir().expect("a temporary directory");
/// let store = FjallStore::open(directory.path().join("store"))?;
/// let bay = Forebay::builder(store).journal(directory.path().join("journal")).open().await?;
/// bay.close().await?;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct FjallStore(Embedded<Fjall>);

impl FjallStore {
    /// Opens the store in the directory `path`, and creates it if it does not exist. The mode of the directory becomes
    /// 0700. Blocks while it reads fjall's journals and the index of its tables.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if it holds something
    /// else, or if another program or a later version of this crate wrote the database; [`ErrorKind::Damaged`];
    /// [`ErrorKind::Io`] and [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<FjallStore> {
        FjallOptions::default().open(path)
    }
}

embedded_store!(FjallStore);

struct Fjall {
    /// `None` only while the store is being closed.
    opened: Option<OpenedDatabase>,
}

impl Fjall {
    fn opened(&self) -> (&Db, &Keyspace) {
        let opened = self.opened.as_ref().expect("only closing takes it");
        (&opened.db, &opened.keyspace)
    }
}

impl Database for Fjall {
    type Writer = Directory;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let (_, keyspace) = self.opened();
        let stored = keyspace.get(value_key(key)).map_err(|error| {
            // Nothing was changed, and a failure of the file system may pass.
            let transient = is_io(&error);
            let error = fjall_error("loading from the store".to_owned(), error);
            if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
        })?;
        let Some(stored) = stored else { return Ok(None) };
        match layout::split_value(&stored, key)? {
            (INLINE, version, value) => Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version })),
            _ => Err(layout::unknown_value(key)),
        }
    }

    /// Every failure is fatal: fjall refuses all writes after a failed one.
    fn write(&self, _: &mut Directory, changes: &[&Op], standing: &Standing) -> Result<(), StoreError> {
        let (db, keyspace) = self.opened();
        let durable = Safeguard::StoreSync.holds();
        // `SyncData`, because fjall's default leaves a commit in the page cache, and a power cut takes it back.
        let mode = if durable { PersistMode::SyncData } else { PersistMode::Buffer };
        let mut batch = db.batch().durability(Some(mode));
        for op in changes {
            let key = value_key(&op.key);
            match &op.value {
                None => batch.remove(keyspace, key),
                Some(value) => {
                    let mut stored = Vec::with_capacity(VALUE_HEADER_BYTES + value.len());
                    stored.put_slice(&layout::value_header(INLINE, op.seq));
                    stored.put_slice(value);
                    batch.insert(keyspace, key, stored);
                }
            }
        }
        // In the same batch as the data: apart from it, a crash between the two would apply records twice or lose
        // them.
        batch.insert(keyspace, META_KEY, layout::encode_meta(standing));
        batch
            .commit()
            .map_err(|error| StoreError::Fatal(fjall_error("writing to the store".to_owned(), error)))
    }

    fn close(&mut self, _: &mut Directory) {
        // Before the directory's lock goes, because fjall's threads write until its last handle is dropped.
        drop(self.opened.take());
    }
}

const DATABASE_NAME: &str = "fjall";
const KEYSPACE_NAME: &str = "forebay";

/// A database and its one keyspace.
struct OpenedDatabase {
    keyspace: Keyspace,
    db: Db,
}

/// Opens the database in `directory`, and creates it if it does not exist.
///
/// # Errors
/// [`ErrorKind::Locked`], [`ErrorKind::UnknownFormat`], [`ErrorKind::Damaged`]; those of the file system.
fn open_database(directory: &Directory, cache_bytes: u64, memtable_bytes: u64) -> Result<OpenedDatabase> {
    let converted = |failure| convert(failure, directory.path());
    let path = directory.database(DATABASE_NAME, |path| {
        let made = checked(|| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
            Db::builder(path).open()?.keyspace(KEYSPACE_NAME, options)
        });
        made.map(drop).map_err(converted)
    })?;
    if !path.join("version").is_file() {
        // Without this file fjall would create a new database here.
        return Err(Error::new(
            ErrorKind::Damaged,
            damaged(directory.path(), "fjall's version file is missing"),
        ));
    }
    // Before fjall opens it, because fjall cuts at the first bad byte, and what lies behind would be lost in
    // silence.
    journal::repair(&path)?;
    let opened = checked(|| {
        let db = Db::builder(&path).cache_size(cache_bytes).open()?;
        // Creating it here would turn a database that lost its data into an empty one.
        if !db.keyspace_exists(KEYSPACE_NAME) {
            return Ok(None);
        }
        let keyspace = db.keyspace(KEYSPACE_NAME, KeyspaceCreateOptions::default)?;
        Ok(Some(OpenedDatabase { keyspace, db }))
    });
    opened.map_err(converted)?.ok_or_else(|| {
        Error::new(ErrorKind::Damaged, damaged(directory.path(), "fjall lacks the keyspace of this crate"))
    })
}

/// The error of an opening; `None` if fjall panicked.
type OpenFailure = Option<::fjall::Error>;

/// Runs a call that reads the database. fjall has assertions on what it reads, so a damaged file may make it panic.
fn checked<T>(work: impl FnOnce() -> ::fjall::Result<T>) -> Result<T, OpenFailure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| None)?.map_err(Some)
}

fn convert(failure: OpenFailure, path: &Path) -> Error {
    match failure {
        // A panic while reading means contents that fjall did not expect.
        None => Error::new(ErrorKind::Damaged, damaged(path, "fjall gave up on it")),
        Some(::fjall::Error::Locked) => locked(path),
        Some(error @ ::fjall::Error::InvalidVersion(_)) => {
            let context = format!("the database in {} is not of fjall's format 3", path.display());
            Error::with_source(ErrorKind::UnknownFormat, context, error)
        }
        Some(error) => {
            let error = fjall_error(format!("opening the store in {}", path.display()), error);
            if error.kind() == ErrorKind::Damaged {
                return error.wrap(ErrorKind::Damaged, damaged(path, "fjall cannot read it"));
            }
            error
        }
    }
}

/// Returns true for a failure of the file system, as opposed to bad contents.
fn is_io(error: &::fjall::Error) -> bool {
    matches!(error, ::fjall::Error::Io(_) | ::fjall::Error::Storage(::fjall::LsmError::Io(_)))
}

/// Converts an error of fjall, and keeps it as the source.
fn fjall_error(context: String, error: ::fjall::Error) -> Error {
    match error {
        ::fjall::Error::Io(error) | ::fjall::Error::Storage(::fjall::LsmError::Io(error)) => {
            Error::io(context, error)
        }
        // Apart from these two, the other errors are about the contents of the files.
        ::fjall::Error::Poisoned | ::fjall::Error::KeyspaceDeleted => {
            Error::with_source(ErrorKind::StoreFailed, context, error)
        }
        other => Error::with_source(ErrorKind::Damaged, context, other),
    }
}
