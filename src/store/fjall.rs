//! An embedded store on fjall 3, a log-structured merge tree in a directory (feature `fjall`).
//!
//! A batch, its progress and the epoch check are one fjall batch in one keyspace: one entry of fjall's own journal with
//! a checksum at its end. On return that journal has been synced (`fdatasync`, [`PersistMode::SyncData`]). Later, on
//! threads of its own, fjall writes what it holds in memory to sorted tables, syncs them and their directories, and
//! then removes the journal that they replace.
//!
//! A failure on those threads ends the store as one of an apply does, with the next call that writes.
//!
//! What a power cut leaves of fjall's journal is mended by `fjall_journal` before it opens. Values up to the layer's
//! limit lie in the tables as they are, and are copied whenever tables are merged. The layout is `layout`'s, in a
//! keyspace called `forebay`.

use std::path::Path;

use ::fjall::{Database as Db, Keyspace, PersistMode};
use bytes::{BufMut, Bytes};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Key};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, StoreError, Tenure, Versioned};
use crate::store::directory::Directory;
use crate::store::embedded::{Database, Embedded, embedded_store};
use crate::store::fjall_open::{self, Opened, fjall_error};
use crate::store::layout::{self, INLINE, META_KEY, VALUE_HEADER_BYTES, value_key};

/// The memory fjall may use for blocks of its tables unless [`FjallOptions::cache_bytes`] says otherwise.
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
const MEMTABLE_BYTES_DEFAULT: u64 = 64 * 1024 * 1024;
const MEMTABLE_BYTES_MIN: u64 = 64 * 1024;

/// How to open a [`FjallStore`].
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
    /// The default options.
    #[must_use]
    pub fn new() -> FjallOptions {
        FjallOptions::default()
    }

    /// How many bytes of its tables fjall keeps in memory; 256 MiB by default, at least 1 MiB. What was written last
    /// ([`FjallOptions::memtable_bytes`]) comes on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> FjallOptions {
        self.cache_bytes = bytes;
        self
    }

    /// How many bytes of new values fjall collects in memory before it writes a table; 64 MiB by default, at least
    /// 64 KiB. While tables are being written it may hold a few times as much. A store keeps what it was made with.
    #[must_use]
    pub fn memtable_bytes(mut self, bytes: u64) -> FjallOptions {
        self.memtable_bytes = bytes;
        self
    }

    /// Opens the store in the directory `path`; see [`FjallStore::open`].
    ///
    /// # Errors
    /// As [`FjallStore::open`], and [`ErrorKind::InvalidOption`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<FjallStore> {
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
        let opened = fjall_open::open(&directory, self.cache_bytes, self.memtable_bytes)?;
        let reading =
            |error| fjall_error(format!("opening the store in {}", directory.path().display()), error);
        let meta = opened.keyspace.get(META_KEY).map_err(reading)?;
        let is_empty = meta.is_none() && opened.keyspace.is_empty().map_err(reading)?;
        let tenure = layout::decode_meta(meta.as_deref(), is_empty, directory.path())?;
        Ok(FjallStore(Embedded::start(Fjall { opened: Some(opened) }, directory, tenure)?))
    }
}

/// A store in a log-structured merge tree, for who wants the fastest drain.
///
/// Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop runs to their end the calls that were begun, joins the threads and lets the
/// directory go, so it may take as long as a table that is being written; afterwards the store can be opened again at
/// once.
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
    /// Opens the store in the directory `path`, creating it if there is none. The directory becomes its
    /// owner's alone (0700). Blocks while it reads what is there: fjall's journals, and what leads to its tables.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if it holds something
    /// else, if somebody else wrote the database, or a later version of this crate; [`ErrorKind::Damaged`];
    /// [`ErrorKind::Io`] and [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<FjallStore> {
        FjallOptions::default().open(path)
    }
}

embedded_store!(FjallStore);

struct Fjall {
    /// `None` only while it is being closed.
    opened: Option<Opened>,
}

impl Fjall {
    fn opened(&self) -> (&Db, &Keyspace) {
        let opened = self.opened.as_ref().expect("only closing takes it");
        (&opened.db, &opened.keyspace)
    }
}

impl Database for Fjall {
    type Pen = Directory;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let (_, keyspace) = self.opened();
        let stored = keyspace.get(value_key(key)).map_err(|error| {
            // Nothing was changed, and the file system may recover from what it said.
            let transient = fjall_open::is_io(&error);
            let error = fjall_error("loading from the store".to_owned(), error);
            if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
        })?;
        let Some(stored) = stored else { return Ok(None) };
        match layout::split_value(&stored, key)? {
            (INLINE, version, value) => Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version })),
            _ => Err(layout::unknown_value(key)),
        }
    }

    /// A failure is always fatal: fjall refuses all writes after a failed one.
    fn write(&self, _: &mut Directory, changes: &[&Op], tenure: &Tenure) -> Result<(), StoreError> {
        let (db, keyspace) = self.opened();
        let durable = Safeguard::StoreSync.holds();
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
        batch.insert(keyspace, META_KEY, layout::encode_meta(tenure));
        batch
            .commit()
            .map_err(|error| StoreError::Fatal(fjall_error("writing to the store".to_owned(), error)))
    }

    fn close(&mut self, _: &mut Directory) {
        drop(self.opened.take());
    }
}
