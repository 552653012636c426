//! An embedded store on redb 4, a copy-on-write B+tree in one file (feature `redb`).
//!
//! A batch, its progress and the epoch check are one transaction on one table. redb writes new pages beside those in
//! use, then the slot of the header that refers to them, all with checksums, and ends the commit with an `fdatasync`
//! ([`Durability::Immediate`]). When the file is opened after a power cut, the checksums show an incomplete commit, and
//! redb takes the previous slot.
//!
//! To do so, redb reads and checks the whole file when it opens one that was not closed. With
//! [`RedbOptions::quick_repair`] it saves the free pages with each commit and syncs twice, and opens at once.
//!
//! All values are stored in the tree. A value that is larger than a page gets consecutive pages of its own, whose
//! number redb rounds up to a power of two. The layout is `embedded::layout`, in a table called `forebay`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::redb::{Builder, Database as Db, Durability, ReadableDatabase, ReadableTableMetadata};
use ::redb::{TableDefinition, TableError};
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Key;
use crate::safeguard::Safeguard;
use crate::store::contract::{Batch, BoxFuture, Op, Standing, StoreError, Versioned};
use crate::store::embedded::directory::{Directory, damaged, failed, locked, open_private};
use crate::store::embedded::layout::{self, INLINE, META_KEY, VALUE_HEADER_BYTES, value_key};
use crate::store::embedded::{Database, Embedded, embedded_store};

/// The default memory for pages; see [`RedbOptions::cache_bytes`].
const CACHE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
const DATABASE_NAME: &str = "data.redb";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("forebay");

/// The options of a [`RedbStore`].
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
    /// Returns the default options.
    #[must_use]
    pub fn new() -> RedbOptions {
        RedbOptions::default()
    }

    /// Sets the memory for redb's pages in bytes; 256 MiB by default, at least 1 MiB. A batch that is being written and
    /// running loads come on top.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> RedbOptions {
        self.cache_bytes = bytes;
        self
    }

    /// Saves the state for a quick opening after a crash with each batch. Costs a second sync and more pages per batch.
    /// Without it (the default) the opening after a crash reads the whole file.
    #[must_use]
    pub fn quick_repair(mut self, quick: bool) -> RedbOptions {
        self.quick_repair = quick;
        self
    }

    /// Opens the store in the directory `path`; see [`RedbStore::open`].
    ///
    /// # Errors
    /// Those of [`RedbStore::open`], and [`ErrorKind::InvalidOption`].
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
            // Created by us first, because redb would take the mode from the umask.
            drop(open_private(file)?);
            // Closing the database syncs the file, and so did the transaction.
            drop(checked(&directory, || create(&builder, file))?);
            Ok(())
        })?;
        // Sync what an earlier process left unsynced: nothing may be read that a power cut could still take.
        open_private(&file)?.sync_all().map_err(|error| failed("syncing", &file, error))?;
        let db = checked(&directory, || Ok(builder.open(&file)?))?;
        let standing = read_standing(&db, &directory)?;
        let redb = Redb { db: Some(db), quick_repair: self.quick_repair };
        Ok(RedbStore(Embedded::start(redb, directory, standing)?))
    }
}

/// An embedded store in one file, with the strictest commit and the smallest file of the embedded stores.
///
/// Clones share one database; dropping the last one closes it.
///
/// # Dropping
/// The last drop finishes the calls that have begun, joins the store's threads and unlocks the directory, so it may
/// take as long as a sync. Afterwards the store can be opened again at once.
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
    /// Opens the store in the directory `path`, and creates it if it does not exist. The mode of the directory becomes
    /// 0700. Blocks while it reads the file: all of it after a crash, unless the last batch was written with
    /// [`RedbOptions::quick_repair`].
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if the directory is open already; [`ErrorKind::UnknownFormat`] if it holds something
    /// else, or if another program or a later version of this crate wrote the database; [`ErrorKind::Damaged`];
    /// [`ErrorKind::Io`] and [`ErrorKind::DiskFull`] if the file system fails.
    pub fn open(path: impl AsRef<Path>) -> Result<RedbStore> {
        RedbOptions::default().open(path)
    }
}

embedded_store!(RedbStore);

struct Redb {
    /// `None` only while the store is being closed.
    db: Option<Db>,
    quick_repair: bool,
}

impl Redb {
    fn db(&self) -> &Db {
        self.db.as_ref().expect("only closing takes it")
    }

    fn find(&self, key: &Key) -> Result<Option<Versioned>, LookupFailure> {
        let table = self.db().begin_read()?.open_table(TABLE)?;
        let Some(stored) = table.get(value_key(key).as_slice())? else { return Ok(None) };
        match layout::split_value(stored.value(), key)? {
            (INLINE, version, value) => Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version })),
            _ => Err(layout::unknown_value(key).into()),
        }
    }

    fn commit(&self, changes: &[&Op], standing: &Standing) -> Result<(), ::redb::Error> {
        let mut transaction = self.db().begin_write()?;
        let durable = Safeguard::StoreSync.holds();
        // Without it redb returns before the sync, and a power cut takes back what was acknowledged.
        transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        // Set for each transaction: redb does not keep it.
        transaction.set_quick_repair(self.quick_repair);
        {
            let mut table = transaction.open_table(TABLE)?;
            for op in changes {
                let key = value_key(&op.key);
                let Some(value) = &op.value else {
                    table.remove(key.as_slice())?;
                    continue;
                };
                let mut reserved = table.insert_reserve(key.as_slice(), VALUE_HEADER_BYTES + value.len())?;
                let (header, content) = reserved.as_mut().split_at_mut(VALUE_HEADER_BYTES);
                header.copy_from_slice(&layout::value_header(INLINE, op.seq));
                content.copy_from_slice(value);
            }
            // In the same transaction as the data: apart from it, a crash between the two would apply records
            // twice or lose them.
            table.insert(META_KEY, layout::encode_meta(standing).as_slice())?;
        }
        Ok(transaction.commit()?)
    }
}

impl Database for Redb {
    type Writer = Directory;

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.find(key).map_err(|failure| match failure {
            LookupFailure::Store(error) => error,
            // Nothing was changed, and a failure of the file system may pass.
            LookupFailure::Redb(error) => {
                let transient = matches!(error, ::redb::Error::Io(_));
                let error = redb_error("loading from the store".to_owned(), error);
                if transient { StoreError::Transient(error) } else { StoreError::Fatal(error) }
            }
        })
    }

    /// Every failure is fatal: redb keeps its first I/O error and refuses all later calls.
    fn write(&self, _: &mut Directory, changes: &[&Op], standing: &Standing) -> Result<(), StoreError> {
        self.commit(changes, standing)
            .map_err(|error| StoreError::Fatal(redb_error("writing to the store".to_owned(), error)))
    }

    fn close(&mut self, _: &mut Directory) {
        // Closing writes the list of free pages. All acknowledged batches are durable already, and the next opening
        // can rebuild the list, so a failure concerns nobody.
        drop(self.db.take().map(Db::close));
    }
}

/// The failure of a look-up: redb's, or a value that cannot be decoded.
enum LookupFailure {
    Redb(::redb::Error),
    Store(StoreError),
}

impl<E: Into<::redb::Error>> From<E> for LookupFailure {
    fn from(error: E) -> LookupFailure {
        LookupFailure::Redb(error.into())
    }
}

impl From<StoreError> for LookupFailure {
    fn from(error: StoreError) -> LookupFailure {
        LookupFailure::Store(error)
    }
}

/// Creates a database with the table in it.
fn create(builder: &Builder, file: &Path) -> Result<Db, ::redb::Error> {
    let db = builder.create(file)?;
    let transaction = db.begin_write()?;
    transaction.open_table(TABLE)?;
    // The table exists before the database has its name, so that a database without it is not one of ours.
    transaction.commit()?;
    Ok(db)
}

fn read_standing(db: &Db, directory: &Directory) -> Result<Standing> {
    let read = || -> Result<_, ::redb::Error> {
        let table = match db.begin_read()?.open_table(TABLE) {
            // The table is missing or has other types: another program created the database.
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

/// Runs a call that reads the file. redb has assertions on what it reads, so a damaged file may make it panic.
fn checked<T>(directory: &Directory, work: impl FnOnce() -> Result<T, ::redb::Error>) -> Result<T> {
    let path = directory.path();
    // redb's panic is caught, because a damaged file must be an error that names it and not the end of the
    // process.
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

/// Returns true if the error is about the contents of the file: a wrong checksum, or a file that is too short.
fn is_damage(error: &::redb::Error) -> bool {
    use std::io::ErrorKind as Io;
    match error {
        ::redb::Error::Corrupted(_) => true,
        ::redb::Error::Io(error) => matches!(error.kind(), Io::InvalidData | Io::UnexpectedEof),
        _ => false,
    }
}

/// Converts an error of redb, and keeps it as the source.
fn redb_error(context: String, error: ::redb::Error) -> Error {
    match error {
        ::redb::Error::Io(error) => Error::io(context, error),
        ::redb::Error::Corrupted(_) => Error::with_source(ErrorKind::Damaged, context, error),
        other => Error::with_source(ErrorKind::StoreFailed, context, other),
    }
}
