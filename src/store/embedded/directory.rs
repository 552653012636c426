//! The directory of an embedded store: created durably, readable by its owner alone, and locked against other
//! processes.
//!
//! This module does not know the contents of the files. Files that must exist completely or not at all are created in a
//! staging directory and then renamed into place; see [`Directory::adopt`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

const LOCK_NAME: &str = "forebay.lock";
const STAGING_NAME: &str = "forebay.new";

/// A directory that this process has locked.
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked until the directory is dropped.
    lock: File,
}

impl Directory {
    /// Creates the directory if it does not exist, and locks it.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if another store has the directory open; those of the file system.
    pub(crate) fn open(path: &Path) -> Result<Directory> {
        // A later change of the working directory must not move the store.
        let path = std::path::absolute(path).map_err(|error| failed("finding", path, error))?;
        create_dir_durably(&path)?;
        let lock_path = path.join(LOCK_NAME);
        // The database's own lock is not enough: it is taken only after its files were looked at.
        let lock = open_private(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Directory { path, lock }),
            Err(TryLockError::WouldBlock) => Err(locked(&path)),
            Err(TryLockError::Error(error)) => Err(failed("locking", &lock_path, error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the database `name`, whose directory entry is durable. If it does not exist, `make` creates
    /// it at a staging path and closes it, and it is renamed into place.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFormat`] if the directory holds something else, which is left unchanged; those of `make`
    /// and of the file system.
    #[cfg(any(feature = "redb", feature = "fjall"))]
    pub(crate) fn database(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let database = self.path.join(name);
        let is_there = database.try_exists().map_err(|error| failed("looking for", &database, error))?;
        if is_there {
            // An earlier process may have died between its rename and its sync; what is read now must survive a
            // power cut.
            sync_dir(&self.path)?;
            return Ok(database);
        }
        let listing = |error| failed("listing", &self.path, error);
        for entry in fs::read_dir(&self.path).map_err(listing)? {
            let found = entry.map_err(listing)?.file_name();
            // A crash in an earlier opening may have left these two.
            if found != LOCK_NAME && found != STAGING_NAME {
                let context = format!(
                    "{} holds no database of this store, but {}",
                    self.path.display(),
                    found.to_string_lossy()
                );
                // Never removed: it may be the only copy of somebody's data.
                return Err(Error::new(ErrorKind::UnknownFormat, context));
            }
        }
        make(&self.make_staging()?.join(name))?;
        self.adopt(name)?;
        Ok(database)
    }

    /// Creates an empty staging directory, and removes one that a crash left behind.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make_staging(&self) -> Result<PathBuf> {
        // A half-made database of a crash holds nothing that was ever acknowledged.
        self.remove_staging()?;
        let staging = self.path.join(STAGING_NAME);
        create_dir_durably(&staging)?;
        Ok(staging)
    }

    /// Renames `name` from the staging directory into place, atomically and durably, with all its contents.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn adopt(&self, name: &str) -> Result<()> {
        let (made, place) = (self.path.join(STAGING_NAME).join(name), self.path.join(name));
        // Everything must be durable before the rename makes it visible.
        sync_tree(&made)?;
        fs::rename(&made, &place).map_err(|error| failed("moving into place", &place, error))?;
        // The name has to be durable before a batch is acknowledged, or a power cut takes the whole store.
        sync_dir(&self.path)?;
        self.remove_staging()
    }

    fn remove_staging(&self) -> Result<()> {
        let staging = self.path.join(STAGING_NAME);
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &staging, error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Closing the file releases the lock too, except where a child process inherited the descriptor.
        drop(self.lock.unlock());
    }
}

/// Makes the error for a directory that another store has open.
pub(crate) fn locked(path: &Path) -> Error {
    let context = format!("the store in {} is open already, in this process or another", path.display());
    Error::new(ErrorKind::Locked, context)
}

/// Returns the error text for a database that cannot be read.
pub(crate) fn damaged(path: &Path, what: &str) -> String {
    format!("the store in {} is damaged: {what}; all it holds is at stake", path.display())
}

/// Wraps a failure of the file system with the operation and the path.
pub(crate) fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{doing} {}", path.display()), error)
}

/// Opens a file for reading and writing, and creates it if it does not exist. Its mode becomes 0600.
pub(crate) fn open_private(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| failed("opening", path, error))?;
    // Also for a file that existed, which another umask may have left readable.
    set_mode(path, 0o600)?;
    Ok(file)
}

/// Creates a directory and its missing parents and makes their entries durable. The mode of the last becomes 0700.
pub(crate) fn create_dir_durably(path: &Path) -> Result<()> {
    // Only the missing ones: the mode of a parent that exists is not ours to change.
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for directory in missing.iter().rev() {
        match std::fs::create_dir(directory) {
            Ok(()) => set_mode(directory, 0o700)?,
            // Another process has created it at the same moment.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("creating", directory, error)),
        }
        if let Some(parent) = directory.parent() {
            // Each level, because a durable directory in a lost parent is lost too.
            sync_dir(parent)?;
        }
    }
    set_mode(path, 0o700)
}

/// Syncs a file, or a directory and everything below it.
fn sync_tree(path: &Path) -> Result<()> {
    let syncing = |error| failed("syncing", path, error);
    if !path.is_dir() {
        return File::open(path).and_then(|file| file.sync_all()).map_err(syncing);
    }
    for entry in fs::read_dir(path).map_err(syncing)? {
        sync_tree(&entry.map_err(syncing)?.path())?;
    }
    // After its files: an entry must not be durable before what it names.
    sync_dir(path)
}

/// Makes the entries of a directory durable.
#[cfg(unix)]
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| failed("syncing the directory", path, error))
}

/// Does nothing: elsewhere a directory cannot be opened, and its entries become durable with the sync of the file.
#[cfg(not(unix))]
pub(crate) fn sync_dir(_path: &Path) -> Result<()> {
    Ok(())
}

#[cfg(unix)]
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, permissions).map_err(|error| failed("setting the mode of", path, error))
}

#[cfg(not(unix))]
pub(crate) fn set_mode(_path: &Path, _mode: u32) -> Result<()> {
    Ok(())
}
