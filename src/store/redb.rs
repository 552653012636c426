//! An embedded store on redb 4, a copy-on-write B+tree in one file (feature `redb`).
//!
//! A batch, its progress and the epoch check are one transaction on one table. redb writes its pages beside those in
//! use, then the header's slot that leads to them, all with checksums, and ends the commit with an `fdatasync`; that
//! is what [`Durability::Immediate`] means. A power cut during it is noticed by the checksums when the file is opened
//! again, and the slot before is taken.
//!
//! For that, redb reads and checks the whole file when it opens one that was not closed. With
//! [`RedbOptions::quick_repair`] it saves with each commit which pages are free and syncs twice, and opens at once.
//!
//! Values up to the layer's limit lie in the tree as they are; one that outgrows a page gets a run of pages of its own,
//! which redb rounds up to a power of two. The layout is `layout`'s, in a table called `forebay`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::redb::{Builder, Database as Db, Durability, ReadableDatabase, ReadableTableMetadata};
use ::redb::{TableDefinition, TableError};
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Key};
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, StoreError, Tenure, Versioned};
use crate::store::directory::{Directory, damaged, failed, locked, open_private};
use crate::store::embedded::{Database, Embedded, embedded_store};
use crate::store::layout::{self, INLINE, META_KEY, VALUE_HEADER_BYTES, value_key};

/// The memory redb may use for pages unless [`RedbOptions::cache_bytes`] says otherwise.
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
const DATABASE_NAME: &str = "data.redb";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("forebay");

/// How to open a [`RedbStore`].
#[derive(Clone, Debug)]
pub struct RedbOptions {
    cache_bytes: u64,
    quick_repair: bool,
}

impl Default for RedbOptions {
    fn default() -> RedbOptions {
        RedbOptions { cache_bytes: CACHE_BYTES_DEFAULT, quick_repair: false }
    }
}

impl RedbOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> RedbOptions {
        RedbOptions::default()
    }

    /// How many bytes of pages redb keeps in memory; 256 MiB by default, at least 1 MiB. A batch that is being
    /// written, and a load at work, come on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> RedbOptions {
        self.cache_bytes = bytes;
        self
    }

    /// Whether redb saves with each batch what it needs to open at once after a crash. It costs a second sync and
    /// more pages per batch; without it (the default) the opening after a crash reads the whole file.
    #[must_use]
    pub fn quick_repair(mut self, quick: bool) -> RedbOptions {
        self.quick_repair = quick;
        self
    }

    /// Opens the store in the directory `path`; see [`RedbStore::open`].
    ///
    /// # Errors
    /// As [`RedbStore::open`], and [`ErrorKind::InvalidOption`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RedbStore> {
        if self.cache_bytes < CACHE_BYTES_MIN {
            let context =
                format!("cache_bytes is {}, and must be at least {CACHE_BYTES_MIN}", self.cache_bytes);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let mut builder = Db::builder();
        builder.set_cache_size(usize::try_from(self.cache_bytes).unwrap_or(usize::MAX));
        let directory = Directory::open(path.as_ref())?;
        let file = directory.database(DATABASE_NAME, |file| {
            drop(open_private(file)?);
            // Closing syncs it, as the transaction did before.
            drop(checked(&directory, || create(&builder, file))?);
            Ok(())
        })?;
        // What an earlier process left unsynced, so that nothing is read that could vanish later.
        open_private(&file)?.sync_all().map_err(|error| failed("syncing", &file, error))?;
        let db = checked(&directory, || Ok(builder.open(&file)?))?;
        let tenure = read_tenure(&db, &directory)?;
        let redb = Redb { db: Some(db), quick_repair: self.quick_repair };
        Ok(RedbStore(Embedded::start(redb, directory, tenure)?))
    }
}

/// A store in one file, for who wants the strictest commit or a file that stays as small as it can.
///
/// Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop runs to their end the calls that were begun, joins the store's threads and lets the
/// directory go, so it may take as long as a sync; afterwards the store can be opened again at once.
///
/// ```
/// # async fn example() -> forebay::Result<()> {
/// use forebay::{Forebay, RedbStore};
///
/// let directory = tempfile::tempdir().expect("a temporary directory");
/// let store = RedbStore::open(directory.path().join("store"))?;
/// let bay = Forebay::builder(store).journal(directory.path().join("journal")).open().await?;
/// bay.close().await?;
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct RedbStore(Embedded<Redb>);

impl RedbStore {
    /// Opens the store in the directory `path`, creating it if there is none. The directory becomes its
    /// owner's alone (0700). Blocks while it reads what is there: all of it after a crash, unless it was written with
    /// [`RedbOptions::quick_repair`].
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if it holds something
    /// else, if somebody else wrote the database, or a later version of this crate; [`ErrorKind::Damaged`];
    /// [`ErrorKind::Io`] and [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<RedbStore> {
        RedbOptions::default().open(path)
    }
}

embedded_store!(RedbStore);

struct Redb {
    /// `None` only while it is being closed.
    db: Option<Db>,
    quick_repair: bool,
}

impl Redb {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("only closing takes it")
    }

    fn find(&self, key: &Key) -> Result<Option<Versioned>, Failure> {
        let table = self.db().begin_read()?.open_table(TABLE)?;
        let Some(stored) = table.get(value_key(key).as_slice())? else { return Ok(None) };
        match layout::split_value(stored.value(), key)? {
            (INLINE, version, value) => Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version })),
            _ => Err(layout::unknown_value(key).into()),
        }
    }

    fn commit(&self, changes: &[&Op], tenure: &Tenure) -> Result<(), ::redb::Error> {
        let mut transaction = self.db().begin_write()?;
        let durable = Safeguard::StoreSync.holds();
        transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        transaction.set_quick_repair(self.quick_repair);
        {
            let mut table = transaction.open_table(TABLE)?;
            for op in changes {
                let key = value_key(&op.key);
                let Some(value) = &op.value else {
                    table.remove(key.as_slice())?;
                    continue;
                };
                let mut place = table.insert_reserve(key.as_slice(), VALUE_HEADER_BYTES + value.len())?;
                let (header, content) = place.as_mut().split_at_mut(VALUE_HEADER_BYTES);
                header.copy_from_slice(&layout::value_header(INLINE, op.seq));
                content.copy_from_slice(value);
            }
            table.insert(META_KEY, layout::encode_meta(tenure).as_slice())?;
        }
        Ok(transaction.commit()?)
    }
}

impl Database for Redb {
    type Pen = Directory;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.find(key).map_err(|failure| match failure {
            Failure::Store(error) => error,
            // Nothing was changed, and the file system may recover from what it said.
            Failure::Redb(error) => {
                let transient = matches!(error, ::redb::Error::Io(_));
                let error = redb_error("loading from the store".to_owned(), error);
                if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
            }
        })
    }

    /// A failure is always fatal: redb keeps its first I/O error and refuses everything after it.
    fn write(&self, _: &mut Directory, changes: &[&Op], tenure: &Tenure) -> Result<(), StoreError> {
        self.commit(changes, tenure)
            .map_err(|error| StoreError::Fatal(redb_error("writing to the store".to_owned(), error)))
    }

    fn close(&mut self, _: &mut Directory) {
        // redb writes down which pages are free. By then every batch that was acknowledged is durable, and without
        // that note the next opening finds it out by itself, so there is nothing to report.
        drop(self.db.take().map(Db::close));
    }
}

/// What can go wrong while a value is looked up.
enum Failure {
    Redb(::redb::Error),
    Store(StoreError),
}

impl<E: Into<::redb::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Redb(error.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

/// Makes a database with the table in it.
fn create(builder: &Builder, file: &Path) -> Result<Db, ::redb::Error> {
    let db = builder.create(file)?;
    let transaction = db.begin_write()?;
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    Ok(db)
}

fn read_tenure(db: &Db, directory: &Directory) -> Result<Tenure> {
    let read = || -> Result<_, ::redb::Error> {
        let table = match db.begin_read()?.open_table(TABLE) {
            // Another type, or no such table: it is not ours.
            Err(TableError::Storage(error)) => return Err(error.into()),
            Err(_) => return Ok((None, false)),
            Ok(table) => table,
        };
        let meta = table.get(META_KEY)?.map(|meta| meta.value().to_vec());
        Ok((meta, table.is_empty()?))
    };
    let (meta, is_empty) = checked(directory, read)?;
    layout::decode_meta(meta.as_deref(), is_empty, directory.path())
}

/// Runs what reads a file that may not be what it should; redb asserts in places that it is.
fn checked<T>(directory: &Directory, work: impl FnOnce() -> Result<T, ::redb::Error>) -> Result<T> {
    let path = directory.path();
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(::redb::Error::DatabaseAlreadyOpen)) => Err(locked(path)),
        Ok(Err(::redb::Error::UpgradeRequired(format))) => {
            let context = format!("the database in {} has redb's format {format}", path.display());
            Err(Error::new(ErrorKind::UnknownFormat, context))
        }
        Ok(Err(error)) if is_damage(&error) => {
            Err(Error::with_source(ErrorKind::Damaged, damaged(path, "redb cannot read it"), error))
        }
        Ok(Err(error)) => Err(redb_error(format!("opening the store in {}", path.display()), error)),
        Err(_) => Err(Error::new(ErrorKind::Damaged, damaged(path, "redb gave up on it"))),
    }
}

/// Whether it is about what was read: a wrong checksum, or a file that is too short.
fn is_damage(error: &::redb::Error) -> bool {
    use std::io::ErrorKind as Io;
    match error {
        ::redb::Error::Corrupted(_) => true,
        ::redb::Error::Io(error) => matches!(error.kind(), Io::InvalidData | Io::UnexpectedEof),
        _ => false,
    }
}

/// What redb said, in the crate's words.
fn redb_error(context: String, error: ::redb::Error) -> Error {
    match error {
        ::redb::Error::Io(error) => Error::io(context, error),
        ::redb::Error::Corrupted(_) => Error::with_source(ErrorKind::Damaged, context, error),
        other => Error::with_source(ErrorKind::StoreFailed, context, other),
    }
}
