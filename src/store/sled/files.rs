//! The files of a sled database: opening it, locking it, and making it durable.
//!
//! sled 0.34 never syncs the data that it acknowledges: its `flush` ends in a write and, on Linux, `sync_file_range`,
//! which gives no durability. So this module keeps a descriptor of its own on the database file. It is opened before
//! sled writes the first byte, because the kernel reports a failed write-back once to every descriptor that was open
//! then. [`Files::sync`] makes durable all that was written before the call. This module never writes into one of
//! sled's files.
//!
//! # Opening
//! Opening a database, sled 0.34 writes a new snapshot of its page table, renames it into place, removes the
//! previous one, and then fills with zeros all segments that the new snapshot does not need. It never syncs the
//! directory. A power cut could therefore leave the zeros and the old snapshot, or none. sled's recovery then has to
//! read the log, finds a hole where it expects a segment, and takes the whole log before it for lost: the store was
//! empty or older, without an error. So [`open`] stops the first opening between the two steps, makes the names
//! durable, and opens again.
//!
//! sled writes the configuration file of a new database in two parts and does not sync it, and refuses to open with
//! half of it. So the configuration is created in a staging directory and renamed into place before the database has
//! its first byte.
//!
//! # Blobs
//! Each blob is made durable before the log record that refers to it. Listing the directory costs a tenth of the sync
//! of a small batch, and sled hardly ever creates a blob, so the directory is listed only if its change time says that
//! its entries have changed. A second change may have the same time as the first one. So the time counts only if it was
//! old when the directory was listed: any change after the listing then has a different time. If the clock was set back
//! since, it does not count.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ::sled::{Config, Db};

use crate::error::{Error, ErrorKind, Result};
use crate::store::embedded::directory::{
    Directory, create_dir_durably, damaged, failed, locked, open_private, set_mode, sync_dir,
};

const DATABASE_NAME: &str = "db";
const CONFIG_NAME: &str = "conf";

/// The locked directory of one sled database.
pub(crate) struct Files {
    database: File,
    blobs: Blobs,
    /// Locked until the store is closed. sled locks its own file but releases it late; see [`Files::wait_released`].
    directory: Directory,
    #[cfg(test)]
    fails_next_sync: bool,
}

impl Files {
    /// Creates the directory if it does not exist, locks it, and syncs what an earlier process left unsynced: nothing
    /// may be read that a power cut could still take. Called before sled opens.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if another store has the directory open; those of the file system.
    pub(crate) fn open(path: &Path) -> Result<Files> {
        let directory = Directory::open(path)?;
        let blobs = Blobs::open(directory.path())?;
        // Opened before sled's first write, because a failed write-back is reported to descriptors that are open
        // at that time.
        let database = open_private(&directory.path().join(DATABASE_NAME))?;
        let mut files = Files {
            database,
            blobs,
            directory,
            #[cfg(test)]
            fails_next_sync: false,
        };
        // Before sled opens, which would take such a file for its newest snapshot.
        files.remove_unfinished_snapshots()?;
        files.sync_opened()?;
        Ok(files)
    }

    /// Removes snapshots that sled was writing when its process died. sled 0.34 takes such a file for its newest
    /// snapshot and refuses to open. Nothing is lost with it: a snapshot only saves sled from reading its log.
    fn remove_unfinished_snapshots(&self) -> Result<()> {
        let listing = |error| failed("listing", self.path(), error);
        let mut unfinished = Vec::new();
        for entry in fs::read_dir(self.path()).map_err(listing)? {
            let path = entry.map_err(listing)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("snap.") && name.ends_with(".generating") {
                unfinished.push(path);
            }
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        // Take sled's own lock first: another program's sled may be writing a snapshot at this moment.
        match self.database.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(self.path())),
            Err(TryLockError::Error(error)) => return Err(failed("locking", self.path(), error)),
        }
        for path in unfinished {
            fs::remove_file(&path).map_err(|error| failed("removing", &path, error))?;
        }
        self.database.unlock().map_err(|error| failed("unlocking", self.path(), error))
    }

    /// Creates a directory where sled can create the files of a new database; see [`Directory::make_staging`].
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make_staging(&self) -> Result<PathBuf> {
        self.directory.make_staging()
    }

    /// Renames the configuration from the staging directory into place, atomically and durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn adopt_config(&self) -> Result<()> {
        self.directory.adopt(CONFIG_NAME)
    }

    /// Returns the directory of the blobs.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Returns the length of the database file.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn database_bytes(&self) -> Result<u64> {
        let metadata = self.database.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|error| failed("looking at", &self.path().join(DATABASE_NAME), error))
    }

    /// Does the same as [`Files::sync`], and syncs what sled writes only when it opens: its configuration, which it
    /// does not sync, and the snapshot of its page table, which it syncs and renames without syncing the directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync_opened(&mut self) -> Result<()> {
        let config = self.path().join(CONFIG_NAME);
        match File::open(&config) {
            Ok(file) => {
                // sled makes it with the mode of the umask.
                set_mode(&config, 0o600)?;
                file.sync_all().map_err(|error| failed("syncing", &config, error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("opening", &config, error)),
        }
        self.sync()?;
        sync_dir(self.path())
    }

    /// Makes durable all that was written to the database so far. Blobs come first because the log must not refer to
    /// one that a power cut can take. Costs an `fdatasync` and [`Blobs::sync`].
    ///
    /// # Errors
    /// Those of the file system. All writes since the last success then have an unknown outcome. A second call would
    /// succeed without writing them: the kernel may have dropped the pages.
    pub(crate) fn sync(&mut self) -> Result<()> {
        #[cfg(test)]
        if std::mem::take(&mut self.fails_next_sync) {
            let error = io::Error::other("the test fails this sync");
            return Err(failed("syncing", self.path(), error));
        }
        self.blobs.sync()?;
        self.database.sync_data().map_err(|error| failed("syncing", &self.path().join(DATABASE_NAME), error))
    }

    /// Waits until sled has released its lock after its last handle was dropped.
    ///
    /// sled's threads keep the file open a moment longer than its handles. Taking the same lock through our own
    /// descriptor blocks until the last thread has closed it. No other store can take it in between: it would need our
    /// lock of the directory first.
    pub(crate) fn wait_released(&self) -> io::Result<()> {
        self.database.lock()?;
        self.database.unlock()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fails the next sync and, like the kernel, no later one.
    #[cfg(test)]
    pub(crate) fn fail_next_sync(&mut self) {
        self.fails_next_sync = true;
    }
}

const BLOBS_NAME: &str = "blobs";
/// The name of the directory that blocks an opening. Names of blobs are offsets in the log, and no log is as long as
/// this.
const BLOCK_NAME: &str = "9223372036854775807";
/// The age from which on a change time cannot be shared by a later change: no file system has coarser times.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The directory `blobs/` of a sled database.
pub(crate) struct Blobs {
    path: PathBuf,
    /// The names of the durable blobs. sled writes a blob once and never changes it.
    synced: HashSet<OsString>,
    /// The last listing, valid as long as the directory does not change.
    listed: Option<DirectoryListing>,
}

/// A listing that began so long after the last change of the directory that no later change has the same time.
#[derive(Clone, Copy)]
struct DirectoryListing {
    at: SystemTime,
    changed: SystemTime,
}

impl DirectoryListing {
    fn is_true(self, changed: SystemTime, now: SystemTime) -> bool {
        self.changed == changed && self.at <= now
    }
}

impl Blobs {
    /// Creates the directory within the one of the database, if it does not exist.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(database: &Path) -> Result<Blobs> {
        let path = database.join(BLOBS_NAME);
        create_dir_durably(&path)?;
        Ok(Blobs { path, synced: HashSet::new(), listed: None })
    }

    /// Makes all blobs durable. Costs a `stat` of the directory; if it has changed, or did so just now, a listing, and
    /// a sync for each new blob.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let metadata = fs::metadata(&self.path).map_err(|error| failed("looking at", &self.path, error))?;
        // Both are read before the listing: a change during it then has another time, and the next call lists
        // again.
        let (changed, now) = (changed(&metadata), SystemTime::now());
        if let (Some(listed), Some(changed)) = (self.listed, changed)
            && listed.is_true(changed, now)
        {
            return Ok(());
        }
        // Dropped before the sync: if it fails, no later call may take the old listing for true.
        self.listed = None;
        self.sync_new()?;
        self.listed = changed.and_then(|changed| listed(changed, now));
        Ok(())
    }

    fn sync_new(&mut self) -> Result<()> {
        let unlisted = |error| failed("listing", &self.path, error);
        let mut present = HashSet::new();
        let mut is_new = false;
        for entry in fs::read_dir(&self.path).map_err(unlisted)? {
            let name = entry.map_err(unlisted)?.file_name();
            // The directory that blocks an opening is no blob.
            if name == BLOCK_NAME {
                continue;
            }
            if !self.synced.contains(&name) {
                let blob = self.path.join(&name);
                let synced = File::open(&blob).and_then(|file| file.sync_all());
                match synced {
                    Ok(()) => is_new = true,
                    // sled has removed it since the listing, so nothing refers to it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(failed("syncing", &blob, error)),
                }
            }
            present.insert(name);
        }
        self.synced = present;
        // The names come after the files, whose content they must not precede.
        if is_new { sync_dir(&self.path) } else { Ok(()) }
    }

    /// Makes sled's next opening fail after it has written its snapshot and before it clears segments. sled then
    /// removes all blobs beyond the end of its log, and this blob is a directory, which cannot be removed like a file.
    /// An empty database has no snapshot and no blobs to remove, and opens all the same.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn block_clearing(&self) -> Result<()> {
        let bar = self.path.join(BLOCK_NAME);
        match fs::create_dir(&bar) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("creating", &bar, error))
            }
            _ => Ok(()),
        }
    }

    /// Lets sled open again after [`Blobs::block_clearing`] in this process or in one that crashed.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn unblock_clearing(&self) -> Result<()> {
        let bar = self.path.join(BLOCK_NAME);
        match fs::remove_dir(&bar) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &bar, error)),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn synced(&self) -> &HashSet<OsString> {
        &self.synced
    }

    /// Returns true if the next sync will not list the directory unless it changes.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.listed.is_some()
    }
}

/// Returns the listing of a directory whose last change was at `changed`, as seen at `at`, before it was listed. `None`
/// if the change is too recent.
fn listed(changed: SystemTime, at: SystemTime) -> Option<DirectoryListing> {
    // A change time in the future, of a clock that was set back, counts as too recent.
    let age = at.duration_since(changed).unwrap_or_default();
    (age >= SETTLED_AFTER).then_some(DirectoryListing { at, changed })
}

/// Returns the time of the last change of the directory that programs cannot set (`ctime`).
#[cfg(unix)]
fn changed(metadata: &Metadata) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Returns `None`: elsewhere no such time is known, so each sync lists the directory.
#[cfg(not(unix))]
fn changed(_metadata: &Metadata) -> Option<SystemTime> {
    None
}

/// Opens the database in `files`. All that was written before is durable on return.
///
/// # Errors
/// [`ErrorKind::Locked`], [`ErrorKind::UnknownFormat`], [`ErrorKind::Damaged`]; those of the file system.
pub(crate) fn open(files: &mut Files, cache_bytes: u64, segment_bytes: usize) -> Result<Db> {
    // Without its timer sled still cleans up, in calls that replace pages, but never writes in the background: all
    // its writes come before a sync of ours that covers them, and no sync of its own can fail unnoticed.
    let config = |path: &Path| {
        Config::new().path(path).cache_capacity(cache_bytes).segment_size(segment_bytes).flush_every_ms(None)
    };
    // A crash in an earlier opening may have left the blocking directory behind.
    files.blobs().unblock_clearing()?;
    let bytes = files.database_bytes()?;
    if bytes == 0 {
        let elsewhere = files.make_staging()?;
        // In a place of its own: sled syncs no configuration, and half of one would make the store unreadable.
        drop(attempt(files, &config(&elsewhere))?);
        files.adopt_config()?;
    }
    let config = config(files.path());
    // A database of one segment has none to clear.
    if bytes > segment_bytes as u64 {
        files.blobs().block_clearing()?;
        let stopped = attempt(files, &config);
        files.blobs().unblock_clearing()?;
        if let Err(error) = stopped
            && error.kind() == ErrorKind::Locked
        {
            // Another program has the database open, so the next attempt could only meet the same lock.
            return Err(error);
        }
        // The opening below meets any other failure again and returns it.
        files.wait_released().map_err(|error| failed("waiting for", files.path(), error))?;
        files.sync_opened()?;
    }
    let db = attempt(files, &config)?;
    files.sync_opened()?;
    Ok(db)
}

fn attempt(files: &Files, config: &Config) -> Result<Db> {
    // sled has assertions on what it reads in many places, so a damaged file may make it panic.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| open_failed(files, error)),
        Err(_) => Err(Error::new(ErrorKind::Damaged, damaged(files.path(), "sled gave up on it"))),
    }
}

/// Converts a failure of opening the database.
pub(crate) fn open_failed(files: &Files, error: ::sled::Error) -> Error {
    match error {
        // sled reports only a locked file with this kind. We hold our own lock, so another program has it open.
        ::sled::Error::Io(io)
            if io.kind() == std::io::ErrorKind::Other && io.to_string().contains("lock") =>
        {
            locked(files.path())
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

/// Converts an error of sled, and keeps it as the source.
pub(crate) fn sled_error(context: String, error: ::sled::Error) -> Error {
    match error {
        ::sled::Error::Io(error) => Error::io(context, error),
        ::sled::Error::Corruption { .. } => Error::with_source(ErrorKind::Damaged, context, error),
        other => Error::with_source(ErrorKind::StoreFailed, context, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system may give all changes within two seconds the same time.
    #[test]
    fn a_listing_counts_once_the_last_change_was_two_seconds_ago() {
        let changed = SystemTime::now();
        let after = |ms| changed + Duration::from_millis(ms);
        assert!(listed(changed, changed - Duration::from_secs(9)).is_none(), "a time that is to come");
        assert!(listed(changed, after(0)).is_none() && listed(changed, after(1_999)).is_none());
        let listed = listed(changed, after(2_000)).unwrap();
        assert!(listed.is_true(changed, after(2_000)) && listed.is_true(changed, after(100_000)));
        assert!(!listed.is_true(after(1), after(100_000)), "the directory has changed since");
        assert!(!listed.is_true(changed, after(1_999)), "the clock was set back");
    }

    #[test]
    fn what_is_made_after_a_listing_that_counts_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::open(directory.path()).unwrap();
        let put = |name: &str| fs::write(directory.path().join(BLOBS_NAME).join(name), name).unwrap();
        put("1");
        blobs.sync().unwrap();
        assert!(blobs.synced().len() == 1 && !blobs.is_settled(), "the change was just now");
        put("2");
        blobs.sync().unwrap();
        assert_eq!(blobs.synced().len(), 2);
        // The time itself is what is tested.
        std::thread::sleep(SETTLED_AFTER);
        blobs.sync().unwrap();
        assert!(blobs.is_settled());
        blobs.synced.clear();
        blobs.sync().unwrap();
        assert!(blobs.synced().is_empty(), "it was listed again, though nothing has changed");
        put("3");
        blobs.sync().unwrap();
        assert!(blobs.synced().contains(&OsString::from("3")) && !blobs.is_settled());
        fs::remove_file(directory.path().join(BLOBS_NAME).join("3")).unwrap();
        blobs.sync().unwrap();
        assert!(!blobs.synced().contains(&OsString::from("3")), "another file of that name is not durable");
    }
}
