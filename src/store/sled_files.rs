//! The files under a sled database: who may read them, who holds them, and what a power cut leaves of them.
//!
//! sled 0.34 never syncs what it acknowledges: its `flush` ends in a write and, on Linux, `sync_file_range`,
//! which is no durability. So this module keeps a descriptor of its own on the database file, opened before
//! sled writes a first byte, because the kernel reports a failed write-back once to every descriptor that
//! was open then. [`Files::sync`] makes durable whatever was written before it was called.
//!
//! It knows nothing of what the files contain, and never writes into one of sled's.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::store::directory::{Directory, failed, locked, open_private, set_mode, sync_dir};
use crate::store::sled_blobs::Blobs;

const DATABASE_NAME: &str = "db";
const CONFIG_NAME: &str = "conf";

/// The directory of one sled database, held exclusively.
pub(crate) struct Files {
    database: File,
    blobs: Blobs,
    /// Held for life. sled locks its own file, but lets go at a moment of its own; see [`Files::wait_released`].
    directory: Directory,
    #[cfg(test)]
    fails_next_sync: bool,
}

impl Files {
    /// Creates the directory if there is none, takes the lock, and makes durable what an earlier process left
    /// unsynced, so that nothing is read that could vanish later. Called before sled opens.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if somebody holds the directory, or what the file system says.
    pub(crate) fn open(path: &Path) -> Result<Files> {
        let directory = Directory::open(path)?;
        let blobs = Blobs::open(directory.path())?;
        let database = open_private(&directory.path().join(DATABASE_NAME))?;
        let mut files = Files {
            database,
            blobs,
            directory,
            #[cfg(test)]
            fails_next_sync: false,
        };
        files.remove_unfinished_snapshots()?;
        files.sync_opened()?;
        Ok(files)
    }

    /// Removes the snapshots that sled was writing when its process died. sled 0.34 takes such a file for its newest
    /// snapshot and refuses to open; a snapshot only saves it from reading its log, so nothing is lost with one.
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
        // Under sled's own lock, because a sled that is not ours may be writing one right now.
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

    /// Where sled can make the files of a new database; see [`Directory::make_nursery`].
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn make_nursery(&self) -> Result<PathBuf> {
        self.directory.make_nursery()
    }

    /// Takes the configuration from the nursery, wholly or not at all, durably.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn adopt_config(&self) -> Result<()> {
        self.directory.adopt(CONFIG_NAME)
    }

    /// The blobs beside the database.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// How long the database file is.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn database_bytes(&self) -> Result<u64> {
        let metadata = self.database.metadata();
        metadata
            .map(|metadata| metadata.len())
            .map_err(|error| failed("looking at", &self.path().join(DATABASE_NAME), error))
    }

    /// As [`Files::sync`], and what sled touches only when it opens: its configuration, which it does not
    /// sync, and a snapshot of its page table, which it syncs and renames, but not the directory.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn sync_opened(&mut self) -> Result<()> {
        let config = self.path().join(CONFIG_NAME);
        match File::open(&config) {
            Ok(file) => {
                set_mode(&config, 0o600)?;
                file.sync_all().map_err(|error| failed("syncing", &config, error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("opening", &config, error)),
        }
        self.sync()?;
        sync_dir(self.path())
    }

    /// Makes durable all that was written to the database so far, blobs first: the log must not name one that
    /// a power cut can take. Costs an `fdatasync`, and what `sled_blobs` says.
    ///
    /// # Errors
    /// What the file system says. Nothing is known then of any write since the last success, and a second
    /// call would not tell: the kernel may have dropped the pages.
    pub(crate) fn sync(&mut self) -> Result<()> {
        #[cfg(test)]
        if std::mem::take(&mut self.fails_next_sync) {
            let error = io::Error::other("the test fails this sync");
            return Err(failed("syncing", self.path(), error));
        }
        self.blobs.sync()?;
        self.database.sync_data().map_err(|error| failed("syncing", &self.path().join(DATABASE_NAME), error))
    }

    /// Waits until sled has let go of its lock, after its last handle was dropped.
    ///
    /// sled's own threads hold its file for a moment longer than its handles. Taking the same lock from our
    /// descriptor blocks until the last of them has closed it. Nobody else can take it in between, because
    /// whoever wants to open this directory needs our lock first, which is still held.
    pub(crate) fn wait_released(&self) -> io::Result<()> {
        self.database.lock()?;
        self.database.unlock()
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// As a disk that fails one sync and, as the kernel has it, none after that.
    #[cfg(test)]
    pub(crate) fn fail_next_sync(&mut self) {
        self.fails_next_sync = true;
    }
}
