//! Opening fjall so that a power cut takes nothing, and what its errors mean.
//!
//! What a power cut can do to fjall's journal is mended before fjall reads it (`fjall_journal`).
//!
//! fjall never syncs `keyspaces/`, in which each keyspace has a directory. Without that directory it passes over all
//! that its journal holds of the keyspace, and an empty one would be made. So a new database is made durable as a whole
//! before it is moved into place, and one that lacks its keyspace is damaged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::fjall::{Database as Db, Keyspace, KeyspaceCreateOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::store::directory::{Directory, damaged, locked};
use crate::store::fjall_journal;

const DATABASE_NAME: &str = "fjall";
const KEYSPACE_NAME: &str = "forebay";

/// A database and its one keyspace.
pub(crate) struct Opened {
    pub(crate) keyspace: Keyspace,
    pub(crate) db: Db,
}

/// Opens the database in `directory`, making it if there is none.
///
/// # Errors
/// [`ErrorKind::Locked`], [`ErrorKind::UnknownFormat`], [`ErrorKind::Damaged`], or what the file system says.
pub(crate) fn open(directory: &Directory, cache_bytes: u64, memtable_bytes: u64) -> Result<Opened> {
    let told = |failure| told(failure, directory.path());
    let path = directory.database(DATABASE_NAME, |path| {
        let made = checked(|| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
            Db::builder(path).open()?.keyspace(KEYSPACE_NAME, options)
        });
        made.map(drop).map_err(told)
    })?;
    if !path.join("version").is_file() {
        // fjall would take it for a place where it can make a new one.
        return Err(Error::new(
            ErrorKind::Damaged,
            damaged(directory.path(), "fjall's version file is missing"),
        ));
    }
    fjall_journal::mend(&path)?;
    let opened = checked(|| {
        let db = Db::builder(&path).cache_size(cache_bytes).open()?;
        if !db.keyspace_exists(KEYSPACE_NAME) {
            return Ok(None);
        }
        let keyspace = db.keyspace(KEYSPACE_NAME, KeyspaceCreateOptions::default)?;
        Ok(Some(Opened { keyspace, db }))
    });
    opened.map_err(told)?.ok_or_else(|| {
        Error::new(ErrorKind::Damaged, damaged(directory.path(), "fjall lacks the keyspace of this crate"))
    })
}

/// Why an opening failed; `None` if fjall panicked.
type Failure = Option<::fjall::Error>;

/// fjall asserts in places that what it reads makes sense.
fn checked<T>(work: impl FnOnce() -> ::fjall::Result<T>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| None)?.map_err(Some)
}

fn told(failure: Failure, path: &Path) -> Error {
    match failure {
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

/// Whether the file system said it, and not what was read.
pub(crate) fn is_io(error: &::fjall::Error) -> bool {
    matches!(error, ::fjall::Error::Io(_) | ::fjall::Error::Storage(::fjall::LsmError::Io(_)))
}

/// What fjall said, in the crate's words.
pub(crate) fn fjall_error(context: String, error: ::fjall::Error) -> Error {
    match error {
        ::fjall::Error::Io(error) | ::fjall::Error::Storage(::fjall::LsmError::Io(error)) => {
            Error::io(context, error)
        }
        // Of the rest, only this is not about what was read.
        ::fjall::Error::Poisoned | ::fjall::Error::KeyspaceDeleted => {
            Error::with_source(ErrorKind::StoreFailed, context, error)
        }
        other => Error::with_source(ErrorKind::Damaged, context, other),
    }
}
