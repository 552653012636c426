//! The log: the segments of an open journal, shared by its writer, its readers and its trimmer; and the readers.
//!
//! Guarantees:
//! - While a segment is held by a reader, its file is not recycled, so the content that is read is that segment's.
//! - Segments are removed oldest first, and each is durably gone before the next goes, so no crash leaves a hole.
//! - After a failed sync nothing is written any more.
//! - The journal's lock is held as long as the log lives.
//!
//! A reader sees published frames only, in order, and runs beside the writer. It never writes, and stores no position
//! on disk: its owner has to know where to start.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::errors::{cannot, damage};
use crate::journal::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Location};
use crate::journal::options::JournalOptions;
use crate::journal::pool::SparePool;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Segment};
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::thread::JoinHandle;
use crate::seam::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The number of bytes that a reader reads at once. Records handed out share such a buffer, and keep it in memory.
const READ_AHEAD_BYTES: u64 = 256 * 1024;

/// The segments by number.
type Segments = BTreeMap<u64, Arc<Segment>>;

/// An open journal, shared by its one writer and its readers. Made by [`open`](crate::journal::recovery::open).
pub struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: JournalOptions,
    pub(crate) pool: Arc<SparePool>,
    id: JournalId,
    segments: RwLock<Segments>,
    published: AtomicU64,
    /// The watermark of the store that is fed from here, for the witness in each frame.
    applied: AtomicU64,
    poison: OnceLock<Error>,
    /// Held during a sync: the kernel reports a failure to one of two concurrent syncs only.
    syncing: Mutex<()>,
    trimming: Mutex<()>,
    spare_thread: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl Log {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: JournalOptions,
        pool: SparePool,
        id: JournalId,
        segments: Segments,
        lock: Box<dyn Send + Sync>,
    ) -> Result<Log> {
        let published = segments.last_key_value().map_or(Seq::ZERO, |(_, segment)| segment.last());
        let pool = Arc::new(pool);
        let spare_thread = pool.start()?;
        Ok(Log {
            disk,
            dir,
            options,
            pool,
            id,
            segments: RwLock::new(segments),
            published: AtomicU64::new(published.0),
            applied: AtomicU64::new(0),
            poison: OnceLock::new(),
            syncing: Mutex::new(()),
            trimming: Mutex::new(()),
            spare_thread: Mutex::new(spare_thread),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Returns the journal's identity, drawn when it was created.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// Returns the bytes that segments and spares take on disk.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        let segments: u64 = self.segments().values().map(|segment| segment.bytes_on_disk()).sum();
        segments.saturating_add(self.pool.bytes_on_disk())
    }

    /// Removes the segments that hold no record after `up_to`. The last segment always stays.
    ///
    /// A reader that is within a removed segment can finish it. Blocking, with one sync of the directory for each
    /// segment.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file could not be renamed or removed: the same call may work later.
    /// [`ErrorKind::Poisoned`] if the directory could not be synced, now or earlier.
    pub fn trim(&self, up_to: Seq) -> Result<()> {
        let _one_at_a_time = self.trimming.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = self.take_oldest(up_to) {
            // The next segment may go only when this one is durably gone: a crash must not leave a hole.
            let retired = self.check_usable().map_err(|error| (Some(Arc::clone(&oldest)), error));
            match retired.and_then(|()| self.pool.retire(oldest)) {
                Ok(()) => {}
                Err((Some(kept), error)) => {
                    // Back into the list, so that readers and the next trim find it.
                    self.segments_mut().insert(kept.header.number, kept);
                    return Err(error);
                }
                // Without a sync of the directory it is unknown which segments a restart finds, so writing on
                // would be a guess.
                Err((None, error)) => return Err(self.poison(error)),
            }
        }
        Ok(())
    }

    /// Returns the last number to trim so that the segments that hold nothing after `up_to` take at most `bytes_max`.
    ///
    /// Zero if nothing has to be trimmed. The last segment does not count, since it always stays.
    pub(crate) fn beyond_bytes(&self, up_to: Seq, bytes_max: u64) -> Seq {
        let segments = self.segments();
        let mut bytes = 0_u64;
        // Newest first, because the oldest are the ones to give up.
        for segment in segments.values().rev().skip(1).filter(|segment| segment.last() <= up_to) {
            bytes = bytes.saturating_add(segment.bytes_on_disk());
            if bytes > bytes_max {
                return segment.last();
            }
        }
        Seq::ZERO
    }

    /// Returns the end of the last frame.
    pub(crate) fn end(&self) -> Option<Location> {
        let segments = self.segments();
        let last = segments.last_key_value();
        last.map(|(number, segment)| Location { segment: *number, offset: segment.end() })
    }

    /// Returns the number of bytes of frames from `from` to `to`. Without `from` it counts from the beginning of the
    /// first segment that holds a record after `after`.
    pub(crate) fn bytes_between(&self, after: Seq, from: Option<Location>, to: Location) -> u64 {
        let segments = self.segments();
        let begin =
            |segment: &Segment| Location { segment: segment.header.number, offset: SEGMENT_HEADER_BYTES };
        let first = || segments.values().find(|segment| segment.last() > after).map(|first| begin(first));
        let Some(from) = from.or_else(first).filter(|from| from.segment <= to.segment) else { return 0 };
        let bytes = segments.range(from.segment..=to.segment).map(|(number, segment)| {
            let begin = if *number == from.segment { from.offset } else { SEGMENT_HEADER_BYTES };
            let end = if *number == to.segment { to.offset } else { segment.end() };
            end.saturating_sub(begin)
        });
        bytes.sum()
    }

    /// Returns a reader of the frames whose last sequence number is after `after`. Opens no file yet.
    #[must_use]
    pub fn read_after(self: &Arc<Self>, after: Seq) -> Reader {
        Reader { log: Arc::clone(self), after, position: None }
    }

    /// Reads one frame and verifies it; `None` if its segment was trimmed meanwhile. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the frame is not as it was written, [`ErrorKind::Io`] if it cannot be read.
    pub fn read_frame(&self, at: Location) -> Result<Option<Frame>> {
        let Some(segment) = self.segment(at.segment) else {
            return Ok(None);
        };
        let Some(file) = self.open_segment(&segment)? else {
            return Ok(None);
        };
        // The bound comes from what was written; the length in the header is checked against it before any body is
        // read.
        let room = segment.end().saturating_sub(at.offset);
        let head = read_exactly(&*file, at.offset, FRAME_HEADER_BYTES.min(room))
            .map_err(|error| cannot("read", &segment.path, error))?;
        let header = check_header(&segment, at.offset, &head)?;
        let body_at = at.offset + FRAME_HEADER_BYTES;
        let body = read_exactly(&*file, body_at, u64::from(header.body_len))
            .map_err(|error| cannot("read", &segment.path, error))?;
        let frame = Frame::verified(&header, at, Bytes::from(body));
        frame.map(Some).map_err(|why| damaged_frame(&segment, at.offset, why, Some(&header)))
    }

    /// Stops the thread that prepares spares, waits for it, and releases the journal's lock.
    ///
    /// The writer must be closed before. Also done on drop; a second call does nothing.
    pub fn shutdown(&self) {
        self.pool.stop();
        // Joined before the lock is released: the thread still creates files in the directory, which may have a
        // new owner then.
        let thread = self.spare_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of that thread was reported by the panic hook, and no writer waits for a spare any more.
        drop(thread.map(JoinHandle::join));
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Returns the last sequence number that readers may see.
    pub(crate) fn published(&self) -> Seq {
        // Pairs with the release in `publish`: a reader that sees the number also sees the frame's bytes and its
        // segment's end.
        Seq(self.published.load(Ordering::Acquire))
    }

    pub(crate) fn publish(&self, last: Seq) {
        // A plain store is enough: only the one writer publishes, and its numbers only grow.
        self.published.store(last.0, Ordering::Release);
    }

    /// Returns the watermark of the store, as far as the log was told.
    pub(crate) fn applied(&self) -> Seq {
        // A frame with an older witness is as true.
        Seq(self.applied.load(Ordering::Relaxed))
    }

    /// Sets the watermark that the frames from now on have for a witness. It must be durable in the store.
    pub(crate) fn note_applied(&self, applied: Seq) {
        self.applied.store(applied.0, Ordering::Relaxed);
    }

    pub(crate) fn segment(&self, number: u64) -> Option<Arc<Segment>> {
        self.segments().get(&number).map(Arc::clone)
    }

    /// Returns the segment to read after `segment`. It may have the same number, if `segment` was empty and replaced.
    pub(crate) fn successor(&self, segment: &Segment) -> Option<Arc<Segment>> {
        let segments = self.segments();
        // By nonce, because a successor of an empty segment has the same number.
        let mut later = segments.range(segment.header.number..).map(|(_, later)| later);
        later.find(|later| later.header.nonce != segment.header.nonce).map(Arc::clone)
    }

    /// Returns the first segment that may hold records after `after`.
    pub(crate) fn first_after(&self, after: Seq) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let first = segments.values().find(|segment| segment.last() > after);
        first.or_else(|| segments.last_key_value().map(|(_, last)| last)).map(Arc::clone)
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.segments_mut().insert(segment.header.number, segment);
    }

    /// Opens the file of a segment; `None` if it was trimmed meanwhile.
    pub(crate) fn open_segment(&self, segment: &Segment) -> Result<Option<Arc<dyn DiskFile>>> {
        match segment.open(&*self.disk) {
            Ok(file) => Ok(Some(file)),
            // A missing file of a segment that is still listed is no trim, but an error.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.holds(segment) => Ok(None),
            Err(error) => Err(cannot("open", &segment.path, error)),
        }
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        // The same error for everybody: a later call must not look as if it had failed for a reason of its own.
        self.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Refuses every later write with this error, or with an earlier one if there was one. Returns that error.
    pub(crate) fn poison(&self, why: Error) -> Error {
        let context = "the journal takes no more writes, and the outcome of those in flight is unknown";
        self.poison.get_or_init(|| why.wrap(ErrorKind::Poisoned, context)).clone()
    }

    /// Syncs a file of the journal. A failure poisons the journal.
    ///
    /// After a failed sync the kernel may mark the pages clean, so a second sync would report success although the
    /// content is not on the disk (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
    pub(crate) fn sync_file(&self, file: &dyn DiskFile) -> Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: a sync that waited for a failing one must not report success.
        self.check_usable()?;
        let synced = file.sync_data();
        if !Safeguard::PoisonAfterFailedSync.holds() {
            return Ok(());
        }
        synced.map_err(|error| {
            self.poison(Error::io(format!("cannot sync the active segment in {}", self.dir.display()), error))
        })
    }

    fn take_oldest(&self, up_to: Seq) -> Option<Arc<Segment>> {
        let mut segments = self.segments_mut();
        // The last segment stays: its header records the last number that was given.
        if segments.len() < 2 {
            return None;
        }
        let oldest = segments.first_entry()?;
        (oldest.get().last() <= up_to).then(|| oldest.remove())
    }

    fn holds(&self, segment: &Segment) -> bool {
        self.segment(segment.header.number).is_some_and(|held| held.header.nonce == segment.header.nonce)
    }

    fn segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, Segments> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.dir).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reads a log's frames in order.
pub struct Reader {
    log: Arc<Log>,
    after: Seq,
    position: Option<ReaderPosition>,
}

/// A position within a segment, with the bytes that were read ahead.
struct ReaderPosition {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// The offset of the next frame.
    offset: u64,
    /// The last sequence number before `offset`.
    prev: Seq,
    ahead: Bytes,
    ahead_at: u64,
}

impl Reader {
    /// Returns the next frame, or `None` if every published frame has been read. A later call may find more. Blocking.
    ///
    /// Records were trimmed before they could be read if the frame's [`Frame::prev`] lies after the last record of the
    /// frame before, or after the reader's start.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if a frame is not as it was written; [`ErrorKind::Io`] if it cannot be read. The next
    /// call tries the same frame again.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            let Some(position) = &mut self.position else {
                let Some(segment) = self.log.first_after(self.after) else {
                    return Ok(None);
                };
                self.position = ReaderPosition::start(&self.log, segment)?;
                continue;
            };
            if position.offset >= position.segment.end() {
                // The successor comes first: once there is one, the end that is read after it is final. In the other
                // order, frames written between the two reads would be skipped.
                let successor = self.log.successor(&position.segment);
                if position.offset >= position.segment.end() {
                    let Some(next) = successor else {
                        return Ok(None);
                    };
                    // If it was trimmed already, the loop starts over with the first segment that is left.
                    self.position = ReaderPosition::start(&self.log, next)?;
                    continue;
                }
            }
            let header = position.header()?;
            // Written, and not yet as durable as configured: serving it could show a record that a crash takes back.
            if header.last() > self.log.published() {
                return Ok(None);
            }
            // Promises hold no records, and a reader may start in the middle of a segment.
            let wanted = header.count > 0 && header.last() > self.after;
            let frame = if wanted { Some(position.frame(&header)?) } else { None };
            position.offset += header.bytes_on_disk();
            position.prev = header.last();
            if let Some(frame) = frame {
                self.after = frame.last();
                return Ok(Some(frame));
            }
        }
    }
}

impl ReaderPosition {
    fn start(log: &Log, segment: Arc<Segment>) -> Result<Option<ReaderPosition>> {
        let Some(file) = log.open_segment(&segment)? else {
            return Ok(None);
        };
        let prev = segment.header.predecessor.last;
        let (offset, ahead_at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        Ok(Some(ReaderPosition { segment, file, offset, prev, ahead: Bytes::new(), ahead_at }))
    }

    fn header(&mut self) -> Result<FrameHeader> {
        let head = self.read_ahead(self.offset, FRAME_HEADER_BYTES)?;
        let head = self.ahead.get(head).unwrap_or_default();
        let header = check_header(&self.segment, self.offset, head)?;
        // A checksum cannot see a frame that is whole and out of place; only continuity can.
        let follows = header.follows(self.prev);
        follows.map_err(|why| damaged_frame(&self.segment, self.offset, &why, Some(&header)))?;
        Ok(header)
    }

    fn frame(&mut self, header: &FrameHeader) -> Result<Frame> {
        let body = self.read_ahead(self.offset + FRAME_HEADER_BYTES, u64::from(header.body_len))?;
        let location = Location { segment: self.segment.header.number, offset: self.offset };
        Frame::verified(header, location, self.ahead.slice(body))
            .map_err(|why| damaged_frame(&self.segment, self.offset, why, Some(header)))
    }

    /// Makes `len` bytes at `offset` available, or fewer if the segment ends before, and returns their range in
    /// `ahead`.
    fn read_ahead(&mut self, offset: u64, len: u64) -> Result<Range<usize>> {
        let room = self.segment.end().saturating_sub(offset);
        let len = len.min(room);
        let skip = offset.saturating_sub(self.ahead_at);
        // A reader that goes backwards, or past what is buffered, reads again instead of handing out bytes of
        // another offset.
        if offset < self.ahead_at || skip + len > self.ahead.len() as u64 {
            let read = read_exactly(&*self.file, offset, len.max(READ_AHEAD_BYTES).min(room));
            self.ahead = Bytes::from(read.map_err(|error| cannot("read", &self.segment.path, error))?);
            self.ahead_at = offset;
            return Ok(0..self.ahead.len().min(len as usize));
        }
        Ok(skip as usize..(skip + len) as usize)
    }
}

/// Decodes the frame header at `offset` of a segment.
///
/// # Errors
/// `Damaged` unless it is sound, belongs to this use of the file, and is followed by its whole body.
pub(crate) fn check_header(segment: &Segment, offset: u64, bytes: &[u8]) -> Result<FrameHeader> {
    let Some((header, _)) = FrameHeader::decode(bytes) else {
        return Err(damaged_frame(segment, offset, "no sound frame header", None));
    };
    // A recycled file still holds frames of its last use that are sound in themselves (Pebble #580).
    if header.nonce != segment.header.nonce {
        return Err(damaged_frame(segment, offset, "a frame of another use of this file", None));
    }
    // Compared with what was written before memory is reserved for a body of that length.
    if header.bytes_on_disk() > segment.end().saturating_sub(offset) {
        return Err(damaged_frame(
            segment,
            offset,
            "a frame that runs beyond the segment's end",
            Some(&header),
        ));
    }
    Ok(header)
}

pub(crate) fn damaged_frame(
    segment: &Segment,
    offset: u64,
    why: &str,
    header: Option<&FrameHeader>,
) -> Error {
    let stake = match header {
        Some(header) => format!("records {} to {} cannot be read", header.first, header.last()),
        None => format!("{} bytes from there cannot be read", segment.end().saturating_sub(offset)),
    };
    damage(&segment.path, offset, why, &stake)
}

/// Reads `len` bytes, whose presence the caller has checked.
pub(crate) fn read_exactly(file: &dyn DiskFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, offset)?;
    // A shorter read is left to the checksums, which name the place; an error here would only say that the file
    // ended.
    bytes.truncate(read);
    Ok(bytes)
}
