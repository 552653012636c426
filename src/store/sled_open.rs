//! Opening sled so that a power cut during it takes nothing, and what its errors mean.
//!
//! When sled 0.34 opens it writes a new snapshot of its page table, renames it into place, removes the one before, and
//! then fills with zeros whatever segments the new snapshot does not need. It never syncs the directory. So a power cut
//! could leave the zeros and the old snapshot, or none, and sled's recovery, which then has to read the log, finds a
//! hole where it insists on a segment and takes the whole log before it for lost: without an error, the store was empty
//! or older. [`open`] therefore stops the first opening between the two, makes the names durable, and opens again.
//!
//! A new database's configuration file is written in two parts and not synced, and sled refuses to open with half of
//! it. So it is made elsewhere and moved into place, before the database has a first byte.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::sled::{Config, Db};

use crate::error::{Error, ErrorKind, Result};
use crate::store::directory::{self, damaged};
use crate::store::sled_files::Files;

/// Opens the database in `files`; whatever was written by then is durable on return.
///
/// # Errors
/// [`ErrorKind::Locked`], [`ErrorKind::UnknownFormat`], [`ErrorKind::Damaged`], or what the file system says.
pub(crate) fn open(files: &mut Files, cache_bytes: u64, segment_bytes: usize) -> Result<Db> {
    // Without its timer sled still cleans up, in the calls that replace pages, but it never writes behind
    // our back: whatever it wrote was written before the sync that covers it, and no sync of its own can
    // fail unseen.
    let config = |path: &Path| {
        Config::new().path(path).cache_capacity(cache_bytes).segment_size(segment_bytes).flush_every_ms(None)
    };
    // A crash may have left one behind.
    files.blobs().unbar_cleaning()?;
    let bytes = files.database_bytes()?;
    if bytes == 0 {
        let elsewhere = files.make_nursery()?;
        drop(attempt(files, &config(&elsewhere))?);
        files.adopt_config()?;
    }
    let config = config(files.path());
    // In a single segment there is nothing to clean.
    if bytes > segment_bytes as u64 {
        files.blobs().bar_cleaning()?;
        let stopped = attempt(files, &config);
        files.blobs().unbar_cleaning()?;
        if let Err(error) = stopped
            && error.kind() == ErrorKind::Locked
        {
            return Err(error);
        }
        // Whatever else it failed by, the opening below meets again and tells.
        files.wait_released().map_err(|error| directory::failed("waiting for", files.path(), error))?;
        files.sync_opened()?;
    }
    let db = attempt(files, &config)?;
    files.sync_opened()?;
    Ok(db)
}

fn attempt(files: &Files, config: &Config) -> Result<Db> {
    // sled asserts in many places that what it reads makes sense.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| open_failed(files, error)),
        Err(_) => Err(Error::new(ErrorKind::Damaged, damaged(files.path(), "sled gave up on it"))),
    }
}

/// Why reading at the opening failed.
pub(crate) fn open_failed(files: &Files, error: ::sled::Error) -> Error {
    match error {
        // The one thing sled says with this kind on opening; our own lock makes it a stranger's.
        ::sled::Error::Io(io)
            if io.kind() == std::io::ErrorKind::Other && io.to_string().contains("lock") =>
        {
            directory::locked(files.path())
        }
        ::sled::Error::Unsupported(why) => {
            let context = format!("the database in {}: {why}", files.path().display());
            Error::new(ErrorKind::UnknownFormat, context)
        }
        ::sled::Error::Corruption { .. } => {
            Error::with_source(ErrorKind::Damaged, damaged(files.path(), "sled cannot read it"), error)
        }
        other => sled_error(format!("opening the store in {}", files.path().display()), other),
    }
}

/// What sled said, in the crate's words.
pub(crate) fn sled_error(context: String, error: ::sled::Error) -> Error {
    match error {
        ::sled::Error::Io(error) => Error::io(context, error),
        ::sled::Error::Corruption { .. } => Error::with_source(ErrorKind::Damaged, context, error),
        other => Error::with_source(ErrorKind::StoreFailed, context, other),
    }
}
