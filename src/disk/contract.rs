//! The contract between the journal and a file system.
//!
//! The crate accesses its own files through [`Disk`] alone, so that tests can lose unsynced writes, tear sectors, fail
//! syncs and fill the disk. The files of an embedded store are the store's own and do not go through it.

use std::io;
use std::path::Path;

/// A file system.
///
/// Implementations create files that only their owner may access (mode 0600, directories 0700).
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its missing parents, and makes the new entries durable. It may exist already.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Lists the names in a directory, in no particular order.
    ///
    /// # Errors
    /// Those of the file system; [`io::ErrorKind::NotFound`] if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Creates a new, empty file. Its directory entry is durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the name exists, or one of the file system.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, or one of the file system.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading only. By default this is [`Disk::open`].
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, or one of the file system.
    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    /// Renames a file atomically, and replaces a file of the new name. Durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable (`fsync` of the directory).
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes an exclusive lock. It is held until the returned value is dropped or the process dies.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if it is held already, or one of the file system.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file. Its calls take a shared reference, so one thread may read while another writes.
#[allow(clippy::len_without_is_empty, reason = "no caller needs to know whether a file is empty")]
pub trait DiskFile: Send + Sync + 'static {
    /// Reads `buf.len()` bytes at `offset`, fewer only at the end of the file. Returns the number of bytes read.
    ///
    /// # Errors
    /// Those of the file system.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset` (`pwrite`).
    ///
    /// # Errors
    /// Those of the file system. Any part of `buf` may have been written then.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the content durable, and the metadata that is needed to read it (`fdatasync`).
    ///
    /// # Errors
    /// Those of the file system. After a failure the state of all unsynced writes is unknown, and a second call cannot
    /// find it out.
    fn sync_data(&self) -> io::Result<()>;

    /// Returns the file's length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;
}
