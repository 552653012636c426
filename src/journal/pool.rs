//! The pool of spares: files that are prepared before their use as segments.
//!
//! Guarantees:
//! - A file in the pool is whole (zero-filled if so configured) and durable under its own name.
//! - A file that was a segment has durably lost that name before its content changes.
//!
//! The thread that prepares the next spare never holds the lock while it writes, and ends when the pool is stopped.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, TenureId};
use crate::journal::errors::cannot;
use crate::journal::options::JournalOptions;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, Segment, SegmentHeader, segment_name};
use crate::safeguard::Safeguard;
use crate::seam::random;
use crate::seam::sync::thread::{self, JoinHandle};
use crate::seam::sync::{Condvar, Mutex, MutexGuard};

/// The size of the writes that fill a new file. The page cache keeps a file in folios as large as it was written in,
/// and on ext4 each later write into a folio looks at all its blocks. With folios of 1 MiB a small write takes more
/// than twice as long.
const ZERO_CHUNK_BYTES: u64 = 64 * 1024;

pub(crate) struct SparePool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: JournalOptions,
    state: Mutex<PoolState>,
    changed: Condvar,
}

struct PoolState {
    ready: Vec<Spare>,
    next_number: u64,
    /// A spare was taken since the last attempt to make one.
    wanted: bool,
    making: bool,
    stopping: bool,
}

impl PoolState {
    /// True if one more spare fits, with the one that is being made counted.
    fn has_room(&self, spares_max: usize) -> bool {
        self.ready.len() + usize::from(self.making) < spares_max
    }
}

struct Spare {
    path: PathBuf,
    bytes: u64,
}

/// A file that was taken from the pool or made, to be written and renamed by its taker.
struct TakenFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

impl SparePool {
    /// Makes a pool of the spares in `dir` with these numbers. Removes files that these options cannot use.
    pub(crate) fn adopt(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: JournalOptions,
        spares: &[u64],
    ) -> Result<SparePool> {
        let mut ready = Vec::new();
        for &number in spares {
            let path = dir.join(spare_name(number));
            let bytes = disk.open(&path).and_then(|file| file.len()).map_err(|e| cannot("open", &path, e))?;
            // Without zero-filling, a file that grew may be shorter than a segment.
            let whole =
                bytes == options.segment_bytes || (!options.zero_fill && bytes < options.segment_bytes);
            if whole && ready.len() < options.spares_max {
                ready.push(Spare { path, bytes });
            } else {
                disk.remove(&path).map_err(|error| cannot("remove", &path, error))?;
            }
        }
        // Names that are in use, or were until now, are not given again.
        let next_number = spares.iter().max().map_or(1, |number| number.saturating_add(1));
        let state = PoolState { ready, next_number, wanted: true, making: false, stopping: false };
        Ok(SparePool { disk, dir, options, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Starts the thread that keeps one spare ready; returns `None` if these options leave it no work.
    pub(crate) fn start(self: &Arc<Self>) -> Result<Option<JoinHandle<()>>> {
        // Without zero-filling a new file costs one `create`, and no thread needs to prepare that.
        if !self.options.zero_fill || self.options.spares_max == 0 {
            return Ok(None);
        }
        let pool = Arc::clone(self);
        let thread = thread::Builder::new().name("forebay-spare".to_owned());
        let started = thread.spawn(move || pool.keep_one_ready());
        started.map(Some).map_err(|error| Error::io("cannot start the thread that prepares segments", error))
    }

    /// Asks the thread to end, which it does within the write of one chunk.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.changed.notify_all();
    }

    pub(crate) fn bytes_on_disk(&self) -> u64 {
        self.state().ready.iter().map(|spare| spare.bytes).sum()
    }

    /// Takes a file for a segment of `capacity` bytes: a spare, or a new file if there is none.
    ///
    /// # Errors
    /// `DiskFull` or `Io`. No file is left behind then, or the error says so.
    fn take(&self, capacity: u64) -> Result<TakenFile> {
        if capacity != self.options.segment_bytes {
            // A segment of another size is never recycled, so filling it with zeros would be pure cost.
            return self.make(0, &|| false);
        }
        let mut state = self.state();
        // Waiting for a spare that is half made is faster than making another one.
        while state.ready.is_empty() && state.making {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let spare = state.ready.pop();
        drop(state);
        let taken = match spare {
            Some(Spare { path, .. }) => {
                let file = self.disk.open(&path).map_err(|error| cannot("open", &path, error))?;
                TakenFile { path, file }
            }
            None => self.make(if self.options.zero_fill { capacity } else { 0 }, &|| false)?,
        };
        // Only a take asks for the next spare, so an attempt that failed is not repeated in a loop.
        self.state().wanted = true;
        self.changed.notify_all();
        Ok(taken)
    }

    /// Makes an empty segment that is durable with its header and its name. It replaces an empty one of that name.
    ///
    /// # Errors
    /// `DiskFull` if nothing has changed. After an error of any other kind the segment may or may not be there.
    pub(crate) fn make_segment(
        &self,
        (journal, tenure): (JournalId, TenureId),
        number: u64,
        capacity: u64,
        predecessor: Seal,
    ) -> Result<(Segment, Arc<dyn DiskFile>)> {
        // Fresh for every use of a file: with the old nonce, frames of the last use would continue this segment
        // (Pebble #580).
        let mut nonce = [0; 8];
        random::fill(&mut nonce)
            .map_err(|error| Error::new(ErrorKind::Io, format!("cannot draw a segment's nonce: {error}")))?;
        let TakenFile { path: taken, file } = self.take(capacity)?;
        let path = self.dir.join(segment_name(number));
        let named = || -> std::io::Result<SegmentHeader> {
            // The length in the header shows a file that is cut short later, which a torn write never does.
            let prepared = file.len()?.max(SEGMENT_HEADER_BYTES);
            let nonce = u64::from_le_bytes(nonce);
            let header = SegmentHeader { journal, tenure, number, nonce, capacity, prepared, predecessor };
            file.write_all_at(&header.encode(), 0)?;
            // Before the rename: otherwise a crash could leave the name with an old header, which would be damage.
            if Safeguard::SegmentSync.holds() {
                file.sync_data()?;
            }
            // The rename makes the segment exist. Before it, a crash leaves a spare or a temporary file, and no
            // segment.
            self.disk.rename(&taken, &path)?;
            Ok(header)
        };
        let header =
            named().map_err(|error| self.discard(&taken, cannot("make a segment of", &taken, error)))?;
        // `Io` even for a full disk: after a failed sync the outcome is unknown, so the caller must not go on.
        // Without this sync a power cut could take the name back, with acknowledged frames in it.
        if Safeguard::DirectorySync.holds() {
            self.disk.sync_dir(&self.dir).map_err(|error| {
                Error::with_source(ErrorKind::Io, format!("cannot sync {}", self.dir.display()), error)
            })?;
        }
        let segment = Segment::new(header, path, SEGMENT_HEADER_BYTES, predecessor.last);
        let file: Arc<dyn DiskFile> = Arc::from(file);
        segment.share(&file);
        Ok((segment, file))
    }

    /// Removes a segment durably, or makes it a spare if no reader holds it and the pool has room.
    ///
    /// # Errors
    /// Returns the segment with the error if its file could not be renamed or removed; nothing has changed then.
    /// Returns the error alone if the change may not be durable.
    pub(crate) fn retire(&self, segment: Arc<Segment>) -> Result<(), (Option<Arc<Segment>>, Error)> {
        let standard = segment.header.capacity == self.options.segment_bytes;
        let room = self.state().has_room(self.options.spares_max);
        // A reader that holds the segment still reads the file, so it is removed instead of being overwritten later.
        let reusable = self.options.recycle && standard && room && Arc::strong_count(&segment) == 1;
        let spare = reusable.then(|| {
            let bytes = segment.bytes_on_disk();
            Spare { path: self.dir.join(spare_name(self.number())), bytes }
        });
        let moved = match &spare {
            // Renamed before it is overwritten: under its old name a crash would show a segment with foreign
            // content.
            Some(spare) => self.disk.rename(&segment.path, &spare.path),
            None => self.disk.remove(&segment.path),
        };
        if let Err(error) = moved {
            let error = cannot("retire", &segment.path, error);
            return Err((Some(segment), error));
        }
        // The content may change from here on, so the old name must be durably gone.
        if Safeguard::TrimSync.holds() {
            self.disk.sync_dir(&self.dir).map_err(|error| (None, cannot("sync", &self.dir, error)))?;
        }
        // Only now may a writer take it: a spare whose rename is not durable could come back as a segment.
        self.state().ready.extend(spare);
        self.changed.notify_all();
        Ok(())
    }

    /// Removes a file that could not become a segment. Returns the reason, with the error of removing it if there was
    /// one.
    fn discard(&self, path: &Path, why: Error) -> Error {
        match self.disk.remove(path) {
            Ok(()) => why,
            Err(error) => {
                let kind = why.kind();
                why.wrap(kind, format!("{} could not be removed ({error}) after this", path.display()))
            }
        }
    }

    /// Runs the thread until the pool is stopped.
    fn keep_one_ready(&self) {
        loop {
            let mut state = self.state();
            // Only after a spare was taken: an attempt that failed, as on a full disk, is not repeated in a loop.
            let needed = |state: &PoolState| state.wanted && state.ready.is_empty();
            while !state.stopping && !needed(&state) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopping {
                return;
            }
            state.wanted = false;
            state.making = true;
            drop(state);
            let making = Making(self);
            // An error is not lost: the next writer that needs a file makes it itself and gets the error.
            if let Ok(spare) = self.make_spare() {
                self.state().ready.push(spare);
            }
            drop(making);
        }
    }

    fn make_spare(&self) -> Result<Spare> {
        let bytes = self.options.segment_bytes;
        let TakenFile { path: made, file } = self.make(bytes, &|| self.state().stopping)?;
        let path = made.with_extension("seg");
        let named = file
            .sync_data()
            .and_then(|()| self.disk.rename(&made, &path))
            .map_err(|error| cannot("prepare", &made, error));
        named.map_err(|error| self.discard(&made, error))?;
        self.disk.sync_dir(&self.dir).map_err(|error| cannot("sync", &self.dir, error))?;
        Ok(Spare { path, bytes })
    }

    /// Creates a file of `bytes` zeros without syncing it.
    fn make(&self, bytes: u64, cancelled: &dyn Fn() -> bool) -> Result<TakenFile> {
        let path = self.dir.join(spare_name(self.number())).with_extension("tmp");
        let file = self.disk.create_new(&path).map_err(|error| cannot("create", &path, error))?;
        let zeros = vec![0; bytes.min(ZERO_CHUNK_BYTES) as usize];
        let mut at = 0;
        while at < bytes {
            let chunk = zeros.get(..(bytes - at) as usize).unwrap_or(&zeros);
            // Between two chunks, so that closing a journal does not wait for a whole segment of zeros.
            let written = if cancelled() {
                Err(Error::new(ErrorKind::Closed, "the journal is being closed"))
            } else {
                file.write_all_at(chunk, at).map_err(|error| cannot("fill", &path, error))
            };
            if let Err(error) = written {
                drop(file);
                return Err(self.discard(&path, error));
            }
            at += chunk.len() as u64;
        }
        Ok(TakenFile { path, file })
    }

    fn number(&self) -> u64 {
        let mut state = self.state();
        let number = state.next_number;
        state.next_number = number.saturating_add(1);
        number
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the state of making a spare when it is dropped, and so after a panic too, and wakes those who wait for one.
struct Making<'a>(&'a SparePool);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.state().making = false;
        self.0.changed.notify_all();
    }
}

/// Returns the name of a finished spare. An unfinished one has the extension `tmp`.
fn spare_name(number: u64) -> String {
    format!("spare-{number}.seg")
}

/// Returns the number in a spare's name with this extension, or `None` if it is not one.
pub(crate) fn parse_spare_name(name: &str, extension: &str) -> Option<u64> {
    name.strip_prefix("spare-")?.strip_suffix(extension)?.strip_suffix('.')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::simulated::{CrashPolicy, DiskOp, SimDisk};

    const DIR: &str = "journal";

    fn disk() -> SimDisk {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        disk
    }

    /// A segment that was retired while the next spare was being made became one, too: 80 MiB were to be left of a
    /// burst, and there were 96.
    #[test]
    fn a_spare_in_the_making_counts_as_one() {
        let disk = disk();
        let options = JournalOptions { zero_fill: false, spares_max: 1, ..JournalOptions::default() };
        let pool =
            SparePool::adopt(Arc::new(disk.clone()), PathBuf::from(DIR), options.clone(), &[]).unwrap();
        for (making, spares) in [(true, 0), (false, 1)] {
            pool.state().making = false;
            let made = pool.make_segment(
                (JournalId([7; 16]), TenureId::default()),
                1,
                options.segment_bytes,
                Seal::default(),
            );
            let (segment, file) = made.unwrap();
            drop(file);
            pool.state().making = making;
            assert!(pool.retire(Arc::new(segment)).is_ok());
            assert_eq!(pool.state().ready.len(), spares);
            assert_eq!(disk.files(Path::new(DIR)).len(), spares);
        }
    }

    /// Filled in several writes, of which the last is a part of one; and as whole after a power cut, since it has its
    /// name only then.
    #[test]
    fn a_spare_is_whole_under_its_name() {
        let disk = disk();
        let segment_bytes = 2 * ZERO_CHUNK_BYTES + 4_097;
        let options = JournalOptions { segment_bytes, ..JournalOptions::default() };
        let pool = SparePool::adopt(Arc::new(disk.clone()), PathBuf::from(DIR), options, &[]).unwrap();
        assert_eq!(pool.make_spare().unwrap().bytes, segment_bytes);
        assert_eq!(disk.count(DiskOp::Write), 3);
        for disk in [disk.clone(), disk.crash(CrashPolicy::OnlySynced)] {
            let files: Vec<(String, Vec<u8>)> = disk.files(Path::new(DIR)).into_iter().collect();
            let [(name, content)] = &files[..] else { panic!("{} files", files.len()) };
            assert!(parse_spare_name(name, "seg").is_some(), "{name}");
            assert!(*content == vec![0; segment_bytes as usize], "{} bytes", content.len());
        }
    }
}
