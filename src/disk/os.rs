//! The operating system's files.
//!
//! Guarantees that each call that promises durability makes the system call that the contract names, and that errors
//! are returned unchanged. A failed sync is never retried.
//!
//! By platform:
//!
//! | | files' content | directory entries | locks |
//! | --- | --- | --- | --- |
//! | Linux and other Unix | `fdatasync` | `fsync` of the directory | `flock` |
//! | macOS | `fcntl(F_FULLFSYNC)`, which also empties the drive's cache | the same, of the directory | `flock` |
//! | Windows | `FlushFileBuffers` | no call: NTFS journals them, a power cut may take the last back | `LockFileEx` |
//!
//! Modes (0600, 0700) are Unix's; on Windows a file inherits its directory's access list.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::disk::contract::{Disk, DiskFile};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let parent = parent_of(path);
        if path.is_dir() {
            // A process may have made it and died before it could sync the entry. A parent that we have no
            // permission to open is one in which we cannot have made it.
            return match parent.map(platform::sync_dir) {
                Some(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
                _ => Ok(()),
            };
        }
        if let Some(parent) = parent {
            // Top down, and each entry is synced: a durable directory in a lost parent is lost too.
            self.create_dir_all(parent)?;
        }
        match platform::dir_builder().create(path) {
            // Another process made it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            result => result?,
        }
        parent.map_or(Ok(()), platform::sync_dir)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?
            // A name that is not UTF-8 is none of ours. It is listed all the same, because salvage needs to know
            // that the directory is not empty.
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OsFile(platform::open_options().create_new(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OsFile(platform::open_options().open(path)?)))
    }

    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OsFile(File::open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        platform::sync_dir(path)
    }

    /// Takes the lock on a file, which is created if it is missing, and stays. Such a lock belongs to an open file, not
    /// to a process, so a second one is refused within the same process too.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        // Never truncated and never removed: a second process could lock a new file of that name beside us.
        let file = platform::open_options().create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(OsLock(file))),
            // `WouldBlock` and other errors stay apart, because the first names an owner, and a caller says so.
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

struct OsFile(File);

impl DiskFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match platform::read_some(&self.0, rest, offset + done as u64) {
                // The end of the file, which callers take for a short read and judge by their checksums.
                Ok(0) => break,
                Ok(n) => done += n,
                // A signal interrupts a call without an effect, so it is no failure of the disk.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            match platform::write_some(&self.0, rest, offset + done as u64) {
                // Zero bytes without an error would make this loop spin for ever.
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // `fdatasync` and never `sync_file_range`, which leaves the disk's write cache and the metadata out (sled
        // #1351, #1452).
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

struct OsLock(File);

impl Drop for OsLock {
    fn drop(&mut self) {
        // Closing the file unlocks it too, but not while a child process between fork and exec has a copy of the
        // descriptor. If unlocking fails, closing is all that is left.
        drop(self.0.unlock());
    }
}

/// Returns the directory that holds the entry of `path`; `None` for a root.
fn parent_of(path: &Path) -> Option<&Path> {
    match path.parent() {
        // A relative path without a directory lies in the working directory, whose entry has to be synced too.
        Some(parent) if parent.as_os_str().is_empty() => Some(Path::new(".")).filter(|dot| *dot != path),
        other => other,
    }
}

#[cfg(unix)]
mod platform {
    use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};

    use super::*;

    pub(super) fn open_options() -> OpenOptions {
        // Journals hold users' data, so nobody else may read them, whatever the umask says.
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }

    pub(super) fn dir_builder() -> DirBuilder {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    }

    pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
        // `fsync` and not `fdatasync`: the content of a directory is its metadata.
        File::open(path)?.sync_all()
    }

    pub(super) fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    pub(super) fn write_some(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(buf, offset)
    }
}

#[cfg(windows)]
mod platform {
    use std::os::windows::fs::FileExt;

    use super::*;

    pub(super) fn open_options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options
    }

    pub(super) fn dir_builder() -> DirBuilder {
        DirBuilder::new()
    }

    /// Checks that the directory exists, because Windows has no call to sync it.
    pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
        fs::metadata(path).map(|_| ())
    }

    pub(super) fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(buf, offset)
    }

    pub(super) fn write_some(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(buf, offset)
    }
}
