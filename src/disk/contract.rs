//! What the journal asks of a file system, and nothing more.
//!
//! Every file access of the crate's own files goes through [`Disk`], so that tests can lose unsynced writes,
//! tear sectors, fail syncs and fill up. (The embedded store's files are the store's own.)

use std::io;
use std::path::Path;

/// A file system.
///
/// Paths are plain; implementations create files for their owner alone (0600, directories 0700).
pub trait Disk: Send + Sync + 'static {
    /// Creates a directory and its parents, and makes the new entries durable. Existing ones are fine.
    ///
    /// # Errors
    /// What the file system says.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no particular order.
    ///
    /// # Errors
    /// What the file system says; [`io::ErrorKind::NotFound`] if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Creates a new, empty file; its directory entry is durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is one, or what the file system says.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, or what the file system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading only. Unless told otherwise this is [`Disk::open`].
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none, or what the file system says.
    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    /// Renames a file over whatever has the new name; durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory's entries durable (`fsync` of the directory).
    ///
    /// # Errors
    /// What the file system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Takes an exclusive lock, held until the guard is dropped or the process dies.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody holds it, or what the file system says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// An open file. All calls take a shared reference: one thread may read while another writes.
#[allow(clippy::len_without_is_empty, reason = "a file's length is asked for, never its emptiness")]
pub trait DiskFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the file system says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset` (`pwrite`).
    ///
    /// # Errors
    /// What the file system says; any part of `buf` may have been written then.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the content, and what is needed to find it, durable (`fdatasync`).
    ///
    /// # Errors
    /// What the file system says. After a failure nothing is known of any unsynced write, and calling again
    /// tells nothing new.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn len(&self) -> io::Result<u64>;
}

/// A held lock; dropping it lets go.
pub trait DiskLock: Send + Sync + 'static {}
