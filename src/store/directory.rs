//! The directory of an embedded store: made durably, for its owner alone, and held exclusively.
//!
//! It knows nothing of what its files contain. What has to be there wholly or not at all is made in a nursery and
//! moved into place; see [`Directory::adopt`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

const LOCK_NAME: &str = "forebay.lock";
const NURSERY_NAME: &str = "forebay.new";

/// A directory that nobody else has open.
pub(crate) struct Directory {
    path: PathBuf,
    /// Held for life.
    lock: File,
}

impl Directory {
    /// Creates the directory if there is none, and takes its lock.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if somebody holds the directory, or what the file system says.
    pub(crate) fn open(path: &Path) -> Result<Directory> {
        let path = std::path::absolute(path).map_err(|error| failed("finding", path, error))?;
        create_dir_durably(&path)?;
        let lock_path = path.join(LOCK_NAME);
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

    /// The database called `name`, with its name durable. If there is none yet, `make` makes it at the path that it
    /// is given, closes it, and it is moved into place.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFormat`] if the directory holds something else, which is left as it is; those of `make`;
    /// or what the file system says.
    #[cfg(any(feature = "redb", feature = "fjall"))]
    pub(crate) fn database(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let database = self.path.join(name);
        let is_there = database.try_exists().map_err(|error| failed("looking for", &database, error))?;
        if is_there {
            sync_dir(&self.path)?;
            return Ok(database);
        }
        let listing = |error| failed("listing", &self.path, error);
        for entry in fs::read_dir(&self.path).map_err(listing)? {
            let found = entry.map_err(listing)?.file_name();
            if found != LOCK_NAME && found != NURSERY_NAME {
                let context = format!(
                    "{} holds no database of this store, but {}",
                    self.path.display(),
                    found.to_string_lossy()
                );
                return Err(Error::new(ErrorKind::UnknownFormat, context));
            }
        }
        make(&self.make_nursery()?.join(name))?;
        self.adopt(name)?;
        Ok(database)
    }

    /// An empty directory in which something can be made.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn make_nursery(&self) -> Result<PathBuf> {
        self.remove_nursery()?;
        let nursery = self.path.join(NURSERY_NAME);
        create_dir_durably(&nursery)?;
        Ok(nursery)
    }

    /// Moves what is called `name` from the nursery into place, wholly or not at all, durably, with all that is in it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn adopt(&self, name: &str) -> Result<()> {
        let (made, place) = (self.path.join(NURSERY_NAME).join(name), self.path.join(name));
        sync_tree(&made)?;
        fs::rename(&made, &place).map_err(|error| failed("moving into place", &place, error))?;
        sync_dir(&self.path)?;
        self.remove_nursery()
    }

    fn remove_nursery(&self) -> Result<()> {
        let nursery = self.path.join(NURSERY_NAME);
        match fs::remove_dir_all(&nursery) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &nursery, error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Closing the file lets go as well; this only does it where a child process inherited the descriptor.
        drop(self.lock.unlock());
    }
}

/// The directory is held by somebody else.
pub(crate) fn locked(path: &Path) -> Error {
    let context = format!("the store in {} is open already, in this process or another", path.display());
    Error::new(ErrorKind::Locked, context)
}

/// What is said of a database that cannot be read.
pub(crate) fn damaged(path: &Path, what: &str) -> String {
    format!("the store in {} is damaged: {what}; all it holds is at stake", path.display())
}

pub(crate) fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{doing} {}", path.display()), error)
}

/// Opens a file for reading and writing, creating it if need be, for its owner alone.
pub(crate) fn open_private(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| failed("opening", path, error))?;
    set_mode(path, 0o600)?;
    Ok(file)
}

/// Creates a directory and its missing parents, makes their names durable, and shuts others out of the last.
pub(crate) fn create_dir_durably(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for directory in missing.iter().rev() {
        match std::fs::create_dir(directory) {
            Ok(()) => set_mode(directory, 0o700)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("creating", directory, error)),
        }
        if let Some(parent) = directory.parent() {
            sync_dir(parent)?;
        }
    }
    set_mode(path, 0o700)
}

/// Makes a file durable, or a directory with all that is in it.
fn sync_tree(path: &Path) -> Result<()> {
    let syncing = |error| failed("syncing", path, error);
    if !path.is_dir() {
        return File::open(path).and_then(|file| file.sync_all()).map_err(syncing);
    }
    for entry in fs::read_dir(path).map_err(syncing)? {
        sync_tree(&entry.map_err(syncing)?.path())?;
    }
    sync_dir(path)
}

#[cfg(unix)]
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| failed("syncing the directory", path, error))
}

/// Elsewhere a directory cannot be opened, and its entries are durable with the file's own sync.
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
